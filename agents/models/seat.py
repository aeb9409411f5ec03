"""Where a worker holds its model: the core's actions on a real model, its events from there. The loop's thread.

A model is closed in a thread of its own, for that waits until its process is dead; everything else is asked of the model, and
of the last readings of its cards, in each of the loop's turns.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from ...bus.errors import RigbusError
from ...bus.wire import Token as LeaseToken
from ...bus.wire import Verb
from ..worker import events as ev
from . import seat_core as core
from .card_meter import CardMeter
from .protocol import Model

log = logging.getLogger(__name__)

#: How often a loading model is asked how far it is, and whether memory is back.
LOADING_POLL_S: Final = 0.1
HOT_POLL_S: Final = 1.0


class Bus(Protocol):
    """What the seat needs of the worker's loop."""

    def post(self, event: ev.Event, wake: bool = True) -> None: ...

    def ask(
        self, verb: Verb, header: dict[str, Any], answered: Callable[[Mapping[str, Any]], None]
    ) -> bool: ...

    def beat(self) -> None: ...


class Seat:
    """A runner of no tasks. ``open_model`` makes the model of a spec (not started), ``on_model`` is told which one is hot.

    ``group``: the name of the token that allows to load, None where loads need none. ``runs``: how many leases live here.
    ``meter``: measures what the model takes of its cards; None: there are none.
    """

    def __init__(
        self,
        bus: Bus,
        *,
        group: str | None,
        open_model: Callable[[core.Wanted], Model],
        on_model: Callable[[core.Wanted | None, Model | None], None],
        runs: Callable[[], int],
        clock: Callable[[], float],
        meter: CardMeter | None = None,
    ) -> None:
        self._core = core.SeatCore()
        self._bus = bus
        self._group = group
        self._open_model = open_model
        self._on_model = on_model
        self._runs = runs
        self._clock = clock
        self._meter = meter
        self._model: Model | None = None
        self._told: deque[core.Event] = deque()  # by the threads that close
        self._drop_at: float | None = (
            None  # when to say (again) that the token is not needed; None: the broker knows
        )

    # ------------------------------------------------------------ what the worker is told

    def control(self, action: str, header: Mapping[str, Any]) -> None:
        """CONTROL ``place``; anything else is not for a seat."""
        wanted = core.Wanted.of(header) if action == "place" else None
        if wanted is None:
            log.warning("CONTROL %.40s is not understood here", action)
            return
        self._step(core.Placed(wanted))

    def report(self) -> dict[str, Any]:
        """For the heartbeat: the core's, and ``vram_mb``, the most that the hot model was measured to take of its cards."""
        said = self._core.report(self._clock())
        if self._meter is not None and self._core.phase == "hot" and self._meter.peak_mb:
            said["vram_mb"] = self._meter.peak_mb
        return said

    # ------------------------------------------------------------ a runner of the loop

    def start(self, lease: ev.Lease) -> None:
        """No lease comes here: the seat has no types."""

    def recall(self, tokens: Sequence[LeaseToken]) -> list[LeaseToken]:
        return []

    def terminate(self, token: LeaseToken) -> None:
        pass

    def kill(self, token: LeaseToken) -> None:
        pass

    def tick(self, now: float) -> float | None:
        """Hear the threads and the model; when to look again."""
        while self._told:
            event = self._told.popleft()
            if isinstance(event, core.Closed) and self._meter is not None:
                self._meter.gone()
            self._step(event)
        phase = self._core.phase
        if self._model is not None and phase in ("loading", "hot", "emptying"):
            self._step(_loads(self._model))
            phase = self._core.phase
        if self._meter is not None:
            self._measure(self._meter)
        if phase == "emptying" and not self._runs():
            self._step(core.Unused())
        for action in self._core.due(now):
            self._do(action)
        if self._drop_at is not None and now >= self._drop_at:
            self._drop_at = now + core.ANSWER_S
            self._bus.ask(Verb.TOKEN, {"name": self._group, "action": "release"}, self._dropped)
        due = [at for at in (self._next(now), self._drop_at) if at is not None]
        return min(due, default=None)

    def close(self) -> None:
        """The worker exits; its model goes with it."""
        model, self._model = self._model, None
        if model is not None:
            if self._meter is not None:
                self._meter.leave(model)
            model.close()
        if self._meter is not None:
            self._meter.close()

    def _measure(self, meter: CardMeter) -> None:
        """What the model takes; or, when it has gone, whether that is back."""
        if self._model is not None and self._core.phase in ("loading", "hot"):
            meter.look(self._model, hot=self._core.phase == "hot")
        elif self._core.looks_back:
            waits = self._core.back_by is not None
            found = meter.back(hurry=waits)
            if found is None:
                return
            if found.unknown and waits:
                log.info("whether all memory is back cannot be measured: %s", found.unknown)
            self._step(core.Memory(found.back_mb, found.missing, judged=not found.unknown))

    def _next(self, now: float) -> float | None:
        match self._core.phase:
            case "loading":
                return now + LOADING_POLL_S
            case "hot" | "emptying":
                return now + HOT_POLL_S
            case "asking":
                return self._core.ask_at
            case _ if self._core.back_by is not None:
                return min(now + LOADING_POLL_S, self._core.back_by)
            case _ if self._core.looks_back:
                return now + HOT_POLL_S
            case _:
                return None  # a lease's end, a closed model or the broker wakes the loop

    # ------------------------------------------------------------ actions

    def _step(self, event: core.Event) -> None:
        before = (self._core.phase, self._core.wanted.generation)
        actions = self._core.step(event, self._clock())
        for action in actions:
            self._do(action)
        if before != (self._core.phase, self._core.wanted.generation):
            log.info("model %s: %s", self.report().get("model") or "none", self._core.phase)
            self._bus.beat()

    def _do(self, action: core.Action) -> None:
        match action:
            case core.TakeToken():
                self._take_token()
            case core.DropToken():
                if self._group is not None:
                    self._drop_at = self._clock()
            case core.Open(wanted):
                self._open(wanted)
            case core.Close():
                self._close_model()
            case core.Offer(wanted):
                self._on_model(wanted, self._model if wanted is not None else None)
            case core.Warn(text):
                log.warning("%s", text)

    def _take_token(self) -> None:
        self._drop_at = None
        if self._group is None or (self._core.wanted.spec or {}).get(
            "url"
        ):  # nothing comes over a link of ours
            self._told.append(core.Token(held=True))
            self._bus.post(ev.Tick())
            return
        self._bus.ask(Verb.TOKEN, {"name": self._group, "action": "take"}, self._answered)

    def _dropped(self, answer: Mapping[str, Any]) -> None:
        self._drop_at = None

    def _answered(self, answer: Mapping[str, Any]) -> None:
        self._step(core.Token(held=bool(answer.get("held")), by=str(answer.get("by") or "")))

    def _open(self, wanted: core.Wanted) -> None:
        try:
            if self._meter is not None:
                self._meter.open(wanted.spec or {})
            self._model = self._open_model(wanted)
            self._model.start()
        except RigbusError as e:
            self._not_opened(str(e))
        except (OSError, ValueError, TypeError, LookupError, ArithmeticError) as e:
            # no rule of ours foresaw it: the worker goes on, the model does not
            log.exception("model %s cannot be opened", wanted.model)
            self._not_opened(f"model {wanted.model}: {e!r:.300}; see the log of its worker")

    def _not_opened(self, why: str) -> None:
        self._told.append(core.Loads(failed=why))
        self._bus.post(ev.Tick())

    def _close_model(self) -> None:
        model, self._model = self._model, None
        took_mb = self._meter.leave(model) if self._meter is not None and model is not None else 0

        def end() -> None:
            try:
                if model is not None:
                    model.close()
            finally:
                self._told.append(core.Closed(took_mb))
                self._bus.post(ev.Tick())

        threading.Thread(target=end, name="rigbus-unload", daemon=True).start()


def _loads(model: Model) -> core.Loads:
    state = model.state
    if state.phase == "failed":
        return core.Loads(failed=state.message or "it cannot be loaded")
    restarts = state.message if state.phase == "restarting" else ""
    return core.Loads(share=state.share, ready=state.phase == "ready", message=restarts)
