"""Views of real folders: what a batch sees, what appears later, and what it gives back."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rigbus.plans import StageError, harvest_view, make_view, refresh_view, stage_plan
from rigbus.plans.view import SHARED_FOLDERS

BATCH = "20260101_000000_abcdef"


@pytest.fixture
def original(tmp_path: Path) -> Path:
    folder = tmp_path / "share" / "plans" / "census"
    (folder / "scripts").mkdir(parents=True)
    (folder / "plan.md").write_text("# Plan: census\n")
    (folder / "scripts" / "run.py").write_text("print(__file__)\n")
    (folder / "words.txt").write_text("hello\n")
    (folder / "model.bin").write_bytes(b"\0")
    (folder / "input").mkdir()
    return folder


@pytest.fixture
def staged(tmp_path: Path, original: Path) -> Path:
    return stage_plan(original, tmp_path / "state" / "staged").path


@pytest.fixture
def view(tmp_path: Path, original: Path, staged: Path) -> Path:
    return make_view(staged, original, tmp_path / "state" / "views" / BATCH)


def test_copies_of_what_runs_and_links_to_the_rest(view, original):
    links = {one.name for one in view.iterdir() if one.is_symlink()}
    assert links == {"model.bin", *SHARED_FOLDERS}
    assert {one.name for one in view.iterdir()} - links == {"plan.md", "scripts", "words.txt"}
    assert all((view / name).resolve() == original / name for name in links)
    assert all((original / name).is_dir() for name in SHARED_FOLDERS)


def test_a_script_finds_itself_in_the_view(view):
    done = subprocess.run(
        [sys.executable, view / "scripts" / "run.py"], capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).resolve().is_relative_to(view.resolve())
    (view / "scripts" / "cache").mkdir()
    assert stat.S_IMODE((view / "scripts" / "run.py").stat().st_mode) & stat.S_IWUSR


def test_an_edit_in_the_share_does_not_change_a_running_batch(view, original, staged):
    (original / "scripts" / "run.py").write_text("raise SystemExit(1)\n")
    make_view(staged, original, view)
    assert (view / "scripts" / "run.py").read_text() == "print(__file__)\n"


def test_what_appears_later_is_linked_and_what_goes_is_unlinked(view, original):
    (original / "extra").mkdir()
    (original / "model.bin").unlink()
    (original / ".rigbus-x.part").write_text("")
    assert sorted(refresh_view(view, original)) == ["extra", "model.bin"]
    assert (view / "extra").resolve() == original / "extra"
    assert not os.path.lexists(view / "model.bin")
    assert refresh_view(view, original) == []


def test_a_missing_share_drops_no_link_and_is_said(view, original):
    original.rename(original.with_name("away"))
    for act in (lambda: refresh_view(view, original), lambda: harvest_view(view, original, view)):
        with pytest.raises(StageError, match="the plan's folder is not there"):
            act()
    assert (view / "model.bin").is_symlink()


def test_a_new_entry_moves_to_the_share_and_is_linked(view, original, staged):
    (view / "found").mkdir()
    (view / "found" / "x").write_text("1")
    (view / "log.txt").write_text("2")
    (view / "__pycache__").mkdir()
    notes = harvest_view(staged, original, view)
    assert [note.split(" ")[0] for note in notes] == ["found", "log.txt"]
    assert (original / "found" / "x").read_text() == "1"
    assert (original / "log.txt").read_text() == "2"
    assert (view / "found").is_symlink()
    assert (view / "log.txt").read_text() == "2"
    assert not (view / "__pycache__").is_symlink()
    assert harvest_view(staged, original, view) == []
    assert refresh_view(view, original) == []


def test_a_name_that_the_share_has_is_never_overwritten(view, original, staged):
    for name in ("file", "tree"):
        (original / name).mkdir() if name == "tree" else (original / name).write_text("theirs")
    (original / "tree" / "x").write_text("theirs")
    (view / "file").write_text("ours")
    (view / "tree").mkdir()
    (view / "tree" / "x").write_text("ours")
    harvest_view(staged, original, view)
    assert ((original / "file").read_text(), (original / f"file.{BATCH}").read_text()) == ("theirs", "ours")
    assert (original / "tree" / "x").read_text() == "theirs"
    assert (original / f"tree.{BATCH}" / "x").read_text() == "ours"
    assert ((view / "file").read_text(), (view / "tree" / "x").read_text()) == ("ours", "ours")


def test_a_move_that_was_cut_off_is_finished(view, original, staged):
    (view / "found").mkdir()
    (view / "found" / "x").write_text("1")
    (original / "found").mkdir()
    (original / "found" / "x").write_text("1")
    (original / f".rigbus-{BATCH}-found.part").mkdir()
    harvest_view(staged, original, view)
    assert (view / "found").is_symlink()
    assert [one.name for one in original.iterdir() if one.name.startswith("found")] == ["found"]


@pytest.fixture
def other_device(tmp_path: Path) -> Iterator[Path]:
    if not os.access("/dev/shm", os.W_OK) or os.stat("/dev/shm").st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system to write to")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_a_share_on_another_file_system_gets_copies(tmp_path, other_device):
    original = other_device / "census"
    original.mkdir()
    (original / "plan.md").write_text("# Plan: census\n")
    staged = stage_plan(original, tmp_path / "staged").path
    view = make_view(staged, original, tmp_path / "views" / BATCH)
    (view / "found").mkdir()
    (view / "found" / "x").write_text("1")
    (view / "log.txt").write_text("2")
    assert len(harvest_view(staged, original, view)) == 2
    assert (original / "found" / "x").read_text() == "1"
    assert (view / "log.txt").resolve() == original / "log.txt"
    assert not [one for one in [*original.iterdir(), *view.iterdir()] if one.name.startswith(".rigbus-")]


def test_a_changed_copy_and_a_fifo_are_noted(view, original, staged):
    (view / "words.txt").write_text("changed\n")
    os.mkfifo(view / "pipe")
    notes = harvest_view(staged, original, view)
    assert [note.split(" ")[0] for note in notes] == ["pipe", "words.txt"]
    assert (original / "words.txt").read_text() == "hello\n"


def test_a_view_is_made_once_by_however_many(tmp_path, original, staged):
    view = tmp_path / "views" / BATCH
    code = (
        "import sys; from pathlib import Path; from rigbus.plans.view import make_view; "
        "sys.stdin.readline(); make_view(*map(Path, sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, str(staged), str(original), str(view)]
    makers = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(3)]
    for maker in makers:
        maker.communicate(b"\n", timeout=30)
    assert [maker.returncode for maker in makers] == [0, 0, 0]
    assert [one.name for one in view.parent.iterdir()] == [BATCH]
    assert {one.name for one in view.iterdir()} >= {"plan.md", "scripts", "model.bin", "results"}


def test_a_single_file_plan_gets_its_folders_too(tmp_path):
    folder = tmp_path / "plans" / "quick"
    folder.mkdir(parents=True)
    (folder / "plan.md").write_text("# Plan: quick\n")
    staged = stage_plan(folder / "plan.md", tmp_path / "staged").path
    view = make_view(staged, folder, tmp_path / "views" / BATCH)
    assert {one.name for one in view.iterdir()} == {"plan.md", *SHARED_FOLDERS}
