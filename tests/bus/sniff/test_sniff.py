"""Frames of the events socket as records, filters, lines and the life of a task."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rigbus.bus.errors import BadFrame, ConfigError
from rigbus.bus.sniff.records import Record, Sniffer, printable, record_of, rfc3339
from rigbus.bus.sniff.view import Filter, Follow, line, step_line
from rigbus.bus.wire import pack

TASK = "11111111-2222-5333-8444-555555555555"
OTHER = "99999999-2222-5333-8444-555555555555"


def tap(verb: str, direction: str, header: dict[str, Any], ts: float = 0.0, **more: Any) -> list[bytes]:
    record = {
        "ts": ts,
        "dir": direction,
        "peer": "w1",
        "verb": verb,
        "corr": b"",
        "bytes": 0,
        "header": header,
        **more,
    }
    return [f"tap.{direction}.{verb}".encode(), pack(record)]


def feed(sniffer: Sniffer, frames: list[bytes]) -> Record:
    record = sniffer.frames(frames, 0.0)
    assert record is not None
    return record


def event(seq: int, prev: int, topic: str, id_: str = TASK, at: float = 0.0, **data: Any) -> list[bytes]:
    return [f"p.{topic}".encode(), pack([seq, prev, at, "p", topic, id_, "b1", data])]


def test_a_record_has_the_fields_of_the_interface() -> None:
    record = feed(Sniffer(), tap("QUERY", "in", {"what": "status"}, 1_700_000_000.25, bytes=7, corr=b"\1"))
    out = record.to_json()
    assert list(out)[:10] == [
        *("ts", "seq", "dir", "peer", "verb", "topic", "task_id", "batch_id", "bytes", "latency_ms"),
    ]
    assert out["ts"] == "2023-11-14T22:13:20.250Z"
    assert (out["dir"], out["verb"], out["topic"], out["bytes"]) == ("in", "QUERY", "tap.in.QUERY", 7)
    assert "dropped" not in out
    json.dumps(out)


def test_an_answer_has_the_time_since_its_question() -> None:
    sniffer = Sniffer()
    feed(sniffer, tap("QUERY", "in", {"what": "status"}, 1.0, corr=b"\1"))
    feed(sniffer, tap("QUERY", "in", {"what": "status"}, 1.001, corr=b"\1", peer="w2"))
    assert feed(sniffer, tap("OK", "out", {}, 1.0025, corr=b"\1")).latency_ms == 2.5
    assert feed(sniffer, tap("OK", "out", {}, 1.0025, corr=b"\1", peer="w2")).latency_ms == 1.5
    assert feed(sniffer, tap("OK", "out", {}, 1.0025, corr=b"\1")).latency_ms is None


def test_tokens_are_named_by_their_lease_and_timed_from_it() -> None:
    sniffer = Sniffer()
    lease = {"token": [3, 9], "id": TASK, "batch": "b1", "key": "a", "type": "shout", "attempt": 1}
    granted = feed(sniffer, tap("LEASE", "out", {"leases": [lease]}, 1.0))
    assert (granted.task_ids, granted.batch_id) == ((TASK,), "b1")
    started = feed(sniffer, tap("STARTED", "in", {"tokens": [[3, 9]]}, 1.010))
    assert (started.task_ids, started.latency_ms) == ((TASK,), 10.0)
    result = feed(sniffer, tap("RESULT", "in", {"results": [{"token": [3, 9], "ok": True}]}, 1.5))
    assert (result.task_ids, result.batch_id, result.latency_ms) == ((TASK,), "b1", 500.0)
    recorded = feed(sniffer, tap("RECORDED", "out", {"tokens": [[3, 9]]}, 1.502))
    assert (recorded.task_ids, recorded.latency_ms) == ((TASK,), 2.0)


def test_lost_taps_are_counted_by_their_numbers() -> None:
    sniffer = Sniffer()
    assert feed(sniffer, tap("RENEW", "in", {}, seq=5)).dropped == 0
    assert feed(sniffer, tap("RENEW", "in", {}, seq=6)).dropped == 0
    lossy = feed(sniffer, tap("RENEW", "in", {}, seq=10))
    assert lossy.dropped == 3
    assert lossy.to_json()["dropped"] == 3


def test_a_hole_in_the_events_is_shown() -> None:
    sniffer = Sniffer()
    assert feed(sniffer, event(5, 2, "task.shout.ready")).dropped == 0
    assert feed(sniffer, event(8, 5, "task.shout.leased")).dropped == 0
    assert feed(sniffer, event(12, 10, "task.shout.done")).dropped == 1


def test_events_heartbeats_progress_and_ticks() -> None:
    sniffer = Sniffer()
    dead = feed(sniffer, event(5, 0, "task.shout.dead", error="boom"))
    assert (dead.dir, dead.seq, dead.task_ids, dead.batch_id, dead.detail) == (
        "event",
        5,
        (TASK,),
        "b1",
        "error=boom",
    )
    beat = feed(sniffer, [b"hb.worker-1", pack({"state": "busy", "slots": 2, "running": [1]})])
    assert (beat.peer, beat.verb, beat.detail) == ("worker-1", "HEARTBEAT", "busy 1/2 running")
    progress = feed(sniffer, [f"progress.{TASK}".encode(), pack({"n": 3, "pct": 0.5, "note": "half"}), b"xx"])
    assert (progress.task_ids, progress.detail) == ((TASK,), "#3 50% half")
    assert sniffer.frames([b"tick", pack({"seq": 1})], 0.0) is None


@pytest.mark.parametrize(
    "frames",
    [[b"tap.in.X"], [b"tap.in.X", b"\xc1"], [b"p.task", pack(3)], [b"p.task", pack([1, 2])], [b"c.x", b""]],
)
def test_broken_frames_are_a_named_error(frames: list[bytes]) -> None:
    with pytest.raises(BadFrame):
        Sniffer().frames(frames, 0.0)


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3) | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
NAMES = ("leases", "tokens", "results", "token", "ids", "id", "batch", "tasks", "events", "pct")


@given(
    verb=st.sampled_from(
        ["LEASE", "RESULT", "SUBMIT", "ACCEPTED", "STARTED", "RECORDED", "PROGRESS", "ENDED", "EVENTS"]
    ),
    header=st.dictionaries(st.sampled_from(NAMES), plain),
)
def test_whatever_a_peer_sends_makes_a_record_or_a_named_error(verb: str, header: dict[str, Any]) -> None:
    try:
        record = Sniffer().frames(tap(verb, "in", header), 0.0)
    except BadFrame:
        return
    assert record is not None
    assert line(record).isprintable()
    json.dumps(record.to_json())


def test_control_characters_of_a_peer_never_reach_the_terminal() -> None:
    evil = "a\x1b[2Jb\r\n\u202ec\u200bd\x9b31m"
    assert printable(evil) == r"a\x1b[2Jb\r\n\u202ec\u200bd\x9b31m"
    assert printable("grün ✓ 日本") == "grün ✓ 日本"
    record = feed(Sniffer(), tap("ERROR", "out", {"code": "refused", "message": evil}, peer=evil))
    assert line(record).isprintable()


@given(st.text())
def test_printable_is_printable(text: str) -> None:
    assert printable(text).isprintable()


@pytest.mark.parametrize(
    ("expressions", "shown"),
    [
        ([], True),
        (["verb=RESULT"], True),
        (["verb=lease,result"], True),
        (["RESULT"], True),
        (["verb=LEASE"], False),
        (["task=1111"], True),
        (["task=9999"], False),
        (["batch=b1"], True),
        (["batch=b2"], False),
        (["worker=w*"], True),
        (["worker=v*"], False),
        (["dir=out"], False),
        (["min_bytes=100"], True),
        (["min_bytes=101"], False),
        (["min_ms=500"], True),
        (["min_ms=501"], False),
        (["tap.in.*"], True),
        (["task.*.dead"], False),
        (["verb=RESULT", "task=9999"], False),
        (["task=9999", "task=1111"], True),
    ],
)
def test_filters_narrow_by_name_and_widen_within_it(expressions: list[str], shown: bool) -> None:
    record = Record(0.0, 1, "in", "w1", "RESULT", "tap.in.RESULT", (TASK,), "b1", 100, 500.0)
    assert Filter(expressions)(record) is shown


@pytest.mark.parametrize("expression", ["colour=red", "verb=", "min_ms=slow", "=x"])
def test_a_wrong_filter_is_refused_by_name(expression: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(expression)):
        Filter([expression])


@pytest.mark.parametrize(
    ("expressions", "topics"),
    [
        ([], [b"tap."]),
        (["verb=LEASE"], [b"tap."]),
        (["task.*.dead"], [b"c.", b"p."]),
        (["hb.*"], [b"hb."]),
        (["*"], [b"c.", b"hb.", b"p.", b"progress.", b"tap."]),
    ],
)
def test_only_what_can_match_is_subscribed(expressions: list[str], topics: list[bytes]) -> None:
    assert Filter(expressions).subscriptions() == topics


def test_a_written_line_reads_back_the_same() -> None:
    sniffer = Sniffer()
    lease = {"token": [3, 9], "id": TASK, "batch": "b1", "key": "a", "type": "shout", "attempt": 1}
    record = feed(
        sniffer, tap("LEASE", "out", {"leases": [lease, {**lease, "id": OTHER}]}, 1_700_000_000.5, seq=4)
    )
    assert record_of(json.loads(json.dumps(record.to_json()))) == record
    with pytest.raises(ConfigError, match="--write"):
        record_of({"seq": 1})


def test_times_are_rfc_3339_utc() -> None:
    assert rfc3339(0.0) == "1970-01-01T00:00:00.000Z"


def test_the_life_of_a_task_is_told_in_order_with_its_gaps() -> None:
    sniffer, follow = Sniffer(), Follow(TASK[:8])
    lease = {"token": [3, 9], "id": TASK, "batch": "b1", "key": "a", "type": "shout", "attempt": 1}
    other = {"token": [3, 8], "id": OTHER, "batch": "b1", "key": "b", "type": "shout", "attempt": 1}
    frames = [
        tap(
            "SUBMIT",
            "in",
            {"batch": {"key": "k", "kind": "client"}, "tasks": [{}]},
            1.0,
            corr=b"\1",
            peer="c",
        ),
        tap("LEASE", "out", {"leases": [other]}, 1.0005),
        tap("ACCEPTED", "out", {"batch": "b1", "ids": [TASK]}, 1.001, corr=b"\1", peer="c"),
        tap("LEASE", "out", {"leases": [lease]}, 1.201),
        event(7, 6, "task.shout.leased", at=1.2005),  # comes after what it caused
        tap("RENEW", "in", {"tokens": [[3, 9]]}, 1.3),
        tap("STARTED", "in", {"tokens": [[3, 9]]}, 1.301),
        tap("RESULT", "in", {"results": [{"token": [3, 8], "ok": True}]}, 1.4),
        tap("RESULT", "in", {"results": [{"token": [3, 9], "ok": True}]}, 1.5),
        tap("RECORDED", "out", {"tokens": [[3, 9]]}, 1.503),
        tap("ENDED", "out", {"id": TASK, "state": "done"}, 1.504, peer="c"),
    ]
    steps = []
    for f in frames:
        steps += follow.take(feed(sniffer, f))
    steps += follow.flush()
    assert [s.record.verb for s in steps] == [
        *("SUBMIT", "ACCEPTED", "EVENT", "LEASE", "STARTED", "RESULT", "RECORDED", "ENDED"),
    ]
    assert follow.ended
    whys = {s.record.verb: s.why for s in steps}
    assert whys["LEASE"] == "waited for a worker; w1 has it"
    assert whys["RECORDED"] == "the result was written to disk"
    assert steps[4].after_s == pytest.approx(0.1)
    assert all(step_line(s).isprintable() for s in steps)


def test_a_life_with_lost_messages_says_so() -> None:
    sniffer, follow = Sniffer(), Follow(TASK)
    lease = {"token": [3, 9], "id": TASK, "batch": "b1", "key": "a", "type": "shout", "attempt": 2}
    feed(sniffer, tap("RENEW", "in", {}, 1.0, seq=1))
    steps = [
        *follow.take(feed(sniffer, tap("LEASE", "out", {"leases": [lease]}, 2.0, seq=5))),
        *follow.flush(),
    ]
    assert steps[0].why.startswith("3 messages were lost here")
