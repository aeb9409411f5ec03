"""The demo's sentence is counted, not claimed."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from rigbus.tools.demo_story import Story


@dataclass
class Event:
    topic: str
    id: str | None = None
    at: float = 0.0
    data: dict = field(default_factory=dict)


@pytest.fixture
def story():
    told = Story()
    for name in "abcd":
        lease(told, name, "worker-1" if name == "a" else "worker-2")
    return told


def lease(story, name, worker):
    story.take(Event("task.shell.leased", name, data={"worker": worker, "key": f"measure_{name}"}))


def done(story, name, at=0.0):
    story.take(Event("task.shell.done", name, at))


def test_the_worker_that_holds_most_is_the_busiest(story):
    assert story.busiest({"worker-1": 1, "worker-2": 2}) == "worker-2"
    assert story.busiest({"worker-1": 1}) == "worker-1"
    assert story.busiest({"worker-3": 3}) is None


def test_the_line_has_the_real_numbers(story):
    story.killed("worker-2", 42, 100.0)
    for name, at in (("b", 100.1), ("c", 100.4), ("d", 100.2)):
        story.take(Event("task.shell.retry", name, at))
        lease(story, name, "worker-1")
        done(story, name)
    done(story, "a")
    assert (
        story.kill_line({"done": 4})
        == "worker-2 killed → 3 leases back in 0.4 s → rerun → 0 lost, 0 recorded twice"
    )
    assert story.kill.rerun == {"b": "worker-1", "c": "worker-1", "d": "worker-1"}


def test_a_task_that_was_ready_before_the_kill_reached_it_is_not_counted_back(story):
    story.killed("worker-2", 42, 100.0)
    done(story, "b", 100.0)
    story.take(Event("task.shell.returned", "c", 100.2))
    assert set(story.kill.back_at) == {"c"}
    assert "1 lease back" in story.kill_line({"done": 4})


def test_a_task_without_its_result_is_lost_and_a_second_result_is_seen(story):
    done(story, "a")
    done(story, "a")
    assert story.twice == 1
    assert story.lost({"done": 3, "dead": 1}) == 1


def test_the_task_worth_a_look_is_one_that_was_run_again(story):
    story.killed("worker-2", 42, 100.0)
    done(story, "a")
    assert story.remarkable() == "a"
    story.take(Event("task.shell.retry", "c", 100.2))
    lease(story, "c", "worker-1")
    done(story, "c")
    assert story.remarkable() == "c"


def test_events_about_other_things_change_nothing(story):
    for topic in ("worker.w.joined", "batch.plan.complete", "rig.paused", "task", "odd"):
        story.take(Event(topic, "x"))
    story.take(Event("task.shell.done", None))
    assert "x" not in story.tasks


def test_without_a_kill_the_line_says_so(story):
    assert "no worker was killed" in story.kill_line({"done": 4})
