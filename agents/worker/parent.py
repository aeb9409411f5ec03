"""The small parent of an agent that runs alone (``MyAgent.main()``, ``rigbus worker --agent``).

It does what ``rigbus up`` does for its workers: start the agent in a process of its own, notice when that process
lives but gives no sign of life (a handler that holds the interpreter's lock), kill it with its tree and say who did
it, start it again. It exits with the agent: 0 drained, 8 superseded.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from ...bus.wire import LEASE_S
from ..process.linux import processes
from ..supervisor.lifeline import ALIVE_VARIABLE, Lifeline
from .events import EXIT_OK, EXIT_RESTART, EXIT_SUPERSEDED

log = logging.getLogger(__name__)

FIRST_BEAT_S: Final = 60.0  #: imports and on_start (a model is loaded there) may take so long
BACKOFF_S: Final = 0.5
BACKOFF_MAX_S: Final = 30.0
GIVE_UP_AFTER: Final = 3  #: starts in a row without one sign of life


def arguments(argv: Sequence[str] | None, program: str) -> argparse.Namespace:
    """The options that every agent has."""
    parser = argparse.ArgumentParser(prog=program, description="Run an agent of a rigbus rig.")
    parser.add_argument("--state", help="the rig's state folder (default: RIGBUS_STATE, else the user's)")
    parser.add_argument("--name", help="the worker's name, unique in the rig")
    parser.add_argument("--slots", type=int, help="handlers that run at once")
    parser.add_argument(
        "--thermal",
        metavar="WARN:CRITICAL:HYSTERESIS",
        help="when its cards are too hot, in °C (default: [thermal] of rigbus.toml)",
    )
    parser.add_argument("--log-bytes", type=int, help="what the log of one attempt takes")
    return parser.parse_args(argv)


def run_alone(ref: str, argv: Sequence[str] | None = None, *, program: str = "agent") -> int:
    """Run the agent ``ref`` under this parent until it is stopped; the exit code."""
    given = arguments(argv, program)
    name = given.name or f"{ref.rpartition(':')[2].rpartition('.')[2].lower()}-{os.getpid()}"
    words = [sys.executable, "-P", "-m", "rigbus.agents.worker.main", "--agent", ref, "--name", name]
    if given.state:
        words += ["--state", given.state]
    if given.slots:
        words += ["--slots", str(given.slots)]
    if given.thermal:
        words += ["--thermal", given.thermal]
    if given.log_bytes:
        words += ["--log-bytes", str(given.log_bytes)]
    return Parent(words, name).run()


class Parent:
    """Starts ``words`` and keeps it alive; :meth:`run` returns when it has ended for good."""

    def __init__(self, words: Sequence[str], name: str, *, silent_s: float = LEASE_S + 1.0) -> None:
        self._words = list(words)
        self._name = name
        self._silent_s = silent_s
        self._lifeline = Lifeline()
        self._child: subprocess.Popen[bytes] | None = None
        self._stopping = 0
        self._last: dict[str, Any] = {}
        self._marks: set[str] = set()

    def run(self) -> int:
        """Until the agent drained (0), was superseded (8) or failed at each of its first starts (its code)."""
        processes().become_subreaper()
        former = {n: signal.signal(n, self._stop) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            return self._keep()
        finally:
            for number, act in former.items():
                signal.signal(number, act)
            self._lifeline.close()

    def _keep(self) -> int:
        silent_starts, backoff_s = 0, BACKOFF_S
        while True:
            beats, code = self._one_life()
            if self._stopping or code in {EXIT_OK, EXIT_SUPERSEDED}:
                return max(code, 0)
            silent_starts = 0 if beats else silent_starts + 1
            if silent_starts >= GIVE_UP_AFTER:
                return code if code > 0 else 1
            if code == EXIT_RESTART or beats > 10:
                backoff_s = BACKOFF_S
            log.warning("agent %s ended with %s: started again in %.1f s", self._name, code, backoff_s)
            if self._pause(backoff_s):
                return EXIT_OK
            backoff_s = min(BACKOFF_MAX_S, 2 * backoff_s)

    def _pause(self, seconds: float) -> bool:
        """Wait, but not past a signal (it interrupts nothing else here); True when the end was asked for."""
        until = time.monotonic() + seconds
        while not self._stopping and (left := until - time.monotonic()) > 0:
            select.select([], [], [], min(left, 0.2))
        return bool(self._stopping)

    def _one_life(self) -> tuple[int, int]:
        """Start the agent and watch it to its end: how often it gave a sign of life, and its exit code."""
        read, write = os.pipe()
        fd = self._lifeline.read_fd
        env = {**os.environ, **self._lifeline.env, ALIVE_VARIABLE: str(write)}
        # A session of its own: Ctrl-C reaches only this parent, which passes it on once.
        self._child = subprocess.Popen(
            self._words, env=env, pass_fds=(write, fd), start_new_session=True, stdin=subprocess.DEVNULL
        )
        os.close(write)
        try:
            beats = self._watch(read)
        finally:
            os.close(read)
            code = self._child.wait()
            for mark in self._marks:
                processes().sweep_prefix(mark)
            self._marks.clear()
        return beats, code

    def _watch(self, read: int) -> int:
        """Until the pipe ends with the process, or silence ends the process."""
        beats, rest = 0, b""
        heard_at = time.monotonic()
        while True:
            limit_s = self._silent_s if beats else FIRST_BEAT_S
            ready, _, _ = select.select([read], [], [], 0.5)
            now = time.monotonic()
            if ready:
                data = os.read(read, 65536)
                if not data:
                    return beats
                beats, heard_at = beats + 1, now
                rest = self._hear(rest + data)
            elif self._child is not None and self._child.poll() is not None:
                return beats  # it ended, and a leftover of it holds the pipe
            elif now - heard_at > limit_s:
                self._kill(now - heard_at)
                return beats

    def _hear(self, data: bytes) -> bytes:
        *lines, rest = data.split(b"\n")
        for line in lines:
            try:
                said = json.loads(line)
            except ValueError:
                continue  # any byte is a sign of life
            if isinstance(said, dict):
                self._last = said
                mark = str(said.get("mark") or "")
                if mark.count(":") == 2 and not mark.startswith(":"):
                    self._marks.add(mark)
        return rest[-4096:]

    def _kill(self, silent_s: float) -> None:
        running = ", ".join(f"{r[1]} (task {r[0]})" for r in self._last.get("running") or ()) or "no task"
        log.error(
            "agent %s gave no sign of life for %.1f s: killed. It was running %s. A handler that holds the "
            "interpreter's lock stops its whole agent: mark it isolated=True",
            self._name,
            silent_s,
            running,
        )
        if self._child is not None:
            self._child.kill()

    def _stop(self, number: int, frame: object) -> None:
        """Pass the signal on: the first drains, the second is fast."""
        self._stopping += 1
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(signal.SIGTERM)
