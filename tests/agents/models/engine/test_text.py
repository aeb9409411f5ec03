"""Bytes of tokens to text: whole characters, and nothing of a stop string."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rigbus.agents.models.engine.text import TextStream, plain_prompt


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(p % (len(data) + 1) for p in places), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


@given(st.text(max_size=60), st.lists(st.integers(0, 400)))
def test_a_character_split_between_tokens_comes_out_whole(text: str, places: list[int]) -> None:
    stream = TextStream()
    pieces = [stream.feed(part) for part in cut(text.encode(), places)]
    assert "".join(pieces) + stream.end() == text


@given(st.binary(max_size=60), st.lists(st.integers(0, 60)))
def test_bytes_that_are_no_text_never_break_a_piece(data: bytes, places: list[int]) -> None:
    stream = TextStream()
    pieces = [stream.feed(part) for part in cut(data, places)]
    assert data.decode("utf-8", "replace").startswith("".join(pieces) + stream.end())


@given(
    st.text("ab€", max_size=40),
    st.lists(st.text("ab€", min_size=1, max_size=4), min_size=1, max_size=3),
    st.lists(st.integers(0, 200)),
)
def test_the_text_ends_before_the_first_stop_string(text: str, stops: list[str], places: list[int]) -> None:
    stream = TextStream(stops)
    out = ""
    for part in cut(text.encode(), places):
        out += stream.feed(part)
        assert not any(stop in out for stop in stops), "nothing of a stop string is ever shown"
        if stream.stopped:
            break
    out += stream.end()
    found = [at for stop in stops if (at := text.find(stop)) >= 0]
    assert stream.stopped == bool(found)
    if found:
        # Which of two overlapping stop strings is seen first depends on the tokens; the text is cut at either.
        assert text.startswith(out)
        assert any(text.startswith(stop, len(out)) for stop in stops)
    else:
        assert out == text


def test_text_that_may_become_a_stop_string_is_held_back_and_then_shown() -> None:
    stream = TextStream(["END"])
    assert stream.feed(b"xE") == "x"
    assert stream.feed(b"N") == ""
    assert stream.feed(b"O") == "ENO"
    assert stream.feed(b"EN") == ""
    assert stream.end() == "EN"


def test_an_unfinished_character_at_the_end_is_dropped() -> None:
    stream = TextStream()
    assert stream.feed("a€".encode()[:-1]) == "a"
    assert stream.end() == ""


def test_messages_without_a_template_stand_below_the_names_of_their_speakers() -> None:
    messages = [
        {"role": role, "content": text}
        for role, text in (("system", "be brief"), ("user", "hi"), ("assistant", "yes?"), ("user", "go on"))
    ]
    said = "System:\nbe brief\n\nUser:\nhi\n\nAssistant:\nyes?"
    assert plain_prompt(messages) == f"{said}\n\nUser:\ngo on\n\nAssistant:\n"
    assert plain_prompt(messages[:3]) == said, "what the assistant has begun to say goes on"
    assert plain_prompt(messages[1:2]) == "hi"
