"""What peers make the broker hold: the decisions alone, and bare sockets against a real broker."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import rawzmtp
import zmq
from busparts import RealBroker
from helpers import short_folder, wait_for

from rigbus.bus.broker.broker import Options
from rigbus.bus.broker.inflow import LOOK_S, MIB, PATIENCE_S, SETTLE_S, TASK_BYTES, Inflow, Watch
from rigbus.bus.client.link import Connection
from rigbus.bus.wire import Verb, encode

ALLOWED = 100 * MIB


class Bench:
    """A :class:`Watch` with a clock and a process of so many bytes."""

    def __init__(self) -> None:
        self.watch = Watch(ALLOWED)
        self.now = 0.0
        self.size = 50 * MIB
        self.tasks = 0
        self.watch.start(self.size, 0)

    def look(self, unread: dict[int, int] | None = None, *, grow: int = 0) -> list[int]:
        self.now += LOOK_S
        self.size += grow
        asked = self.watch.wants_connections(self.size, self.tasks)
        return self.watch.look(self.size, self.tasks, unread or {} if asked else {}, self.now)

    def over(self) -> bool | None:
        return self.watch.over(self.size, self.tasks, self.now)


# -- the decisions -------------------------------------------------------------------------------------------


def test_memory_within_the_bound_cuts_nobody() -> None:
    b = Bench()
    assert not any(b.look({1: 9000}, grow=MIB) for _ in range(90))


def test_the_connections_that_bring_it_are_cut_and_the_others_are_not() -> None:
    b = Bench()
    cut: list[int] = []
    while not cut:
        cut = b.look({1: 200_000, 2: 0, 3: 900}, grow=20 * MIB)
    assert cut == [1]
    assert b.over() is None
    b.size = 51 * MIB
    assert b.over() is True
    assert b.look() == [] and b.over() is None


def test_a_reader_that_is_faster_than_the_flood_cuts_all_and_they_greet_again() -> None:
    b = Bench()
    cut: list[int] = []
    while not cut:
        cut = b.look({1: 0, 2: 0}, grow=20 * MIB)
    assert cut == [1, 2]


def test_a_slow_flood_is_noticed_too() -> None:
    b = Bench()
    cut: list[int] = []
    for _ in range(200):
        cut = cut or b.look({1: 0}, grow=MIB)
    assert cut == [1]


def test_when_the_suspects_were_the_wrong_ones_the_others_follow() -> None:
    b = Bench()
    assert b.look({1: 10, 2: 0}, grow=101 * MIB) == [1]
    assert b.look({2: 0}) == [] and b.over() is None, "libzmq has some time to free it"
    b.now += SETTLE_S
    assert b.look({2: 0}) == [], "and more of it, while memory does not rise"
    assert b.look({2: 0}, grow=MIB) == [2]
    b.size = 50 * MIB
    assert b.over() is True


def test_memory_that_no_connection_had_is_explained_from_then_on() -> None:
    b = Bench()
    assert b.look({1: 10, 2: 0}, grow=101 * MIB) == [1]
    b.now += PATIENCE_S
    assert b.look({2: 0}) == [2]
    assert b.over() is None
    b.now += PATIENCE_S
    assert b.look() == [] and b.over() is False
    assert b.look({1: 10, 2: 0}, grow=50 * MIB) == [], "of the next hundred"


def test_tasks_are_no_flood() -> None:
    b = Bench()
    for _ in range(10):
        b.tasks += 50 * MIB // TASK_BYTES
        assert b.look({1: 5}, grow=50 * MIB) == []


# -- the process and its connections -------------------------------------------------------------------------


def test_a_number_that_another_socket_has_by_now_is_still_watched() -> None:
    """The three sockets tell of their connections apart: an old end may be read after the number's next beginning."""
    context = zmq.Context()
    sockets = {name: context.socket(zmq.ROUTER) for name in ("commands", "events")}
    inflow = Inflow(sockets, lambda: 0)
    here, there = socket.socketpair()
    try:
        inflow._heard("events", zmq.EVENT_ACCEPTED, here.fileno())
        inflow._heard("commands", zmq.EVENT_ACCEPTED, here.fileno())
        inflow._heard("events", zmq.EVENT_DISCONNECTED, here.fileno())
        assert inflow.usage()["connections"][0] == 1
        inflow._heard("commands", zmq.EVENT_DISCONNECTED, here.fileno())
        assert inflow.usage()["connections"][0] == 0
    finally:
        inflow.close()
        here.close()
        there.close()
        context.destroy(linger=0)


