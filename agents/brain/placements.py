"""Placement on the wire: what the broker shows becomes a view, what was decided becomes messages (docs/adr/0013)."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Protocol

from ...bus.wire import pack
from ..models.catalogue.catalogue import Catalogue
from . import placing
from .catalogue import ModelFiles, placeable
from .held import held_map, same
from .measured import with_measures
from .placing import (
    Action,
    Ask,
    Chosen,
    Done,
    Entry,
    Failed,
    Keep,
    Place,
    Placing,
    Request,
    Reserve,
    Seat,
    View,
    Want,
)
from .sharing import Neighbour, share

log = logging.getLogger(__name__)

LOOK_S: Final = 1.0
MOVING_LOOK_S: Final = 0.25
BATCH: Final = "placement"  #: name of the batches of this module's own asks, and how their keys begin
#: Then a batch is closed and the next one begins, so that retention takes it when it is old.
ASKS_A_BATCH: Final = 100
SCOPE: Final = "placement"
_TAKEN_BACK: Final = frozenset({"cancelled", "expired"})  #: of an ask: nobody wants what was decided for it


class Bus(Protocol):
    """What the brain's process offers to this part of it."""

    epoch: int

    def tell(self, header: dict[str, Any]) -> dict[str, Any]:
        """One atomic BRAIN message; the broker's answer."""

    def query(self, what: str, **more: Any) -> dict[str, Any]:
        """The header of QUERY's answer."""

    def submit(self, batch: dict[str, Any], specs: list[dict[str, Any]], payloads: list[bytes]) -> None:
        """SUBMIT."""


class Placements:
    """Looks once a second, more often while a model is on its way."""

    def __init__(self, bus: Bus, core: Placing, files: ModelFiles | None = None) -> None:
        self._bus = bus
        self._core = core
        self._files = files
        self._look_at = 0.0
        self._said: dict[str, Any] = {}
        self._count = 0

    @property
    def catalogue(self) -> Mapping[str, Entry]:
        """The models that there are."""
        return self._core.catalogue

    def due(self, now: float) -> bool:
        """Is it time to look again? Said once, until :meth:`turn` has looked."""
        due = now >= self._look_at
        if due:
            self._look_at = math.inf
        return due

    def forget(self) -> None:
        """Look at once: this brain has (again) the seat."""
        self._look_at = 0.0
        self._said = {}

    def turn(self, now: float) -> None:
        """Look, decide, and say what was decided.

        Raises:
            Busy, Unreachable, NotFound, Refused: what the broker said.
        """
        self._look_at = now + LOOK_S  # also where the broker refuses an answer
        answer = self._bus.query(SCOPE)
        view, revs = view_of(answer)
        if self._files is not None:
            if (found := self._files.look(now)) is not None:
                self._core.catalogue, self._core.default = found
            self._core.looked_at = self._files.looked_at
        self._core.catalogue = with_measures(self._core.catalogue, view.seats)
        actions = self._core.step(view, now)
        moving = bool(view.asks) or any(isinstance(a, Request) for a in actions)
        self._look_at = now + (MOVING_LOOK_S if moving else LOOK_S)
        decided = [a for a in actions if isinstance(a, Place)]
        places, reserves = share(
            decided,
            view.seats,
            neighbours_of(answer),
            self._core.catalogue,
        )
        for action in [*reserves, *places, *(a for a in actions if not isinstance(a, Place))]:
            self._perform(action, revs)
        crowded = {place.seat.worker for place in decided if place not in places}
        held = held_map(self._core.held_up(view, now, crowded), time.time())
        self._explain({"why": self._core.why(view), "held": held}, revs)

    def _perform(self, action: Action, revs: Mapping[str, int]) -> None:
        match action:
            case Place(seat, model, ask):
                entry = self._core.catalogue.get(model or "")
                spec = dict(entry.spec) if entry is not None else None
                cards = seat.cards if seat.role != "brain" else ()
                chosen = Chosen(
                    seat.chosen.generation + 1, model, ask.id, spec, cards, automatic=ask.automatic
                )
                log.info("%s is to hold %s", seat.worker, model or "nothing")
                self._fact(seat.worker, _fact_of(chosen), revs)
            case Keep(seat):
                self._fact(seat.worker, _fact_of(replace(seat.chosen, ask="")), revs)
            case Reserve(worker, mb):
                self._fact(
                    worker, {"generation": revs.get(worker, 0) + 1, "model": None, "beside_mb": mb}, revs
                )
            case Done(ask, note):
                self._bus.tell({"release": [ask.id], "notes": {ask.id: note}})
            case Failed(ask, error):
                log.warning("%s %s: %s", ask.op, ask.model or ask.worker, error)
                self._bus.tell({"fail": [{"task": ask.id, "error": error}]})
            case Request(op, model, worker, why):
                log.info("%s of %s on %s: %s", op, model, worker or "any worker", why)
                self._submit(op, model, {"model": model, "worker": worker, "automatic": True, "why": why})

    def _submit(self, op: str, model: str, meta: dict[str, Any]) -> None:
        """An ask of our own. A hundred make a batch; one that is left open, its brain gone, the broker closes."""
        number = self._count
        self._count += 1
        key = f"{self._bus.epoch}.{number + 1}:{op}:{model}"  # never one that has ended
        spec = {"key": key, "type": op, "class": "meta", "name": f"{op} {model}", "meta": meta}
        batch: dict[str, Any] = {
            "key": f"{BATCH}/{self._bus.epoch}.{number // ASKS_A_BATCH + 1}",
            "kind": "calls",
            "name": BATCH,
        }
        if (number + 1) % ASKS_A_BATCH == 0:
            batch["open"] = False
        self._bus.submit(batch, [spec], [pack({})])

    def _explain(self, said: dict[str, Any], revs: Mapping[str, int]) -> None:
        """What `why` shows of work that waits for a model, and of who asks for one."""
        if not same(said, self._said):
            self._fact("", said, revs)
            self._said = said

    def _fact(self, key: str, value: dict[str, Any], revs: Mapping[str, int]) -> None:
        self._bus.tell({"facts": [{"scope": SCOPE, "key": key, "rev": revs.get(key, 0), "value": value}]})


