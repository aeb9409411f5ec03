"""What nobody holds any more after a commit."""

from __future__ import annotations

from typing import Any

from harness import Harness, spec

from rigbus.bus.broker.leftovers import Gone, Holdings
from rigbus.bus.core.model import Batch, Changes, Revision
from rigbus.bus.wire import Verb

A, B = "a" * 64, "b" * 64


def plan(no: int, sha: str = A) -> Batch:
    batch = Batch(no, f"20260101_00000{no}_abcdef", f"k{no}", "plan", "p", 0.0)
    batch.plan = {"name": "p", "sha256": sha}
    return batch


def test_a_result_file_goes_with_the_last_task_that_holds_it() -> None:
    held = Holdings([], [(1, A), (2, A), (3, B)])
    assert not held.committed(Changes(purge_tasks=[1])) and held.has_result(A)
    assert held.committed(Changes(purge_tasks=[2, 3])).results == [A, B]
    assert not held.has_result(A) and not held.has_result(B)


def test_one_that_is_taken_up_in_the_same_commit_stays() -> None:
    held = Holdings([], [(1, A)])
    assert not held.committed(Changes(purge_tasks=[1], results={2: b""}, refs={2: (A, 9)}))
    assert held.has_result(A)


def test_another_result_of_the_same_task_ends_the_file_of_the_one_before() -> None:
    held = Holdings([], [])
    assert not held.committed(Changes(results={1: b""}, refs={1: (A, 9)}))
    assert held.committed(Changes(results={1: b""}, refs={1: (B, 9)})).results == [A]
    assert held.committed(Changes(results={1: b"small"})).results == [B]


def test_a_task_without_a_file_costs_nothing() -> None:
    held = Holdings([], [])
    assert not held.committed(Changes(results={1: b"x"}, purge_tasks=[1, 2]))


def test_a_staged_plan_goes_with_the_last_batch_that_was_made_from_it() -> None:
    held = Holdings([plan(1)], [])
    assert not held.committed(Changes(batches={2: plan(2)}))
    first = held.committed(Changes(purge_batches=[1]))
    assert (first.plans, first.views) == ([], [plan(1).id]) and first.folders == [plan(1).id]
    assert held.has_plan(A) and not held.has_view(plan(1).id) and held.has_folder(plan(2).id)
    assert held.committed(Changes(purge_batches=[2])).plans == [A]


def test_a_batch_that_comes_and_goes_with_one_plan_leaves_it_to_the_next() -> None:
    held = Holdings([plan(1)], [])
    gone = held.committed(Changes(batches={2: plan(2)}, purge_batches=[1]))
    assert gone.plans == [] and held.has_plan(A)


def test_a_batch_that_nobody_knew_is_no_matter() -> None:
    assert not Holdings([], []).committed(Changes(purge_batches=[7]))


# -- behind the real core ------------------------------------------------------------------------------------


def followed(rig: Harness, held: Holdings) -> list[Gone]:
    """What the commits so far left."""
    found = [held.committed(changes) for changes in rig.changes]
    rig.changes.clear()
    return [gone for gone in found if gone]


def test_a_purge_names_the_folders_of_batches_and_the_logs_of_calls() -> None:
    rig = Harness(retain_tasks=1)
    held = Holdings([], [])
    worker, client = rig.worker(credit=10), rig.client()

    def ended(**batch: Any) -> None:
        assert client.submit(spec("a/1"), spec("b"), **batch).verb is Verb.ACCEPTED
        for lease in worker.leases():
            worker.result(lease, ref={"sha256": A, "bytes": 300_000})

    ended(key="one")
    ended(key="calls:x", kind="calls", name="calls")
    batch = rig.core.batch_keys["one"]
    calls = rig.core.batch_keys["calls:x"]
    rig.wait(3, (worker, []), (client, []))
    assert not rig.core.tasks
    found = followed(rig, held)
    assert batch.id in [name for gone in found for name in gone.folders]
    logs = [log for gone in found for log in gone.logs]
    assert sorted(logs) == [(calls.id, "a/1", 1), (calls.id, "b", 1)]
    assert [sha for gone in found for sha in gone.results] == [A]


def test_the_copies_and_views_of_all_revisions_go_with_the_batch() -> None:
    first = plan(1, A)
    held = Holdings([first], [])
    first.plan, first.revisions = {"name": "p", "sha256": B}, (Revision("k", "d", A, 0.0, "", ""),)
    assert not held.committed(Changes(batches={1: first}))
    again = Holdings([first], [])
    for one in (held, again):
        assert (
            one.has_plan(A) and one.has_plan(B) and one.has_view(first.id) and one.has_view(f"{first.id}@2")
        )
        gone = one.committed(Changes(purge_batches=[1]))
        assert (gone.views, gone.plans) == ([first.id, f"{first.id}@2"], [A, B])
        assert not one.has_view(f"{first.id}@2")
