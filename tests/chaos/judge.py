"""The offline judge: a history in, violations of what rigbus guarantees out. Pure.

I1 nothing accepted is missing · I2 nothing is recorded twice · I3 what is recorded has the current token · I4 everything ends,
and badly only for a cause · I5 no process of an ended attempt lives · I6 memory, descriptors and files are bounded ·
order: nothing begins before what it waits for has ended · log: its follower saw each event once, in order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from simulator.checkers import MOST_ATTEMPTS

from rigbus.bus.client.work import task_id

from .history import Record
from .seen import BATCH_ENDS, ENDS, NO_TOKEN, Seen, sort, token_of
from .work import BAD

#: Seconds that processes of an ended attempt may need to be found and killed: a stopped worker is only replaced after 2.
DYING_S: Final = 20.0
CLOCK_S: Final = 0.001  #: what two processes may read differently from one clock
MOST_RSS_KIB: Final = 200_000
RSS_KIB_A_TASK: Final = 3  #: of the broker: it holds each task that it has not forgotten
MOST_FDS: Final = 300
MOST_WAL: Final = 128 << 20
MOST_DB: Final = 64 << 20
DB_A_TASK: Final = 8192
_POISON: Final = "ended the brain"
_SILENT: Final = (
    "while this ran"  #: the second silence of a worker under a task is a crash of it (GUARANTEES, 6)
)


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must never happen."""

    rule: str
    text: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.text}"


def judge(records: Iterable[Record]) -> list[Violation]:
    """Every violation of a history."""
    return judge_seen(sort(records))


def judge_seen(seen: Seen) -> list[Violation]:
    """Every violation of a sorted history."""
    rules = (_whole, _lost, _answers, _twice, _tokens, _ended, _explained, _attempts, _alive, _bounded)
    return [v for rule in (*rules, _order, _log) for v in rule(seen)]


def _whole(seen: Seen) -> Iterator[Violation]:
    """A history with a hole proves nothing."""
    for r in seen.all("torn"):
        yield Violation("whole", f"a line is no record: {r['line'][:200]}")
    for kind in ("calm", "settled", "left", "over"):
        if not seen.all(kind):
            yield Violation("whole", f"there is no record `{kind}`: the campaign was not played to its end")
    for r in seen.all("down"):
        yield Violation("whole", f"`up` ended by itself with {r['exit']}")


def _lost(seen: Seen) -> Iterator[Violation]:
    for name, answers in seen.answers.items():
        for answer in answers:
            if answer["batch"] not in seen.batches:
                yield Violation("I1", f"{name} was accepted as batch {answer['batch']}, which is gone")
            for id_ in answer["ids"] or ():
                if id_ not in seen.tasks:
                    yield Violation("I1", f"{name}: task {id_} was accepted and is gone")
    for name, job in seen.jobs.items():
        batches = seen.batches_of(name)
        if not batches:
            yield Violation("I1", f"{name} ({job['kind']}) was submitted and there is no batch of it")
        for batch in batches:
            keys = {task_id(batch, key): key for key, _ in job["tasks"]}
            missing = [key for id_, key in keys.items() if id_ not in seen.tasks]
            whole = job["kind"] == "client" or seen.batches[batch]["state"] == "complete"
            if missing and whole:
                yield Violation("I1", f"{name}: {len(missing)} tasks are missing, the first is {missing[0]}")


def _answers(seen: Seen) -> Iterator[Violation]:
    """The same submit has one answer, and each has one."""
    for r in seen.refused:
        yield Violation("I4", f"{r['job']} was refused: {r['why']}")
    for name, answers in seen.answers.items():
        if any((a["batch"], a["ids"]) != (answers[0]["batch"], answers[0]["ids"]) for a in answers):
            yield Violation("I2", f"{name} was answered {len(answers)} times, not always the same")
    for name, job in seen.jobs.items():
        if (
            job["kind"] != "drop"
            and name not in seen.answers
            and not any(r["job"] == name for r in seen.refused)
        ):
            yield Violation("I4", f"the submit of {name} was never answered")


