"""A GGUF file behind the ``Model`` protocol: llama.cpp in a child process that a crash or ``close`` ends."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from typing import Final

from ...bus.errors import DefinitionError
from .generation import HostedGeneration
from .keeper import Keeper, Patience
from .protocol import PARALLEL, GenerateRequest, LoadOptions, ModelInfo, ModelState

__all__ = ["ModelHost", "Patience"]

MAX_PROMPT_CHARS: Final = 1 << 20


class ModelHost:
    """One model in one child process. See ``model.Model`` for the methods.

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

    def start(self) -> None:
        self._keeper.begin()

    def load(self, timeout_s: float | None = None) -> ModelInfo:
        self.start()
        return self._keeper.wait_loaded(timeout_s)

    def generate(self, request: GenerateRequest) -> HostedGeneration:
        size = len(request.prompt or "") + sum(len(m["content"]) for m in request.messages or ())
        if size > MAX_PROMPT_CHARS:
            raise DefinitionError(f"generate: the prompt has {size} characters; at most {MAX_PROMPT_CHARS}")
        generation = HostedGeneration(next(self._numbers), request, self._keeper.cancel)
        self.start()
        self._keeper.ask(generation)
        return generation

    def close(self) -> None:
        self._keeper.end()
