"""Several requests on one model at once: each step computes a token for everybody who takes part. Child process only.

Requests join and leave between any two steps; `batching` decides who, `sampling` which token, `llama` computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from time import monotonic
from typing import Final

from .batching import ALONE_S, FIRST_ROWS, MIN_ROWS, Batcher, Row
from .llama import EngineBroken, Llama
from .protocol import Begun, Chunk, Finish, GenerateRequest, LoadOptions, ModelInfo, Usage
from .sampling import Sampler
from .text import TextStream

__all__ = ["Engine", "EngineBroken"]

PACE_SHARE: Final = 0.5  #: of the newest measure in the pace at which prompts are read


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


class Engine:
    """A loaded model and its requests. One thread.

    ``on_share`` is called while it loads with 0 to 1.

    Raises:
        DefinitionError: llama.cpp cannot load the file or has no memory for the context; the message has its words.
        EngineBroken: it loads, but cannot generate.
    """

    def __init__(self, options: LoadOptions, on_share: Callable[[float], None] = lambda share: None) -> None:
        begun_at = monotonic()
        self._llama = Llama(options, on_share)
        self._sequences = min(options.parallel, self._llama.batch)
        self._requests: dict[int, Request] = {}
        self._batcher = self._new_batcher()
        self._rows_per_s = FIRST_ROWS / ALONE_S
        self._load_s = 0.0
        self._probe()
        self._batcher.forget()
        self._llama.forgive()
        self._load_s = monotonic() - begun_at

    def info(self) -> ModelInfo:
        return self._llama.info(self._load_s, self._sequences)

    def _new_batcher(self) -> Batcher:
        llama = self._llama
        return Batcher(self._sequences, llama.ctx, llama.batch, reuse=llama.cuts)

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
        return bool(self._requests)

    def ask(self, number: int, request: GenerateRequest) -> None:
        """Take a request; its items come out of :meth:`step`.

        Raises:
            DefinitionError: the prompt is empty or longer than the context, the chat template refuses it, or llama.cpp
                has no grammar for its JSON schema.
        """
        messages = None if request.messages is None else [dict(m) for m in request.messages]
        tokens = self._llama.prompt(request.prompt, messages)
        sampler = Sampler(self._llama, request)
        self._requests[number] = Request(request, len(tokens), sampler, TextStream(request.stop), monotonic())
        # A seed asks for the same text again: its prompt is always computed in the same way.
        self._batcher.ask(number, tokens, request.max_tokens, reuse=request.seed is None)

    def cancel(self, number: int) -> None:
        """End a request before the next step. Unknown numbers are ignored."""
        request = self._requests.get(number)
        if request is not None:
            request.cancelled = True

    # ------------------------------------------------------------ steps

    def step(self) -> Iterator[tuple[int, Begun | Chunk | Usage]]:
        """Compute one step; what it brings, by request. A chunk may be empty while a character or stop string is open.

        Raises:
            EngineBroken: llama.cpp failed; this engine is not to be used any more.
        """
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
        self._llama.remember(step.memory)
        self._llama.decode(step.rows)
        if len(step.rows) >= MIN_ROWS:
            self._rows_per_s += PACE_SHARE * (len(step.rows) / (monotonic() - now) - self._rows_per_s)
            self._batcher.pace(self._rows_per_s)
        for at, row in enumerate(step.rows):
            if row.logits:
                yield from self._token(at, row)

    def _token(self, at: int, row: Row) -> Iterator[tuple[int, Chunk | Usage]]:
        request = self._requests[row.number]
        token = request.sampler.next(at)
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

    def _end(self, number: int, finish: Finish) -> Iterator[tuple[int, Chunk | Usage]]:
        request = self._requests.pop(number)
        self._batcher.end(number)
        request.sampler.close()
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