def _twice(seen: Seen) -> Iterator[Violation]:
    for name in seen.jobs:
        batches = seen.batches_of(name)
        if len(batches) > 1:
            yield Violation("I2", f"{name} was submitted once and is {len(batches)} batches")
    for id_, ends in seen.task_ends.items():
        if len(ends) > 1:
            said = ", ".join(f"{e['topic']} at {e['seq']}" for e in ends)
            yield Violation("I2", f"task {id_} ended {len(ends)} times: {said}")
    for e in seen.events:
        ends = seen.task_ends.get(e["id"])
        if ends and e["seq"] > ends[-1]["seq"] and e["ch"] != "a" and e["topic"].startswith("task."):
            yield Violation(
                "I2", f"{e['topic']} at {e['seq']}: task {e['id']} had ended at {ends[-1]['seq']}"
            )
    known = seen.spec_of()
    for id_, task in seen.tasks.items():
        if task["type"] == "shell" and id_ not in known and task["batch"] in seen.batches:
            yield Violation("I2", f"task {task['key']} of {task['batch']} was never submitted")


def _tokens(seen: Seen) -> Iterator[Violation]:
    owners: dict[tuple[int, int], str] = {}
    for line in seen.lines:
        if line.token in owners:
            yield Violation("I3", f"{line.token} began for {owners[line.token]} and again for {line.task}")
        owners[line.token] = line.task
    for id_, task in seen.tasks.items():
        if task["type"] != "shell" or task["state"] != "done":
            continue
        recorded, value = (task["token"][0], task["token"][1]), token_of(task["value_token"])
        last = max((line.token for line in seen.starts.get(id_, ())), default=NO_TOKEN)
        if value != recorded:
            yield Violation("I3", f"{task['key']} has the result of {value}, its lease was {recorded}")
        if last != recorded:
            yield Violation("I3", f"{task['key']} was recorded under {recorded}, its last attempt was {last}")
        if recorded not in seen.ends:
            yield Violation("I3", f"{task['key']} is done by {recorded}, whose command never came to its end")


def _ended(seen: Seen) -> Iterator[Violation]:
    for r in seen.all("settled"):
        if not r["ok"]:
            shown = ", ".join(r["open"][:5]) or "a submit that nobody answers"
            yield Violation("I4", f"{r['took_s']:g} s after the last fault not all had ended: {shown}")
    for batch in seen.batches.values():
        if batch["state"] not in BATCH_ENDS:
            yield Violation("I4", f"batch {batch['name']} hangs: it is {batch['state']}")
    for id_, task in seen.tasks.items():
        ends = seen.task_ends.get(id_, [])
        if task["state"] not in ENDS:
            yield Violation("I4", f"task {task['key']} of {task['batch']} hangs: it is {task['state']}")
        elif not ends or ends[-1]["topic"].rpartition(".")[2] != task["state"]:
            said = ends[-1]["topic"] if ends else "nothing"
            yield Violation("log", f"{task['key']} is {task['state']}, the log's last word of it is {said}")


def _explained(seen: Seen) -> Iterator[Violation]:
    """Each bad end has a cause."""
    spec = seen.spec_of()
    unknown = {"kind": "client", "error": None}
    bad_batches = {t["batch"] for t in seen.tasks.values() if t["state"] in ("dead", "cancelled")}
    for id_, task in seen.tasks.items():
        fate, after = spec.get(id_, ("", []))
        classes = [c for _, c, _ in task["failed"]]
        match task["state"]:
            case "dead":
                fine = fate in BAD or classes.count("infra") >= 10 or classes.count("crash") >= 2
            case "cancelled":
                fine = id_ in seen.cancelled or task["batch"] in seen.cancelled
                fine = fine or bool(seen.batches.get(task["batch"], unknown)["error"])
            case "skipped":
                causes = [seen.tasks[a]["state"] for a, any_end in after if a in seen.tasks and not any_end]
                of_plan = seen.batches.get(task["batch"], unknown)["kind"] == "plan"
                fine = any(state != "done" for state in causes) or (of_plan and task["batch"] in bad_batches)
            case "expired":
                fine = False
            case _:
                fine = True
        if not fine:
            told = f"{task['error']!r}, attempts {classes}"
            yield Violation(
                "I4", f"{task['key']} of {task['batch']} ended {task['state']} for no cause: {told}"
            )
    for batch in seen.batches.values():
        if batch["error"] and batch["id"] not in seen.cancelled and not _poisoned(seen, batch):
            yield Violation("I4", f"{batch['name']} failed for no cause: {batch['error'][:200]}")


def _poisoned(seen: Seen, batch: Record) -> bool:
    """Three brains were killed since it came: it is taken for a plan that kills them, by design."""
    since = seen.submitted_at.get(batch["name"], 0.0)
    killed = [r for r in seen.rounds if r["victim"] in ("brain", "up") and r["t"] >= since]
    return _POISON in batch["error"] and len(killed) >= 3


