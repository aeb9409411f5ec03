"""The broker over real sockets and a real database: bad bytes, slow peers, events, the tap, kill -9."""

from __future__ import annotations

import os
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import zmq
from busparts import RealBroker
from harness import spec
from helpers import slack, wait_for

from rigbus.bus.broker.broker import TRIM_PART, Broker, Options
from rigbus.bus.errors import ConfigError, Refused, StoreError
from rigbus.bus.paths import rig_paths
from rigbus.bus.wire import (
    MAX_META_BYTES,
    MAX_REQUESTS,
    PROTOCOL,
    Envelope,
    Verb,
    decode,
    encode,
    pack,
    unpack,
)

WAIT_S = 10.0


class Peer:
    """A DEALER that says what the test wants."""

    def __init__(
        self, endpoint: str, role: str = "client", *, session: str = "", hwm: int = 0, **hello: Any
    ) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        if hwm:
            self.socket.rcvhwm = hwm
            self.socket.rcvbuf = 4096
        self.socket.connect(endpoint)
        self.session = session or uuid.uuid4().hex
        self.inbox: list[Envelope] = []
        self.n = 0
        self.welcome: dict[str, Any] = {}
        if role:
            header = {"proto": [1, 0], "role": role, "session": self.session, **hello}
            self.welcome = self.ask(Verb.HELLO, header).header

    def say(
        self, verb: Verb, header: dict[str, Any] | None = None, body: Sequence[bytes] = (), corr: bytes = b""
    ) -> None:
        self.socket.send_multipart(encode(verb, header or {}, body, corr))

    def ask(self, verb: Verb, header: dict[str, Any] | None = None, body: Sequence[bytes] = ()) -> Envelope:
        self.n += 1
        corr = b"q%d" % self.n
        self.say(verb, header, body, corr)
        return self.wait(lambda e: e.corr == corr)

    def wait(self, wanted: Callable[[Envelope], bool], timeout_s: float = WAIT_S) -> Envelope:
        """The first message that fits; others stay in the inbox."""
        deadline = time.monotonic() + timeout_s
        while True:
            for env in self.inbox:
                if wanted(env):
                    self.inbox.remove(env)
                    return env
            left = deadline - time.monotonic()
            assert left > 0 and self.socket.poll(int(left * 1000) + 1), f"nothing came; inbox: {self.inbox}"
            self.inbox.append(decode(self.socket.recv_multipart()))

    def push(self, verb: Verb) -> dict[str, Any]:
        return self.wait(lambda e: e.verb is verb and not e.corr).header

    def submit(self, *specs: dict[str, Any], payloads: Sequence[bytes] = (), **batch: Any) -> Envelope:
        head = {"key": uuid.uuid4().hex, "kind": "client", "name": "t", **batch}
        return self.ask(Verb.SUBMIT, {"batch": head, "tasks": list(specs)}, payloads)

    def offer(self, credit: int = 1, slots: int = 1, **offer: Any) -> None:
        self.say(
            Verb.OFFER, {"credit": credit, "slots": slots, "types": ["noop"], "classes": ["cpu"], **offer}
        )

    def leases(self, n: int) -> list[tuple[dict[str, Any], bytes]]:
        """The next ``n`` leases with their payloads."""
        found: list[tuple[dict[str, Any], bytes]] = []
        while len(found) < n:
            env = self.wait(lambda e: e.verb is Verb.LEASE)
            found += zip(env.header["leases"], env.body, strict=True)
        return found

    def result(self, *leases: dict[str, Any], value: Any = None) -> Envelope:
        results = [{"token": lease["token"], "ok": True, "duration_s": 0.1} for lease in leases]
        return self.ask(Verb.RESULT, {"results": results}, [pack(value)] * len(leases))

    def close(self) -> None:
        self.context.destroy(linger=0)