#: A ROUTER that is watched in a process that may open few files; a line says its bound and where it listens.
FEW_FILES = """
import resource, sys, zmq
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 300))
from rigbus.bus.broker.inflow import Inflow
context = zmq.Context()
router = context.socket(zmq.ROUTER)
router.setsockopt(zmq.BACKLOG, 1024)
router.setsockopt(zmq.HANDSHAKE_IVL, 0)
router.bind("tcp://127.0.0.1:*")
inflow = Inflow({"commands": router}, lambda: 0, connections=5000)
inflow.start()
print(inflow.usage()["connections"][1], router.last_endpoint.decode(), flush=True)
sys.stdin.read()
"""


def test_connections_that_take_every_descriptor_are_ended_down_to_the_bound() -> None:
    with ExitStack() as opened:
        words = [sys.executable, "-c", FEW_FILES]
        watched = opened.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        try:
            assert watched.stdout is not None
            bound, endpoint = watched.stdout.readline().decode().split()
            assert bound == "150", "5000 are wanted, and of 300 files half are for connections"
            peers = [opened.enter_context(rawzmtp.connect(endpoint)) for _ in range(600)]
            for raw in peers:
                raw.setblocking(False)
            living = set(peers)

            def few() -> bool:
                living.difference_update([raw for raw in living if hung_up(raw)])
                return len(living) <= 150

            wait_for(few, what="the rest to be ended", timeout_s=30)
            assert watched.poll() is None and living
        finally:
            watched.kill()


def hung_up(raw: socket.socket) -> bool:
    """Whether the other end has closed it; what it sent is thrown away."""
    try:
        while raw.recv(4096):
            pass
    except BlockingIOError:
        return False
    except ConnectionError:
        pass
    return True


# -- a real broker -------------------------------------------------------------------------------------------

INFLOW_MB = 64
#: The bound, a look's worth of a local flood or two, and what a busy machine adds to it.
WORST_MB = INFLOW_MB + 400


@pytest.fixture(scope="module")
def broker() -> Iterator[RealBroker]:
    with short_folder() as folder:
        options = Options(inflow_bytes=INFLOW_MB * MIB, connections=200, handshake_s=0.5)
        made = RealBroker(folder, options)
        made.start()
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture
def client(broker: RealBroker) -> Iterator[Connection]:
    link = Connection(broker.endpoint, role="client")
    link.connect(10)
    try:
        yield link
    finally:
        link.close()


def memory_mb(pid: int, field: str = "VmRSS") -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) // 1024
    raise AssertionError(field)


