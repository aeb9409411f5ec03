"""What the rig says of itself -> conditions. Pure but for what it remembers between two looks; standard library only.

The rows are those of QUERY `status`. What comes from a peer is looked at with care: a field of a wrong type is a condition
that is not seen, never an error.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from .core import Condition, Observation
from .rules import READERS, RULES, Policy, Severity, key_of

Row = Mapping[str, Any]

#: States of a worker that takes work, or that a person has stopped: neither is a fault.
IN_ORDER: Final = frozenset({"idle", "busy", "paused", "draining"})
ENDED: Final = ("done", "dead", "cancelled", "expired", "skipped")
LOSSES: Final = {
    "rig.lost": "the database has lost its last commits",
    "rig.repaired": "the database was repaired: see what was lost",
    "rig.restored": "the rig goes on from a backup",
    "rig.rebuilt": "the rig was made anew from its shared folder",
}
MAX_LOST: Final = 100
_STATUS: Final = (
    frozenset(RULES) - READERS - {"share-away", "broker-away", "escalation-human", "test", "rig-lost"}
)


class Watch:
    """What has to be remembered to see that somebody is missing, or that nothing moves."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.policy = policy or Policy()
        self._present: set[str] = set()
        self._orderly: set[str] = set()
        self._lost: dict[str, tuple[float, str]] = {}
        self._incarnation: Any = None
        self._moving: tuple[Any, ...] = ()
        self._moved_at: float | None = None
        self._losses: dict[str, Condition] = {}
        self._hot: set[tuple[str, str]] = set()
        self._tests: dict[str, Condition] = {}

    # -- what is heard ---------------------------------------------------------------------------------------

    def event(self, topic: str, data: Row, at: float, seq: int) -> None:
        """An event of the numbered log: a hint, since some may be missed."""
        kind, _, rest = topic.partition(".")
        name, _, what = rest.rpartition(".")
        if kind == "worker" and what == "left" and data.get("bye"):
            self._orderly.add(name)
        elif topic in LOSSES:
            details = {k: v for k, v in data.items() if isinstance(v, str | int | float)}
            self._losses[topic] = Condition(
                "rig-lost", topic.partition(".")[2], LOSSES[topic], details, mark=str(seq), at=at
            )

    def test(self, at: float, by: str = "", severity: Severity = Severity.INFO) -> None:
        """Somebody wants to see an alert. It ends by `ack`."""
        title = f"a test{f' by {by}' if by else ''}: nothing is wrong"
        self._tests["test"] = Condition("test", "", title, mark=f"{at:.3f}", at=at, severity=severity)

    # -- a look ----------------------------------------------------------------------------------------------

    def look(self, status: Row | None, now: float, wall: float) -> Observation:
        """What is so. ``status`` None: the broker does not answer, so only that is known."""
        found = [*self._losses.values(), *self._tests.values()]
        known = {"broker-away", "rig-lost", "test"}
        if status is None:
            found.append(Condition("broker-away"))
            self._moved_at = None
            return Observation(tuple(found), frozenset(known))
        good: set[str] = set()
        workers = [w for w in _rows(status.get("workers")) if isinstance(w.get("id"), str)]
        self._missing(status, workers, wall, good)
        found += self._lost_ones()
        found += _work(status, workers)
        found += self._stuck(status, now)
        found += _batches(status, good)
        for worker in workers:
            found += self._worker(worker)
        found += _disk(status)
        brain = status.get("brain")
        if isinstance(brain, Mapping) and brain.get("state") == "absent":
            found.append(Condition("brain-away"))
        return Observation(tuple(found), frozenset(known | _STATUS), frozenset(good))

    def _missing(self, status: Row, workers: list[Row], wall: float, good: set[str]) -> None:
        """Who was there at the last look and has gone without a word. A broker that was started anew knows nobody yet."""
        broker = status.get("broker")
        incarnation = broker.get("incarnation") if isinstance(broker, Mapping) else None
        names = {str(w["id"]) for w in workers}
        if incarnation == self._incarnation:
            for name in sorted(self._present - names - self._orderly):
                if len(self._lost) < MAX_LOST:
                    self._lost[name] = (wall, f"{wall:.3f}")
            self._present = names
        else:
            self._incarnation = incarnation
            self._present |= names  # its workers come back within seconds, or are missed then
        for name in names:
            self._lost.pop(name, None)
            good.add(key_of("worker-lost", name))
        self._orderly -= names

    def _lost_ones(self) -> Iterator[Condition]:
        for name, (at, mark) in self._lost.items():
            title = f"{name} went without a word and did not come back"
            yield Condition("worker-lost", name, title, {"worker": name}, mark=mark, at=at)

    def _stuck(self, status: Row, now: float) -> Iterator[Condition]:
        counts = _counts(status.get("tasks"))
        mark = (sum(counts.get(s, 0) for s in ENDED), counts.get("leased", 0), counts.get("ready", 0))
        broker = status.get("broker")
        paused = isinstance(broker, Mapping) and bool(broker.get("paused"))
        if mark != self._moving or self._moved_at is None or not counts.get("ready") or paused:
            self._moving, self._moved_at = mark, now
        elif now - self._moved_at >= self.policy.backlog_s:
            title = f"tasks are ready, and in {self.policy.backlog_s:g} s none has begun or ended"
            yield Condition(
                "backlog-stuck", "", title, {"ready": counts["ready"], "leased": counts.get("leased", 0)}
            )

    def _worker(self, worker: Row) -> Iterator[Condition]:
        name = str(worker["id"])
        quarantine = worker.get("quarantine")
        if isinstance(quarantine, Mapping):
            title = f"{name} is quarantined: {quarantine.get('why')}"
            yield Condition("worker-quarantined", name, title, {"worker": name}, f"rigbus resume {name}")
        hung = [text for text in _texts(worker.get("unkillable")) if text]
        if hung:
            title = f"{name}: a process hangs in the kernel and keeps its slots"
            yield Condition("worker-hung", name, title, {"worker": name, "processes": hung[:10]})
        held = worker.get("held")
        if isinstance(held, str) and held and not any(text in held for text in hung):
            title = f"{name} takes no work: a card of it is hot"
            yield Condition("thermal-hold", name, title, {"worker": name})
        placement = worker.get("placement")
        if isinstance(placement, Mapping) and placement.get("phase") == "failed":
            model = str(placement.get("model") or "its model")
            title = f"{name} cannot load {model}: {placement.get('message') or 'no reason is known'}"
            yield Condition(
                "model-failing", name, title[:500], {"worker": name, "model": model}, f"rigbus why {name}"
            )
        yield from self._cards(name, worker.get("gpu"))

    def _cards(self, name: str, gpu: Any) -> Iterator[Condition]:
        """Cards above ``hot_c``; one that was stays so down to ``cool_c``."""
        if not isinstance(gpu, Mapping):
            return
        for card in _rows(gpu.get("cards")) or [gpu]:
            degrees, index = card.get("temperature_c"), str(card.get("index"))
            if isinstance(degrees, bool) or not isinstance(degrees, int | float):
                continue
            if degrees >= (self.policy.cool_c if (name, index) in self._hot else self.policy.hot_c):
                self._hot.add((name, index))
                title = f"GPU {index} of {name} is hotter than {self.policy.hot_c:g} °C"
                yield Condition("card-hot", f"{name}.{index}", title, {"worker": name, "gpu": index})
            else:
                self._hot.discard((name, index))


