"""Sentences of `why`: what a task waits for, and who could take it. Plain functions over the core's records. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from ..core.matching import FREE_CREDIT, FREE_VRAM, OFFERED, ROOM, Predicate
from ..core.model import CLASSES, Session, Task
from ..states import STATE_NAMES, TaskState
from .durations import template_of

_CHAIN: Final = 1_000  #: tasks of a chain that are walked
_NAMED: Final = 5
Verdicts = Sequence[tuple[Session, list[Predicate]]]  #: of each worker every predicate

_NEAREST: Final = (TaskState.FAILED, TaskState.REVIEW, TaskState.READY, TaskState.LEASED, TaskState.WAITING)


def seconds(value: float) -> str:
    """``0.4 s``, ``42 s``, ``3 min``, ``2 h 5 min``."""
    if value < 10:
        return f"{max(0.0, value):.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    minutes = round(value / 60)
    if minutes < 120:
        return f"{minutes} min"
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")


def some(n: int, one: str, many: str = "") -> str:
    """``1 task``, ``3 tasks``."""
    return f"{n} {one if n == 1 else many or one + 's'}"


# -- dependencies --------------------------------------------------------------------------------------------


def open_before(task: Task, tasks: Mapping[int, Task]) -> Iterator[Task]:
    """The tasks that a WAITING one still waits for, in the order of its plan."""
    for no, _ in task.after:
        other = tasks.get(no)
        if other is not None and not other.ended:
            yield other


def label(task: Task, tasks: Mapping[int, Task]) -> str:
    """A task with its state: of a foreach how many are done."""
    if task.join and not task.hold:
        parts = [tasks.get(no) for no, _ in task.after]
        children = [t for t in parts if t is None or template_of(t) == task.key]
        if children:
            done = sum(t is None or t.ended for t in children)
            return f"`{task.key}` ({done} of {len(children)} done)"
    return f"`{task.key}` ({STATE_NAMES[task.state]})"


def blockers(task: Task, tasks: Mapping[int, Task]) -> list[Task]:
    """The chain from what a WAITING task waits for to its root: the task that does not wait itself."""
    chain: list[Task] = []
    seen = {task.no}
    while task.state is TaskState.WAITING and len(chain) < _CHAIN:
        left = [t for t in open_before(task, tasks) if t.no not in seen]
        if not left:
            break
        task = min(left, key=lambda t: (_NEAREST.index(t.state), t.no))
        if (
            chain
            and chain[-1].join
            and template_of(task) == chain[-1].key
            and task.state is not TaskState.WAITING
        ):
            chain.append(task)
            break
        seen.add(task.no)
        chain.append(task)
    return chain


def chain_text(chain: Sequence[Task], tasks: Mapping[int, Task]) -> str:
    """``waits for `aggregate` (waiting), which waits for `measure` (12 of 40 done)``."""
    shown = list(chain)
    if len(shown) > 1 and shown[-2].join and template_of(shown[-1]) == shown[-2].key:
        shown.pop()  # one of a foreach's items: the foreach says enough
    names = [label(t, tasks) for t in shown]
    if len(names) > _NAMED:
        names[2:-2] = [f"{len(names) - 4} more"]
    return "waits for " + ", which waits for ".join(names)


# -- workers -------------------------------------------------------------------------------------------------


def funnel(verdicts: Verdicts) -> list[Predicate]:
    """The scheduler's tests over all workers, one after the other: each is asked of those that passed the ones before."""
    if not verdicts:
        return [Predicate("workers attached", False, "none", "one or more", "rigbus up, or rigbus worker")]
    left = list(verdicts)
    more = more_workers(v[0] for v in verdicts)
    out: list[Predicate] = []
    for i, first in enumerate(verdicts[0][1]):
        passed = [v for v in left if v[1][i].ok]
        silent = first.name == FREE_CREDIT and not any(v[0].credit for v in left)
        if not passed and silent and any(not p.ok for p in out):
            continue  # who is paused or held asks for no work: said already
        if passed:
            value = f"{len(passed)} of {some(len(left), 'worker')}"
            out.append(Predicate(first.name, True, value, first.wanted))
            left = passed
        else:
            values = [v[1][i].value for v in left]
            own_words = first.name in OFFERED or first.name in ROOM
            named = [t if own_words else f"{v[0].name} is {t}" for v, t in zip(left, values, strict=True)]
            rest = f"; and {len(named) - 3} more" if len(named) > 3 else ""
            out.append(
                Predicate(
                    first.name,
                    False,
                    "; ".join(named[:3]) + rest,
                    first.wanted,
                    left[0][1][i].fix.replace("--workers N", more),
                )
            )
    return out


def more_workers(workers: Iterable[Session]) -> str:
    """The option of `rigbus up` that gives one more worker for commands than there are."""
    n = sum("shell" in w.types and "brain" not in w.classes for w in workers)
    return f"--workers {n + 1}"


def fitting(verdicts: Verdicts) -> list[Session]:
    """The workers that lack nothing but room at this moment."""
    return [w for w, tests in verdicts if all(p.ok or p.name in ROOM for p in tests)]


def taking(verdicts: Verdicts) -> str:
    """Who could take a READY task, in a few words."""
    if not verdicts:
        return "no worker is attached: rigbus up, or rigbus worker"
    free = [w.name for w, tests in verdicts if all(p.ok for p in tests)]
    if free:
        return f"{', '.join(sorted(free)[:3])} can take it now"
    fit = fitting(verdicts)
    if fit and (full := _without_vram(verdicts, fit)):
        return full
    if len(fit) == 1:
        return f"{fit[0].name}, the only worker that can run it, is busy"
    if fit:
        return f"all {len(fit)} workers that can run it are busy"
    failed = next(p for p in funnel(verdicts) if not p.ok)
    if failed.name == "rig not paused":
        return "the rig is paused"
    if failed.name in OFFERED:
        return f"no worker {failed.wanted}: {failed.value}"
    return f"no worker can take it: {failed.value}"


def _without_vram(verdicts: Verdicts, fit: Sequence[Session]) -> str:
    """What is said when all that lacks is memory of a card; empty when a worker lacks something else."""
    lacking = [p for w, tests in verdicts if w in fit for p in tests if p.name == FREE_VRAM and not p.ok]
    if len(lacking) < len(fit):
        return ""
    who = "the only worker that can run it" if len(fit) == 1 else f"all {len(fit)} workers that can run it"
    return f"{lacking[0].wanted} of VRAM wanted on {who}: {'; '.join(p.value for p in lacking[:3])}"


# -- attempts ------------------------------------------------------------------------------------------------


def attempts_used(task: Task) -> str:
    """``1 of 3 attempts failed (task)``; empty when none did."""
    used = [
        f"{n} of {task.policy.cap(cls)} attempts failed ({cls})"
        for cls, n in zip(CLASSES, task.counts, strict=True)
        if n
    ]
    return ", ".join(used)


def handed_back(reason: str, batch: str) -> tuple[str, str]:
    """Why a task came back without a run, and what changes that."""
    if "/staged/" in reason:
        path = next((w for w in reason.replace(",", " ").replace(":", " ").split() if "/staged/" in w), "")
        return (
            f"the rig's own copy of its plan is missing: {path}",
            f"rigbus cancel {batch}, then submit the plan again",
        )
    if reason.startswith("share unavailable"):
        return f"it was handed back: {reason}", "mount the share again; it goes on by itself"
    return f"it was handed back: {reason}", ""


def as_dicts(tests: Sequence[Predicate]) -> list[dict[str, Any]]:
    """Predicates for the wire."""
    return [p.as_dict() for p in tests]
