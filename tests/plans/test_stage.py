"""Staging real folders: what is copied, what is refused, and that it happens whole or not at all."""

from __future__ import annotations

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rigbus.plans import Staged, StageError, stage_plan


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    folder = tmp_path / "share" / "census"
    for name in ("scripts/sub", "lib", "input", "scripts/__pycache__"):
        (folder / name).mkdir(parents=True)
    (folder / "plan.md").write_text("# Plan: census\n")
    (folder / "scripts" / "run.sh").write_text("#!/bin/sh\n")
    (folder / "scripts" / "run.sh").chmod(0o755)
    (folder / "scripts" / "sub" / "deep.bin").write_bytes(b"\0\xff")
    (folder / "scripts" / "__pycache__" / "x.pyc").write_bytes(b"x")
    (folder / "lib" / "tool.py").write_text("x = 1\n")
    (folder / "input" / "data.csv").write_text("1,2\n")
    (folder / "words.txt").write_text("hello\n")
    (folder / "picture.png").write_bytes(b"\x89PNG\0")
    (folder / "READY").write_text("{}")
    (folder / ".hidden").write_text("x")
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "state" / "staged"


COPIED = ["lib/tool.py", "plan.md", "scripts/run.sh", "scripts/sub/deep.bin", "words.txt"]


def content(staged: Staged) -> dict[str, bytes]:
    return {name: (staged.path / name).read_bytes() for name in staged.files}


def test_the_parts_that_run_are_copied_and_read_only(plan, root):
    staged = stage_plan(plan, root)
    assert staged.files == COPIED
    assert staged.name == "census"
    assert staged.path == root / staged.sha256
    assert staged.bytes == sum(len(one) for one in content(staged).values())
    on_disk = sorted(str(path.relative_to(staged.path)) for path in staged.path.rglob("*") if path.is_file())
    assert on_disk == COPIED
    modes = {name: stat.S_IMODE((staged.path / name).stat().st_mode) for name in COPIED}
    assert modes.pop("scripts/run.sh") == 0o555
    assert set(modes.values()) == {0o444}
    assert all(stat.S_IMODE(one.stat().st_mode) == 0o555 for one in staged.path.rglob("*") if one.is_dir())


def test_the_same_content_is_the_same_folder(plan, root):
    first = stage_plan(plan, root)
    os.utime(plan / "plan.md", (1, 1))
    (plan / "input" / "more.csv").write_text("x")
    (plan / "READY").unlink()
    again = stage_plan(plan / "plan.md", root)
    assert again == first
    assert [one.name for one in root.iterdir()] == [first.sha256]
    assert stage_plan(first.path, root).sha256 == first.sha256


