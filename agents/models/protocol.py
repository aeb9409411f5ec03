"""What a language model is to the rest of rigbus: the request, the pieces of its answer, the ``Model`` protocol.

Pure: no process, no clock, no llama.cpp. ``host.py`` (llama.cpp in a child) and ``scripted.py`` (for tests) implement
it; a caller never asks which one it has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, Literal, Protocol

from ...bus.errors import DefinitionError, RigbusError

MAX_SCHEMA_BYTES: Final = 64 * 1024
PARALLEL: Final = 8
MAX_PARALLEL: Final = 64
MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 256
MAX_SEED: Final = 2**32 - 2  #: llama.cpp's seed has 32 bits, and its largest value means "any"
ROLES: Final = ("system", "user", "assistant", "tool")

Finish = Literal["stop", "length", "cancelled"]
Phase = Literal["new", "loading", "ready", "restarting", "failed", "closed"]


class ModelCrashed(RigbusError):
    """The process that held the model died under this request.

    ``error_class`` of the attempt (DESIGN 3): ``crash`` where the request was alone, ``infra`` where others ran beside it,
    for then nobody knows whose fault it was.
    """

    def __init__(self, message: str, *, alone: bool = True) -> None:
        super().__init__(message)
        self.error_class = "crash" if alone else "infra"


class ModelClosed(RigbusError):
    """The model was unloaded while the request waited or ran. Nobody's fault: class ``infra``."""

    error_class: ClassVar[str] = "infra"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One text to generate.

    Give ``prompt`` or ``messages`` (``{"role", "content"}`` each), not both. A prompt counts as one user message
    where the model has a chat template; a model without one continues the prompt as it is. ``temperature`` 0 takes
    the likeliest token each time; the same ``seed`` (0 to 2^32-2) gives the same text again (alone; in the company of
    other requests llama.cpp computes in larger batches, which round differently), None is any seed. ``stop``: the text
    ends before the first of these strings. ``json_schema``: the text is JSON of the schema's types, properties, enums and
    lengths, as long as ``max_tokens`` does not end it before; the bounds of numbers are not in llama.cpp's grammar.

    Raises:
        DefinitionError: a field is wrong; the message names it and the fix.
    """

    prompt: str | None = None
    messages: Sequence[Mapping[str, str]] | None = None
    max_tokens: int = 256
    temperature: float = 0.8
    seed: int | None = None
    stop: Sequence[str] = ()
    json_schema: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.prompt is None and self.messages is None:
            raise DefinitionError('generate: neither "prompt" nor "messages" is given; give one of them')
        if self.prompt is not None and self.messages is not None:
            raise DefinitionError('generate: both "prompt" and "messages" are given; give one of them')
        if self.messages is not None:
            _check_messages(self.messages)
        if self.max_tokens < 1:
            raise DefinitionError(f'generate: field "max_tokens" is {self.max_tokens}; at least 1')
        if not math.isfinite(self.temperature) or not 0.0 <= self.temperature <= 100.0:
            raise DefinitionError(f'generate: field "temperature" is {self.temperature}; give 0 to 100')
        if self.seed is not None and not 0 <= self.seed <= MAX_SEED:
            raise DefinitionError(
                f'generate: field "seed" is {self.seed}; give 0 to {MAX_SEED}, or leave it out'
            )
        _check_stops(self.stop)
        if self.json_schema is not None:
            _check_schema(self.json_schema)

    def to_map(self) -> dict[str, Any]:
        """As plain data, for the pipe; ``GenerateRequest(**map)`` is the way back."""
        return {
            "prompt": self.prompt,
            "messages": None if self.messages is None else [dict(m) for m in self.messages],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "stop": list(self.stop),
            "json_schema": self.json_schema,
        }


def _check_messages(messages: Sequence[Mapping[str, str]]) -> None:
    if not messages:
        raise DefinitionError('generate: field "messages" is empty; give at least one {"role", "content"}')
    for i, message in enumerate(messages):
        where = f"generate: messages[{i}]"
        if set(message) != {"role", "content"}:
            raise DefinitionError(f'{where} has the fields {sorted(message)}; it takes "role" and "content"')
        if message["role"] not in ROLES:
            raise DefinitionError(f"{where}: role {message['role']!r}; one of {', '.join(ROLES)}")


def _check_stops(stops: Sequence[str]) -> None:
    if isinstance(stops, str):
        raise DefinitionError('generate: field "stop" must be a list of strings')
    if len(stops) > MAX_STOPS:
        raise DefinitionError(f'generate: field "stop" has {len(stops)} strings; at most {MAX_STOPS}')
    for stop in stops:
        if not 0 < len(stop) <= MAX_STOP_CHARS:
            raise DefinitionError(
                f'generate: field "stop": {stop[:20]!r} has {len(stop)} characters; 1 to {MAX_STOP_CHARS}'
            )


def _check_schema(schema: Mapping[str, Any]) -> None:
    if not isinstance(schema, Mapping):
        raise DefinitionError(f'generate: field "json_schema" is {type(schema).__name__}; give an object')
    try:
        size = len(json.dumps(schema))
    except (TypeError, ValueError, RecursionError) as e:
        raise DefinitionError(f'generate: field "json_schema" is no JSON: {e}') from e
    if size > MAX_SCHEMA_BYTES:
        raise DefinitionError(f'generate: field "json_schema" has {size} bytes; at most {MAX_SCHEMA_BYTES}')


@dataclass(frozen=True, slots=True)
class Begun:
    """The request has left the queue. Between an engine and its host only."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of the text, whole characters only. All chunks joined are the text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The last item of every generation: what it took and why it ended.

    ``queued_s``: waiting for a sequence of the model; ``cached_tokens``: of the prompt, that did not have to be read
    again. ``prefill_s``: reading the prompt, up to the first token; ``decode_s``: the tokens after it; ``load_s``: how long
    the model took to load (once, not for this request). ``finish``: ``stop`` (the model's end or a stop string),
    ``length`` (``max_tokens`` or the context is full), ``cancelled``.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    queued_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    load_s: float = 0.0
    finish: Finish = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateResult:
    """A finished generation. ``json`` is None where no schema was asked for, or the text is not whole."""

    text: str
    model: str
    usage: Usage
    json: Any = None

    def to_map(self) -> dict[str, Any]:
        """The value of a ``generate`` task: ``{"text", "json", "model", "finish", "usage", "timings"}``."""
        u = self.usage
        return {
            "text": self.text,
            "json": self.json,
            "model": self.model,
            "finish": u.finish,
            "usage": {
                "prompt_tokens": u.prompt_tokens,
                "completion_tokens": u.completion_tokens,
                "cached_tokens": u.cached_tokens,
            },
            "timings": {
                "queued_s": u.queued_s,
                "prefill_s": u.prefill_s,
                "decode_s": u.decode_s,
                "load_s": u.load_s,
            },
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """``ctx`` 0: the model's own, at most 4096. ``gpu_layers`` -1: all that llama.cpp can. ``threads`` 0: by cores.

    ``parallel``: requests at once. They share the context: each may have all of it, and waits for its part.

    Raises:
        DefinitionError: a number is out of its range.
    """

    path: str
    name: str
    ctx: int = 0
    gpu_layers: int = -1
    threads: int = 0
    parallel: int = PARALLEL

    def __post_init__(self) -> None:
        if not 1 <= self.parallel <= MAX_PARALLEL:
            raise DefinitionError(f"model {self.name}: parallel is {self.parallel}; give 1 to {MAX_PARALLEL}")
        for field, value, least in (
            ("ctx", self.ctx, 0),
            ("gpu_layers", self.gpu_layers, -1),
            ("threads", self.threads, 0),
        ):
            if not least <= value < 2**31:
                raise DefinitionError(f"model {self.name}: {field} is {value}; give {least} to {2**31 - 1}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is loaded.

    ``ctx``: tokens of prompt and answer together, of all ``parallel`` requests; ``load_s``: start of the process to ready.
    """

    name: str
    ctx: int
    parallel: int = 1
    description: str = ""
    parameters: int = 0
    size_bytes: int = 0
    chat_template: bool = False
    load_s: float = 0.0

    def to_map(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ModelState:
    """Where a model stands. ``share`` 0 to 1 of the loading; ``message`` says why, where there is a why."""

    phase: Phase
    share: float = 0.0
    message: str = ""


class Generation(Protocol):
    """One running answer: chunks, then exactly one ``Usage``. Read by one thread; ``cancel`` comes from any.

    Errors come out of ``poll`` and ``next``: DefinitionError (can never run), ModelCrashed, ModelClosed.
    """

    def __iter__(self) -> Iterator[Chunk | Usage]: ...

    def __next__(self) -> Chunk | Usage: ...

    def poll(self, timeout_s: float) -> Chunk | Usage | None:
        """The next item, or None when none has come within ``timeout_s``.

        Raises:
            StopIteration: the ``Usage`` was taken already.
        """

    def cancel(self) -> None:
        """Stop within a token. The ``Usage`` still follows, with ``finish`` "cancelled". Harmless when it ended."""


class Model(Protocol):
    """A model that generates text. Every method may be called from any thread."""

    name: str

    @property
    def ready(self) -> bool:
        """It is loaded and has proved it by generating."""

    @property
    def state(self) -> ModelState: ...

    def start(self) -> None:
        """Begin to load and return at once. Harmless when it has begun."""

    def load(self, timeout_s: float | None = None) -> ModelInfo:
        """``start``, and wait until it is ready.

        Raises:
            DefinitionError: it can never load as it is given (no such file, damaged, no llama.cpp).
            ModelCrashed: its process died while it loaded. WaitTimeout: ``timeout_s`` passed. ModelClosed.
        """

    def generate(self, request: GenerateRequest) -> Generation:
        """Ask for a text; returns at once. A model that is still loading answers when it is ready."""

    def close(self) -> None:
        """Unload: when this returns the memory is free. What runs ends with ModelClosed. Harmless twice."""


def collect(
    generation: Generation,
    model: str,
    *,
    as_json: bool = False,
    on_text: Callable[[str], None] = lambda text: None,
    on_wait: Callable[[], None] = lambda: None,
    wait_s: float = 1.0,
) -> GenerateResult:
    """Read a generation to its end: ``on_text`` gets each piece, ``on_wait`` is called per ``wait_s`` of silence.

    ``as_json``: a schema was asked for; the result's ``json`` is the text's value, None where the text was cut off.

    Raises:
        DefinitionError, ModelCrashed, ModelClosed: as the generation. An error of a callback cancels it.
    """
    parts: list[str] = []
    try:
        while True:
            item = generation.poll(wait_s)
            match item:
                case None:
                    on_wait()
                case Chunk(text):
                    parts.append(text)
                    on_text(text)
                case Usage():
                    text = "".join(parts)
                    return GenerateResult(
                        text=text, model=model, usage=item, json=_value(text) if as_json else None
                    )
    finally:
        generation.cancel()


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
