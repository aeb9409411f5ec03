"""The texts that a model's tasks leave in files."""

from __future__ import annotations

import os
from pathlib import Path
from time import monotonic

import pytest

from rigbus.agents.models.files import read_schema
from rigbus.agents.models.tasks.keeping import keep_text
from rigbus.bus.errors import DefinitionError, Unreachable


def test_a_text_is_written_whole_its_folders_are_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = tmp_path / "out" / "deep" / "a b'$(x).txt"
    keep_text(path, "grüße\n")
    keep_text(path, "again \udcff\n")
    assert path.read_bytes() == b"again ?\n"
    assert os.listdir(path.parent) == [path.name]
    assert path.stat().st_mode & 0o777 == 0o664


@pytest.mark.parametrize("name", ["relative.txt", "", "/a\0b"])
def test_what_is_no_absolute_path_is_refused(name: str) -> None:
    with pytest.raises(DefinitionError, match="absolute path"):
        keep_text(Path(name), "x")


def test_a_place_that_is_no_files_is_a_definition_error(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "folder", tmp_path / "file" / "x", tmp_path / ("n" * 300)):
        with pytest.raises(DefinitionError, match="give a path"):
            keep_text(path, "x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_a_share_that_hangs_costs_its_time_and_counts_as_infra(tmp_path: Path) -> None:
    begun = monotonic()  # no Python starts within 1 ms: as if the share had hung
    with pytest.raises(Unreachable, match=r"not written within 0\.001 s"):
        keep_text(tmp_path / "x.txt", "x", timeout_s=0.001)
    assert monotonic() - begun < 5


def test_the_schema_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('{"enum": [1]}')
    assert read_schema(tmp_path / "s.json") == {"enum": [1]}
    for content in (b"[1]", b"{", b"\xff", b"{" + b" " * 70_000 + b"}"):
        (tmp_path / "s.json").write_bytes(content)
        with pytest.raises(DefinitionError, match=r"s\.json"):
            read_schema(tmp_path / "s.json")
    with pytest.raises(DefinitionError, match=r"beside plan\.md"):
        read_schema(tmp_path / "none.json")
