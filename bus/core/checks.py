"""Reading the fields of a peer's map: what is wrong is refused before anything of the message is applied. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import BadFrame, DefinitionError
from ..wire import MAX_BATCH, MAX_KEY_BYTES, MAX_PAYLOAD_BYTES, MAX_RESULT_BYTES, Token
from .model import Policy, Shape, intern_policy, intern_shape

ERROR_CLASSES: Final = frozenset({"task", "crash", "infra", "definition"})
MAX_ERROR_CHARS: Final = 8000
MAX_LOG_CHARS: Final = 4096
MAX_REASON_CHARS: Final = 200  #: why something was given back, or a worker is held
_HEX: Final = frozenset("0123456789abcdef")
_EXTRA: Final[tuple[tuple[str, Any], ...]] = (("exit", int), ("duration_s", (int, float)), ("log", str))
_POLICY_INTS: Final = ("task", "crash", "infra")
_SPEC_TIMES: Final = ("timeout_s", "queue_timeout_s", "no_progress_s")
_POLICY_FLAGS: Final = (
    ("review", "review"),
    ("escalate", "escalate"),
    ("aside", "judges"),
    ("aside", "aside"),
)
_NOTHING: Final[dict[str, Any]] = {}
#: 16 TiB: more than any machine's cards have together
MAX_VRAM_MB: Final = 2**24
#: SQLite and the clocks hold no more; nothing that is counted comes near
MAX_INT: Final = 2**53


def text(spec: dict[str, Any], name: str, limit: int = MAX_KEY_BYTES) -> str | None:
    """A text field of a peer's map, None when absent.

    Raises:
        DefinitionError: not text, or over ``limit`` bytes.
    """
    value = spec.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value.encode("utf-8", "surrogatepass")) > limit:
        raise DefinitionError(f"{name} must be text of at most {limit} bytes, not {value!r:.60}")
    return value


def number(spec: dict[str, Any], name: str, low: float, high: float) -> float | None:
    """A number field of a peer's map, None when absent.

    Raises:
        DefinitionError: not a number in ``low..high`` (so no NaN either).
    """
    value = spec.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise DefinitionError(f"{name} must be a number from {low:g} to {high:g}, not {value!r:.60}")
    return float(value)


def whole(header: dict[str, Any], name: str, low: int, high: int, default: int) -> int:
    """A whole number in ``low..high`` of a peer's header, ``default`` when absent.

    Raises:
        BadFrame: another kind of value, or out of the bounds.
    """
    value = header.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BadFrame(f"{name} must be a whole number from {low} to {high}, not {value!r:.60}", rule="§2")
    return value


def texts(header: dict[str, Any], name: str) -> list[str]:
    """A list of texts of a peer's header, empty when absent.

    Raises:
        BadFrame: it is something else.
    """
    value = header.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise BadFrame(f"{name} must be a list of texts, not {value!r:.60}", rule="§2")
    return value


def maps(header: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """A list of maps of a peer's header, empty when absent.

    Raises:
        BadFrame: it is something else.
    """
    value = header.get(name)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(v, dict) for v in value):
        raise BadFrame(f"{name} must be a list of maps, not {value!r:.60}", rule="§2")
    return value


def token(value: Any) -> Token:
    """A fencing token ``[incarnation, seq]``.

    Raises:
        BadFrame: it is none.
    """
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise BadFrame(f"a token is [incarnation, seq], not {value!r:.60}", rule="§2")
    inc, seq = value
    if not isinstance(inc, int) or not isinstance(seq, int):
        raise BadFrame(f"a token is two whole numbers, not {value!r:.60}", rule="§2")
    return (inc, seq)


def tokens(value: Any) -> list[Token]:
    """A list of tokens, each once, in order; None is an empty one.

    Raises:
        BadFrame: it is something else.
    """
    if value is None:
        return []
    if not isinstance(value, list):
        raise BadFrame(f"tokens are a list, not {value!r:.60}", rule="§2")
    return list(dict.fromkeys(map(token, value)))


def tokens_by_id(header: dict[str, Any], name: str) -> dict[str, Token]:
    """A map of ids to tokens of a peer's header.

    Raises:
        BadFrame: it is something else.
    """
    value = header.get(name)
    if not isinstance(value, dict) or not all(isinstance(id_, str) for id_ in value):
        raise BadFrame(f"{name} must be a map of ids to tokens, not {value!r:.60}", rule="§2")
    return {id_: token(shown) for id_, shown in value.items()}


def owed(header: dict[str, Any]) -> dict[str, list[Token]]:
    """``owes`` of a worker's HELLO: session -> the tokens of the results that it left.

    Raises:
        BadFrame: it is something else.
    """
    value = header.get("owes")
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(sid, str) for sid in value):
        raise BadFrame(f"owes is a map of sessions to tokens, not {value!r:.60}", rule="§3")
    return {sid: tokens(held) for sid, held in value.items()}


# -- results -------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Outcome:
    """One result of a RESULT (PROTOCOL §4)."""

    token: Token
    ok: bool
    value: bytes
    error_class: str = "task"
    error: str = ""
    cancelled: bool = False
    ref: tuple[str, int] | None = None  #: sha256 and bytes of a value in a file
    wrong: str = ""  #: why it can never be recorded as it is: class ``definition``
    extra: dict[str, Any] = field(default_factory=dict)  #: for events and ENDED: exit, duration_s, ref, log


def outcomes(header: dict[str, Any], body: Sequence[bytes]) -> list[Outcome]:
    """The results of a RESULT with their values.

    Raises:
        BadFrame: one of them is no map or has no token; none is to be applied.
    """
    results = maps(header, "results")
    if len(results) > MAX_BATCH:
        raise BadFrame(f"{len(results)} results in one message; at most {MAX_BATCH}", rule="§9")
    return [_outcome(res, body[i] if i < len(body) else b"") for i, res in enumerate(results)]


def _outcome(res: dict[str, Any], value: bytes) -> Outcome:
    out = Outcome(token(res.get("token")), bool(res.get("ok")), value)
    if not out.ok:
        out.error = str(res.get("error") or "failed without a message")[:MAX_ERROR_CHARS]
        error_class = res.get("class")
        out.error_class = error_class if error_class in ERROR_CLASSES else "task"
        out.cancelled = bool(res.get("cancelled"))
    for name, kinds in _EXTRA:
        given = res.get(name)
        if isinstance(given, kinds) and not (isinstance(given, str) and len(given) > MAX_LOG_CHARS):
            out.extra[name] = given
    if len(value) > MAX_PAYLOAD_BYTES:
        out.wrong = f"a result of {len(value)} bytes inline; over {MAX_PAYLOAD_BYTES} it must go by reference"
    elif (ref := res.get("ref")) is not None:
        out.ref = _reference(ref)
        if out.ref is None:
            out.wrong = f"the result's reference {ref!r:.80} is not {{sha256, bytes}} (PROTOCOL §4)"
        else:
            out.extra["ref"] = {"sha256": out.ref[0], "bytes": out.ref[1]}
    return out


def _reference(ref: Any) -> tuple[str, int] | None:
    """A result's ``{sha256, bytes}`` as the store keeps it; None for what is no reference."""
    if not isinstance(ref, dict):
        return None
    digest, size = ref.get("sha256"), ref.get("bytes")
    if not isinstance(digest, str) or len(digest) != 64 or not set(digest) <= _HEX:
        return None
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_RESULT_BYTES:
        return None
    return digest, size