def share_conditions(available: bool, reason: str) -> Iterator[Condition]:
    """Of the bridge's own state."""
    if not available:
        yield Condition(
            "share-away", "", f"the shared folder is unavailable: {reason or 'no reason is known'}"[:300]
        )


def escalation_conditions(
    records: Iterable[tuple[str, Row, float | None]], wall: float, policy: Policy
) -> Iterator[Condition]:
    """``(id, record, since when in Unix seconds)`` of `brain/escalations`: those that wait for a person, or that nobody
    has answered for ``pending_s``."""
    for id_, record, at in records:
        state = record.get("status")
        late = state == "pending" and at is not None and wall - at >= policy.pending_s
        if state == "human" or late:
            said = str(record.get("title") or id_)[:300]
            title = (
                f"an escalation waits for a person: {said}"
                if state == "human"
                else f"nobody has answered: {said}"
            )
            details = {"escalation": id_, "status": state}
            yield Condition("escalation-human", id_, title, details, f"rigbus escalations show {id_}")


def _work(status: Row, workers: list[Row]) -> Iterator[Condition]:
    """Tasks wait, and nobody can take them."""
    ready = _counts(status.get("tasks")).get("ready", 0)
    if ready and not any(str(w.get("state")) in IN_ORDER for w in workers):
        title = "tasks wait and no worker is " + ("in order" if workers else "there")
        yield Condition("no-worker", "", title, {"workers": len(workers)})
    shapes = _rows(status.get("unrunnable"))
    if shapes and workers:
        first = ", ".join(f"{k} {v}" for k, v in shapes[0].items() if v)
        title = f"no present worker can run tasks of {first}"[:300]
        yield Condition("unrunnable", "", title, {"shapes": len(shapes)})


