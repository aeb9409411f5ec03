"""One seed, from its beginning to its verdict."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any, Final

from rigbus.agents.worker import events as ev
from rigbus.bus.wire import pack

from .brain import Brain
from .broker import Broker
from .checkers import TO_FAIL, Checkers, Violation
from .client import Client, Job, Revise, Stop
from .disk import Disk
from .faults import Faults
from .supervisor import Supervisor
from .worker import Worker
from .world import World

STORM_S: Final = 15.0
CALM_S: Final = 240.0  #: after the faults everything must have ended within this
_LOOK_S: Final = 2.0

PLAN: Final = """# Plan: simulated

## Goal
Every list of it is expanded once.

## Tasks

### first
- **executor**: worker
- **task_class**: cpu
- **command**: `true`

### each
- **executor**: worker
- **task_class**: cpu
- **foreach**: `{BATCH_PATH}/list.json:items`
- **command**: `echo {ITEM.id}`
- **depends_on**: first
{evaluate}
### last
- **executor**: worker
- **task_class**: cpu
- **command**: `true`
- **depends_on**: each
"""


MORE: Final = """### more
- **executor**: worker
- **task_class**: cpu
- **command**: `more`
- **depends_on**: first

"""


@dataclass(frozen=True, slots=True)
class Work:
    """What is submitted. Shares, and the lengths that a plan's list may have."""

    plans: float = 0.4
    items: tuple[int, ...] = (0, 1, 3, 8, 120)
    cancels: float = 0.04  #: of tasks
    poison: float = 0.01
    fences: float = 0.3  #: of histories: workers fence themselves, as over tcp
    revises: float = 0.4  #: of plans
    stops: float = 0.3  #: of plans: their batch is cancelled; in half of these it is retried later
    agains: float = 0.3  #: of batches: what runs is ended, to run again; of these once more, and so on
    cards: float = 0.3  #: of histories: all workers share a card
    took_s: tuple[float, ...] = (0.001, 0.01, 0.1, 0.5, 2.0, 6.0)
    losses: tuple[float, ...] = (0.0, 0.0, 0.01, 0.1)  #: shares of messages, one for each weather


@dataclass(slots=True)
class Verdict:
    """How a history ended. ``wrong`` is empty where everything held."""

    seed: int
    wrong: str
    events: int
    tasks: int
    virtual_s: float
    digest: str  #: of everything that happened, to compare two runs of one seed
    trace: list[tuple[float, str]] = field(default_factory=list)


_USUAL: Final = Work()