def _attempts(seen: Seen) -> Iterator[Violation]:
    """Each failed attempt is of the class that its cause has."""
    spec = seen.spec_of()
    hit = {r["task"] for r in seen.rounds if r["task"]}
    for id_, task in seen.tasks.items():
        fate = spec.get(id_, ("", []))[0]
        if task["attempt"] > MOST_ATTEMPTS:
            yield Violation("I4", f"{task['key']} has had {task['attempt']} attempts")
        for n, class_, error in task["failed"]:
            fine = {
                "infra": True,
                "task": fate in BAD or fate == "flaky",
                "crash": fate == "segv" or id_ in hit or _SILENT in error,
            }.get(class_, False)
            if not fine:
                yield Violation(
                    "I4", f"attempt {n} of {task['key']} failed for no cause: {class_}, {error!r}"
                )


def _alive(seen: Seen) -> Iterator[Violation]:
    for r in seen.all("left"):
        for pid, what, _ in r["processes"]:
            yield Violation("I5", f"pid {pid} lives though all has ended ({r['when']}): {what}")
        if r.get("exit"):
            yield Violation("I5", f"`up` was asked to stop and ended with {r['exit']}")
    told = set()
    for r in seen.all("bearers"):
        for pid, text, id_ in r["processes"]:
            token, limit = token_of(text), r["t"] - DYING_S
            over = [e["at"] for e in seen.task_ends.get(id_, ())]
            over += [line.t for line in seen.starts.get(id_, ()) if line.token > token]
            if (pid, text) not in told and any(at < limit for at in over):
                told.add((pid, text))
                yield Violation(
                    "I5", f"pid {pid} of attempt {token} of {id_} lives {DYING_S:g} s after its end"
                )


def _bounded(seen: Seen) -> Iterator[Violation]:
    tasks = len(seen.tasks)
    worst: dict[tuple[str, str], tuple[int, int]] = {}
    for r in seen.all("size"):
        measured = [("KiB of memory", n, v, _rss(n, tasks)) for n, v in r["rss_kib"].items()]
        measured += [("descriptors", n, v, MOST_FDS) for n, v in r["fds"].items()]
        for name, value in r["bytes"].items():
            most = MOST_WAL if name.endswith("-wal") else MOST_DB + DB_A_TASK * tasks
            measured.append(("bytes", name, value, most))
        for what, name, value, most in measured:
            if value > max(most, worst.get((what, name), (0, 0))[0]):
                worst[what, name] = (value, most)
    for (what, name), (value, most) in worst.items():
        yield Violation("I6", f"{name} had {value} {what}, {most} are its bound")


def _rss(name: str, tasks: int) -> int:
    return MOST_RSS_KIB + (RSS_KIB_A_TASK * tasks if name == "broker" else 0)


def _order(seen: Seen) -> Iterator[Violation]:
    for id_, (_, after) in seen.spec_of().items():
        lines = seen.starts.get(id_)
        if not lines:
            continue
        if seen.tasks.get(id_, {}).get("state") == "skipped":
            yield Violation("order", f"task {id_} was skipped, and it began")
        for other, any_end in after:
            ends = seen.task_ends.get(other)
            state = ends[-1]["topic"].rpartition(".")[2] if ends else ""
            if not ends or min(line.t for line in lines) < ends[-1]["at"] - CLOCK_S:
                yield Violation("order", f"task {id_} began before {other} had ended")
            elif state != "done" and not any_end:
                yield Violation("order", f"task {id_} began though {other} ended {state}")
            elif state == "done" and (task := seen.tasks.get(other)) is not None:
                end = seen.ends.get((task["token"][0], task["token"][1]))
                if end is not None and min(line.at for line in lines) < end.at:
                    yield Violation("order", f"task {id_} began before the command of {other} had ended")


def _log(seen: Seen) -> Iterator[Violation]:
    last: dict[str, int] = {}
    for e in seen.events:
        if e["topic"] == "rig.resnapshot":
            yield Violation("log", f"the follower was told that the log is cut off at {e['seq']}")
        elif e["seq"] <= last.get(e["ch"], 0):
            yield Violation("log", f"event {e['seq']} came after {last[e['ch']]}")
        elif e["prev"] != last.get(e["ch"], e["prev"]):
            yield Violation("log", f"between {last[e['ch']]} and {e['seq']} event {e['prev']} is missing")
        last[e["ch"]] = max(e["seq"], last.get(e["ch"], 0))
