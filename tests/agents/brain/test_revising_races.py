"""Revisions that meet lost workers, restarts, a person's cancel, lists that depend on others and calls of handlers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from durable import Durable
from harness import Send, error_of
from revisable import Rig, command

from rigbus.bus.states import BatchState, TaskState
from rigbus.bus.wire import Verb, pack


def each(name: str, *after: str, source: str = "l", run: str = "make") -> str:
    return (
        command(name, *after, run=f"{run} {{ITEM.id}}") + f"- foreach: {{BATCH_PATH}}/{source}.json:items\n"
    )


def items(*names: str) -> list[dict[str, str]]:
    return [{"id": name} for name in names]


@pytest.mark.parametrize("end", ["lost", "returned", "rejected"])
def test_what_ran_on_waits_for_what_the_new_plan_puts_before_it_once_it_is_to_run_again(end: str) -> None:
    judged = {"evaluate": "true"} if end == "rejected" else {}
    rig = Rig(command("b", **judged))
    rig.revise(command("a") + command("b", "a", **judged))
    assert rig.states() == {"a": "LEASED", "b": "LEASED"}, "the same definition runs on"
    lease = rig.take().pop("b")
    if end == "lost":
        rig.worker.fail(lease, "infra")
    elif end == "returned":
        rig.worker.ask(Verb.RETURN, {"tokens": [lease["token"]], "reason": "draining"})
    else:
        rig.worker.result(lease)
        rig.tell({"verdicts": [{"id": rig.task("b").id, "verdict": "reject"}]})
    rig.settle()
    assert rig.states() == {"a": "LEASED", "b": "WAITING"}
    rig.finish("a")
    assert rig.states() == {"a": "DONE", "b": "LEASED"}


def test_a_list_that_cannot_be_read_again_ends_its_batch_after_a_restart_too(tmp_path: Path) -> None:
    rig = Rig(each("each"), {"each": items("i1", "i2")}, harness=Durable(tmp_path / "rig.db"))
    rig.finish("each:expand")
    rig.finish("each_i1")
    rig.revise(each("each", source="m"))
    rig.cancelled_on_worker("each_i2")  # dropped with its list
    rig.finish("each:expand", fails=True)
    assert rig.states() == {"each_i1": "DONE", "each:expand": "DEAD", "each": "SKIPPED"}
    assert rig.row.state is BatchState.FAILED
    rig.restart()  # rows of items that fed the join by the older plan are still there
    assert rig.client.ask(Verb.CANCEL, {"batch": rig.batch}).verb is Verb.OK  # it is looked at again
    rig.settle()
    assert rig.row.state is BatchState.FAILED


def test_what_a_person_cancels_while_a_revision_is_planned_keeps_its_dependents_down() -> None:
    rig = Rig(command("a") + command("b", "a"))
    rig.finish("a", fails=True)
    assert rig.states() == {"a": "DEAD", "b": "SKIPPED"}
    rig.revise(command("a") + command("b", "a"), settle=False)
    spec = {"type": "shell", "class": "cpu"}
    rig.tell({"revision": 2, "tasks": [spec | {"key": "a"}]}, batch=rig.batch)
    rig.client.ask(Verb.CANCEL, {"ids": [rig.task("a").id]})
    rig.tell({"revision": 2, "tasks": [spec | {"key": "b", "after": ["a"]}]}, batch=rig.batch)
    rig.tell({"revision": 2, "close": [rig.batch]}, batch=rig.batch)
    assert rig.states() == {"a": "CANCELLED", "b": "SKIPPED"} and rig.row.state is BatchState.FAILED
    rig.client.ask(Verb.REQUEUE, {"ids": [rig.task("a").id]})
    assert rig.states() == {"a": "LEASED", "b": "WAITING"}


def test_items_that_depend_on_items_of_a_list_that_is_read_again_wait_for_it() -> None:
    lists = {"first": items("i1", "i2"), "then": items("i1", "i2")}
    rig = Rig(each("first") + each("then", "first_{ITEM.id}"), lists)
    for key in ("first:expand", "then:expand", "first_i1", "then_i1"):
        rig.finish(key)
    rig.revise(each("first", source="m", run="better") + each("then", "first_{ITEM.id}", run="better"))
    rig.cancelled_on_worker("first_i2")
    assert list(rig.take()) == ["first:expand"], (
        "then_i2 is not known to be the new plan's before that is read"
    )
    assert rig.states()["then_i1"] == "DONE"
    rig.finish("first:expand")
    assert rig.states()["first_i2"] == "LEASED" and rig.states()["then_i2"] == "WAITING"
    rig.finish_all()
    assert [said.partition(":")[0] for said in rig.ran[-2:]] == ["first_i2", "then_i2"]
    assert rig.row.state is BatchState.COMPLETE


# -- calls of handlers ---------------------------------------------------------------------------------------


def call(rig: Rig, lease: dict[str, Any], payload: Any) -> Send:
    """The handler's first call."""
    parent = {"id": lease["id"], "token": lease["token"]}
    made = {"key": f"{lease['key']}/1", "type": "shell", "class": "cpu", "parent": parent}
    head = {"id": rig.batch, "kind": "client"}
    return rig.worker.ask(Verb.SUBMIT, {"batch": head, "tasks": [made]}, [pack(payload)])


