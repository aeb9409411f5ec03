"""Following the event log: no event lost or shown twice, whatever the socket loses."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from busparts import RealBroker, ScriptedBroker, SmallWorker, wait_until
from helpers import free_endpoint

from rigbus.bus.client.client import Client, Event, Task
from rigbus.bus.client.follow import Cursor, channels_for, event_of, topic_filter
from rigbus.bus.errors import BadFrame, DefinitionError
from rigbus.bus.wire import Verb, pack


def event(seq: int, prev: int, channel: str = "p", topic: str = "task.shout.dead") -> Event:
    return Event(seq=seq, prev=prev, channel=channel, topic=topic)


# --- the pure part --------------------------------------------------------------------------------------------


def test_events_in_order_show_no_hole() -> None:
    cursor = Cursor(("p", "c"), 10)
    assert not cursor.see(event(12, 8, "p"))
    assert not cursor.see(event(13, 9, "c"))
    assert not cursor.see(event(15, 12, "p"))
    assert cursor.since == 13


def test_a_missing_event_shows_in_prev_and_is_asked_from_there() -> None:
    cursor = Cursor(("p",), 10)
    assert cursor.see(event(15, 12))
    assert cursor.since == 10
    cursor.caught_up(15)
    assert not cursor.fresh(event(15, 12))
    assert not cursor.see(event(16, 15))


def test_an_event_is_seen_once() -> None:
    cursor = Cursor(("p",), 10)
    assert not cursor.fresh(event(10, 9))
    assert cursor.fresh(event(11, 10))
    cursor.see(event(11, 10))
    assert not cursor.fresh(event(11, 10))
    assert not cursor.fresh(event(12, 11, "a"))  # a channel that is not followed


def test_a_hole_at_the_end_shows_in_the_tick() -> None:
    cursor = Cursor(("p",), 10)
    assert not cursor.behind({"p": 10, "c": 99})
    assert cursor.behind({"p": 11, "c": 99})


@pytest.mark.parametrize(
    ("patterns", "channels"),
    [(["worker.*.lost", "rig.*"], ("p",)), (["task.*.dead"], ("p", "c")), (["*"], ("p", "c"))],
)
def test_channels_follow_from_the_patterns(patterns: list[str], channels: tuple[str, ...]) -> None:
    assert channels_for(patterns) == channels


def test_globs_span_dots_and_take_nothing_else() -> None:
    wanted = topic_filter(["task.*.dead", "batch.plan.?ailed"])
    assert wanted("task.shout.dead")
    assert wanted("task.my.own.dead")
    assert wanted("batch.plan.failed")
    assert not wanted("task.shout.deadly")
    assert not wanted("a.task.shout.dead")


@pytest.mark.parametrize(
    "row", [None, [], [1, 2, 3], ["x", 0, 0, "p", "t", "", "", {}], [1, 0, 0, "p", 7, "", "", {}]]
)
def test_a_row_of_another_shape_is_a_named_error(row: Any) -> None:
    with pytest.raises(BadFrame):
        event_of(row)


# --- a scripted broker loses what the test wants --------------------------------------------------------------


class Feed:
    """A broker with a log, whose publisher the test controls."""

    def __init__(self, folder: Path) -> None:
        self.ctx = zmq.Context()
        self.pub = self.ctx.socket(zmq.XPUB)
        self.pub.linger = 0
        events = free_endpoint(folder)
        self.pub.bind(events)
        self.log: list[list[Any]] = []
        self.oldest = 0
        self.broker = ScriptedBroker(free_endpoint(folder), events=events)
        self.broker.answers[Verb.QUERY] = lambda e: [(Verb.OK, {"seq": self.seq}, [])]
        self.broker.answers[Verb.EVENTS] = self.answer

    @property
    def seq(self) -> int:
        return len(self.log)

    def answer(self, envelope: Any) -> list[Any]:
        since = envelope.header["since"]
        if since < self.oldest:
            return [(Verb.RESNAPSHOT, {"oldest": self.oldest, "last": self.seq}, [])]
        page = self.log[since : since + 2]
        return [(Verb.EVENTS, {"events": page, "last": self.seq, "more": since + 2 < self.seq}, [])]

    def add(self, topic: str, *, publish: bool = True) -> None:
        n = self.seq + 1
        row = [n, n - 1, 0.0, "c", topic, "", "", {}]
        self.log.append(row)
        if publish:
            self.pub.send_multipart([f"c.{topic}".encode(), pack(row)])

    def tick(self) -> None:
        self.pub.send_multipart(
            [b"tick", pack({"seq": self.seq, "at": 0, "channels": {"p": 0, "c": self.seq}})]
        )

    def subscribed(self) -> None:
        for _ in range(3):
            assert self.pub.poll(5000)
            self.pub.recv()


@pytest.fixture
def feed(rig_dir: Path) -> Iterator[Feed]:
    feed = Feed(rig_dir)
    yield feed
    feed.broker.stop()
    feed.ctx.destroy(0)


@pytest.fixture
def bus(feed: Feed) -> Iterator[Client]:
    with Client(feed.broker.endpoint) as client:
        yield client


def seqs(stream: Any, n: int) -> list[int]:
    out = []
    for _ in range(n):
        got = stream.poll(5)
        assert got is not None, f"only {out}"
        out.append(got.seq)
    return out


def test_events_come_live_without_asking_the_log(feed: Feed, bus: Client) -> None:
    with bus.events("task.*.done") as stream:
        feed.subscribed()
        for topic in ("task.a.done", "task.a.ready", "task.b.done"):
            feed.add(topic)
        assert seqs(stream, 2) == [1, 3]
    assert Verb.EVENTS not in feed.broker.verbs()


def test_lost_events_are_read_from_the_log_in_order(feed: Feed, bus: Client) -> None:
    with bus.events(["task.*"]) as stream:
        feed.subscribed()
        feed.add("task.a.ready")
        for _ in range(5):
            feed.add("task.a.done", publish=False)
        feed.add("task.b.done")
        assert seqs(stream, 7) == [1, 2, 3, 4, 5, 6, 7]
        feed.add("task.c.done")
        assert seqs(stream, 1) == [8]
        assert stream.poll(0.05) is None


def test_the_last_event_is_not_lost_either(feed: Feed, bus: Client) -> None:
    with bus.events("task.*") as stream:
        feed.subscribed()
        feed.add("task.a.done", publish=False)
        feed.tick()
        assert seqs(stream, 1) == [1]


def test_since_reads_what_was_before(feed: Feed, bus: Client) -> None:
    for _ in range(5):
        feed.add("task.a.done")
    with bus.events("task.*", since=2) as stream:
        assert seqs(stream, 3) == [3, 4, 5]


def test_a_trimmed_log_says_resnapshot(feed: Feed, bus: Client) -> None:
    for _ in range(5):
        feed.add("task.a.done")
    feed.oldest = 4
    with bus.events("task.*", since=1) as stream:
        got = stream.poll(5)
        assert got is not None
        assert (got.topic, got.data) == ("rig.resnapshot", {"oldest": 4, "last": 5})
        feed.subscribed()
        feed.add("task.b.done")
        assert seqs(stream, 1) == [6]


def test_broken_events_are_dropped_and_the_stream_lives(feed: Feed, bus: Client) -> None:
    with bus.events("task.*") as stream:
        feed.subscribed()
        feed.pub.send_multipart([b"c.task.x", b"\xc1"])
        feed.pub.send_multipart([b"c.task.x", pack(3)])
        feed.pub.send_multipart([b"tick", pack({})])
        feed.add("task.a.done")
        assert seqs(stream, 1) == [1]


def test_a_stream_that_is_closed_ends(bus: Client) -> None:
    stream = bus.events("task.*")
    stream.close()
    stream.close()
    assert list(stream) == []


@pytest.mark.parametrize("patterns", [[], [""], [3]])
def test_a_pattern_is_a_text(bus: Client, patterns: Any) -> None:
    with pytest.raises(DefinitionError):
        bus.events(patterns)


# --- the real broker ------------------------------------------------------------------------------------------


def test_over_a_killed_broker_each_event_comes_once(rig_dir: Path) -> None:
    broker = RealBroker(rig_dir)
    broker.start()
    worker = SmallWorker(broker.endpoint, ["echo"], lambda lease, payload, progress: payload)
    got: list[Event] = []
    following = threading.Event()
    stop = threading.Event()

    def follow() -> None:
        with Client(broker.endpoint) as bus, bus.events("task.echo.done") as stream:
            following.set()
            while not stop.is_set():
                if (found := stream.poll(0.05)) is not None:
                    got.append(found)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        assert following.wait(10)
        with Client(broker.endpoint) as bus:
            ids = list(bus.submit([Task(type="echo", payload=n) for n in range(50)]))
            assert len(list(bus.results(ids, timeout_s=10))) == 50
            broker.kill()
            broker.start()
            more = bus.submit([Task(type="echo", payload=n) for n in range(50)], timeout_s=20)
            assert len(list(bus.results(more, timeout_s=20))) == 50
        begun = time.monotonic()
        wait_until(lambda: len(got) >= 100, "all events")
        assert time.monotonic() - begun < 5
        assert [e.seq for e in got] == sorted({e.seq for e in got})
        assert {e.id for e in got} == {*ids, *more}
    finally:
        stop.set()
        thread.join(10)
        worker.stop()
        broker.stop()