class Rig:
    """A broker in a thread of the test, and peers that are closed at the end."""

    def __init__(self, folder: Path, options: Options | None = None) -> None:
        self.paths = rig_paths(folder / "state")
        self.options = options
        self.broker: Broker | None = None
        self.failure: BaseException | None = None
        self.peers: list[Peer] = []
        self.addresses: dict[str, str] = {}
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(WAIT_S)

    def _run(self) -> None:
        try:
            self.broker = Broker(self.paths, self.options)
            self.addresses = self.broker.addresses
            self._ready.set()
            self.broker.run()
        except BaseException as e:
            self.failure = e
            self._ready.set()

    def peer(self, role: str = "client", **hello: Any) -> Peer:
        peer = Peer(self.addresses["commands"], role, **hello)
        self.peers.append(peer)
        return peer

    def worker(self, credit: int = 1, slots: int = 1, **offer: Any) -> Peer:
        worker = self.peer("worker", name=f"w{len(self.peers)}")
        worker.offer(credit, slots, **offer)
        worker.ask(Verb.RENEW)
        return worker

    def subscribe(self, *topics: bytes) -> Subscriber:
        subscriber = Subscriber(self.addresses["events"], *topics)
        self.peers.append(subscriber)  # type: ignore[arg-type]
        return subscriber

    def stop(self) -> None:
        for peer in self.peers:
            peer.close()
        if self.broker is not None and self._thread.is_alive():
            self.broker.stop()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


class Subscriber:
    """A SUB on the events socket that is known to be subscribed."""

    def __init__(self, endpoint: str, *topics: bytes) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.SUB)
        self.socket.linger = 0
        for topic in (b"tick", *topics):
            self.socket.subscribe(topic)
        self.socket.connect(endpoint)
        self.next(b"tick")

    def next(self, topic: bytes, timeout_s: float = WAIT_S) -> tuple[bytes, Any, list[bytes]]:
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            assert left > 0 and self.socket.poll(int(left * 1000) + 1), f"no {topic!r} came"
            frames = self.socket.recv_multipart()
            if frames[0].startswith(topic):
                return frames[0], unpack(frames[1]), frames[2:]

    def close(self) -> None:
        self.context.destroy(linger=0)


@pytest.fixture
def rig(rig_dir: Path) -> Iterator[Rig]:
    rig = Rig(rig_dir)
    yield rig
    rig.stop()
    assert rig.failure is None, rig.failure


# -- one task's life -----------------------------------------------------------------------------------------


def test_a_task_goes_through_submit_lease_result_and_end(rig: Rig) -> None:
    worker, client = rig.worker(), rig.peer()
    accepted = client.submit(spec("a", meta={"m": 1}), payloads=[b"payload"])
    assert accepted.verb is Verb.ACCEPTED
    ((lease, payload),) = worker.leases(1)
    assert payload == b"payload" and lease["meta"] == {"m": 1} and lease["id"] == accepted.header["ids"][0]
    assert worker.result(lease, value={"v": 1}).header == {"tokens": [lease["token"]]}
    ended = client.wait(lambda e: e.verb is Verb.ENDED)
    assert ended.header["ok"] and unpack(ended.body[0]) == {"v": 1}
    row = client.ask(Verb.QUERY, {"what": "task", "id": lease["id"]})
    assert row.header["rows"][0]["state"] == "done" and unpack(row.body[0]) == {"v": 1}
    assert row.header["attempts"] == []


def test_who_waits_for_what_has_ended_hears_it_at_once_with_its_value(rig: Rig) -> None:
    worker, client, other = rig.worker(), rig.peer(), rig.peer()
    (id_,) = client.submit(spec("a")).header["ids"]
    worker.result(worker.leases(1)[0][0], value="v")
    answer = other.ask(Verb.QUERY, {"what": "wait", "ids": [id_, "nobody"]})
    assert answer.header["states"] == {id_: "done", "nobody": "unknown"}
    ended = other.wait(lambda e: e.verb is Verb.ENDED)
    assert ended.header["id"] == id_ and unpack(ended.body[0]) == "v"


def test_a_result_by_reference_is_read_in_pieces_by_who_cannot_see_the_folder(rig: Rig) -> None:
    worker, client = rig.worker(), rig.peer()
    (id_,) = client.submit(spec("a")).header["ids"]
    sha, data = "ab" * 32, os.urandom(700_000)
    folder = rig.paths.results / sha[:2]
    folder.mkdir(parents=True)
    (folder / sha).write_bytes(data)
    ((lease, _),) = worker.leases(1)
    result = {
        "token": lease["token"],
        "ok": True,
        "duration_s": 0.1,
        "ref": {"sha256": sha, "bytes": len(data)},
    }
    worker.ask(Verb.RESULT, {"results": [result]}, [b""])
    parts = b""
    while len(parts) < len(data):
        parts += client.ask(Verb.QUERY, {"what": "result", "id": id_, "offset": len(parts)}).body[0]
    assert parts == data
    (folder / sha).unlink()
    assert client.ask(Verb.QUERY, {"what": "result", "id": id_}).header["code"] == "not_found"


