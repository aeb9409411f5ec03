"""QUERY and SNAPSHOT: pages that lack nothing, rows with the seq of their last change, ids by prefix."""

from __future__ import annotations

import time
from typing import Any

import pytest
from harness import Harness, Peer, error_of, spec

from rigbus.bus.wire import MAX_FRAME_BYTES, Verb, pack


@pytest.fixture
def rig() -> Harness:
    return Harness()


def pages(peer: Peer, verb: Verb, **header: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """(batches, rows, number of pages) of a question, page by page."""
    batches: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    n, cursor = 0, None
    while n == 0 or cursor is not None:
        page = peer.ask(verb, {**header, "cursor": cursor}).header
        assert len(pack(page)) < MAX_FRAME_BYTES
        batches += page.get("batches", [])
        rows += page["rows"]
        cursor = page["cursor"]
        n += 1
    return batches, rows, n


@pytest.mark.parametrize("limit", [1, 7, 500])
def test_tasks_come_in_pages_that_lack_nothing(rig: Harness, limit: int) -> None:
    client = rig.client()
    mine, other = [], []
    for n in range(5):
        mine += client.tasks(*[spec(f"a{n}-{i}") for i in range(3)], key="mine", open=True)
        other += client.tasks(*[spec(f"b{n}-{i}") for i in range(4)], key="other", open=True)
    _, rows, _ = pages(client, Verb.QUERY, what="tasks", batch=mine[0].batch.id, limit=limit)
    assert [r["id"] for r in rows] == [t.id for t in mine]
    _, rows, _ = pages(client, Verb.QUERY, what="tasks", limit=limit)
    assert [r["no"] for r in rows] == list(range(1, 36))
    client.ask(Verb.CANCEL, {"ids": [mine[4].id, other[0].id]})
    _, rows, _ = pages(client, Verb.QUERY, what="tasks", states=["cancelled"], limit=limit)
    assert [r["id"] for r in rows] == [other[0].id, mine[4].id]


def test_calls_are_listed_while_they_live(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    client.submit(spec("1"), kind="calls", key="calls:x")
    (row,) = client.ask(Verb.QUERY, {"what": "tasks"}).header["rows"]
    assert row["state"] == "leased"
    assert [b["kind"] for b in client.ask(Verb.QUERY, {"what": "status"}).header["batches"]] == ["calls"]
    worker.result(worker.lease())
    assert client.ask(Verb.QUERY, {"what": "tasks"}).header["rows"] == []
    assert client.ask(Verb.QUERY, {"what": "status"}).header["batches"] == []


def test_a_snapshot_has_the_mirrored_world_and_its_rows_carry_their_seq(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    client.tasks(spec("hidden"))
    shown = client.tasks(spec("a"), spec("b", "a"), mirror=True)
    bridge = rig.peer("bridge")
    answer = bridge.ask(Verb.SNAPSHOT, {"mirror": True})
    assert answer.verb is Verb.SNAPSHOT and answer.header["seq"] == rig.core.seq
    assert [r["id"] for r in answer.header["rows"]] == [t.id for t in shown]
    assert answer.rows_of == [t.no for t in shown]
    assert len(answer.header["batches"]) == 2 and answer.header["workers"][0]["id"] == worker.name
    by_id = {e[5]: e[0] for e in rig.events if e[5]}
    assert all(r["seq"] == by_id[r["id"]] for r in answer.header["rows"])


@pytest.mark.parametrize("limit", [1, 3, 500])
def test_a_snapshot_in_pages_lacks_nothing_however_many_batches_there_are(rig: Harness, limit: int) -> None:
    client = rig.client()
    plan = {"name": "p", "config": "x" * 16_000}
    ids = [client.submit(kind="plan", plan=plan).header["batch"] for _ in range(100)]
    tasks = client.tasks(*[spec(f"t{i}") for i in range(8)], mirror=True)
    batches, rows, _ = pages(rig.peer("bridge"), Verb.SNAPSHOT, mirror=True, limit=limit)
    assert [b["id"] for b in batches] == [*ids, tasks[0].batch.id]
    assert [r["id"] for r in rows] == [t.id for t in tasks]
    status = client.ask(Verb.QUERY, {"what": "status"}).header
    assert len(pack(status)) < MAX_FRAME_BYTES
    listed = client.ask(Verb.QUERY, {"what": "batches", "all": True}).header["batches"]
    assert listed[-1]["id"] == tasks[0].batch.id and 20 < len(listed) <= 101
    assert len(pack(listed)) < MAX_FRAME_BYTES


def test_the_brains_snapshot_has_what_it_must_act_on(rig: Harness) -> None:
    brain, worker, client = rig.brain(), rig.worker(), rig.client()
    planning = client.submit(kind="plan", plan={"name": "p"}).header["batch"]
    running = client.submit(kind="plan", plan={"name": "q"}).header["batch"]
    tasks = [spec("bad"), spec("fine"), spec("held", join=True, hold=True), {"key": "e", "type": "expand"}]
    brain.ask(Verb.BRAIN, {"epoch": 1, "batch": running, "tasks": tasks, "close": [running]})
    over = client.submit(kind="plan", plan={"name": "r"}).header["batch"]
    brain.ask(Verb.BRAIN, {"epoch": 1, "batch": over, "tasks": [spec("x")], "close": [over]})
    client.ask(Verb.CANCEL, {"batch": over})
    worker.fail(worker.lease(), "definition")
    batches, rows, _ = pages(brain, Verb.SNAPSHOT, attn=True)
    assert [b["id"] for b in batches] == [planning, running]
    assert [r["key"] for r in rows] == ["bad", "held"]


def test_ids_may_be_shortened_while_they_are_unambiguous(rig: Harness) -> None:
    client = rig.client()
    tasks = client.tasks(*[spec(f"t{i}") for i in range(50)])
    assert client.ask(Verb.QUERY, {"what": "task", "id": tasks[7].id[:13]}).header["rows"][0]["key"] == "t7"
    short = client.ask(Verb.QUERY, {"what": "task", "id": tasks[7].id[:5]})
    assert "give 6 or more characters of its id or BATCH/NAME" in short.header["message"]
    for ref in (tasks[7].id[:5], "", "zzzzzzzz", None, 5, ["x"]):
        assert error_of(client.ask(Verb.QUERY, {"what": "task", "id": ref})) == "not_found"
    batch = tasks[0].batch.id
    assert client.ask(Verb.QUERY, {"what": "batch", "id": batch[:12]}).header["id"] == batch
    client.submit(spec("x"))
    answer = client.ask(Verb.QUERY, {"what": "batch", "id": batch[:12]})
    assert error_of(answer) == "not_found" and "fits 2" in answer.header["message"]


def test_a_batch_row_counts_what_there_is(rig: Harness) -> None:
    worker, client = rig.worker(), rig.client()
    tasks = client.tasks(spec("a"), spec("b"), spec("c", "b"))
    worker.result(worker.lease())
    row = client.ask(Verb.QUERY, {"what": "batch", "id": tasks[0].batch.id}).header
    assert row["state"] == "running" and row["total"] == 3 and row["progress"] == pytest.approx(1 / 3)
    assert {k: v for k, v in row["tasks"].items() if v} == {"done": 1, "leased": 1, "waiting": 1}


def test_waiting_needs_ids_that_are_text_and_registers_nothing_otherwise(rig: Harness) -> None:
    client, other = rig.client(), rig.client()
    (task,) = client.tasks(spec("a"))
    for ids in ([task.id, 5], task.id, {"a": 1}, [[task.id]]):
        assert error_of(other.ask(Verb.QUERY, {"what": "wait", "ids": ids})) == "bad_frame"
    assert task.waiters == {client.id}
    answer = other.ask(Verb.QUERY, {"what": "wait", "ids": [task.id, "nobody"]})
    assert answer.header["states"] == {task.id: "ready", "nobody": "unknown"}
    assert task.waiters == {client.id, other.id}
    other.say(Verb.BYE)
    third = rig.client()
    third.ask(Verb.QUERY, {"what": "wait", "ids": [task.id]})
    assert task.waiters == {client.id, third.id}  # who left is forgotten


def test_a_large_result_is_asked_for_by_offset_only_when_there_is_one(rig: Harness) -> None:
    client = rig.client()
    (task,) = client.tasks(spec("a"))
    assert error_of(client.ask(Verb.QUERY, {"what": "result", "id": task.id})) == "not_found"
    client.ask(Verb.CANCEL, {"ids": [task.id]})
    answer = client.ask(Verb.QUERY, {"what": "result", "id": task.id, "offset": 3})
    assert answer.rows_of == [task.no] and answer.header["offset"] == 3
    for offset in (-1, 2**60, "x", 1.5):
        header = {"what": "result", "id": task.id, "offset": offset}
        assert error_of(client.ask(Verb.QUERY, header)) == "bad_frame"


def test_every_page_of_a_large_batch_costs_about_the_same(rig: Harness) -> None:
    client = rig.client()
    for start in range(0, 20_000, 1000):
        specs = [spec(f"t{i}", type="rare") for i in range(start, start + 1000)]
        answer = client.submit(*specs, key="big", open=True, mirror=True)
    begun = time.process_time()
    _, rows, n = pages(rig.peer("bridge"), Verb.SNAPSHOT, mirror=True)
    assert len(rows) == 20_000 and n == 40
    _, rows, n = pages(client, Verb.QUERY, what="tasks", batch=answer.header["batch"])
    assert len(rows) == 20_000
    assert time.process_time() - begun < 3.0


def test_calls_that_have_all_ended_are_not_shown_as_running(rig: Harness) -> None:
    """Their batch is never closed; a dead call would stand there as `running` for ever."""
    client = rig.peer("client")
    batch = {"key": "calls:x", "kind": "calls", "name": "calls"}
    answer = client.ask(
        Verb.SUBMIT, {"batch": batch, "tasks": [{"key": "1", "type": "t", "policy": {"task": 1}}]}
    )
    row = lambda: client.ask(Verb.QUERY, {"what": "batch", "id": answer.header["batch"]}).header["state"]  # noqa: E731
    assert row() == "running"
    client.ask(Verb.CANCEL, {"ids": answer.header["ids"]})
    assert row() == "failed"
