"""What a language model is to the rest of rigbus: the request, the pieces of its answer, the ``Model`` protocol.

Pure: no process, no clock, no llama.cpp. ``host`` (llama.cpp in a child), ``remote`` (a server) and ``scripted`` (for tests)
implement it; a caller never asks which one it has.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Final, Literal, Protocol

from ...bus.errors import DefinitionError, RigbusError
from .requests import (
    MAX_PROMPT_CHARS,
    MAX_SCHEMA_BYTES,
    MAX_SEED,
    MAX_STOP_CHARS,
    MAX_STOPS,
    MAX_TEXTS,
    MAX_TOKENS,
    ROLES,
    EmbedRequest,
    GenerateRequest,
    check_text,
)

__all__ = [
    "MAX_PARALLEL",
    "MAX_PROMPT_CHARS",
    "MAX_QUEUE",
    "MAX_SCHEMA_BYTES",
    "MAX_SEED",
    "MAX_STOPS",
    "MAX_STOP_CHARS",
    "MAX_TEXTS",
    "MAX_TOKENS",
    "PARALLEL",
    "QUEUE",
    "ROLES",
    "Begun",
    "Chunk",
    "Declined",
    "EmbedRequest",
    "EmbedResult",
    "Embedding",
    "Finish",
    "GenerateRequest",
    "GenerateResult",
    "Generation",
    "LoadOptions",
    "Model",
    "ModelBusy",
    "ModelClosed",
    "ModelCrashed",
    "ModelInfo",
    "ModelState",
    "Phase",
    "Queued",
    "Usage",
    "Vector",
    "collect",
    "gather",
]

PARALLEL: Final = 8
MAX_PARALLEL: Final = 64
QUEUE: Final = 64  #: requests that may wait beside those that run
MAX_QUEUE: Final = 4096

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


class ModelBusy(RigbusError):
    """So many requests wait for the model already that this one was not taken. Later it may be: class ``infra``."""

    error_class: ClassVar[str] = "infra"


class ModelClosed(RigbusError):
    """The model was unloaded while the request waited or ran. Nobody's fault: class ``infra``."""

    error_class: ClassVar[str] = "infra"


@dataclass(frozen=True, slots=True)
class Begun:
    """The request has left the queue. Between an engine and its host only."""


@dataclass(frozen=True, slots=True)
class Declined:
    """The request turned out to be one that can never end. Between an engine and its host only."""

    message: str


@dataclass(frozen=True, slots=True)
class Queued:
    """The request waits: ``position`` others that came before it wait, too; 0 for the next one to begin."""

    position: int