def test_large_meta_in_many_leases_still_fits_the_messages(rig: Rig) -> None:
    client = rig.peer()
    meta = {"text": "x" * (MAX_META_BYTES - 100)}
    for n in range(4):
        client.submit(*[spec(f"{n}-{i}", meta=meta) for i in range(60)])
    worker = rig.worker(credit=240, slots=240)
    leases = worker.leases(240)
    assert len({lease["key"] for lease, _ in leases}) == 240
    assert all(lease["meta"] == meta for lease, _ in leases)


def test_pages_of_large_rows_are_cut_and_say_where_to_go_on(rig: Rig) -> None:
    client = rig.peer()
    meta = {"text": "x" * (MAX_META_BYTES - 100)}
    answer = None
    for n in range(3):
        answer = client.submit(*[spec(f"{n}-{i}", meta=meta) for i in range(50)], key="mine", open=True)
    assert answer is not None
    seen: list[str] = []
    cursor = 0
    while cursor is not None:
        header = {"what": "tasks", "batch": answer.header["batch"], "full": True, "cursor": cursor}
        page = client.ask(Verb.QUERY, header)
        assert page.verb is Verb.OK and len(page.body) == len(page.header["rows"])
        seen += [row["key"] for row in page.header["rows"]]
        cursor = page.header["cursor"]
    assert seen == [f"{n}-{i}" for n in range(3) for i in range(50)]


# -- bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frames",
    [
        [b"garbage"],
        [b"", b"", b"", b""],
        [PROTOCOL, b"DANCE", b"c", b"\x80"],
        [b"RIGX", b"HELLO", b"c", b"\x80"],
        [PROTOCOL, b"HELLO", b"c", b"\xc1"],
        [PROTOCOL, b"HELLO", b"c", b"\x91" * 5000],
        [PROTOCOL, b"QUERY", b"c" * 60, b"\x80"],
        [PROTOCOL, b"QUERY", b"c", b"\x80", *[b""] * 2000],
    ],
)
def test_garbage_is_answered_and_the_loop_lives(rig: Rig, frames: list[bytes]) -> None:
    stranger, client = rig.peer(role=""), rig.peer()
    stranger.socket.send_multipart(frames)
    error = stranger.wait(lambda e: e.verb is Verb.ERROR)
    assert error.header["code"] == "bad_frame" and error.header["rule"]
    assert error.corr == (b"c" if len(frames) > 2 and frames[2] == b"c" else b"")
    assert client.ask(Verb.QUERY, {"what": "status"}).verb is Verb.OK


def test_a_peer_of_another_major_version_is_told_so_in_frames_of_its_own(rig: Rig) -> None:
    stranger, client = rig.peer(role=""), rig.peer()
    hello = {"proto": [2, 0], "role": "worker", "name": "gpu1", "session": "s" * 32}
    stranger.socket.send_multipart([b"RIG2", b"HELLO", b"c", pack(hello)])
    assert stranger.socket.poll(int(WAIT_S * 1000))
    major, verb, corr, header = stranger.socket.recv_multipart()
    assert (major, verb, corr) == (b"RIG2", b"ERROR", b"c")
    assert unpack(header)["code"] == "version" and "this broker 1.0" in unpack(header)["message"]
    (row,) = client.ask(Verb.QUERY, {"what": "status"}).header["refused"]
    assert row["who"] == "worker gpu1"
    stranger.socket.send_multipart([b"RIG300", b"WHATEVER", b"c"])  # not even its HELLO can be read
    assert stranger.socket.poll(int(WAIT_S * 1000))
    rows = client.ask(Verb.QUERY, {"what": "status"}).header["refused"]
    assert rows[-1]["who"] == "a peer" and "protocol 300.x" in rows[-1]["why"]


def test_questions_about_the_log_by_the_thousand_hold_up_nobody(rig: Rig) -> None:
    client, curious = rig.peer(), rig.peer()
    for _ in range(5):
        client.submit(*[spec(f"t{i}") for i in range(1000)])
    for _ in range(3 * MAX_REQUESTS):
        try:
            curious.socket.send_multipart(
                encode(Verb.EVENTS, {"since": 0, "limit": 5000}, corr=b"e"), zmq.NOBLOCK
            )
        except zmq.Again:
            break
    for _ in range(3):
        began = time.monotonic()
        assert client.ask(Verb.QUERY, {"what": "status"}).verb is Verb.OK
        assert time.monotonic() - began < 3.0 * slack()


