"""Bytes become lines whatever pieces they come in, and a line without an end costs no memory."""

from __future__ import annotations

import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from rigbus.bridge.batchfile.lines import Line, Splitter

TEXTS = st.lists(st.binary(max_size=12).map(lambda b: b.replace(b"\n", b"")), max_size=8)


def split(data: bytes, sizes: list[int], max_bytes: int = 1000) -> list[Line]:
    splitter, found, at = Splitter(max_bytes), list[Line](), 0
    for size in [*sizes, len(data)]:
        found += splitter.feed(data[at : at + size])
        at += size
    return found + splitter.end()


@given(TEXTS, st.lists(st.integers(1, 9), max_size=30), st.booleans())
def test_pieces_of_any_size_give_the_same_lines(texts: list[bytes], sizes: list[int], ends: bool) -> None:
    data = b"\n".join(texts) + (b"\n" if ends and texts else b"")
    found = split(data, sizes)
    wanted = data.split(b"\n")
    wanted = wanted[:-1] if not wanted[-1] else wanted
    assert [line.number for line in found] == list(range(1, len(wanted) + 1))
    assert [line.data for line in found[1:]] == wanted[1:]
    assert [line.size for line in found] == [len(text) for text in wanted]


@given(TEXTS, st.lists(st.integers(1, 9), max_size=30))
def test_a_line_over_the_bound_has_its_size_only_and_the_next_ones_are_whole(
    texts: list[bytes], sizes: list[int]
) -> None:
    found = split(b"".join(text + b"\n" for text in texts), sizes, max_bytes=5)
    for line, text in zip(found, texts, strict=True):
        assert line.size == len(text)
        assert (line.data is None) == (len(text) > 5)


def test_a_byte_order_mark_is_no_part_of_the_first_line() -> None:
    assert split(b"\xef\xbb\xbf{}\n{}\n", [2])[0].data == b"{}"


def test_a_line_of_a_hundred_megabytes_takes_no_memory() -> None:
    splitter = Splitter(1 << 20)
    piece = bytes(256 << 10)
    tracemalloc.start()
    try:
        for _ in range(400):
            assert splitter.feed(piece) == []
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    assert splitter.feed(b"\n") == [Line(1, None, 400 * len(piece))]
