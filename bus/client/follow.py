"""Following the numbered event log without a hole (PROTOCOL §6).

PUB/SUB is the hint, the log is the truth. A stream subscribes to whole channels, because only so does ``prev`` show
what was missed, and picks the topics it was asked for here. What was missed (a late subscription, an overflow, a
restart of the broker) is asked from the log; ``tick`` shows a hole at the end, where no further event comes.
"""

from __future__ import annotations

import fnmatch
import logging
import re
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import zmq

from ..errors import BadFrame, DefinitionError, Unreachable
from ..wire import RENEW_S, Envelope, Verb, unpack

log = logging.getLogger(__name__)

RESNAPSHOT: Final = "rig.resnapshot"
ASK_S: Final = 5.0
DRAIN: Final = 1000  #: messages taken in one go


@dataclass(frozen=True, slots=True)
class Event:
    """One event. ``at`` is Unix seconds, for people; ``id`` is the task's (or worker's), where there is one."""

    seq: int
    topic: str
    id: str | None = None
    batch: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    at: float = 0.0
    prev: int = 0
    channel: str = "p"


def event_of(row: Any) -> Event:
    """An event from ``[seq, prev, at, channel, topic, id, batch, data]``.

    Raises:
        BadFrame: it has another shape.
    """
    if not isinstance(row, (list, tuple)) or len(row) < 8:
        raise BadFrame(f"an event is a list of 8, not {row!r:.80}", rule="§6")
    seq, prev, at, channel, topic, id_, batch, data = row[:8]
    if not isinstance(seq, int) or not isinstance(prev, int) or not isinstance(topic, str):
        raise BadFrame(f"an event has numbers and a topic, not {row!r:.80}", rule="§6")
    return Event(
        seq=seq,
        prev=prev,
        at=float(at or 0.0),
        channel=str(channel),
        topic=topic,
        id=id_ or None,
        batch=batch or None,
        data=data if isinstance(data, dict) else {},
    )


def topic_filter(patterns: Iterable[str]) -> Callable[[str], bool]:
    """Whether a topic matches one of the globs; ``*`` also spans dots."""
    regex = re.compile("|".join(fnmatch.translate(p) for p in patterns))
    return lambda topic: regex.match(topic) is not None


def channels_for(patterns: Iterable[str]) -> tuple[str, ...]:
    """The channels where matching events can be: workers and the rig speak on ``p`` alone."""
    narrow = all(p.startswith(("worker.", "rig.")) for p in patterns)
    return ("p",) if narrow else ("p", "c")


class Cursor:
    """How far each channel has been seen. Pure.

    :meth:`see` and :meth:`behind` are True where the log must be asked for what comes after :attr:`since`.
    """

    def __init__(self, channels: Sequence[str], seq: int) -> None:
        self._last = dict.fromkeys(channels, seq)

    @property
    def since(self) -> int:
        """Ask for events after this one."""
        return min(self._last.values())

    def fresh(self, event: Event) -> bool:
        """An event of a channel that is followed, not seen before."""
        return event.seq > self._last.get(event.channel, event.seq)

    def see(self, event: Event) -> bool:
        """A fresh event: True when some before it are missing (then it is not counted as seen)."""
        if event.prev > self._last[event.channel]:
            return True
        self._last[event.channel] = event.seq
        return False

    def behind(self, present: Mapping[str, int]) -> bool:
        """The broker's last number of each channel: True when some of ours have not come."""
        return any(present.get(channel, 0) > last for channel, last in self._last.items())

    def read(self, event: Event) -> None:
        """An event from the log itself."""
        self._last[event.channel] = max(self._last[event.channel], event.seq)

    def caught_up(self, seq: int) -> None:
        """The log was read up to ``seq``, all channels of it."""
        self._last = {channel: max(last, seq) for channel, last in self._last.items()}


class Asker(Protocol):
    """What a stream needs of its client."""

    @property
    def welcome(self) -> Mapping[str, Any]: ...
    def request(
        self, verb: Verb, header: dict[str, Any], body: Sequence[bytes] = (), timeout_s: float = 30.0
    ) -> Envelope: ...
    def tend(self, wait_s: float = 0.0) -> None: ...