def test_a_frame_over_the_limit_costs_its_sender_the_connection_only(rig: Rig) -> None:
    client = rig.peer()
    flood = rig.peer()
    flood.socket.send_multipart([PROTOCOL, b"QUERY", b"c", b"x" * (2 << 20)])
    assert client.ask(Verb.QUERY, {"what": "status"}).verb is Verb.OK


def test_without_hello_everything_is_answered_no_session(rig: Rig) -> None:
    stranger = rig.peer(role="")
    for verb in (Verb.QUERY, Verb.SUBMIT, Verb.EVENTS, Verb.RESULT, Verb.BRAIN):
        assert stranger.ask(verb).header["code"] == "no_session"


@pytest.mark.parametrize(
    "header",
    [
        {"since": 2**64 - 1},
        {"since": float("inf")},
        {"since": float("nan")},
        {"since": "x"},
        {"since": -5},
        {"since": [1]},
        {"limit": 2**64 - 1},
        {"limit": float("inf")},
        {"channel": ["p"]},
        {"channel": {}},
    ],
)
def test_a_senseless_question_for_events_does_not_hurt(rig: Rig, header: dict[str, Any]) -> None:
    client = rig.peer()
    assert client.ask(Verb.EVENTS, header).verb in (Verb.EVENTS, Verb.ERROR, Verb.RESNAPSHOT)
    assert client.ask(Verb.QUERY, {"what": "status"}).verb is Verb.OK


@pytest.mark.parametrize(
    "header",
    [
        {"what": "result", "offset": 2**64 - 1},
        {"what": "result", "offset": float("inf")},
        {"what": "tasks", "cursor": 2**64 - 1},
        {"what": "tasks", "cursor": "x", "limit": -1},
        {"what": "tasks", "states": 5},
        {"what": ["status"]},
        {},
    ],
)
def test_a_senseless_question_does_not_hurt(rig: Rig, header: dict[str, Any]) -> None:
    worker, client = rig.worker(), rig.peer()
    (id_,) = client.submit(spec("a")).header["ids"]
    worker.result(worker.leases(1)[0][0])
    assert client.ask(Verb.QUERY, {"id": id_, **header}).verb in (Verb.OK, Verb.ERROR)
    assert client.ask(Verb.QUERY, {"what": "status"}).verb is Verb.OK


def test_heartbeats_of_any_bytes_do_not_hurt(rig: Rig) -> None:
    worker = rig.worker()
    name = rig.peers[-1].ask(Verb.QUERY, {"what": "workers"}).header["workers"][0]["id"]
    context = zmq.Context()
    pub = context.socket(zmq.PUB)
    pub.linger = 0
    pub.connect(rig.addresses["heartbeats"])

    def heard() -> bool:
        for frames in (
            [b"hb."],
            [b"hb.\xff", b"\x80"],
            [b"hb.x", b"\xc1"],
            [b"hb.x", b"\x90"],
            [b"hb.x", b"\x91" * 999],
        ):
            pub.send_multipart(frames)
        pub.send_multipart([b"hb." + name.encode(), pack({"model": "tiny"})])
        (row,) = worker.ask(Verb.QUERY, {"what": "workers"}).header["workers"]
        return bool(row["model"] == "tiny")

    try:
        wait_for(heard, what="a heartbeat in the answer")
    finally:
        context.destroy(linger=0)


# -- events and the tap --------------------------------------------------------------------------------------


def test_events_are_published_after_their_commit_in_numbers_without_a_hole(rig: Rig) -> None:
    subscriber = rig.subscribe(b"c.")
    worker, client = rig.worker(), rig.peer()
    client.submit(spec("a"))
    worker.result(worker.leases(1)[0][0])
    seen = [subscriber.next(b"c.task.noop.")[1] for _ in range(3)]
    assert [e[4] for e in seen] == ["task.noop.ready", "task.noop.leased", "task.noop.done"]
    assert [e[1] for e in seen[1:]] == [e[0] for e in seen[:-1]]
    logged = client.ask(Verb.EVENTS, {"since": 0, "channel": "c"}).header
    assert logged["events"] == seen and not logged["more"]
    tick = subscriber.next(b"tick")[1]
    assert tick["channels"]["c"] == seen[-1][0]


