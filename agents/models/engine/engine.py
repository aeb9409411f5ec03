"""Several requests on one model at once: each step computes a token for everybody who takes part. Child process only.

Requests join and leave between any two steps; `batching` decides who, `sampling` which token, `llama` computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import monotonic, thread_time
from typing import Final

from ....bus.errors import DefinitionError
from ..protocol import (
    Begun,
    Chunk,
    Declined,
    EmbedRequest,
    Finish,
    GenerateRequest,
    LoadOptions,
    ModelInfo,
    Usage,
    Vector,
)
from .batching import ALONE_S, FIRST_ROWS, MIN_ROWS, Batcher, Row
from .context import EngineBroken
from .embedding import Embedder
from .llama import Llama
from .sampling import Sampler
from .text import TextStream

__all__ = ["Engine", "EngineBroken"]

PACE_SHARE: Final = 0.5  #: of the newest measure in the pace at which prompts are read
#: What a grammar may cost of everybody's time, in seconds of this thread: at one token; in all, and then no more than
#: ``GRAMMAR_SHARE`` times what its request's steps took.
GRAMMAR_TOKEN_S: Final = 1.0
GRAMMAR_FREE_S: Final = 2.0
GRAMMAR_SHARE: Final = 10.0

Item = Begun | Chunk | Vector | Declined | Usage


@dataclass(slots=True)
class Request:
    """One request in the engine. Times are monotonic seconds; 0 for what has not happened."""

    asked: GenerateRequest
    prompt_tokens: int
    sampler: Sampler
    text: TextStream
    asked_at: float
    begun_at: float = 0.0
    read_at: float = 0.0
    taken: int = 0
    known: int = 0
    cancelled: bool = False
    steps_s: float = 0.0
    sampling_s: float = 0.0


class Engine:
    """A loaded model and its requests. One thread.

    ``on_share`` is called while it loads with 0 to 1, ``on_probe`` when it is loaded and its first token is tried.

    Raises:
        DefinitionError: llama.cpp cannot load the file or has no memory for the context; the message has its words.
        EngineBroken: it loads, but cannot generate.
    """

    def __init__(
        self,
        options: LoadOptions,
        on_share: Callable[[float], None] = lambda share: None,
        on_probe: Callable[[], None] = lambda: None,
    ) -> None:
        begun_at = monotonic()
        self._llama = Llama(options, on_share)
        self._sequences = min(options.parallel, self._llama.main.batch)
        self._requests: dict[int, Request] = {}
        self._embedder: Embedder | None = None  # made by the first that asks for vectors
        main = self._llama.main
        self._batcher = Batcher(self._sequences, main.ctx, main.batch, reuse=self._llama.cuts)
        self._rows_per_s = FIRST_ROWS / ALONE_S
        self._load_s = 0.0
        on_probe()
        self._probe()
        self._batcher.forget()
        self._llama.forgive()
        self._load_s = monotonic() - begun_at

    def info(self) -> ModelInfo:
        return self._llama.info(self._load_s, self._sequences)

    def _probe(self) -> None:
        """A model that is loaded is not yet one that works: out of memory and bad kernels show at the first step."""
        self.ask(0, GenerateRequest(prompt="Hi", max_tokens=1, temperature=0.0))
        while self.busy:
            for _ in self.step():
                pass

    # ------------------------------------------------------------ requests

    @property
    def busy(self) -> bool:
        """Is there anything to do?"""
        return bool(self._requests) or (self._embedder is not None and self._embedder.busy)

    @property
    def waiting(self) -> tuple[list[int], list[int]]:
        """Who has not begun, in order: of those that generate, and of those that embed."""
        return self._batcher.waiting, self._embedder.waiting if self._embedder is not None else []

    def ask(self, number: int, request: GenerateRequest) -> None:
        """Take a request; its items come out of :meth:`step`.

        Raises:
            DefinitionError: the prompt is empty or longer than the context, the chat template refuses it, or llama.cpp
                has no grammar for its JSON schema.
        """
        messages = None if request.messages is None else [dict(m) for m in request.messages]
        tokens = self._llama.prompt(request.prompt, messages)
        sampler = Sampler(self._llama, request)
        try:
            # A seed asks for the same text again: its prompt is always computed in the same way.
            self._batcher.ask(number, tokens, request.max_tokens, reuse=request.seed is None)
        except BaseException:
            sampler.close()
            raise
        self._requests[number] = Request(request, len(tokens), sampler, TextStream(request.stop), monotonic())

    def embed(self, number: int, request: EmbedRequest) -> None:
        """Take a request for vectors; its items come out of :meth:`step`, too.

        Raises:
            DefinitionError: the model makes no vectors, there is no memory for a second context, or a text is too long.
        """
        if self._embedder is None:
            self._embedder = Embedder(self._llama, self._sequences)
        self._embedder.ask(number, request)

    def cancel(self, number: int) -> None:
        """End a request before the next step. Unknown numbers are ignored."""
        request = self._requests.get(number)
        if request is not None:
            request.cancelled = True
        elif self._embedder is not None:
            self._embedder.cancel(number)

    # ------------------------------------------------------------ steps

    def step(self) -> Iterator[tuple[int, Item]]:
        """Compute one step; what it brings, by request. A chunk may be empty while a character or stop string is open.

        Where texts and vectors are asked for, each has its step in turn.

        Raises:
            EngineBroken: llama.cpp failed; this engine is not to be used any more.
        """
        yield from self._generate()
        if self._embedder is not None and self._embedder.busy:
            yield from self._embedder.step(company=bool(self._requests), load_s=self._load_s)

    def _generate(self) -> Iterator[tuple[int, Item]]:
        for number in [n for n, request in self._requests.items() if request.cancelled]:
            yield from self._end(number, "cancelled")
        step = self._batcher.step()
        now = monotonic()
        for number in step.begun:
            request = self._requests[number]
            request.begun_at, request.known = now, self._batcher.known(number)
            yield number, Begun()
        if not step.rows:
            return
        self._llama.main.remember(step.memory)
        self._llama.main.decode(step.rows)
        took_s = monotonic() - now
        if len(step.rows) >= MIN_ROWS:
            self._rows_per_s += PACE_SHARE * (len(step.rows) / took_s - self._rows_per_s)
            self._batcher.pace(self._rows_per_s)
        self._check_numbers(step.rows)
        for at, row in enumerate(step.rows):
            if row.logits:
                yield from self._token(at, row, took_s)

    def _check_numbers(self, rows: Sequence[Row]) -> None:
        """No token is chosen in a step of which a row is no number: all sequences share the memory.

        Raises:
            EngineBroken: with whom it may be. What is no number in one sequence spreads to others through llama.cpp's
                kernels, and a prompt that is still read shows no logits: one alone is named only where all others are well.
        """
        well = {
            row.number: self._requests[row.number].sampler.is_number(at)
            for at, row in enumerate(rows)
            if row.logits
        }
        if all(well.values()):
            return
        raise EngineBroken(
            "its logits are no numbers (NaN): the file is damaged, or the device computes wrongly",
            {number for number in self._batcher.running if not well.get(number, False)},
        )

    def _token(self, at: int, row: Row, step_s: float) -> Iterator[tuple[int, Item]]:
        request = self._requests[row.number]
        request.steps_s += step_s
        try:
            token = self._sample(request, at)
        except DefinitionError as e:  # the fault of this request alone: the others go on
            self._drop(row.number)
            yield row.number, Declined(str(e))
            return
        request.read_at = request.read_at or monotonic()
        if self._llama.ends(token):
            yield from self._end(row.number, "stop")
            return
        request.taken += 1
        yield row.number, Chunk(request.text.feed(self._llama.token_bytes(token)))
        room = self._batcher.took(row.number, token)
        if request.text.stopped:
            yield from self._end(row.number, "stop")
        elif request.taken == request.asked.max_tokens or not room:
            yield from self._end(row.number, "length")

    def _sample(self, request: Request, at: int) -> int:
        """The request's next token.

        Raises:
            DefinitionError: its grammar allows none, or takes so long that it starves the others.
        """
        # Of this thread: what other programs take of the machine is no fault of the grammar.
        since = thread_time()
        token = request.sampler.next(at)
        took_s = thread_time() - since
        request.sampling_s += took_s
        if request.asked.json_schema is None:
            return token
        allowed_s = max(GRAMMAR_FREE_S, GRAMMAR_SHARE * request.steps_s)
        if took_s > GRAMMAR_TOKEN_S or request.sampling_s > allowed_s:
            raise DefinitionError(
                f"json_schema: its grammar took {took_s:.2g} s for one token, {request.sampling_s:.2g} s in all, while the "
                f"model took {request.steps_s:.2g} s; simplify its patterns, repetitions and nesting"
            )
        return token

    def _drop(self, number: int) -> Request:
        """It takes part no more."""
        request = self._requests.pop(number)
        self._batcher.end(number)
        request.sampler.close()
        return request

    def _end(self, number: int, finish: Finish) -> Iterator[tuple[int, Item]]:
        request = self._drop(number)
        now = monotonic()
        begun_at = request.begun_at or now
        read_at = request.read_at or now
        yield number, Chunk(request.text.end())
        yield (
            number,
            Usage(
                prompt_tokens=request.prompt_tokens,
                completion_tokens=request.taken,
                cached_tokens=request.known,
                queued_s=begun_at - request.asked_at,
                prefill_s=read_at - begun_at,
                decode_s=now - read_at,
                load_s=self._load_s,
                finish=finish,
            ),
        )
