"""A broker of rows, and a mirror of it on a real share, on a clock of the test's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from folders import UUID, Share

from rigbus.bridge.folder.loop.clock import Clock
from rigbus.bridge.folder.loop.flows import Ask, Idle, Ops
from rigbus.bridge.folder.mirror.mirror import Mirror
from rigbus.bus.client.follow import Event, event_of
from rigbus.bus.paths import rig_paths
from rigbus.bus.wire import Envelope, Verb

BATCH = "20260208_184610_a1b2c3"
AT = 1_770_576_370.0


def event(seq: int, topic: str, id_: str | None = UUID, prev: int | None = None, **data: Any) -> Event:
    before = seq - 1 if prev is None else prev
    return Event(seq, topic, id_, BATCH, {"key": "one", **data}, at=AT + seq, prev=before)


def raw_task(no: int = 1, state: str = "ready", **changes: Any) -> dict[str, Any]:
    row = {
        "no": no,
        "id": f"00000000-0000-0000-0000-{no:012d}",
        "batch": BATCH,
        "key": f"t{no}",
        "type": "shell",
        "class": "cpu",
        "priority": 5,
        "state": state,
        "started": False,
        "attempt": 0,
        "token": None,
        "worker": None,
        "created_at": AT,
        "started_at": 0.0,
        "ended_at": 0.0,
        "error": None,
        "seq": no,
    }
    return {**row, **changes}


def raw_batch(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": BATCH,
        "name": "census",
        "plan": "census",
        "kind": "plan",
        "state": "running",
        "priority": 5,
        "mirror": True,
        "created_at": AT,
        "ended_at": 0.0,
        "tasks": {"ready": 1},
        "total": 1,
        "error": None,
        "spec": {"path": "/s/plans/census", "batch_root": "/s/plans/census/batches", "config": {}},
    }
    return {**row, **changes}


class World:
    """A broker of rows, for flows of the mirror."""

    def __init__(self) -> None:
        self.tasks: dict[str, dict[str, Any]] = {}
        self.results: dict[str, bytes] = {}
        self.evaluations: dict[str, list[dict[str, Any]]] = {}
        self.batches = [raw_batch()]
        self.workers: list[dict[str, Any]] = []
        self.events: list[list[Any]] = []
        self.seq = 0
        self.asked: list[Ask] = []

    def happen(self, topic: str, id_: str | None, **data: Any) -> Event:
        """The next event of the log; nobody has told it yet."""
        self.seq += 1
        row = [self.seq, self.seq - 1, AT + self.seq, "p", topic, id_, BATCH, {"key": "one", **data}]
        self.events.append(row)
        return event_of(row)

    def put(self, *tasks: dict[str, Any]) -> None:
        for task in tasks:
            self.tasks[task["id"]] = task

    def __call__(self, ask: Ask) -> Envelope:
        self.asked.append(ask)
        h = ask.header
        if ask.verb is Verb.SNAPSHOT:
            return Envelope(
                Verb.SNAPSHOT, {"seq": self.seq, "batches": self.batches, "rows": [], "cursor": None}
            )
        if ask.verb is Verb.EVENTS:
            later = [e for e in self.events if e[0] > h["since"]]
            return Envelope(Verb.EVENTS, {"events": later, "last": self.seq, "more": False})
        what = h["what"]
        if what == "tasks":
            found = [t for t in self.tasks.values() if t["batch"] == h["batch"]]
            return Envelope(Verb.OK, {"rows": found, "cursor": None})
        if what == "rows":
            found = [self.tasks[i] for i in h["ids"] if i in self.tasks]
            return Envelope(Verb.OK, {"rows": found}, [self.results.get(t["id"], b"") for t in found])
        if what == "evaluations":
            return Envelope(Verb.OK, {"id": h["id"], "evaluations": self.evaluations[h["id"]]})
        if what == "batch":
            return Envelope(Verb.OK, next(b for b in self.batches if b["id"] == h["id"]))
        return Envelope(Verb.OK, {"batches": self.batches, "workers": self.workers})


class Drawn:
    """A mirror on a real share, one pass at a time, on a clock of the test's own."""

    def __init__(self, share: Share, tmp_path: Path, **how: Any) -> None:
        self.share, self.world, self.time = share, World(), 1000.0
        self.beats: list[tuple[str, dict[str, Any]]] = []
        self.paths = rig_paths(tmp_path / "state", share.root)
        self.paths.state.mkdir(exist_ok=True)
        clock = Clock(lambda: self.time, lambda: AT + self.time, lambda _: 0.0)
        share.do()  # the port has looked at the share
        self.mirror = Mirror(self.paths, share.port, lambda: self.beats, clock, **how)
        self.mirror.welcomed()
        self.flow = self.mirror.run()

    def turn(self, later_s: float = 0.1) -> None:
        """``later_s`` seconds later: until it pauses."""
        self.time += later_s
        answer: Any = None
        for _ in range(200):
            step = self.flow.send(answer)
            if isinstance(step, Ops):
                answer = self.share.port.call(step.kind, step.ops, step.deadline_s)
            elif isinstance(step, Idle):
                answer = None
                if step.seconds is None or step.seconds > 0:
                    return
            else:
                answer = self.world(step)
        raise AssertionError("it never pauses")

    def pass_time(self, seconds: float, step_s: float = 0.25) -> None:
        """So long, a turn at a time."""
        for _ in range(round(seconds / step_s)):
            self.turn(step_s)

    def files(self, folder: str) -> list[str]:
        return sorted(p.name for p in (self.share.root / folder).glob("*.json"))

    def read(self, path: str) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.share.root / path).read_text())
        return value