def test_a_long_log_is_read_page_by_page(rig: Rig) -> None:
    client = rig.peer()
    client.submit(*[spec(f"t{i}") for i in range(700)])
    client.submit(*[spec(f"t{i}") for i in range(700)])
    since, seen = 0, 0
    while True:
        page = client.ask(Verb.EVENTS, {"since": since}).header
        seen += len(page["events"])
        if not page["more"]:
            break
        since = page["events"][-1][0]
    assert seen == page["last"] >= 1400


def test_what_was_trimmed_is_answered_resnapshot(rig_dir: Path) -> None:
    rig = Rig(rig_dir, Options(retain_events=10))
    try:
        client = rig.peer()
        client.submit(spec("a"))
        client.submit(*[spec(f"t{i}") for i in range(50)])
        answer = client.ask(Verb.EVENTS, {"since": 0})
        assert answer.verb is Verb.RESNAPSHOT and 0 < answer.header["oldest"] <= answer.header["last"]
        assert client.ask(Verb.EVENTS, {"since": answer.header["last"]}).verb is Verb.EVENTS
    finally:
        rig.stop()


def test_the_log_is_never_much_longer_than_its_bound(rig_dir: Path) -> None:
    keep, at_once = 200, 20
    rig = Rig(rig_dir, Options(retain_events=keep))
    try:
        client = rig.peer()
        for n in range(40):
            client.submit(*[spec(f"t{n}-{i}") for i in range(at_once)])
            header = client.ask(Verb.EVENTS, {"since": 0, "limit": 1}).header
            oldest = header["oldest"] if "oldest" in header else header["events"][0][0]
            # What has come since it was trimmed, and what is left of the oldest commit: it goes as a whole.
            assert header["last"] - oldest <= keep + keep // TRIM_PART + 2 * at_once
        assert header["last"] > 3 * keep
    finally:
        rig.stop()


def test_the_tap_shows_both_directions_only_while_somebody_listens(rig: Rig) -> None:
    client = rig.peer()
    assert rig.broker is not None and not rig.broker.publisher.tapped
    tap = rig.subscribe(b"tap.")
    wait_for(lambda: rig.broker is not None and rig.broker.publisher.tapped, what="the tap to open")
    client.ask(Verb.QUERY, {"what": "status", "secret": 5})
    _topic, record, _ = tap.next(b"tap.in.QUERY")
    assert record["dir"] == "in" and record["verb"] == "QUERY" and record["header"]["secret"] == 5
    assert tap.next(b"tap.out.OK")[1]["corr"] == record["corr"]
    tap.close()
    wait_for(lambda: rig.broker is not None and not rig.broker.publisher.tapped, what="the tap to close")


def test_progress_goes_to_its_topic(rig: Rig) -> None:
    worker, client = rig.worker(), rig.peer()
    (id_,) = client.submit(spec("a")).header["ids"]
    subscriber = rig.subscribe(b"progress." + id_.encode())
    ((lease, _),) = worker.leases(1)
    worker.say(Verb.PROGRESS, {"token": lease["token"], "n": 0, "pct": 0.5}, [b"chunk"])
    _, header, body = subscriber.next(b"progress.")
    assert header["pct"] == 0.5 and body == [b"chunk"]
    assert client.wait(lambda e: e.verb is Verb.PROGRESS).body == [b"chunk"]


# -- slow and vanishing peers --------------------------------------------------------------------------------


@pytest.fixture
def narrow_rig(rig_dir: Path) -> Iterator[Rig]:
    """A rig where little may wait for a peer."""
    rig = Rig(rig_dir, Options(peer_bytes=1 << 20))
    yield rig
    rig.stop()
    assert rig.failure is None, rig.failure


def test_a_peer_that_does_not_read_is_cut_off_and_the_others_do_not_notice(
    narrow_rig: Rig,
) -> None:
    rig = narrow_rig
    worker, client = rig.worker(), rig.peer()
    slow = rig.peer(hwm=1)
    (id_,) = slow.submit(spec("a")).header["ids"]
    ((lease, _),) = worker.leases(1)
    assert rig.broker is not None
    sent = 0
    while slow.session in {s.id for s in list(rig.broker.core.peers.values())}:
        for _ in range(50):
            worker.say(Verb.PROGRESS, {"token": lease["token"], "n": sent}, [b"x" * 100_000])
            sent += 1
        begun = time.monotonic()
        assert client.ask(Verb.QUERY, {"what": "status"}).verb is Verb.OK
        assert time.monotonic() - begun < 3.0 * slack()
        worker.ask(Verb.RENEW, {"tokens": [lease["token"]]})
        assert sent < 10_000, "it is never cut off"
    worker.result(lease, value="end")
    back = rig.peer(session=slow.session)
    back.ask(Verb.QUERY, {"what": "wait", "ids": [id_]})
    assert back.wait(lambda e: e.verb is Verb.ENDED).header["ok"]