CHANGES: list[Callable[[Path], object]] = [
    lambda plan: (plan / "plan.md").write_text("# Plan: other\n"),
    lambda plan: (plan / "scripts" / "run.sh").chmod(0o644),
    lambda plan: (plan / "lib" / "tool.py").rename(plan / "lib" / "tool2.py"),
    lambda plan: (plan / "words.txt").unlink(),
    lambda plan: (plan / "new.txt").write_text(""),
    lambda plan: (plan / "lib" / "tool.py").write_text("x = 2\n"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_of_a_copied_part_changes_the_hash(plan, root, change):
    before = stage_plan(plan, root)
    old = content(before)
    change(plan)
    assert stage_plan(plan, root).sha256 != before.sha256
    assert content(before) == old


def test_a_single_file_is_a_plan(plan, root, tmp_path):
    single = tmp_path / "quick.md"
    single.write_text("# Plan: quick\n")
    staged = stage_plan(single, root)
    assert (staged.name, staged.files) == ("quick", ["plan.md"])


def test_links_inside_the_plan_are_followed(plan, root):
    (plan / "scripts" / "tool.py").symlink_to("../lib/tool.py")
    (plan / "scripts" / "library").symlink_to("../lib")
    (plan / "notes.txt").symlink_to("words.txt")
    (plan / "data").symlink_to("/usr")
    staged = stage_plan(plan, root)
    assert (staged.path / "scripts" / "tool.py").read_text() == "x = 1\n"
    assert not any(path.is_symlink() for path in staged.path.rglob("*"))
    assert {"scripts/library/tool.py", "scripts/tool.py", "notes.txt"} < set(staged.files)
    assert "data" not in staged.files


EVIL: list[tuple[Callable[[Path], object], str]] = [
    (lambda plan: (plan / "scripts" / "x").symlink_to("/etc/passwd"), "is a link that leaves the plan"),
    (
        lambda plan: (plan / "scripts" / "x").symlink_to("../../other/plan.md"),
        "is a link that leaves the plan",
    ),
    (lambda plan: (plan / "scripts" / "x").symlink_to("../lib/../../y"), "is a link that leaves the plan"),
    (lambda plan: (plan / "secret.txt").symlink_to("/etc/passwd"), "is a link that leaves the plan"),
    (lambda plan: (plan / "scripts" / "x").symlink_to(plan / "lib"), "is a link that leaves the plan"),
    (lambda plan: (plan / "lib" / "up").symlink_to("../scripts/down"), "cannot be read: No such file"),
    (lambda plan: (plan / "lib" / "self").symlink_to("self"), "links make a circle"),
    (lambda plan: (plan / "lib" / "again").symlink_to("../lib"), "links make a circle"),
    (lambda plan: (plan / "lib" / "all").symlink_to(".."), "is a link to the plan itself"),
    (lambda plan: os.mkfifo(plan / "scripts" / "pipe"), "is a FIFO, socket or device"),
    (lambda plan: os.mkfifo(plan / "pipe"), "is a FIFO, socket or device"),
    (lambda plan: ((plan / "plan.md").unlink(), os.mkfifo(plan / "plan.md")), "is a FIFO, socket or device"),
    (lambda plan: (plan / "scripts" / "a\nb").write_text(""), "holds the file name 'a\\nb'"),
    (lambda plan: open(os.fsencode(plan / "lib") + b"/\xff", "w").close(), "holds the file name '\\udcff'"),
    (lambda plan: (plan / "plan.md").unlink(), "has no plan.md"),
    (lambda plan: (plan / "plan.md").rename(plan / "Plan.md"), "rename 'Plan.md' to 'plan.md'"),
    (lambda plan: (plan / "plan.md").write_bytes(b"x" * (1 << 20) + b"x"), "the limit is 1048576"),
    (lambda plan: os.truncate(plan / "lib" / "tool.py", (64 << 20) + 1), "the limit is 67108864"),
    (lambda plan: plan.joinpath("lib", *"abcdefghijklmnopqrstu").mkdir(parents=True), "deeper than 16"),
]


@pytest.mark.parametrize(("spoil", "words"), EVIL)
def test_an_evil_plan_is_refused_with_the_place_and_leaves_nothing(plan, root, spoil, words):
    spoil(plan)
    with pytest.raises(StageError) as caught:
        stage_plan(plan, root)
    assert words in str(caught.value)
    assert caught.value.where.startswith(str(plan))
    assert caught.value.fix
    assert list(root.iterdir()) == []


def test_a_socket_and_a_link_as_the_plan_are_refused(plan, root, tmp_path, monkeypatch):
    monkeypatch.chdir(plan)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s")
        with pytest.raises(StageError, match="socket or device"):
            stage_plan(plan, root)
    (tmp_path / "link").symlink_to(plan)
    with pytest.raises(StageError, match="cannot be read"):
        stage_plan(tmp_path / "link", root)


def test_large_and_binary_top_level_files_are_left_for_the_view(plan, root):
    (plan / "large.txt").write_bytes(b"x" * (1 << 20) + b"x")
    (plan / "latin.txt").write_bytes(b"\xe9")
    assert stage_plan(plan, root).files == COPIED


@pytest.mark.parametrize("name", ["a b", ".x", "x.tmp"])
def test_a_folder_with_an_evil_name_is_refused(plan, root, name):
    evil = plan.rename(plan.with_name(name))
    with pytest.raises(StageError, match="rename it, for example to"):
        stage_plan(evil, root)


def test_a_full_or_forbidden_disk_is_said(plan, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StageError, match="cannot be written"):
        stage_plan(plan, tmp_path / "file" / "staged")


STAGE = "import sys; from pathlib import Path; from rigbus.plans.stage import stage_plan; "
RACE = (
    STAGE
    + "sys.stdin.readline(); [print(stage_plan(Path(sys.argv[1]), Path(sys.argv[2])).sha256) for _ in range(5)]"
)


def test_processes_that_stage_the_same_plan_agree(plan, root):
    command = [sys.executable, "-c", RACE, str(plan), str(root)]
    racers = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    said = {line for racer in racers for line in racer.communicate(timeout=30)[0].split()}
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert said == {stage_plan(plan, root).sha256}
    assert {one.name for one in root.iterdir()} == said


def test_what_a_killed_process_left_is_taken_away(plan, root):
    stage_plan(plan, root)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (root / f".tmp-{dead.pid}-x" / "scripts").mkdir(parents=True)
    (root / f".tmp-{os.getpid()}-alive").mkdir()
    stage_plan(plan, root)
    assert sorted(one.name[:5] for one in root.iterdir() if one.name.startswith(".")) == [".tmp-"]


def test_staging_needs_the_standard_library_only():
    code = "import sys, rigbus.plans.view; print({'pydantic', 'markdown_it', 'zmq'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
