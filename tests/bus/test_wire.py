"""Frames and envelopes: the round trip, each rule of PROTOCOL §2 and §9, and bytes from anybody."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rigbus.bus.errors import BadFrame
from rigbus.bus.wire import (
    MAX_CORR_BYTES,
    MAX_DEPTH,
    MAX_FRAME_BYTES,
    MAX_FRAMES,
    MAX_ITEMS,
    PROTOCOL,
    Verb,
    corr_of,
    decode,
    encode,
    pack,
    unpack,
)

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abc", max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)
headers = st.dictionaries(st.text("abcxyz_", max_size=8), plain, max_size=6)


def nested(depth: int, kind: str = "list") -> Any:
    value: Any = [] if kind == "list" else {}
    for _ in range(depth - 1):
        value = [value] if kind == "list" else {"a": value}
    return value


@given(
    st.sampled_from(Verb),
    headers,
    st.lists(st.binary(max_size=50), max_size=5),
    st.binary(max_size=MAX_CORR_BYTES),
)
def test_what_is_encoded_is_decoded(
    verb: Verb, header: dict[str, Any], body: list[bytes], corr: bytes
) -> None:
    env = decode([b"peer", *encode(verb, header, body, corr)], routed=True)
    assert (env.verb, env.header, list(env.body), env.corr, env.peer) == (verb, header, body, corr, b"peer")
    assert env.size == sum(map(len, body))


def test_the_frames_stand_where_the_protocol_says() -> None:
    frames = encode(Verb.SUBMIT, {"a": 1}, [b"x", b"y"], b"id")
    assert frames == [b"RIG1", b"SUBMIT", b"id", msgpack.packb({"a": 1}), b"x", b"y"]


@pytest.mark.parametrize(
    ("frames", "rule"),
    [
        ([], "§2"),
        ([PROTOCOL], "§2"),
        ([PROTOCOL, b"RENEW", b""], "§2"),
        ([b"RIG2", b"RENEW", b"", b"\x80"], "§2"),
        ([b"", b"RENEW", b"", b"\x80"], "§2"),
        ([PROTOCOL, b"renew", b"", b"\x80"], "§3"),
        ([PROTOCOL, b"", b"", b"\x80"], "§3"),
        ([PROTOCOL, b"\xff\x00", b"", b"\x80"], "§3"),
        ([PROTOCOL, b"RENEW", b"x" * (MAX_CORR_BYTES + 1), b"\x80"], "§2"),
        ([PROTOCOL, b"RENEW", b"", b""], "§2"),
        ([PROTOCOL, b"RENEW", b"", b"\x90"], "§2"),  # a list is no header
        ([PROTOCOL, b"RENEW", b"", b"\x80\x80"], "§2"),  # two values
        ([PROTOCOL, b"RENEW", b"", b"\xc1"], "§2"),
        ([PROTOCOL, b"RENEW", b"", b"\x81\x01\x02"], "§2"),  # a number as a key
        ([PROTOCOL, b"RENEW", b"", b"\x81\xa1a\xc7\x01\x05x"], "§2"),  # an extension type
        ([PROTOCOL, b"RENEW", b"", b"\x81\xa1a\xa1\xff"], "§2"),  # text that is no UTF-8
        ([PROTOCOL, b"RENEW", b"", b"\x80", *[b""] * MAX_FRAMES], "§2"),
    ],
)
def test_a_broken_message_is_refused_by_its_paragraph(frames: list[bytes], rule: str) -> None:
    with pytest.raises(BadFrame) as caught:
        decode(frames)
    assert caught.value.rule == rule
    with pytest.raises(BadFrame):
        decode([b"peer", *frames], routed=True)


@pytest.mark.parametrize("value", [1 << 70, "\ud800", {"\ud800": 1}, object()])
def test_what_no_msgpack_can_say_is_refused_before_it_is_sent(value: Any) -> None:
    with pytest.raises(BadFrame, match="SUBMIT: the header cannot be sent"):
        encode(Verb.SUBMIT, {"config": value})


def test_a_routed_message_of_no_frame_is_refused() -> None:
    with pytest.raises(BadFrame):
        decode([], routed=True)


@pytest.mark.parametrize("kind", ["list", "map"])
def test_nesting_is_bounded(kind: str) -> None:
    assert unpack(pack(nested(MAX_DEPTH, kind))) == nested(MAX_DEPTH, kind)
    for depth in (MAX_DEPTH + 2, 400):
        with pytest.raises(BadFrame, match="deep"):
            unpack(msgpack.packb(nested(depth, kind)))
    with pytest.raises(BadFrame):
        unpack(b"\x91" * 100_000 + b"\x90")


def test_lengths_that_are_claimed_are_bounded() -> None:
    for claim in (
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
    ):
        with pytest.raises(BadFrame):
            unpack(claim)
    with pytest.raises(BadFrame):
        unpack(msgpack.packb([0] * (MAX_ITEMS + 1)))


def test_a_message_over_the_limits_is_not_encoded() -> None:
    with pytest.raises(BadFrame):
        encode(Verb.SUBMIT, {"a": "x" * MAX_FRAME_BYTES})
    with pytest.raises(BadFrame):
        encode(Verb.SUBMIT, {}, [b"x" * (MAX_FRAME_BYTES + 1)])
    with pytest.raises(BadFrame):
        encode(Verb.SUBMIT, {}, [b""] * MAX_FRAMES)
    assert decode(encode(Verb.SUBMIT, {}, [b"x" * MAX_FRAME_BYTES])).size == MAX_FRAME_BYTES


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_bytes_from_anybody_are_refused_and_nothing_else(frames: list[bytes]) -> None:
    for routed in (False, True):
        try:
            decode(frames, routed=routed)
        except BadFrame:
            pass


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_a_header_of_any_bytes_is_a_map_or_refused(data: bytes) -> None:
    refused: BadFrame | None = None
    header: Any = None
    try:
        header = decode([PROTOCOL, b"QUERY", b"", data]).header
    except BadFrame as e:
        refused = e
    assert isinstance(header, dict) if refused is None else refused.rule


@given(headers, st.integers(0, 200), st.integers(0, 255))
def test_a_flipped_byte_never_raises_anything_else(header: dict[str, Any], at: int, byte: int) -> None:
    data = bytearray(pack(header))
    data[at % len(data)] = byte
    try:
        decode([PROTOCOL, b"QUERY", b"", bytes(data)])
    except BadFrame:
        pass


@given(st.lists(st.binary(max_size=40), max_size=4))
def test_the_correlation_id_of_what_did_not_decode(frames: list[bytes]) -> None:
    corr = corr_of(frames)
    assert corr == (frames[2] if len(frames) > 2 and len(frames[2]) <= MAX_CORR_BYTES else b"")
