"""How a client hears what becomes of its tasks: ends, progress, values by reference. The base of :class:`.client.Client`.

Whatever is pushed can be asked for again (QUERY ``wait``), so nothing here must survive: ends that nobody asked for are
kept within bounds, and after a new WELCOME the waits are asked again.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import zmq

from ..errors import BadFrame, NotFound, RigbusError, TaskFailed, Unreachable
from ..paths import Rig, find_rig
from ..wire import MAX_RESULT_BYTES, RENEW_S, Envelope, Verb
from .link import Connection
from .work import Result, Task, decode_value

log = logging.getLogger(__name__)

STOP_LOOK_S: Final = 0.2  #: how soon a handler that waits notices that it is to end
PATIENCE_S: Final = 60.0  #: how long a wait without a limit bears an absent broker
KEPT_ENDS: Final = 10_000  #: ends that nobody has asked for yet; older ones are asked from the broker again
KEPT_BYTES: Final = 64 << 20
WAIT_IDS: Final = 500  #: ids of one QUERY wait


class Listener:
    """A session with the rig that listens. Arguments as :class:`.client.Client`."""

    def __init__(
        self,
        endpoint: str | None,
        state: Path | str | None,
        *,
        on_wait: Callable[[bool], None] | None,
        stop: Callable[[], bool] | None,
        ctx: zmq.Context[zmq.Socket[bytes]] | None,
        timeout_s: float,
        name: str | None,
    ) -> None:
        results = Path(state) / "results" if state is not None else None
        if endpoint is None:
            rig = find_rig(Path(state) if state is not None else None)
            endpoint = rig.endpoints["commands"]
            must_exist(rig, endpoint)
            results = rig.paths.results
        self._results_folder = results
        self._on_wait = on_wait
        self._stop = stop
        self._expected: dict[str, int] = {}  #: accepted, not ended -> the generation that hears of it unasked
        self._ended: OrderedDict[str, Envelope] = OrderedDict()  #: ended, and nobody waits
        self._ended_bytes = 0
        self._watched: dict[str, list[deque[Envelope]]] = {}
        self._progress: dict[str, deque[Envelope]] = {}
        self._tasks: weakref.WeakValueDictionary[str, Task] = weakref.WeakValueDictionary()
        self._link = Connection(endpoint, role="client", name=name, ctx=ctx)
        try:
            self._link.connect(timeout_s)
        except BaseException:
            self._link.close(bye=False)
            raise

    @property
    def session(self) -> str:
        """The session's id."""
        return self._link.session

    @property
    def welcome(self) -> Mapping[str, Any]:
        """What the broker said at HELLO: incarnation, seq, limits, endpoints."""
        return self._link.welcome

    def request(
        self, verb: Verb, header: dict[str, Any], body: Sequence[bytes] = (), timeout_s: float = 30.0
    ) -> Envelope:
        """Ask the broker anything (PROTOCOL §5-§7) and return its answer.

        Raises:
            Unreachable: no answer in time.
            Busy, Conflict, NotFound, Refused, DefinitionError, LeaseLost: what it answered.
        """
        return self._link.request(verb, header, body, timeout_s)

    def tend(self, wait_s: float = 0.0) -> None:
        """Keep the session alive and take in what has arrived, waiting at most ``wait_s`` seconds for something."""
        self._link.renew()
        if wait_s > 0:
            self._link.poll(min(wait_s, RENEW_S))
        while (envelope := self._link.recv()) is not None:
            self._take(envelope)

    def _take(self, envelope: Envelope) -> None:
        """One push of the broker."""
        id_ = str(envelope.header.get("id", ""))
        if envelope.verb is Verb.ENDED:
            self._expected.pop(id_, None)
            if id_ in self._watched:
                for queue in self._watched[id_]:
                    queue.append(envelope)
            else:
                self._keep(id_, envelope)
        elif envelope.verb is Verb.PROGRESS:
            if id_ in self._progress:
                self._progress[id_].append(envelope)
        elif (
            envelope.verb is Verb.ERROR and envelope.header.get("code") != "no_session"
        ):  # the link sees to that
            log.warning("the broker: %s", envelope.header.get("message", envelope.header))

    def _keep(self, id_: str, envelope: Envelope) -> None:
        """Keep an end that nobody asked for yet, within bounds: it can be asked again."""
        old = self._ended.pop(id_, None)
        self._ended_bytes += envelope.size - (old.size if old is not None else 0)
        self._ended[id_] = envelope
        while len(self._ended) > KEPT_ENDS or self._ended_bytes > KEPT_BYTES:
            _, dropped = self._ended.popitem(last=False)
            self._ended_bytes -= dropped.size

    # --- ends that somebody waits for ---------------------------------------------------------------------

    def _watch(self, ids: Iterable[str]) -> deque[Envelope]:
        """A queue that gets the ends of these ids, those already here first."""
        queue: deque[Envelope] = deque()
        for id_ in ids:
            self._watched.setdefault(id_, []).append(queue)
            if (envelope := self._ended.pop(id_, None)) is not None:
                self._ended_bytes -= envelope.size
                queue.append(envelope)
        return queue

    def _unwatch(self, id_: str, queue: deque[Envelope]) -> None:
        queues = [q for q in self._watched.get(id_, ()) if q is not queue]
        if queues:
            self._watched[id_] = queues
        else:
            self._watched.pop(id_, None)

    def _wait(self, deadline: float | None, since: float) -> None:
        """One wait for the broker, in a row of them that began at ``since``.

        Raises:
            Unreachable: it has been away for :data:`PATIENCE_S` seconds.
            TaskFailed: the handler that waits is to end.
        """
        if self._stop is not None and self._stop():
            raise TaskFailed(
                "the task of this handler is to end (cancelled, timed out, or its worker stops), and so does its wait",
                state="cancelled",
            )
        longest_s = RENEW_S if self._stop is None else STOP_LOOK_S
        self.tend(longest_s if deadline is None else max(0.001, min(longest_s, deadline - time.monotonic())))
        if self._link.silent_s(since) > PATIENCE_S:
            raise Unreachable(
                f"no broker at {self._link.endpoint} for {PATIENCE_S:g} s; start the rig (`rigbus up`) and ask again: "
                "nothing that was accepted is lost"
            )

    def _ask_wait(self, ids: Sequence[str], deadline: float | None) -> None:
        """Ask for the ends of ids that this session would not hear of by itself."""
        for n in range(0, len(ids), WAIT_IDS):
            part = list(ids[n : n + WAIT_IDS])
            limit_s = PATIENCE_S if deadline is None else max(0.1, deadline - time.monotonic())
            try:
                states = self.request(Verb.QUERY, {"what": "wait", "ids": part}, (), limit_s).header.get(
                    "states"
                )
            except Unreachable:
                if deadline is not None and time.monotonic() >= deadline:
                    return  # the caller's own timeout says it better
                raise
            unknown = [i for i, state in (states or {}).items() if state == "unknown"]
            if unknown:
                raise NotFound(
                    f"no such task: {some(unknown)}; `rigbus task list` shows those that there are"
                )
            self.tend()

    def _result(self, envelope: Envelope, deadline: float | None = None) -> Result:
        header = envelope.header
        id_ = str(header["id"])
        ok, error, value = bool(header.get("ok")), header.get("error"), None
        try:
            ref = header.get("ref") or next(
                (r["ref"] for r in header.get("rows") or () if r.get("ref")), None
            )
            data = self._fetch(id_, ref, deadline) if ref else b"".join(envelope.body[:1])
            value = decode_value(data)
        except Unreachable:
            raise
        except RigbusError as e:
            ok, error = False, f"its result cannot be read: {e}"
        return Result(
            id=id_,
            ok=ok,
            value=value,
            error=error,
            state=str(header.get("state", "done" if ok else "dead")),
            attempts=int(header.get("attempts") or 0),
            task=self._tasks.get(id_),
            error_class=header.get("class"),
            worker=header.get("worker"),
            duration_s=header.get("duration_s"),
        )

    def _fetch(self, id_: str, ref: Mapping[str, Any], deadline: float | None) -> bytes:
        """A result by reference: from the state folder where it is visible, else piece by piece from the broker.

        Raises:
            NotFound: it is there no more.  BadFrame: it is not what was recorded.
        """
        digest, size = str(ref.get("sha256", "")), int(ref.get("bytes") or 0)
        if (
            len(digest) != 64
            or not set(digest) <= set("0123456789abcdef")
            or not 0 <= size <= MAX_RESULT_BYTES
        ):
            raise BadFrame(f"the reference {dict(ref)!r:.120} is none", rule="§4")
        if self._results_folder is not None:
            try:
                data = (self._results_folder / digest[:2] / digest).read_bytes()
            except OSError:
                data = b""
            if sha256(data).hexdigest() == digest:
                return data
        parts: list[bytes] = []
        have = 0
        while have < size:
            limit_s = PATIENCE_S if deadline is None else max(5.0, deadline - time.monotonic())
            answer = self.request(Verb.QUERY, {"what": "result", "id": id_, "offset": have}, (), limit_s)
            part = b"".join(answer.body)
            if not part:
                raise NotFound(
                    f"the result of task {id_} ends after {have} of {size} bytes; its file is damaged"
                )
            parts.append(part)
            have += len(part)
        data = b"".join(parts)
        if sha256(data).hexdigest() != digest:
            raise BadFrame(f"the result of task {id_} is not what was recorded (sha256 differs)", rule="§4")
        return data


class Waiter:
    """Tells the owner of a slot when a wait really begins and ends; each once."""

    def __init__(self, on_wait: Callable[[bool], None] | None) -> None:
        self._on_wait = on_wait
        self._waiting = False
        self.since = 0.0  #: when the present wait began, monotonic

    def begin(self) -> None:
        if not self._waiting:
            if self._on_wait is not None:
                self._on_wait(True)
            self._waiting = True
            self.since = time.monotonic()

    def end(self) -> None:
        if self._waiting:
            self._waiting = False
            if self._on_wait is not None:
                self._on_wait(False)


def must_exist(rig: Rig, endpoint: str) -> None:
    """Say at once that there is no rig, where nothing hints at one."""
    if (
        rig.run is None
        and endpoint.startswith("ipc://")
        and not os.path.exists(endpoint.removeprefix("ipc://"))
    ):
        raise Unreachable(
            f"no rig runs on the state folder {rig.paths.state}; start it with `rigbus up`, or name another with "
            "--state DIR or RIGBUS_STATE"
        )


def some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")
