"""What goes wrong in a history, by its seed: kills, stops, cuts, power losses, jumps of the clock; until it is over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from .broker import Broker
from .disk import Disk
from .world import Process, Weather, World

CALM: Final = Weather()
_MENU: Final = (
    ("kill a worker", 5),
    ("stop a worker", 6),
    ("cut off a worker", 4),
    ("kill the broker", 4),
    ("power loss", 2),
    ("stop the broker", 1),
    ("kill a brain", 3),
    ("stop a brain", 1),
    ("kill a client", 1),
    ("clock jump", 1),
    ("weather", 3),
)


class Faults:
    """Plays faults until ``over_at``; then everything is well again, and stays so."""

    def __init__(
        self,
        world: World,
        broker: Broker,
        disk: Disk,
        workers: Sequence[Process],
        brains: Sequence[Process],
        clients: Sequence[Process],
        *,
        over_at: float,
        every_s: float,
        losses: Sequence[float],
    ) -> None:
        self.world, self.broker, self.disk = world, broker, disk
        self.workers, self.brains, self.clients = workers, brains, clients
        self.over_at = over_at
        self.every_s = every_s
        self.losses = losses
        broker.restart = self._broker_again
        broker.crashes = world.chance.choice((0.0, 0.0, 0.002, 0.01))
        self._weather()
        world.at(world.now + self._pause(), self._next)
        world.at(over_at, self._heal)

    def _pause(self) -> float:
        return self.world.chance.expovariate(1 / self.every_s)

    def _next(self) -> None:
        world = self.world
        if world.now >= self.over_at:
            return
        names = [name for name, _ in _MENU]
        what = world.chance.choices(names, [weight for _, weight in _MENU])[0]
        getattr(self, "_" + what.replace(" a ", " ").replace(" the ", " ").replace(" ", "_"))()
        world.at(world.now + self._pause(), self._next)

    def _one(self, processes: Sequence[Process]) -> Process:
        return self.world.chance.choice(processes)

    def _again(self, process: Process) -> None:
        if not process.up:
            process.start()

    def _later(self, process: Process, low: float, high: float) -> None:
        self.world.at(self.world.now + self.world.between(low, high), self._again, process)

    # -- the menu --------------------------------------------------------------------------------------------

    def _kill_worker(self) -> None:
        process = self._one(self.workers)
        process.kill()
        self._later(process, 0.05, 3.0)

    def _stop_worker(self) -> None:
        self._pause_process(self._one(self.workers), self.world.chance.choice((1.0, 4.0, 8.0)))

    def _cut_off_worker(self) -> None:
        process = self._one(self.workers)
        self.world.note(f"{process.name} is cut off")
        self.world.cut.add(process.name)
        most_s = self.world.chance.choice((1.0, 4.0, 8.0))
        self.world.at(self.world.now + self.world.between(0.2, most_s), self.world.cut.discard, process.name)

    def _kill_broker(self) -> None:
        if self.broker.up:
            self.broker.kill()
            self._broker_again()

    def _broker_again(self) -> None:
        self._later(self.broker, 0.05, 2.0)

    def _power_loss(self) -> None:
        """Everything on the rig dies at one moment, and the disk keeps what was synced."""
        for process in (self.broker, *self.workers, *self.brains):
            process.kill("power loss")
            self._later(process, 0.5, 3.0)
        lost = self.world.chance.randint(0, self.disk.unsynced)
        if lost:
            self.world.note(f"the disk has lost {lost} commits")
        self.disk.power_loss(lost)

    def _stop_broker(self) -> None:
        self._pause_process(self.broker, 4.0)

    def _kill_brain(self) -> None:
        process = self._one(self.brains)
        process.kill()
        self._later(process, 0.1, 3.0)

    def _stop_brain(self) -> None:
        self._pause_process(self._one(self.brains), 8.0)

    def _kill_client(self) -> None:
        process = self._one(self.clients)
        process.kill()
        self._later(process, 0.1, 3.0)

    def _clock_jump(self) -> None:
        days = self.world.chance.choice((-30, -1, 1, 30)) * self.world.chance.random()
        self.world.note(f"the clock jumps by {days:.1f} days")
        self.world.wall_shift += 86_400 * days

    def _weather(self) -> None:
        chance = self.world.chance
        self.world.weather = Weather(
            loss=chance.choice(self.losses),
            twice=chance.choice((0.0, 0.0, 0.02, 0.2)),
            late=chance.choice((0.0, 0.0, 0.02, 0.1)),
            late_s=chance.choice((0.1, 1.0, 5.0)),
            delay_s=chance.choice((0.001, 0.01, 0.1)),
        )
        for brain in self.brains:
            brain.lost = chance.choice((0.0, 0.02, 0.1))  # type: ignore[attr-defined]
            brain.crashes = chance.choice((0.0, 0.01, 0.05))  # type: ignore[attr-defined]

    def _pause_process(self, process: Process, most_s: float) -> None:
        process.stop()
        self.world.at(self.world.now + self.world.between(0.2, most_s), process.go_on)

    # -- the end ---------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        world = self.world
        world.note("all faults are over")
        world.weather = CALM
        world.cut.clear()
        self.broker.crashes = 0.0
        for brain in self.brains:
            brain.lost = brain.crashes = brain.clumsy = 0.0  # type: ignore[attr-defined]
        for process in (self.broker, *self.brains, *self.workers, *self.clients):
            process.go_on()
            self._again(process)
