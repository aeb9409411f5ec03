"""A worker that a person wants ended hard: its tree first, then the news, then it starts again."""

from __future__ import annotations

from rigbus.agents.supervisor.core import ChildSpec, Gone, Say, Stage, Start, SupervisorCore, Sweep

SPECS = [
    ChildSpec("broker", ("broker",), Stage.BROKER),
    ChildSpec("worker-1", ("worker",), Stage.WORKER, watched=True, leaf=False),
]


def running() -> SupervisorCore:
    core = SupervisorCore(SPECS, lease_s=5.0)
    core.begin()
    core.started("broker", 10, 0.0)
    core.started("worker-1", 11, 0.0)
    return core


def test_it_is_swept_reported_and_started_again() -> None:
    core = running()
    say, sweep = core.kill("worker-1", 11, "asked for")
    assert isinstance(say, Say)
    assert sweep == Sweep("worker-1")
    assert core.exited("worker-1", None, 9, "", 1.0) == []
    gone, *_ = core.swept("worker-1", 1.0)
    assert isinstance(gone, Gone)
    assert "asked for" in gone.why
    assert Start("worker-1") in core.tick(60.0)


def test_another_process_of_the_name_and_other_children_are_left_alone() -> None:
    core = running()
    assert core.kill("worker-1", 12, "asked for") == []
    assert core.kill("broker", 10, "asked for") == []
    assert core.kill("nobody", 1, "asked for") == []


def test_it_is_not_killed_twice() -> None:
    core = running()
    core.kill("worker-1", 11, "asked for")
    assert core.kill("worker-1", 11, "asked for") == []
