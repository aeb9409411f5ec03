"""What passes on the bus, as records for people and programs: the pure heart of ``rigbus sniff``.

Frames of the events socket (PROTOCOL §6: the tap, state events, heartbeats, progress) become :class:`Record`; a
:class:`Sniffer` remembers questions and leases just long enough to say how long the answer took and which task a token
means. What is shown of them, and how: ``view.py``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final, Generic, TypeVar

from ..client.follow import event_of
from ..client.work import task_id
from ..errors import BadFrame, ConfigError
from ..wire import Verb, unpack

REMEMBERED: Final = 50_000  #: questions, and as many leases

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Recent(Generic[K, V]):
    """A table that forgets its oldest entries."""

    def __init__(self, limit: int = REMEMBERED) -> None:
        self._limit = limit
        self._items: OrderedDict[K, V] = OrderedDict()

    def put(self, key: K, value: V) -> None:
        self._items[key] = value
        while len(self._items) > self._limit:
            self._items.popitem(last=False)

    def get(self, key: K) -> V | None:
        return self._items.get(key)

    def pop(self, key: K) -> V | None:
        return self._items.pop(key, None)


@dataclass(frozen=True, slots=True)
class Record:
    """One message or event. ``ts`` is Unix seconds of the broker's clock, ``latency_ms`` the time since its cause."""

    ts: float
    seq: int
    dir: str  #: in (to the broker), out (from it), event (published by it)
    peer: str
    verb: str
    topic: str
    task_ids: tuple[str, ...] = ()
    batch_id: str | None = None
    bytes: int = 0
    latency_ms: float | None = None
    dropped: int = 0  #: messages known to be lost right before this one
    detail: str = ""
    cause: tuple[str, str] | None = field(default=None, compare=False)  #: peer and correlation id

    def to_json(self) -> dict[str, Any]:
        """The line of ``sniff --json``: INTERFACE's fields, ``dropped`` when some were, and a text for people."""
        out: dict[str, Any] = {
            "ts": rfc3339(self.ts),
            "seq": self.seq,
            "dir": self.dir,
            "peer": self.peer,
            "verb": self.verb,
            "topic": self.topic,
            "task_id": self.task_ids[0] if self.task_ids else None,
            "batch_id": self.batch_id,
            "bytes": self.bytes,
            "latency_ms": self.latency_ms,
        }
        if len(self.task_ids) > 1:
            out["task_ids"] = list(self.task_ids)
        if self.detail:
            out["detail"] = self.detail
        if self.dropped:
            out["dropped"] = self.dropped
        return out


