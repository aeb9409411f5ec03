"""What `rigbus up` says of its models before it is ready, without a rig."""

from __future__ import annotations

import importlib
import runpy
from pathlib import Path
from typing import Any

from helpers import ROOT

from rigbus.bus.config.settings import load

up = importlib.import_module("rigbus.tools.up")  # the package's name for it may be the command
g: dict[str, Any] = runpy.run_path(str(ROOT / "tests/agents/models/gguf_files.py"))


def lines(tmp_path: Path, toml: str = "", **settings: object) -> list[str]:
    (tmp_path / "rigbus.toml").write_text(toml)
    plain = load(config=tmp_path / "rigbus.toml").settings.model_dump(mode="json")
    found: list[str] = up._model_lines({**plain, **settings}, tmp_path)
    return found


def test_a_model_that_is_no_model_is_said_with_the_reason_and_the_fix(tmp_path: Path) -> None:
    notes = tmp_path / "notes.gguf"
    notes.write_text("hello, I am no model")
    (line,) = lines(tmp_path, model=str(notes))
    assert line.startswith("warning: model")
    assert "no GGUF" in line


def test_a_model_that_is_cut_short_is_said(tmp_path: Path) -> None:
    cut = g["write_llama"](tmp_path / "cut.gguf")
    cut.write_bytes(cut.read_bytes()[:-1000])
    (line,) = lines(tmp_path, '[models.small]\npath = "cut.gguf"\n')
    assert line.startswith(f"warning: model {cut}")
    assert "get the file again" in line


def test_of_a_good_model_and_of_none_nothing_is_said(tmp_path: Path) -> None:
    assert lines(tmp_path, model=str(g["write_llama"](tmp_path / "good.gguf"))) == []
    assert lines(tmp_path) == []
