"""Parts for tests of models: the tiny GGUF, and short words for asking and reading."""

from __future__ import annotations

import os
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers import ROOT

from rigbus.agents.models.host import ModelHost
from rigbus.agents.models.protocol import (
    Chunk,
    GenerateRequest,
    GenerateResult,
    Generation,
    Model,
    Usage,
    collect,
)

Make = Callable[..., ModelHost]

write_tiny_gguf: Callable[..., Path] = runpy.run_path(str(ROOT / "tests/agents/tiny_gguf.py"))[
    "write_tiny_gguf"
]


def ask(model: Model, prompt: str = "hello", **options: Any) -> GenerateResult:
    """A text, read to its end."""
    return collect(model.generate(GenerateRequest(prompt=prompt, **options)), model.name)


def first_text(generation: Generation) -> str:
    """The first piece of a text: from then on it runs."""
    item = next(generation)
    assert isinstance(item, Chunk)
    return item.text


def usage_of(generation: Generation) -> Usage:
    """How a text ended, without the text."""
    *_, last = generation
    assert isinstance(last, Usage)
    return last


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
