"""What a language model is to the rest of rigbus: the request, the pieces of its answer, the ``Model`` protocol.

Pure: no process, no clock, no llama.cpp. ``model_host.py`` (llama.cpp in a child) and ``scripted_model.py`` (for
tests) implement it; a caller never asks which one it has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, Literal, Protocol

from ..bus.errors import DefinitionError, RigbusError

MAX_STOPS: Final = 16
MAX_STOP_CHARS: Final = 256
MAX_SEED: Final = 2**32 - 2  #: llama.cpp's seed has 32 bits, and its largest value means "any"
ROLES: Final = ("system", "user", "assistant", "tool")

Finish = Literal["stop", "length", "cancelled"]
Phase = Literal["new", "loading", "ready", "restarting", "failed", "closed"]


class ModelCrashed(RigbusError):
    """The process that held the model died under this request. The attempt counts as class ``crash`` (DESIGN 3)."""

    error_class: ClassVar[str] = "crash"


class ModelClosed(RigbusError):
    """The model was unloaded while the request waited or ran. Nobody's fault: class ``infra``."""

    error_class: ClassVar[str] = "infra"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One text to generate.

    Give ``prompt`` or ``messages`` (``{"role", "content"}`` each), not both. A prompt counts as one user message
    where the model has a chat template; a model without one continues the prompt as it is. ``temperature`` 0 takes
    the likeliest token each time; the same ``seed`` (0 to 2^32-2) gives the same text again, None is any seed.
    ``stop``: the text ends before the first of these strings.

    Raises:
        DefinitionError: a field is wrong; the message names it and the fix.
    """

    prompt: str | None = None
    messages: Sequence[Mapping[str, str]] | None = None
    max_tokens: int = 256
    temperature: float = 0.8
    seed: int | None = None
    stop: Sequence[str] = ()

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

    def to_map(self) -> dict[str, Any]:
        """As plain data, for the pipe; ``GenerateRequest(**map)`` is the way back."""
        return {
            "prompt": self.prompt,
            "messages": None if self.messages is None else [dict(m) for m in self.messages],
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
            "stop": list(self.stop),
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


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of the text, whole characters only. All chunks joined are the text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The last item of every generation: what it took and why it ended.

    ``prefill_s``: reading the prompt, up to the first token; ``decode_s``: the tokens after it; ``load_s``: how long
    the model took to load (once, not for this request). ``finish``: ``stop`` (the model's end or a stop string),
    ``length`` (``max_tokens`` or the context is full), ``cancelled``.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    load_s: float = 0.0
    finish: Finish = "stop"


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateResult:
    """A finished generation. ``json`` is None: no schema was asked for."""

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
            "usage": {"prompt_tokens": u.prompt_tokens, "completion_tokens": u.completion_tokens},
            "timings": {"prefill_s": u.prefill_s, "decode_s": u.decode_s, "load_s": u.load_s},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """``ctx`` 0: the model's own, at most 4096. ``gpu_layers`` -1: all that llama.cpp can. ``threads`` 0: by cores.

    Raises:
        DefinitionError: a number is out of its range.
    """

    path: str
    name: str
    ctx: int = 0
    gpu_layers: int = -1
    threads: int = 0

    def __post_init__(self) -> None:
        for field, value, least in (
            ("ctx", self.ctx, 0),
            ("gpu_layers", self.gpu_layers, -1),
            ("threads", self.threads, 0),
        ):
            if not least <= value < 2**31:
                raise DefinitionError(f"model {self.name}: {field} is {value}; give {least} to {2**31 - 1}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is loaded. ``ctx``: tokens of prompt and answer together; ``load_s``: start of the process to ready."""

    name: str
    ctx: int
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
    on_text: Callable[[str], None] = lambda text: None,
    on_wait: Callable[[], None] = lambda: None,
    wait_s: float = 1.0,
) -> GenerateResult:
    """Read a generation to its end: ``on_text`` gets each piece, ``on_wait`` is called per ``wait_s`` of silence.

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
                    return GenerateResult(text="".join(parts), model=model, usage=item)
    finally:
        generation.cancel()
