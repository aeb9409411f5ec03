"""The bridge's flows on a real share and real helpers, with a broker that a test plays."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from rigbus.bridge.folder.loop.clock import Clock
from rigbus.bridge.folder.loop.flows import Ask, Flow, Flows
from rigbus.bridge.folder.share.port import FolderPort
from rigbus.bus.core.model import task_id
from rigbus.bus.wire import Envelope, Verb, unpack


class Rig:
    """Enough of a broker: batches by key, tasks that end when the test says so, workers with sessions.

    ``left``: tasks of which no attempt is ended to run again. ``on_cancel`` is called once.
    """

    def __init__(self) -> None:
        self.asked: list[Ask] = []
        self.batches: dict[str, dict[str, Any]] = {}
        self.tasks: dict[str, dict[str, Any]] = {}
        self.workers: list[dict[str, Any]] = []
        self.payloads: list[Any] = []
        self.left: set[str] = set()
        self.on_cancel: Callable[[], object] | None = None

    def __call__(self, ask: Ask) -> Envelope:
        self.asked.append(ask)
        if ask.verb is Verb.SUBMIT:
            return self._submit(ask)
        if ask.verb is Verb.QUERY:
            return self._query(ask.header)
        if ask.verb is Verb.REQUEUE:
            row = self._row(ask.header.get("batch"))
            row["state"], row["ended_at"] = "running", None
            return Envelope(Verb.OK, {"requeued": 1, "revived": 0})
        if ask.verb is Verb.CANCEL and self.on_cancel is not None:
            then, self.on_cancel = self.on_cancel, None
            then()
        if ask.verb is Verb.CANCEL and "again" in ask.header:
            runs = ask.header["again"]
            return Envelope(
                Verb.OK, {"again": [i for i in runs if i not in self.left], "left": sorted(self.left)}
            )
        if ask.verb is Verb.CONTROL and ask.header["action"] == "kill":
            for worker in self.workers:
                if worker["session"] == ask.header["session"]:
                    worker["session"] = uuid.uuid4().hex
        return Envelope(Verb.OK, {"cancelled": 0, "ending": 1, "already": 0, "running": 1})

    def submits(self, kind: str) -> list[dict[str, Any]]:
        """The headers of the SUBMITs of a kind that made a new batch."""
        return [a.header for a in self.asked if a.verb is Verb.SUBMIT and a.header["batch"]["kind"] == kind]

    def end(self, state: str = "complete") -> None:
        """Everything ends."""
        for batch in self.batches.values():
            batch |= {"state": state, "ended_at": 1_770_576_400.0}
        for task in self.tasks.values():
            task["state"] = "done"

    def _submit(self, ask: Ask) -> Envelope:
        head, specs = ask.header["batch"], ask.header["tasks"]
        known = self.batches.get(head["key"])
        if known is None:
            id_ = head.get("want_id") or f"20260101_000000_{len(self.batches):06x}"
            known = self.batches[head["key"]] = {
                "id": id_,
                "kind": head["kind"],
                "name": head["name"],
                "state": "running",
                "spec": head.get("plan"),
                "specs": specs,
                "total": 1,
                "tasks": {"done": 1},
                "seq": 7,
            }
            self.payloads += [unpack(body) for body in ask.body]
        elif known["specs"] != specs:
            return Envelope(Verb.CONFLICT, {"message": "submitted before with another content", "key": "k"})
        ids = [task_id(known["id"], spec["key"]) for spec in specs]
        for i in ids:
            self.tasks.setdefault(i, {"id": i, "state": "ready", "started": True})
        return Envelope(Verb.ACCEPTED, {"batch": known["id"], "ids": ids, "states": [], "seq": 1})

    def _query(self, header: dict[str, Any]) -> Envelope:
        what = header["what"]
        if what == "rows":
            rows = [self.tasks[i] for i in header["ids"] if i in self.tasks]
            return Envelope(Verb.OK, {"rows": rows, "cursor": None})
        if what == "workers":
            return Envelope(Verb.OK, {"workers": self.workers})
        if what == "task":
            return _none(header) if header["id"] not in self.tasks else Envelope(Verb.OK, {"rows": []})
        row = self._row(header["id"])
        return Envelope(Verb.OK, row) if row else _none(header)

    def _row(self, id_: Any) -> dict[str, Any]:
        return next((row for row in self.batches.values() if row["id"] == id_), {})


def _none(header: dict[str, Any]) -> Envelope:
    return Envelope(Verb.ERROR, {"code": "not_found", "message": f"there is no {header.get('id')}"})


class Turning:
    """Flows that turn until a condition holds. When all of them pause, ``clock`` goes on to the end of the first pause."""

    def __init__(self, port: FolderPort, rig: Rig) -> None:
        self.port, self.rig = port, rig
        self._skipped_s = 0.0
        self.clock = Clock(self._now)
        self.flows = Flows(port, self, self._now)  # type: ignore[arg-type]
        self._open: list[tuple[bytes, Ask]] = []
        self._n = 0

    def _now(self) -> float:
        return time.monotonic() + self._skipped_s

    def ask(self, verb: Verb, header: dict[str, Any], body: Sequence[bytes] = ()) -> bytes:
        self._n += 1
        corr = str(self._n).encode()
        self._open.append((corr, Ask(verb, header, body)))
        return corr

    def hear(self, envelope: Envelope) -> bytes:
        return envelope.corr

    def start(self, **flows: Callable[[], Flow[None]]) -> None:
        for name, run in flows.items():
            self.flows.start(name, run())

    def until(self, condition: Callable[[], Any], *, timeout_s: float = 10.0) -> Any:
        """Its first true value."""
        deadline = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"waited {timeout_s:g} s"
            self._turn()
        return value

    def looks(self, n: int, ops: list[str]) -> None:
        """Go on until ``n`` more operations of the kind ``ops[0]`` were asked of the share."""
        count = 0
        request = self.port.request

        def counting(kind: str, batch: Any, deadline_s: float = 10.0) -> int:
            nonlocal count
            count += sum(op["op"] in ops for op in batch)
            return request(kind, batch, deadline_s)

        self.port.request = counting  # type: ignore[method-assign]
        try:
            self.until(lambda: count >= n)
        finally:
            self.port.request = request  # type: ignore[method-assign]

    def _turn(self) -> None:
        asked, self._open = self._open, []
        for corr, ask in asked:
            answer = self.rig(ask)
            self.flows.answer(Envelope(answer.verb, answer.header, answer.body, corr))
        self.flows.replies(self.port.poll())
        self.flows.turn()
        if self._open:
            return
        pause_s, port_s = self.flows.timeout_s(), self.port.timeout_s()
        if self.flows._tickets or pause_s is None:
            self.port.wait(0.05 if port_s is None else min(0.05, port_s))
        else:
            self._skipped_s += pause_s
