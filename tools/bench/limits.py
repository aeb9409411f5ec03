"""What this machine can do without us: raw echo, SQLite group commit, fsync, a bare loop of `bash -c true`.

Each is measured in the same run as the figure that it stands beside, on the same disk.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ...bus.errors import RigbusError

if TYPE_CHECKING:
    import zmq

GROUP: Final = 100
_PAGE: Final = b"\0" * 4096
_WINDOW: Final = 100  #: echo messages under way at once
_ANSWER_S: Final = 10.0

_LOOP: Final = """
import subprocess, sys, time
end = time.monotonic() + float(sys.argv[1])
n = 0
while time.monotonic() < end:
    subprocess.run(["bash", "-c", "true"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
    n += 1
print(n)
"""

_ECHO: Final = """
import sys, zmq
router = zmq.Context().socket(zmq.ROUTER)
router.bind(sys.argv[1])
poller = zmq.Poller()
poller.register(router, zmq.POLLIN)
poller.register(sys.stdin, zmq.POLLIN)
while True:
    if sys.stdin.fileno() in dict(poller.poll()):
        break
    while True:
        try:
            router.send_multipart(router.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            break
"""


def fsync_p50_us(folder: Path, count: int = 200) -> float:
    """The median of one fsync of 4 KiB appended to a file in ``folder``, in µs: what each commit pays at least."""
    times = []
    path = folder / "fsync"
    with path.open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(_PAGE)
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    path.unlink()
    return sorted(times)[count // 2] * 1e6


class Sqlite:
    """One INSERT and one UPDATE for each task, synced (WAL, ``synchronous=FULL``), on one database in ``folder``."""

    def __init__(self, folder: Path, payload: int = 200) -> None:
        self._db = sqlite3.connect(folder / "limit.db", isolation_level=None)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        self._db.execute("CREATE TABLE t (no INTEGER PRIMARY KEY, state INTEGER, payload BLOB)")
        self._payload = b"x" * payload
        self._no = 0

    def tasks_per_s(self, group: int, for_s: float) -> float:
        """Tasks a second with ``group`` of them in a commit: one commit inserts them, another one updates them."""
        began = time.perf_counter()
        done = 0
        while (took := time.perf_counter() - began) < for_s:
            numbers = range(self._no, self._no + group)
            self._commit("INSERT INTO t VALUES (?, 0, ?)", [(n, self._payload) for n in numbers])
            self._commit("UPDATE t SET state = 1 WHERE no = ?", [(n,) for n in numbers])
            self._no += group
            done += group
        return done / took

    def _commit(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(statement, rows)
        self._db.execute("COMMIT")

    def close(self) -> None:
        self._db.close()


@contextmanager
def echo(folder: Path) -> Iterator[Callable[[int, float], float]]:
    """A bare pyzmq ROUTER in a process of its own and a DEALER here, each a sync loop.

    Yields a function (window, seconds) -> round trips a second with so many messages under way.
    """
    import zmq

    address = f"ipc://{folder}/echo"
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", _ECHO, address], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    try:
        dealer.connect(address)
        yield lambda window, for_s: _echoes(dealer, window, for_s)
    finally:
        context.destroy(0)
        if process.stdin is not None:
            process.stdin.close()
        process.wait(_ANSWER_S)


def _echoes(dealer: zmq.Socket[bytes], window: int, for_s: float) -> float:
    import zmq

    message = [b"RIG1", b"x" * 200]
    for _ in range(window):
        dealer.send_multipart(message)
    done, began, until = 0, time.perf_counter(), time.perf_counter() + for_s
    under_way = window
    while under_way:
        if not dealer.poll(int(_ANSWER_S * 1000)):
            raise RigbusError("the bare echo process does not answer; this is no benchmark")
        while True:
            try:
                dealer.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            done += 1
            if time.perf_counter() < until:
                dealer.send_multipart(message)
            else:
                under_way -= 1
    return done / (time.perf_counter() - began)


def bash_loop(for_s: float, processes: int = 2) -> float:
    """`bash -c true` a second by bare Python processes that start one after the other, each its own."""
    running = [
        subprocess.Popen(
            [sys.executable, "-S", "-P", "-c", _LOOP, str(for_s)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        for _ in range(processes)
    ]
    counts = []
    for process in running:
        out, _ = process.communicate(timeout=for_s + 30)
        if process.returncode:
            raise RigbusError(f"the bare loop of `bash -c true` ended with {process.returncode}")
        counts.append(int(out))
    return sum(counts) / for_s
