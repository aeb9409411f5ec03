"""Which model each model worker is to hold: facts of the scope ``placement``, and what the brain decides them by. Pure.

The brain writes one fact a worker, ``{model, generation, spec, …}``; the broker hands it to its worker, at once and at
every HELLO, and does not look into it. What the worker does with it stands in its heartbeat (docs/adr/0013).
"""

from __future__ import annotations

import math
from itertools import islice
from typing import Any, Final

from ..states import STATE_NAMES
from ..why.surveying import Surveying
from ..wire import Envelope, Verb
from .checks import maps
from .model import PLACEMENT, Fact, Session, Task, of_model

SCOPE: Final = PLACEMENT
_SHAPES: Final = 200


class Placements(Surveying):
    """The broker's part in placing models."""

    heartbeats: dict[str, tuple[float, dict[str, Any]]]  #: by worker's name: when (monotonic), telemetry

    def brain_message(self, session: Session, env: Envelope) -> dict[str, Any]:
        answer = super().brain_message(session, env)
        for fact in maps(env.header, "facts"):
            if fact.get("scope") == SCOPE:
                self.hand_placement(str(fact["key"]))
        return answer

    def hand_placement(self, name: str) -> None:
        """Tell a worker what it is to hold, if somebody has said so and it is here."""
        fact = self.facts.get((SCOPE, name))
        worker = self.worker_named(name)
        if fact is not None and worker is not None and isinstance(fact.value, dict):
            self.send(worker, Verb.CONTROL, {**fact.value, "action": "place"})

    def placement_view(self, session: Session, env: Envelope) -> dict[str, Any]:
        """QUERY ``placement``: model workers, what was decided, what is asked for, and what waits."""
        for no in [no for no, task in self.asks.items() if task.ended or no not in self.tasks]:
            del self.asks[no]
        return {
            "workers": [self._seat_row(w) for w in self.workers() if w.info.get("seat")],
            "neighbours": [
                {
                    "id": w.name,
                    "info": w.info,
                    "vram_mb": w.vram_mb,
                    "vram_leased_mb": w.vram_leased_mb,
                }
                for w in self.workers()
                if w.info.get("cards") and not w.info.get("seat")
            ],
            "facts": [
                {"key": key, "rev": fact.rev, "value": fact.value, "ask_state": self._ask_state(fact)}
                for (scope, key), fact in self.facts.items()
                if scope == SCOPE
            ],
            "rows": [
                task.row() | {"own": task.batch.own}
                for _, task in islice(((n, t) for n, t in sorted(self.asks.items()) if _is_due(t)), _SHAPES)
            ],
            "_fill": True,
            "demand": self._demand(),
        }

    def _ask_state(self, fact: Fact) -> str | None:
        """What has become of the task that a placement was decided for; None where there is none (any more)."""
        asked = fact.value.get("ask") if isinstance(fact.value, dict) else None
        task = self.ids.get(asked) if isinstance(asked, str) else None
        return STATE_NAMES[task.state] if task is not None else None

    def _seat_row(self, worker: Session) -> dict[str, Any]:
        _, telemetry = self.heartbeats.get(worker.name, (0.0, {}))
        return {
            "id": worker.name,
            "info": worker.info,
            "placement": telemetry.get("placement"),
            "gpu": telemetry.get("gpu"),
            "word": self.worker_word(worker),
            "leases": len(worker.leases),
            "willing": not worker.draining
            and not worker.suspect
            and not self.paused(worker.name)
            and self.quarantined(worker) is None
            and not self.fenced(worker),
        }

    def _demand(self) -> list[dict[str, Any]]:
        """What waits for a model, and what waits for the classes that share its card: by kind, with how long."""
        out: list[dict[str, Any]] = []
        for shape, levels in self.ready.shapes.items():
            if not (of_model(shape) or shape.cls == "script"):
                continue
            oldest = min((level.oldest_at() for level in levels.values()), default=math.inf)
            if oldest != math.inf and len(out) < _SHAPES:  # else what stands there was cancelled or taken
                n = sum(len(queue) for level in levels.values() for queue in level.queues.values())
                row = {"type": shape.type, "class": shape.cls, "needs": list(shape.needs), "n": n}
                out.append(row | {"waits_s": max(0.0, round(self.now - oldest, 3))})
        return out


def _is_due(ask: Task) -> bool:
    """Does it wait for nothing but its model? One of a plan waits for the tasks before it first."""
    return ask.hold and ask.unmet <= 1
