"""Escalations in the core: each cause once, guards at their birth, one answer, gone with their batch, over restarts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from harness import STATE_ID, Harness, Peer, error_of, spec

from rigbus.bus.core.core import Core
from rigbus.bus.core.escalations import DAY_S, KEPT_OVER, MAX_TASKS, MOVES, STATES, Guards
from rigbus.bus.states import TaskState
from rigbus.bus.store.store import Store
from rigbus.bus.wire import Verb

NO_WAIT = {"task": 1, "backoff_s": 0}
PLAN = {"name": "p", "sha256": "ab" * 32, "path": "/share/plans/p", "config": {"N": 1}}


class Rig(Harness):
    """A seated brain, and a batch of a plan whose tasks die."""

    def __init__(self, core: Core | None = None) -> None:
        super().__init__(core)
        self.seat = self.brain()
        self.epoch = self.core.epoch
        self.user = self.client()

    def batch(self, *keys: str, key: str = "b", on_end: bool = False) -> str:
        """A plan's batch with these tasks; closed."""
        head = {"key": key, "kind": "plan", "name": "p", "plan": PLAN}
        answer = self.user.ask(Verb.SUBMIT, {"batch": head, "tasks": []})
        id_ = str(answer.header["batch"])
        specs = [spec(k, policy=NO_WAIT) for k in keys]
        self.tell(batch=id_, tasks=specs, close=[id_])
        return id_

    def tell(self, **header: Any) -> Any:
        answer = self.seat.ask(Verb.BRAIN, {"epoch": self.epoch, "upto_seq": 0, **header})
        assert answer.verb is Verb.OK, answer.header
        return answer

    def escalate(self, key: str, batch: str = "", cause: str = "repeated_failures", **more: Any) -> None:
        one = {"key": key, "cause": cause, "type": "execute_plan_failure", "title": f"{key} failed", **more}
        self.tell(escalate=[one | ({"batch": batch} if batch else {})])

    def records(self, **which: Any) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.user.ask(Verb.QUERY, {"what": "escalations", **which}).header[
            "escalations"
        ]
        return found

    def control(self, id_: str, state: str, **more: Any) -> Any:
        return self.user.ask(Verb.CONTROL, {"action": "escalation", "id": id_, "state": state, **more})

    def task(self, batch: str, key: str) -> Any:
        return self.core.batch_ids[batch].keys[key]


@pytest.fixture
def rig() -> Rig:
    return Rig()


def die(rig: Rig, worker: Peer | None = None) -> None:
    """The next lease fails."""
    worker = worker or rig.worker()
    worker.fail(worker.lease())


# -- raising -------------------------------------------------------------------------------------------------


def test_a_key_is_raised_once(rig: Rig) -> None:
    batch = rig.batch("a")
    for _ in range(3):
        rig.escalate("k", batch)
    (record,) = rig.records()
    assert (record["status"], record["batch"], record["asked"]) == ("pending", batch, True)
    assert record["plan"] == {k: PLAN[k] for k in ("name", "sha256", "path", "config")}
    assert [t for t in rig.topics("p") if t.startswith("escalation.")] == [
        f"escalation.{record['id']}.pending"
    ]


def test_its_id_is_a_time_and_eight_hex_digits(rig: Rig) -> None:
    rig.escalate("k", rig.batch("a"))
    stamp, clock, hexes = rig.records()[0]["id"].split("_")
    assert stamp.isdigit() and clock.isdigit() and (len(stamp), len(clock), len(hexes)) == (8, 6, 8)
    int(hexes, 16)


def test_what_dies_of_the_same_cause_joins_the_open_one(rig: Rig) -> None:
    keys = [f"t{n}" for n in range(MAX_TASKS + 5)]
    batch = rig.batch(*keys)
    for key in keys:
        rig.escalate(f"k/{key}", batch, task=rig.task(batch, key).id)
    (record,) = rig.records()
    assert [t["key"] for t in record["tasks"]] == keys[:MAX_TASKS]
    for key in keys:  # known again, those that are not shown as well
        rig.escalate(f"k/{key}", batch)
    assert len(rig.records()) == 1
    rig.escalate("other", batch, cause="plan_fault")
    assert [r["cause"] for r in rig.records()] == ["repeated_failures", "plan_fault"]


