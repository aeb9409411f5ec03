"""How much of its cards' memory a worker gives to tasks. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .readings import GpuReading

#: The share of a card's memory that is given away: contexts, fragments and a desktop want some as well.
VRAM_SHARE: Final = 0.8


def vram_budget_mb(cards: Sequence[GpuReading]) -> int | None:
    """MiB that a worker with these cards may give to tasks and a model together; None while no card tells its size.

    Of several cards the smallest counts: a program that is told nothing else takes the first one that it sees.
    """
    totals = [card.memory_total_mb for card in cards if card.memory_total_mb]
    return int(VRAM_SHARE * min(totals)) if totals else None
