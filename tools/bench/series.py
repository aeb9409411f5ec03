"""All benches in turn, and the page of their figures on disk."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from ...bus.errors import ConfigError
from . import bus, dag, mirror, scale, shell
from .figures import Outcome
from .page import learned_in, page, section_apart, sections_apart_in, with_section


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
    """Write the page, whole or not at all; of an earlier one what people wrote is kept, and what is measured by itself."""
    old = file.read_text("utf-8") if file.exists() else ""
    text = page(outcomes, date=_today(), took_s=took_s, learned=learned_in(old), apart=sections_apart_in(old))
    _replace(file, text)


def write_apart(file: Path, outcome: Outcome) -> None:
    """Put the figures of a bench that is measured by itself into the page that is there.

    Raises:
        ConfigError: there is none.
    """
    old = file.read_text("utf-8") if file.exists() else ""
    text = with_section(old, outcome.bench, section_apart(outcome, _today()))
    if not text:
        raise ConfigError(f"{file}: not a page of figures with a place for this one; `make bench` writes one")
    _replace(file, text)


def _today() -> str:
    return time.strftime("%Y-%m-%d")


def _replace(file: Path, text: str) -> None:
    part = file.with_name(f".{file.name}.part")
    part.write_text(text, "utf-8")
    os.replace(part, file)