def test_leases_for_a_worker_that_vanished_go_to_another_at_once(rig: Rig) -> None:
    gone, client = rig.worker(credit=50, slots=50), rig.peer()
    gone.close()
    rig.peers.remove(gone)
    client.submit(*[spec(f"t{i}") for i in range(20)])
    other = rig.worker(credit=50, slots=50)
    assert rig.broker is not None
    leases = other.leases(20)
    assert {lease["attempt"] for lease, _ in leases} <= {1, 2}
    assert all(t.counts == (0, 0, 0) for t in rig.broker.core.tasks.values())


# -- two brokers, addresses, the end -------------------------------------------------------------------------


def test_a_second_broker_on_a_state_folder_is_refused_and_the_first_lives(rig: Rig) -> None:
    client = rig.peer()
    with pytest.raises(Refused, match="another broker runs"):
        Broker(rig.paths)
    assert client.ask(Verb.QUERY, {"what": "status"}).verb is Verb.OK


@pytest.mark.parametrize("address", ["tcp://0.0.0.0:5555", "tcp://192.168.1.2:5555", "tcp://*:5555"])
def test_tcp_off_loopback_is_refused_with_its_reason(rig_dir: Path, address: str) -> None:
    paths = rig_paths(rig_dir / "state")
    with pytest.raises(ConfigError, match="CURVE"):
        Broker(paths, addresses={"commands": address, "events": "ipc://x", "heartbeats": "ipc://y"})


def test_a_database_that_cannot_be_used_stops_the_start(rig_dir: Path) -> None:
    paths = rig_paths(rig_dir / "state")
    paths.state.mkdir(parents=True)
    paths.db.write_bytes(b"no database" * 200)
    with pytest.raises(StoreError):
        Broker(paths)


def test_a_commit_that_fails_ends_the_broker_without_an_answer(rig_dir: Path) -> None:
    rig = Rig(rig_dir)
    client = rig.peer()
    assert client.submit(spec("before"), key="before").verb is Verb.ACCEPTED
    assert rig.broker is not None
    # the thread owns the connection: what it does next is done for it there
    commit = rig.broker.store.commit

    def fails(changes: Any, now: float, wall: float) -> None:
        rig.broker.store.db.execute("PRAGMA max_page_count=1")  # type: ignore[union-attr]
        commit(changes, now, wall)

    rig.broker.store.commit = fails  # type: ignore[method-assign]
    client.say(
        Verb.SUBMIT,
        {"batch": {"key": "after"}, "tasks": [spec(f"t{i}") for i in range(500)]},
        [b"x" * 9000] * 500,
        b"s",
    )
    wait_for(lambda: rig.failure is not None, what="the broker's end")
    assert isinstance(rig.failure, StoreError) and not client.socket.poll(50)
    rig.stop()
    again = Rig(rig_dir)
    try:
        batches = again.peer().ask(Verb.QUERY, {"what": "batches", "all": True}).header["batches"]
        assert [b["total"] for b in batches] == [1]
    finally:
        again.stop()


# -- kill -9 -------------------------------------------------------------------------------------------------


@pytest.fixture
def real(rig_dir: Path) -> Iterator[RealBroker]:
    broker = RealBroker(rig_dir)
    broker.start()
    yield broker
    broker.stop()