def test_what_dies_after_an_answer_is_a_new_one(rig: Rig) -> None:
    batch = rig.batch("a")
    rig.escalate("k1", batch)
    rig.control(rig.records()[0]["id"], "answered", answer="d1")
    rig.wall += 61
    rig.escalate("k2", batch)
    assert [r["status"] for r in rig.records()] == ["answered", "pending"]


def test_it_is_raised_in_the_commit_of_the_failure_that_it_is_about(rig: Rig) -> None:
    batch = rig.batch("a")
    one = {"key": "k", "cause": "plan_fault", "type": "execute_plan_failure", "title": "no", "batch": batch}
    rig.tell(fail=[{"batch": batch, "error": "cannot be planned"}], escalate=[one])
    (record,) = rig.records()
    assert record["status"] == "pending"  # a failed batch is what it is about
    (changes,) = [c for c in rig.changes if any(scope == "escalation" for scope, _ in c.facts)]
    assert changes.batches


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": ""},
        {"key": "k" * 201},
        {"cause": "Repeated Failures"},
        {"cause": None},
        {"type": "meltdown"},
        {"title": ""},
        {"title": "x" * 301},
        {"title": 5},
        {"details": []},
        {"details": {"x": "y" * 9000}},
        {"batch": "unknown_batch"},
        {"task": "unknown_task"},
    ],
)
def test_a_broken_one_refuses_the_whole_message(rig: Rig, wrong: dict[str, Any]) -> None:
    batch = rig.batch("a")
    good = {"key": "k", "cause": "c", "type": "execute_plan_failure", "title": "t"}
    header = {"epoch": rig.epoch, "escalate": [good, good | wrong], "close": [batch]}
    answer = rig.seat.ask(Verb.BRAIN, {**header, "fail": [{"batch": batch, "error": "x"}]})
    assert error_of(answer) in ("definition", "not_found")
    assert not rig.records() and rig.core.batch_ids[batch].error is None


def test_too_many_in_one_message_and_the_brokers_own_scope_are_refused(rig: Rig) -> None:
    one = {"key": "k", "cause": "c", "type": "execute_plan_failure", "title": "t"}
    many = rig.seat.ask(Verb.BRAIN, {"epoch": rig.epoch, "escalate": [one] * 21})
    assert error_of(many) == "definition"
    fact = {"scope": "escalation", "key": "x", "rev": 0, "value": {}}
    assert error_of(rig.seat.ask(Verb.BRAIN, {"epoch": rig.epoch, "facts": [fact]})) == "definition"


# -- guards --------------------------------------------------------------------------------------------------


def guard(rig: Rig, **given: Any) -> None:
    rig.core.escalations.guards = Guards(**{"max_per_batch": 99, "cooldown_s": 0.0, "per_day": 99, **given})


def over(rig: Rig) -> None:
    """All that is open was abandoned."""
    for record in rig.records(open=True):
        rig.control(record["id"], "closed")


def raise_many(rig: Rig, n: int, *, batch: str = "", pause_s: float = 1.0) -> list[dict[str, Any]]:
    for i in range(n):
        rig.escalate(f"{batch}/{i}", batch)
        over(rig)
        rig.wall += pause_s
    return rig.records()


def test_past_so_many_of_a_batch_it_goes_to_a_person(rig: Rig) -> None:
    guard(rig, max_per_batch=2)
    first, other = rig.batch("a"), rig.batch("a", key="c")
    rows = raise_many(rig, 3, batch=first)
    assert [r["asked"] for r in rows] == [True, True, False]
    assert "max_per_batch = 2" in rows[2]["why"]
    assert [e[4].rpartition(".")[2] for e in rig.events if e[7].get("new") and e[7]["why"]] == ["human"]
    assert raise_many(rig, 1, batch=other)[-1]["asked"]