def view_of(answer: Mapping[str, Any]) -> tuple[View, dict[str, int]]:
    """QUERY ``placement``'s answer as the core wants it, and the revisions of its facts."""
    facts = {str(f["key"]): f for f in answer["facts"]}
    seats = [seat for row in answer["workers"] if (seat := _seat_or_none(row, facts)) is not None]
    here = {seat.worker for seat in seats}
    absent = {
        key: _chosen(fact)
        for key, fact in facts.items()
        if key and key not in here and "beside_mb" not in fact["value"]
    }
    asks = [_ask(row) for row in answer["rows"] if not row.get("ending")]
    wants = [
        Want(w["type"], w["class"], frozenset(w["needs"]), int(w["n"]), float(w["waits_s"]))
        for w in answer["demand"]
    ]
    ordered = sorted(seats, key=lambda s: _natural(s.worker))
    return View(ordered, asks, wants, absent), {key: int(f["rev"]) for key, f in facts.items()}


def neighbours_of(answer: Mapping[str, Any]) -> list[Neighbour]:
    """The workers of commands that have cards."""
    facts = {str(f["key"]): f.get("value") or {} for f in answer["facts"]}
    return [
        Neighbour(
            worker=str(row["id"]),
            cards=_cards(row.get("info") or {}),
            budget_mb=row["vram_mb"],
            leased_mb=int(row["vram_leased_mb"]),
            beside_mb=int((facts.get(str(row["id"])) or {}).get("beside_mb") or 0),
        )
        for row in answer["neighbours"]
    ]


def _cards(info: Mapping[str, Any], name: str = "cards") -> tuple[str, ...]:
    return tuple(card for card in str(info.get(name) or "").split(",") if card)


