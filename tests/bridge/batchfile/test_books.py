"""What is answered is read from the answers themselves, whatever a crash has left of them."""

from __future__ import annotations

import io

from hypothesis import given
from hypothesis import strategies as st

from rigbus.bridge.batchfile.answers import Asked, answered
from rigbus.bridge.batchfile.books import Books

MARK = "0123456789ab"
VALUE = {"text": "x\ny", "model": "m", "finish": "stop", "usage": {"prompt_tokens": 1}}


def written(*numbers: int) -> bytes:
    return b"".join(answered(Asked(MARK, n, f"id {n}"), VALUE, 1) for n in numbers)


def test_a_line_counts_once() -> None:
    books = Books(3)
    assert [books.add(n) for n in (2, 2, 0, 4, -1)] == [True, False, False, False, False]
    assert (books.count, 2 in books, 1 in books) == (1, True, False)


@given(st.lists(st.integers(1, 9), unique=True), st.integers(0, 4000))
def test_a_cut_at_any_byte_leaves_whole_lines_and_their_books(numbers: list[int], cut: int) -> None:
    data = written(*numbers)
    cut = min(cut, len(data))
    books = Books(9)
    good = books.recover(io.BytesIO(data[:cut]), MARK)
    whole = data[:good].count(b"\n")
    assert good <= cut
    assert data[:good] == written(*numbers[:whole])
    assert whole == len(numbers) or good + len(written(numbers[whole])) > cut
    assert all(n in books for n in numbers[:whole]) and books.count == whole


def test_what_is_not_ours_ends_what_is_good() -> None:
    for other in (b"rubbish\n", bytes(50) + b"\n", written(1), written(7)):
        books = Books(5)
        assert books.recover(io.BytesIO(written(1, 2) + other + written(3)), MARK) == len(written(1, 2))
        assert books.count == 2
