"""``rigbus bench recovery``: what each fault costs, done to real processes."""

from __future__ import annotations

from typing import Final

PARTS: Final = ("workers", "broker", "output", "share", "subscriber", "folder")
