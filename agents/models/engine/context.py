"""Steps through a model: one llama.cpp context, the memory of its sequences, and why it failed. Child process only."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

from .batching import Copy, Cut, Row


class EngineBroken(RuntimeError):
    """llama.cpp refused a step that it should take: this process is not to be trusted any more.

    ``by``: the requests of which one has led to it; empty where it may be any.
    """

    def __init__(self, message: str, by: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.by = frozenset(by)


class Errors(deque[str]):
    """The last errors of llama.cpp's log."""

    def __init__(self) -> None:
        super().__init__(maxlen=4)

    def why(self) -> str:
        """The first of them: what follows it is llama.cpp saying on each level that it failed."""
        return self[0] if self else "llama.cpp gave no reason; its log may"


class Context:
    """``ctx``: its cells; ``batch``: the most rows of a step. Both as llama.cpp made them, which rounds what it is asked for."""

    def __init__(self, api: Any, pointer: Any, errors: Errors) -> None:
        self.pointer = pointer
        self.ctx = int(api.llama_n_ctx(pointer))
        self.batch = min(int(api.llama_n_batch(pointer)), self.ctx)
        self._api, self._errors = api, errors
        self._memory = api.llama_get_memory(pointer)
        self._rows = api.llama_batch_init(self.batch, 0, 1)

    def remember(self, changes: Sequence[Cut | Copy]) -> None:
        """Change what the sequences hold.

        Raises:
            EngineBroken: llama.cpp cannot.
        """
        api, memory = self._api, self._memory
        for change in changes:
            match change:
                case Cut(seq, start):
                    if not api.llama_memory_seq_rm(memory, seq, start, -1):
                        raise EngineBroken(f"its memory of sequence {seq} cannot be cut at {start}")
                case Copy(seq, to, count):
                    api.llama_memory_seq_cp(memory, seq, to, 0, count)

    def decode(self, rows: Sequence[Row]) -> None:
        """One step.

        Raises:
            EngineBroken: llama.cpp failed.
        """
        batch = self._rows
        token, pos, n_seq_id, seq_id, logits = (
            batch.token,
            batch.pos,
            batch.n_seq_id,
            batch.seq_id,
            batch.logits,
        )
        for i, row in enumerate(rows):
            token[i] = row.token
            pos[i] = row.position
            n_seq_id[i] = 1
            seq_id[i][0] = row.seq
            logits[i] = row.logits
        batch.n_tokens = len(rows)
        self._errors.clear()  # it survived them
        code = self._api.llama_decode(self.pointer, batch)
        if code != 0:
            raise EngineBroken(
                f"llama_decode gave {code} for {len(rows)} tokens: {self._errors.why()}",
                {row.number for row in rows},
            )
        self._api.llama_synchronize(
            self.pointer
        )  # a device may still compute: what a step took is known only now
