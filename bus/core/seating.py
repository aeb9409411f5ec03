"""Sessions: HELLO, WELCOME, resume, the brain's epoch, RENEW, the end of a session. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from ..errors import BadFrame, Refused
from ..wire import CLIENT_SESSION_S, MAX_KEY_BYTES, PROTO_VERSION, Envelope, Token, Verb
from .asking import Asking
from .bounds import RESERVED_SESSIONS, Busy
from .checks import MAX_INT, owed, tokens, whole
from .model import Send, Session
from .refusals import who_says

ROLES: Final = frozenset({"worker", "brain", "bridge", "client", "supervisor"})
_SUPERSEDED_KEPT: Final = 1000


class Seating(Asking):
    """Who is there."""

    renew_s: float
    build: str
    schema: int
    endpoints: dict[str, str]

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.epoch = 0
        self.brain = ""
        self.standby: list[str] = []
        self.heartbeats = {}
        self._superseded: OrderedDict[str, None] = OrderedDict()

    # -- beginning -------------------------------------------------------------------------------------------

    def hello(self, env: Envelope) -> None:
        """HELLO: a session begins, or goes on over a new connection.

        Raises:
            BadFrame: a field is wrong; nothing was changed.  Refused: another major version.  Busy: too many sessions.
        """
        h = env.header
        proto = h.get("proto")
        if not isinstance(proto, (list, tuple)) or not proto or proto[0] != PROTO_VERSION[0]:
            raise Refused(f"version: {self.turn_away(h)}")
        role, sid, name = h.get("role"), h.get("session"), h.get("name")
        if role not in ROLES or not isinstance(sid, str) or not 8 <= len(sid) <= 64:
            raise BadFrame(f"HELLO: role {role!r:.40} or session {sid!r:.80} is not valid", rule="§3")
        if name is not None and (not isinstance(name, str) or len(name.encode()) > MAX_KEY_BYTES):
            raise BadFrame(f"HELLO: name must be text of at most {MAX_KEY_BYTES} bytes", rule="§3")
        pid, resume = whole(h, "pid", 0, MAX_INT, 0), tokens(h.get("resume"))
        nth = whole(h, "nth", 0, MAX_INT, 0)
        owes = owed(h)
        session = self.sessions.get(sid)
        if session is not None and session.role != role:
            raise BadFrame(f"HELLO: session {sid[:8]} is a {session.role}, not a {role}", rule="§3")
        if sid in self._superseded:
            # its BYE did not reach it; taking the name back would end the newer worker
            self.fx.sends.append(Send(env.peer, Verb.BYE, {"reason": "superseded"}, corr=env.corr))
            return
        if session is not None and 0 < nth <= session.hellos:
            return  # a later one of this session has overtaken it: what it says of leases is old, and nobody hears an answer
        if session is None:
            self._check_seats(role)
            if role == "worker" and name:
                self._keep_owed(name, owes)
            session = self._open_session(sid, role, name, env.peer)
        self._connect(session, env.peer)
        session.pid, session.hellos = pid, nth
        if role == "bridge":
            session.info = {"standby": h.get("standby") is True}
        self.refusals.forget(who_says(h, ""))
        welcome: dict[str, Any] = {
            "proto": list(PROTO_VERSION),
            "build": self.build,
            "schema": self.schema,
            "incarnation": self.incarnation,
            "state_id": self.state_id,
            "seq": self.seq,
            "lease_s": self.lease_s,
            "renew_s": self.renew_s,
            "session_s": CLIENT_SESSION_S,
            "limits": self.limits(),
            **self.endpoints,
        }
        if role == "worker":
            welcome |= self._resume_worker(session, resume)
        elif role == "brain":
            welcome |= self._seat_brain(session)
        self.fx.sends.append(Send(env.peer, Verb.WELCOME, welcome, corr=env.corr))
        if role == "worker":
            self.hand_placement(session.name)

    def turn_away(self, hello: dict[str, Any], major: int | None = None) -> str:
        """A peer of another major version: remembered for people, and told what to do; the text for it.

        ``major`` is that of its frames, where they were of another one.
        """
        proto = hello.get("proto")
        if isinstance(proto, (list, tuple)) and proto:
            spoken = ".".join(f"{part!r:.8}" for part in proto[:2])
        else:
            spoken = f"{major}.x" if major is not None else f"{proto!r:.40}"
        build = hello.get("build")
        named = isinstance(build, str) and build and build.isprintable()
        theirs = f"protocol {spoken}" + (f" (rigbus {build:.20})" if named else "")
        own = f"{PROTO_VERSION[0]}.{PROTO_VERSION[1]}" + (f" (rigbus {self.build})" if self.build else "")
        who = who_says(hello, "a peer")
        why = f"{who} speaks {theirs}, this broker {own}"
        fix = "install the same rigbus for both, and start it again"
        self.refusals.note("version", who, why, fix, self.now, self.wall)
        return f"{why}: {fix}"

    def _check_seats(self, role: str) -> None:
        """A new session's place: the last ones are not for clients, whose flood must not keep the workers out."""
        bound = self.bounds.sessions + (0 if role == "client" else RESERVED_SESSIONS)
        if len(self.sessions) >= bound:
            raise Busy(
                "sessions",
                f"{len(self.sessions)} sessions are open, the bound is {bound}; close clients that nobody needs, or "
                "raise limits.sessions",
                CLIENT_SESSION_S,
            )

    def _open_session(self, sid: str, role: str, name: str | None, peer: bytes) -> Session:
        session = self.sessions[sid] = Session(sid, role, peer, self.now)
        session.name = name or f"{role}-{sid[:6]}"
        if role == "worker":
            self._supersede(session)
        else:
            self.timer(self.now + CLIENT_SESSION_S, "session", session)
        return session

    def _connect(self, session: Session, peer: bytes) -> None:
        """``peer`` is the session's connection now; a session that had it before is without one."""
        if session.peer != peer:
            self.peers.pop(session.peer, None)
        before = self.peers.get(peer)
        if before is not None and before is not session:
            before.peer = b""
        session.peer = peer
        session.last_seen = self.now
        session.suspect = False
        self.peers[peer] = session

    def _keep_owed(self, name: str, owes: dict[str, list[Token]]) -> None:
        """Leases of former processes of this name whose results are on its disk do not end with those processes."""
        for sid, owed_tokens in owes.items():
            for due in owed_tokens:
                task = self.leases.get(due)
                if task is None or task.session != sid or task.worker != name:
                    continue
                former = self.sessions.get(sid)
                if former is not None:
                    former.leases.pop(due, None)
                task.lease_deadline = self.now + self.lease_s
                self.timer(task.lease_deadline, "owed", task)

    def _supersede(self, session: Session) -> None:
        """Worker names are unique: the newest process of a name is the worker."""
        for other in self.workers():
            if other is not session and other.name == session.name:
                self.send(other, Verb.BYE, {"reason": "superseded"})
                self._superseded[other.id] = None
                if len(self._superseded) > _SUPERSEDED_KEPT:
                    self._superseded.popitem(last=False)
                self.end_session(other, f"{other.name} was started again")
        session.draining = ("drain", session.name) in self.facts or ("drain", "all") in self.facts
        self.emit("p", f"worker.{session.name}.joined", "", "", {"session": session.id})

    def _resume_worker(self, session: Session, resume: list[Token]) -> dict[str, Any]:
        """Leases that the worker still has go on; those that never reached it are given back; the rest is stale."""
        session.credit = session.lent = 0  # it offers when it has heard the WELCOME
        kept: list[list[int]] = []
        stale: list[list[int]] = []
        mine = {t.token: t for t in self.leases.values() if t.session == session.id}
        for held in resume:
            task = mine.pop(held, None)
            if task is not None:
                kept.append(list(held))
                if not session.greeted:
                    task.lease_deadline = self.now + self.lease_s
                session.leases[task.token] = task
            elif held not in self.recorded:  # an answered one is asked for again by its RESULT
                stale.append(list(held))
        # Only one that hears says RENEW: another HELLO instead of it renews nothing more.
        session.greeted = session.greeted or bool(kept)
        if session.leases:
            self.watch(session)
        for task in mine.values():
            self.hand_back(task, "the lease did not reach the worker")
        return {"kept": kept, "stale": stale}

    def _seat_brain(self, session: Session) -> dict[str, Any]:
        """One brain at a time: the first gets a new epoch, the others wait."""
        if self.brain and self.brain != session.id and self.brain in self.sessions:
            if session.id not in self.standby:
                self.standby.append(session.id)
            return {"standby": True}
        if self.brain == session.id and session.epoch == self.epoch:
            return {
                "epoch": self.epoch,
                "standby": False,
            }  # the same brain on a new connection keeps its seat
        self.brain = session.id
        self.epoch += 1
        session.epoch = self.epoch
        self.changes.meta["epoch"] = self.epoch
        self._close_own_batches()
        return {"epoch": self.epoch, "standby": False}

    def _close_own_batches(self) -> None:
        """The asks of an earlier brain are a batch that nobody adds to: it ends with them, and retention may take it."""
        for batch in self.batches.values():
            if batch.own and not batch.closed:
                batch.closed = True
                self.keep_batch(batch)
                self.touch_batch(batch)

    # -- going on --------------------------------------------------------------------------------------------

    def renew(self, session: Session, env: Envelope) -> dict[str, Any]:
        """RENEW: the session, and a worker's leases; the header of RENEWED."""
        session.suspect = False
        if session.role == "worker":
            return self.renew_leases(session, env.header.get("tokens"))
        if session.role == "brain":
            return {"epoch": self.epoch if session.id == self.brain else 0}
        return {}

    def heartbeat(self, name: str, telemetry: dict[str, Any], now: float) -> None:
        """A PUB heartbeat of a worker that is here, or the bridge's: telemetry. It renews nothing: only the DEALER's
        word counts."""
        if self.worker_named(name) is not None or name == "bridge":
            self.heartbeats[name] = (now, telemetry)

    def only_workers(
        self, handler: Callable[[Session, Envelope], None]
    ) -> Callable[[Session, Envelope], None]:
        """A handler that refuses other roles."""

        def checked(session: Session, env: Envelope) -> None:
            if session.role != "worker":
                raise Refused(f"{env.verb} is for workers, this session is a {session.role}")
            handler(session, env)

        return checked

    # -- ending ----------------------------------------------------------------------------------------------

    def disconnected(self, session: Session, undelivered: list[Token]) -> None:
        """A connection is gone: no more pushes until it says HELLO again; leases that were just sent come back."""
        self.peers.pop(session.peer, None)
        session.peer = b""
        for undone in undelivered:
            task = self.leases.get(undone)
            if task is not None and task.session == session.id:
                self.hand_back(task, "the lease did not reach the worker")

    def end_session(
        self, session: Session, why: str, *, stuck: bool = False, dead: bool = False, bye: bool = False
    ) -> None:
        """A session is over: its leases, tokens, waits and orphans follow. ``stuck``: see :meth:`Leasing.lose`;
        ``dead``: nothing that it started lives; ``bye``: it said so itself."""
        self.sessions.pop(session.id, None)
        if self.peers.get(session.peer) is session:
            del self.peers[session.peer]
        if session.role == "worker":
            self.end_worker_leases(session, why, stuck=stuck, dead=dead)
            if self.worker_named(session.name) is None:
                self.heartbeats.pop(session.name, None)
            said = {"why": why, "bye": True} if bye else {"why": why}
            self.emit("p", f"worker.{session.name}.left", "", "", said)
        for (scope, key), fact in list(self.facts.items()):
            if scope == "token" and fact.value == session.id:
                self.drop_fact(scope, key)
        self.cancel_orphans(session.id, "its client is gone (orphan: cancel)")
        if session.id in self.standby:
            self.standby.remove(session.id)
        if session.id == self.brain:
            self.brain = ""
            if self.standby:
                self._promote(self.sessions[self.standby.pop(0)])

    def _promote(self, heir: Session) -> None:
        """The brain that waited longest is the brain: a second WELCOME says so."""
        seat = self._seat_brain(heir)
        welcome = {
            "incarnation": self.incarnation,
            "state_id": self.state_id,
            "seq": self.seq,
            **self.endpoints,
            **seat,
        }
        self.send(heir, Verb.WELCOME, welcome)

    def cancel_orphans(self, sid: str, reason: str) -> None:
        """End the tasks that were to end with this session."""
        for task in list(self.owned.get(sid, {}).values()):
            self.cancel_task(task, reason)