# -- specs ---------------------------------------------------------------------------------------------------


def shape_of(spec: dict[str, Any], type_: str) -> Shape:
    """What a worker must offer for a spec.

    Raises:
        DefinitionError: a field is wrong.
    """
    needs = spec.get("needs") or ()
    if not isinstance(needs, (list, tuple)) or not all(isinstance(n, str) for n in needs):
        raise DefinitionError("needs must be a list of texts")
    return intern_shape(
        type_,
        text(spec, "class"),
        text(spec, "pool"),
        tuple(sorted(needs)) if needs else (),
        text(spec, "view"),
        vram_mb=_vram_mb(spec),
    )


def _vram_mb(spec: dict[str, Any]) -> int:
    value = spec.get("vram_mb")
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_VRAM_MB:
        raise DefinitionError(
            f"vram_mb must be a whole number of MiB from 1 to {MAX_VRAM_MB}, not {value!r:.60}"
        )
    return value


def policy_of(spec: dict[str, Any]) -> Policy:
    """Retry and time limits of a spec.

    Raises:
        DefinitionError: a field is wrong.
    """
    values: dict[str, Any] = {}
    raw = spec.get("policy") or _NOTHING
    if raw:
        if not isinstance(raw, dict):
            raise DefinitionError("policy must be a map")
        for name in _POLICY_INTS:
            if (n := number(raw, name, 1, 1000)) is not None:
                values[name] = int(n)
        for name in ("backoff_s", "backoff_max_s"):
            if (n := number(raw, name, 0, 86400)) is not None:
                values[name] = n
    for name in _SPEC_TIMES:
        if name in spec and (n := number(spec, name, 0.001, 1e9)) is not None:
            values[name] = n
    for flag, name in _POLICY_FLAGS:
        if spec.get(name):
            values[flag] = True
    return intern_policy(**values)


def edge_refs(spec: dict[str, Any], name: str) -> list[tuple[str, bool]]:
    """``after`` or ``feeds`` of a spec: (key or id, True for ``on: end``).

    Raises:
        DefinitionError: it is no list of ``ref`` or ``[ref, "end"]``.
    """
    refs = spec.get(name)
    if not refs:
        return []
    if not isinstance(refs, (list, tuple)):
        raise DefinitionError(f"`{name}` is a list of keys and ids, not {refs!r:.60}")
    out = []
    for edge in refs:
        ref, on = edge if isinstance(edge, (list, tuple)) and len(edge) == 2 else (edge, "success")
        if not isinstance(ref, str):
            raise DefinitionError(f"`{name}` names tasks by text, not {ref!r:.60}")
        if on not in ("success", "end"):
            raise DefinitionError(f"an edge is on `success` or `end`, not {on!r:.40}")
        out.append((ref, on == "end"))
    return out
