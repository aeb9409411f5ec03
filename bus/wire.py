"""Frames <-> Envelope. The only file that knows a frame's index, a limit or the version.

The law is PROTOCOL.md beside this file; paragraphs are named in errors as ``rule``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

import msgpack

from .errors import BadFrame

PROTOCOL: Final = b"RIG1"
_PROTOCOL_NAME: Final = b"RIG"
#: ``major.minor``; another major is refused at HELLO, unknown fields of a newer minor are ignored.
PROTO_VERSION: Final = (1, 0)

# Limits (PROTOCOL §9). A constant lives here and nowhere else.
MAX_FRAME_BYTES: Final = 1 << 20
MAX_FRAMES: Final = 1100
MAX_BATCH: Final = 1000  #: tasks, leases or results in one message
MAX_CORR_BYTES: Final = 32
MAX_KEY_BYTES: Final = 200
MAX_PAYLOAD_BYTES: Final = 256 << 10  #: inline payload or result; a larger result goes by reference
MAX_RESULT_BYTES: Final = 64 << 20  #: by reference
MAX_FACT_BYTES: Final = 64 << 10
MAX_META_BYTES: Final = 16 << 10
MAX_DEPTH: Final = 32
MAX_ITEMS: Final = 65_536
MAX_CONTAINERS: Final = 1 << 18  #: maps and lists in one frame

MAX_REQUESTS: Final = 1000  #: questions of one client that are not answered

LEASE_S: Final = 5.0
RENEW_S: Final = 1.0
CLIENT_SESSION_S: Final = 6.0
SUSPECT_S: Final = 3.0
GRACE_S: Final = 5.0  #: added to ``lease_s`` for leases found at a broker's start
VERDICT_S: Final = 600.0
IPC_PATH_MAX: Final = 107

Token = tuple[int, int]  #: (broker incarnation, sequence): a fencing token


class Verb(StrEnum):
    """Every command of the bus. Who sends which to whom: PROTOCOL §3-§7."""

    HELLO = "HELLO"
    WELCOME = "WELCOME"
    OFFER = "OFFER"
    LEASE = "LEASE"
    STARTED = "STARTED"
    RENEW = "RENEW"
    RENEWED = "RENEWED"
    RESULT = "RESULT"
    RECORDED = "RECORDED"
    STALE = "STALE"
    PROGRESS = "PROGRESS"
    RETURN = "RETURN"
    SUBMIT = "SUBMIT"
    ACCEPTED = "ACCEPTED"
    CONFLICT = "CONFLICT"
    BUSY = "BUSY"
    CANCEL = "CANCEL"
    REQUEUE = "REQUEUE"
    REVISE = "REVISE"
    QUERY = "QUERY"
    SNAPSHOT = "SNAPSHOT"
    EVENTS = "EVENTS"
    RESNAPSHOT = "RESNAPSHOT"
    ENDED = "ENDED"
    BRAIN = "BRAIN"
    CONTROL = "CONTROL"
    DRAIN = "DRAIN"
    GONE = "GONE"
    TOKEN = "TOKEN"  # noqa: S105 - a verb
    OK = "OK"
    ERROR = "ERROR"
    BYE = "BYE"


_VERBS: Final[dict[bytes, Verb]] = {v.value.encode(): v for v in Verb}
_VERB_BYTES: Final[dict[Verb, bytes]] = {v: v.value.encode() for v in Verb}


@dataclass(slots=True)
class Envelope:
    """One message. ``peer`` is the ROUTER's name for the connection, empty on a DEALER."""

    verb: Verb
    header: dict[str, Any] = field(default_factory=dict)
    body: Sequence[bytes] = ()
    corr: bytes = b""
    peer: bytes = b""

    @property
    def size(self) -> int:
        """Bytes of the body frames."""
        return sum(map(len, self.body))


def pack(value: Any) -> bytes:
    """msgpack, text as str, bytes as bin; from any thread.

    Raises:
        TypeError, ValueError: the value is not plain data.
    """
    packed: bytes = msgpack.packb(value, use_bin_type=True)
    return packed


def unpack(data: bytes) -> Any:
    """Plain data from a peer's bytes, within the limits of PROTOCOL §9.

    Raises:
        BadFrame: not msgpack, too deep, too many items, keys that are not text or bytes, extension types.
    """
    try:
        value = msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_str_len=MAX_FRAME_BYTES,
            max_bin_len=MAX_FRAME_BYTES,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_ext_len=0,
            **(_counted() if len(data) > MAX_CONTAINERS else {}),
        )
    except (ValueError, TypeError, msgpack.exceptions.UnpackException, RecursionError) as e:
        raise BadFrame(f"a header or body is not the msgpack of PROTOCOL §2: {e}", rule="§2") from None
    if _too_deep(value):
        raise BadFrame(f"a header or body is nested over {MAX_DEPTH} deep", rule="§9")
    return value


