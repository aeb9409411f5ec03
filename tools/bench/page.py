"""docs/benchmarks.md: the figures of one run of all benches, what they are beside, and what was learned. Pure.

Everything is written anew but the part between the markers, which people write.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from .figures import Figure, Outcome, busy, number

BEGIN: Final = "<!-- learned: written by hand, kept by `make bench` -->"
END: Final = "<!-- /learned -->"

#: What each bench does, and the command that repeats it.
ABOUT: Final[Mapping[str, tuple[str, str, str]]] = {
    "bus": (
        "The bus: no-op tasks",
        "rigbus bench bus",
        (
            "One client submits no-op tasks with 200 bytes of payload to a broker and two workers and collects every result. "
            "*One at a time* is a call and its answer with nothing else to do. Ratios: to SQLite alone, which inserts and "
            "updates one row a task in synced groups of 100; and to a bare call, which is two synced commits and two echo "
            "round trips without any contract."
        ),
    ),
    "dag": (
        "Dependencies",
        "rigbus bench dag",
        (
            "A chain of tasks each of which waits for the one before, a fan, and a plan whose list is expanded. The stall is "
            "the longest answer to a small question asked every 5 ms meanwhile."
        ),
    ),
    "shell": (
        "Commands: `true` as tasks of a plan",
        "rigbus bench shell",
        (
            "A whole plan, from its submit to the end of its batch: the list is read and expanded, each command gets its "
            "view, environment, log and process tree. Beside it, in turn, two bare Python loops of "
            '`subprocess.run(["bash", "-c", "true"])`.'
        ),
    ),
    "scale": (
        "A long queue",
        "rigbus bench scale",
        (
            "Tasks are queued while the workers are paused; the broker is killed with -9 and started again; the queue is "
            "drained in parts, beside short queues drained on the same rig."
        ),
    ),
    "mirror": (
        "The mirror in the shared folder",
        "rigbus bench mirror",
        (
            "Tasks at a steady rate, each mirrored as a file. A reader in a process of its own looks into `tasks/complete` "
            "every 20 ms; the lag is from the task's end at the client to the first look that shows it."
        ),
    ),
    "llm": (
        "A model",
        "rigbus bench llm --model FILE",
        (
            "One request and eight at once, in the engine's own process and through the whole bus. Beside them llama.cpp alone: "
            "a bare loop of llama_decode with one sequence and with eight, and eight threads that share one "
            "`llama_cpp.Llama` behind a lock. Not a part of `bench all`: it needs a model, and its targets are for one of "
            "at least 10 ms a token."
        ),
    ),
    "recovery": (
        "Faults, and how long they are felt",
        "rigbus bench recovery",
        (
            "Done to real processes: workers and brokers killed with -9, a command that floods its output, a shared folder "
            "that hangs, a subscriber that is stopped. Ratios are medians of paired turns of one run. Not a part of `bench "
            "all`: it takes a quarter of an hour, and a machine with nothing else to do."
        ),
    ),
    "soak": (
        "A million tasks on one rig",
        "rigbus bench soak",
        (
            "No-op tasks, round after round, on a rig whose history is kept short: does anything grow? Not a part of `bench "
            "all`: it takes some minutes by itself."
        ),
    ),
}

#: Those that are not a part of `bench all`: each section has its own date, commit and machine, and outlives the others.
APART: Final = ("llm", "recovery", "soak")
_OTHERS: Final = "## Others\n"

#: Others, at their best setting: no-op/s, one at a time p50 ms, chain of 1,000 s, 1→2,000→1 s, CPU µs a task.
PEERS: Final[Sequence[tuple[str, ...]]] = (
    (
        "bare ROUTER broker + SQLite FULL, no contract",
        "13,200",
        "0.98",
        "0.98 †",
        "0.15 †",
        "133",
        "no / yes",
    ),
    (
        "Redis Streams, pipelined by 100, AOF everysec",
        "12,600",
        "0.55",
        "0.64 †",
        "0.17 †",
        "134",
        "yes / yes",
    ),
    ("NATS JetStream, file store", "4,400", "1.43", "1.1–6.3 †", "0.49 †", "415", "yes / yes"),
    ("Huey on SQLite, with fsync", "1,120", "2.0", "–", "–", "–", "no / –"),
    ("Dramatiq + Redis AOF", "1,450", "5.7", "fails", "–", "–", "slow / yes"),
    ("Ray", "1,090", "2.3", "2.25", "1.88", "–", "yes / no"),
    ("Dask, tuned", "880", "10.9", "5.9", "2.4", "1,943", "yes / no"),
    ("Celery + Redis (acks_late, AOF)", "430", "3.6", "37.7", "21.2", "4,169", "up to 1 h / yes"),
)

_HEAD: Final = """# Benchmarks

Figures of real rigs: processes of their own, `synchronous=FULL`, every answer after its commit, every result collected.
Each stands beside a limit of the same machine measured in the same run, for a rate alone says more about the machine
than about the bus. `make bench` runs all of it (about {minutes} minutes on two cores) and writes this page; the part
*What was learned* is kept.
"""

_SAYS_NOT: Final = """## What these figures do not say

- Nothing about real work: a task that takes a second costs the same few hundred microseconds of bus.
- Nothing about a slow disk by themselves. Grouped figures hardly move with fsync, the ones *one at a time* and of a
  chain grow by two fsyncs a task; the fsync of the run stands beside each.
- Nothing about a network: all sockets are `ipc://` on one machine, and the shared folder is a local one.
- Little about differences under 30 %: two cores shared with others are noisy. The CPU a task holds up better than a
  rate, and a ratio to a limit of the same run better than both.
- Nothing about many clients or users; fairness is between batches.
"""

_PEERS_HEAD: Final = """## Others

