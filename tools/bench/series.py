"""All benches in turn, and the page of their figures on disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from . import bus, dag, mirror, scale, shell
from .figures import Outcome
from .page import learned_in, page


def run(repeats: int, say: Callable[[str], None]) -> tuple[list[Outcome], float]:
    """Every bench with its own sizes: (outcomes, seconds it took)."""
    benches: list[tuple[str, Callable[[], Outcome]]] = [
        ("bus", lambda: bus.measure(bus.Options(repeats=repeats), say)),
        ("dag", lambda: dag.measure(dag.Options(repeats=repeats), say)),
        ("shell", lambda: shell.measure(shell.Options(repeats=repeats), say)),
        ("scale", lambda: scale.measure(scale.Options(repeats=repeats), say)),
        ("mirror", lambda: mirror.measure(mirror.Options(repeats=repeats), say)),
    ]
    began = time.monotonic()
    outcomes = []
    for name, measure in benches:
        say(f"-- {name}")
        outcomes.append(measure())
    return outcomes, round(time.monotonic() - began, 1)


def write_page(file: Path, outcomes: list[Outcome], took_s: float) -> None:
    """Write the page, whole or not at all; what people wrote in an earlier one is kept."""
    try:
        old = file.read_text("utf-8")
    except FileNotFoundError:
        old = ""
    text = page(outcomes, date=time.strftime("%Y-%m-%d"), took_s=took_s, learned=learned_in(old))
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, "utf-8")
    os.replace(part, file)