@dataclass(frozen=True, slots=True)
class Vector:
    """The embedding of text ``index`` of an :class:`EmbedRequest`, of length 1."""

    index: int
    values: list[float]


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
class EmbedResult:
    """A vector for each text, in their order; fewer where the request was cancelled.

    ``usage``: ``prompt_tokens`` of all texts, ``prefill_s`` for reading them; nothing is generated.
    """

    vectors: list[list[float]]
    model: str
    usage: Usage

    def to_map(self) -> dict[str, Any]:
        """As plain data: ``{"vectors", "model", "usage", "timings"}``."""
        u = self.usage
        return {
            "vectors": self.vectors,
            "model": self.model,
            "usage": {"prompt_tokens": u.prompt_tokens},
            "timings": {"queued_s": u.queued_s, "prefill_s": u.prefill_s, "load_s": u.load_s},
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """``ctx`` 0: the model's own, at most 4096. ``gpu_layers`` -1: all that llama.cpp can. ``threads`` 0: by cores.

    ``parallel``: requests at once. They share the context: each may have all of it, and waits for its part.
    ``queue``: how many more may wait; one beyond is a ModelBusy. ``tensor_split``: shares of its layers by card, where
    there are several; empty: by their free memory.

    Raises:
        DefinitionError: a number is out of its range.
    """

    path: str
    name: str
    ctx: int = 0
    gpu_layers: int = -1
    threads: int = 0
    parallel: int = PARALLEL
    queue: int = QUEUE
    tensor_split: Sequence[float] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.parallel <= MAX_PARALLEL:
            raise DefinitionError(f"model {self.name}: parallel is {self.parallel}; give 1 to {MAX_PARALLEL}")
        check_text(f"model {self.name!r}: its path", self.path)
        check_text("model: its name", self.name)
        if not 0 <= self.queue <= MAX_QUEUE:
            raise DefinitionError(f"model {self.name}: queue is {self.queue}; give 0 to {MAX_QUEUE}")
        for field, value, least in (
            ("ctx", self.ctx, 0),
            ("gpu_layers", self.gpu_layers, -1),
            ("threads", self.threads, 0),
        ):
            if not least <= value < 2**31:
                raise DefinitionError(f"model {self.name}: {field} is {value}; give {least} to {2**31 - 1}")
        if not all(math.isfinite(part) and part >= 0 for part in self.tensor_split):
            raise DefinitionError(
                f"model {self.name}: tensor_split is {self.tensor_split}; give shares of 0 or more"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What is loaded.

    ``ctx``: tokens of prompt and answer together, of all ``parallel`` requests; ``dimensions``: numbers in a vector of
    ``embed``; ``load_s``: start of the process to ready; ``on_card``: it may compute on a card of this machine.
    """

    name: str
    ctx: int
    parallel: int = 1
    description: str = ""
    parameters: int = 0
    size_bytes: int = 0
    chat_template: bool = False
    dimensions: int = 0
    load_s: float = 0.0
    on_card: bool = False

    def to_map(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ModelState:
    """Where a model stands. ``share`` 0 to 1 of the loading; ``message`` says why, where there is a why.

    ``peak_rss_bytes``: the most memory of the machine (not of a GPU) that its process has held so far, as measured every
    few seconds; 0 where nobody knows. It stays when the process has gone.
    """

    phase: Phase
    share: float = 0.0
    message: str = ""
    peak_rss_bytes: int = 0


class Generation(Protocol):
    """One running answer: chunks, then exactly one ``Usage``. Read by one thread; ``cancel`` comes from any.

    Errors come out of ``poll`` and ``next``: DefinitionError (can never run), ModelBusy, ModelCrashed, ModelClosed.
    """

    def __iter__(self) -> Iterator[Chunk | Usage]: ...

    def __next__(self) -> Chunk | Usage: ...

    def poll(self, timeout_s: float) -> Chunk | Queued | Usage | None:
        """The next item, or None when none has come within ``timeout_s``.

        A ``Queued`` comes, before any chunk, whenever the request's place among those that wait has changed; who reads
        late hears of the last place only. Iteration leaves it out.

        Raises:
            StopIteration: the ``Usage`` was taken already.
        """

    def cancel(self) -> None:
        """Stop within a token. The ``Usage`` still follows, with ``finish`` "cancelled". Harmless when it ended."""


class Embedding(Protocol):
    """One request for vectors on its way: a ``Vector`` a text, in any order, then exactly one ``Usage``.

    Else as :class:`Generation`, whose errors and whose cancel it has.
    """

    def __iter__(self) -> Iterator[Vector | Usage]: ...

    def __next__(self) -> Vector | Usage: ...

    def poll(self, timeout_s: float) -> Vector | Queued | Usage | None: ...

    def cancel(self) -> None: ...


class Model(Protocol):
    """A model that generates text and embeds it. Every method may be called from any thread."""

    name: str

    @property
    def ready(self) -> bool:
        """It is loaded and has proved it by generating."""

    @property
    def state(self) -> ModelState: ...

    def start(self) -> None:
        """Begin to load and return at once. Harmless when it has begun.

        A model that was given up, since it crashed again and again, is tried anew: somebody asks for it.
        """

    def load(self, timeout_s: float | None = None) -> ModelInfo:
        """``start``, and wait until it is ready.

        Raises:
            DefinitionError: it can never load as it is given (no such file, damaged, no llama.cpp).
            ModelCrashed: its process died while it loaded. WaitTimeout: ``timeout_s`` passed. ModelClosed.
        """

    def generate(self, request: GenerateRequest) -> Generation:
        """Ask for a text; returns at once. A model that is still loading answers when it is ready."""

    def embedding(self, request: EmbedRequest) -> Embedding:
        """Ask for vectors; returns at once, as ``generate``."""

    def embed(self, texts: Sequence[str]) -> EmbedResult:
        """The vectors of ``texts``: :meth:`embedding`, read to its end.

        Raises:
            DefinitionError: a text is empty, no text, or longer than the context: the message names its index; or the
                model makes no vectors. ModelBusy, ModelCrashed, ModelClosed.
        """

    def close(self) -> None:
        """Unload: when this returns the memory is free. What runs ends with ModelClosed. Harmless twice."""


def collect(
    generation: Generation,
    model: str,
    *,
    as_json: bool = False,
    on_text: Callable[[str], None] = lambda text: None,
    on_wait: Callable[[], None] = lambda: None,
    on_queue: Callable[[int], None] = lambda position: None,
    wait_s: float = 1.0,
) -> GenerateResult:
    """Read a generation to its end: ``on_text`` gets each piece, ``on_wait`` is called per ``wait_s`` of silence.

    ``on_queue`` gets the request's place among those that wait, when it changes. ``as_json``: a schema was asked for; the
    result's ``json`` is the text's value, None where the text was cut off.

    Raises:
        DefinitionError, ModelBusy, ModelCrashed, ModelClosed: as the generation. An error of a callback cancels it.
    """
    parts: list[str] = []
    try:
        while True:
            item = generation.poll(wait_s)
            match item:
                case None:
                    on_wait()
                case Queued(position):
                    on_queue(position)
                case Chunk(text):
                    parts.append(text)
                    on_text(text)
                case Usage():
                    text = "".join(parts)
                    value = _value(text) if as_json and item.finish == "stop" else None
                    return GenerateResult(text=text, model=model, usage=item, json=value)
    finally:
        generation.cancel()


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def gather(
    embedding: Embedding,
    model: str,
    *,
    on_wait: Callable[[], None] = lambda: None,
    on_queue: Callable[[int], None] = lambda position: None,
    wait_s: float = 1.0,
) -> EmbedResult:
    """Read an embedding to its end; the callbacks are those of :func:`collect`.

    Raises:
        DefinitionError, ModelBusy, ModelCrashed, ModelClosed: as the embedding. An error of a callback cancels it.
    """
    vectors: dict[int, list[float]] = {}
    try:
        while True:
            item = embedding.poll(wait_s)
            match item:
                case None:
                    on_wait()
                case Queued(position):
                    on_queue(position)
                case Vector(index, values):
                    vectors[index] = values
                case Usage():
                    return EmbedResult(vectors=[vectors[i] for i in sorted(vectors)], model=model, usage=item)
    finally:
        embedding.cancel()
