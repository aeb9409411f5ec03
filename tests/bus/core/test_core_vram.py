"""The VRAM budget before a lease, and workers that are held: who gets what, and what `why` says."""

from __future__ import annotations

from typing import Any

import pytest
from harness import Harness, Peer, error_of, spec

from rigbus.bus.core.checks import MAX_VRAM_MB
from rigbus.bus.core.core import Core
from rigbus.bus.states import TaskState
from rigbus.bus.store.records import insert_row, task_from
from rigbus.bus.wire import Verb

_COLUMNS_READ = 26  #: of schema.sql: what a start reads of a task, its spec last
HOT = "GPU 0 is at 84 °C, resumes below 79 °C"


@pytest.fixture
def rig() -> Harness:
    return Harness()


def keys(worker: Peer) -> list[str]:
    return [lease["key"] for lease in worker.leases()]


def card(rig: Harness, mb: int | None = 4000, name: str = "w1", **offer: Any) -> Peer:
    """A worker with room for eight tasks and a card."""
    more = {} if mb is None else {"vram_mb": mb}
    return rig.worker(8, 8, name=name, **more, **offer)


def why(rig: Harness, ref: str | None) -> dict[str, Any]:
    return rig.client().ask(Verb.QUERY, {"what": "why", "id": ref}).header


# ---------------------------------------------------------------- the budget


def test_a_worker_gets_no_more_than_its_memory_holds(rig: Harness) -> None:
    rig.client().tasks(*[spec(f"t{i}", vram_mb=1500) for i in range(4)])
    worker = card(rig)
    (first, second) = worker.leases()
    assert (first["key"], second["key"]) == ("t0", "t1")
    worker.result(first)
    assert keys(worker) == ["t2"], "the memory of what has ended is free again"


def test_the_next_candidate_gets_what_does_not_fit_the_first(rig: Harness) -> None:
    small, large = card(rig, 2000, "small"), card(rig, 8000, "large")
    rig.client().tasks(spec("a", vram_mb=1500), spec("b", vram_mb=3000), spec("c", vram_mb=3000))
    assert sorted(keys(large)) == ["b", "c"]
    assert keys(small) == ["a"]


def test_tasks_without_memory_pass_those_that_wait_for_it(rig: Harness) -> None:
    rig.client().tasks(spec("a", vram_mb=3000), spec("b", vram_mb=3000), spec("c"))
    assert keys(card(rig)) == ["a", "c"]


def test_a_worker_without_a_card_ignores_it(rig: Harness) -> None:
    rig.client().tasks(*[spec(f"t{i}", vram_mb=9000) for i in range(3)])
    assert keys(card(rig, None)) == ["t0", "t1", "t2"]


def test_an_exact_fit_fits(rig: Harness) -> None:
    rig.client().tasks(spec("a", vram_mb=2500), spec("b", vram_mb=1500), spec("c", vram_mb=1))
    assert keys(card(rig)) == ["a", "b"]


def test_a_model_that_is_loaded_makes_the_budget_smaller_and_takes_nothing_away(rig: Harness) -> None:
    worker = card(rig)
    client = rig.client()
    client.tasks(spec("a", vram_mb=3000))
    lease = worker.lease()
    worker.offer(8, 8, vram_mb=500)
    client.tasks(spec("b", vram_mb=600), spec("c", vram_mb=400))
    assert keys(worker) == []
    worker.result(lease)
    assert keys(worker) == ["c"], "600 MiB are more than there are beside the model"
    worker.offer(8, 8, vram_mb=4000)
    assert keys(worker) == ["b"]


def test_a_lost_lease_frees_its_memory(rig: Harness) -> None:
    worker = card(rig)
    rig.client().tasks(spec("a", vram_mb=3000), spec("b", vram_mb=3000))
    lease = worker.lease()
    worker.ask(Verb.RETURN, {"tokens": [lease["token"]], "reason": "not now"})
    assert keys(worker) == ["b"]


def test_resumed_leases_count_after_a_reconnect(rig: Harness) -> None:
    worker = card(rig)
    client = rig.client()
    client.tasks(spec("a", vram_mb=3000))
    lease = worker.lease()
    worker.reconnect(resume=[lease["token"]])
    worker.offer(8, 8, vram_mb=4000)
    client.tasks(spec("b", vram_mb=3000))
    assert keys(worker) == []


