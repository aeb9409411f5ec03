"""Server-sent events: what is written is read again, however the bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigbus.bus.openai.sse import BadStream, EventReader, comment, event

lines = st.text(st.characters(exclude_characters="\r", exclude_categories=["Cs"]), min_size=1)


@given(st.lists(lines, min_size=1, max_size=5), st.lists(st.integers(0, 200), max_size=6))
def test_events_survive_any_cut(texts: list[str], cuts: list[int]) -> None:
    data = b"".join(event(text) + comment("alive") for text in texts)
    reader = EventReader()
    at = [0, *sorted(min(c, len(data)) for c in cuts), len(data)]
    read = [e for start, end in pairwise(at) for e in reader.feed(data[start:end])]
    assert read == texts


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_every_line_end_is_one(end: str, step: int) -> None:
    text = [
        "event: x",
        "data: a",
        ": a comment",
        "data:b",
        "id: 7",
        "retry: 5",
        "",
        ": ping",
        "",
        "data",
        "",
        "end",
    ]
    data = ("\ufeff" + end.join([*text, "data: late"])).encode()
    reader = EventReader()
    read = [e for at in range(0, len(data), step) for e in reader.feed(data[at : at + step])]
    assert read == ["a\nb", ""]


def test_an_event_that_never_ends_is_refused() -> None:
    reader = EventReader(max_event_chars=100)
    assert reader.feed(b"data: " + b"x" * 80) == []
    with pytest.raises(BadStream, match="100 characters"):
        reader.feed(b"x" * 80)
    many = EventReader(max_event_chars=100)
    assert [many.feed(b"data: xxxxxxxxxx\n") for _ in range(9)] == [[]] * 9
    with pytest.raises(BadStream):
        many.feed(b"data: xxxxxxxxxx\n")


def test_a_stream_of_short_events_may_be_long() -> None:
    reader = EventReader(max_event_chars=100)
    assert sum(len(reader.feed(event("x" * 50))) for _ in range(100)) == 100
