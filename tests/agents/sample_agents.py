"""Agents that the tests start as processes: found by this file and their names."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from typing import Any

from pydantic import BaseModel

from rigbus import Agent, handler


class Point(BaseModel):
    x: int
    y: int = 0


class Sampler(Agent):
    """One of everything."""

    slots = 2

    @handler("shout")
    def shout(self, text: str, times: int = 1) -> dict[str, str]:
        return {"text": text.upper() * times}

    @handler("ashout")
    async def ashout(self, text: str) -> dict[str, Any]:
        inner = self.bus.call("shout", {"text": text})
        return {"text": inner["text"], "attempt": self.task.attempt}

    @handler("shift")
    def shift(self, point: Point, by: int = 1) -> Point:
        return Point(x=point.x + by, y=point.y + by)

    @handler("fail")
    def fail(self, text: str = "broken") -> None:
        raise ValueError(text)

    @handler("big")
    def big(self, size: int) -> str:
        return "x" * size

    @handler("odd")
    def odd(self) -> Any:
        return {"value": object()}

    @handler("steps")
    def steps(self, n: int) -> int:
        for i in range(n):
            self.task.progress((i + 1) / n, note=f"step {i}", data={"i": i})
        self.task.log("done with the steps")
        return n

    @handler("wait", timeout_s=60)
    def wait(self, seconds: float = 60.0) -> bool:
        return self.task.wait_cancelled(seconds)

    @handler("pid")
    def pid(self) -> int:
        return os.getpid()


class Apart(Agent):
    """Handlers in their own processes."""

    slots = 2
    kill_grace_s = 1.0

    @handler("apart", isolated=True)
    def apart(self, text: str) -> dict[str, Any]:
        self.task.progress(0.5, "half")
        self.task.log("from the child")
        return {"text": self.bus.call("shout", {"text": text})["text"], "pid": os.getpid()}

    @handler("sleep_apart", isolated=True)
    def sleep_apart(self, seconds: float, mark: str = "") -> None:
        if mark:
            subprocess.Popen(["setsid", "bash", "-c", f"exec -a {mark} sleep 300"])
        time.sleep(seconds)

    @handler("die_apart", isolated=True)
    def die_apart(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    @handler("polite", isolated=True)
    def polite(self) -> str:
        self.task.wait_cancelled(30)
        self.task.log("tidied up")
        return "tidied up"


class Hanger(Agent):
    """Handlers that cannot be ended."""

    slots = 2

    @handler("hang", timeout_s=0.3)
    def hang(self, seconds: float = 60.0) -> None:
        time.sleep(seconds)

    @handler("hold_the_lock")
    def hold_the_lock(self) -> bool:
        return re.fullmatch(r"(a+)+b", "a" * 64) is not None

    @handler("quick")
    def quick(self) -> int:
        return os.getpid()


class Ring(Agent):
    """Calls itself through the bus."""

    @handler("down")
    def down(self, n: int) -> int:
        return 0 if n == 0 else int(self.bus.call("down", {"n": n - 1}, timeout_s=20, max_attempts=1)) + 1


class Noop(Agent):
    @handler("noop")
    def noop(self):  # type: ignore[no-untyped-def]
        return None


if __name__ == "__main__":
    {"Hanger": Hanger, "Sampler": Sampler}[sys.argv.pop(1)].main()