class History:
    """Builds the rig of a seed; :meth:`run` plays it. ``arm`` may put a defect into it before it starts."""

    def __init__(
        self,
        seed: int,
        arm: Callable[[History], None] = lambda history: None,
        disk: Any = None,
        work: Work = _USUAL,
    ) -> None:
        self.world = world = World(seed)
        self.chance = Random(seed ^ 0x5EED)
        self.pen = Random(
            seed ^ 0xED17
        )  #: of who revises plans: the rest of a history is what it was without
        self.brake = Random(seed ^ 0xCA9C)  #: of who cancels a plan's batch, likewise
        self.broom = Random(seed ^ 0xB400)  #: of who has tasks run again, likewise
        self.work = work
        self.disk: Disk = disk if disk is not None else Disk()
        self.checkers = Checkers(world, self.disk)
        self.broker = Broker(world, self.disk, self.checkers)
        self.items: dict[str, int] = {}  #: plan's sha256 -> elements of its list
        self.fates: dict[str, tuple[float, str]] = {}  #: task key -> seconds, how its attempts end
        self.plans: dict[str, str] = {}
        jobs = [self._job(n) for n in range(self.chance.randint(2, 5))]
        self.clients = [Client(world, "client", self.broker, self.checkers, jobs)]
        self.workers = [
            Worker(world, f"worker-{n}", self.broker, self.checkers, self.play)
            for n in range(self.chance.randint(1, 3))
        ]
        fence = self.chance.random() < work.fences
        on_cards = self.chance.random() < work.cards
        supervisor = Supervisor(world, self.broker)
        for worker in self.workers:
            worker.fence = fence
            if on_cards:
                worker.cards, worker.supervisor = "0", supervisor
        self.brains = [Brain(world, f"brain-{n}", self.broker, self.plans) for n in range(2)]
        arm(self)

    # -- the work --------------------------------------------------------------------------------------------

    def _job(self, n: int) -> Job:
        chance = self.chance
        at = self.world.now + STORM_S * 0.8 * chance.random()
        if chance.random() < self.work.plans:
            return self._plan(n, at)
        specs: list[dict[str, Any]] = []
        for i in range(chance.randint(1, 14)):
            key = f"b{n}t{i}"
            before = [s["key"] for s in specs]
            after = chance.sample(before, min(len(before), chance.choice((0, 0, 1, 2))))
            spec: dict[str, Any] = {"key": key, "type": "shell", "class": "cpu"}
            if after:
                on_end = chance.random() < 0.2
                spec["after"] = [[k, "end"] if on_end else k for k in after]
            if self._fate(key) == "kills its worker":
                spec["policy"] = {"infra": 4, "crash": 4, "backoff_s": 0.5}  # else it takes minutes
            specs.append(spec)
        payloads = [pack({"key": s["key"]}) for s in specs]
        cancel = [s["key"] for s in specs if chance.random() < self.work.cancels]
        job = Job(at, {"key": f"job-{n}", "name": f"job-{n}"}, specs, payloads, cancel, 3 * chance.random())
        return job if cancel else self._again(job)  # of two words about one task the later would count

    def _plan(self, n: int, at: float) -> Job:
        sha = f"{n:064x}"
        evaluate = "- **evaluate**: true\n" if self.chance.random() < 0.3 else ""
        self.plans[sha] = PLAN.replace("{evaluate}", evaluate)
        key = f"plan-{n}"
        self.items[sha] = self.checkers.items[key] = self.chance.choice(self.work.items)
        spec = {
            "name": "simulated",
            "sha256": sha,
            "path": "/share/simulated",
            "batch_root": "/share/batches",
            "config": {},
        }
        job = Job(at, {"key": key, "kind": "plan", "name": key, "plan": spec}, [], [])
        if self.pen.random() < self.work.revises:
            self._revise(job, sha)
        if self.brake.random() < self.work.stops:
            job.stop = Stop(8.0 * self.brake.random(), self.brake.choice((0.0, 0.5, 2.0, 6.0)))
        return self._again(job)

    def _again(self, job: Job) -> Job:
        while self.broom.random() < self.work.agains:
            job.again_s.append(8.0 * self.broom.random())
        return job

    def _revise(self, job: Job, first: str) -> None:
        """One to three new plans for it; the first has a task that fails, in half of them."""
        pen, text = self.pen, self.plans[first]
        if pen.random() < 0.5:
            self.plans[first] = text.replace("### last", MORE + "### last").replace("`more`", "`broken`")
        for n in range(pen.randint(1, 3)):
            sha = first[:-4] + f"{n + 1:02x}" + first[-2:]
            new = text
            keys, items = {"first", "each:expand", "each", "last"}, self.items[first]
            if pen.random() < 0.5:
                new = new.replace("echo {ITEM", f"echo {n} {{ITEM")
            if pen.random() < 0.3:
                new = new.replace("list.json", f"list{n}.json")
                items = pen.choice(self.work.items)
            if pen.random() < 0.3:
                new = new[: new.index("### last")]
                keys -= {"last"}
            elif pen.random() < 0.5:
                new = new.replace("`true`\n- **depends_on**: each", f"`true {n}`\n- **depends_on**: each")
            if pen.random() < 0.5:
                new = new.replace("### each", MORE + "### each")
                keys |= {"more"}
            self.plans[sha], self.items[sha] = new, items
            plan = {**job.head["plan"], "sha256": sha}
            name = f"{job.head['key']}.{n}"
            job.revise.append(Revise(1.0 + 6.0 * n + 4.0 * pen.random(), name, plan, frozenset(keys), items))
        if pen.random() < 0.3:  # the next one comes before the last is planned
            job.revise = [replace(one, after_s=1.0 + 0.1 * n) for n, one in enumerate(job.revise)]

    def _fate(self, key: str) -> str:
        took_s = self.chance.choice(self.work.took_s)
        poison = self.work.poison
        shares = (0.86 - poison, 0.08, 0.06, poison)
        how = self.chance.choices(("ok", "fails once", "fails", "kills its worker"), shares)[0]
        self.fates[key] = (took_s, how)
        if how in ("fails", "kills its worker"):
            self.checkers.forgiven.add(key)
        return how

    def play(self, lease: ev.Lease) -> tuple[float, Any, bool]:
        """Seconds, outcome, and whether it ignores SIGTERM: of one attempt."""
        chance = Random(f"{self.world.seed}/{lease.id}/{lease.attempt}")
        deaf = chance.random() < 0.2
        value: dict[str, Any] = {"token": list(lease.token)}
        took_s, how = self.fates.get(lease.key, (chance.choice((0.002, 0.02, 0.2)), "ok"))
        if lease.type == "expand":
            count = next(self.items[sha] for sha in self.items if sha in str(lease.payload))
            value |= {"items": [{"id": f"i{i}"} for i in range(count)], "count": count}
        elif lease.type == "generate":
            score = chance.choice((1, 3, 4, 5))
            value |= {"json": {"score": score, "issues": [], "feedback": "better"}, "model": "played"}
            if score == 1:
                self.checkers.forgiven |= {lease.key.partition(":judge")[0], "each", "last"}
        if "broken" in str(lease.payload):
            return took_s, ev.failed("definition", TO_FAIL, duration_s=took_s), deaf
        if how == "kills its worker":
            return took_s, how, deaf
        if how == "fails" or (how == "fails once" and lease.attempt == 1):
            return took_s, ev.failed("task", "it was to fail", duration_s=took_s), deaf
        return took_s, ev.Outcome(True, body=pack(value), duration_s=took_s), deaf

    # -- playing ---------------------------------------------------------------------------------------------

    def run(self) -> Verdict:
        world = self.world
        over_at = world.now + STORM_S
        for process in (self.broker, *self.brains, *self.workers, *self.clients):
            world.at(world.now + world.between(0.0, 1.0), process.start)
        Faults(
            world,
            self.broker,
            self.disk,
            self.workers,
            self.brains,
            self.clients,
            over_at=over_at,
            every_s=world.chance.choice((0.3, 1.0, 3.0)),
            losses=self.work.losses,
        )
        wrong = ""
        try:
            world.run(over_at)
            while world.now < over_at + CALM_S and not self._finished():
                world.run(world.now + _LOOK_S)
            world.run(world.now + _LOOK_S)  # what was answered last is heard
            self.checkers.at_the_end()
        except Violation as e:
            wrong = str(e)
            world.note(f"VIOLATION {wrong}")
        core = self.checkers.core
        return Verdict(
            world.seed,
            wrong,
            world.events,
            len(core.tasks) if core is not None else 0,
            world.now,
            self._digest(),
            list(world.trace),
        )

    def _finished(self) -> bool:
        return all(c.done for c in self.clients) and self.checkers.settled

    def _digest(self) -> str:
        """Of the rows and the trace."""
        tables = self.disk.tables if isinstance(self.disk, Disk) else {}
        rows = repr([(name, sorted(rows.items(), key=repr)) for name, rows in tables.items()])
        return hashlib.sha256((rows + repr(list(self.world.trace))).encode()).hexdigest()[:16]


def play(seed: int) -> Verdict:
    """One history, its trace only where something was wrong."""
    verdict = History(seed).run()
    if not verdict.wrong:
        verdict.trace = []
    return verdict
