"""What is kept of a command's output, and what never grows or fails."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigbus.agents.attempts.output import OutputLog, drain


def test_short_output_is_kept_whole_in_file_and_result(tmp_path: Path) -> None:
    log = OutputLog(tmp_path / "logs" / "a.log")
    log.write(b"one\n")
    log.write(b"two\n")
    summary = log.close()
    assert summary.text() == "one\ntwo\n"
    assert summary.total_bytes == 8
    assert (summary.elided_bytes, summary.discarded_bytes, summary.log_error) == (0, 0, "")
    assert (tmp_path / "logs" / "a.log").read_bytes() == b"one\ntwo\n"


@given(st.lists(st.binary(max_size=40)), st.integers(0, 30), st.integers(0, 30))
def test_head_and_tail_are_the_two_ends_of_the_stream(chunks: list[bytes], head: int, tail: int) -> None:
    log = OutputLog(None, head_bytes=head, tail_bytes=tail)
    for chunk in chunks:
        log.write(chunk)
    summary = log.close()
    whole = b"".join(chunks)
    assert summary.head == whole[:head]
    assert summary.tail == whole[max(head, len(whole) - tail) :]
    assert summary.total_bytes == len(whole)
    assert summary.elided_bytes == max(0, len(whole) - head - tail)


def test_the_file_ends_at_its_cap_and_the_rest_is_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    log = OutputLog(path, max_log_bytes=10, head_bytes=4, tail_bytes=4)
    for _ in range(5):
        log.write(b"12345678")
    summary = log.close()
    assert summary.discarded_bytes == 30
    assert summary.tail == b"5678"
    text = path.read_text()
    assert text.startswith("1234567812\n[rigbus: this log ends at 10 bytes")
    assert text.endswith("[rigbus: 30 bytes were discarded]\n")


def test_the_gap_is_named_and_cut_characters_are_left_out() -> None:
    log = OutputLog(None, head_bytes=4, tail_bytes=4)
    log.write("aé€€€€€z".encode())
    text = log.close().text()
    assert text.startswith("aé\n[rigbus: ")
    assert text.endswith("not shown here]\n€z")
    assert "\ufffd" not in text


def test_bytes_that_are_not_utf8_become_replacement_characters() -> None:
    log = OutputLog(None)
    log.write(b"a\xff\x00b")
    assert log.close().text() == "a\ufffd\x00b"


def test_a_log_that_cannot_be_opened_is_said_and_the_result_still_has_the_output(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    log = OutputLog(tmp_path / "file" / "a.log")
    log.write(b"text")
    summary = log.close()
    assert summary.text() == "text"
    assert summary.discarded_bytes == 4
    assert "log file" in summary.log_error


def test_a_full_disk_is_said_and_the_output_goes_on() -> None:
    log = OutputLog(Path("/dev/full"))
    log.write(b"text")
    log.write(b"more")
    summary = log.close()
    assert summary.text() == "textmore"
    assert summary.discarded_bytes == 8
    assert "No space left" in summary.log_error


def test_a_log_path_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("keep")
    (tmp_path / "a.log").symlink_to(target)
    log = OutputLog(tmp_path / "a.log")
    log.write(b"text")
    assert log.close().log_error
    assert target.read_text() == "keep"


def test_a_turn_of_draining_is_bounded_and_does_not_wait() -> None:
    reader, writer = os.pipe()
    try:
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        sent = os.write(writer, b"x" * (1 << 20))
        log = OutputLog(None, head_bytes=1 << 20)
        assert drain(reader, log, 1)  # one read, though more is there
        assert 0 < log.close().total_bytes <= sent
        assert drain(reader, log, 1 << 20)
        assert drain(reader, log, 1 << 20)  # empty and open: no wait
    finally:
        os.close(writer)
    assert not drain(reader, log, 1)
    os.close(reader)


@pytest.mark.parametrize("size", [1, 7])
def test_memory_does_not_follow_the_number_of_writes(size: int) -> None:
    log = OutputLog(None, head_bytes=10, tail_bytes=100)
    for _ in range(5000):
        log.write(b"y" * size)
        assert len(log._tail) <= 200 + size
    assert len(log.close().tail) == 100
