"""What a campaign submits, by its seed: batches of commands with edges between them, and plans with a list. Pure.

A command's key ends in its fate, and every command is the same line: the script that it reads does what the key says.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

from rigbus import Task

#: What becomes of a command, and how often. Most must be cheap: what is to be shown is shown by their number.
FATES: Final = {
    "ok": 0.955,
    "long1": 0.012,
    "long4": 0.006,
    "tree": 0.008,
    "deaf": 0.002,
    "flaky": 0.01,
    "fails": 0.004,
    "slow": 0.002,
    "segv": 0.001,
}
#: These may end badly by themselves.
BAD: Final = frozenset({"fails", "slow", "segv"})
CALM: Final = (
    0.03  #: of jobs: they come when little else is open, so that what is lost is leased again at once
)
PLANS: Final = 0.15  #: of jobs
DROPPED: Final = 0.3  #: of plans: through the inbox
_BACKOFF_S: Final = 0.1

#: Sourced by every command. ``@HISTORY@`` is the file's path. No program is started where a task is cheap.
SCRIPT: Final = """\
say() {
  echo "{\\"k\\":\\"$1\\",\\"t\\":$EPOCHREALTIME,\\"tok\\":\\"$RIGBUS_TOKEN\\",\\"task\\":\\"$RIGBUS_TASK_ID\\",\\
\\"n\\":$RIGBUS_ATTEMPT,\\"pid\\":$$,\\"ppid\\":$PPID}" >>@HISTORY@
}
say start
echo "$RIGBUS_TOKEN"
case "$RIGBUS_TASK_KEY" in
  *-long1) sleep 1 ;;
  *-long4) sleep 4 ;;
  *-tree) setsid sleep 600 & (setsid sh -c 'sleep 600 & sleep 600' &) ; sleep 0.3 ;;
  *-deaf) trap '' TERM; sleep 1 ;;
  *-flaky) [ "$RIGBUS_ATTEMPT" != 1 ] || { say end; exit 3; } ;;
  *-fails) say end; exit 3 ;;
  *-slow) sleep 600 ;;
  *-segv) kill -SEGV $$ ;;
esac
say end
"""

PLAN: Final = """\
# Plan: {name}

## Tasks

### first-ok
- **executor**: worker
- **task_class**: cpu
- **command**: `. {script}`
- **backoff_s**: 0.1

### each
- **executor**: worker
- **task_class**: cpu
- **foreach**: `{{PLAN_PATH}}/items.json:items`
- **command**: `. {script}`
- **depends_on**: first-ok
- **backoff_s**: 0.1

### last-ok
- **executor**: worker
- **task_class**: cpu
- **command**: `. {script}`
- **depends_on**: each
- **backoff_s**: 0.1
"""


@dataclass(frozen=True, slots=True)
class Command:
    """One command. ``after``: keys of its batch, True where any end of that one will do."""

    key: str
    after: tuple[tuple[str, bool], ...] = ()

    @property
    def fate(self) -> str:
        """What its script does."""
        return self.key.rpartition("-")[2]


@dataclass(frozen=True, slots=True)
class Job:
    """One submit. ``cancel``: the keys to cancel after a while, empty for all of it; None: it is left alone."""

    name: str
    kind: str  #: client, plan, or drop: a plan through the inbox
    commands: tuple[Command, ...]
    again: bool  #: it is submitted once more when it has been accepted
    cancel: tuple[str, ...] | None
    cancel_s: float
    calm: bool  #: it comes when little else is open

    @property
    def total(self) -> int:
        """Tasks that its batch has at the end."""
        return len(self.commands) + (self.kind != "client")  # the join of a plan's list

    def shown(self) -> dict[str, Any]:
        """For the history."""
        return {"name": self.name, "kind": self.kind, "tasks": [[c.key, c.after] for c in self.commands]}


def job(seed: int, n: int) -> Job:
    """The n-th job of a campaign."""
    chance = Random(f"{seed}/job/{n}")
    plan = chance.random() < PLANS
    kind = "client" if not plan else "drop" if chance.random() < DROPPED else "plan"
    commands = _list(chance) if plan else _graph(chance)
    cancel = None
    if kind != "drop" and chance.random() < 0.03:
        keys = [c.key for c in commands]
        cancel = tuple(chance.sample(keys, min(3, len(keys)))) if not plan and chance.random() < 0.7 else ()
    again, cancel_s, calm = chance.random() < 0.05, 2 * chance.random(), chance.random() < CALM
    return Job(f"j{n:05d}", kind, commands, again, cancel, cancel_s, calm)


def _fate(chance: Random, but: frozenset[str] = frozenset()) -> str:
    fate = chance.choices(list(FATES), list(FATES.values()))[0]
    return "ok" if fate in but else fate


def _graph(chance: Random) -> tuple[Command, ...]:
    """Tasks that wait for one, two or many of those before them."""
    made: list[Command] = []
    for n in range(chance.choice((1, 20, 60, 150))):
        before = [c.key for c in made]
        count = min(len(before), chance.choices((0, 1, 2, 12), (70, 20, 8, 2))[0])
        after = tuple((key, chance.random() < 0.5) for key in chance.sample(before, count))
        made.append(Command(f"t{n:03d}-{_fate(chance)}", after))
    return tuple(made)


def _list(chance: Random) -> tuple[Command, ...]:
    """A plan: the first task, one for each item, the last. Two thirds of them hold nothing that fails; none is slow, since a
    list has one timeout for all of it."""
    but = BAD if chance.random() < 0.67 else frozenset({"slow"})
    first = Command("first-ok")
    each = [
        Command(f"each_i{n:03d}-{_fate(chance, but)}", ((first.key, False),))
        for n in range(chance.choice((0, 3, 40, 120)))
    ]
    behind = tuple((c.key, False) for c in each) or ((first.key, False),)
    return (first, *each, Command("last-ok", behind))


def tasks_of(commands: Sequence[Command], script: Path) -> list[Task]:
    """As a client submits them."""
    made: dict[str, Task] = {}
    for c in commands:
        made[c.key] = Task(
            type="shell",
            key=c.key,
            payload={"command": f". {script}"},
            after=[(made[key], "end") if any_end else made[key] for key, any_end in c.after],
            timeout_s=1.0 if c.fate == "slow" else 60.0,
            max_attempts=2 if c.fate in BAD else None,
            policy={"backoff_s": _BACKOFF_S},
        )
    return list(made.values())


def plan_files(given: Job, script: Path) -> dict[str, str]:
    """The files of a plan's folder."""
    items = [c.key.removeprefix("each_") for c in given.commands if c.key.startswith("each_")]
    return {
        "plan.md": PLAN.format(name=given.name, script=script),
        "items.json": json.dumps({"items": [{"id": key} for key in items]}),
    }