def test_a_batch_and_cause_rest_after_one(rig: Rig) -> None:
    guard(rig, cooldown_s=60)
    batch = rig.batch("a")
    rows = raise_many(rig, 2, batch=batch, pause_s=30)
    assert [r["asked"] for r in rows] == [True, False] and "cooldown_s = 60" in rows[1]["why"]
    rig.escalate("another cause", batch, cause="plan_fault")
    rig.wall += 61
    rig.escalate("later", batch)
    assert [r["asked"] for r in rig.records()] == [True, False, True, True]


def test_after_a_late_answer_the_next_is_asked_about_at_once(rig: Rig) -> None:
    guard(rig, cooldown_s=60)
    batch = rig.batch("a")
    rig.escalate("slowly answered", batch)
    rig.wall += 61
    over(rig)
    rig.escalate("and wrongly", batch)
    assert [r["asked"] for r in rig.records()] == [True, True]


def test_a_day_has_a_budget_over_all_batches(rig: Rig) -> None:
    guard(rig, per_day=3)
    for n in range(4):
        rig.escalate(f"k{n}", rig.batch("a", key=f"b{n}"))
    assert [r["asked"] for r in rig.records()] == [True, True, True, False]
    assert "per_day = 3" in rig.records()[3]["why"]
    rig.wall += DAY_S
    rig.escalate("tomorrow", rig.batch("a", key="t"))
    assert rig.records()[-1]["asked"]


def test_the_budget_outlives_the_records_that_spent_it(rig: Rig) -> None:
    guard(rig, per_day=1)
    batch = rig.batch("a")
    rig.escalate("k", batch)
    rig.core.forget_escalations(batch)
    rig.escalate("k2", rig.batch("a", key="c"))
    assert [r["asked"] for r in rig.records()] == [False]


def test_the_rig_as_a_whole_has_its_own_bound_a_day(rig: Rig) -> None:
    guard(rig, max_per_batch=2)
    assert [r["asked"] for r in raise_many(rig, 3)] == [True, True, False]
    rig.wall += DAY_S
    rig.escalate("tomorrow")
    assert rig.records()[-1]["asked"]


def test_a_clock_that_was_set_back_keeps_no_guard_up_for_ever(rig: Rig) -> None:
    guard(rig, cooldown_s=60, per_day=1)
    batch = rig.batch("a")
    rig.escalate("k1", batch)
    over(rig)
    rig.wall -= 10 * DAY_S
    rig.escalate("k2", batch)
    assert rig.records()[-1]["asked"]


# -- answers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("was", sorted(STATES))
@pytest.mark.parametrize("to", sorted(STATES))
def test_a_move_outside_of_the_table_is_refused_and_changes_nothing(rig: Rig, was: str, to: str) -> None:
    rig.escalate("k", rig.batch("a"))
    (record,) = rig.records()
    mine = rig.core.escalations.records[record["id"]]
    mine.status, mine.answer = was, "" if was in ("pending", "human") else "d"
    answer = rig.control(record["id"], to, answer="d" if to == "answered" else "")
    again = to == was or (to == "answered" and was in ("applied", "closed"))
    assert (answer.verb is Verb.OK) == ((was, to) in MOVES or again)
    if answer.verb is not Verb.OK:
        assert was in answer.header["message"] and mine.status == was
    elif again:
        assert mine.status == was
    else:
        assert mine.status == ("pending" if to == "pending" else to)


def test_the_same_answer_is_one_and_another_is_refused(rig: Rig) -> None:
    rig.escalate("k", rig.batch("a"))
    id_ = rig.records()[0]["id"]
    for _ in range(2):
        assert rig.control(id_, "answered", answer="d1", by="ann").header["status"] == "answered"
    refused = rig.control(id_, "answered", answer="d2")
    assert error_of(refused) == "refused" and "d1 by ann" in refused.header["message"]
    assert rig.control(id_, "applied", answer="d1").header["status"] == "applied"
    assert rig.control(id_, "answered", answer="d1").header["status"] == "applied"
    assert error_of(rig.control(id_, "answered", answer="d2")) == "refused"
    assert len([t for t in rig.topics("p") if t.startswith("escalation.")]) == 3


