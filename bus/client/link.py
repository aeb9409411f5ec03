"""One peer's DEALER to the broker: HELLO, sending, receiving, questions with retries. No loop, no thread.

Laws (PROTOCOL §1-§3):
1. Nothing is ever queued for a broker that is not there: IMMEDIATE=1 and non-blocking sends. What cannot be sent is
   the caller's to keep.
2. After a timeout the socket is thrown away: what it still holds must not reach a restarted broker.
3. The session outlives sockets. WELCOME may come again at any time; :meth:`Connection.recv` shows it to the owner,
   who then says again what the broker may have forgotten.
4. A socket belongs to the thread that opened it.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from socket import gethostname
from typing import Any, Final, NoReturn

import zmq

from ..errors import (
    BadFrame,
    Busy,
    Conflict,
    DefinitionError,
    LeaseLost,
    NotFound,
    Refused,
    RigbusError,
    Unreachable,
    WrongThread,
)
from ..sockets import Receive, Send, receiver, sender
from ..wire import (
    MAX_FRAME_BYTES,
    PROTO_VERSION,
    RENEW_S,
    Envelope,
    Verb,
    decode,
    encode,
    hello_of,
    other_major,
)

log = logging.getLogger(__name__)

REFUSED_S: Final = 30.0  #: to a broker of another version HELLO is said so seldom; it may be updated
HELLO_TIMEOUT_S: Final = 3.0  #: without a WELCOME by then, a new socket
FIRST_TRY_S: Final = 3.0  #: a question's first patience; doubles with every try, up to:
MAX_TRY_S: Final = 15.0
QUEUE_MESSAGES: Final = 1000  #: SNDHWM and RCVHWM
SCHEMA: Final = 1

_ERRORS: Final[dict[str, type[RigbusError]]] = {
    "bad_frame": BadFrame,
    "definition": DefinitionError,
    "not_found": NotFound,
    "refused": Refused,
    "stale_epoch": Refused,
    "stale_token": LeaseLost,
    "unsupported": Refused,
    "version": Refused,
}


def new_session() -> str:
    """A session id: 32 hex digits, made once by a process (or a client) and kept over reconnects."""
    return os.urandom(16).hex()


def raise_error(answer: Envelope) -> NoReturn:
    """The exception that an ERROR, BUSY or CONFLICT stands for; its text holds what, where and the fix."""
    header = answer.header
    text = str(header.get("message", "")) or f"{answer.verb} without a message"
    if what := header.get("what"):
        text = f"{what}: {text}"
    if fix := header.get("fix"):
        text = f"{text}; {fix}"
    if answer.verb is Verb.BUSY:
        raise Busy(text, float(header.get("retry_after_s") or 1.0))
    if answer.verb is Verb.CONFLICT:
        key = header.get("key")
        raise Conflict(f"{text} (key {key})" if key and str(key) not in text else text)
    raise _ERRORS.get(str(header.get("code")), RigbusError)(text)


class Connection:
    """The link of one peer. States: *down* (HELLO not sent), *greeting* (WELCOME awaited), *ready*, and
    *refused*: the broker speaks another version; this peer stays idle and asks again every :data:`REFUSED_S`.

    Args:
        endpoint: the broker's ``commands`` endpoint.
        role: ``worker``, ``brain``, ``bridge``, ``client`` or ``supervisor``.
        session: 32 hex digits; made here when None.
        name: a worker's id.
        hello_extra: called for each HELLO; its fields are added (a worker's ``resume``).
        ctx: a zmq context to share; this connection's own when None, ended by :meth:`close`.
        on_wait: called again and again, at least each second, while a question waits for its answer.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        role: str,
        session: str | None = None,
        name: str | None = None,
        build: str = "",
        hello_extra: Callable[[], dict[str, Any]] | None = None,
        ctx: zmq.Context[zmq.Socket[bytes]] | None = None,
        on_wait: Callable[[], None] | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoint = endpoint
        self.role = role
        self.session = session or new_session()
        self.name = name
        self.build = build
        self.welcome: dict[str, Any] = {}
        self.generation = 0  #: WELCOMEs so far; when it grows, pushes may have been lost
        self.superseded = ""  #: reason of a BYE: the broker ended this session for good
        self._hellos = 0  #: said so far by this session
        self.refused = ""  #: why the broker does not speak with this version, while it is so
        self._hello_extra = hello_extra
        self._on_wait = on_wait
        self._monotonic = monotonic
        self._own_ctx = ctx is None
        self._ctx: zmq.Context[zmq.Socket[bytes]] = ctx if ctx is not None else zmq.Context(io_threads=1)
        self._socket: zmq.Socket[bytes] | None = None
        self._push: Send  #: of the present socket
        self._take: Receive
        self._thread = 0
        self._state = "down"
        self._greeted_at = 0.0
        self._pushed: deque[Envelope] = deque()
        self._refusal: Envelope | None = None
        self._asked: deque[bytes] = deque(maxlen=256)  #: ids of past questions: a second answer is dropped
        self._renewed_at = 0.0
        self._heard_at = 0.0
        self._closed = False

    # --- the socket ---------------------------------------------------------------------------------------------

    def _owned(self) -> None:
        me = threading.get_ident()
        if not self._thread:
            self._thread = me
        elif self._thread != me:
            raise WrongThread(
                f"the connection of session {self.session[:8]} was opened by another thread; open one in each thread"
            )
        if self._closed:
            raise Unreachable("this connection is closed; open a new one")

    @property
    def socket(self) -> zmq.Socket[bytes]:
        """The present socket, to poll. It changes with :meth:`reconnect`: ask again before each poll."""
        self._owned()
        return self._open() if self._socket is None else self._socket

    @property
    def context(self) -> zmq.Context[zmq.Socket[bytes]]:
        """The zmq context, for further sockets of the same owner; close them before the connection."""
        return self._ctx

    def silent_s(self, since: float) -> float:
        """Seconds since the broker was last heard, counted from ``since`` (monotonic) at the earliest."""
        return self._monotonic() - max(self._heard_at, since)

    @property
    def ready(self) -> bool:
        """WELCOME has come on this socket."""
        return self._state == "ready"

    @property
    def greeted_at(self) -> float:
        """When the last HELLO was sent, monotonic: the broker had it at that time at the earliest."""
        return self._greeted_at

    @property
    def interest(self) -> int:
        """What to poll for: POLLIN, and POLLOUT while a HELLO waits for the broker to be there."""
        return int(zmq.POLLIN | zmq.POLLOUT) if self._state == "down" else int(zmq.POLLIN)

    def _open(self) -> zmq.Socket[bytes]:
        s = self._ctx.socket(zmq.DEALER)
        # Linger before connect: a process must never hang at its exit for a broker that is gone.
        s.setsockopt(zmq.LINGER, 0)
        s.setsockopt(zmq.IMMEDIATE, 1)
        s.setsockopt(zmq.SNDHWM, QUEUE_MESSAGES)
        s.setsockopt(zmq.RCVHWM, QUEUE_MESSAGES)
        s.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES + 4096)
        s.setsockopt(zmq.RECONNECT_IVL, 50)
        s.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        s.setsockopt(zmq.HANDSHAKE_IVL, 5000)
        # They notice a dead TCP path; a hung broker is noticed by RENEW alone, the I/O thread answers these.
        s.setsockopt(zmq.HEARTBEAT_IVL, 5000)
        s.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15_000)
        s.setsockopt(zmq.HEARTBEAT_TTL, 15_000)
        if self.endpoint.startswith("tcp:"):
            s.setsockopt(zmq.TCP_KEEPALIVE, 1)
            s.setsockopt(zmq.TCP_KEEPALIVE_IDLE, 30)
            s.setsockopt(zmq.TCP_KEEPALIVE_INTVL, 10)
            s.setsockopt(zmq.TCP_KEEPALIVE_CNT, 3)
        try:
            s.connect(self.endpoint)
        except zmq.ZMQError as e:
            s.close(0)
            raise Unreachable(f"{self.endpoint} is no endpoint to connect to: {e}; correct it") from None
        self._socket, self._push, self._take = s, sender(s), receiver(s)
        self._state = "down"
        return s

    def reconnect(self) -> None:
        """A new socket with the same session; HELLO goes out as soon as the broker is there."""
        self._owned()
        if self._socket is not None:
            self._socket.close(0)
            self._socket = None
        self._open()

    def close(self, *, bye: bool = True) -> None:
        """End the session (BYE, unless ``bye`` is False) and free the socket. Safe to call twice."""
        if self._closed:
            return
        mine = threading.get_ident() == self._thread
        if (
            bye
            and mine
            and self.ready
            and self.send(Verb.BYE, {"reason": "closed"})
            and self._socket is not None
        ):
            # Linger 0 would drop the BYE with the socket; this short linger is bounded.
            self._socket.close(200)
            self._socket = None
        if self._socket is not None:
            self._socket.close(0)
            self._socket = None
        self._closed = True
        self._state = "down"
        if self._own_ctx:
            self._ctx.destroy(0)

    # --- HELLO --------------------------------------------------------------------------------------------------

    def _hello(self) -> None:
        """Send HELLO if the broker is there; else it stays due."""
        self._hellos += 1
        header: dict[str, Any] = {
            "proto": list(PROTO_VERSION),
            "build": self.build,
            "schema": SCHEMA,
            "role": self.role,
            "session": self.session,
            "nth": self._hellos,
            "pid": os.getpid(),
            "host": gethostname(),
        }
        if self.name:
            header["name"] = self.name
        if self._hello_extra is not None:
            header.update(self._hello_extra())
        if self._put(encode(Verb.HELLO, header)):
            self._state = "greeting"
            self._greeted_at = self._monotonic()

    def tend(self) -> None:
        """Do what is due: send a HELLO, give up on one that was not answered. :meth:`recv` does it too."""
        self._owned()
        if self._socket is None:
            self._open()
        if self._state == "greeting" and self._monotonic() - self._greeted_at > HELLO_TIMEOUT_S:
            log.info(
                "no WELCOME from %s within %s s: trying again on a new socket", self.endpoint, HELLO_TIMEOUT_S
            )
            self.reconnect()
        if self._state == "refused" and self._monotonic() - self._greeted_at > REFUSED_S:
            self.reconnect()
        if self._state == "down" and not self.superseded:
            self._hello()

    def connect(self, timeout_s: float = 5.0) -> dict[str, Any]:
        """Wait for WELCOME and return its header.

        A loop that must not wait calls :meth:`tend` instead and polls :attr:`socket` for :attr:`interest`.

        Raises:
            Unreachable: no broker answered in ``timeout_s`` seconds.
            Refused: it speaks another protocol, or refuses this role or session.
            Busy: it has no room for another session now.
        """
        deadline = self._monotonic() + timeout_s
        while True:
            self._receive()
            self._raise_refusal()
            if self.ready:
                return self.welcome
            left = deadline - self._monotonic()
            if left <= 0:
                raise Unreachable(
                    f"no broker answers at {self.endpoint} (waited {timeout_s:g} s); start the rig with `rigbus up`, "
                    "or name the right one with --state DIR"
                )
            self._poll(left)

    # --- messages -----------------------------------------------------------------------------------------------

    def _put(self, frames: list[bytes]) -> bool:
        self._owned()
        if self._socket is None:
            self._open()
        try:
            self._push(frames)
        except zmq.Again:
            return False
        return True

    def send(self, verb: Verb, header: dict[str, Any], body: Sequence[bytes] = (), corr: bytes = b"") -> bool:
        """Send at once, or not at all: False when no broker is there (or it takes nothing more). Never blocks.

        Raises:
            BadFrame: the message breaks a limit of PROTOCOL §9.
        """
        frames = encode(verb, header, body, corr)
        self.tend()
        if self._state != "ready":
            return False
        if self._put(frames):
            return True
        # The pipe is away, or full for long: greet again first, so that the next message finds a session.
        self._state = "down"
        return False

    def recv(self) -> Envelope | None:
        """The next message that is no answer to a question of :meth:`request`; None when there is none now."""
        if not self._pushed:
            self._receive()
        return self._pushed.popleft() if self._pushed else None

    def poll(self, timeout_s: float) -> bool:
        """Wait for a message, at most ``timeout_s`` seconds; True when :meth:`recv` has one."""
        deadline = self._monotonic() + timeout_s
        while True:
            if not self._pushed:
                self._receive()
            left = deadline - self._monotonic()
            if self._pushed or left <= 0:
                return bool(self._pushed)
            self._poll(left)

    def _poll(self, timeout_s: float) -> None:
        """Until something can be read (or the HELLO sent); short enough to notice an unanswered HELLO."""
        if self._on_wait is not None:
            self._on_wait()
        wait_s = min(timeout_s, 1.0)
        if self._state == "greeting":
            wait_s = min(wait_s, max(0.0, self._greeted_at + HELLO_TIMEOUT_S - self._monotonic()) + 0.01)
        self.socket.poll(max(1, int(wait_s * 1000)), self.interest)

    def _receive(self, limit: int = 200, until: bytes = b"") -> Envelope | None:
        """Take up to ``limit`` messages from the socket; the answer to ``until`` is returned, pushes are kept."""
        self.tend()
        for _ in range(limit):
            frames = self._take()
            if frames is None:
                return None
            self._heard_at = self._monotonic()
            try:
                envelope = decode(frames)
            except BadFrame as e:
                if (major := other_major(frames)) is not None:
                    self._refuse(hello_of(frames).get("message") or f"the broker speaks protocol {major}.x")
                    continue
                log.warning("the broker sent a message that breaks PROTOCOL %s: %s; dropped", e.rule, e)
                continue
            self._session_matter(envelope)
            if until and envelope.corr == until:
                return envelope
            if envelope.corr not in self._asked:
                # A push, or the answer to a message that the owner sent with an id of its own.
                self._pushed.append(envelope)
        return None

    def _session_matter(self, envelope: Envelope) -> None:
        """Follow WELCOME, BYE and the errors of a session; the owner sees them too."""
        if envelope.verb is Verb.WELCOME:
            self.welcome = envelope.header
            self.generation += 1
            self.refused = ""
            self._state = "ready"
        elif envelope.verb is Verb.BYE:
            reason = str(envelope.header.get("reason", ""))
            self._state = "down"
            if reason == "superseded":
                # Greeting again would only throw out the peer that took our name, and so on for ever.
                self.superseded = reason
        elif envelope.verb is Verb.ERROR:
            code = envelope.header.get("code")
            if code == "no_session":
                if self._state == "ready":
                    log.info("the broker does not know session %s (any more): HELLO again", self.session[:8])
                    self._state = "down"
            elif code == "version":
                self._refuse(envelope.header.get("message"))
            elif self._state == "greeting" and not envelope.corr:
                self._refusal = envelope
        elif envelope.verb is Verb.BUSY and self._state == "greeting" and not envelope.corr:
            self._refusal = envelope  # of the HELLO; it is said again by itself

    def _refuse(self, why: Any) -> None:
        """Another version: said once, however often it is asked again."""
        text = str(why or "the broker speaks another version of the protocol")[:1000]
        if text != self.refused:
            log.error(
                "%s %s stays idle and asks again every %g s: %s", self.role, self.name or "", REFUSED_S, text
            )
        self.refused = text
        self._state = "refused"

    def _raise_refusal(self) -> None:
        if self._state == "refused":
            raise Refused(self.refused)
        if self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            raise_error(refusal)
        if self.superseded:
            raise Refused(f"another {self.role} with the name {self.name} took over; give each its own name")

    def renew(self, every_s: float = RENEW_S) -> None:
        """Keep a client's session alive: RENEW when the last one is ``every_s`` seconds old. A worker renews its own."""
        now = self._monotonic()
        if now - self._renewed_at >= every_s and self.ready:
            self._renewed_at = now
            self.send(Verb.RENEW, {})

    def request(
        self,
        verb: Verb,
        header: dict[str, Any],
        body: Sequence[bytes] = (),
        timeout_s: float = 30.0,
    ) -> Envelope:
        """Ask and wait for the answer; the same question is asked again until ``timeout_s`` seconds are over.

        Every verb that is asked like this may be repeated without harm (PROTOCOL §8), so a lost answer means: ask
        again. Other messages that arrive meanwhile are kept for :meth:`recv`.

        Raises:
            Unreachable: no answer in time; what was asked may or may not have been done.
            Busy, Conflict, NotFound, Refused, DefinitionError, LeaseLost: what the broker answered.
            BadFrame: the message breaks a limit of PROTOCOL §9.
        """
        corr = os.urandom(8)
        self._asked.append(corr)
        deadline = self._monotonic() + timeout_s
        patience_s = FIRST_TRY_S
        while True:
            answer = self._try(verb, header, body, corr, min(deadline, self._monotonic() + patience_s))
            if answer is not None:
                if answer.verb is Verb.BUSY and answer.header.get("bound") == "requests":
                    again_at = self._monotonic() + min(float(answer.header.get("retry_after_s") or 1.0), 5.0)
                    if again_at < deadline:  # too many ask at this moment: nothing that the caller could mend
                        while (left := again_at - self._monotonic()) > 0:
                            self._receive()
                            self._poll(left)
                        continue
                if answer.verb in {Verb.ERROR, Verb.BUSY, Verb.CONFLICT}:
                    raise_error(answer)
                return answer
            left = deadline - self._monotonic()
            if left <= 0:
                raise Unreachable(
                    f"no answer to {verb} from {self.endpoint} within {timeout_s:g} s; see whether the rig is up "
                    "(`rigbus status`) and ask again: asking twice does no harm"
                )
            self.reconnect()
            patience_s = min(MAX_TRY_S, patience_s * (1.5 + random.random()))  # noqa: S311 - jitter, no secret

    def _try(
        self, verb: Verb, header: dict[str, Any], body: Sequence[bytes], corr: bytes, until: float
    ) -> Envelope | None:
        """Send once for each session that answers; None when ``until`` (monotonic) passes first."""
        sent_in = -1
        while True:
            left = until - self._monotonic()
            answer = self._receive(until=corr)
            if answer is not None and answer.header.get("code") != "no_session":
                return answer
            self._raise_refusal()
            if left <= 0:
                return None
            if self.ready and sent_in != self.generation:
                asked = {**header, "deadline_s": round(left, 3)}
                if self.send(verb, asked, body, corr):
                    sent_in = self.generation
            elif self.role == "client":
                # It notices, before the patience ends, a broker that was restarted with our question lost.
                self.renew()
            self._poll(left)
