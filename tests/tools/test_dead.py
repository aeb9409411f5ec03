"""`rigbus dead`: over all batches, and what becomes of a dead task."""

from __future__ import annotations

from rigbus import Client, Task

from .conftest import plan_text


def failed_plan(say, rig, **commands):
    """A plan whose first task dies; its batch's id."""
    said = say("submit", rig.plan(plan_text(**commands)), "--wait", "--timeout", "30", "--json")
    assert said.code == 6, said.err
    return said.json["batch_id"]


def test_dead_tasks_are_listed_over_all_batches_with_what_they_died_of(say, here):
    first = failed_plan(say, here, bad="echo one; echo 'said \x1b[31m last'; exit 3", after="true")
    second = failed_plan(say, here, crashes="kill -SEGV $$")
    assert say("call", "fall", "--json").code != 0  # a call is a dead task as well
    shown = say("dead", "list", "--json").json
    assert (shown["schema"], shown["more"]) == ("rigbus.dead/1", False)
    bad, crashed, call = shown["tasks"][-3:]
    assert (bad["batch"], bad["name"], bad["class"], len(bad["attempts"])) == (first, "bad", "task", 1)
    assert "exit" in bad["error"] and bad["log_tail"][-2:] == ["one", "said \x1b[31m last"]
    assert (crashed["batch"], crashed["class"]) == (second, "crash")
    assert call["type"] == "fall" and "it fell" in call["error"]
    text = say("dead", "list", "--batch", first).out
    assert f"{first}/bad" in text and "| one" in text and "task, 1 attempt" in text and "\x1b" not in text
    assert "crashes" not in text


def test_the_last_three_attempts_are_shown_with_what_they_wrote(say, here):
    with Client(state=here.state) as bus:
        task = Task(type="shell", payload={"command": "echo this is $RIGBUS_ATTEMPT; exit 3"}, key="tries")
        task.max_attempts, task.backoff_s = 4, 0.01
        (result,) = bus.results(bus.submit([task]), timeout_s=30)
        batch = bus.query("task", id=result.id)["rows"][0]["batch"]
    (letter,) = say("dead", "list", "--batch", batch, "--json").json["tasks"]
    assert [t["attempt"] for t in letter["log_tails"]] == [2, 3, 4]
    assert [t["lines"] for t in letter["log_tails"]] == [[f"this is {n}"] for n in (2, 3, 4)]
    assert letter["log_tail"] == ["this is 4"]
    text = say("dead", "list", "--batch", batch).out
    assert "attempt 2:\n    | this is 2" in text and "attempt 4:\n    | this is 4" in text


def test_retry_runs_them_again_with_what_was_skipped(say, here):
    flag = here.folder / "flag-dead"
    batch = failed_plan(say, here, bad=f"test -e {flag}", after="true")
    flag.touch()
    said = say("dead", "retry", "--batch", batch)
    assert said.code == 0 and "1 task runs again; 1 that were skipped" in said.out
    assert say("watch", batch).code == 0
    nothing = say("dead", "retry", f"{batch}/bad")
    assert nothing.code == 1 and "none of these ended badly" in nothing.err


def test_drop_forgets_them_and_says_what_stays(say, here):
    batch = failed_plan(say, here, bad="false", after="true")
    said = say("dead", "drop", f"{batch}/bad", "--json")
    assert said.code == 0 and said.json == {
        "schema": "rigbus.dead.drop/1",
        "forgotten": 2,
        "kept": [],
        "kept_total": 0,
    }
    assert say("task", "show", f"{batch}/bad").code == 3
    assert say("dead", "drop", f"{batch}/bad").code == 3
    good = say("submit", here.plan(plan_text(fine="true")), "--wait", "--json").json["batch_id"]
    kept = say("dead", "drop", f"{good}/fine")
    assert kept.code == 1 and "fine is done: only what ended badly can be dropped" in kept.err


def test_everything_dead_can_be_dropped_at_once(say, here):
    failed_plan(say, here, bad="false")
    assert say("dead", "drop", "--all").code == 0
    assert say("dead", "list").out == "nothing is dead\n"
    assert say("dead", "drop", "--all").code == 0


def test_which_ones_are_meant_is_said_exactly_once(say, here):
    for words in ([], ["--all", "--batch", "x"], ["abcdef", "--all"]):
        assert say("dead", "drop", *words).code == 2
