"""A GGUF file behind the ``Model`` protocol: llama.cpp in a child process that a crash or ``close`` ends."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path

from ....bus.errors import DefinitionError
from ..protocol import (
    MAX_PROMPT_CHARS,
    PARALLEL,
    QUEUE,
    EmbedRequest,
    EmbedResult,
    GenerateRequest,
    LoadOptions,
    ModelInfo,
    ModelState,
    gather,
)
from .generation import HostedEmbedding, HostedGeneration
from .keeper import Keeper
from .patience import Patience

__all__ = ["ModelHost", "Patience"]


class ModelHost:
    """One model in one child process. See ``protocol.Model`` for the methods.

    ``log_path``: where llama.cpp's own lines go (None: only the last of them are kept, for messages). ``name``
    defaults to the file's name without ``.gguf``.
    """

    def __init__(
        self,
        path: Path,
        *,
        name: str = "",
        ctx: int = 0,
        gpu_layers: int = -1,
        threads: int = 0,
        parallel: int = PARALLEL,
        tensor_split: Sequence[float] = (),
        queue: int = QUEUE,
        log_path: Path | None = None,
        patience: Patience | None = None,
    ) -> None:
        self.path = path.expanduser().absolute()
        self.name = name or self.path.stem
        self._keeper = Keeper(
            LoadOptions(
                path=str(self.path),
                name=self.name,
                ctx=ctx,
                gpu_layers=gpu_layers,
                threads=threads,
                parallel=parallel,
                tensor_split=list(tensor_split),
                queue=queue,
            ),
            log_path,
            patience or Patience(),
        )
        self._numbers = count(1)

    @property
    def ready(self) -> bool:
        return self._keeper.state.phase == "ready"

    @property
    def state(self) -> ModelState:
        return self._keeper.state

    @property
    def pid(self) -> int | None:
        """The child's, None while there is none."""
        return self._keeper.pid

    @property
    def on_card(self) -> bool:
        """It may compute on a card; False until it is loaded."""
        return self._keeper.on_card

    def start(self) -> None:
        self._keeper.begin(by_hand=True)

    def load(self, timeout_s: float | None = None) -> ModelInfo:
        self.start()
        return self._keeper.wait_loaded(timeout_s)

    def generate(self, request: GenerateRequest) -> HostedGeneration:
        size = len(request.prompt or "") + sum(len(m["content"]) for m in request.messages or ())
        if size > MAX_PROMPT_CHARS:
            raise DefinitionError(f"generate: the prompt has {size} characters; at most {MAX_PROMPT_CHARS}")
        generation = HostedGeneration(next(self._numbers), request, self._keeper.cancel)
        self._keeper.begin()
        self._keeper.ask(generation)
        return generation

    def embedding(self, request: EmbedRequest) -> HostedEmbedding:
        embedding = HostedEmbedding(next(self._numbers), request, self._keeper.cancel)
        self._keeper.begin()
        self._keeper.ask(embedding)
        return embedding

    def embed(self, texts: Sequence[str]) -> EmbedResult:
        return gather(self.embedding(EmbedRequest(texts=texts)), self.name)

    def close(self) -> None:
        self._keeper.end()
