"""Crashes: another worker first, a worker or card that tasks crash on gets none for a while, a task that crashes
anywhere is not tried for ever; all of it outlives a restart of the broker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import STATE_ID, Harness, Peer, error_of, spec

from rigbus.bus.core.core import Core
from rigbus.bus.core.model import Task, apart, intern_shape
from rigbus.bus.core.quarantine import APART_S, QUARANTINE_S, WINDOW_S, Crash, Quarantine, places_of
from rigbus.bus.states import TaskState
from rigbus.bus.store.store import Store
from rigbus.bus.wire import Verb

NO_WAIT = {"backoff_s": 0}


@pytest.fixture
def rig() -> Harness:
    return Harness()


def crash(worker: Peer, lease: dict[str, Any] | None = None) -> None:
    worker.fail(lease or worker.lease(), "crash")


def crash_alone(rig: Harness, worker: Peer, other: Peer, *keys: str) -> list[Task]:
    """Tasks of a batch each crash on ``worker`` and then wait for ``other``, which is busy."""
    found = rig.client().tasks(*(spec(key, policy=NO_WAIT) for key in keys))
    for _ in keys:
        crash(worker)
    return found


def busy(rig: Harness, worker: Peer, pool: str) -> dict[str, Any]:
    """Something that only this worker runs, and that goes on."""
    rig.client().tasks(spec("long", pool=pool))
    return worker.lease()


def pair(rig: Harness, **offer: Any) -> tuple[Peer, Peer, dict[str, Any]]:
    """`w1`, which is free, and `w2`, which is busy with the lease that is the third."""
    second = rig.worker(name="w2", pools=["second"], **offer)
    lease = busy(rig, second, "second")
    return rig.worker(name="w1", **offer), second, lease


def row_of(rig: Harness, name: str) -> dict[str, Any]:
    rows = rig.client().ask(Verb.QUERY, {"what": "workers"}).header["workers"]
    return next(row for row in rows if row["id"] == name)


def why(rig: Harness, ref: str) -> dict[str, Any]:
    return rig.client().ask(Verb.QUERY, {"what": "why", "id": ref}).header


# -- another worker first ------------------------------------------------------------------------------------


def test_a_crash_is_tried_again_on_another_worker_where_there_is_one(rig: Harness) -> None:
    first, second, long = pair(rig)
    (task,) = rig.client().tasks(spec("a", policy=NO_WAIT))
    crash(first)
    assert task.state is TaskState.READY and not first.leases()  # though it is free
    answer = why(rig, task.id)
    tests = {w["worker"]: [p["name"] for p in w["predicates"] if not p["ok"]] for w in answer["workers"]}
    assert tests["w1"] == ["not where it crashed"] and tests["w2"] == ["free credit"]
    second.result(long)
    assert second.lease()["id"] == task.id
    rig.check()


def test_the_only_worker_gets_it_again(rig: Harness) -> None:
    only = rig.worker()
    (task,) = rig.client().tasks(spec("a", policy=NO_WAIT))
    crash(only)
    assert only.lease()["id"] == task.id


@pytest.mark.parametrize("away", ["paused", "drained", "held", "of another type", "gone"])
def test_a_worker_that_gets_no_work_is_no_other_worker(rig: Harness, away: str) -> None:
    first, second, _ = pair(rig)
    rig.client().tasks(spec("a", policy=NO_WAIT))
    lease = first.lease()
    match away:
        case "paused":
            rig.client().ask(Verb.CONTROL, {"action": "pause", "worker": "w2"})
        case "drained":
            rig.client().ask(Verb.DRAIN, {"worker": "w2"})
        case "held":
            second.offer(credit=0, held="hot")
        case "of another type":
            second.offer(types=["other"])
        case _:
            rig.peer("supervisor").ask(Verb.GONE, {"session": second.id})
    crash(first, lease)
    assert first.lease()["attempt"] == 2


def test_after_a_while_any_worker_may_take_it(rig: Harness) -> None:
    first, second, long = pair(rig)
    (task,) = rig.client().tasks(spec("a", policy=NO_WAIT))
    crash(first)
    rig.wait(APART_S - 2, (first, []), (second, [long]))
    assert task.state is TaskState.READY
    rig.wait(4, (first, []), (second, [long]))
    assert first.lease()["id"] == task.id


def test_other_tasks_of_its_kind_do_not_wait_behind_it(rig: Harness) -> None:
    first, _, _ = pair(rig)
    rig.client().tasks(spec("a", policy=NO_WAIT), spec("b"))
    crash(first)
    assert first.lease()["key"] == "b"


def test_two_workers_on_one_card_are_one_place(rig: Harness) -> None:
    first, _, _ = pair(rig, info={"cards": "GPU-7"})
    rig.client().tasks(spec("a", policy=NO_WAIT))
    crash(first)
    assert first.lease()["attempt"] == 2  # nobody has another card


# -- a task that crashes anywhere ----------------------------------------------------------------------------


def test_a_task_that_crashes_on_two_workers_is_dead_and_names_them(rig: Harness) -> None:
    first, second, long = pair(rig)
    (task,) = rig.client().tasks(spec("a", policy={"crash": 9, "backoff_s": 0}))
    crash(first)
    second.result(long)
    crash(second)
    assert task.state is TaskState.DEAD
    assert task.error == "it crashed on w1 and on w2, so it is not tried again; no"
    assert not [key for scope, key in rig.core.facts if scope == "crashed"]
    rig.client().ask(Verb.REQUEUE, {"ids": [task.id]})
    assert task.shape.avoid == () and task.state is TaskState.LEASED
    rig.check()


def test_one_that_is_requeued_after_its_crashes_runs_though_others_of_its_kind_wait(rig: Harness) -> None:
    first, second, long = pair(rig)
    (task,) = rig.client().tasks(spec("a", policy={"crash": 9, "backoff_s": 0}))
    crash(first)
    second.result(long)
    crash(second)
    keys = [f"b{n}" for n in range(4)]
    rig.client().tasks(*(spec(key) for key in keys))
    rig.client().ask(Verb.REQUEUE, {"ids": [task.id]})
    ran = []
    for _ in range(5):
        worker, lease = next((w, lease) for w in (first, second) for lease in w.leases()[-1:])
        ran.append(lease["key"])
        worker.result(lease)
    assert sorted(ran) == ["a", *keys]
    rig.check()


def test_equal_shapes_are_one_object_however_they_are_made() -> None:
    plain = intern_shape("shell", "cpu", vram_mb=3)
    assert plain is intern_shape("shell", "cpu", None, (), None, 0, 3)
    assert plain is apart(apart(plain, ("w1",)), ())


def test_crashes_on_one_worker_count_by_the_policy(rig: Harness) -> None:
    only = rig.worker()
    (task,) = rig.client().tasks(spec("a", policy={"crash": 4, "backoff_s": 0}))
    for _ in range(4):
        crash(only)
    assert task.state is TaskState.DEAD and task.attempt == 4 and task.error == "no"


def test_before_it_is_dead_another_worker_that_has_come_may_try(rig: Harness) -> None:
    first = rig.worker(name="w1")
    (task,) = rig.client().tasks(spec("a", policy=NO_WAIT))
    crash(first)
    lease = first.lease()
    second = rig.worker(name="w2")
    crash(first, lease)
    assert task.state is TaskState.LEASED and task.worker == "w2"
    crash(second)
    assert task.state is TaskState.DEAD and task.attempt == 3


def test_what_may_crash_once_only_is_not_tried_on_another(rig: Harness) -> None:
    first, _, _ = pair(rig)
    (task,) = rig.client().tasks(spec("a", policy={"crash": 1}))
    crash(first)
    assert task.state is TaskState.DEAD


# -- a worker that tasks crash on ----------------------------------------------------------------------------


def test_a_worker_under_which_three_tasks_crash_gets_no_work_until_its_time_is_over(rig: Harness) -> None:
    first, second, long = pair(rig)
    crash_alone(rig, first, second, "a", "b")
    assert row_of(rig, "w1")["quarantine"] is None
    crash_alone(rig, first, second, "c")
    row = row_of(rig, "w1")
    assert row["state"] == "quarantined" and len(row["quarantine"]["tasks"]) == 3
    assert row["quarantine"]["until_at"] == pytest.approx(rig.wall + QUARANTINE_S)
    assert "worker.w1.quarantined" in rig.topics("p")
    (asked,) = (h for h in first.take(Verb.CONTROL) if h["action"] == "hand_back")
    assert asked["reason"].startswith("quarantined: 3 different tasks crashed")
    rig.client().tasks(spec("next"))
    rig.wait(QUARANTINE_S - 5, (first, []), (second, [long]))
    assert not first.leases()
    rig.wait(6, (first, []), (second, [long]))
    assert first.leases() and row_of(rig, "w1")["state"] == "busy"
    assert "worker.w1.trusted" in rig.topics("p")
    assert not [k for s, k in rig.core.facts if s == "quarantine"]


def test_why_names_the_quarantine_and_resume_lifts_it(rig: Harness) -> None:
    first, second, _ = pair(rig)
    tasks = crash_alone(rig, first, second, "a", "b", "c")
    (task,) = rig.client().tasks(spec("next", pool=None))
    of_worker, of_task = why(rig, "w1"), why(rig, task.id)
    assert (
        of_worker["summary"] == "quarantined: 3 different tasks crashed there in a row; tried again in 15 min"
    )
    assert "`a` crashed on w1 0.0 s ago" in of_worker["reasons"]
    fixes = {p["name"]: p["fix"] for p in of_worker["predicates"] if not p["ok"]}
    assert fixes["not quarantined"] == "rigbus resume w1"
    (mine,) = (w for w in of_task["workers"] if w["worker"] == "w1")
    assert [p["name"] for p in mine["predicates"] if not p["ok"]] == ["not quarantined"]
    assert any(s["id"] == "w1" and s["fix"] == "rigbus resume w1" for s in why(rig, "all")["stuck"])
    rig.client().ask(Verb.CONTROL, {"action": "resume", "worker": "w1"})
    assert first.lease()["id"] == task.id
    assert all(t.state is TaskState.READY for t in tasks)  # which still wait for the other one


def test_a_result_between_two_crashes_clears_the_worker(rig: Harness) -> None:
    first, second, _ = pair(rig)
    crash_alone(rig, first, second, "a", "b")
    rig.client().tasks(spec("good"))
    first.result(first.lease())
    crash_alone(rig, first, second, "c", "d")
    assert row_of(rig, "w1")["quarantine"] is None
    crash_alone(rig, first, second, "e")
    assert row_of(rig, "w1")["quarantine"] is not None


def test_crashes_long_ago_do_not_count(rig: Harness) -> None:
    first, second, long = pair(rig)
    crash_alone(rig, first, second, "a", "b")
    rig.client().ask(Verb.CANCEL, {"ids": [t.id for t in rig.core.tasks.values() if t.key in "ab"]})
    rig.wait(WINDOW_S + 1, (first, []), (second, [long]))
    crash_alone(rig, first, second, "c")
    assert row_of(rig, "w1")["quarantine"] is None


def test_tasks_that_crash_on_every_worker_quarantine_none(rig: Harness) -> None:
    workers = [rig.worker(name=f"w{n}") for n in (1, 2)]
    tasks = rig.client().tasks(*(spec(f"item{n}", policy=NO_WAIT) for n in range(8)))
    for _ in range(16):
        for worker in workers:
            for lease in worker.leases():
                crash(worker, lease)
    assert {t.state for t in tasks} == {TaskState.DEAD}
    assert [row_of(rig, f"w{n}")["quarantine"] for n in (1, 2)] == [None, None]
    rig.check()


def test_a_quarantine_is_lifted_when_its_tasks_turn_out_to_crash_elsewhere_too(rig: Harness) -> None:
    first, second, long = pair(rig)
    crash_alone(rig, first, second, "a", "b", "c")
    assert row_of(rig, "w1")["state"] == "quarantined"
    second.result(long)
    crash(second)
    assert row_of(rig, "w1")["state"] == "idle" and "worker.w1.trusted" in rig.topics("p")


def test_the_only_worker_that_can_run_a_command_is_never_quarantined(rig: Harness) -> None:
    only = rig.worker(name="w1")
    rig.client().tasks(*(spec(f"n{n}", policy={"crash": 1}) for n in range(5)))
    for _ in range(5):
        crash(only)
    assert row_of(rig, "w1")["state"] == "idle"


def test_the_only_card_of_models_is(rig: Harness) -> None:
    model = rig.worker(name="m1", types=["generate"], classes=["llm"], info={"cards": "GPU-7"})
    shared = rig.worker(name="w1", info={"cards": "GPU-7"})
    tasks = rig.client().tasks(
        *(spec(f"n{n}", type="generate", **{"class": "llm"}, policy={"crash": 1}) for n in range(5))
    )
    for _ in range(3):
        crash(model)
    assert [t.state.name for t in tasks] == ["DEAD"] * 3 + ["READY"] * 2
    assert "(card GPU-7)" in row_of(rig, "m1")["quarantine"]["why"]
    rig.client().tasks(spec("other"))
    assert not shared.leases()  # its card is the same
    rig.client().ask(Verb.CONTROL, {"action": "resume", "worker": "w1"})
    assert shared.leases() and model.leases()


# -- restarts ------------------------------------------------------------------------------------------------


class Kept(Harness):
    """A harness over a real store."""

    def __init__(self, path: Path, now: float = 1000.0, wall: float = 1.7e9) -> None:
        self.store = Store(path)
        core = Core(incarnation=self.store.next_incarnation(), state_id=STATE_ID)
        batches, tasks, edges, facts, core.seq, core.channel_seq = self.store.load(now, wall)
        core.load(batches, tasks, edges, facts, now, wall)
        super().__init__(core, now=now, wall=wall)

    def settle(self) -> Any:
        fx = super().settle()
        if fx.changes:
            self.store.commit(fx.changes, self.now, self.wall)
        return fx

    def restart(self, away_s: float) -> Kept:
        self.store.close()
        again = Kept(self.store.path, self.now + 5000.0, self.wall + away_s)
        again.numbers = self.numbers
        return again


def test_quarantine_and_where_a_task_crashed_outlive_restarts(tmp_path: Path) -> None:
    rig: Kept = Kept(tmp_path / "rig.db")
    first, second, _ = pair(rig)
    tasks = crash_alone(rig, first, second, "a", "b", "c")
    rig = rig.restart(away_s=300.0)
    loaded = [rig.core.ids[t.id] for t in tasks]
    assert {t.shape.avoid for t in loaded} == {("w1",)}
    first = rig.worker(name="w1")
    assert row_of(rig, "w1")["state"] == "quarantined" and not first.leases()
    place = rig.core.quarantine.places["w1"]
    assert place.until - rig.now == pytest.approx(QUARANTINE_S - 300, abs=0.01)
    rig = rig.restart(away_s=-1_000_000.0)  # a clock that was set back does not prolong it
    assert rig.core.quarantine.places["w1"].until - rig.now <= QUARANTINE_S
    answer = rig.client().ask(Verb.CONTROL, {"action": "resume", "worker": "w1"})  # it is not even here
    assert answer.verb is Verb.OK and not rig.core.quarantine.places
    rig = rig.restart(away_s=1.0)
    assert not rig.core.quarantine.places
    rig.store.close()


def test_the_brain_cannot_write_what_the_broker_believes_blindly(rig: Harness) -> None:
    brain = rig.brain()
    for scope in ("quarantine", "crashed"):
        facts = [{"scope": scope, "key": "w1", "rev": 0, "value": 7}]
        assert error_of(brain.ask(Verb.BRAIN, {"epoch": rig.core.epoch, "facts": facts})) == "definition"


# -- the book itself -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "places"),
    [
        ({}, ("w",)),
        ({"cards": ""}, ("w",)),
        ({"cards": "0, 1"}, ("card 0", "card 1")),
        ({"cards": 7}, ("w",)),
        ({"cards": "x," * 5000}, ("w",)),
    ],
)
def test_places_are_cards_or_the_worker(info: dict[str, Any], places: tuple[str, ...]) -> None:
    assert places_of("w", info) == places


def test_one_place_keeps_a_bounded_number_of_crashes() -> None:
    book = Quarantine()
    for n in range(500):
        book.crashed(Crash(f"t{n}", "k", "w", float(n) / 10), ("w",), 0.0, may_hold=False)
    assert len(book.places["w"].crashes) == 32
    book.crashed(Crash("t", "k", "v", 2000.0), ("v",), 0.0, may_hold=False)
    assert set(book.places) == {"v"}


def test_what_ends_well_under_a_quarantine_does_not_lift_it() -> None:
    book = Quarantine()
    for n in range(3):
        book.crashed(Crash(f"t{n}", f"k{n}", "w", float(n)), ("w",), 1.0, may_hold=True)
    book.went_well("w")
    place = book.holds(("w",))
    assert place is not None and not any(c.past for c in place.crashes)