def test_whatever_was_accepted_is_there_after_kill_9_and_tokens_never_repeat(real: RealBroker) -> None:
    accepted: dict[str, list[str]] = {}
    tokens: list[tuple[int, int]] = []
    session = uuid.uuid4().hex
    held: list[dict[str, Any]] = []
    for n in range(4):
        client = Peer(real.endpoint)
        worker = Peer(
            real.endpoint, "worker", session=session, name="w1", resume=[lease["token"] for lease in held]
        )
        assert worker.welcome["kept"] == [lease["token"] for lease in held] and worker.welcome["stale"] == []
        worker.offer(credit=3 * (n + 1), slots=3 * (n + 1))
        for i in range(5):
            answer = client.submit(spec(f"{n}-{i}"), key=f"b{n}-{i}")
            accepted[f"b{n}-{i}"] = answer.header["ids"]
        # the last one may or may not be accepted: nobody will know before it is asked again
        client.say(Verb.SUBMIT, {"batch": {"key": f"last{n}"}, "tasks": [spec("x")]})
        new = [lease for lease, _ in worker.leases(3)]
        tokens += [tuple(lease["token"]) for lease in new]
        held += new
        real.kill()
        client.close()
        worker.close()
        real.start()
    client = Peer(real.endpoint)
    for key, ids in accepted.items():
        answer = client.submit(spec(key[1:]), key=key)
        assert answer.verb is Verb.ACCEPTED and answer.header["ids"] == ids
    for n in range(4):
        assert client.submit(spec("x"), key=f"last{n}").verb is Verb.ACCEPTED
    assert len(set(tokens)) == len(tokens) >= 12 and tokens == sorted(tokens)
    worker = Peer(
        real.endpoint, "worker", session=session, name="w1", resume=[lease["token"] for lease in held]
    )
    assert worker.welcome["kept"] == [lease["token"] for lease in held]
    assert sorted(map(tuple, worker.result(*held).header["tokens"])) == tokens
    status = client.ask(Verb.QUERY, {"what": "status"}).header
    assert status["broker"]["incarnation"] == 5 and status["broker"]["stale_results"] == 0
    assert status["tasks"]["done"] == len(tokens) and sum(status["tasks"].values()) == 24
    for peer in (client, worker):
        peer.close()


def test_a_result_whose_answer_was_lost_is_recorded_once(real: RealBroker) -> None:
    client, worker = Peer(real.endpoint), Peer(real.endpoint, "worker", name="w1")
    worker.offer()
    (id_,) = client.submit(spec("a")).header["ids"]
    ((lease, _),) = worker.leases(1)
    worker.result(lease, value=1)
    real.kill()
    real.start()
    again = Peer(real.endpoint, "worker", session=worker.session, name="w1", resume=[lease["token"]])
    assert again.welcome["kept"] == [] and again.welcome["stale"] == []
    assert again.result(lease, value=2).verb is Verb.RECORDED
    other = Peer(real.endpoint)
    row = other.ask(Verb.QUERY, {"what": "task", "id": id_})
    assert unpack(row.body[0]) == 1 and row.header["rows"][0]["attempt"] == 1
    for peer in (client, worker, again, other):
        peer.close()


def test_another_result_of_an_attempt_that_was_recorded_before_the_restart_is_told_once(
    real: RealBroker,
) -> None:
    client, worker = Peer(real.endpoint), Peer(real.endpoint, "worker", name="w1")
    worker.offer()
    client.submit(spec("a"))
    ((lease, _),) = worker.leases(1)
    worker.result(lease, value=1)
    real.kill()
    real.start()
    again = Peer(real.endpoint, "worker", session=worker.session, name="w1", resume=[lease["token"]])
    other = Peer(real.endpoint)

    def contradictions() -> int:
        said: int = other.ask(Verb.QUERY, {"what": "status"}).header["broker"]["contradictions"]
        return said

    again.result(lease, value=1)
    assert contradictions() == 0, "the same again"
    real.kill()
    real.start()
    for peer in (again, other):
        peer.close()
    again = Peer(real.endpoint, "worker", session=worker.session, name="w1", resume=[lease["token"]])
    other = Peer(real.endpoint)
    for _ in range(2):
        assert again.result(lease, value=2).verb is Verb.RECORDED
    assert contradictions() == 1
    events = other.ask(Verb.EVENTS, {"since": 0, "limit": 1000}).header["events"]
    assert sum(row[4] == "worker.w1.nondeterministic" for row in events) == 1
    for peer in (client, worker, again, other):
        peer.close()


def test_sigterm_ends_it_in_order(rig_dir: Path) -> None:
    broker = RealBroker(rig_dir)
    broker.start()
    assert broker._process is not None
    broker._process.send_signal(signal.SIGTERM)
    assert broker._process.wait(WAIT_S) == 0
    assert not broker.paths.db.with_name(broker.paths.db.name + "-wal").exists()  # checkpointed and closed
    broker.stop()
