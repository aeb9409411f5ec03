"""The pure core under a clock that the test moves; what it sends is collected by peer."""

from __future__ import annotations

import itertools
from collections import defaultdict
from typing import Any

from rigbus.bus.core.core import Core
from rigbus.bus.core.model import Changes, Effects, Send, Task, task_id
from rigbus.bus.states import TERMINAL, TaskState
from rigbus.bus.wire import Envelope, Verb, pack, unpack

WALL = 1_700_000_000.0
STATE_ID = "5" * 32


class Peer:
    """A peer of the harness: it says things and remembers what it was sent."""

    def __init__(self, rig: Harness, role: str, name: str, **hello: Any) -> None:
        self.rig, self.role, self.name = rig, role, name
        self.id = f"{next(rig.numbers):08d}{role:>24}".replace(" ", "0")
        self.address = b"p" + self.id.encode()
        self.hello(**hello)

    def hello(self, **extra: Any) -> Send:
        header = {"proto": [1, 0], "role": self.role, "session": self.id, "name": self.name, **extra}
        return self.ask(Verb.HELLO, header)

    def reconnect(self, **extra: Any) -> Send:
        """HELLO of the same session over another connection."""
        self.address = b"p%d" % next(self.rig.numbers)
        return self.hello(**extra)

    def say(self, verb: Verb, header: dict[str, Any] | None = None, body: list[bytes] | None = None) -> None:
        self.rig.step(Envelope(verb, header or {}, body or [], b"", self.address))

    def ask(self, verb: Verb, header: dict[str, Any] | None = None, body: list[bytes] | None = None) -> Send:
        """The answer to a question; other messages stay in the inbox."""
        corr = b"q%d" % next(self.rig.numbers)
        self.rig.step(Envelope(verb, header or {}, body or [], corr, self.address))
        for send in self.inbox:
            if send.corr == corr:
                self.inbox.remove(send)
                return send
        raise AssertionError(f"no answer to {verb}")

    @property
    def inbox(self) -> list[Send]:
        return self.rig.inboxes[self.address]

    def take(self, verb: Verb) -> list[dict[str, Any]]:
        """The headers of all messages of a verb that came; they leave the inbox."""
        found = [s for s in self.inbox if s.verb is verb]
        self.inbox[:] = [s for s in self.inbox if s.verb is not verb]
        return [s.header for s in found]

    # -- clients -------------------------------------------------------------------------------------------

    def submit(self, *specs: dict[str, Any], payloads: list[bytes] | None = None, **batch: Any) -> Send:
        head = {"key": f"b{next(self.rig.numbers)}", "kind": "client", "name": "test", **batch}
        return self.ask(Verb.SUBMIT, {"batch": head, "tasks": list(specs)}, payloads)

    def tasks(self, *specs: dict[str, Any], **batch: Any) -> list[Task]:
        """Submit and return the core's tasks."""
        answer = self.submit(*specs, **batch)
        assert answer.verb is Verb.ACCEPTED, answer.header
        return [self.rig.core.ids[i] for i in answer.header["ids"]]

    # -- workers -------------------------------------------------------------------------------------------

    def offer(self, credit: int = 1, slots: int = 1, **offer: Any) -> None:
        defaults = {"types": ["noop"], "classes": ["cpu"], "needs": [], "pools": [], "state_id": STATE_ID}
        self.say(Verb.OFFER, {"credit": credit, "slots": slots, **defaults, **offer})

    def leases(self) -> list[dict[str, Any]]:
        """The leases that came since the last look."""
        return [lease for header in self.take(Verb.LEASE) for lease in header["leases"]]

    def lease(self) -> dict[str, Any]:
        """The one lease that came."""
        (lease,) = self.leases()
        return lease

    def next_lease(self, limit_s: float = 130.0) -> dict[str, Any] | None:
        """The next lease, renewing until it comes; None when none comes in time."""
        end = self.rig.now + limit_s
        while not (leases := self.leases()):
            if self.rig.now >= end:
                return None
            self.rig.wait(1.0)
            self.renew()
        (lease,) = leases
        return lease

    def started(self, *leases: dict[str, Any]) -> None:
        self.say(Verb.STARTED, {"tokens": [lease["token"] for lease in leases]})

    def result(self, lease: dict[str, Any], value: Any = None, **result: Any) -> Send:
        header = {"token": lease["token"], "ok": True, "duration_s": 0.1, **result}
        return self.ask(Verb.RESULT, {"results": [header]}, [pack(value)])

    def fail(self, lease: dict[str, Any], error_class: str = "task", **result: Any) -> Send:
        return self.result(lease, ok=False, error="no", **{"class": error_class}, **result)

    def renew(self, *leases: dict[str, Any]) -> dict[str, Any]:
        answer = self.ask(Verb.RENEW, {"tokens": [lease["token"] for lease in leases]})
        assert answer.verb is Verb.RENEWED
        return {name: value for name, value in answer.header.items() if name != "credit"}


