"""The files of the models are looked at again and again: what is repaired can be loaded, what is gone is not tried."""

from __future__ import annotations

import os
import runpy
import threading
from pathlib import Path

import pytest
from helpers import ROOT, wait_for

from rigbus.agents.brain.catalogue import FILES_LOOK_S, ModelFiles, Placeable
from rigbus.agents.models.catalogue.catalogue import Catalogue
from rigbus.bus.config.settings import Settings

GOOD = ROOT / "tests" / "agents"


def files(folder: Path, *names: str) -> ModelFiles:
    tables = {name: {"path": str(folder / f"{name}.gguf")} for name in names}
    settings = Settings(models=tables).model_dump(mode="json")
    return ModelFiles(Catalogue.from_settings(settings), None)


class Looking:
    """A clock that goes on, and what each look has found."""

    def __init__(self, of: ModelFiles) -> None:
        self.of = of
        self.now = 0.0

    def whole_look(self) -> Placeable | None:
        """Begin one and hear its end."""
        self.now += FILES_LOOK_S
        begun = self.now
        found = [self.of.look(begun)]

        def ended() -> bool:
            self.now += 0.001
            found.append(self.of.look(self.now))
            return self.of.looked_at >= begun

        wait_for(ended, what="the look to end")
        return next((one for one in found if one is not None), None)


@pytest.mark.llm
def test_a_model_that_is_repaired_is_known_without_a_new_start_and_one_that_goes_too(tmp_path: Path) -> None:
    write = runpy.run_path(str(GOOD / "tiny_gguf.py"))["write_tiny_gguf"]
    write(tmp_path / "well.gguf")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "corrupt.gguf").write_bytes(b"GGUF" + bytes(100))
    looking = Looking(files(tmp_path, "well", "folder", "corrupt", "missing"))
    bad = {e.name for e in looking.of.catalogue if e.problem}
    assert bad == {"folder", "corrupt", "missing"}
    assert looking.whole_look() is None, "nothing has changed"
    os.replace(write(tmp_path / "new.gguf"), tmp_path / "missing.gguf")
    os.replace(write(tmp_path / "new.gguf"), tmp_path / "corrupt.gguf")
    (tmp_path / "well.gguf").unlink()
    found = looking.whole_look()
    assert found is not None
    entries, default = found
    assert {name for name, e in entries.items() if e.problem} == {"folder", "well"}
    assert default in ("missing", "corrupt"), "one that can be loaded"
    assert entries["missing"].vram_mb > 0
    assert looking.whole_look() is None


def test_a_disk_that_hangs_holds_up_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = files(tmp_path, "m")
    go = threading.Event()
    monkeypatch.setattr(ModelFiles, "_read", lambda self: go.wait(10))
    assert of.look(0.0) is None
    assert of.look(100.0) is None and of.looked_at < 0, "the look of 0 has not ended"
    go.set()
    wait_for(lambda: of.look(101.0) is None and of.looked_at == 0.0, what="it to end")