def record_of(line: Mapping[str, Any]) -> Record:
    """The record of a line that :meth:`Record.to_json` made.

    Raises:
        ConfigError: it is no such line.
    """
    try:
        first = line.get("task_id")
        ids = line.get("task_ids") or ([first] if first else [])
        return Record(
            ts=datetime.fromisoformat(str(line["ts"])).timestamp(),
            seq=int(line["seq"]),
            dir=str(line["dir"]),
            peer=str(line.get("peer", "")),
            verb=str(line.get("verb", "")),
            topic=str(line.get("topic", "")),
            task_ids=tuple(str(i) for i in ids),
            batch_id=line.get("batch_id"),
            bytes=int(line.get("bytes") or 0),
            latency_ms=line.get("latency_ms"),
            dropped=int(line.get("dropped") or 0),
            detail=str(line.get("detail", "")),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ConfigError(f"not a line of `rigbus sniff --write`: {e!r}; give a file that it wrote") from None


def rfc3339(ts: float) -> str:
    """UTC with milliseconds: ``2026-11-21T07:44:00.123Z``."""
    return datetime.fromtimestamp(ts, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def printable(text: str) -> str:
    """Safe to show on a terminal: whatever is not printable (control, bidi, invisible) is written as an escape."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


# --- frames to records ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Leased:
    id: str
    batch: str | None
    at: float


class Sniffer:
    """Turns frames into records, in the order in which they came. Holds bounded tables, no I/O, no clock."""

    def __init__(self) -> None:
        self._count = 0
        self._tap_seq = 0
        self._channel_seq: dict[str, int] = {}
        self._asked: Recent[tuple[str, str], tuple[float, tuple[str, ...], str | None]] = Recent()
        self._leases: Recent[tuple[int, int], _Leased] = Recent()
        self._results: Recent[tuple[int, int], float] = Recent()

    def frames(self, frames: Sequence[bytes], now: float) -> Record | None:
        """A message of the events socket; None for a tick or what is no record. ``now`` is Unix seconds.

        Raises:
            BadFrame: its payload breaks PROTOCOL §6; drop it.
        """
        if len(frames) < 2:
            raise BadFrame("a published message has two frames", rule="§6")
        topic = frames[0].decode("utf-8", "replace")
        kind, _, rest = topic.partition(".")
        size = sum(map(len, frames[1:]))
        if kind == "tick":
            return None
        payload = unpack(frames[1])
        if kind == "tap":
            return self.tap(topic, _map(payload))
        if kind == "hb":
            return self._published(now, topic, "HEARTBEAT", peer=rest, size=size, detail=_beat(_map(payload)))
        if kind == "progress":
            detail = _progress(_map(payload))
            return self._published(now, topic, "PROGRESS", ids=(rest,), size=size, detail=detail)
        return self.event(payload, size)

    def event(self, row: Any, size: int = 0) -> Record:
        """A numbered event, from the socket or from the log.

        Raises:
            BadFrame: it has another shape.
        """
        event = event_of(row)
        last = self._channel_seq.get(event.channel)
        # How many were lost is not told by `prev`, only that some were.
        lost = int(last is not None and event.prev > last)
        self._channel_seq[event.channel] = event.seq
        parts = [f"{k}={v}" for k, v in event.data.items() if isinstance(v, (str, int, float)) and v != ""]
        ids = (event.id,) if event.id and event.topic.startswith("task.") else ()
        record = self._published(event.at, event.topic, "EVENT", ids=ids, size=size, detail=" ".join(parts))
        peer = event.id or "" if event.topic.startswith("worker.") else ""
        return replace(record, seq=event.seq, batch_id=event.batch, dropped=lost, peer=peer)

    def _published(
        self,
        ts: float,
        topic: str,
        verb: str,
        *,
        peer: str = "",
        ids: tuple[str, ...] = (),
        size: int = 0,
        detail: str = "",
    ) -> Record:
        self._count += 1
        return Record(
            ts=ts,
            seq=self._count,
            dir="event",
            peer=peer,
            verb=verb,
            topic=topic,
            task_ids=ids,
            bytes=size,
            detail=detail,
        )

    def tap(self, topic: str, tapped: Mapping[str, Any]) -> Record:
        """A command that the broker received or sent.

        Raises:
            BadFrame: a field of the tap has another kind.
        """
        try:
            return self._tap(topic, tapped)
        except (TypeError, ValueError, OverflowError) as e:
            raise BadFrame(
                f"a tapped {tapped.get('verb')!r:.40} has a field of another kind: {e}", rule="§6"
            ) from None

    def _tap(self, topic: str, tapped: Mapping[str, Any]) -> Record:
        header = _map(tapped.get("header"))
        corr = tapped.get("corr") or b""
        key = (str(tapped.get("peer", "")), corr.hex() if isinstance(corr, bytes) else str(corr))
        verb, direction = str(tapped.get("verb", "")), str(tapped.get("dir", ""))
        ts = float(tapped.get("ts") or 0.0)
        self._count += 1
        seq = int(tapped.get("seq") or self._count)
        dropped = max(0, seq - self._tap_seq - 1) if self._tap_seq and "seq" in tapped else 0
        self._tap_seq = seq
        ids, batch = self._tasks(verb, header, ts)
        latency = self._since_lease(verb, header, ts)
        if key[1] and direction == "in":
            self._asked.put(key, (ts, ids, batch))
        elif key[1] and (asked := self._asked.pop(key)) is not None:
            latency = _ms(ts - asked[0])
            ids, batch = ids or asked[1], batch or asked[2]
        return Record(
            ts=ts,
            seq=seq,
            dir=direction,
            peer=key[0],
            verb=verb,
            topic=topic,
            task_ids=ids,
            batch_id=batch,
            bytes=int(tapped.get("bytes") or 0),
            latency_ms=latency,
            dropped=dropped,
            detail=_detail(verb, header),
            cause=key if key[1] else None,
        )

    def _tasks(self, verb: str, header: Mapping[str, Any], ts: float) -> tuple[tuple[str, ...], str | None]:
        """The tasks and the batch that a command is about."""
        if verb == Verb.LEASE:
            leases = [_map(x) for x in _list(header.get("leases"))]
            for lease in leases:
                if (token := _token(lease.get("token"))) is not None:
                    self._leases.put(token, _Leased(str(lease.get("id", "")), lease.get("batch"), ts))
            ids = tuple(str(x["id"]) for x in leases if x.get("id"))
            return ids, next((x["batch"] for x in leases if x.get("batch")), None)
        batch = header.get("batch")
        batch_id = batch.get("id") if isinstance(batch, dict) else batch
        known = [x for x in (self._leases.get(t) for t in _tokens(header)) if x is not None]
        ids = tuple(x.id for x in known) or _ids(header)
        if not ids and batch_id and isinstance(header.get("tasks"), list):
            ids = tuple(task_id(str(batch_id), str(_map(t).get("key"))) for t in header["tasks"])
        return ids, str(batch_id) if batch_id else next((x.batch for x in known if x.batch), None)

    def _since_lease(self, verb: str, header: Mapping[str, Any], ts: float) -> float | None:
        """STARTED and RESULT count from their lease, RECORDED and STALE from their result."""
        tokens = _tokens(header)
        if not tokens:
            return None
        if verb in {Verb.STARTED, Verb.RESULT, Verb.RETURN}:
            if verb == Verb.RESULT:
                for token in tokens:
                    self._results.put(token, ts)
            lease = self._leases.get(tokens[0])
            return _ms(ts - lease.at) if lease is not None else None
        if verb in {Verb.RECORDED, Verb.STALE}:
            at = [t for t in (self._results.pop(token) for token in tokens) if t is not None]
            return _ms(ts - at[0]) if at else None
        return None


def _map(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _token(value: Any) -> tuple[int, int] | None:
    if isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(n, int) for n in value):
        return (value[0], value[1])
    return None


def _tokens(header: Mapping[str, Any]) -> list[tuple[int, int]]:
    found = list(_list(header.get("tokens")))
    found += [_map(r).get("token") for r in _list(header.get("results"))]
    if "token" in header:
        found.append(header["token"])
    return [t for t in map(_token, found) if t is not None]


def _ids(header: Mapping[str, Any]) -> tuple[str, ...]:
    ids = header.get("ids")
    if isinstance(ids, list):
        return tuple(str(i) for i in ids)
    one = header.get("id")
    return (one,) if isinstance(one, str) and len(one) == 36 else ()


def _beat(beat: Mapping[str, Any]) -> str:
    return f"{beat.get('state', '')} {_size(beat, 'running')}/{beat.get('slots', '?')} running"


def _progress(header: Mapping[str, Any]) -> str:
    pct = header.get("pct")
    share = f"{pct:.0%} " if isinstance(pct, (int, float)) else ""
    return f"#{header.get('n', '?')} {share}{header.get('note') or ''}".strip()


def _detail(verb: str, header: Mapping[str, Any]) -> str:
    """What a person wants to know of a command, in a few words."""
    words = _DETAILS.get(verb)
    if words is not None:
        return words(header)
    if "tokens" in header:
        return f"{_size(header, 'tokens')} leases"
    return str(header.get("reason") or "")


def _size(header: Mapping[str, Any], name: str) -> int:
    return len(_list(header.get(name)))


def _leases(header: Mapping[str, Any]) -> str:
    leases = [_map(x) for x in _list(header.get("leases"))]
    if not leases:
        return ""
    first = leases[0]
    more = f" and {len(leases) - 1} more" if len(leases) > 1 else ""
    return f"{first.get('type', '')} {first.get('key', '')} attempt {first.get('attempt', '?')}{more}"


def _results(header: Mapping[str, Any]) -> str:
    results = [_map(r) for r in _list(header.get("results"))]
    bad = [r for r in results if not r.get("ok")]
    if not bad:
        return "ok" if len(results) == 1 else f"{len(results)} ok"
    why = (
        "cancelled"
        if bad[0].get("cancelled")
        else f"{bad[0].get('class', 'failed')}: {bad[0].get('error') or ''}"
    )
    return why if len(results) == 1 else f"{len(results) - len(bad)} ok, {len(bad)} not: {why}"


_DETAILS: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    "HELLO": lambda h: f"{h.get('role', '')} {h.get('name', '')}".strip(),
    "LEASE": _leases,
    "SUBMIT": lambda h: f"{_size(h, 'tasks')} tasks ({_map(h.get('batch')).get('kind', 'join')})",
    "ACCEPTED": lambda h: f"{_size(h, 'ids')} tasks",
    "RESULT": _results,
    "PROGRESS": _progress,
    "ENDED": lambda h: f"{h.get('state', '')} {h.get('error') or ''}".strip(),
    "QUERY": lambda h: str(h.get("what", "")),
    "OFFER": lambda h: f"credit {h.get('credit', '?')}",
    "ERROR": lambda h: f"{h.get('code', '')}: {h.get('message', '')}",
    "BUSY": lambda h: str(h.get("message", "")),
    "CONFLICT": lambda h: str(h.get("message", "")),
    "CONTROL": lambda h: f"{h.get('action', '')} {h.get('worker', '')}".strip(),
    "EVENTS": lambda h: f"since {h['since']}" if "since" in h else f"{_size(h, 'events')} events",
}
