"""CONTROL `forget`: ended tasks that nobody waits for leave, with what was skipped for them."""

from __future__ import annotations

from typing import Any

import pytest
from harness import Harness, Peer, error_of, spec

from rigbus.bus.core.model import Task
from rigbus.bus.states import BatchState
from rigbus.bus.wire import MAX_BATCH, Verb

ONCE = {"task": 1}


@pytest.fixture
def rig() -> Harness:
    return Harness()


def forget(rig: Harness, *tasks: Task, **more: Any) -> dict[str, Any]:
    header = {"action": "forget", **({"ids": [t.id for t in tasks]} if tasks else {}), **more}
    answer = rig.client().ask(Verb.CONTROL, header)
    assert answer.verb is Verb.OK, answer.header
    rig.check()
    return answer.header


def dead(rig: Harness, worker: Peer, *specs: dict[str, Any], client: Peer | None = None) -> list[Task]:
    """Tasks of which the first one dies."""
    tasks = (client or rig.client()).tasks(*specs)
    worker.fail(worker.lease())
    return tasks


def test_a_dead_task_goes_with_what_was_skipped_for_it_and_its_batch_stays_failed(rig: Harness) -> None:
    worker = rig.worker()
    bad, *_, good = dead(rig, worker, spec("a", policy=ONCE), spec("b", "a"), spec("c", "b"), spec("good"))
    worker.result(worker.lease())
    batch = good.batch
    assert batch.state is BatchState.FAILED
    assert forget(rig, bad) == {"forgotten": 3, "kept": [], "kept_total": 0}
    assert list(batch.keys) == ["good"] and batch.total == 1
    assert sorted(rig.changes[-1].purge_tasks + rig.changes[-2].purge_tasks) == [1, 2, 3]
    rig.core.touch_batch(batch)
    assert batch.state is BatchState.FAILED and "3 of its tasks were dropped by" in (batch.error or "")
    assert "rig.forgot" in rig.topics("p")


def test_the_last_task_takes_its_batch_along(rig: Harness) -> None:
    worker = rig.worker()
    (bad,) = dead(rig, worker, spec("a", policy=ONCE))
    assert forget(rig, batch=bad.batch.id)["forgotten"] == 1
    assert not rig.core.batches and not rig.core.tasks


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("ready", "only what ended badly"),
        ("leased", "only what ended badly"),
        ("done", "only what ended badly"),
    ],
)
def test_what_has_not_ended_badly_stays(rig: Harness, state: str, said: str) -> None:
    (task,) = rig.client().tasks(spec("a"))
    worker = rig.worker() if state != "ready" else None
    if worker is not None and state == "done":
        worker.result(worker.lease())
    assert task.state.name.lower() == state
    (kept,) = forget(rig, task)["kept"]
    assert said in kept["why"] and f"is {state}" in kept["why"] and task.id in rig.core.ids


def test_a_task_that_somebody_waits_for_stays(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (bad,) = dead(rig, worker, spec("a", policy=ONCE))
    skipped, waiting = client.tasks(spec("s", bad.id), spec("w", [bad.id, "end"], hold=True))
    assert skipped.state.name == "SKIPPED" and waiting.state.name == "WAITING"
    (kept,) = forget(rig, bad)["kept"]
    assert kept["why"] == f"s of batch {skipped.batch.id} was skipped for it: drop that first"
    assert forget(rig, skipped)["forgotten"] == 1
    (kept,) = forget(rig, bad)["kept"]
    assert kept["why"] == f"w of batch {waiting.batch.id} waits for it: rigbus cancel {waiting.id[:8]}"
    client.ask(Verb.CANCEL, {"ids": [waiting.id]})
    assert forget(rig, bad)["forgotten"] == 1


def test_of_a_plan_that_still_runs_nothing_is_dropped(rig: Harness) -> None:
    brain, worker = rig.brain(), rig.worker()
    batch = rig.client().submit(kind="plan", plan={"name": "p"}).header["batch"]
    tasks = [spec("a", policy=ONCE), spec("b")]
    brain.ask(Verb.BRAIN, {"epoch": rig.core.epoch, "batch": batch, "tasks": tasks, "close": [batch]})
    worker.fail(worker.lease())
    answer = forget(rig, batch=batch)
    assert (
        answer["forgotten"] == 0
        and "still runs: wait for its end, or rigbus cancel" in answer["kept"][0]["why"]
    )
    worker.result(worker.lease())
    assert forget(rig, batch=batch)["forgotten"] == 1


def test_dead_calls_go_and_their_batch_with_them(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    client.submit(spec("c", policy=ONCE), kind="calls")
    worker.fail(worker.lease())
    header = {"what": "tasks", "states": ["dead"]}
    assert client.ask(Verb.QUERY, header).header["rows"] == []
    (row,) = client.ask(Verb.QUERY, header | {"calls": True}).header["rows"]
    assert forget(rig, rig.core.ids[row["id"]])["forgotten"] == 1 and not rig.core.batches


def test_a_thousand_dead_tasks_before_one_join_go_at_once(rig: Harness) -> None:
    worker = rig.worker(credit=MAX_BATCH, slots=MAX_BATCH)
    specs = [spec(f"n{n}", policy=ONCE) for n in range(900)]
    tail = [spec("join", *(f"n{n}" for n in range(900))), *(spec(f"t{n}", "join") for n in range(90))]
    tasks = rig.client().tasks(*specs, *tail)
    for lease in worker.leases():
        worker.fail(lease)
    assert forget(rig, batch=tasks[0].batch.id)["forgotten"] == 991


@pytest.mark.parametrize("header", [{}, {"ids": []}, {"ids": ["x" * 36] * (MAX_BATCH + 1)}])
def test_forget_names_what_it_means(rig: Harness, header: dict[str, Any]) -> None:
    assert error_of(rig.client().ask(Verb.CONTROL, {"action": "forget", **header})) == "definition"


def test_an_unknown_id_forgets_nothing(rig: Harness) -> None:
    worker = rig.worker()
    (bad,) = dead(rig, worker, spec("a", policy=ONCE))
    ids = {"action": "forget", "ids": [bad.id, "0" * 36]}
    assert error_of(rig.client().ask(Verb.CONTROL, ids)) == "not_found" and bad.id in rig.core.ids
