"""Agents that misbehave, for test_bad_handlers.py: found by this file and their names."""

from __future__ import annotations

import asyncio
import datetime
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from rigbus import Agent, handler


def note(file: str, line: object) -> None:
    """One line a call, so that a test can count what really ran."""
    with Path(file).open("a") as f:
        f.write(f"{line}\n")


class Odd(Agent):
    """What people return, raise and call by mistake. Two slots; none of it may end the agent."""

    slots = 2
    kill_grace_s = 3.0

    @handler("odd.pid")
    def pid(self) -> int:
        return os.getpid()

    @handler("odd.echo")
    def echo(self, value: Any = None) -> Any:
        return value

    @handler("odd.typed")
    def typed(self, count: int, when: datetime.date, tags: list[str] | None = None) -> str:
        return f"{count} {when} {tags}"

    @handler("odd.fail")
    def fail(self, mark: str = "") -> None:
        if mark:
            note(mark, self.task.attempt)
        self._deeper()

    def _deeper(self) -> None:
        raise LookupError("the shelf is empty")

    @handler("odd.raise")
    def raise_(self, kind: str) -> None:
        if kind == "surrogate":
            raise ValueError("no file " + os.fsdecode(b"caf\xe9.txt"))
        if kind == "huge":
            raise ValueError("x" * (5 << 20))
        if kind == "exit":
            sys.exit(3)
        if kind == "interrupt":
            raise KeyboardInterrupt
        if kind == "recursion":
            self.raise_("recursion")
        raise _Unprintable

    @handler("odd.return")
    def return_(self, kind: str) -> Any:
        loop: list[Any] = []
        loop.append(loop)
        return {
            "object": object(),
            "set": {"a": {1, 2}},
            "datetime": [datetime.datetime.min],
            "int keys": {1: 2},
            "long int": 2**70,
            "surrogate": os.fsdecode(b"caf\xe9"),
            "loop": loop,
            "generator": (x for x in "abc"),
        }[kind]

    @handler("odd.big")
    def big(self, size: int) -> bytes:
        return b"0123456789" * (size // 10)

    @handler("odd.say")
    def say(self, kind: str) -> str:
        if kind == "note":
            self.task.progress(0.5, note=os.fsdecode(b"caf\xe9"))
        elif kind == "object":
            self.task.progress(0.5, note=object())  # type: ignore[arg-type]
        elif kind == "nan":
            self.task.progress(float("nan"))
        elif kind == "big":
            self.task.progress(0.5, data=b"x" * (3 << 20))
        self.task.log(os.fsdecode(b"caf\xe9"))
        return "said"

    @handler("odd.close")
    def close_everything(self) -> str:
        os.chdir("/")
        sys.stdout = sys.stderr = None  # type: ignore[assignment]
        signal_names = threading.current_thread().name
        threading.Thread(target=threading.Event().wait, daemon=False).start()  # never ends
        return signal_names

    @handler("odd.polite")
    def polite(self, mark: str) -> str:
        note(mark, "begun")
        while not self.task.cancelled:
            self.task.wait_cancelled(0.05)
        note(mark, "tidied")
        return "done"

    @handler("odd.patient", timeout_s=0.3)
    def patient(self) -> None:
        self.task.wait_cancelled(60)

    @handler("odd.async")
    async def later(self, mark: str, seconds: float = 60.0) -> str:
        note(mark, "begun")
        try:
            await asyncio.sleep(seconds)
        finally:
            note(mark, "tidied")
        return "slept"

    @handler("odd.asks")
    def asks(self, type: str, payload: dict[str, Any], limit_s: float = 60.0) -> Any:
        return self.bus.call(type, payload, timeout_s=limit_s, max_attempts=1)

    @handler("odd.deeper")
    def deeper(self, n: int) -> int:
        return 0 if n == 0 else int(self.bus.call("odd.deeper", {"n": n - 1}, timeout_s=20)) + 1

    @handler("odd.fickle")
    def fickle(self, mark: str) -> int:
        note(mark, self.task.attempt)
        value = int(self.bus.call("odd.echo", {"value": self.task.attempt}))
        if self.task.attempt == 1:
            raise ValueError("again")
        return value


class _Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Stream(Agent):
    """Says numbers until a file exists."""

    @handler("stream.numbers")
    def numbers(self, stop: str) -> int:
        n = 0
        while not os.path.exists(stop) and not self.task.wait_cancelled(0.002):
            self.task.progress(data=[self.task.attempt, n])
            n += 1
        return n

    @handler("stream.flood")
    def flood(self, n: int) -> int:
        for i in range(n):
            self.task.progress((i + 1) / n, note=f"{i}", data=i)
        return n

    @handler("stream.pid")
    def pid(self) -> int:
        return os.getpid()


class Stuck(Agent):
    """Handlers that cannot be ended from outside."""

    slots = 2

    @handler("stuck.hang", timeout_s=0.5)
    def hang(self) -> None:
        while True:
            time.sleep(60)  # it looks at nothing

    @handler("stuck.lock")
    def lock(self, mark: str) -> bool:
        note(mark, self.task.attempt)
        return re.fullmatch(r"(a+)+b", "a" * 64) is not None

    @handler("stuck.neighbour")
    def neighbour(self, mark: str, go: str) -> int:
        note(mark, self.task.attempt)
        while not os.path.exists(go) and not self.task.wait_cancelled(0.02):
            pass
        return os.getpid()

    @handler("stuck.pid")
    def pid(self) -> int:
        return os.getpid()


class Apart(Agent):
    """Isolated handlers with children of their own."""

    slots = 2
    kill_grace_s = 0.5

    @handler("apart.family", isolated=True)
    def family(self, mark: str) -> None:
        for words in (
            ["sleep", "600"],
            ["setsid", "sleep", "600"],
            ["bash", "-c", "trap '' TERM; sleep 600"],
        ):
            child = subprocess.Popen(words)
            note(mark, child.pid)
        note(mark, "ready")
        time.sleep(600)

    @handler("apart.lock", isolated=True)
    def lock(self, mark: str) -> bool:
        note(mark, "ready")
        return re.fullmatch(r"(a+)+b", "a" * 64) is not None

    @handler("apart.exit", isolated=True)
    def exit(self) -> None:
        os._exit(7)

    @handler("apart.deaf", isolated=True)
    def deaf(self, mark: str) -> str:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        note(mark, "ready")
        time.sleep(600)
        return "never"

    @handler("apart.print", isolated=True)
    def print_(self, n: int) -> str:
        for i in range(n):
            print("line", i, "x" * 100)
        return "printed"
