"""Reading a foreach source: real files of every unfriendly kind."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

from rigbus.agents.attempts import expand
from rigbus.agents.attempts.expand import MAX_SOURCE_BYTES, SourceError, read_items

NOBODY = 65534


def read(path: Path, json_path: str = "", **more: Any) -> dict[str, Any]:
    return read_items(str(path), json_path, str(path.parent), **more)


def fault(path: Path, json_path: str = "", **more: Any) -> tuple[str, str]:
    with pytest.raises(SourceError) as e:
        read(path, json_path, **more)
    assert str(e.value).startswith(f"foreach: {path}")
    assert "; " in str(e.value)
    return e.value.error_class, str(e.value)


def test_an_empty_list_is_a_success_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "m.json").write_text('{"items": []}')
    assert read(tmp_path / "m.json", "items") == {
        "items": [],
        "count": 0,
        "note": "the list is empty: no tasks, a success",
    }


def test_what_is_no_file_is_refused_once_and_never_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as s:
        s.bind("socket")
        for name in ("fifo", "folder", "loop", "socket"):
            assert fault(tmp_path / name)[0] == "definition", name
    assert fault(Path("/dev/zero"))[1].endswith("is no file; point foreach at a JSON file")


def test_a_file_that_is_not_there_may_still_come(tmp_path: Path) -> None:
    cls, said = fault(tmp_path / "none.json")
    assert cls == "task"
    assert "let an earlier task write it, and name that task in depends_on" in said


def test_a_file_of_somebody_else_names_its_owner_and_the_fix(tmp_path: Path) -> None:
    source = tmp_path / "secret.json"
    source.write_text("[1]")
    source.chmod(0o600)
    if os.geteuid():
        source.chmod(0o000)
        cls, said = fault(source)
    else:
        for folder in (tmp_path, *tmp_path.parents[:3]):
            folder.chmod(0o755)
        # sys.path and the modules are read as root: what is given up is only what the open is asked with
        code = (
            "import os, sys\nfrom rigbus.agents.attempts.expand import SourceError, read_items\n"
            f"os.setegid({NOBODY}); os.seteuid({NOBODY})\n"
            "try: read_items(sys.argv[1], '', '/tmp')\n"
            "except SourceError as e: print(e.error_class, e)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(source)], capture_output=True, text=True, check=True, cwd=ROOT
        )
        cls, _, said = done.stdout.partition(" ")
    assert cls == "definition"
    assert "Permission denied; it belongs to user" in said
    assert "`chmod a+r` it" in said


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_a_file_that_changes_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """The writer comes between the look at the file and its reading, as often as ``writes`` says; three reads are tried."""
    source = tmp_path / "m.json"
    source.write_text("[" + ",".join("1" for _ in range(5_000)) + "]")
    reads = 0

    def lseek(fd: int, offset: int, how: int) -> int:
        nonlocal reads
        reads += 1
        if reads <= writes:
            os.utime(source, (reads, reads))  # what each write does too, without making the file larger
        return real(fd, offset, how)

    real = os.lseek
    monkeypatch.setattr(expand.os, "lseek", lseek)
    if writes < 3:
        assert read(source)["count"] == 5_000
        assert reads == writes + 1
        return
    with pytest.raises(SourceError, match="changes while it is read; write it under another name") as caught:
        read(source)
    assert caught.value.error_class == "task"


def test_a_file_at_the_limit_is_read_and_one_byte_more_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "m.json"
    line = json.dumps({"id": "x", "blanks": ""})
    source.write_text(f"[{line}]")
    os.truncate(source, MAX_SOURCE_BYTES)  # a hole of NULs is no JSON; blanks are
    with source.open("r+b") as f:
        f.seek(len(line) + 2)
        blanks = b" " * (1 << 20)
        while f.tell() < MAX_SOURCE_BYTES:
            f.write(blanks[: MAX_SOURCE_BYTES - f.tell()])
    assert source.stat().st_size == MAX_SOURCE_BYTES
    assert read(source, fields=["id"])["count"] == 1
    with source.open("ab") as f:
        f.write(b" ")
    cls, said = fault(source)
    assert cls == "definition"
    assert "has 67108865 bytes, the limit is 67108864" in said


def test_a_list_that_grows_over_the_limit_on_the_bus_is_refused_in_the_words_of_foreach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expand, "MAX_RESULT_BYTES", 64 << 10)
    monkeypatch.setattr(expand, "_MEASURED_BYTES", 20 << 10)
    source = tmp_path / "m.json"
    source.write_text(json.dumps([0.5] * 8_000))  # 40 kB, of which each number takes nine bytes
    cls, said = fault(source)
    assert cls == "definition"
    assert "takes 72003 bytes on the bus, the limit is 65536; keep large parts in files" in said


def test_a_field_that_an_element_lacks_fails_the_list_and_not_half_of_its_tasks(tmp_path: Path) -> None:
    source = tmp_path / "m.json"
    source.write_text(json.dumps([{"id": 1, "path": "a"}, {"id": 2}]))
    cls, said = fault(source, fields=["id", "path"])
    assert cls == "definition"
    assert "element 1 ('2'): {ITEM.path}: ITEM has no path; its fields are: id" in said