def forget_peak(pid: int) -> int:
    """VmHWM counts from now on; the present memory."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return memory_mb(pid)


def status(client: Connection) -> dict[str, object]:
    return client.request(Verb.QUERY, {"what": "status"}, timeout_s=30).header


def refused(client: Connection, kind: str) -> list[dict[str, object]]:
    rows = status(client)["refused"]
    assert isinstance(rows, list)
    return [row for row in rows if row["kind"] == kind]


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="the process' own size is read from /proc")


@needs_proc
@pytest.mark.parametrize(
    ("where", "kind"), [("commands", b"DEALER"), ("heartbeats", b"PUB"), ("events", b"SUB")]
)
@pytest.mark.parametrize("size", [1_000_000, 100])
def test_one_endless_message_costs_some_memory_and_its_sender_the_connection(
    broker: RealBroker, client: Connection, where: str, kind: bytes, size: int
) -> None:
    if where == "events" and size > 512:
        pytest.skip("one frame of a subscriber over 512 bytes ends its connection")
    before = forget_peak(broker.pid)
    piece = rawzmtp.frame(b"x" * size, rawzmtp.MORE)
    with rawzmtp.greeted(broker.addresses[where], kind) as raw:
        sent = rawzmtp.flood(raw, piece * max(1, 200_000 // len(piece)), 4 << 30)
    assert sent < 4 << 30, "it was ended"
    assert memory_mb(broker.pid, "VmHWM") - before < WORST_MB

    def named() -> bool:
        whys = [str(row["why"]) for row in refused(client, "flood")]
        return any(f"pid {os.getpid()} (" in why and f"on the {where} socket" in why for why in whys)

    wait_for(named, what="its name", timeout_s=20)
    wait_for(lambda: memory_mb(broker.pid) - before < INFLOW_MB, what="the memory to come back")
    assert client.generation <= 2, (
        "who was quiet was left alone, or has greeted again on a machine without time"
    )


@needs_proc
def test_a_flood_of_whole_messages_is_held_back_at_its_sender(broker: RealBroker, client: Connection) -> None:
    before = forget_peak(broker.pid)
    header = encode(Verb.QUERY, {"what": "nothing", "x": "y" * 900_000})
    piece = b"".join(rawzmtp.frame(f, rawzmtp.MORE) for f in header[:-1]) + rawzmtp.frame(header[-1])
    with rawzmtp.greeted(broker.endpoint) as raw:
        reader = threading.Thread(target=rawzmtp.is_ended, args=(raw,), daemon=True)
        reader.start()
        rawzmtp.flood(raw, piece, 600 * MIB)
        assert status(client)["broker"]
    assert memory_mb(broker.pid, "VmHWM") - before < WORST_MB


#: What libzmq ends by itself, at once or when the time for a handshake is over.
NO_ZMTP = [
    b"\xff" * 5000,
    rawzmtp.GREETING + b"\xff" * 3000,
    rawzmtp.GREETING + rawzmtp.frame(b"no READY before it"),
    rawzmtp.GREETING + rawzmtp.ready(b"DEALER") + b"\x02" + b"\xff" * 8,
    rawzmtp.GREETING + rawzmtp.ready(b"REP"),
    rawzmtp.SIGNATURE + b"\x09\x00" + b"CURVE".ljust(20, b"\0") + b"\0" * 32,
    rawzmtp.SIGNATURE[:5],
    rawzmtp.GREETING[:30],
    b"",
]


def test_half_a_greeting_or_a_wrong_one_ends_its_connection_and_nothing_else(
    broker: RealBroker, client: Connection
) -> None:
    with ExitStack() as opened:
        peers = []
        for noise in NO_ZMTP:
            for where in ("commands", "heartbeats", "events"):
                raw = opened.enter_context(rawzmtp.connect(broker.addresses[where]))
                raw.sendall(noise)
                peers.append((noise[:40], where, raw))
        assert [(noise, where) for noise, where, raw in peers if not rawzmtp.is_ended(raw)] == []
    assert status(client)["broker"]
    assert client.generation <= 2


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\nHost: rig\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
        b"SSH-2.0-OpenSSH_9.9\r\n",
        b"\0" * 5000,
        b"\x01\x00" + b"\x05\x00junk" * 50,
        rawzmtp.SIGNATURE + b"\x01\x05" + b"\x05\x00junk" * 50,
        rawzmtp.SIGNATURE + b"\x00\x05" + b"\0" * 100,
    ],
)
def test_what_libzmq_takes_for_an_old_zmtp_is_broken_messages_at_most(
    broker: RealBroker, client: Connection, noise: bytes
) -> None:
    """ZMTP 1 has no handshake: such a connection stays, one of those that are bounded, until its peer leaves."""
    for where in ("commands", "heartbeats", "events"):
        with rawzmtp.connect(broker.addresses[where]) as raw:
            raw.sendall(noise)
            assert status(client)["broker"]
    assert client.generation <= 2


def test_connections_that_say_nothing_are_ended_and_keep_nobody_out(broker: RealBroker) -> None:
    silent = [rawzmtp.connect(broker.endpoint) for _ in range(150)]
    try:
        link = Connection(broker.endpoint, role="client")
        try:
            link.connect(10)
            assert status(link)["broker"]
        finally:
            link.close()
        assert all(map(rawzmtp.is_ended, silent))
    finally:
        for raw in silent:
            raw.close()


@needs_proc
def test_there_is_a_bound_of_connections(broker: RealBroker, client: Connection) -> None:
    many: list[socket.socket] = []
    try:
        for _ in range(300):
            raw = rawzmtp.connect(broker.endpoint)
            raw.setblocking(False)
            many.append(raw)
        rows = wait_for(lambda: refused(client, "connections"), what="their name", timeout_s=20)
        assert f"pid {os.getpid()} (" in str(rows[0]["why"])
        assert client.generation <= 2
    finally:
        for raw in many:
            raw.close()

    def left() -> bool:
        limits = status(client)["limits"]
        assert isinstance(limits, dict)
        return bool(limits["connections"]["used"] < 10 and limits["connections"]["bound"] == 200)

    wait_for(left, what="them to be gone", timeout_s=20)