def test_what_has_waited_a_minute_for_memory_is_not_passed_by_smaller_ones_for_ever(rig: Harness) -> None:
    worker, client = card(rig), rig.client()
    client.tasks(*[spec(f"s{i}", vram_mb=1500) for i in range(20)])
    held = worker.leases()
    client.tasks(spec("big", vram_mb=4000))
    order: list[str] = []
    for _ in range(12):
        rig.wait(10.0, (worker, held), (client, []))
        done = held.pop(0)
        worker.result(done)
        held += worker.leases()
        order.append(done["key"])
        if any(lease["key"] == "big" for lease in held):
            break
    assert [lease["key"] for lease in held] == ["big"]
    assert 6 <= len(order) <= 10, "passed for a minute, then nothing that wants memory went before it"


def test_the_budget_outlives_a_restart_of_the_broker() -> None:
    rig = Harness()
    worker, client = card(rig), rig.client()
    (task,) = client.tasks(spec("a", vram_mb=3000))
    assert worker.lease()["key"] == "a"
    stored = next(c.new_tasks[task.no][1] for c in rig.changes if task.no in c.new_tasks)
    row = insert_row(task, stored, b"", {}, {}, 0.0)
    loaded, _ = task_from((*row[:_COLUMNS_READ], 0), task.batch, 0.0, rig.wall)
    assert loaded.shape is task.shape
    assert loaded.shape.vram_mb == 3000


@pytest.mark.parametrize("value", [0, -1, 1.5, "2048", True, [], MAX_VRAM_MB + 1])
def test_a_need_that_is_no_number_of_mebibytes_is_refused(rig: Harness, value: Any) -> None:
    answer = rig.client().submit(spec("a", vram_mb=value))
    assert error_of(answer) == "definition"
    assert "vram_mb must be a whole number of MiB" in answer.header["message"]


@pytest.mark.parametrize("value", [-1, 1.5, "2048", True, [], MAX_VRAM_MB + 1])
def test_a_budget_that_is_no_number_of_mebibytes_changes_nothing(rig: Harness, value: Any) -> None:
    worker = card(rig)
    answer = worker.ask(Verb.OFFER, {"credit": 1, "slots": 1, "types": ["noop"], "vram_mb": value})
    assert error_of(answer) == "bad_frame"
    assert rig.core.sessions[worker.id].vram_mb == 4000


def test_a_child_of_a_handler_keeps_its_need(rig: Harness) -> None:
    worker, client = card(rig), rig.client()
    client.tasks(spec("parent"))
    lease = worker.lease()
    parent = {"id": lease["id"], "token": lease["token"]}
    batch = rig.core.ids[lease["id"]].batch.id
    answer = rig.peer("client").ask(
        Verb.SUBMIT,
        {"batch": {"id": batch}, "tasks": [spec("parent/1", vram_mb=9000, parent=parent)]},
    )
    child = rig.core.ids[answer.header["ids"][0]]
    assert (child.shape.vram_mb, child.shape.depth) == (9000, 1)
    assert keys(worker) == []


# ---------------------------------------------------------------- why


def test_why_names_a_need_that_no_card_has(rig: Harness) -> None:
    card(rig, 4000, "w1")
    card(rig, 4915, "w2")
    (task,) = rig.client().tasks(spec("a", vram_mb=8000))
    answer = why(rig, task.id)
    assert answer["summary"] == "no worker may use 8000 MiB of VRAM: w1 may use 4000 MiB; w2 may use 4915 MiB"
    (failed,) = [p for p in answer["predicates"] if not p["ok"]]
    assert (failed["name"], failed["wanted"]) == ("VRAM", "may use 8000 MiB of VRAM")
    assert failed["fix"] == (
        "lower vram_estimate_mb of the task (now 8000), unload the worker's model, or add a larger card"
    )
    status = rig.client().ask(Verb.QUERY, {"what": "status"}).header
    assert [row["vram_mb"] for row in status["unrunnable"]] == [8000]
    assert "(VRAM 8000 MiB)" in " ".join(why(rig, None)["reasons"])


def test_why_says_who_has_the_memory_now(rig: Harness) -> None:
    worker = card(rig)
    (_, second) = rig.client().tasks(spec("a", vram_mb=3000), spec("b", vram_mb=3000))
    assert keys(worker) == ["a"]
    answer = why(rig, second.id)
    assert answer["summary"].startswith(
        "3000 MiB free of VRAM wanted on the only worker that can run it: w1's leases take 3000 of 4000 MiB"
    )
    (failed,) = [p for p in answer["predicates"] if not p["ok"]]
    assert (failed["name"], failed["wanted"]) == ("free VRAM", "3000 MiB free")


def test_status_tells_the_budget_and_what_of_it_is_leased(rig: Harness) -> None:
    card(rig)
    card(rig, None, "w2", types=["other"])
    rig.client().tasks(spec("a", vram_mb=3000))
    rows = rig.client().ask(Verb.QUERY, {"what": "status"}).header["workers"]
    assert [(r["id"], r["vram_mb"], r["vram_leased_mb"]) for r in rows] == [
        ("w1", 4000, 3000),
        ("w2", None, 0),
    ]


