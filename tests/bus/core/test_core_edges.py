"""Edges: chains, diamonds, joins, feeds, hold, edges over batches, cycles, skip and revive."""

from __future__ import annotations

import time
from typing import Any

import pytest
from harness import Harness, Peer, error_of, spec

from rigbus.bus.core.model import Task
from rigbus.bus.states import TaskState
from rigbus.bus.wire import Verb


@pytest.fixture
def rig() -> Harness:
    return Harness()


def run_all(worker: Peer, fails: set[str] = frozenset()) -> list[str]:  # type: ignore[assignment]
    """Answer every lease that comes, one by one; the keys in the order in which they ran."""
    order = []
    queue = worker.leases()
    while queue:
        lease = queue.pop(0)
        order.append(lease["key"])
        if lease["key"] in fails:
            worker.fail(lease, "definition")
        else:
            worker.result(lease)
        queue += worker.leases()
    return order


def test_a_task_waits_for_all_that_it_names(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    a, b, c = client.tasks(spec("a"), spec("b"), spec("c", "a", "b"))
    assert rig.states([a, b, c]) == ["LEASED", "READY", "WAITING"] and c.unmet == 2
    assert run_all(worker) == ["a", "b", "c"]
    assert c.batch.state.name == "COMPLETE"
    rig.check()


def test_a_diamond_runs_in_order_whatever_the_order_of_its_specs(rig: Harness) -> None:
    worker = rig.worker()
    rig.client().tasks(spec("end", "left", "right"), spec("left", "top"), spec("right", "top"), spec("top"))
    assert run_all(worker) == ["top", "left", "right", "end"]


def test_the_edge_counts_down_in_the_transaction_of_the_result(rig: Harness) -> None:
    worker = rig.worker()
    _, b = rig.client().tasks(spec("a"), spec("b", "a"))
    worker.result(worker.lease())
    assert set(rig.changes[-1].tasks) == {1, b.no} and b.state is TaskState.LEASED


def test_a_bad_end_skips_what_waits_for_success_and_releases_what_waits_for_the_end(rig: Harness) -> None:
    worker = rig.worker()
    bad, then, after, anyway = rig.client().tasks(
        spec("bad"), spec("then", "bad"), spec("after", "then"), spec("anyway", ["bad", "end"])
    )
    assert run_all(worker, {"bad"}) == ["bad", "anyway"]
    assert rig.states([bad, then, after, anyway]) == ["DEAD", "SKIPPED", "SKIPPED", "DONE"]
    assert then.error == "skipped: bad ended dead" and after.error == "skipped: then ended skipped"
    assert bad.batch.state.name == "FAILED"
    rig.check()


def test_an_end_edge_to_a_skipped_task_is_met_too(rig: Harness) -> None:
    worker = rig.worker()
    rig.client().tasks(spec("bad"), spec("then", "bad"), spec("clean", ["then", "end"]))
    assert run_all(worker, {"bad"}) == ["bad", "clean"]


def chain(client: Peer, n: int) -> list[Task]:
    """n tasks, each after the one before, over as many messages as it takes."""
    tasks: list[Task] = []
    for start in range(0, n, 1000):
        specs = [spec(f"t{i}", *([f"t{i - 1}"] if i else [])) for i in range(start, min(start + 1000, n))]
        tasks += client.tasks(*specs, key="chain", open=True)
    return tasks


@pytest.mark.parametrize("end", ["cancel", "fail", "requeue"])
def test_a_chain_of_ten_thousand_needs_no_recursion(rig: Harness, end: str) -> None:
    client = rig.client()
    tasks = chain(client, 10_000)
    worker = rig.worker()
    if end == "fail":
        worker.fail(worker.lease(), "definition")
        assert {t.state.name for t in tasks[1:]} == {"SKIPPED"}
        return
    client.ask(Verb.CANCEL, {"ids": [tasks[1].id]})
    assert {t.state.name for t in tasks[2:]} == {"SKIPPED"}
    if end == "requeue":
        before = time.process_time()
        answer = client.ask(Verb.REQUEUE, {"ids": [tasks[1].id]})
        assert time.process_time() - before < 2.0
        assert answer.header == {"requeued": 1, "revived": 9_998}
        assert {t.state.name for t in tasks[1:]} == {"WAITING"}
        rig.check()


def test_a_chain_of_joins_closes_without_recursion(rig: Harness) -> None:
    client = rig.client()
    specs = [spec("first"), *(spec(f"j{i}", f"j{i - 1}" if i else "first", join=True) for i in range(999))]
    tasks = client.tasks(*specs)
    worker = rig.worker()
    worker.result(worker.lease())
    assert {t.state.name for t in tasks} == {"DONE"} and tasks[0].batch.state.name == "COMPLETE"


def test_a_chain_of_calls_is_cancelled_without_recursion(rig: Harness) -> None:
    worker, client = rig.worker(credit=600, slots=600), rig.client()
    (root,) = client.tasks(spec("0"))
    tasks, lease = [root], worker.lease()
    for n in range(1, 500):
        parent = {"id": tasks[-1].id, "token": lease["token"]}
        tasks += worker.tasks(spec(f"{n}", parent=parent))
        lease = worker.lease()
    rig.matching = False
    worker.say(Verb.BYE)
    assert {t.state.name for t in tasks} == {"READY"}
    client.ask(Verb.CANCEL, {"ids": [root.id]})
    assert {t.state.name for t in tasks} == {"CANCELLED"}
    rig.check()


# -- joins, feeds, hold --------------------------------------------------------------------------------------


def test_a_join_runs_nothing_and_is_done_with_its_last_edge(rig: Harness) -> None:
    worker = rig.worker()
    _, join, end = rig.client().tasks(spec("a"), spec("j", "a", join=True), spec("end", "j"))
    assert run_all(worker) == ["a", "end"]
    assert join.state is TaskState.DONE and join.attempt == 0 and end.state is TaskState.DONE


def test_a_join_without_edges_is_done_at_once(rig: Harness) -> None:
    join, end = rig.client().tasks(spec("j", join=True), spec("end", "j"))
    assert rig.states([join, end]) == ["DONE", "READY"]


def brain_batch(rig: Harness, brain: Peer, *specs: dict[str, Any]) -> tuple[str, list[Task]]:
    batch = rig.client().submit(kind="plan", plan={"name": "p"}).header["batch"]
    answer = brain.ask(
        Verb.BRAIN, {"epoch": rig.core.epoch, "batch": batch, "tasks": list(specs), "close": [batch]}
    )
    assert answer.verb is Verb.OK, answer.header
    return batch, [rig.core.ids[i] for i in answer.header["ids"]]


def tell(brain: Peer, **header: Any) -> Any:
    return brain.ask(Verb.BRAIN, {"epoch": brain.rig.core.epoch, **header})


def test_dependents_of_a_template_wait_for_its_last_chunk(rig: Harness) -> None:
    brain, worker = rig.brain(), rig.worker()
    batch, (expand, join, after) = brain_batch(
        rig, brain, spec("t:expand"), spec("t", "t:expand", join=True, hold=True), spec("after", "t")
    )
    assert run_all(worker) == ["t:expand"]
    assert join.state is TaskState.WAITING and "task.noop.done" not in rig.topics("a")
    tell(brain, batch=batch, tasks=[spec(f"t_{i}", feeds=["t"]) for i in range(3)])
    assert run_all(worker) == ["t_0", "t_1", "t_2"]
    assert join.state is TaskState.WAITING  # still held: more may come
    tell(brain, batch=batch, tasks=[spec("t_3", feeds=["t"])], release=[join.id])
    assert join.state is TaskState.WAITING
    assert run_all(worker) == ["t_3", "after"]
    assert expand.batch.state.name == "COMPLETE" and after.state is TaskState.DONE
    rig.check()


def test_an_empty_expansion_is_done_with_its_release(rig: Harness) -> None:
    brain, worker = rig.brain(), rig.worker()
    _, (_, join, _after) = brain_batch(
        rig, brain, spec("t:expand"), spec("t", "t:expand", join=True, hold=True), spec("after", "t")
    )
    run_all(worker)
    tell(brain, release=[join.id])
    tell(brain, release=[join.id])  # a repeat is harmless
    assert run_all(worker) == ["after"] and join.unmet == 0


def test_a_child_that_fails_skips_the_join_unless_it_feeds_its_end(rig: Harness) -> None:
    worker = rig.worker()
    join, strict, lenient = rig.client().tasks(
        spec("j", join=True, hold=True),
        spec("strict", feeds=["j"], policy={"task": 1}),
        spec("lenient", feeds=[["j", "end"]]),
    )
    worker.fail(worker.lease(), "definition")
    assert strict.state is TaskState.DEAD and join.state is TaskState.SKIPPED
    assert lenient.state is TaskState.LEASED
    rig.check()


def test_only_an_open_join_can_be_fed(rig: Harness) -> None:
    client = rig.client()
    plain, done = client.tasks(spec("plain"), spec("done", join=True), key="b", open=True)
    for target in (plain.id, done.id, "plain"):
        assert error_of(client.submit(spec("x", feeds=[target]), key="b", open=True)) == "definition"
    assert set(plain.batch.keys) == {"plain", "done"}


# -- edges to what exists ------------------------------------------------------------------------------------


def test_an_edge_may_name_a_task_of_another_batch(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (first,) = client.tasks(spec("first"))
    (second,) = client.tasks(spec("second", first.id))
    assert second.batch is not first.batch and second.state is TaskState.WAITING
    assert run_all(worker) == ["first", "second"]


def test_an_edge_to_an_ended_task_counts_at_once(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    good, bad = client.tasks(spec("good"), spec("bad"))
    run_all(worker, {"bad"})
    met, broken, anyway, both = client.tasks(
        spec("met", good.id),
        spec("broken", bad.id),
        spec("anyway", [bad.id, "end"]),
        spec("both", good.id, bad.id),
    )
    assert rig.states([met, broken, anyway, both]) == ["LEASED", "SKIPPED", "READY", "SKIPPED"]
    rig.check()


def test_a_chain_behind_a_task_that_ended_badly_is_skipped_as_it_is_submitted(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (bad,) = client.tasks(spec("bad"))
    run_all(worker, {"bad"})
    for specs in (
        [spec("a", bad.id), spec("b", "a"), spec("c", ["b", "end"])],
        [spec("c", ["b", "end"]), spec("b", "a"), spec("a", bad.id)],
        [spec("a", bad.id, join=True), spec("b", "a", join=True), spec("c", ["b", "end"], join=True)],
    ):
        tasks = {t.key: t for t in client.tasks(*specs)}
        assert tasks["a"].state is tasks["b"].state is TaskState.SKIPPED
        assert tasks["c"].state in (TaskState.LEASED, TaskState.READY, TaskState.DONE)
        rig.check()


@pytest.mark.parametrize(
    "specs",
    [
        [spec("a", "nobody")],
        [spec("a"), spec("b", "00000000-0000-0000-0000-000000000000")],
        [spec("a", "a")],
        [spec("a", "b"), spec("b", "a")],
        [spec("a", "c"), spec("b", "a"), spec("c", "b")],
        [spec("a", ["a", "end"])],
        [spec("j", "a", join=True), spec("a", "j"), spec("b", feeds=["j"])],
        [spec("j", join=True), spec("a", "j", feeds=["j"])],
        [spec("j", join=True), spec("a", "j"), spec("b", "a", feeds=["j"])],
        [spec("a", "b"), spec("b", feeds=["a"])],
    ],
)
def test_an_unknown_id_or_a_cycle_refuses_the_whole_submit(rig: Harness, specs: list[dict[str, Any]]) -> None:
    client = rig.client()
    answer = client.submit(spec("innocent"), *specs)
    assert error_of(answer) == "definition" and answer.header["message"]
    assert not rig.core.tasks and not rig.core.batches and not rig.changes[-1]


def test_a_cycle_over_accepted_tasks_is_refused_too(rig: Harness) -> None:
    client = rig.client()
    join, after, end = client.tasks(
        spec("j", join=True, hold=True), spec("after", "j"), spec("end", "after"), key="b", open=True
    )
    for bad in (
        spec("x", end.id, feeds=["j"]),
        spec("x", "after", feeds=["j"]),
        spec("x", "j", feeds=[join.id]),
    ):
        answer = client.submit(bad, key="b", open=True)
        assert error_of(answer) == "definition" and "wait for each other" in answer.header["message"]
    long_way = [spec("x", end.id), spec("y", "x"), spec("z", "y", feeds=["j"])]
    assert error_of(client.submit(*long_way, key="b", open=True)) == "definition"
    assert client.submit(spec("fine", feeds=["j"]), key="b", open=True).verb is Verb.ACCEPTED
    assert len(after.batch.keys) == 4


def test_edges_named_twice_are_met_together(rig: Harness) -> None:
    worker = rig.worker()
    _, b = rig.client().tasks(spec("a"), spec("b", "a", "a", ["a", "end"]))
    assert run_all(worker) == ["a", "b"] and b.unmet == 0


@pytest.mark.parametrize("after", [5, "a", {"a": 1}, [5], [["a"]], [["a", "later"]], [[5, "end"]], [None]])
def test_edges_of_another_kind_are_refused(rig: Harness, after: object) -> None:
    client = rig.client()
    assert error_of(client.submit(spec("a"), {"key": "b", "type": "noop", "after": after})) == "definition"
    assert error_of(client.submit(spec("a"), {"key": "b", "type": "noop", "feeds": after})) == "definition"
    assert not rig.core.tasks


# -- a person's requeue --------------------------------------------------------------------------------------


def test_requeue_starts_counts_anew_and_revives_what_was_skipped(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    tasks = client.tasks(spec("a"), spec("b", "a"), spec("c", "b"), spec("j", "c", join=True))
    run_all(worker, {"a"})
    assert rig.states(tasks) == ["DEAD", "SKIPPED", "SKIPPED", "SKIPPED"]
    answer = client.ask(Verb.REQUEUE, {"ids": [tasks[0].id]})
    assert answer.header == {"requeued": 1, "revived": 3}
    assert tasks[0].counts == (0, 0, 0) and tasks[0].batch.state.name == "RUNNING"
    rig.check()
    assert run_all(worker) == ["a", "b", "c"]
    assert tasks[3].state is TaskState.DONE and tasks[0].batch.state.name == "COMPLETE"
    rig.check()


def test_a_task_skipped_for_two_reasons_waits_for_both_to_come_back(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    a, b, both = client.tasks(spec("a"), spec("b"), spec("both", "a", "b"))
    run_all(worker, {"a", "b"})
    assert client.ask(Verb.REQUEUE, {"ids": [a.id]}).header == {"requeued": 1, "revived": 0}
    assert both.state is TaskState.SKIPPED
    run_all(worker)
    assert client.ask(Verb.REQUEUE, {"ids": [b.id]}).header == {"requeued": 1, "revived": 1}
    assert run_all(worker) == ["b", "both"]


def test_a_skipped_dependent_in_another_batch_comes_back_too(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (a,) = client.tasks(spec("a"))
    (other,) = client.tasks(spec("other", a.id))
    run_all(worker, {"a"})
    assert other.batch.state.name == "FAILED"
    client.ask(Verb.REQUEUE, {"ids": [a.id]})
    assert other.batch.state.name == "RUNNING"
    run_all(worker)
    assert other.batch.state.name == "COMPLETE"
    rig.check()


def test_a_cancelled_batch_that_is_requeued_keeps_its_order(rig: Harness) -> None:
    worker, client = rig.worker(credit=9, slots=9), rig.client()
    rig.matching = False
    tasks = client.tasks(spec("a"), spec("b", "a"), spec("j", "b", join=True), spec("c", "j"))
    batch = tasks[0].batch
    assert client.ask(Verb.CANCEL, {"batch": batch.id}).header["cancelled"] == 4
    assert batch.state.name == "CANCELLED" and rig.states(tasks) == ["CANCELLED"] * 4
    assert client.ask(Verb.REQUEUE, {"batch": batch.id}).header["requeued"] == 4
    assert rig.states(tasks) == ["READY", "WAITING", "WAITING", "WAITING"]
    rig.check()
    rig.matching = True
    rig.settle()
    assert run_all(worker) == ["a", "b", "c"]
    assert batch.state.name == "COMPLETE"
    rig.check()


def test_a_requeued_task_does_not_wait_for_what_stays_ended(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    a, b = client.tasks(spec("a"), spec("b", "a"))
    client.ask(Verb.CANCEL, {"batch": a.batch.id})
    worker.fail(worker.lease(), cancelled=True)
    assert rig.states([a, b]) == ["CANCELLED", "CANCELLED"]
    assert client.ask(Verb.REQUEUE, {"ids": [b.id]}).header == {"requeued": 1, "revived": 0}
    assert run_all(worker) == ["b"] and a.state is TaskState.CANCELLED


def test_an_end_edge_that_was_met_is_open_again_while_its_source_runs_again(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    a, _c, clean = client.tasks(spec("a"), spec("c"), spec("clean", ["a", "end"], ["c", "end"]))
    worker.fail(worker.lease(), "definition")
    assert clean.unmet == 1
    client.ask(Verb.REQUEUE, {"ids": [a.id]})
    assert clean.unmet == 2
    rig.check()
    lease = worker.lease()
    assert lease["key"] == "c"
    worker.result(lease)
    assert clean.state is TaskState.WAITING
    assert run_all(worker) == ["a", "clean"]


def test_a_requeue_clears_deadline_and_owner(rig: Harness) -> None:
    client = rig.client()
    (task,) = client.tasks(spec("a", deadline_s=5, orphan="cancel"))
    keeper = rig.client()
    rig.wait(5.5, (client, []), (keeper, []))
    assert task.state is TaskState.EXPIRED
    keeper.ask(Verb.REQUEUE, {"ids": [task.id]})
    client.say(Verb.BYE)
    rig.wait(20, (keeper, []))
    assert task.state is TaskState.READY and not rig.core.owned
    rig.check()


def test_one_that_is_being_cancelled_comes_back_when_its_tree_is_dead_and_its_batch_never_ends(
    rig: Harness,
) -> None:
    worker, client = rig.worker(), rig.client()
    a, b = client.tasks(spec("a", deadline_s=50, orphan="cancel"), spec("b", "a"))
    first = worker.lease()
    for _ in range(2):  # the same again changes nothing
        assert client.ask(Verb.CANCEL, {"ids": [a.id]}).header["ending"] == 1
        assert client.ask(Verb.REQUEUE, {"ids": [a.id]}).header == {"requeued": 1, "revived": 0}
    rig.check()
    assert not worker.leases(), "what runs of it is not dead yet"
    worker.fail(first, cancelled=True)
    assert rig.states([a, b]) == ["LEASED", "WAITING"]
    assert (a.attempt, a.counts, a.deadline) == (2, (0, 0, 0), 0.0)
    assert not [event for event in rig.events if event[4].startswith("batch.") and "failed" in event[4]]
    client.say(Verb.BYE)  # the person was there: its client is not asked
    rig.wait(60, (worker, [worker.lease()]))
    assert rig.states([a, b]) == ["LEASED", "WAITING"]
    rig.check()


def test_of_a_requeue_and_a_cancel_the_later_word_counts_and_a_good_end_over_both(rig: Harness) -> None:
    worker, client = rig.worker(credit=3, slots=3), rig.client()
    later, well, whole = (client.tasks(spec(name))[0] for name in ("later", "well", "whole"))
    leases = {lease["key"]: lease for lease in worker.leases()}
    for task in (later, well):
        client.ask(Verb.CANCEL, {"ids": [task.id]})
        client.ask(Verb.REQUEUE, {"ids": [task.id]})
    client.ask(Verb.CANCEL, {"ids": [later.id]})
    client.ask(Verb.CANCEL, {"batch": whole.batch.id})
    assert client.ask(Verb.REQUEUE, {"ids": [whole.id]}).header["requeued"] == 0
    worker.result(leases["well"], "in time")
    for name in ("later", "whole"):
        worker.fail(leases[name], cancelled=True)
    assert rig.states([later, well, whole]) == ["CANCELLED", "DONE", "CANCELLED"]
    rig.check()


def test_requeue_leaves_alone_what_is_live_or_done(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    done, live = client.tasks(spec("done"), spec("live"))
    worker.result(worker.lease())
    answer = client.ask(Verb.REQUEUE, {"ids": [done.id, live.id]})
    assert answer.header == {"requeued": 0, "revived": 0}
    assert rig.states([done, live]) == ["DONE", "LEASED"]


def test_a_plan_that_was_aborted_can_be_requeued(rig: Harness) -> None:
    brain, worker, client = rig.brain(), rig.worker(), rig.client()
    batch_id, tasks = brain_batch(rig, brain, spec("a"), spec("b", "a"), spec("c"))
    batch = tasks[0].batch
    worker.fail(worker.lease(), "definition")
    tell(brain, cancel=[{"batch": batch_id, "reason": "a failed and on_failure is abort"}])
    lease = worker.lease()
    assert lease["key"] == "c" and worker.renew(lease)["cancel"] == [lease["token"]]
    worker.fail(lease, cancelled=True)
    assert (
        batch.state.name == "FAILED" and batch.error and rig.states(tasks) == ["DEAD", "SKIPPED", "CANCELLED"]
    )
    assert client.ask(Verb.REQUEUE, {"batch": batch_id}).header == {"requeued": 2, "revived": 1}
    assert batch.state.name == "RUNNING" and batch.error is None
    run_all(worker)
    assert batch.state.name == "COMPLETE"
    rig.check()
