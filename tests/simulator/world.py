"""The clock and everything that is due by it; processes; the network between them. All chance comes from one seed."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

WALL_AT_START: Final = 1_700_000_000.0
_TRACED: Final = 3000


@dataclass(slots=True)
class Weather:
    """How the network behaves. Shares of messages, and seconds."""

    loss: float = 0.0
    twice: float = 0.0
    late: float = 0.0  #: share that overtakes nobody for up to ``late_s``
    late_s: float = 2.0
    delay_s: float = 0.002


class World:
    """``now`` is monotonic for every process; ``wall()`` jumps."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.now = 100.0
        self.wall_shift = 0.0
        self.weather = Weather()
        self.events = 0
        self.trace: deque[tuple[float, str]] = deque(maxlen=_TRACED)
        self.cut: set[str] = set()  #: processes that no message reaches or leaves
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._n = 0

    def wall(self) -> float:
        return WALL_AT_START + self.now + self.wall_shift

    def clock(self) -> float:
        return self.now

    def note(self, text: str) -> None:
        """A line of the history, for people."""
        self.trace.append((self.now, text))

    def at(self, when: float, do: Callable[..., None], *args: Any) -> None:
        self._n += 1
        heapq.heappush(self._heap, (max(when, self.now), self._n, do, args))

    def run(self, until: float) -> None:
        """Let everything happen that is due before ``until``. It may be called out of what happens."""
        heap = self._heap
        while heap and heap[0][0] <= until:
            when, _, do, args = heapq.heappop(heap)
            self.now = max(self.now, when)
            self.events += 1
            do(*args)
        self.now = max(self.now, until)

    def between(self, low: float, high: float) -> float:
        return low + (high - low) * self.chance.random()

    def happens(self, share: float) -> bool:
        return share > 0 and self.chance.random() < share

    def travel(self, sender: Process, receiver: Process, deliver: Callable[..., None], *args: Any) -> None:
        """Carry a message: lost, late, or twice, by the weather."""
        weather = self.weather
        if sender.name in self.cut or receiver.name in self.cut or self.happens(weather.loss):
            return
        copies = 2 if self.happens(weather.twice) else 1
        for _ in range(copies):
            delay = weather.delay_s * (0.2 + self.chance.random())
            if self.happens(weather.late):
                delay = self.between(0, weather.late_s)
            self.at(self.now + delay, receiver.hear, receiver.life, deliver, args)


class Process:
    """Something that can be killed, stopped and started. What it had planned dies with it."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.life = 0
        self.up = False
        self.stopped = False
        self.went_on_at = float("-inf")  #: after it was stopped
        self._held: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()

    def start(self) -> None:
        """It begins with nothing in memory."""
        self.life += 1
        self.up, self.stopped = True, False
        self._held.clear()
        self.world.note(f"{self.name} starts")
        self.begin()

    def begin(self) -> None:
        raise NotImplementedError

    def kill(self, why: str = "kill -9") -> None:
        if self.up:
            self.up = False
            self.life += 1
            self.world.note(f"{self.name}: {why}")
            self.killed()

    def killed(self) -> None:
        """What the world sees of its death."""

    def stop(self) -> None:
        """SIGSTOP: it does nothing, and its messages wait."""
        if self.up:
            self.stopped = True
            self.world.note(f"{self.name} is stopped")

    def go_on(self) -> None:
        """SIGCONT."""
        if not self.stopped:
            return
        self.stopped, self.went_on_at = False, self.world.now
        self.world.note(f"{self.name} goes on")
        held, self._held = self._held, deque()
        for do, args in held:
            if self.up:
                do(*args)

    def after(self, delay_s: float, do: Callable[..., None], *args: Any) -> None:
        """Do it later, if this life of the process lasts so long."""
        self.world.at(self.world.now + delay_s, self._due, self.life, do, args)

    def hear(self, life: int, do: Callable[..., None], args: tuple[Any, ...]) -> None:
        self._due(life, do, args)

    def _due(self, life: int, do: Callable[..., None], args: tuple[Any, ...]) -> None:
        if life != self.life or not self.up:
            return
        if self.stopped:
            self._held.append((do, args))
        else:
            do(*args)
