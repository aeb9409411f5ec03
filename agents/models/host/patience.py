"""How long a model's child may say nothing before it counts as hung."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

BACKOFF_S: Final = 0.5
PROBE_BYTES_PER_S: Final = 50e6  #: of a slow disk


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long the host waits, in seconds.

    ``silent_s``: without a word while a text is made, then the child counts as hung; ``load_silent_s``: the same
    while it loads, of which it speaks at each 2 % and every few seconds; ``cancel_s``: for a cancel to be obeyed, then
    the child is ended instead. For its first token of all a loaded child has ``silent_s``, and what its file takes to be read at
    ``PROBE_BYTES_PER_S``: where that is mapped, this token reads it.
    """

    silent_s: float = 120.0
    load_silent_s: float = 120.0
    cancel_s: float = 5.0
    backoff_s: float = BACKOFF_S

    def probe_s(self, size_bytes: int) -> float:
        """How long the first token of a file of this size may take."""
        return self.silent_s + size_bytes / PROBE_BYTES_PER_S
