"""A worker is killed with -9: how long until its task is leased again, under `up` and without a supervisor."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from ....bus.errors import RigbusError
from ....bus.wire import LEASE_S
from ..figures import Figure, Spread
from ..mirror import quantile
from ..rig import BenchRig, Setup

if TYPE_CHECKING:
    from ....bus.client.follow import Event, EventStream
    from ....bus.client.work import Task

UP_S: Final = 1.0  #: target, p99
SLACK_S: Final = 1.0  #: beyond the lease, of workers that run alone
WAIT_S: Final = 60.0
#: A worker that keeps dying is started again later and later (0.2 s, 0.4 s … 30 s): few kills of each, so that there
#: is always another one that is free.
KILLS_A_WORKER: Final = 5
MIN_WORKERS: Final = 3
AT_ONCE: Final = 10  #: killed together, of twice as many that run alone
#: Long the first time, and over at once when it runs again.
COMMAND: Final = 'if [ "$RIGBUS_ATTEMPT" = 1 ]; then exec sleep 300; fi'
TOPICS: Final = ("task.shell.*", "worker.*")

Say = Callable[[str], None]


def measure(kills: int, alone: int, say: Say, *, lease_s: float | None = None) -> tuple[list[Figure], str]:
    """``kills`` under `up`, then ``alone`` of workers without a supervisor: figures and a note.

    ``lease_s``: of the workers that run alone; the default of rigs when None.
    """
    leased, back = under_up(kills, say)
    lonely = by_themselves(alone, say, lease_s or LEASE_S)
    figures = [
        *_both("worker killed under up, its task leased again", leased, UP_S),
        Figure("worker killed under up, itself back", "s", Spread.of(back)),
        *_both("worker killed that runs alone, its task leased again", lonely, LEASE_S + SLACK_S),
    ]
    note = (
        f"Workers: {len(leased)} killed under `up`, {len(lonely)} that run alone, each with a command under way; from the "
        f"kill to the next lease by the broker's event; lease_s {lease_s or LEASE_S:g}. *Itself back*: from the first kill "
        "of a worker until its next process has greeted; 0.2 s of that is the pause before the start."
    )
    return figures, note


def _both(name: str, found: list[float], target: float) -> list[Figure]:
    """The median with its range, and p99 with its target."""
    p99 = Spread.of([quantile(found, 0.99)])
    return [Figure(name, "s", Spread.of(found)), Figure(f"{name}, p99", "s", p99, target=target)]


def under_up(kills: int, say: Say) -> tuple[list[float], list[float]]:
    """Seconds from each kill to the next lease; and, of the first kill of each worker, until it is there again."""
    leased: list[float] = []
    workers = max(MIN_WORKERS, -(-kills // KILLS_A_WORKER))
    killed_at: dict[str, float] = {}
    setup = Setup(up=True, workers=workers)
    with BenchRig(setup) as rig, rig.client() as client, client.events(TOPICS) as stream:
        heard = Heard(rig, stream)
        for n in range(kills):
            (id_,) = client.submit([_task()])
            worker = heard.running({id_})[id_]
            at = time.time()
            rig.kill(worker)
            killed_at.setdefault(worker, at)
            leased.append(heard.again({id_})[id_] - at)
            if (n + 1) % 20 == 0 or n + 1 == kills:
                say(f"{n + 1} of {kills} killed under `up`: leased again p99 {quantile(leased, 0.99):.2f} s")
        back = heard.joined(killed_at)
    return leased, back


def by_themselves(kills: int, say: Say, lease_s: float) -> list[float]:
    """The same without a supervisor: of two groups of workers one is killed, the other one takes its tasks."""
    found: list[float] = []
    group = min(AT_ONCE, kills)
    setup = Setup(workers=2 * group, alone=True, settings={"lease_s": lease_s})
    with BenchRig(setup) as rig, rig.client() as client, client.events(TOPICS) as stream:
        heard = Heard(rig, stream)
        while True:
            ids = set(client.submit([_task() for _ in range(min(group, kills - len(found)))]))
            victims = heard.running(ids)
            at = {}
            for id_, worker in victims.items():
                at[id_] = time.time()
                rig.kill(worker)
            again = heard.again(ids)
            found += [again[id_] - at[id_] for id_ in ids]
            say(
                f"{len(found)} of {kills} killed that run alone: leased again p99 {quantile(found, 0.99):.2f} s"
            )
            if len(found) >= kills:
                return found
            for worker in victims.values():
                rig.start(worker)
            heard.joined(dict.fromkeys(victims.values(), time.time()))


def _task() -> Task:
    from ....bus.client.work import Task

    return Task(type="shell", payload={"command": COMMAND, "env": {}})


class Heard:
    """What the numbered log tells of tasks and workers."""

    def __init__(self, rig: BenchRig, stream: EventStream) -> None:
        self._rig, self._stream = rig, stream
        self._joined: dict[str, list[float]] = {}

    def _events(self, what: str) -> Iterator[Event]:
        deadline = time.monotonic() + WAIT_S
        while True:
            event = self._stream.poll(0.5)
            if event is None:
                self._rig.check()
                if time.monotonic() > deadline:
                    raise RigbusError(f"waited {WAIT_S:g} s in vain for {what}; this is no benchmark")
                continue
            if event.topic.startswith("worker.") and event.topic.endswith(".joined"):
                self._joined.setdefault(event.topic.split(".")[1], []).append(event.at)
            yield event

    def running(self, ids: set[str]) -> dict[str, str]:
        """Who runs each of these tasks, once all have started."""
        found: dict[str, str] = {}
        for event in self._events("the tasks to start"):
            if event.id in ids and event.topic.endswith(".started"):
                found[event.id] = str(event.data["worker"])
                if found.keys() == ids:
                    break
        return found

    def again(self, ids: set[str]) -> dict[str, float]:
        """When each of these tasks was leased a second time, Unix seconds, once all of them are done."""
        found: dict[str, float] = {}
        left = set(ids)
        for event in self._events("the tasks to be done"):
            if event.id not in left:
                continue
            state = event.topic.rpartition(".")[2]
            if state == "leased" and event.data.get("attempt") == 2:
                found[event.id] = event.at
            elif state in ("dead", "cancelled") or (state == "done" and event.id not in found):
                raise RigbusError(f"a task whose worker was killed is {state}; this is no benchmark")
            elif state == "done":
                left.discard(event.id)
                if not left:
                    break
        return found

    def joined(self, since: dict[str, float]) -> list[float]:
        """Seconds from each worker's time (Unix) until it has greeted the first time after it, once all have."""
        found: dict[str, float] = {}

        def look() -> bool:
            for worker, at in since.items():
                later = [j for j in self._joined.get(worker, ()) if j >= at]
                if later:
                    found.setdefault(worker, later[0] - at)
            return found.keys() == since.keys()

        if not look():
            for _ in self._events("the killed workers to be back"):
                if look():
                    break
        return list(found.values())