def test_a_handler_that_is_another_one_makes_its_calls_anew() -> None:
    rig = Rig(command("a"))
    lease = rig.take()["a"]
    assert call(rig, lease, {"command": "old"}).verb is Verb.ACCEPTED
    rig.finish("a/1")
    rig.worker.fail(rig.held.pop("a"), "definition")
    rig.settle()
    rig.revise(command("a", run="better"))
    assert (rig.row.total, rig.row.live) == (1, 1), "what the older one had called counts no more"
    lease = rig.take()["a"]
    assert call(rig, lease, {"command": "new"}).verb is Verb.ACCEPTED
    assert call(rig, lease, {"command": "new"}).header["states"] == ["leased"], "said twice it is one"
    rig.finish("a/1")
    rig.finish("a")
    assert rig.ran == ["a/1: old", "a/1: new", "a: better"] and rig.task("a/1").attempt == 2
    assert rig.row.state is BatchState.COMPLETE and rig.row.total == 2


def test_a_call_of_what_the_handler_was_is_dead_before_the_new_one_makes_it(tmp_path: Path) -> None:
    rig = Rig(command("a"), harness=Durable(tmp_path / "rig.db"))
    call(rig, rig.take()["a"], {"command": "old"})
    rig.revise(command("a", run="better"))
    rig.cancelled_on_worker("a")
    assert rig.task("a/1").state is TaskState.LEASED, "its worker is slow to end it"
    assert call(rig, rig.take()["a"], {"command": "new"}).verb is Verb.BUSY
    rig.restart()
    assert call(rig, rig.take()["a"], {"command": "new"}).verb is Verb.BUSY
    rig.worker.result(rig.held.pop("a/1"))  # it ended well, which is nothing to the new one
    assert call(rig, rig.take()["a"], {"command": "new"}).verb is Verb.ACCEPTED
    rig.finish("a/1")
    rig.finish("a")
    assert rig.ran == ["a/1: new", "a: better"] and rig.row.state is BatchState.COMPLETE


@pytest.mark.parametrize("cancelled", [False, True])
def test_of_the_same_handler_only_what_its_calls_have_done_is_still_its_answer(*, cancelled: bool) -> None:
    rig = Rig(command("a") + command("z"))
    lease = rig.take()["a"]
    call(rig, lease, {"command": "one"})
    if cancelled:
        rig.client.ask(Verb.CANCEL, {"batch": rig.batch})
        rig.revise(command("a") + command("z"))
        rig.cancelled_on_worker("a/1", "a", "z")
    else:
        rig.finish("a/1", fails=True)
        rig.finish("a", fails=True)
        rig.revise(command("a") + command("z"))
    call(rig, rig.take()["a"], {"command": "one"})
    assert rig.task("a/1").state is TaskState.LEASED, "how it ended is no answer for the next attempt"
    rig.finish_all()
    assert rig.row.state is BatchState.COMPLETE