def _counted() -> dict[str, Callable[[Any], Any]]:
    """Hooks for a frame with more bytes than :data:`MAX_CONTAINERS`: an empty map costs one byte there, and 72 here."""
    left = MAX_CONTAINERS

    def one(container: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"over {MAX_CONTAINERS} maps and lists")
        return container

    return {"object_hook": one, "list_hook": one}


def _too_deep(value: Any) -> bool:
    """Whether maps and lists are nested over :data:`MAX_DEPTH`; level by level, without recursion."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, (dict, list))
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, (dict, list))
        ]
        if not level:
            return False
    return True


def encode(verb: Verb, header: dict[str, Any], body: Sequence[bytes] = (), corr: bytes = b"") -> list[bytes]:
    """The frames of one message, without an identity. A peer drops whatever breaks §9, so check first.

    Raises:
        BadFrame: a frame is over :data:`MAX_FRAME_BYTES`, there are over :data:`MAX_FRAMES`, or the header holds what no
            msgpack can say: half a character, a number past 64 bits.
    """
    try:
        head = msgpack.packb(header, use_bin_type=True)
    except (TypeError, ValueError, OverflowError) as e:
        raise BadFrame(f"{verb}: the header cannot be sent: {e}", rule="§2") from None
    if len(head) > MAX_FRAME_BYTES or len(body) + 4 > MAX_FRAMES:
        raise BadFrame(
            f"{verb}: header of {len(head)} bytes, {len(body)} body frames: send fewer a message", rule="§9"
        )
    for b in body:
        if len(b) > MAX_FRAME_BYTES:
            raise BadFrame(
                f"{verb}: a body frame of {len(b)} bytes, the limit is {MAX_FRAME_BYTES}", rule="§9"
            )
    return [PROTOCOL, _VERB_BYTES[verb], corr, head, *body]


def decode(frames: Sequence[bytes], *, routed: bool = False) -> Envelope:
    """One message as a DEALER gave it: ``[protocol, verb, corr, header, body...]``.

    With ``routed`` as a ROUTER gave it, the identity first. Body frames stay bytes.

    Raises:
        BadFrame: the peer broke PROTOCOL.md; ``rule`` names the paragraph. Drop it, keep the loop.
    """
    peer = b""
    if routed:
        if not frames:
            raise BadFrame("an empty message", rule="§2")
        peer, frames = frames[0], frames[1:]
    if len(frames) < 4 or len(frames) > MAX_FRAMES:
        raise BadFrame(f"{len(frames)} frames, 4 to {MAX_FRAMES} are allowed", rule="§2")
    if frames[0] != PROTOCOL:
        raise BadFrame(f"protocol {bytes(frames[0][:8])!r}, this broker speaks {PROTOCOL!r}", rule="§2")
    verb = _VERBS.get(bytes(frames[1]))
    if verb is None:
        raise BadFrame(f"unknown verb {bytes(frames[1][:16])!r}", rule="§3")
    if len(frames[2]) > MAX_CORR_BYTES:
        raise BadFrame(f"correlation id of {len(frames[2])} bytes", rule="§2")
    header = unpack(frames[3])
    if not isinstance(header, dict):
        raise BadFrame(f"{verb}: the header is no map", rule="§2")
    return Envelope(verb, header, list(frames[4:]), frames[2], peer)


def other_major(frames: Sequence[bytes]) -> int | None:
    """The major version of a message of another one, None of any other. ``frames`` without an identity.

    Of every major only this is the same for ever: frame 0, and the shape of HELLO and ERROR.
    """
    name = bytes(frames[0]) if frames else b""
    digits = name[len(_PROTOCOL_NAME) :]
    if name == PROTOCOL or not name.startswith(_PROTOCOL_NAME) or not digits.isdigit() or len(digits) > 3:
        return None
    return int(digits)


def hello_of(frames: Sequence[bytes]) -> dict[str, Any]:
    """The header of another major's message where it can be read as one of ours, else an empty one."""
    try:
        header = unpack(frames[3]) if len(frames) > 3 else {}
    except BadFrame:
        return {}
    return header if isinstance(header, dict) else {}


def corr_of(frames: Sequence[bytes]) -> bytes:
    """The correlation id of a message that did not decode, so that its ERROR finds its question; else empty."""
    return frames[2] if len(frames) > 2 and len(frames[2]) <= MAX_CORR_BYTES else b""
