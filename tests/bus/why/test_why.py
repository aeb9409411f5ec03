"""`why`, reason by reason: what is said, which of the scheduler's tests fails, and the command that changes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from harness import STATE_ID, Harness, error_of, spec

from rigbus.bus.tags import tags_fix
from rigbus.bus.wire import Verb, pack

Answer = dict[str, Any]
CHECKED = (
    *("type", "class", "pool", "needs", "view", "VRAM", "not quarantined"),
    *("rig not paused", "worker not paused", "not draining", "not held"),
)


class Scene:
    """A rig with one worker `w1` of one slot, a client, and no brain yet."""

    def __init__(self) -> None:
        self.rig = Harness()
        self.worker = self.rig.worker(name="w1", types=["noop", "shell"], classes=["cpu"], state_id=STATE_ID)
        self.client = self.rig.client()

    def one(self, **fields: Any) -> str:
        """Submit one task: its id."""
        return self.client.tasks(spec("a", **fields))[0].id

    def busy(self) -> None:
        """The worker runs something of its own batch."""
        self.client.tasks(spec("before"), key="before")
        self.worker.started(self.worker.lease())

    def teach(self, seconds: float) -> None:
        self.client.tasks(spec("x"), key="teach")
        self.worker.result(self.worker.lease(), duration_s=seconds)

    def why(self, ref: str | None) -> Answer:
        return self.rig.client().ask(Verb.QUERY, {"what": "why", "id": ref}).header


@pytest.fixture
def scene() -> Scene:
    return Scene()


def failing(answer: Answer) -> list[tuple[str, str]]:
    """(name, fix) of the tests that fail."""
    return [(p["name"], p["fix"]) for p in answer["predicates"] if not p["ok"]]


# ---------------------------------------------------------------- each reason of a task


def dependency(s: Scene) -> str:
    (_, _, c) = s.client.tasks(spec("a"), spec("b", "a"), spec("c", "b"))
    return c.id


def foreach(s: Scene) -> str:
    brain = s.rig.brain()
    batch = s.client.submit(kind="plan", plan={"name": "p"}).header["batch"]
    items = [spec(f"measure_{i}", feeds=["measure"]) for i in range(40)]
    tasks = [spec("measure", join=True), *items, spec("aggregate", "measure"), spec("report", "aggregate")]
    brain.ask(Verb.BRAIN, {"epoch": 1, "batch": batch, "tasks": tasks, "close": [batch]})
    for _ in range(12):
        s.worker.result(s.worker.lease())
    return s.rig.core.batch_ids[batch].keys["report"].id


def held_foreach(s: Scene) -> str:
    return s.one(join=True, hold=True)


def back_off(s: Scene) -> str:
    ref = s.one(policy={"backoff_s": 40.0})
    s.worker.result(s.worker.lease(), ok=False, error="exit 3: disk full", **{"class": "task"})
    return ref


def returned(s: Scene) -> str:
    ref = s.one()
    header = {"tokens": [s.worker.lease()["token"]], "reason": "share unavailable: gone", "not_before_s": 5.0}
    s.worker.ask(Verb.RETURN, header)
    return ref


def staged_away(s: Scene) -> str:
    ref = s.one()
    reason = "share unavailable: [Errno 2] No such file or directory: '/state/staged/abc'"
    s.worker.ask(Verb.RETURN, {"tokens": [s.worker.lease()["token"]], "reason": reason, "not_before_s": 5.0})
    return ref


def rig_paused(s: Scene) -> str:
    s.client.ask(Verb.CONTROL, {"action": "pause", "worker": "all"})
    return s.one()


def worker_paused(s: Scene) -> str:
    s.client.ask(Verb.CONTROL, {"action": "pause", "worker": "w1"})
    return s.one()


def draining(s: Scene) -> str:
    s.client.ask(Verb.DRAIN, {"worker": "w1"})
    return s.one()


def suspect(s: Scene) -> str:
    s.rig.wait(4.0, (s.client, []))
    return s.one()


def cut_off(s: Scene) -> str:
    core = s.rig.core
    core.disconnected(core.sessions[s.worker.id], [])
    return s.one()


def no_worker(s: Scene) -> str:
    s.worker.say(Verb.BYE)
    return s.one()


def all_busy(s: Scene) -> str:
    s.busy()
    return s.one()


def two_busy(s: Scene) -> str:
    s.busy()
    s.rig.worker(name="w2", types=["noop"])
    s.client.tasks(spec("other"), key="other")
    return s.one()


def review(s: Scene) -> str:
    brain = s.rig.brain()
    ref = s.one(review=True)
    s.worker.result(s.worker.lease())
    s.rig.wait(100.0, (s.worker, []), (brain, []))
    return ref


def escalated(s: Scene) -> str:
    ref = s.one(escalate=True, policy={"task": 1})
    s.worker.result(s.worker.lease(), ok=False, error="exit 1: no", **{"class": "task"})
    return ref


def ending(s: Scene) -> str:
    ref = s.one()
    s.worker.started(s.worker.lease())
    s.client.ask(Verb.CANCEL, {"ids": [ref]})
    return ref


def running(s: Scene) -> str:
    s.teach(8.0)
    ref = s.one()
    leases = s.worker.leases()
    s.worker.started(*leases)
    s.rig.wait(3.0, (s.worker, leases))
    return ref


def running_long(s: Scene) -> str:
    s.teach(2.0)
    ref = s.one()
    leases = s.worker.leases()
    s.worker.started(*leases)
    s.rig.wait(9.0, (s.worker, leases))
    return ref


def silent_holder(s: Scene) -> str:
    ref = s.one()
    s.worker.started(s.worker.lease())
    s.rig.wait(4.0, (s.client, []))
    return ref


REASONS: dict[str, tuple[Callable[[Scene], str], str, list[tuple[str, str]]]] = {
    "dependencies, through the chain": (
        dependency,
        "waits for `b` (waiting), which waits for `a` (leased)",
        [("dependencies met", "rigbus why {batch}/a")],
    ),
    "dependencies, through a foreach": (
        foreach,
        "waits for `aggregate` (waiting), which waits for `measure` (12 of 40 done)",
        [("dependencies met", "rigbus why {batch}/measure_13")],
    ),
    "hold of a foreach not expanded yet": (
        held_foreach,
        "waits for the brain to expand its foreach; no brain is attached: start `rigbus brain`",
        [("foreach expanded", "rigbus brain")],
    ),
    "not_before back-off": (
        back_off,
        # 40 s and what a hash of the task adds
        "waits 45 s before its next attempt (back-off; attempt 1 failed: exit 3: disk full)",
        [("back-off over", "")],
    ),
    "share unavailable": (
        returned,
        "it was handed back: share unavailable: gone; waits 5.0 s before its next attempt (back-off)",
        [("back-off over", "mount the share again; it goes on by itself")],
    ),
    "the plan's own copy is missing": (
        staged_away,
        "the rig's own copy of its plan is missing: '/state/staged/abc'; waits 5.0 s before its next attempt (back-off)",
        [("back-off over", "rigbus cancel {batch}, then submit the plan again")],
    ),
    "pause of the rig": (rig_paused, "the rig is paused", [("rig not paused", "rigbus resume all")]),
    "pause of a worker": (
        worker_paused,
        "no worker can take it: w1 is paused",
        [("worker not paused", "rigbus resume w1")],
    ),
    "a draining worker": (
        draining,
        "no worker can take it: w1 is draining",
        [("not draining", "rigbus resume w1")],
    ),
    "a suspect worker": (
        suspect,
        "no worker can take it: w1 is silent",
        [("heard of lately", "rigbus status; the supervisor restarts w1 if it is dead")],
    ),
    "a worker whose connection is gone": (
        cut_off,
        "no worker can take it: w1 is cut off",
        [("connected", "rigbus status; the supervisor restarts w1 if it is dead")],
    ),
    "no worker at all": (
        no_worker,
        "no worker is attached: rigbus up, or rigbus worker",
        [("workers attached", "rigbus up, or rigbus worker")],
    ),
    "no worker of the type": (
        lambda s: s.one(type="rare"),
        "no worker runs rare: w1 runs noop, shell",
        [("type", "start an agent with a handler for 'rare'")],
    ),
    "no worker of the class": (
        lambda s: s.one(**{"class": "llm"}),
        "no worker offers llm: w1 offers cpu",
        [("class", "rigbus up --model FILE.gguf (without llama.cpp first pip install 'rigbus[llm]')")],
    ),
    "no worker of the pool": (
        lambda s: s.one(pool="night"),
        "no worker is in night: w1 is in no pool",
        [("pool", "rigbus worker --pool night")],
    ),
    "no worker with the needs": (
        lambda s: s.one(needs=["cuda", "big"]),
        "no worker has big, cuda: w1 has no capabilities",
        [("needs", "rigbus worker --need big --need cuda")],
    ),
    "no worker with the model": (
        lambda s: s.one(needs=["model:qwen", "quiet"]),
        "no worker has model:qwen, quiet: w1 has no capabilities",
        [("needs", f"rigbus worker --need quiet; {tags_fix(['model:qwen'])}")],
    ),
    "no worker with the view": (
        lambda s: s.one(view="e" * 32),
        "no worker sees state folder eeeeeeee: w1 sees state folder 55555555",
        [("view", "run a worker on the rig's own machine (plan tasks need its state folder)")],
    ),
    "the only worker is busy": (
        all_busy,
        "w1, the only worker that can run it, is busy; it is the next",
        [("free credit", "wait, or start another worker that runs it")],
    ),
    "all are busy": (
        two_busy,
        "all 2 workers that can run it are busy; it is the next",
        [("free credit", "wait, or start another worker that runs it")],
    ),
    "a verdict on a result": (review, "waits for the brain's verdict", [("verdict", "")]),
    "a verdict on a failure, without a brain": (
        escalated,
        "waits for the brain's verdict; no brain is attached: start `rigbus brain`",
        [("a brain is attached", "rigbus brain"), ("verdict", "")],
    ),
    "cancel requested": (
        ending,
        "runs on w1, attempt 1, for 0.0 s; its end was asked for; it follows when its processes are dead",
        [("no end asked for", "")],
    ),
    "it runs": (running, "runs on w1, attempt 1, for 3.0 s, it usually takes 8.0 s", []),
    "it runs for longer than usual": (
        running_long,
        "runs on w1, attempt 1, for 9.0 s, it usually takes 2.0 s: longer than usual",
        [],
    ),
    "its worker is silent": (
        silent_holder,
        "runs on w1, attempt 1, for 4.0 s",
        [("heard of lately", "rigbus status")],
    ),
}


@pytest.mark.parametrize("reason", REASONS)
def test_why_says_the_reason_the_failing_test_and_its_fix(scene: Scene, reason: str) -> None:
    build, summary, tests = REASONS[reason]
    ref = build(scene)
    answer = scene.why(ref)
    batch = scene.rig.core.ids[ref].batch.id
    assert answer["summary"] == summary
    assert failing(answer) == [(name, fix.replace("{batch}", batch)) for name, fix in tests]
    assert {"kind", "id", "name", "state", "reasons", "position", "eta_s", "eta"} <= set(answer)
    assert all(set(p) == {"name", "ok", "value", "wanted", "fix"} for p in answer["predicates"])


def test_the_tests_of_a_ready_task_come_in_the_schedulers_order(scene: Scene) -> None:
    answer = scene.why(all_busy(scene))
    names = [p["name"] for p in answer["predicates"]]
    assert names == [
        "dependencies met",
        "back-off over",
        *CHECKED,
        "connected",
        "heard of lately",
        "free VRAM",
        "free credit",
    ]
    assert [p["name"] for p in answer["workers"][0]["predicates"]] == names[2:]


def test_the_tests_narrow_down_the_workers_one_after_the_other(scene: Scene) -> None:
    scene.rig.worker(name="w2", types=["noop"], pools=["p"])
    scene.rig.worker(name="w3", types=["other"], pools=["p"])
    scene.client.ask(Verb.CONTROL, {"action": "pause", "worker": "w2"})
    answer = scene.why(scene.one(pool="p"))
    values = {p["name"]: (p["ok"], p["value"]) for p in answer["predicates"]}
    assert values["type"] == (True, "2 of 3 workers")
    assert values["pool"] == (True, "1 of 2 workers")
    assert values["worker not paused"] == (False, "w2 is paused")


def test_a_verdicts_deadline_is_told(scene: Scene) -> None:
    assert scene.why(review(scene))["reasons"][1] == "without one it is accepted in 8 min"


def test_attempts_used_deadline_and_queue_timeout_are_told(scene: Scene) -> None:
    scene.busy()
    ref = scene.one(deadline_s=90.0, queue_timeout_s=30.0)
    reasons = " | ".join(scene.why(ref)["reasons"])
    assert "it expires in 30 s if nobody takes it by then" in reasons
    assert "its deadline is in 90 s" in reasons


def test_attempts_used_are_told(scene: Scene) -> None:
    assert "1 of 3 attempts failed (task)" in scene.why(back_off(scene))["reasons"]


def test_a_deadline_that_the_estimate_does_not_meet_is_said(scene: Scene) -> None:
    scene.teach(100.0)
    scene.busy()
    reasons = scene.why(scene.one(deadline_s=50.0))["reasons"]
    assert "its deadline is in 50 s: it will hardly be done by then" in reasons


def test_the_position_counts_batches_in_turn_and_the_start_follows(scene: Scene) -> None:
    scene.teach(10.0)
    scene.busy()
    mine = scene.client.tasks(*[spec(f"a{i}") for i in range(3)])
    scene.client.tasks(*[spec(f"b{i}") for i in range(50)])
    answer = scene.why(mine[2].id)
    assert (answer["position"], answer["eta"]["start_s"]) == (5, 50.0)
    assert answer["summary"].endswith("4 tasks before it, starts in 50 s")
    assert answer["eta_s"] == 60.0


# ---------------------------------------------------------------- batches


def test_a_batch_behind_busy_workers_says_so_with_position_and_eta(scene: Scene) -> None:
    scene.teach(10.0)
    scene.busy()
    tasks = scene.client.tasks(*[spec(f"a{i}") for i in range(3)])
    answer = scene.why(tasks[0].batch.id)
    assert answer["reasons"] == [
        "3 `noop` ready: w1, the only worker that can run it, is busy; it is the next, starts in 10 s"
    ]
    assert (answer["position"], answer["eta_s"]) == (1, 40.0)
    assert answer["summary"] == "0 of 3 tasks ended, done in 40 s"


def test_a_batch_is_told_by_groups_with_what_waits_last(scene: Scene) -> None:
    task = scene.rig.core.ids[foreach(scene)]
    reasons = scene.why(task.batch.id)["reasons"]
    assert [r.partition(":")[0] for r in reasons[:4]] == [
        "27 `measure` ready",
        "`measure_12` leased",
        "`aggregate` waiting",
        "`report` waiting",
    ]
    assert "no estimate: no run of `aggregate`, `report` has been timed yet" in reasons


def test_a_plan_that_nobody_has_read_waits_for_the_brain(scene: Scene) -> None:
    batch = scene.client.submit(kind="plan", plan={"name": "p"}).header["batch"]
    answer = scene.why(batch)
    assert answer["summary"] == (
        "the brain has not declared its tasks yet; no brain is attached: start `rigbus brain`"
    )
    assert failing(answer) == [("tasks declared", "rigbus brain")]


def test_an_ended_batch_names_what_failed(scene: Scene) -> None:
    (task,) = scene.client.tasks(spec("a", policy={"task": 1}))
    scene.worker.fail(scene.worker.lease())
    answer = scene.why(task.batch.id)
    assert answer["summary"] == "it has ended: failed"
    assert answer["failed"] == [{"id": task.id, "name": "a", "state": "dead", "error": "no"}]


# ---------------------------------------------------------------- workers


def idle_empty(s: Scene) -> None: ...


def idle_unfit(s: Scene) -> None:
    s.client.tasks(*[spec(f"a{i}", type="rare") for i in range(3)], spec("b", **{"class": "llm"}))


def paused(s: Scene) -> None:
    s.client.ask(Verb.CONTROL, {"action": "pause", "worker": "w1"})


def drained(s: Scene) -> None:
    s.client.ask(Verb.DRAIN, {"worker": "w1"})


def fell_silent(s: Scene) -> None:
    s.rig.wait(4.0, (s.client, []))


def no_credit(s: Scene) -> None:
    s.worker.offer(credit=0, types=["noop"])
    s.client.tasks(spec("a"))


def lent_slot(s: Scene) -> None:
    s.busy()
    s.worker.offer(credit=2, types=["noop"], lent=1)


WORKERS: dict[str, tuple[Callable[[Scene], None], str, str]] = {
    "nothing is ready": (idle_empty, "idle: nothing is ready", "no ready task"),
    "what is ready does not fit": (
        idle_unfit,
        "idle: 0 of 4 ready tasks fit, 3 want a worker that runs rare",
        "3 want a worker that runs rare, 1 wants a worker that offers llm",
    ),
    "paused": (paused, "paused, gets no new work: rigbus resume w1", "it is paused"),
    "draining": (drained, "draining, gets no new work: rigbus resume w1", "it is draining"),
    "suspect": (fell_silent, "suspect, gets no new work", "it is suspect"),
    "credit 0": (no_credit, "idle: it asks for no work", "holds 0 leases"),
    "slots lent": (lent_slot, "it is busy, holds 1 of 2 leases", "1 slot is lent"),
}


@pytest.mark.parametrize("reason", WORKERS)
def test_why_of_a_worker_says_what_keeps_it(scene: Scene, reason: str) -> None:
    build, summary, said = WORKERS[reason]
    build(scene)
    answer = scene.why("w1")
    assert answer["kind"] == "worker"
    assert answer["summary"].startswith(summary)
    assert said in " | ".join(answer["reasons"])


def test_a_busy_worker_tells_what_it_runs_and_how_much_is_left(scene: Scene) -> None:
    running(scene)
    assert "runs `a` for 3.0 s, about 5.0 s left" in scene.why("w1")["reasons"]


# ---------------------------------------------------------------- the rig


def test_a_rig_in_which_all_moves_says_so(scene: Scene) -> None:
    scene.busy()
    for ref in (None, "", "all"):
        answer = scene.why(ref)
        assert (answer["kind"], answer["stuck"]) == ("rig", [])
        assert answer["summary"] == "1 live batch, 1 task with workers; nothing is stuck"


def test_what_nobody_can_run_is_named_with_what_would_run_it(scene: Scene) -> None:
    scene.client.tasks(*[spec(f"a{i}", type="shell", **{"class": "llm"}) for i in range(3)], key="b")
    answer = scene.why(None)
    (test,) = [p for p in answer["predicates"] if not p["ok"]]
    assert test["name"] == "somebody runs shell (class llm)"
    assert test["value"] == "3 ready tasks wait for a worker that offers llm"
    assert test["fix"] == "rigbus up --model FILE.gguf (without llama.cpp first pip install 'rigbus[llm]')"
    (stuck,) = answer["stuck"]
    assert (stuck["kind"], stuck["fix"]) == ("batch", test["fix"])


def test_paused_workers_handed_back_tasks_and_verdicts_are_listed(scene: Scene) -> None:
    scene.rig.worker(name="w2")
    scene.client.ask(Verb.CONTROL, {"action": "pause", "worker": "w2"})
    returned(scene)
    escalated(scene)
    scene.busy()
    stuck = {(s["kind"], s["summary"].partition(":")[0]) for s in scene.why("all")["stuck"]}
    assert ("worker", "paused, gets no new work") in stuck
    assert ("batch", "`a` ready") in stuck and ("batch", "`a` failed") in stuck


def test_a_paused_rig_and_an_absent_brain_are_listed(scene: Scene) -> None:
    scene.client.submit(kind="plan", plan={"name": "p"})
    scene.client.ask(Verb.CONTROL, {"action": "pause", "worker": "all"})
    names = [p["name"] for p in scene.why(None)["predicates"] if not p["ok"]]
    assert names == ["rig not paused", "a brain is attached"]


def test_an_unknown_id_is_not_found(scene: Scene) -> None:
    for ref in ("nobody", "123456", 7):
        assert error_of(scene.client.ask(Verb.QUERY, {"what": "why", "id": ref})) == "not_found"


def test_asking_why_changes_nothing(scene: Scene) -> None:
    refs: list[Any] = [dependency(scene), foreach(Scene()) and None, "w1", None]
    before = scene.rig.core.seq
    for ref in refs:
        scene.why(ref)
    assert scene.rig.core.seq == before
    assert not any(bool(c.tasks or c.facts) for c in scene.rig.changes[-len(refs) :])


# ---------------------------------------------------------------- bounds


def test_kinds_of_tasks_that_nobody_runs_are_named_up_to_a_few(scene: Scene) -> None:
    for n in range(3):
        specs = [spec(f"t{i}", pool=f"p{n}-{i}") for i in range(500)]
        scene.client.tasks(*specs, key=f"kinds{n}")
    scene.client.tasks(*[spec(f"t{i}", pool="many") for i in range(3)], key="most")
    answer = scene.why("all")
    assert len(pack(answer)) < 16_000
    bad = [p for p in answer["predicates"] if not p["ok"]]
    assert bad[0]["name"] == "somebody runs noop (pool many)"
    assert bad[-1]["value"].startswith("1493 more kinds of tasks wait")
    assert "of 1503 ready tasks 0 fit it: 3 want a worker that is in many" in scene.why("w1")["reasons"][-1]


def test_of_many_batches_the_first_are_looked_at_and_the_others_counted(scene: Scene) -> None:
    for n in range(60):
        scene.client.tasks(*[spec(f"t{i}") for i in range(1000)], key=f"b{n}")
    answer = scene.why("all")
    looked = sum(s["kind"] == "batch" for s in answer["stuck"])
    assert 3 <= looked < 20
    # with the first one, of which a task is with the worker
    assert answer["stuck"][-1]["summary"] == f"{looked + 1} of 60 live batches looked at: rigbus why BATCH"


# ---------------------------------------------------------------- models


class Models:
    """A rig with a model worker, and a brain that has said what holds up its models."""

    def __init__(self, *rows: dict[str, Any], seat: bool = True) -> None:
        self.scene = Scene()
        if seat:
            self.scene.rig.worker(name="model-1", types=[], classes=[], info={"seat": True})
        self.brain = self.scene.rig.brain()
        self.rev = 0
        self.say(*rows)

    def say(self, *rows: dict[str, Any]) -> None:
        value = {"why": "1 model workers, all cold", "held": list(rows)}
        fact = {"scope": "placement", "key": "", "rev": self.rev, "value": value}
        answer = self.brain.ask(Verb.BRAIN, {"epoch": self.scene.rig.core.epoch, "facts": [fact]})
        assert answer.verb is Verb.OK, answer.header
        self.rev = self.scene.rig.core.facts["placement", ""].rev

    def row(self, **of: Any) -> dict[str, Any]:
        wall = self.scene.rig.core.wall
        workers = [["model-1", "holds small, which may give way (min_hot_s)", wall + 42.0]]
        more = {"model": "large", "text": "", "fix": "rigbus load large", "until_at": 0.0, "workers": workers}
        return {**more, **of}


WANTS_LARGE: dict[str, Any] = {"type": "generate", "class": "llm", "needs": ["model:large"]}


def test_work_for_a_model_says_of_each_model_worker_why_it_does_not_take_it() -> None:
    rig = Models()
    rig.say(rig.row(**WANTS_LARGE))
    ref = rig.scene.one(**WANTS_LARGE)
    answer = rig.scene.why(ref)
    assert "model-1 holds small, which may give way (min_hot_s) in 42 s" in answer["summary"]
    assert {fix for _, fix in failing(answer)} == {"rigbus load large"}
    (test,) = [p for p in rig.scene.why(None)["predicates"] if not p["ok"]]
    assert test["fix"] == "rigbus load large"
    rig.scene.rig.wait(100.0, (rig.scene.client, []), (rig.scene.worker, []), (rig.brain, []))
    assert "(min_hot_s)" in rig.scene.why(ref)["summary"] and " in " not in rig.scene.why(ref)["summary"]


def test_other_work_is_not_told_what_concerns_another_model() -> None:
    rig = Models()
    rig.say(rig.row(**WANTS_LARGE))
    answer = rig.scene.why(rig.scene.one(type="generate", **{"class": "llm"}, needs=["model:small"]))
    assert "min_hot_s" not in answer["summary"] and "all cold" in answer["summary"]
    assert {fix for _, fix in failing(answer)} == {"rigbus load small"}, "llama.cpp is there"


def test_without_model_workers_the_rig_is_told_how_to_get_one() -> None:
    rig = Models(seat=False)
    answer = rig.scene.why(rig.scene.one(type="generate", **{"class": "llm"}))
    assert "rigbus up --model FILE.gguf" in failing(answer)[0][1]


def test_an_ask_for_a_model_says_what_holds_it_up() -> None:
    rig = Models()
    ref = rig.scene.one(type="load_llm", **{"class": "meta"})
    pinned = [["model-1", "holds big, which is pinned", 0.0]]
    rig.say(rig.row(ask=ref, workers=pinned, fix="rigbus unload --worker model-1"))
    answer = rig.scene.why(ref)
    assert answer["summary"] == "waits for its model: model-1 holds big, which is pinned"
    assert failing(answer)[-1] == ("placed", "rigbus unload --worker model-1")


def test_an_ask_of_a_plan_is_told_what_it_waits_for_before_its_model() -> None:
    rig = Models()
    (_, ask) = rig.scene.client.tasks(spec("a"), spec("b", "a", type="load_llm", **{"class": "meta"}))
    answer = rig.scene.why(ask.id)
    assert answer["summary"] == "waits for `a` (leased)"
    assert not any("its model" in reason for reason in answer["reasons"])


@pytest.mark.parametrize("odd", [None, "x", 7, ["x"], {"ask": 3}, [{"ask": None}]])
def test_a_fact_of_another_shape_hurts_nothing(odd: Any) -> None:
    rig = Models()
    fact = {"scope": "placement", "key": "", "rev": rig.rev, "value": {"why": "w", "held": odd}}
    rig.brain.ask(Verb.BRAIN, {"epoch": rig.scene.rig.core.epoch, "facts": [fact]})
    assert "(w)" in rig.scene.why(rig.scene.one(**WANTS_LARGE))["summary"]
