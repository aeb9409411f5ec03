"""The worker's core in a process that can die; its tasks are trees that begin, end, and resist."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from rigbus.agents.worker import events as ev
from rigbus.agents.worker.core import WorkerCore
from rigbus.agents.worker.run import WorkerConfig
from rigbus.bus.wire import Envelope, Token, Verb, pack

from .broker import Broker
from .checkers import Checkers
from .link import Link
from .supervisor import Supervisor
from .world import Process, World

SLOTS: Final = 2
SUPERVISED_S: Final = (0.05, 1.5)  #: until a dead worker is started again
KILL_GRACE_S: Final = 1.0


@dataclass(slots=True)
class Tree:
    """The processes of one attempt."""

    lease: ev.Lease
    began_at: float
    deaf: bool  #: it ignores SIGTERM
    ending: bool = False


def _tokens(value: Any) -> list[Token]:
    return [(t[0], t[1]) for t in value or ()]


class Worker(Process):
    """``duration_s`` and ``outcome`` of an attempt come from its lease: the same attempt does the same in every history."""

    make_core: Callable[..., WorkerCore] = staticmethod(WorkerCore)

    def __init__(
        self, world: World, name: str, broker: Broker, checkers: Checkers, play: Callable[..., Any]
    ) -> None:
        super().__init__(world, name)
        self.broker = broker
        self.checkers = checkers
        self.play = play
        self.fence = False  #: as over tcp: what runs ends before its lease does
        self.cards = ""  #: as its OFFER names them; workers of one history share the same
        self.supervisor: Supervisor | None = None
        self.trees: dict[Token, Tree] = {}
        #: What lies on its disk: the session that owes it, row and value. It outlives the process.
        self.spool: dict[Token, tuple[str, dict[str, Any], bytes]] = {}
        self._tick_at = float("inf")

    def begin(self) -> None:
        config = WorkerConfig(
            slots=SLOTS,
            types=("shell", "expand", "generate"),
            classes=("cpu", "script", "llm"),
            needs=(),
            state_id="s" * 32,
            kill_grace_s=KILL_GRACE_S,
            drain_s=3.0,
            default_timeout_s=20.0,
            fence=self.fence,
            info={"cards": self.cards} if self.cards else {},
        )
        self.trees = {}
        self._tick_at = float("inf")
        self.core = self.make_core(config, self.world.now)
        self.core.state_id = "s" * 32
        self.link = Link(self, self.broker, "worker", self._hear, self.name)
        self.link.extra = self._says
        for session, row, value in self.spool.values():
            self.core.step(ev.Inherited(session, [row], [value]), self.world.now)
        self._turn()

    def _says(self) -> dict[str, Any]:
        """What HELLO says beside the name."""
        owes = {session: [list(t) for t in left] for session, left in self.core.owes().items()}
        return {"resume": [list(t) for t in self.core.resume()], "owes": owes}

    def killed(self) -> None:
        self.trees = {}  # the parent death signal, and the sweep of the worker that comes after it
        self.checkers.worker_died(self.name)
        if self.supervisor is not None:
            self.supervisor.died(self.link.session)

    # -- the broker speaks -----------------------------------------------------------------------------------

    def _hear(self, env: Envelope) -> None:
        h = env.header
        over = [*_tokens(h.get("stale")), *_tokens(h.get("cancel"))]
        over += _tokens(h.get("tokens")) if env.verb in (Verb.STALE, Verb.CONTROL) else []
        self.checkers.told([*_tokens(h.get("stale"))])
        if env.verb in (Verb.RECORDED, Verb.STALE):
            self.checkers.told(_tokens(h.get("tokens")))
        self.checkers.to_end(self, over, self.trees, KILL_GRACE_S + 1.0)
        match env.verb:
            case Verb.LEASE:
                rows = zip(h["leases"], env.body, strict=True)
                self._step(ev.Leases([ev.Lease.from_wire(row, payload) for row, payload in rows]))
            case Verb.RECORDED:
                self._step(ev.Recorded(_tokens(h.get("tokens"))))
            case Verb.RENEWED:
                over, stale = _tokens(h.get("cancel")), _tokens(h.get("stale"))
                self._step(ev.Renewed(over, stale, env.corr, h["credit"]))
            case Verb.STALE:
                self._step(ev.Stale(_tokens(h.get("tokens"))))
            case Verb.WELCOME:
                welcome = ev.Welcome(_tokens(h.get("kept")), _tokens(h.get("stale")))
                welcome.renew_s, welcome.lease_s = h["renew_s"], h["lease_s"]
                welcome.greeted_at, welcome.incarnation = self.link.greeted_at, h["incarnation"]
                self._step(welcome)
            case Verb.CONTROL if h.get("action") == "cancel":
                self._step(ev.Renewed(_tokens(h.get("tokens"))))
            case Verb.CONTROL if h.get("action") in ("pause", "resume", "drain"):
                self._step(ev.Control(h["action"]))
            case Verb.BYE if self.link.superseded:
                self._step(ev.Superseded())
            case _:
                pass
        self._turn()

    # -- steps -----------------------------------------------------------------------------------------------

    def _turn(self) -> None:
        """As the loop's turn ends: what is due, and one flush."""
        if not self.up:
            return
        if self.world.now >= self.core.next_due(self.world.now):
            self._step(ev.Tick())
        if self.up:
            self._step(ev.Flush())
        if self.up:
            due = self.core.next_due(self.world.now)
            if due < self._tick_at:
                self._tick_at = due
                self.after(max(0.001, due - self.world.now), self._tick)

    def _tick(self) -> None:
        self._tick_at = float("inf")
        self._turn()

    def _step(self, event: ev.Event) -> None:
        for action in self.core.step(event, self.world.now):
            self._do(action)

    def _do(self, action: ev.Action) -> None:
        match action:
            case ev.Send(verb, header, body, corr):
                wire = dict(header)
                if verb in (Verb.RENEW, Verb.STARTED, Verb.RETURN):
                    wire["tokens"] = [list(t) for t in header["tokens"]]
                if verb is Verb.RETURN:
                    self.checkers.gave_back(header["tokens"])
                if not self.link.send(verb, wire, body, corr):
                    self._step(ev.Disconnected())
            case ev.Spool(rows, body):
                kept = zip(rows, body, strict=True)
                self.spool.update((row["token"], (self.link.session, row, value)) for row, value in kept)
            case ev.Unspool(tokens):
                for token in tokens:
                    self.spool.pop(token, None)
            case ev.Start(lease):
                self._start(lease)
            case ev.Terminate(token):
                self._terminate(token)
            case ev.Kill(token):
                self.after(0.01, self._die, token)
            case ev.Reconnect():
                self.link.reconnect()
            case ev.Exit():
                self.kill(f"exits: {action.reason}")
                self.world.at(self.world.now + 0.3, self._again)
            case ev.Recall():
                pass  # of threads only

    def _again(self) -> None:
        if not self.up:
            self.start()

    # -- attempts --------------------------------------------------------------------------------------------

    def _start(self, lease: ev.Lease) -> None:
        self.checkers.attempt_began(self, lease, alone=self.fence, cards=self.cards)
        took_s, outcome, deaf = self.play(lease)
        self.trees[lease.token] = Tree(lease, self.world.now, deaf)
        self.after(0.001, self._began, lease.token)
        if outcome == "kills its worker":
            self.after(took_s, self._poisoned, lease.token)
        else:
            self.after(took_s, self._over, lease.token, took_s, outcome)

    def _began(self, token: Token) -> None:
        if token in self.trees:
            self._step(ev.Started(token, self.world.now))
            self._turn()

    def _over(self, token: Token, took_s: float, outcome: ev.Outcome) -> None:
        if token in self.trees and not self.trees[token].ending:
            self._end(token, outcome)

    def _poisoned(self, token: Token) -> None:
        if token in self.trees:
            self.kill("killed by its task")
            self.world.at(self.world.now + self.world.between(*SUPERVISED_S), self._again)

    def _terminate(self, token: Token) -> None:
        tree = self.trees.get(token)
        if tree is not None and not tree.deaf:
            tree.ending = True
            self.after(self.world.between(0.0, 0.3), self._die, token)

    def _die(self, token: Token) -> None:
        if token in self.trees:
            self._end(token, ev.failed("crash", "ended by signal 15", body=pack({"token": list(token)})))

    def _end(self, token: Token, outcome: ev.Outcome) -> None:
        del self.trees[token]
        self.checkers.attempt_ended(self.name, token)
        self._step(ev.Ended(token, outcome))
        self._turn()
