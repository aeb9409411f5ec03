"""A mirror and the door for edited files on one real share, a turn at a time, each killed after any step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flowing import Killed
from folders import Share
from worlds import AT, Drawn, raw_batch, raw_task

from rigbus.bridge.folder.control.control import Control
from rigbus.bridge.folder.doors import control_of
from rigbus.bridge.folder.intake.taking import Taker
from rigbus.bridge.folder.loop.flows import Ask, Idle, Ops
from rigbus.bus.paths import rig_paths
from rigbus.bus.wire import Envelope, Verb

STATE = "brain/state.json"


class Controlled:
    """See the module. ``cancels``: what the broker was asked to cancel, in order; ``agains``: what of it to run again."""

    def __init__(self, share: Share, tmp_path: Path, **how: Any) -> None:
        self.share, self._tmp_path, self._how = share, tmp_path, how
        self.cancels: list[str] = []
        self.agains: list[str] = []
        self.world: Any = None
        self.begin()

    def begin(self) -> None:
        """The next bridge process."""
        paths = rig_paths(self._tmp_path / "state", self.share.root)
        books, self.findings = control_of(paths)
        time = self.drawn.time if self.world is not None else 1000.0
        self.drawn = Drawn(self.share, self._tmp_path, reconcile_s=2.0, findings=self.findings, **self._how)
        self.drawn.time = time
        if self.world is None:
            self.world = self.drawn.world
        self.drawn.world = self.world
        clock = self.drawn.mirror._clock
        self.control = Control(self.share.port, books, self.findings, Taker(paths, clock), clock)
        self._flow = self.control.run()

    def look(self, *, die_at: int = 0) -> None:
        """One look of the door; killed after its n-th step was done, if that is reached."""
        value: Any = None
        for n in range(1, 500):
            step = self._flow.send(value)
            if isinstance(step, Idle):
                return
            value = (
                self.share.port.call(step.kind, step.ops, step.deadline_s)
                if isinstance(step, Ops)
                else self.answer(step)
            )
            if n == die_at:
                raise Killed
        raise AssertionError("it never pauses")

    def pass_time(self, seconds: float) -> None:
        """Both go on, a second at a time."""
        for _ in range(round(seconds)):
            self.drawn.pass_time(1.0)
            self.look()

    def answer(self, ask: Ask) -> Envelope:
        """The broker, where what runs dies at once."""
        if ask.verb is Verb.CANCEL:
            return self._again(ask.header["again"]) if "again" in ask.header else self._cancel(ask.header)
        found: Envelope = self.world(ask)
        return found

    def _cancel(self, header: dict[str, Any]) -> Envelope:
        whole = header.get("batch")
        hit = header.get("ids") or [i for i, t in self.world.tasks.items() if t["batch"] == whole]
        self.cancels += [whole] if whole else header["ids"]
        for id_ in hit:
            self.change(id_, state="cancelled", ended_at=AT + 5)
        if whole:
            self.end(whole)
        return Envelope(Verb.OK, {"cancelled": len(hit), "ending": 0, "already": 0})

    def _again(self, runs: dict[str, Any]) -> Envelope:
        ended = [i for i, token in runs.items() if self.world.tasks[i]["token"] == token]
        self.agains += ended
        for id_ in ended:
            self.change(id_, state="ready", started=False)
        return Envelope(Verb.OK, {"again": ended, "left": [id_ for id_ in runs if id_ not in ended]})

    def change(self, id_: str, **changes: Any) -> None:
        """A task is another; its row has the number of the event that says so. Leased (anew), it has another token."""
        row = {**self.world.tasks[id_], **changes}
        topic = "started" if row["started"] and row["state"] == "leased" else row["state"]
        happened = self.world.happen(f"task.shell.{topic}", id_, attempt=row["attempt"])
        if "token" not in changes and ("state" in changes or row["state"] != "leased"):
            row["token"] = [1, happened.seq] if row["state"] == "leased" else None
        self.world.tasks[id_] = {**row, "seq": happened.seq}
        self.drawn.mirror.event(happened)

    def batch(self, name: str, n: int) -> str:
        """A batch of one task, ready; its id."""
        self.world.batches = [b for b in self.world.batches if b["id"] != name] + [raw_batch(id=name)]
        self.world.put(raw_task(n, "ready", batch=name))
        self.change(raw_task(n)["id"])
        self.drawn.mirror._news.batches_changed = True
        return name

    def end(self, batch: str) -> None:
        for row in self.world.batches:
            if row["id"] == batch:
                row |= {"state": "cancelled", "ended_at": AT + 5}
        self.drawn.mirror._news.batches_changed = True

    # -- the other side --------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return self.drawn.read(STATE)

    def edit(self, state: dict[str, Any]) -> None:
        (self.share.root / STATE).write_text(json.dumps(state, indent=2))

    def said(self, name: str) -> dict[str, Any]:
        return self.drawn.read(f"inbox/{name}.receipt.json")

    def asides(self, path: str) -> list[Path]:
        where = self.share.root / path
        return sorted(where.parent.glob(f"{where.name}.conflict-*"))