def test_calls_of_a_dropped_handler_are_in_no_count() -> None:
    rig = Rig(command("a") + command("b"))
    call(rig, rig.take()["a"], {"command": "one"})
    rig.finish("a/1", fails=True)
    rig.finish("a", fails=True)
    rig.revise(command("b"))
    rig.finish("b")
    assert rig.row.state is BatchState.COMPLETE and rig.row.total == 1


def test_what_is_to_end_calls_nothing_more() -> None:
    rig = Rig(command("a"))
    lease = rig.take()["a"]
    rig.client.ask(Verb.CANCEL, {"batch": rig.batch})
    refused = call(rig, lease, {"command": "late"})
    assert error_of(refused) == "refused" and "is to end (cancelled by" in refused.header["message"]
    assert "a/1" not in rig.row.keys


# -- plans that are cut off while they are planned -----------------------------------------------------------


def test_a_plan_that_was_cancelled_before_it_was_planned_runs_when_it_is_retried() -> None:
    rig = Rig(command("x"))
    plan = rig.plan(command("a") + command("b", "a"))
    rig.batch = rig.client.submit(kind="plan", plan=plan).header["batch"]
    rig.client.ask(Verb.CANCEL, {"batch": rig.batch})
    rig.settle()
    assert rig.states() == {} and rig.row.state is BatchState.CANCELLED
    rig.client.ask(Verb.REQUEUE, {"batch": rig.batch})
    rig.settle()
    assert rig.states() == {"a": "LEASED", "b": "WAITING"}


def test_a_plan_that_was_cancelled_between_two_of_its_messages_runs_whole_when_it_is_retried() -> None:
    rig = Rig(command("x"))
    plan = rig.plan(command("a") + command("b", "a"))
    rig.batch = rig.client.submit(kind="plan", plan=plan).header["batch"]
    spec = {"type": "shell", "class": "cpu"}
    rig.tell({"revision": 1, "tasks": [spec | {"key": "a"}]}, batch=rig.batch)
    rig.client.ask(Verb.CANCEL, {"batch": rig.batch})
    late = {"revision": 1, "tasks": [spec | {"key": "b", "after": ["a"]}], "close": [rig.batch]}
    rig.tell(late, batch=rig.batch)
    rig.settle()
    assert rig.states() == {"a": "LEASED"} and rig.task("a").ending
    lease = next(one for one in rig.worker.leases() if one["key"] == "a")
    rig.worker.fail(lease, "task", cancelled=True)
    assert rig.row.state is BatchState.CANCELLED
    rig.client.ask(Verb.REQUEUE, {"batch": rig.batch})
    rig.settle()
    assert rig.states() == {"a": "LEASED", "b": "WAITING"}


def test_a_part_of_a_revision_whose_batch_was_cancelled_is_answered_so_that_the_brain_begins_anew() -> None:
    rig = Rig(command("a"))
    rig.finish("a")
    rig.revise(command("a") + command("b", "a"), settle=False)
    rig.client.ask(Verb.CANCEL, {"batch": rig.batch})
    spec = {"type": "shell", "class": "cpu", "key": "b"}
    for part in ({"tasks": [spec]}, {"drop": []} | {"close": [rig.batch]}):
        assert rig.tell({"revision": 2, **part}, batch=rig.batch).get("superseded")
    rig.client.ask(Verb.REQUEUE, {"batch": rig.batch})
    rig.settle()
    assert rig.states() == {"a": "DONE", "b": "LEASED"} and rig.row.closed
