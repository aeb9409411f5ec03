"""The spool on a real disk: what is written is found by whoever comes next, and what is damaged harms nobody."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path
from typing import Any

import pytest
from busparts import ScriptedBroker
from helpers import free_endpoint, wait_for

from rigbus.agents.worker import spool as spools
from rigbus.agents.worker.outbox import Outbox
from rigbus.agents.worker.spool import Estate, Spool
from rigbus.bus.client.link import Connection
from rigbus.bus.wire import Verb

A, B, C = (3, 1), (3, 2), (3, 7)


def row(token: tuple[int, int], **more: Any) -> dict[str, Any]:
    return {"token": token, "ok": True, "duration_s": 0.5, **more}


def files(state: Path) -> list[str]:
    return sorted(path.name for path in (state / "spool").iterdir())


@pytest.fixture
def dead(tmp_path: Path) -> Spool:
    """A process of ``w1`` that wrote two files and died."""
    spool = Spool(tmp_path, "w1", "d" * 32)
    spool.write([row(A), row(B, ok=False, error="no", **{"class": "task"})], [b"\x01", b""])
    spool.write([row(C, ref={"sha256": "0" * 64, "bytes": 9})], [b""])
    return spool


@pytest.mark.usefixtures("dead")
def test_the_next_process_of_the_name_finds_all_of_it_as_it_was(tmp_path: Path) -> None:
    first, second = Spool(tmp_path, "w1", "e" * 32).former()
    assert (first.session, first.tokens, first.body) == ("d" * 32, [A, B], [b"\x01", b""])
    assert first.rows[1] == row(B, ok=False, error="no", **{"class": "task"})
    assert second.rows == [row(C, ref={"sha256": "0" * 64, "bytes": 9})]
    outbox = Outbox()
    for left in (first, second):
        outbox.inherit(left.session, left.rows, left.body)
    assert outbox.inherited() == {"d" * 32: [A, B, C]}


@pytest.mark.usefixtures("dead")
def test_other_names_and_the_process_itself_take_nothing_over(tmp_path: Path) -> None:
    assert Spool(tmp_path, "w2", "e" * 32).former() == []
    assert Spool(tmp_path, "w1", "d" * 32).former() == []
    assert len(files(tmp_path)) == 2


@pytest.mark.parametrize("who", ["the writer", "the heir"])
def test_a_file_goes_when_all_of_it_is_answered(dead: Spool, tmp_path: Path, who: str) -> None:
    spool = dead
    if who == "the heir":
        spool = Spool(tmp_path, "w1", "e" * 32)
        spool.former()
    spool.settle([A, (9, 9)])
    assert len(files(tmp_path)) == 2
    spool.settle([A, B])
    assert files(tmp_path) == ["d" * 32 + ".2"]
    spool.settle([C])
    assert files(tmp_path) == []
    spool.settle([C])


def test_both_may_remove_it(dead: Spool, tmp_path: Path) -> None:
    heir = Spool(tmp_path, "w1", "e" * 32)
    heir.former()
    dead.settle([A, B, C])
    heir.settle([A, B, C])
    assert files(tmp_path) == []


@pytest.mark.usefixtures("dead")
@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign", "text"])
def test_a_damaged_file_is_said_and_removed_and_the_others_stand(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "spool" / ("d" * 32 + ".1")
    data = path.read_bytes()
    worse = {
        "cut": data[:-1],
        "flip": data[:40] + bytes([data[40] ^ 1]) + data[41:],
        "empty": b"",
        "foreign": spools._digest(b"\x80") + b"\x80",
        "text": spools._digest(b"\xa1x") + b"\xa1x",
    }
    path.write_bytes(worse[damage])
    with caplog.at_level(logging.WARNING):
        (left,) = Spool(tmp_path, "w1", "e" * 32).former()
    assert left.tokens == [C]
    assert str(path) in caplog.text and "lost" in caplog.text
    assert not path.exists()


def test_a_file_that_was_being_written_when_the_machine_died_is_none(tmp_path: Path, dead: Spool) -> None:
    half = tmp_path / "spool" / ("." + "d" * 32 + ".3.abcd")
    half.write_bytes(b"half")
    assert len(Spool(tmp_path, "w1", "e" * 32).former()) == 2


def test_nothing_is_there_before_the_first_write(tmp_path: Path) -> None:
    spool = Spool(tmp_path, "w1", "d" * 32)
    assert spool.former() == []
    spool.settle([A])
    assert not (tmp_path / "spool").exists()


def test_a_written_file_is_synced_and_so_is_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def seen(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", seen)
    spool = Spool(tmp_path, "w1", "d" * 32)
    spool.write([row(A)], [b""])
    folder = str(tmp_path / "spool")
    assert synced[0] == str(tmp_path) and synced[-1] == folder
    assert synced[1].startswith(f"{folder}/.") and len(synced) == 3
    assert Path(folder).stat().st_mode & 0o777 == 0o700
    assert (Path(folder) / ("d" * 32 + ".1")).stat().st_mode & 0o777 == 0o600


def test_a_full_disk_is_said_once_in_a_row_and_is_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path, "w1", "d" * 32)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken, caplog.at_level(logging.WARNING):
        broken.setattr(spools, "write_atomic", full)
        assert [spool.keep([row(A)], [b""]) for _ in range(3)] == [False] * 3
    assert caplog.text.count("No space left on device") == 1
    assert spool.keep([row(A)], [b""])
    assert [left.tokens for left in Spool(tmp_path, "w1", "e" * 32).former()] == [[A]]


@pytest.mark.usefixtures("dead")
def test_the_supervisor_presents_all_but_the_living_and_removes_what_is_answered(
    tmp_path: Path, rig_dir: Path
) -> None:
    Spool(tmp_path, "w2", "a" * 32).write([row((3, 8))], [b""])
    broker = ScriptedBroker(free_endpoint(rig_dir))
    broker.answers[Verb.RESULT] = lambda e: [
        (Verb.RECORDED, {"tokens": [r["token"] for r in e.header["results"]]}, [])
    ]
    link = Connection(broker.endpoint, role="supervisor")
    try:
        estate = Estate(tmp_path)
        assert not estate.present(link), "nobody is there yet"
        link.connect(5)
        assert estate.present(link, but={"a" * 32})
        for _ in range(2):
            answer = wait_for(link.recv, what="an answer")
            while answer.verb is not Verb.RECORDED:
                answer = wait_for(link.recv, what="an answer")
            estate.settle([(t[0], t[1]) for t in answer.header["tokens"]])
    finally:
        link.close()
        broker.stop()
    sent = [e.header for e in broker.seen if e.verb is Verb.RESULT]
    assert [(h["session"], len(h["results"])) for h in sent] == [("d" * 32, 2), ("d" * 32, 1)]
    assert files(tmp_path) == ["a" * 32 + ".1"]
