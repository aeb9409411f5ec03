"""`input` of a model's task: real files of a plan and its batch, read by the real child; and all that is no such file."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from rigbus.agents.models.tasks.reading import MAX_INPUT_BYTES, InputMissing, read_input
from rigbus.bus.errors import DefinitionError, Unreachable

Plan = dict[str, str]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A staged plan with a prompt of its own, its folder in the share with data, and a batch. No view yet."""
    staged, original = tmp_path / "staged", tmp_path / "share" / "p"
    batch = original / "batches" / "b"
    for folder in (staged, original / "data", batch):
        folder.mkdir(parents=True)
    (staged / "rules.txt").write_text("be kind")
    (original / "data" / "long.txt").write_text("a story")
    (batch / "made.txt").write_text("made by a task, ü")
    (tmp_path / "secret.txt").write_text("secret")
    return {
        "staged": str(staged),
        "original": str(original),
        "view": str(tmp_path / "views" / "b"),
        "batch_path": str(batch),
    }


def test_files_of_the_batch_the_plan_and_its_data_are_read(plan: Plan) -> None:
    assert read_input(f"{plan['batch_path']}/made.txt", plan) == "made by a task, ü"
    assert not Path(plan["view"]).exists()
    assert read_input(f"{plan['view']}/rules.txt", plan) == "be kind"
    assert read_input(f"{plan['view']}/data/long.txt", plan) == "a story"


def test_a_mark_of_byte_order_is_no_part_of_the_text(plan: Plan) -> None:
    (Path(plan["batch_path"]) / "made.txt").write_bytes(b"\xef\xbb\xbfx")
    assert read_input(f"{plan['batch_path']}/made.txt", plan) == "x"


def test_a_single_nul_is_no_reason_to_refuse_what_a_model_has_written(plan: Plan) -> None:
    (Path(plan["batch_path"]) / "made.txt").write_bytes(b"a slip \0 of the tongue")
    assert read_input(f"{plan['batch_path']}/made.txt", plan) == "a slip \0 of the tongue"


def _link_out(path: Path) -> None:
    path.symlink_to(path.parents[4] / "secret.txt")


def _latin(path: Path) -> None:
    path.write_bytes(b"caf\xe9")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # the whole path is longer than an address may be
        one.bind(path.name)
        os.chdir(here)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "a link out": (_link_out, "outside of the plan and its batch; copy it"),
    "a folder": (Path.mkdir, "{BATCH_PATH}/x.txt: it is no file"),
    "a pipe": (os.mkfifo, "it is no file"),
    "a socket": (_socket, "make it a file"),
    "a link to itself": (lambda path: path.symlink_to(path), "levels of symbolic links"),
    "no UTF-8": (_latin, "byte 3 is not UTF-8; convert it"),
    "UTF-16": (
        lambda path: path.write_bytes("letters".encode("utf-16-le")),
        "full of NULs and no UTF-8; convert it",
    ),
    "nothing": (lambda path: path.write_text(" \n"), "it is empty"),
    "too much": (
        lambda path: path.write_bytes(b"x" * (MAX_INPUT_BYTES + 1)),
        "1048577 bytes, at most 1048576",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_text_of_the_plan_is_a_definition_error(plan: Plan, kind: str) -> None:
    make, words = BAD[kind]
    path = Path(plan["batch_path"]) / "x.txt"
    make(path)
    with pytest.raises(DefinitionError) as caught:
        read_input(str(path), plan)
    assert words in str(caught.value)
    assert str(caught.value).startswith("input {BATCH_PATH}/x.txt: ")


@pytest.mark.parametrize(
    "path", ["{batch}/../../../../secret.txt", "/etc/hostname", "{view}/../../secret.txt"]
)
def test_a_path_out_of_the_plan_is_refused(plan: Plan, path: str) -> None:
    named = path.format(batch=plan["batch_path"], view=plan["view"])
    with pytest.raises(DefinitionError, match="outside of the plan"):
        read_input(named, plan)


@pytest.mark.parametrize("path", ["x.txt", "", "/a\0b"])
def test_a_path_that_is_none_is_refused(plan: Plan, path: str) -> None:
    with pytest.raises(DefinitionError, match="no absolute path"):
        read_input(path, plan)


def test_without_a_plan_nothing_is_read(plan: Plan) -> None:
    for given in (None, {}, {**plan, "original": ""}):
        with pytest.raises(DefinitionError, match="send the text itself"):
            read_input(f"{plan['batch_path']}/made.txt", given)


def test_a_missing_file_may_come_and_a_missing_share_too(plan: Plan) -> None:
    with pytest.raises(InputMissing, match="name that task in depends_on") as caught:
        read_input(f"{plan['batch_path']}/later.txt", plan)
    assert caught.value.error_class == "task"
    Path(plan["original"]).rename(Path(plan["original"]).with_name("away"))
    for path in (f"{plan['batch_path']}/made.txt", f"{plan['view']}/rules.txt"):
        with pytest.raises(Unreachable, match="is not there"):
            read_input(path, plan)


def test_a_share_that_hangs_holds_the_child_only(plan: Plan) -> None:
    with pytest.raises(Unreachable, match=r"not read within 0\.001 s"):
        read_input(f"{plan['batch_path']}/made.txt", plan, timeout_s=0.001)
