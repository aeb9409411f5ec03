"""The judge of the chaos campaigns finds what is wrong: a sound history, and the same with one defect each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from chaos.figures import summary
from chaos.history import Record
from chaos.judge import DYING_S, judge
from chaos.seen import sort

from rigbus.bus.client.work import task_id

BATCH = "b1"


def ident(key: str) -> str:
    return task_id(BATCH, key)


def text(token: tuple[int, int]) -> str:
    return f"rig:session:{token[0]}.{token[1]}"


def witnessed(key: str, token: tuple[int, int], t: float, n: int = 1, *, end: bool = True) -> list[Record]:
    """What a command writes of itself; it runs for half a second."""
    said = {"tok": text(token), "task": ident(key), "n": n, "pid": 100 + token[1], "ppid": 50}
    start = {"k": "start", "t": t, **said}
    return [start, {"k": "end", "t": t + 0.5, **said}] if end else [start]


def ended(key: str, state: str, seq: int, prev: int, at: float) -> Record:
    topic = f"task.shell.{state}"
    return {
        "k": "event", "t": at, "seq": seq, "prev": prev, "at": at, "ch": "c", "topic": topic, "id": ident(key),
        "batch": BATCH, "data": {"key": key},
    }  # fmt: skip


def row(key: str, state: str, token: tuple[int, int], **more: Any) -> Record:
    return {
        "k": "task", "t": 90.0, "id": ident(key), "batch": BATCH, "key": key, "type": "shell", "state": state,
        "attempt": 1, "token": list(token), "value_token": text(token) if state == "done" else None,
        "worker": "worker-1", "error": None, "failed": [], **more,
    }  # fmt: skip


def sound() -> list[Record]:
    """Three tasks: the second after the first, the third killed once with its worker, and at last a sound end."""
    tasks = [["a-ok", []], ["b-ok", [["a-ok", False]]], ["c-long1", []]]
    answer = {"k": "accepted", "t": 1.1, "job": "j1", "batch": BATCH, "ids": [ident(key) for key, _ in tasks]}
    return [
        {"k": "campaign", "t": 0.5, "seed": 1, "rounds": 1, "tasks": 3},
        {"k": "up", "t": 0.9, "took_s": 0.4},
        {"k": "submit", "t": 1.0, "job": {"name": "j1", "kind": "client", "tasks": tasks}},
        {"k": "unanswered", "t": 1.05, "job": "j1", "why": "no answer"},
        answer,
        *witnessed("a-ok", (1, 1), 2.0),
        ended("a-ok", "done", 5, 0, 2.6),
        *witnessed("b-ok", (1, 2), 3.0),
        ended("b-ok", "done", 6, 5, 3.6),
        *witnessed("c-long1", (1, 3), 3.0, end=False),
        {"k": "round", "t": 3.2, "n": 0, "victim": "worker-1", "deed": "kill", "stop_s": 0, "pid": 50, "task": ""},
        {"k": "size", "t": 3.5, "rss_kib": {"broker": 30000}, "fds": {"broker": 40}, "bytes": {"rigbus.db": 90000}},
        {"k": "bearers", "t": 3.5, "processes": [[103, text((1, 3)), ident("c-long1")]]},
        *witnessed("c-long1", (1, 4), 4.0, 2),
        ended("c-long1", "done", 8, 6, 4.6),
        {"k": "calm", "t": 10.0},
        {"k": "settled", "t": 11.0, "ok": True, "took_s": 1.0, "open": []},
        {"k": "left", "t": 12.0, "when": "idle", "processes": []},
        {"k": "left", "t": 13.0, "when": "stopped", "exit": 0, "processes": []},
        {"k": "batch", "t": 90.0, "id": BATCH, "key": "j1", "kind": "client", "name": "j1", "state": "complete", "cancelled": 0,
         "error": None},
        row("a-ok", "done", (1, 1)),
        row("b-ok", "done", (1, 2)),
        row("c-long1", "done", (1, 4), attempt=2, failed=[[1, "infra", "worker-1 was ended by signal 9"]]),
        {"k": "over", "t": 91.0},
    ]  # fmt: skip


def find(history: list[Record], kind: str, **fields: Any) -> Record:
    """The one record with these fields."""
    (found,) = (r for r in history if r["k"] == kind and all(r.get(k) == v for k, v in fields.items()))
    return found


def of_task(history: list[Record], key: str) -> Record:
    return find(history, "task", key=key)


def test_a_sound_history_has_no_violation() -> None:
    assert judge(sound()) == []


# -- one defect each -------------------------------------------------------------------------------------------

Defect = Callable[[list[Record]], Any]
DEFECTS: dict[str, tuple[str, Defect]] = {}


def defect(rule: str) -> Callable[[Defect], Defect]:
    def keep(made: Defect) -> Defect:
        DEFECTS[made.__name__] = (rule, made)
        return made

    return keep


@defect("I1")
def a_task_is_lost(h: list[Record]) -> None:
    h.remove(of_task(h, "a-ok"))


@defect("I1")
def a_batch_is_lost(h: list[Record]) -> None:
    h.remove(find(h, "batch"))


@defect("I1")
def a_plan_is_complete_without_an_item(h: list[Record]) -> None:
    find(h, "submit")["job"]["kind"] = "plan"
    find(h, "accepted")["ids"] = None
    h.remove(of_task(h, "c-long1"))


@defect("I2")
def the_same_submit_is_two_batches(h: list[Record]) -> None:
    h.insert(-1, {**find(h, "batch"), "id": "b2"})


@defect("I2")
def the_same_submit_has_two_answers(h: list[Record]) -> None:
    h.insert(5, {**find(h, "accepted"), "ids": [ident("b-ok"), ident("a-ok"), ident("c-long1")]})


@defect("I2")
def a_task_is_recorded_twice(h: list[Record]) -> None:
    h.insert(-6, ended("c-long1", "done", 9, 8, 5.0))


@defect("I2")
def a_done_task_dies_afterwards(h: list[Record]) -> None:
    h.insert(-6, ended("c-long1", "dead", 9, 8, 5.0))


@defect("I2")
def a_task_that_nobody_submitted(h: list[Record]) -> None:
    h.insert(-1, row("x-ok", "done", (1, 9)))
    h.insert(-1, ended("x-ok", "done", 9, 8, 5.0))
    h[-1:-1] = witnessed("x-ok", (1, 9), 4.0)


@defect("I3")
def the_result_of_an_old_attempt_is_recorded(h: list[Record]) -> None:
    of_task(h, "c-long1")["value_token"] = text((1, 3))


@defect("I3")
def an_old_token_is_recorded(h: list[Record]) -> None:
    old = of_task(h, "c-long1")
    old["token"], old["value_token"] = [1, 3], text((1, 3))


@defect("I3")
def a_token_is_given_to_two_tasks(h: list[Record]) -> None:
    for r in h:
        if r["k"] in ("start", "end") and r["tok"] == text((1, 2)):
            r["tok"] = text((1, 1))
    of_task(h, "b-ok").update(token=[1, 1], value_token=text((1, 1)))


@defect("I3")
def an_attempt_begins_twice(h: list[Record]) -> None:
    h.insert(-6, witnessed("c-long1", (1, 4), 5.0, end=False)[0])


@defect("I3")
def a_result_is_recorded_that_no_command_made(h: list[Record]) -> None:
    h.remove(find(h, "end", tok=text((1, 2))))


@defect("I4")
def a_task_hangs(h: list[Record]) -> None:
    of_task(h, "b-ok")["state"] = "leased"


@defect("I4")
def a_batch_hangs(h: list[Record]) -> None:
    find(h, "batch")["state"] = "running"


@defect("I4")
def the_rig_does_not_heal(h: list[Record]) -> None:
    find(h, "settled").update(ok=False, open=["j1"])


@defect("I4")
def a_submit_is_never_answered(h: list[Record]) -> None:
    h.remove(find(h, "accepted"))


@defect("I4")
def a_submit_is_refused(h: list[Record]) -> None:
    h.insert(5, {"k": "refused", "t": 1.2, "job": "j1", "why": "Conflict: another content"})


@defect("I4")
def a_good_task_is_dead(h: list[Record]) -> None:
    of_task(h, "c-long1").update(state="dead", failed=[[1, "infra", "lost"], [2, "infra", "lost"]])
    find(h, "event", seq=8)["topic"] = "task.shell.dead"


@defect("I4")
def a_task_is_cancelled_that_nobody_cancelled(h: list[Record]) -> None:
    of_task(h, "c-long1")["state"] = "cancelled"
    find(h, "event", seq=8)["topic"] = "task.shell.cancelled"


@defect("I4")
def a_task_is_skipped_though_what_it_needs_is_done(h: list[Record]) -> None:
    of_task(h, "b-ok")["state"] = "skipped"
    find(h, "event", seq=6)["topic"] = "task.shell.skipped"
    for r in [r for r in h if r["k"] in ("start", "end") and r["task"] == ident("b-ok")]:
        h.remove(r)


@defect("I4")
def a_task_expires_without_a_deadline(h: list[Record]) -> None:
    of_task(h, "c-long1")["state"] = "expired"
    find(h, "event", seq=8)["topic"] = "task.shell.expired"


@defect("I4")
def an_attempt_crashed_that_nobody_killed(h: list[Record]) -> None:
    of_task(h, "c-long1")["failed"] = [[1, "crash", "ended by signal 9"]]


@defect("I4")
def a_lost_worker_counts_as_a_failure_of_the_task(h: list[Record]) -> None:
    of_task(h, "c-long1")["failed"] = [[1, "task", "exit 137"]]


@defect("I4")
def a_plan_fails_for_no_cause(h: list[Record]) -> None:
    find(h, "batch").update(kind="plan", state="failed", error="its plan ended the brain 3 times")


@defect("I5")
def a_process_is_left_when_all_has_ended(h: list[Record]) -> None:
    find(h, "left", when="idle")["processes"] = [[103, text((1, 3)), ident("c-long1")]]


@defect("I5")
def a_process_is_left_when_the_rig_has_stopped(h: list[Record]) -> None:
    find(h, "left", when="stopped")["processes"] = [[104, "sleep 600", ""]]


@defect("I5")
def the_rig_does_not_stop_well(h: list[Record]) -> None:
    find(h, "left", when="stopped")["exit"] = 1


@defect("I5")
def an_old_attempt_goes_on_beside_the_next_one(h: list[Record]) -> None:
    find(h, "bearers")["t"] = 4.0 + DYING_S + 0.1


@defect("I5")
def a_process_outlives_its_task(h: list[Record]) -> None:
    find(h, "bearers").update(t=2.6 + DYING_S + 0.1, processes=[[101, text((1, 1)), ident("a-ok")]])


@defect("I6")
def memory_grows(h: list[Record]) -> None:
    find(h, "size")["rss_kib"] = {"broker": 3_000_000}


@defect("I6")
def descriptors_leak(h: list[Record]) -> None:
    find(h, "size")["fds"] = {"worker-1": 1024}


@defect("I6")
def the_log_of_the_database_is_never_checkpointed(h: list[Record]) -> None:
    find(h, "size")["bytes"] = {"rigbus.db-wal": 1 << 30}


@defect("order")
def a_dependent_begins_too_early(h: list[Record]) -> None:
    find(h, "start", task=ident("b-ok"))["t"] = 2.4


@defect("order")
def a_dependent_begins_before_the_command_has_ended(h: list[Record]) -> None:
    start = find(h, "start", task=ident("b-ok"))
    h.remove(start)
    h.insert(h.index(find(h, "end", task=ident("a-ok"))), start)


@defect("order")
def a_dependent_runs_after_a_bad_end(h: list[Record]) -> None:
    key = "a-fails"
    find(h, "submit")["job"]["tasks"][:2] = [[key, []], ["b-ok", [[key, False]]]]
    find(h, "accepted")["ids"][0] = ident(key)
    h[h.index(of_task(h, "a-ok"))] = row(
        key, "dead", (1, 1), failed=[[1, "task", "exit 3"], [2, "task", "exit 3"]]
    )
    find(h, "event", seq=5).update(id=ident(key), topic="task.shell.dead")
    for r in h:
        if r["k"] in ("start", "end") and r["task"] == ident("a-ok"):
            r["task"] = ident(key)


@defect("order")
def a_skipped_task_begins(h: list[Record]) -> None:
    a_task_is_skipped_though_what_it_needs_is_done(h)
    h.insert(-6, witnessed("b-ok", (1, 2), 3.0)[0])


@defect("log")
def an_event_is_missing(h: list[Record]) -> None:
    find(h, "event", seq=8)["prev"] = 7


@defect("log")
def an_event_comes_twice(h: list[Record]) -> None:
    h.insert(-6, {**find(h, "event", seq=5), "topic": "task.shell.retry"})


@defect("log")
def the_log_is_cut_off(h: list[Record]) -> None:
    h.insert(-6, {**find(h, "event", seq=8), "seq": 9, "topic": "rig.resnapshot"})


@defect("log")
def the_log_says_otherwise_than_the_database(h: list[Record]) -> None:
    h.remove(find(h, "event", seq=8))


@defect("whole")
def the_history_has_no_end(h: list[Record]) -> None:
    h.pop()


@defect("whole")
def up_ended_by_itself(h: list[Record]) -> None:
    h.insert(-6, {"k": "down", "t": 5.0, "exit": 1})


@defect("whole")
def a_line_is_torn(h: list[Record]) -> None:
    h.insert(5, {"k": "torn", "line": "b'{'"})


@pytest.mark.parametrize("name", DEFECTS)
def test_the_judge_finds(name: str) -> None:
    rule, made = DEFECTS[name]
    history = sound()
    made(history)
    found = judge(history)
    assert rule in {v.rule for v in found}, found
    assert len(found) <= 4, found  # it names the defect, and little that follows from it


# -- what is no violation --------------------------------------------------------------------------------------


def test_a_bad_end_that_was_ordered_is_none() -> None:
    h = sound()
    a_dependent_runs_after_a_bad_end(h)
    h = [r for r in h if not (r["k"] in ("start", "end") and r["task"] == ident("b-ok"))]
    of_task(h, "b-ok").update(state="skipped", value_token=None)
    find(h, "event", seq=6)["topic"] = "task.shell.skipped"
    assert judge(h) == []


def test_what_was_killed_as_often_as_its_cap_allows_may_be_dead() -> None:
    h = sound()
    of_task(h, "c-long1").update(
        state="dead", value_token=None, failed=[[n, "infra", "lost"] for n in range(10)]
    )
    find(h, "event", seq=8)["topic"] = "task.shell.dead"
    assert judge(h) == []


def test_a_command_that_was_killed_is_a_crash_and_so_is_the_second_silence() -> None:
    h = sound()
    of_task(h, "c-long1")["failed"] = [[1, "crash", "ended by signal 9"]]
    find(h, "round").update(victim="command", task=ident("c-long1"))
    assert judge(h) == []
    find(h, "round")["task"] = ""
    of_task(h, "c-long1")["failed"] = [[1, "crash", "lost; that was time 2 while this ran: …"]]
    assert judge(h) == []


def test_a_plan_under_which_three_brains_died_may_fail() -> None:
    h = sound()
    a_plan_fails_for_no_cause(h)
    h[5:5] = [{**find(h, "round"), "n": n, "t": 1.5, "victim": "brain"} for n in (1, 2, 3)]
    assert judge(h) == []


def test_a_cancelled_task_may_be_cancelled() -> None:
    h = sound()
    a_task_is_cancelled_that_nobody_cancelled(h)
    h.insert(5, {"k": "cancel", "t": 2.0, "job": "j1", "batch": BATCH, "ids": [ident("c-long1")]})
    assert judge(h) == []


# -- the summary -----------------------------------------------------------------------------------------------


def test_the_summary_counts_and_measures() -> None:
    found = summary(sort(sound()), [])
    assert found["rounds"] == 1 and found["rounds_by_victim"] == {"kill worker": 1}
    assert (found["tasks"], found["executions"], found["reexecutions"], found["interrupted"]) == (3, 4, 1, 1)
    assert found["recovery"]["worker"]["median_s"] == pytest.approx(
        0.8
    )  # c-long1, from the kill to its next attempt