# ---------------------------------------------------------------- held workers


def hold(worker: Peer, reason: str = HOT) -> None:
    worker.offer(0, 1, held=reason)


def test_a_held_worker_gets_nothing_and_others_do(rig: Harness) -> None:
    hot, cool = rig.worker(name="hot"), rig.worker(name="cool")
    hold(hot)
    rig.client().tasks(spec("a"), spec("b"))
    assert (keys(hot), keys(cool)) == ([], ["a"])
    hot.offer()
    assert keys(hot) == ["b"]


def test_a_held_worker_that_offers_credit_gets_nothing_all_the_same(rig: Harness) -> None:
    worker = rig.worker()
    worker.offer(4, 4, held=HOT)
    rig.client().tasks(spec("a"))
    assert keys(worker) == []


def test_status_why_and_events_name_the_hold(rig: Harness) -> None:
    worker = rig.worker(name="w1")
    (task,) = rig.client().tasks(spec("x"), key="before")
    worker.started(worker.lease())
    hold(worker)
    hold(worker, "GPU 0 is at 85 °C, resumes below 79 °C")
    (ready,) = rig.client().tasks(spec("a"))
    (row,) = rig.client().ask(Verb.QUERY, {"what": "status"}).header["workers"]
    assert (row["state"], row["held"]) == ("held", "GPU 0 is at 85 °C, resumes below 79 °C")
    answer = why(rig, ready.id)
    assert answer["summary"] == "no worker can take it: w1 is held: GPU 0 is at 85 °C, resumes below 79 °C"
    assert [p["name"] for p in answer["predicates"] if not p["ok"]] == ["not held"]
    answer = why(rig, "w1")
    assert answer["summary"] == "held: GPU 0 is at 85 °C, resumes below 79 °C"
    assert "worker w1: held, gets no new work: GPU 0 is at 85 °C" in " ".join(why(rig, None)["reasons"])
    assert task.state is TaskState.LEASED, "what runs goes on"
    worker.offer()
    topics = [e[4] for e in rig.events if e[4].startswith("worker.w1.")]
    assert topics == ["worker.w1.joined", "worker.w1.held", "worker.w1.released"]


def test_a_task_of_another_kind_of_worker_is_not_told_of_the_hold(rig: Harness) -> None:
    hold(rig.worker(name="hot"))
    (task,) = rig.client().tasks({"key": "a", "type": "rare"})
    assert why(rig, task.id)["summary"].startswith("no worker runs rare")


def test_what_a_hot_card_gave_back_counts_no_attempt_and_says_why(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    (task,) = client.tasks(spec("a"))
    for _ in range(5):
        worker.offer()
        lease = worker.lease()
        worker.started(lease)
        hold(worker)
        worker.ask(Verb.RETURN, {"tokens": [lease["token"]], "reason": f"thermal: {HOT}"})
        assert (task.state, task.attempt, task.counts) == (TaskState.READY, 0, (0, 0, 0))
    assert why(rig, task.id)["summary"].startswith(
        f"it was handed back: thermal: {HOT}; no worker can take it"
    )


def test_a_thermal_pause_stops_the_time_to_wait_for_a_worker(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    hold(worker)
    (task,) = client.tasks(spec("a", queue_timeout_s=20.0))
    rig.wait(70.0, (worker, []), (client, []))
    assert task.state is TaskState.READY
    reasons = " ".join(why(rig, task.id)["reasons"])
    assert "its queue_timeout_s does not end it while all workers that can run it are held" in reasons
    worker.offer(0, 1)  # cool again, and full: now time counts
    rig.wait(21.0, (worker, []), (client, []))
    assert task.state is TaskState.EXPIRED


def test_a_worker_that_could_take_it_lets_the_time_run(rig: Harness) -> None:
    hot, full, client = rig.worker(name="hot"), rig.worker(name="full"), rig.client()
    hold(hot)
    full.offer(0, 1)
    (task,) = client.tasks(spec("a", queue_timeout_s=20.0))
    rig.wait(21.0, (hot, []), (full, []), (client, []))
    assert task.state is TaskState.EXPIRED


def test_the_hold_ends_with_the_session() -> None:
    rig = Harness(Core(incarnation=1, state_id="5" * 32))
    worker = rig.worker(name="w1")
    hold(worker)
    worker.say(Verb.BYE)
    again = rig.worker(name="w1")
    rig.client().tasks(spec("a"))
    assert keys(again) == ["a"]
