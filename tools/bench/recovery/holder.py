"""A worker with the real loop, core and protocol, whose tasks cost nothing: ``python -m …holder STATE NAME TYPE SLOTS FILE``.

A task of it is neither process nor thread, so that one worker can hold thousands. It ends when its time is over
(``for_s`` of its payload), or when its ``part`` is let go: a line ``release PART`` on stdin, or the end of stdin. Each
attempt that begins is a line of FILE: monotonic seconds, task id, attempt, incarnation of the broker that leased it.
"""

from __future__ import annotations

import heapq
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from ....agents.supervisor.lifeline import lifeline_fd
from ....agents.worker import events as ev
from ....agents.worker.loop import Loop, Peer
from ....agents.worker.run import WorkerConfig
from ....bus.paths import find_rig
from ....bus.wire import Token, pack, unpack

_DONE: Final = pack(None)


class Start(NamedTuple):
    """One attempt that a holder began."""

    at: float  #: monotonic seconds
    id: str
    attempt: int
    incarnation: int


def starts_in(file: Path) -> list[Start]:
    """What a holder has noted so far; a line that is not whole yet is left out."""
    try:
        lines = file.read_text("ascii").rpartition("\n")[0].splitlines()
    except FileNotFoundError:
        return []
    rows = (line.split(" ") for line in lines)
    return [Start(float(at), id_, int(attempt), int(inc)) for at, id_, attempt, inc in rows]


class HoldRunner:
    """Holds leases until they are let go."""

    def __init__(self, loop: Loop, out: int) -> None:
        self._loop = loop
        self._out = out
        self._parts: dict[Token, int] = {}
        self._released: set[int] = set()
        self._due: list[tuple[float, Token]] = []

    def start(self, lease: ev.Lease) -> None:
        said = unpack(lease.payload)
        now = time.monotonic()
        line = f"{now:.6f} {lease.id} {lease.attempt} {lease.token[0]}\n"
        os.write(self._out, line.encode("ascii"))
        self._parts[lease.token] = int(said.get("part", 0))
        if said.get("for_s") is not None:
            heapq.heappush(self._due, (now + float(said["for_s"]), lease.token))
        self._loop.post(ev.Started(lease.token, now))
        if self._parts[lease.token] in self._released:  # it runs a second time
            self._end(lease.token, ev.Outcome(True, _DONE))

    def release(self, part: int | None) -> None:
        """All of this part are done now, and when they come once more; None: of any."""
        if part is not None:
            self._released.add(part)
        for token in [t for t, p in self._parts.items() if part is None or p == part]:
            self._end(token, ev.Outcome(True, _DONE))

    def _end(self, token: Token, outcome: ev.Outcome) -> None:
        if self._parts.pop(token, None) is not None:
            self._loop.post(ev.Ended(token, outcome))

    def recall(self, tokens: Sequence[Token]) -> list[Token]:
        return []  # each has begun

    def terminate(self, token: Token) -> None:
        self._end(token, ev.failed("task", "ended by its worker"))

    def kill(self, token: Token) -> None:
        self.terminate(token)

    def tick(self, now: float) -> float | None:
        while self._due and self._due[0][0] <= now:
            self._end(heapq.heappop(self._due)[1], ev.Outcome(True, _DONE))
        return self._due[0][0] if self._due else None

    def close(self) -> None:
        self._parts.clear()


class _Orders:
    """Lines on stdin."""

    def __init__(self, runner: HoldRunner, loop: Loop) -> None:
        self._runner, self._loop = runner, loop
        self._rest = b""

    def take(self) -> None:
        """Do what the lines say that can be read now."""
        data = os.read(0, 4096)
        if not data:
            self._loop.unwatch(0)
            self._runner.release(None)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            verb, _, part = line.partition(b" ")
            if verb == b"release":
                self._runner.release(int(part))


def main(argv: Sequence[str]) -> int:
    """Be a worker until the end of the rig."""
    state, name, type_, slots, file = argv
    logging.basicConfig(level=logging.INFO, format=f"%(asctime)s {name} %(levelname)s %(message)s")
    rig = find_rig(Path(state))
    loop = Loop(
        Peer(name, rig.endpoints["commands"], rig.endpoints["heartbeats"]),
        state=rig.paths.state,
        lifeline_fd=lifeline_fd(),
    )
    out = os.open(file, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
    runner = HoldRunner(loop, out)
    loop.add((type_,), runner)
    loop.watch(0, _Orders(runner, loop).take)
    # Many slots and nothing fetched ahead: what is leased has begun.
    return loop.run(WorkerConfig(slots=int(slots), types=(type_,), max_prefetch=0))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
