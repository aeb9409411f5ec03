"""Models for these tests: a tiny one, hosts that are closed at the end, and faults inside a host's child."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from modelparts import Make, alive, write_tiny_gguf

from rigbus.agents.models.host import ModelHost, Patience


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends by itself."""
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")


@pytest.fixture
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Hosts that are closed at the end; no child outlives them."""
    made: list[ModelHost] = []

    def host(path: Path | None = None, **options: object) -> ModelHost:
        options.setdefault("log_path", tmp_path / "model.log")
        options.setdefault("patience", Patience(backoff_s=0.05))
        made.append(ModelHost(path or request.getfixturevalue("tiny"), **options))  # type: ignore[arg-type]
        return made[-1]

    yield host
    for each in made:
        pid = each.pid
        each.close()
        assert pid is None or not alive(pid)


@pytest.fixture
def haunt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Code that each child started from now on runs first: what a real fault of llama.cpp would do, at a known place."""

    def children_begin_with(code: str) -> None:
        folder = tmp_path / "haunted"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(textwrap.dedent(code))
        path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH", "")]))
        monkeypatch.setenv("PYTHONPATH", path)

    return children_begin_with
