"""What a worker's child does on the share for a plan's view. Its caller kills it when the share hangs."""

from __future__ import annotations

import os
from pathlib import Path

from ...plans.view import harvest_view, make_view


def prepare(staged: str, original: str, view: str) -> list[str]:
    """Make the view, or link what is new; the names that are copies of the staged plan.

    Raises:
        StageError: the share is away, or a disk refuses.
    """
    make_view(Path(staged), Path(original), Path(view))
    return sorted(os.listdir(staged))


def harvest(staged: str, original: str, view: str) -> list[str]:
    """Bring what an attempt made at the top of its view to the share; notes for the task's log.

    Raises:
        StageError: the share is away, or a disk refuses.
    """
    return harvest_view(Path(staged), Path(original), Path(view))