def test_an_answer_that_could_not_be_applied_leaves_it_as_it_was(rig: Rig) -> None:
    guard(rig, per_day=0)
    rig.escalate("k", rig.batch("a"))
    id_ = rig.records()[0]["id"]
    rig.control(id_, "answered", answer="d1")
    assert rig.control(id_, "pending", answer="d1", note="no room").header == {
        "id": id_,
        "status": "human",
        "answer": "",
    }
    assert rig.control(id_, "answered", answer="d2").verb is Verb.OK


@pytest.mark.parametrize(
    "header", [{"state": "solved"}, {"state": "answered"}, {"state": "answered", "answer": "a b"}]
)
def test_a_wrong_word_is_refused(rig: Rig, header: dict[str, Any]) -> None:
    rig.escalate("k", rig.batch("a"))
    id_ = rig.records()[0]["id"]
    assert error_of(rig.user.ask(Verb.CONTROL, {"action": "escalation", "id": id_, **header})) == "definition"
    assert error_of(rig.control("20260101_000000_00000000", "closed")) == "not_found"


def test_a_requeue_that_answers_is_done_once(rig: Rig) -> None:
    worker = rig.worker()
    batch = rig.batch("a")
    die(rig, worker)
    rig.escalate("k", batch, task=rig.task(batch, "a").id)
    id_ = rig.records()[0]["id"]
    header = {"batch": batch, "escalation": id_, "answer": "d1"}
    assert error_of(rig.user.ask(Verb.REQUEUE, header)) == "refused"  # nobody has said that it is answered
    rig.control(id_, "answered", answer="d1")
    assert error_of(rig.user.ask(Verb.REQUEUE, {**header, "answer": "d2"})) == "refused"
    assert rig.user.ask(Verb.REQUEUE, header).header == {"requeued": 1, "revived": 0}
    assert rig.records()[0]["status"] == "applied"
    die(rig, worker)
    assert rig.user.ask(Verb.REQUEUE, header).header["already"] is True
    assert rig.task(batch, "a").state is TaskState.DEAD  # it was not run a third time


def test_a_cancel_that_answers_is_done_once(rig: Rig) -> None:
    batch = rig.batch("a", "b")
    worker = rig.worker()
    lease = worker.lease()
    worker.offer(credit=0)
    worker.fail(lease)
    rig.escalate("k", batch)
    rig.escalate("k2", batch, cause="plan_fault")
    id_ = rig.records()[0]["id"]
    rig.control(id_, "answered", answer="d1")
    header = {"batch": batch, "escalation": id_, "answer": "d1"}
    assert rig.user.ask(Verb.CANCEL, header).header["cancelled"] == 1
    assert [r["status"] for r in rig.records()] == ["closed", "closed"]
    assert rig.user.ask(Verb.CANCEL, header).header["already"] is True


# -- with the batch ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["complete", "cancelled"])
def test_it_is_closed_with_a_batch_that_has_come_to_another_end(rig: Rig, end: str) -> None:
    worker = rig.worker()
    batch = rig.batch("a")
    die(rig, worker)
    rig.escalate("k", batch)
    row = rig.user.ask(Verb.QUERY, {"what": "batch", "id": batch}).header
    assert (row["state"], row["escalations"]) == ("failed", 1)
    rig.user.ask(Verb.REQUEUE, {"batch": batch})  # a person's own retry
    assert rig.records()[0]["status"] == "pending"
    if end == "complete":
        worker.result(worker.lease())
    else:
        rig.user.ask(Verb.CANCEL, {"batch": batch})
        worker.result(worker.lease(), ok=False, cancelled=True, **{"class": "infra"})
    row = rig.user.ask(Verb.QUERY, {"what": "batch", "id": batch}).header
    assert (row["state"], row["escalations"]) == (end, 0)
    assert rig.records()[0]["status"] == "closed" and end in rig.records()[0]["note"]