Measured on **another machine** of two shared cores (2.5 GHz, Python 3.11), server, two workers, one client, 10,000 no-op
tasks of about 200 bytes: orders of magnitude to stand beside ours, no race. † has no dependencies of its own: the client
releases the next task. The last column: survives kill -9 of a worker / of the broker.

| system (best setting) | no-op/s | p50, ms | chain of 1,000, s | 1→2,000→1, s | CPU µs a task | survives |
|---|---|---|---|---|---|---|
"""


def page(
    outcomes: Sequence[Outcome], *, date: str, took_s: float, learned: str, apart: Sequence[str] = ()
) -> str:
    """The whole page. ``learned`` is what stands between the markers, ``apart`` are sections of :data:`APART`, ``date`` is
    for people."""
    parts = [
        _HEAD.format(minutes=max(1, round(took_s / 60))),
        _machine(outcomes[0], date),
        _summary(outcomes),
    ]
    parts += [_section(outcome) for outcome in outcomes]
    parts += apart
    parts.append(_PEERS_HEAD + "\n".join(f"| {' | '.join(row)} |" for row in PEERS) + "\n")
    parts.append(_SAYS_NOT)
    parts.append(f"## What was learned\n\n{BEGIN}\n{learned.strip()}\n{END}\n")
    return "\n".join(parts)


def learned_in(text: str) -> str:
    """What people wrote between the markers of an earlier page; "" without them."""
    _, begin, rest = text.partition(BEGIN)
    kept, end, _ = rest.partition(END)
    return kept.strip() if begin and end else ""


def section_apart(outcome: Outcome, date: str) -> str:
    """The section of a bench that is measured by itself, so with its own date, machine and targets."""
    reached = [
        f"{f.name}: {'reached' if f.met else '**not reached**'}"
        for f in outcome.figures
        if f.target is not None
    ]
    return f"{_section(outcome)}- targets: {', '.join(reached) or 'none'}\n{_machine(outcome, date)}"


def section_in(text: str, bench: str) -> str:
    """The section of one bench in an earlier page; "" without one."""
    head = f"## {ABOUT[bench][0]}\n"
    _, found, rest = text.partition(head)
    return head + rest.partition("\n## ")[0].rstrip() + "\n" if found else ""


def sections_apart_in(text: str) -> list[str]:
    """All sections of an earlier page that are measured by themselves."""
    return [section for bench in APART if (section := section_in(text, bench))]


def with_section(text: str, bench: str, section: str) -> str:
    """The page with another section of this bench, or with its first one: before those of :data:`APART` that come after
    it. "" where the text is not such a page."""
    before = section_in(text, bench)
    if before:
        return text.replace(before, section)
    later = [ABOUT[b][0] for b in APART[APART.index(bench) + 1 :]]
    for head in (*(f"## {title}\n" for title in later), _OTHERS):
        if text.count(head) == 1 and BEGIN in text:
            return text.replace(head, f"{section}\n{head}")
    return ""


def _machine(first: Outcome, date: str) -> str:
    s = first.settings
    return (
        f"- date: {date}\n- commit: {s.get('commit') or 'unknown'}"
        + (" (with changes)" if str(s.get("commit")).endswith("+") else "")
        + f"\n- machine: {s['cpu']}, {s['cores']} cores, {s['system']}, Python {s['python']}\n"
        + f"- load before: {s['load_before']}; one fsync of 4 KiB: {first.fsync_p50_us:.0f} µs (median)\n"
    )


def _summary(outcomes: Sequence[Outcome]) -> str:
    """The targets, and which of them this run reached."""
    lines = ["## Our targets in this run", "", "| what | median | target | reached |", "|---|---|---|---|"]
    for outcome in outcomes:
        for f in outcome.figures:
            if f.target is not None:
                reached = "yes" if f.met else "**no**"
                lines.append(f"| {f.name} | {_value(f)} | {_target(f)} | {reached} |")
    return "\n".join(lines) + "\n"


def _section(outcome: Outcome) -> str:
    title, command, what = ABOUT[outcome.bench]
    lines = [f"## {title}", "", what, "", f"    {command}", ""]
    lines += ["| what | median | range | target | ratio |", "|---|---|---|---|---|"]
    for f in outcome.figures:
        span = f"{number(f.spread.low)} to {number(f.spread.high)}" if f.spread.rounds > 1 else "one round"
        ratio = f"{number(f.ratio)} {f.limit}" if f.ratio is not None else ""
        lines.append(f"| {f.name} | {_value(f)} | {span} | {_target(f)} | {ratio} |")
    lines.append("")
    if outcome.cpu:
        known = [f"{k} {v:,.0f}" for k, v in outcome.cpu.items() if v is not None]
        lines.append(f"- CPU, µs a task: {', '.join(known) or 'this system does not tell'}")
    limits = [f"{name} {number(value)}" for name, value in outcome.limits.items()]
    limits.append(f"fsync p50 {outcome.fsync_p50_us:.0f} µs")
    lines.append(f"- the machine in the same run: {', '.join(limits)}")
    lines += [f"- {note}" for note in [*outcome.notes, *busy(outcome.settings)]]
    own = {k: v for k, v in outcome.settings.items() if k not in _SHOWN_ABOVE}
    lines.append(f"- settings: {', '.join(f'{k} {v}' for k, v in own.items())}")
    return "\n".join(lines) + "\n"


_SHOWN_ABOVE: Final = ("python", "system", "platform", "cpu", "cores", "commit")


def _value(f: Figure) -> str:
    return f"{number(f.spread.median)} {f.unit}".strip()


def _target(f: Figure) -> str:
    return f"{'≥' if f.at_least else '≤'} {number(f.target)}" if f.target is not None else ""
