"""A ``Model`` without a model: it answers from a queue and remembers what it was asked. For tests, yours too."""

from __future__ import annotations

import hashlib
import math
import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from ...bus.errors import DefinitionError
from .engine.text import TextStream
from .protocol import (
    Chunk,
    EmbedRequest,
    EmbedResult,
    Finish,
    GenerateRequest,
    ModelClosed,
    ModelInfo,
    ModelState,
    Queued,
    Usage,
    Vector,
    gather,
)

DIMENSIONS: Final = 8
_WORD = re.compile(r"\s*\S+|\s+")


class ScriptedGeneration:
    """One scripted answer, a word a token. It goes on only when it is read."""

    def __init__(self, model: ScriptedModel, request: GenerateRequest, answer: str | Exception) -> None:
        self._model = model
        self._request = request
        self._error = answer if isinstance(answer, Exception) else None
        self._words = deque(_WORD.findall(answer) if isinstance(answer, str) else ())
        self._text = TextStream(request.stop)
        self._cancelled = threading.Event()
        self._taken = 0
        self._finish: Finish | None = None
        self._ended = False

    def __iter__(self) -> Iterator[Chunk | Usage]:
        return self

    def __next__(self) -> Chunk | Usage:
        if self._ended:
            raise StopIteration
        if self._error is not None or self._model.state.phase == "closed":
            self._ended = True
            raise self._error or ModelClosed(
                f"model {self._model.name} was closed during this request; load it again"
            )
        while self._finish is None:
            if text := self._step():
                return Chunk(text)
        self._ended = True
        prompt = self._request.prompt or " ".join(m["content"] for m in self._request.messages or ())
        return Usage(
            prompt_tokens=len(_WORD.findall(prompt)), completion_tokens=self._taken, finish=self._finish
        )

    def _step(self) -> str:
        """One word's text, or the text held back when the answer ends here."""
        if self._cancelled.is_set():
            self._finish = "cancelled"
        elif not self._words:
            self._finish = "stop"
        elif self._taken == self._request.max_tokens:
            self._finish = "length"
        else:
            self._taken += 1
            text = self._text.feed(self._words.popleft().encode())
            if self._text.stopped:
                self._finish = "stop"
            return text
        return self._text.end()

    def poll(self, timeout_s: float) -> Chunk | Queued | Usage | None:
        return next(self)

    def cancel(self) -> None:
        self._cancelled.set()


class ScriptedEmbedding:
    """Vectors by :func:`scripted_vector`, a text at a time, when they are read."""

    def __init__(self, model: ScriptedModel, request: EmbedRequest) -> None:
        self._model = model
        self._texts = deque(enumerate(request.texts))
        self._tokens = sum(len(_WORD.findall(text)) for text in request.texts)
        self._cancelled = threading.Event()
        self._ended = False

    def __iter__(self) -> Iterator[Vector | Usage]:
        return self

    def __next__(self) -> Vector | Usage:
        if self._ended:
            raise StopIteration
        if self._model.state.phase == "closed":
            self._ended = True
            raise ModelClosed(f"model {self._model.name} was closed during this request; load it again")
        if self._texts and not self._cancelled.is_set():
            index, text = self._texts.popleft()
            return Vector(index, scripted_vector(text))
        self._ended = True
        return Usage(prompt_tokens=self._tokens, finish="cancelled" if self._texts else "stop")

    def poll(self, timeout_s: float) -> Vector | Queued | Usage | None:
        return next(self)

    def cancel(self) -> None:
        self._cancelled.set()


def scripted_vector(text: str) -> list[float]:
    """``DIMENSIONS`` numbers of length 1 that depend on the text alone."""
    values = [byte - 127.5 for byte in hashlib.sha256(text.encode()).digest()[:DIMENSIONS]]
    length = math.hypot(*values)
    return [value / length for value in values]


class ScriptedModel:
    """Answers each request with the next of ``answers``; an exception among them is raised instead.

    ``asked`` holds the requests in their order, ``embedded`` those for vectors. A request beyond the last answer is a
    DefinitionError; for vectors there is always one.
    """

    def __init__(
        self, answers: Iterable[str | Exception] = (), *, name: str = "scripted", ctx: int = 4096
    ) -> None:
        self.name = name
        self.asked: list[GenerateRequest] = []
        self.embedded: list[EmbedRequest] = []
        self._answers = deque(answers)
        self._ctx = ctx
        self._state = ModelState("new")
        self._lock = threading.Lock()

    @property
    def ready(self) -> bool:
        return self._state.phase == "ready"

    @property
    def state(self) -> ModelState:
        return self._state

    def add(self, *answers: str | Exception) -> None:
        """Put answers at the end of the queue."""
        with self._lock:
            self._answers.extend(answers)

    def start(self) -> None:
        with self._lock:
            if self._state.phase == "new":
                self._state = ModelState("ready", 1.0)

    def load(self, timeout_s: float | None = None) -> ModelInfo:
        self.start()
        if not self.ready:
            raise ModelClosed(f"model {self.name} is closed; make another one")
        return ModelInfo(name=self.name, ctx=self._ctx, description="scripted answers", dimensions=DIMENSIONS)

    def generate(self, request: GenerateRequest) -> ScriptedGeneration:
        self.start()
        with self._lock:
            self.asked.append(request)
            answer: str | Exception
            if self._answers:
                answer = self._answers.popleft()
            else:
                answer = DefinitionError(
                    f"model {self.name}: request {len(self.asked)} has no answer in the script; add one"
                )
        return ScriptedGeneration(self, request, answer)

    def embedding(self, request: EmbedRequest) -> ScriptedEmbedding:
        self.start()
        with self._lock:
            self.embedded.append(request)
        return ScriptedEmbedding(self, request)

    def embed(self, texts: Sequence[str]) -> EmbedResult:
        return gather(self.embedding(EmbedRequest(texts=texts)), self.name)

    def close(self) -> None:
        with self._lock:
            self._state = ModelState("closed")