def _seat_or_none(row: Mapping[str, Any], facts: Mapping[str, Any]) -> Seat | None:
    """A worker as it shows itself; None where its heartbeat says what no model worker of ours says."""
    try:
        return _seat(row, facts.get(str(row["id"])))
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as e:
        log.warning("worker %.80s is left alone, its heartbeat is not understood: %.200r", row["id"], e)
        return None


def _chosen(fact: Mapping[str, Any] | None) -> Chosen:
    value = (fact or {}).get("value") or {}
    return Chosen(
        generation=int(value.get("generation") or 0),
        model=value.get("model"),
        ask=str(value.get("ask") or ""),
        spec=value.get("spec"),
        cards=tuple(value.get("cards") or ()),
        automatic=bool(value.get("automatic")),
        taken_back=(fact or {}).get("ask_state") in _TAKEN_BACK,
    )


def _fact_of(chosen: Chosen) -> dict[str, Any]:
    """As it is kept, and handed to the worker."""
    return {
        "generation": chosen.generation,
        "model": chosen.model,
        "spec": chosen.spec,
        "ask": chosen.ask,
        "automatic": chosen.automatic,
        "cards": list(chosen.cards),
        "at": time.time(),
    }


def _seat(row: Mapping[str, Any], fact: Mapping[str, Any] | None) -> Seat:
    said, info = row.get("placement") or {}, row.get("info") or {}
    chosen = _chosen(fact)
    return Seat(
        worker=str(row["id"]),
        group=str(info.get("group") or row["id"]),
        chosen=chosen,
        generation=int(said.get("generation") or 0),
        phase=str(said.get("phase") or "cold"),
        model=said.get("model"),
        share=float(said.get("share") or 0.0),
        since_s=float(said.get("since_s") or 0.0),
        message=str(said.get("message") or ""),
        leases=int(row["leases"]),
        willing=bool(row["willing"]),
        role=str(info.get("role") or "worker"),
        cards=_cards(info),
        vram_mb=int(said.get("vram_mb") or 0),
        freed_mb=int(said.get("freed_mb") or 0),
        split=_cards(info, "split"),
        free_mb=_free_mb(row.get("gpu")),
        word=str(row.get("word") or ""),
    )


def _free_mb(gpu: Any) -> tuple[int, ...]:
    """MiB that each card of a heartbeat has free, in their order; () where one of them does not say, or not lately."""
    if not isinstance(gpu, Mapping) or gpu.get("stale"):
        return ()
    free = []
    for card in gpu.get("cards") or (gpu,):
        used, total = card.get("vram_used_mb"), card.get("vram_total_mb")
        if not isinstance(used, int | float) or not isinstance(total, int | float):
            return ()
        free.append(int(total - used))
    return tuple(free)


def _ask(row: Mapping[str, Any]) -> Ask:
    meta = row.get("meta") or {}
    return Ask(
        id=str(row["id"]),
        batch=str(row["batch"]),
        op=str(row["type"]),
        model=str(meta.get("model") or ""),
        worker=str(meta.get("worker") or ""),
        automatic=bool(row.get("own")),  # by the broker's word: `meta` is whoever asks
    )


def _natural(name: str) -> tuple[str, int]:
    """model-2 before model-10."""
    head, _, tail = name.rpartition("-")
    return (head, int(tail)) if tail.isdigit() and len(tail) < 10 else (name, 0)


def placing_of(settings: Mapping[str, Any], state: Path) -> tuple[Placing, ModelFiles]:
    """The core for a rig's settings (as ``Settings.model_dump`` has them), and the files of its models.

    Raises:
        ConfigError: two models have one name.
    """
    files = ModelFiles(Catalogue.from_settings(settings), state)
    entries, default = placeable(files.catalogue)
    wanted = settings.get("placement") or {}
    known = {name: wanted[name] for name in placing.Settings.__dataclass_fields__ if name in wanted}
    return Placing(entries, placing.Settings(**known), default), files