def test_the_brain_settles_what_is_not_so_any_more(rig: Rig) -> None:
    rig.escalate("k")
    id_ = rig.records()[0]["id"]
    rig.tell(settle=[{"id": id_, "note": "worker-1 is in order again"}])
    rig.tell(settle=[{"id": id_, "note": "again"}])
    assert (rig.records()[0]["status"], rig.records()[0]["note"]) == ("closed", "worker-1 is in order again")


def test_why_of_a_batch_names_the_file_to_answer(rig: Rig) -> None:
    batch = rig.batch("a")
    die(rig)
    rig.escalate("k", batch)
    why = rig.user.ask(Verb.QUERY, {"what": "why", "id": batch}).header
    (one,) = why["escalations"]
    assert one["answer_to"] == f"brain/escalations/{one['id']}.answer.json"
    assert any(one["answer_to"] in reason for reason in why["reasons"])


def test_it_goes_with_its_batch(rig: Rig) -> None:
    worker = rig.worker()
    batch = rig.batch("a")
    die(rig, worker)
    rig.escalate("k", batch)
    assert rig.user.ask(Verb.CONTROL, {"action": "forget", "batch": batch}).header["forgotten"] == 1
    assert rig.records() == [] and not [k for k in rig.core.facts if k[0] == "escalation"]


def test_of_those_about_the_rig_the_last_are_kept(rig: Rig) -> None:
    raise_many(rig, KEPT_OVER + 3)
    rows = rig.records()
    assert len(rows) == KEPT_OVER and rows[0]["no"] == 4
    assert not rig.core.escalations.known("/0") and rig.core.escalations.known("/3")


def test_of_a_batch_that_is_answered_again_and_again_the_last_are_kept_and_its_guard_holds(rig: Rig) -> None:
    guard(rig, max_per_batch=2)
    batch = rig.batch("a")
    raise_many(rig, KEPT_OVER + 5, batch=batch)
    rows = rig.records()
    assert len(rows) == 2 + KEPT_OVER and [r["asked"] for r in rows[:3]] == [True, True, False]
    rig.escalate("one more", batch)
    assert rig.records()[-1]["status"] == "human"


# -- asking, restarting --------------------------------------------------------------------------------------


def test_many_are_told_page_by_page(rig: Rig) -> None:
    guard(rig, per_day=0)
    batch = rig.batch("a")
    big = {"error": "x" * 8000}
    for n in range(150):
        rig.escalate(
            f"k{n}", batch, cause=f"c{'abcdefghij'[n % 10]}{'abcdefghijklmno'[n // 10]}", details=big
        )
    seen, cursor = [], None
    for _ in range(10):
        page = rig.user.ask(Verb.QUERY, {"what": "escalations", "cursor": cursor}).header
        seen += [r["no"] for r in page["escalations"]]
        cursor = page["cursor"]
        if cursor is None:
            break
    assert seen == list(range(1, 151))
    assert [r["no"] for r in rig.records(id=rig.records()[4]["id"])] == [5]


def test_all_of_it_outlives_a_restart(rig: Rig, tmp_path: Path) -> None:
    batch = rig.batch("a", "b")
    rig.escalate("k", batch, task=rig.task(batch, "a").id, details={"error": "no"})
    rig.control(rig.records()[0]["id"], "answered", answer="d1", by="ann")
    before, spent = rig.records(), rig.core.escalations.spent
    store = Store(tmp_path / "db", durability="normal")
    for changes in rig.changes:
        if changes:
            store.commit(changes, rig.now, rig.wall)
    store.close()
    store = Store(tmp_path / "db", durability="normal")
    core = Core(incarnation=2, state_id=STATE_ID)
    batches, tasks, edges, facts, core.seq, core.channel_seq = store.load(rig.now, rig.wall)
    core.load(batches, tasks, edges, facts, rig.now, rig.wall)
    again = Rig(core)
    assert again.records() == before and core.escalations.spent == spent
    again.escalate("k", batch)
    assert len(again.records()) == 1
    again.wall += 61
    again.escalate("new", batch)
    assert [r["no"] for r in again.records()] == [1, 2]
    store.close()