class EventStream:
    """An endless iterator of :class:`Event`; :meth:`poll` waits with a limit. Of the client's thread."""

    def __init__(
        self,
        client: Asker,
        patterns: Iterable[str] | str,
        since: int | None,
        *,
        ctx: zmq.Context[zmq.Socket[bytes]],
    ) -> None:
        wanted = [patterns] if isinstance(patterns, str) else list(patterns)
        if not wanted or not all(isinstance(p, str) and p for p in wanted):
            raise DefinitionError(f'events() takes topics such as "task.*.dead", not {patterns!r:.60}')
        self.on_close: Callable[[], object] | None = None
        self._client = client
        self._matches = topic_filter(wanted)
        self._channels = channels_for(wanted)
        self._ready: deque[Event] = deque()
        start = since
        if start is None:
            # The number of now: whatever happens until the subscription is there shows as a hole and is asked for.
            start = int(client.request(Verb.QUERY, {"what": "status"}).header.get("seq") or 0)
        self._cursor = Cursor(self._channels, start)
        self._behind = since is not None
        self._closed = False
        self._sub = ctx.socket(zmq.SUB)
        self._sub.setsockopt(zmq.LINGER, 0)
        self._sub.setsockopt(zmq.RCVHWM, 100_000)
        self._sub.setsockopt(zmq.RECONNECT_IVL, 50)
        self._sub.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        for topic in (*(f"{c}." for c in self._channels), "tick"):
            self._sub.subscribe(topic)
        self._sub.connect(str(client.welcome.get("events", "")))

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        event = None if self._closed else self.poll()
        if event is None:
            raise StopIteration
        return event

    def __enter__(self) -> EventStream:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop following. Safe to call twice."""
        if not self._closed:
            self._closed = True
            self._sub.close(0)
            if self.on_close is not None:
                self.on_close()

    def fileno(self) -> int:
        """For a poller; level is not kept (zmq), so call :meth:`poll` with 0 until it is None after each wake-up."""
        return int(self._sub.getsockopt(zmq.FD))

    def poll(self, timeout_s: float | None = None) -> Event | None:
        """The next event that matches; None when none came in ``timeout_s`` seconds. While the broker is away it waits."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._ready:
            self._client.tend()
            if self._behind:
                self._read_log(deadline)
            left = RENEW_S if deadline is None else min(RENEW_S, deadline - time.monotonic())
            wait_ms = 0 if self._ready or self._behind else max(0, int(left * 1000))
            if self._sub.poll(wait_ms):
                self._drain()
            elif deadline is not None and time.monotonic() >= deadline:
                break
        return self._ready.popleft() if self._ready else None

    def _drain(self) -> None:
        """Take what has arrived. After a hole the rest is dropped: the log has it, in order."""
        for _ in range(DRAIN):
            try:
                frames = self._sub.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            if len(frames) < 2 or self._behind:
                continue
            try:
                row = unpack(frames[1])
                if frames[0] == b"tick":
                    self._behind = self._cursor.behind(row["channels"])
                    continue
                event = event_of(row)
            except (BadFrame, AttributeError, KeyError, TypeError, ValueError) as e:
                log.warning("an event that breaks PROTOCOL §6: %s; dropped", e)
                continue
            if self._cursor.fresh(event):
                self._behind = self._cursor.see(event)
                if not self._behind:
                    self._offer(event)

    def _offer(self, event: Event) -> None:
        if self._matches(event.topic):
            self._ready.append(event)

    def _read_log(self, deadline: float | None) -> None:
        """Ask for what was missed, page by page."""
        limit_s = ASK_S if deadline is None else max(0.05, min(ASK_S, deadline - time.monotonic()))
        since = self._cursor.since
        while True:
            try:
                answer = self._client.request(Verb.EVENTS, {"since": since}, (), limit_s)
            except Unreachable as e:
                log.info("the event log cannot be asked now: %s; trying again", e)
                return
            header = answer.header
            last = int(header.get("last") or since)
            if answer.verb is Verb.RESNAPSHOT:
                self._cursor.caught_up(last)
                self._ready.append(
                    Event(last, RESNAPSHOT, data={"oldest": header.get("oldest"), "last": last})
                )
                break
            events = [event_of(row) for row in header.get("events") or ()]
            for event in events:
                if event.channel in self._channels and self._cursor.fresh(event):
                    self._cursor.read(event)
                    self._offer(event)
            if not header.get("more") or not events:
                self._cursor.caught_up(last)
                break
            since = max(since, events[-1].seq)
        self._behind = False