class Harness:
    """A core, a clock, and its peers. ``matching`` False leaves ready tasks where they are."""

    def __init__(
        self, core: Core | None = None, *, now: float = 1000.0, wall: float = WALL, **core_options: Any
    ) -> None:
        self.numbers = itertools.count(1)
        self.now, self.wall = now, wall
        self.core = core or Core(incarnation=1, state_id=STATE_ID, **core_options)
        self.inboxes: dict[bytes, list[Send]] = defaultdict(list)
        self.events: list[list[Any]] = []
        self.changes: list[Changes] = []
        self.matching = True
        if core is None:
            self.core.load([], [], {}, {}, self.now, self.wall)
        self.settle()

    # -- peers ---------------------------------------------------------------------------------------------

    def peer(self, role: str, name: str | None = None, **hello: Any) -> Peer:
        return Peer(self, role, name or f"{role}-{next(self.numbers)}", **hello)

    def client(self, **hello: Any) -> Peer:
        return self.peer("client", **hello)

    def brain(self) -> Peer:
        return self.peer("brain")

    def worker(self, credit: int = 1, slots: int = 1, name: str | None = None, **offer: Any) -> Peer:
        worker = self.peer("worker", name)
        worker.offer(credit, slots, **offer)
        return worker

    # -- time ----------------------------------------------------------------------------------------------

    def step(self, env: Envelope) -> Effects:
        self.core.step(env, self.now, self.wall)
        return self.settle()

    def settle(self) -> Effects:
        """A round's end as the broker has it: tick, match, take."""
        self.core.tick(self.now, self.wall)
        if self.matching:
            self.core.match()
        fx = self.core.take_effects()
        for send in fx.sends:
            self.inboxes[send.peer].append(send)
        self.events += fx.changes.events
        self.changes.append(fx.changes)
        return fx

    def wait(self, seconds: float, *renewing: tuple[Peer, list[dict[str, Any]]]) -> None:
        """Let time pass, timer by timer. Peers in ``renewing`` renew their session and leases each second."""
        end = self.now + seconds
        due = self.now + 1.0 if renewing else float("inf")
        while self.now < end:
            at = min(end, due, self.core.next_timer() or end)
            self.wall += max(0.0, at - self.now)
            self.now = max(self.now, at)
            if self.now >= due:
                for peer, leases in renewing:
                    peer.renew(*leases)
                due = self.now + 1.0
            self.settle()

    # -- looking -------------------------------------------------------------------------------------------

    def states(self, tasks: list[Task]) -> list[str]:
        return [t.state.name for t in tasks]

    def topics(self, channel: str | None = None) -> list[str]:
        return [e[4] for e in self.events if channel in (None, e[3])]

    def check(self) -> None:
        """What must hold between any two messages."""
        core = self.core
        for batch in core.batches.values():
            counted = [t for t in batch.keys.values() if t.counted]
            for state in TaskState:
                assert batch.counts[state] == sum(t.state is state for t in counted)
            assert batch.total == len(counted)
        assert sum(core.counts) == len(core.tasks) == len(core.ids)
        for task in core.tasks.values():
            assert (task.state is TaskState.LEASED) == (core.leases.get(task.token) is task), task.key
            assert (task.state in TERMINAL) == (task.ended_at > 0), task.key
            assert task.id == task_id(task.batch.id, task.key)
            if task.state is TaskState.WAITING:
                assert task.unmet == int(task.hold) + open_edges(core, task), task.key
                assert task.unmet > 0, task.key
            if task.state is TaskState.LEASED and task.session in core.sessions:
                assert core.sessions[task.session].leases.get(task.token) is task
        for session in core.sessions.values():
            assert not session.peer or core.peers.get(session.peer) is session
            for task in session.leases.values():
                assert task.state is TaskState.LEASED


def open_edges(core: Core, task: Task) -> int:
    """Edges whose source has not ended, counted as a restart counts them."""
    return sum(no in core.tasks and not core.tasks[no].ended for no, _ in task.after)


def spec(key: str, *after: Any, **fields: Any) -> dict[str, Any]:
    """A spec of a no-op task."""
    made = {"key": key, "type": "noop", **fields}
    if after:
        made["after"] = list(after)
    return made


def error_of(send: Send) -> str:
    """The code of an ERROR."""
    assert send.verb is Verb.ERROR, (send.verb, send.header)
    return str(send.header["code"])


def value_of(body: bytes) -> Any:
    return unpack(body)
