"""When a process of the rig is started, ended and started again. Pure: ``(event, now) -> actions``.

Laws:
1. A child that ended is swept before anybody hears of it: its leases end only when its tree is dead. A tree that cannot
   be killed (it hangs in the kernel) is given up after a while: its leases end, its name waits until it is dead.
2. It comes back after a pause that doubles (0.2 s … 30 s) while it keeps dying; ten times that pause in health, a minute
   at most, forget it.
3. A child that writes to its alive pipe must go on writing: silent for too long, it is killed with its tree.
4. A stop goes stage by stage, each stage only when the one before is dead: workers, brain, bridge, broker,
   guard.
``now`` is monotonic seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any, Final

from ...bus.timing import silence_s

BACKOFF_S: Final = 0.2
BACKOFF_MAX_S: Final = 30.0
NO_ROOM_MAX_S: Final = (
    5.0  #: while a disk is full the rig stands still, and goes on soon after somebody made room
)
HEALTHY_S: Final = 60.0
#: A life of so many pauses is health, too: what is killed again and again from outside is away for a tenth of the time, while
#: what ends at its start still waits longer and longer.
HEALTHY_PAUSES: Final = 10
EXIT_REFUSED: Final = 8  #: locked, damaged: another start would end the same way
EXIT_NO_ROOM: Final = 74  #: the broker's disk is full: another start may find room
EXIT_AGAIN: Final = 75  #: the process asks to be started again at once
DRAIN_S: Final = 25.0  #: workers have 20 s for running tasks, and a moment for their trees
STAGE_S: Final = 6.0  #: what the others have; the broker must close its database
FAST_S: Final = 2.0
FIRST_TRIES: Final = 5  #: starts of broker, brain or bridge before the rig was ever ready; then it gives up
#: A longer gap between two ticks is ours (suspend, a loaded machine), not the children's.
STALL_S: Final = 2.5


class Stage(IntEnum):
    """The order of a stop."""

    WORKER = 0
    BRAIN = 1
    BRIDGE = 2
    BROKER = 3
    GUARD = 4


class Phase(Enum):
    """Where a child is."""

    IDLE = "not started"
    RUNNING = "running"
    SWEEPING = "its tree is being ended"
    WAITING = "waits for its next start"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """One process of the rig. ``argv`` follows ``python -m``; ``watched``: it has an alive pipe, and is killed when it
    was silent for ``silent_s`` (None: as a worker, :func:`.timing.silence_s`)."""

    name: str
    argv: tuple[str, ...]
    stage: Stage
    watched: bool = False
    silent_s: float | None = None
    #: It has no trees of its own to end: the kernel may kill it the moment the supervisor is gone.
    leaf: bool = True
    env: Mapping[str, str] | None = None
    cwd: Path | None = None  #: the state folder when None


@dataclass(slots=True)
class ChildState:
    """What is known of it now."""

    spec: ChildSpec
    phase: Phase = Phase.IDLE
    pid: int = 0
    starts: int = 0
    started_at: float = 0.0
    due_at: float = 0.0
    pause_s: float = 0.0
    beat_at: float | None = None  #: None until the first byte: a start may take long
    end: str = ""  #: how it ended, in words
    code: int | None = None
    killed_for: str = ""
    stuck: bool = False
    undying: str = ""  #: what of its tree cannot be killed, in words: the broker was told


@dataclass(frozen=True, slots=True)
class Start:
    """Start it."""

    name: str


@dataclass(frozen=True, slots=True)
class Terminate:
    """SIGTERM to its process group."""

    name: str


@dataclass(frozen=True, slots=True)
class Sweep:
    """End it, if it still runs, and everything below it; answer with ``swept``."""

    name: str


@dataclass(frozen=True, slots=True)
class Gone:
    """Tell the broker that its process and tree are dead. ``stuck``: it lived but did not answer; ``undying``: something
    of the tree cannot be killed, another one follows when that has ended."""

    name: str
    why: str
    stuck: bool = False
    undying: bool = False


@dataclass(frozen=True, slots=True)
class Say:
    """A line for people."""

    text: str


@dataclass(frozen=True, slots=True)
class Finish:
    """All is stopped: end with this exit code; ``error`` says why when it is not 0."""

    code: int
    error: str = ""


Action = Start | Terminate | Sweep | Gone | Say | Finish


class SupervisorCore:
    """The children of one `up`."""

    def __init__(self, specs: Sequence[ChildSpec], *, lease_s: float) -> None:
        self.children = {spec.name: ChildState(spec) for spec in specs}
        self.lease_s = lease_s
        self.stopping = False
        self.fast = False
        self.ready = False  #: once all have reported
        self._stage = Stage.WORKER
        self._kill_at: float | None = None
        self._code = 0
        self._error = ""
        self._ticked_at: float | None = None
        self._finished = False

    # -- events ----------------------------------------------------------------------------------------------

    def begin(self) -> list[Action]:
        """Start everything at once: nobody waits for anybody."""
        return [Start(name) for name in self.children]

    def started(self, name: str, pid: int, now: float) -> list[Action]:
        """It runs."""
        child = self.children[name]
        child.phase, child.pid, child.started_at = Phase.RUNNING, pid, now
        child.starts += 1
        child.beat_at, child.end, child.code, child.killed_for, child.stuck = None, "", None, "", False
        child.undying = ""
        if self.stopping:
            return [Terminate(name)]
        return [Say(f"{name} runs again (pid {pid})")] if child.starts > 1 else []

    def not_started(self, name: str, error: str, now: float) -> list[Action]:
        """The system refused the process."""
        child = self.children[name]
        child.pid = 0
        if self.stopping:
            child.phase = Phase.STOPPED
            return self._advance(now)
        self._pause(child, now)
        return [Say(f"{name} cannot be started: {error}; next try in {_seconds(child.pause_s)}")]

    def exited(
        self, name: str, code: int | None, signal: int | None, detail: str, now: float
    ) -> list[Action]:
        """Its process has ended; ``detail`` is the last line of its log. Its tree comes first, then the news."""
        child = self.children[name]
        child.code = code
        if child.killed_for:
            child.end = f"was killed: {child.killed_for}"
        elif signal is not None:
            child.end = f"was ended by signal {signal}"
        elif code is None:
            child.end = "has ended"
        elif code == EXIT_NO_ROOM and child.spec.stage is Stage.BROKER:
            # said here: on a full disk its log may not have taken its last words
            child.end = (
                "ended, since the disk of the state folder is full: nothing accepted is lost, free some space"
            )
        else:
            child.end = f"ended with exit code {code}" + (f" ({detail})" if detail and code else "")
        if child.phase is Phase.SWEEPING:
            return []
        child.phase = Phase.SWEEPING
        return [Sweep(name)]

    def swept(self, name: str, now: float) -> list[Action]:
        """It and its tree are dead."""
        child = self.children[name]
        if child.undying:
            return self._dead_at_last(child, now)
        what = f"{name} (pid {child.pid}) {child.end or 'has ended'}"
        gone = Gone(name, child.end or "its process is gone", child.stuck)
        if self.stopping:
            child.phase = Phase.STOPPED
            return [gone, *self._advance(now)]
        if child.spec.stage is Stage.BROKER and child.code == EXIT_REFUSED:
            child.phase = Phase.STOPPED
            return [
                Say(f"{what}; the rig stops"),
                *self.stop(now, fast=True, code=EXIT_REFUSED, error=child.end),
            ]
        if not self.ready and child.spec.stage is not Stage.WORKER and child.starts >= FIRST_TRIES:
            child.phase = Phase.STOPPED
            error = f"the rig does not get ready: {name} {child.end}, {child.starts} times in a row"
            return [Say(f"{what}; the rig gives up"), *self.stop(now, fast=True, code=1, error=error)]
        asked = child.code == EXIT_AGAIN and now - child.started_at >= 1.0
        if asked:
            child.phase, child.due_at, child.pause_s = Phase.WAITING, now, 0.0
            return [gone, Say(f"{name} (pid {child.pid}) asked for a fresh start"), *self.tick(now)]
        self._pause(child, now)
        return [gone, Say(f"{what}; its tree is dead, it starts again in {_seconds(child.pause_s)}")]

    def undying(self, name: str, said: str, now: float) -> list[Action]:
        """Its tree was killed long ago and still lives; ``said`` names what does."""
        child = self.children[name]
        if child.phase is not Phase.SWEEPING or child.undying:
            return []
        child.undying, child.end = said, child.end or "was killed"
        gone = Gone(name, f"{child.end}; {said}", child.stuck, undying=True)
        what = f"{name} (pid {child.pid}) {child.end}; {said}"
        if self.stopping:
            child.phase = Phase.STOPPED
            return [gone, Say(f"{what}: the rig stops without it"), *self._advance(now)]
        return [gone, Say(f"{what}: its tasks go to others, it starts again when that has ended")]

    def _dead_at_last(self, child: ChildState, now: float) -> list[Action]:
        """The broker knows that it is gone; now its cards are free, too."""
        child.undying = ""
        if self.stopping:
            return []  # the next `up` looks whether anything is left
        gone = Gone(child.spec.name, "what could not be killed has ended")
        self._pause(child, now)
        said = f"{child.spec.name}: its tree is dead at last, it starts again in {_seconds(child.pause_s)}"
        return [gone, Say(said)]

    def beat(self, name: str, now: float) -> None:
        """A byte came on its alive pipe."""
        self.children[name].beat_at = now

    def kill(self, name: str, pid: int, why: str) -> list[Action]:
        """A person wants this very process of a worker ended hard; it starts again as after any other end."""
        child = self.children.get(name)
        if child is None or child.spec.stage is not Stage.WORKER:
            return []
        if child.phase is not Phase.RUNNING or child.pid != pid:
            return []
        child.killed_for, child.phase = why, Phase.SWEEPING
        return [Say(f"{name} (pid {pid}) is killed with its tree: {why}"), Sweep(name)]

    def stop(self, now: float, *, fast: bool = False, code: int = 0, error: str = "") -> list[Action]:
        """Stop all; a second call makes it fast. ``code`` and ``error`` are those of :class:`Finish`."""
        if self.stopping and self.fast:
            return []
        first = not self.stopping
        self.stopping, self.fast = True, fast or not first
        if error or code:
            self._code, self._error = code, error
        for child in self.children.values():
            if child.phase in (Phase.IDLE, Phase.WAITING) or child.undying:
                child.phase = Phase.STOPPED
        actions: list[Action] = []
        if not first:
            actions.append(Say("stopping at once: running tasks are ended and go back to the queue"))
        return [*actions, *self._enter(now)]

    def tick(self, now: float) -> list[Action]:
        """What is due: starts, silent children, a stop that takes too long. Call it at ``next_at``, or earlier."""
        actions: list[Action] = []
        gap = 0.0 if self._ticked_at is None else now - self._ticked_at
        self._ticked_at = now
        for child in self.children.values():
            if child.phase is Phase.WAITING and now >= child.due_at:
                child.phase = Phase.IDLE
                actions.append(Start(child.spec.name))
            elif child.phase is Phase.RUNNING and child.beat_at is not None:
                if gap > STALL_S:
                    # We slept, so did they perhaps: silence counts from now.
                    child.beat_at = now
                elif now >= self._patience_ends(child) and not self.stopping:
                    actions += self._kill_silent(child, now)
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            for child in self._of_stage():
                if child.phase is Phase.RUNNING:
                    child.killed_for = "it did not stop in time"
                    child.phase = Phase.SWEEPING
                    actions += [
                        Say(f"{child.spec.name} (pid {child.pid}) does not stop: killed"),
                        Sweep(child.spec.name),
                    ]
        return actions

    def next_at(self) -> float | None:
        """When ``tick`` is due at the latest."""
        due = [c.due_at for c in self.children.values() if c.phase is Phase.WAITING]
        due += [
            self._patience_ends(c)
            for c in self.children.values()
            if c.phase is Phase.RUNNING and c.beat_at is not None and not self.stopping
        ]
        if self._kill_at is not None:
            due.append(self._kill_at)
        return min(due, default=None)

    def silent(self, now: float) -> list[str]:
        """Whom the next ``tick`` would kill: a beat of theirs may have come that nobody has looked at yet."""
        return [
            c.spec.name
            for c in self.children.values()
            if c.phase is Phase.RUNNING and c.beat_at is not None and now >= self._patience_ends(c)
        ]

    # -- parts -----------------------------------------------------------------------------------------------

    def _patience_ends(self, child: ChildState) -> float:
        silent_s = child.spec.silent_s
        return (child.beat_at or 0.0) + (silence_s(self.lease_s) if silent_s is None else silent_s)

    def _kill_silent(self, child: ChildState, now: float) -> list[Action]:
        silent_s = now - (child.beat_at or now)
        child.stuck = True
        child.killed_for = f"it lives but did not answer for {silent_s:.1f} s"
        if child.spec.stage is Stage.WORKER:
            child.killed_for += ", a handler may hold the interpreter"
        child.phase = Phase.SWEEPING
        return [
            Say(f"{child.spec.name} (pid {child.pid}) does not answer: killed with its tree"),
            Sweep(child.spec.name),
        ]

    def _pause(self, child: ChildState, now: float) -> None:
        healthy = child.pid and now - child.started_at >= min(HEALTHY_S, HEALTHY_PAUSES * child.pause_s)
        most = NO_ROOM_MAX_S if child.code == EXIT_NO_ROOM else BACKOFF_MAX_S
        child.pause_s = BACKOFF_S if healthy or not child.pause_s else min(child.pause_s * 2, most)
        child.phase, child.due_at = Phase.WAITING, now + child.pause_s

    def _of_stage(self) -> list[ChildState]:
        return [c for c in self.children.values() if c.spec.stage is self._stage]

    def _enter(self, now: float) -> list[Action]:
        """Ask everybody of the present stage to end; an empty stage is over at once."""
        running = [c for c in self._of_stage() if c.phase is Phase.RUNNING]
        patience_s = FAST_S if self.fast else DRAIN_S if self._stage is Stage.WORKER else STAGE_S
        self._kill_at = now + patience_s
        return [*(Terminate(c.spec.name) for c in running), *self._advance(now)]

    def _advance(self, now: float) -> list[Action]:
        if self._finished or any(c.phase is not Phase.STOPPED for c in self._of_stage()):
            return []
        if self._stage is Stage.GUARD:
            self._finished, self._kill_at = True, None
            return [Finish(self._code, self._error)]
        self._stage = Stage(self._stage + 1)
        return self._enter(now)


def missing(status: Mapping[str, Any], workers: Sequence[str]) -> list[str]:
    """Who has not reported yet, by the broker's answer to QUERY ``status``; empty: the rig is ready."""
    absent = []
    if (status.get("brain") or {}).get("state") != "seated":
        absent.append("brain")
    if (status.get("bridge") or {}).get("state") != "attached":
        absent.append("bridge")
    # a model worker that holds nothing offers no types
    rows = [row for row in status.get("workers") or () if row.get("types") or row.get("placement")]
    offered = {row["id"] for row in rows}
    return absent + [name for name in workers if name not in offered]


def _seconds(value: float) -> str:
    return f"{value:g} s"
