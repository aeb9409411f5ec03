"""What takes slots from a worker for a while: a hot card, a card's memory, processes that cannot be killed. Pure.

The books are ``books.py``; ``core.py`` hears all other events.
"""

from __future__ import annotations

from . import events as ev
from .books import WorkerBooks, heat
from .events import Action
from .run import Phase, Run, Why


class WorkerHolds(WorkerBooks):
    """How a worker loses slots and gets them back. None of it burns an attempt that has not begun."""

    def _hold(self, e: ev.Held, now: float) -> list[Action]:
        if e == self.held:
            return []
        self.held = e
        self._offer_now = True
        actions = self._return_waiting(heat(e))
        if e.critical:
            for run in self.runs.values():
                if run.why is None and run.phase is not Phase.QUEUED:
                    actions += self._end(run, Why.HEAT, heat(e), now)
        return actions

    def _release(self, e: ev.Released, now: float) -> list[Action]:
        self._offer_now = self._offer_now or self.held is not None
        self.held = None
        return self._pump(now)

    def _budget(self, e: ev.VramBudget, now: float) -> list[Action]:
        self._vram_mb = e.mb
        self._offer_now = True
        return []

    def _model_takes(self, e: ev.ModelVram, now: float) -> list[Action]:
        self._model_mb = e.mb
        self._offer_now = True
        return []

    # ------------------------------------------------------------ what cannot be killed

    def _cannot_kill(self, e: ev.Unkillable, now: float) -> list[Action]:
        run = self.runs.pop(e.token, None)
        if run is None:
            return []
        self._moved_at = now
        sends = self._progress.end(e.token, now) if run.why is not Why.STALE else []
        return [*sends, *self._hang(run, e.said), *self._pump(now), *self._maybe_exit(now)]

    def _hang(self, run: Run, said: str) -> list[Action]:
        """Its tree cannot be killed: the attempt is over without it."""
        token = run.lease.token
        self._unlend(run)
        self.unkillable[token] = said
        self._offer_now = run.reported = True
        error = f"{run.error or 'its command has ended'}; {said}"
        if run.why is not Why.STALE:
            # What has had its time is not tried ten times over: each attempt would take another slot with it.
            cls = "task" if run.why is Why.TIMEOUT else "infra"
            self.outbox.add(token, ev.failed(cls, error), cancelled=run.why is Why.CANCEL)
        return self._return_waiting(self.hangs) if not self.slots else []
