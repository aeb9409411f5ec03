"""A part of the brain (its planning, its lists, its judging) over the harness: what it asks of its process, and its work."""

from __future__ import annotations

from collections import deque
from typing import Any

from harness import Harness, Peer

from rigbus.agents.brain import core, messages
from rigbus.bus.wire import Verb, pack, unpack


class BrainPart:
    """The process of a part: what the log says becomes work, done one piece after the other.

    A rig of tests is a subclass, which makes ``rig`` and ``brain``, starts the part with :meth:`begin` and does its work.
    """

    rig: Harness
    brain: Peer
    work: deque[core.Work]
    heard: int  #: events of the log

    def do_work(self, work: core.Work) -> None:
        """One piece; it may put more into ``work``."""
        raise NotImplementedError

    # -- what the process offers -----------------------------------------------------------------------------

    def tell(
        self, header: dict[str, Any], message: messages.Message | None = None, batch: str | None = None
    ) -> dict[str, Any]:
        header = {"epoch": self.rig.core.epoch, "upto_seq": 0, **header}
        if batch is not None:
            header["batch"] = batch
        if message is not None:
            header["tasks"] = message.specs
        answer = self.brain.ask(Verb.BRAIN, unpack(pack(header)), message.payloads if message else [])
        assert answer.verb is Verb.OK, answer.header
        return answer.header

    def query(self, what: str, **more: Any) -> dict[str, Any]:
        return self.brain.ask(Verb.QUERY, {"what": what, **more}).header

    def batch_row(self, batch_id: str) -> dict[str, Any]:
        return self.query("batch", id=batch_id)

    def rows(self, ids: list[str]) -> list[dict[str, Any]]:
        return [row | {"meta": self.new(row["no"])[3]} for row in self.query("rows", ids=ids)["rows"]]

    def batch_rows(self, batch_id: str) -> list[dict[str, Any]]:
        return list(self.query("tasks", batch=batch_id)["rows"])

    def workers(self) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.query("workers")["workers"]
        return rows

    def value(self, task: str) -> Any:
        no = self.rig.core.ids[task].no
        return [unpack(c.results[no]) for c in self.rig.changes if no in c.results][-1]

    def new(self, no: int) -> Any:
        """What a commit has written of a task when it was new: (task, edges, payload, meta)."""
        return next(c.new_tasks[no] for c in self.rig.changes if no in c.new_tasks)

    # -- its life --------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """As a process starts: it knows what a snapshot says."""
        page = self.brain.ask(Verb.SNAPSHOT, {"attn": True}).header
        self.work = deque(core.work_of_snapshot(page["batches"], page["rows"]))
        self.heard = len(self.rig.events)

    def turn(self) -> bool:
        """Hear what is new, do one piece of work; False when there was none."""
        for event in self.rig.events[self.heard :]:
            if event[3] == "a":
                self.work.extend(core.work_of_event(event[4], event[5], event[6], event[7]))
        self.heard = len(self.rig.events)
        if not self.work:
            return False
        self.do_work(self.work.popleft())
        return True

    def settle(self) -> None:
        """Work until nothing is left."""
        for _ in range(1000):
            if not self.turn():
                self.rig.check()
                return
        raise AssertionError("the brain never comes to rest")
