"""A plan is revised while its batch runs, or when it has ended: what is done stays done, all else is what the new plan says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from harness import error_of
from revisable import Rig, command

from rigbus.bus.core.model import Revised
from rigbus.bus.core.revising import MAX_REVISIONS
from rigbus.bus.states import BatchState, TaskState
from rigbus.bus.store.room import UNKNOWN, Level
from rigbus.bus.wire import Verb

CHAIN = command("a") + command("b", "a", run="brok") + command("c", "b")
MENDED = command("a") + command("b", "a", run="works") + command("c", "b")
EACH = "### each\n- task_class: cpu\n- foreach: {source}\n- command: `{run} {{ITEM.id}}`\n- depends_on: a\n"


def each(run: str = "make", source: str = "{BATCH_PATH}/l.json:items", **fields: str) -> str:
    lines = EACH.replace("{source}", source).replace("{run}", run).replace("{{ITEM.id}}", "{ITEM.id}")
    return command("a") + lines + "".join(f"- {k}: {v}\n" for k, v in fields.items()) + command("end", "each")


def items(*names: str) -> list[dict[str, str]]:
    return [{"id": name} for name in names]


@pytest.fixture
def failed() -> Rig:
    """`a` is done, `b` dead, `c` skipped; the batch has ended."""
    rig = Rig(CHAIN)
    rig.finish("a")
    rig.finish("b", fails=True)
    assert rig.states() == {"a": "DONE", "b": "DEAD", "c": "SKIPPED"} and rig.row.state is BatchState.FAILED
    return rig


def test_done_stays_done_and_a_dead_task_runs_with_its_new_command(failed: Rig) -> None:
    done = failed.task("a")
    before = (done.no, done.attempt, done.token, done.seq)
    answer = failed.revise(MENDED)
    assert answer.header["revision"] == 2 and answer.header["state"] == "running"
    assert failed.states() == {"a": "DONE", "b": "LEASED", "c": "WAITING"}
    assert (done.no, done.attempt, done.token, done.seq) == before
    failed.finish_all()
    assert failed.ran == ["a: true", "b: works", "c: true"]
    assert failed.row.state is BatchState.COMPLETE and failed.row.counts[TaskState.DONE] == 3
    assert failed.task("b").attempt == 2, "its attempts go on, so no log is written over"


def test_between_the_answer_and_the_planning_nothing_of_it_is_leased() -> None:
    rig = Rig(command("a") + command("b", "a") + command("x"))
    rig.revise(command("a") + command("b", "a") + command("x"), settle=False)
    rig.worker.result(rig.take()["a"])
    assert rig.task("b").state is TaskState.READY and "b" not in rig.take()
    rig.settle()
    assert "b" in rig.take()


def test_what_waits_gets_its_new_definition_and_edges() -> None:
    rig = Rig(CHAIN + command("d", "c"))
    rig.revise(
        command("a")
        + command("b", "a", run="new")
        + command("c")
        + command("d", "c", "e")
        + command("e", "b")
    )
    assert rig.states() == {"a": "LEASED", "b": "WAITING", "c": "LEASED", "d": "WAITING", "e": "WAITING"}
    rig.finish_all()
    assert [word for word in rig.ran if word.startswith("b")] == ["b: new"]
    assert rig.ran.index("e: true") < rig.ran.index("d: true") and rig.row.state is BatchState.COMPLETE


def test_what_was_ready_waits_for_a_new_task_before_it() -> None:
    rig = Rig(command("a") + command("b"), slots=1)
    assert rig.task("b").state is TaskState.READY
    rig.revise(command("a") + command("b", "z") + command("z"))
    assert rig.task("b").state is TaskState.WAITING
    rig.finish_all()
    assert rig.ran == ["a: true", "z: true", "b: true"]


def test_a_running_task_with_the_same_definition_runs_on() -> None:
    rig = Rig(command("a", run="long") + command("b", "a"))
    token = rig.take()["a"]["token"]
    rig.revise(command("new") + command("a", run="long") + command("b", "a", run="other"))
    assert list(rig.task("a").token) == token and not rig.task("a").ending
    rig.finish("a")
    rig.finish_all()
    assert "a: long" in rig.ran and "b: other" in rig.ran and rig.task("a").attempt == 1


def test_a_running_task_with_another_definition_is_ended_and_comes_back() -> None:
    rig = Rig(command("a", run="old") + command("b", "a"))
    old = rig.take()["a"]
    rig.revise(command("a", run="new") + command("b", "a"))
    assert rig.task("a").ending == 1 and rig.task("a").revised is Revised.ANEW
    assert rig.take() == {"a": old}, "nothing of it is leased while the old tree lives"
    rig.cancelled_on_worker("a")
    assert rig.take()["a"]["payload"]["command"] == "new" and rig.take()["a"]["token"] != old["token"]
    rig.finish_all()
    assert rig.ran == ["a: new", "b: true"] and rig.row.state is BatchState.COMPLETE


def test_what_an_attempt_of_the_old_definition_still_says_is_not_recorded() -> None:
    rig = Rig(command("a", run="old"))
    old = rig.take().pop("a")
    rig.revise(command("a", run="new"))
    rig.worker.result(old)  # it ended well before it heard
    assert rig.task("a").state is TaskState.LEASED and rig.take()["a"]["payload"]["command"] == "new"
    rig.worker.result(old)
    assert rig.task("a").state is TaskState.LEASED, "the old token is stale"
    rig.finish_all()
    assert rig.row.counts[TaskState.DONE] == 1


def test_a_worker_that_is_lost_under_the_old_definition_costs_the_new_one_nothing() -> None:
    rig = Rig(command("a", run="old"))
    rig.revise(command("a", run="new"))
    rig.rig.peer("supervisor").ask(Verb.GONE, {"session": rig.worker.id})
    task = rig.task("a")
    assert (task.state, task.counts, task.revised) == (TaskState.READY, (0, 0, 0), Revised.NO)


def test_a_key_that_is_gone_is_dropped_with_what_waited_for_it() -> None:
    rig = Rig(command("a") + command("x", "a") + command("y", "x") + command("run") + command("d"))
    rig.finish("d", fails=True)
    rig.revise(command("a"))
    assert rig.states() == {"a": "LEASED"} and rig.row.total == 2, (
        "what is gone and still runs counts until it is dead"
    )
    assert {k: t.state.name for k, t in rig.row.keys.items() if t.dropped} == {
        "x": "CANCELLED",
        "y": "CANCELLED",
        "run": "LEASED",
        "d": "DEAD",
    }
    rig.finish("a")
    assert rig.row.state is BatchState.RUNNING
    rig.cancelled_on_worker("run")
    assert rig.row.state is BatchState.COMPLETE and rig.row.total == 1
    assert rig.client.ask(Verb.REQUEUE, {"batch": rig.batch}).header == {"requeued": 0, "revived": 0}


def test_a_dropped_key_may_come_back() -> None:
    rig = Rig(command("a") + command("b"))
    rig.finish("a")
    rig.finish("b", fails=True)
    rig.revise(command("a"))
    assert rig.row.state is BatchState.COMPLETE
    rig.revise(command("a") + command("b", run="again"))
    assert rig.row.state is BatchState.RUNNING and rig.row.total == 2
    rig.finish_all()
    assert rig.ran[-1] == "b: again" and rig.row.state is BatchState.COMPLETE


def test_a_new_task_may_depend_on_a_done_one(failed: Rig) -> None:
    failed.revise(command("a") + command("n", "a"))
    assert failed.states() == {"a": "DONE", "n": "LEASED"}
    failed.finish_all()
    assert failed.row.state is BatchState.COMPLETE


# -- foreach -------------------------------------------------------------------------------------------------


def half_done() -> Rig:
    """Two of four items are done, one is dead, one runs."""
    rig = Rig(each(), {"each": items("i1", "i2", "i3", "i4")})
    rig.finish("a")
    rig.finish("each:expand")
    rig.finish("each_i1", "each_i2")
    rig.finish("each_i3", fails=True)
    return rig


def test_of_a_changed_template_the_items_that_are_done_stay_so() -> None:
    rig = half_done()
    rig.revise(each(run="better"))
    assert rig.task("each_i4").revised is Revised.ANEW and rig.task("each").state is TaskState.WAITING
    rig.cancelled_on_worker("each_i4")
    rig.finish_all()
    assert sorted(w.partition(":")[0] for w in rig.ran if "better" in w) == ["each_i3", "each_i4"]
    assert len([w for w in rig.ran if w.startswith("each_i1")]) == 1
    assert rig.row.state is BatchState.COMPLETE and rig.ran[-1] == "end: true"


def test_of_an_unchanged_template_what_runs_goes_on_and_what_is_dead_runs_again() -> None:
    rig = half_done()
    token = rig.take()["each_i4"]["token"]
    rig.revise(each() + command("more"))
    assert rig.take()["each_i4"]["token"] == token and "each_i3" in rig.take()
    rig.finish_all()
    assert rig.row.state is BatchState.COMPLETE and len([w for w in rig.ran if w.startswith("each_i2")]) == 1


def test_a_list_from_another_source_is_read_again_and_items_of_both_stay_done() -> None:
    rig = half_done()
    old = rig.task("each:expand").no
    rig.revise(each(source="{BATCH_PATH}/m.json:items"), lists={"each": items("i2", "i4", "i5")})
    assert rig.task("each:expand").no != old and rig.task("each_i3").dropped
    rig.finish("each:expand")
    assert {k for k, t in rig.row.keys.items() if t.dropped} == {"each_i3"}
    rig.cancelled_on_worker("each_i4")  # dropped with its list, and back with the next one
    rig.finish_all()
    assert rig.row.state is BatchState.COMPLETE
    assert rig.task("each_i5").state is TaskState.DONE and rig.task("each_i1").state is TaskState.DONE


def test_a_template_that_was_through_stays_so() -> None:
    rig = Rig(each(), {"each": items("i1", "i2")})
    rig.finish_all()
    before = {key: task.no for key, task in rig.row.keys.items()}
    rig.revise(each(run="better"))
    assert {key: task.no for key, task in rig.row.keys.items()} == before
    assert rig.row.state is BatchState.COMPLETE


def test_a_join_that_was_through_is_made_again_when_its_list_grows() -> None:
    rig = Rig(each(), {"each": items("i1", "i2")})
    rig.finish_all()
    rig.revise(each(source="{BATCH_PATH}/m.json:items"), lists={"each": items("i1", "i2", "i3")})
    assert rig.states()["each"] == "WAITING" and rig.states()["end"] == "DONE"
    rig.finish_all()
    assert [w.partition(":")[0] for w in rig.ran][-2:] == ["each", "each_i3"] or rig.ran[-1].startswith(
        "each_i3"
    )
    assert rig.row.state is BatchState.COMPLETE


def test_a_plain_task_becomes_a_template_and_back() -> None:
    plain = command("a") + command("each", "a") + command("end", "each")
    rig = Rig(plain, {"each": items("i1", "i2")})
    rig.finish("a")
    rig.revise(each())
    rig.cancelled_on_worker("each")
    rig.finish("each:expand")
    rig.finish("each_i1")
    rig.revise(plain)
    assert rig.states()["each"] == "LEASED" and rig.task("each_i2").dropped
    rig.cancelled_on_worker("each_i2")
    rig.finish_all()
    assert rig.row.state is BatchState.COMPLETE and rig.ran[-2:] == ["each: true", "end: true"]


# -- settings ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "ends"),
    [
        ({}, {"timeout_s": "7"}, True),
        ({}, {"on_failure": "continue"}, False),
        ({}, {"priority": "urgent"}, False),
        ({}, {"max_attempts": "1"}, True),
    ],
)
def test_a_setting_ends_what_runs_only_where_it_is_about_how_it_runs(old: Any, new: Any, ends: bool) -> None:
    rig = Rig(command("a", **old))
    rig.revise(command("a", **new))
    assert bool(rig.task("a").ending) is ends


def test_a_value_of_the_configuration_that_enters_a_command_makes_it_another() -> None:
    head = "# Plan: p\n\n## Inputs\n- **N**: how many\n- **M**: more\n\n## Tasks\n\n"
    text = command("uses", run="echo {N}") + command("not", run="echo 1")
    rig = Rig(command("uses", run="echo 0") + command("not", run="echo 1"))
    rig.revise(text, config={"N": "5", "M": "1"}, head=head)
    assert rig.task("uses").ending and not rig.task("not").ending
    rig.cancelled_on_worker("uses")
    rig.revise(text, config={"N": "5", "M": "2"}, head=head)
    assert not rig.task("uses").ending and not rig.task("not").ending


def test_another_file_beside_the_plan_ends_what_may_use_it() -> None:
    rig = Rig(command("a"))
    rig.revise(command("a"), files="of another script")
    assert rig.task("a").ending


# -- revisions in a row, keys, other batches -----------------------------------------------------------------


def test_the_second_of_two_in_a_row_is_what_is_planned(failed: Rig) -> None:
    failed.revise(command("a") + command("b", "a", run="first"), settle=False)
    answer = failed.revise(command("a") + command("b", "a", run="second"))
    assert answer.header["revision"] == 3
    failed.finish_all()
    assert failed.ran == ["a: true", "b: second"] and failed.row.state is BatchState.COMPLETE


def test_a_message_of_the_older_revision_does_nothing(failed: Rig) -> None:
    failed.revise(MENDED, settle=False)
    old = {"revision": 1, "cancel": [{"batch": failed.batch, "reason": "old"}], "close": [failed.batch]}
    assert failed.tell(old, None, failed.batch) == {"seq": failed.rig.core.seq, "ids": [], "superseded": True}
    failed.tell({"revision": 1, "fail": [{"batch": failed.batch, "error": "old"}]}, None, failed.batch)
    failed.tell({"revision": 7, "drop": [failed.task("b").id]}, None, failed.batch)
    assert not failed.task("b").dropped
    assert failed.row.state is BatchState.RUNNING and not failed.row.closed
    failed.settle()
    failed.finish_all()
    assert failed.row.state is BatchState.COMPLETE


def test_the_same_key_is_the_same_revision_and_another_plan_under_it_a_conflict(failed: Rig) -> None:
    plan = failed.plan(MENDED)
    head = {"batch": failed.batch, "key": "k", "plan": plan}
    first, again = failed.client.ask(Verb.REVISE, head), failed.client.ask(Verb.REVISE, head)
    assert first.header["revision"] == again.header["revision"] == 2 == failed.row.revision
    other = failed.client.ask(Verb.REVISE, head | {"plan": failed.plan(CHAIN)})
    assert other.verb is Verb.CONFLICT and other.header["key"] == "k"
    failed.revise(CHAIN)
    assert failed.client.ask(Verb.REVISE, head).header["revision"] == 2, "an older key, too"


@pytest.mark.parametrize(
    ("wrong", "code", "words"),
    [
        ({"batch": "nobody-knows"}, "not_found", "no batch"),
        ({"key": None}, "definition", "key"),
        ({"plan": {"name": "other", "sha256": "0" * 64}}, "refused", "not of 'other'"),
        ({"plan": {"name": "p", "sha256": "../x"}}, "definition", "64 hex digits"),
        ({"plan": "p"}, "definition", "must be a map"),
        ({"plan": {"name": "p", "sha256": "0" * 64, "config": "x" * 20_000}}, "definition", "16384"),
        ({"priority": "high"}, "definition", "priority"),
    ],
)
def test_what_cannot_be_a_revision_is_refused_with_the_reason(
    failed: Rig, wrong: dict[str, Any], code: str, words: str
) -> None:
    head = {"batch": failed.batch, "key": "k", "plan": failed.plan(MENDED)} | wrong
    answer = failed.client.ask(Verb.REVISE, head)
    assert error_of(answer) == code and words in answer.header["message"]
    assert failed.row.revision == 1 and failed.row.state is BatchState.FAILED


def test_a_clients_batch_is_refused(failed: Rig) -> None:
    batch = failed.client.submit({"key": "x", "type": "noop"}).header["batch"]
    answer = failed.client.ask(Verb.REVISE, {"batch": batch, "key": "k", "plan": failed.plan(MENDED)})
    assert error_of(answer) == "refused" and "of kind client" in answer.header["message"]


@pytest.mark.parametrize("level", [Level.LOW, Level.FULL])
def test_without_room_on_the_disk_it_is_busy_but_a_repeat_of_what_was_accepted_is_not(
    failed: Rig, level: Level
) -> None:
    head = {"batch": failed.batch, "key": "k", "plan": failed.plan(MENDED)}
    first = failed.client.ask(Verb.REVISE, head)
    failed.rig.core.found_room(replace(UNKNOWN, level=level))
    again = failed.client.ask(Verb.REVISE, head)
    assert again.header["revision"] == first.header["revision"] == 2
    other = failed.client.ask(Verb.REVISE, head | {"key": "other"})
    assert other.verb is Verb.BUSY and other.header["bound"] == "disk" and failed.row.revision == 2


def test_the_hundred_and_first_revision_is_refused(failed: Rig) -> None:
    for _ in range(MAX_REVISIONS):
        failed.revise(MENDED, settle=False)
    answer = failed.revise(MENDED, settle=False)
    assert error_of(answer) == "refused" and failed.row.revision == MAX_REVISIONS + 1


def test_a_batch_of_which_done_tasks_are_forgotten_is_refused(failed: Rig) -> None:
    failed.rig.core.retain_tasks = 2
    failed.rig.wait(3.0, (failed.worker, []), (failed.client, []), (failed.brain, []))
    assert "a" not in failed.row.keys
    answer = failed.revise(MENDED, settle=False)
    assert error_of(answer) == "refused" and "forgotten" in answer.header["message"]


def test_why_and_the_rows_say_that_it_was_revised(failed: Rig) -> None:
    failed.revise(command("a") + command("b", "a", run="new") + command("n"), settle=False)
    row = failed.query("batch", id=failed.batch)
    assert (row["revision"], row["revising"], row["revised"]["reason"]) == (2, True, "mended")
    assert "revision 2 of its plan is not planned yet" in failed.query("why", id=failed.batch)["summary"]
    failed.settle()
    why = failed.query("why", id=failed.batch)
    assert "it has revision 2 of its plan: mended" in why["reasons"]
    assert [e[7]["revision"] for e in failed.rig.events if e[4] == "batch.plan.revised" and e[3] == "p"] == [
        2
    ]


# -- cancel, retry, abort ------------------------------------------------------------------------------------


def test_a_cancel_after_it_cancels_the_new_revision_and_a_retry_plans_it() -> None:
    rig = Rig(command("a") + command("b", "a"))
    rig.finish("a")
    rig.revise(command("a") + command("b", "a", run="new"), settle=False)
    rig.client.ask(Verb.CANCEL, {"batch": rig.batch})
    rig.settle()
    rig.cancelled_on_worker("b")
    assert rig.row.state is BatchState.CANCELLED and rig.row.revising
    assert rig.client.ask(Verb.REQUEUE, {"batch": rig.batch}).header["requeued"] == 1
    rig.settle()
    rig.finish_all()
    assert rig.ran == ["a: true", "b: new"] and rig.row.state is BatchState.COMPLETE


def test_a_cancel_of_what_is_being_replaced_is_the_later_word() -> None:
    rig = Rig(command("a", run="old"))
    rig.revise(command("a", run="new"))
    rig.client.ask(Verb.CANCEL, {"batch": rig.batch})
    rig.cancelled_on_worker("a")
    assert rig.row.state is BatchState.CANCELLED and rig.states() == {"a": "CANCELLED"}


@pytest.mark.parametrize("then", ["cancelled", "dropped", "dropped and back", "cancelled and back"])
def test_what_runs_of_an_older_definition_counts_for_nothing_whatever_comes_then(then: str) -> None:
    rig = Rig(command("a", run="old") + command("b"))
    old = rig.take()["a"]
    rig.revise(command("a", run="new") + command("b"))
    if "cancelled" in then:
        rig.client.ask(Verb.CANCEL, {"batch": rig.batch})
    else:
        rig.revise(command("b"))
    if "back" in then:
        rig.revise(command("a", run="new") + command("b"))
    rig.worker.result(old)
    task = rig.task("a")
    assert task.state is (TaskState.LEASED if "back" in then else TaskState.CANCELLED)
    assert task.token != tuple(old["token"]) or task.ended
    assert task.void is False, "what may run of it from here on counts again"


def test_a_batch_that_is_being_cancelled_goes_on_with_its_new_plan() -> None:
    rig = Rig(command("a") + command("b", "a"))
    rig.client.ask(Verb.CANCEL, {"batch": rig.batch})
    rig.revise(command("a") + command("b", "a"))
    assert rig.task("a").revised is Revised.GOES_ON and rig.states()["b"] == "WAITING"
    rig.cancelled_on_worker("a")
    rig.finish_all()
    assert rig.row.state is BatchState.COMPLETE


def test_of_the_same_definition_a_result_counts_though_it_was_being_ended() -> None:
    rig = Rig(command("a") + command("b", "a"))
    rig.client.ask(Verb.CANCEL, {"batch": rig.batch})
    rig.revise(command("a") + command("b", "a"))
    rig.finish("a")
    assert rig.states() == {"a": "DONE", "b": "LEASED"}


def test_an_abort_by_the_older_plans_policy_does_not_end_the_new_one(failed: Rig) -> None:
    failed.revise(MENDED, settle=False)
    failed.tell(
        {"revision": 2, "cancel": [{"batch": failed.batch, "reason": "aborted: b ended dead"}]},
        None,
        failed.batch,
    )
    assert failed.row.state is BatchState.RUNNING
    failed.settle()
    failed.finish_all()
    assert failed.row.state is BatchState.COMPLETE


def test_before_the_first_plan_is_planned_it_is_the_plan() -> None:
    rig = Rig(command("zero"))
    fresh = rig.client.submit(kind="plan", plan=rig.plan(command("a"))).header["batch"]
    rig.batch = fresh
    answer = rig.revise(command("b"))
    assert answer.header["state"] == "planning"
    assert rig.states() == {"b": "LEASED"}


# -- brains and brokers that die -----------------------------------------------------------------------------


@pytest.mark.parametrize("after", range(8))
def test_a_brain_killed_between_two_messages_ends_with_the_same(after: int) -> None:
    rig = half_done()
    rig.revise(each(run="better") + command("new", "each") + command("more"), settle=False)
    rig.kill_after = after
    rig.settle()
    rig.cancelled_on_worker("each_i4")
    rig.finish_all()
    assert rig.row.state is BatchState.COMPLETE and rig.row.total == 10
    assert sorted(w.partition(":")[0] for w in rig.ran) == [
        "a", "each", "each_i1", "each_i2", "each_i3", "each_i4", "end", "more", "new",
    ]  # fmt: skip