def _batches(status: Row, good: set[str]) -> Iterator[Condition]:
    """Failed batches, and tasks that are dead while their batch goes on or did not fail."""
    for batch in _rows(status.get("batches")):
        id_, state = batch.get("id"), batch.get("state")
        if not isinstance(id_, str) or batch.get("kind") == "calls":
            continue  # whoever calls hears of it himself
        name = str(batch.get("plan") or batch.get("name") or batch.get("kind") or "")[:100]
        dead = _counts(batch.get("tasks")).get("dead", 0)
        ended_at, created_at = _number(batch.get("ended_at")), _number(batch.get("created_at"))
        if state == "failed":
            title = f"{name} ({id_}) has failed" + (f": {batch['error']}" if batch.get("error") else "")
            details = {"batch_id": id_, "plan": batch.get("plan"), "dead": dead}
            yield Condition(
                "batch-failed", id_, title[:500], details, f"rigbus batch show {id_}",
                f"{ended_at:.3f}", ended_at or created_at,
            )  # fmt: skip
            good.add(key_of("task-dead", id_))  # told by the batch's own
            continue
        good.add(key_of("batch-failed", id_))
        if dead:
            title = f"{name} ({id_}): {dead} task{'s' if dead > 1 else ''} failed for good"
            at = ended_at or _number(status.get("as_of")) or created_at
            details = {"batch_id": id_, "plan": batch.get("plan"), "dead": dead}
            yield Condition(
                "task-dead", id_, title, details, f"rigbus dead list --batch {id_}", str(dead), at
            )
        else:
            good.add(key_of("task-dead", id_))


def _disk(status: Row) -> Iterator[Condition]:
    disk = status.get("disk")
    level = disk.get("level") if isinstance(disk, Mapping) else None
    if level in ("low", "full"):
        folder = str(disk.get("folder") or "")[:200] if isinstance(disk, Mapping) else ""
        kept = "no new tasks are taken" if level == "low" else "no task is started"
        yield Condition(f"disk-{level}", "", f"the disk of {folder} is {level}: {kept}", {"level": level})


def _rows(value: Any) -> list[Row]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


def _texts(value: Any) -> list[str]:
    return [text for text in value if isinstance(text, str)] if isinstance(value, list) else []


def _counts(value: Any) -> dict[str, int]:
    if not isinstance(value, Mapping):
        return {}
    return {str(k): v for k, v in value.items() if isinstance(v, int) and not isinstance(v, bool)}


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
