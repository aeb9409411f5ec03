"""When the rig's processes start, end and start again."""

from __future__ import annotations

import pytest

from rigbus.agents.supervisor.children import rig_specs
from rigbus.agents.supervisor.core import (
    BACKOFF_MAX_S,
    DRAIN_S,
    EXIT_AGAIN,
    EXIT_NO_ROOM,
    EXIT_REFUSED,
    FAST_S,
    NO_ROOM_MAX_S,
    ChildSpec,
    Finish,
    Gone,
    Phase,
    Say,
    Stage,
    Start,
    SupervisorCore,
    Sweep,
    Terminate,
    missing,
)
from rigbus.agents.supervisor.obituaries import Obituaries

SPECS = [
    ChildSpec("broker", ("broker",), Stage.BROKER, watched=True, silent_s=10.0),
    ChildSpec("brain", ("brain",), Stage.BRAIN, watched=True, silent_s=30.0),
    ChildSpec("bridge", ("bridge",), Stage.BRIDGE, watched=True, silent_s=30.0),
    ChildSpec("guard", ("guard",), Stage.GUARD, leaf=False),
    ChildSpec("worker-1", ("worker",), Stage.WORKER, watched=True, leaf=False),
    ChildSpec("worker-2", ("worker",), Stage.WORKER, watched=True, leaf=False),
]


def kinds(actions, kind):
    return [a for a in actions if isinstance(a, kind)]


def names(actions, kind):
    return [a.name for a in kinds(actions, kind)]


def text(actions):
    return "\n".join(a.text for a in kinds(actions, Say))


@pytest.fixture
def core():
    made = SupervisorCore(SPECS, lease_s=5.0)
    assert names(made.begin(), Start) == [s.name for s in SPECS]
    for pid, spec in enumerate(SPECS, start=100):
        made.started(spec.name, pid, 0.0)
    return made


def die(core, name, now, *, code=None, signal=9):
    """The process ends and its tree is swept: the actions that follow."""
    assert core.exited(name, code, signal if code is None else None, "", now) == [Sweep(name)]
    return core.swept(name, now)


def test_a_dead_child_is_swept_before_its_leases_end(core):
    first = core.exited("worker-1", None, 9, "", 1.0)
    assert first == [Sweep("worker-1")]
    then = core.swept("worker-1", 1.2)
    assert kinds(then, Gone) == [Gone("worker-1", "was ended by signal 9")]
    assert core.tick(1.3) == []
    assert names(core.tick(1.41), Start) == ["worker-1"]


def test_a_line_says_what_happened_and_what_happens_next(core):
    said = text(die(core, "worker-1", 1.0))
    assert "worker-1 (pid 104) was ended by signal 9" in said
    assert "starts again in 0.2 s" in said


def test_the_last_line_of_its_log_is_told_when_a_child_fails(core):
    core.exited("brain", 1, None, "KeyError: 'x'", 1.0)
    assert "exit code 1 (KeyError: 'x')" in text(core.swept("brain", 1.0))


def test_the_pause_doubles_up_to_a_bound_and_a_minute_of_health_forgets_it(core):
    core.ready = True
    now, pauses = 0.0, []
    for _ in range(10):
        die(core, "brain", now)
        pauses.append(core.children["brain"].pause_s)
        now = core.next_at()
        assert names(core.tick(now), Start) == ["brain"]
        core.started("brain", 200, now)
    assert pauses[:4] == [0.2, 0.4, 0.8, 1.6]
    assert pauses[-1] == BACKOFF_MAX_S
    die(core, "brain", now + 61)
    assert core.children["brain"].pause_s == 0.2


def test_a_child_that_is_killed_again_and_again_is_away_for_a_tenth_of_the_time(core):
    core.ready = True
    now, away_s = 0.0, 0.0
    for _ in range(100):
        now += 5.0
        die(core, "broker", now)
        now = core.next_at()
        away_s += core.children["broker"].pause_s
        core.tick(now)
        core.started("broker", 200, now)
    assert core.children["broker"].pause_s <= 0.5
    assert away_s <= now / 10


def test_exit_75_asks_for_a_start_at_once(core):
    assert names(die(core, "worker-1", 10.0, code=EXIT_AGAIN), Start) == ["worker-1"]


def test_a_child_that_asks_for_a_start_again_and_again_is_paused(core):
    """Within a second of its start it is no request but a fault."""
    assert names(die(core, "worker-1", 0.5, code=EXIT_AGAIN), Start) == []
    assert core.children["worker-1"].phase is Phase.WAITING


def test_a_child_that_the_system_refuses_is_tried_again(core):
    die(core, "worker-1", 0.0)
    core.tick(0.2)
    said = core.not_started("worker-1", "too many open files", 0.2)
    assert "too many open files" in text(said)
    assert core.children["worker-1"].phase is Phase.WAITING


def test_a_silent_worker_is_killed_and_named(core):
    core.beat("worker-1", 1.0)
    core.beat("worker-2", 1.0)
    for at in (2.0, 3.0, 4.0, 5.0):
        core.beat("worker-2", at)
        assert core.tick(at) == []
    actions = [*core.tick(5.5), *core.tick(6.0)]
    assert names(actions, Sweep) == ["worker-1"]
    assert "worker-1" in text(actions)
    assert core.exited("worker-1", None, 9, "", 6.1) == []
    assert "did not answer" in kinds(core.swept("worker-1", 6.1), Gone)[0].why


def test_a_worker_that_is_still_starting_is_not_silent(core):
    for at in range(60):
        assert core.tick(float(at)) == []


@pytest.mark.parametrize(("lease_s", "silent_s"), [(0.3, 2.0), (1.0, 2.0), (5.0, 5.0)])
def test_the_patience_with_a_worker_follows_the_lease_but_not_below_what_a_busy_machine_needs(
    lease_s, silent_s
):
    core = SupervisorCore(SPECS, lease_s=lease_s)
    core.begin()
    core.started("worker-1", 100, 0.0)
    core.beat("worker-1", 1.0)
    core.tick(1.0 + silent_s / 2)
    assert core.next_at() == 1.0 + silent_s
    assert core.silent(1.0 + silent_s - 0.01) == []
    assert core.tick(1.0 + silent_s - 0.01) == []
    assert core.silent(1.0 + silent_s) == ["worker-1"]
    assert names(core.tick(1.0 + silent_s), Sweep) == ["worker-1"]


@pytest.mark.parametrize("name", ["broker", "brain", "bridge"])
def test_a_hung_service_is_killed_and_started_again(core, name):
    core.beat(name, 1.0)
    actions = []
    for at in range(2, 60):
        actions += core.tick(float(at))
        if actions:
            break
    assert names(actions, Sweep) == [name]
    assert at == 1.0 + next(s.silent_s for s in SPECS if s.name == name)
    assert "does not answer" in text(actions)
    core.exited(name, None, 9, "", at)
    gone = kinds(core.swept(name, at), Gone)[0]
    assert "did not answer" in gone.why and "handler" not in gone.why
    assert names(core.tick(at + 0.2), Start) == [name]


def test_a_beat_that_came_late_but_came_saves_its_child(core):
    core.beat("worker-1", 1.0)
    core.tick(4.0)
    assert core.silent(6.0) == ["worker-1"]
    core.beat("worker-1", 6.0)
    assert core.silent(6.0) == [] and core.tick(6.0) == []


def test_the_services_of_a_rig_are_watched_too():
    watched = {spec.name for spec in rig_specs([None]) if spec.watched}
    assert watched == {"broker", "brain", "bridge", "brain-worker", "worker-1"}


def test_a_stall_of_our_own_is_not_held_against_the_workers(core):
    core.beat("worker-1", 1.0)
    core.tick(1.1)
    assert core.tick(100.0) == []
    assert core.tick(100.9) == []


def test_a_stop_goes_from_the_workers_to_the_broker_and_the_guard_is_last(core):
    assert names(core.stop(1.0), Terminate) == ["worker-1", "worker-2"]
    assert names(die(core, "worker-1", 1.1, code=0), Terminate) == []
    assert names(die(core, "worker-2", 1.2, code=0), Terminate) == ["brain"]
    assert names(die(core, "brain", 1.3, code=0), Terminate) == ["bridge"]
    assert names(die(core, "bridge", 1.4, code=0), Terminate) == ["broker"]
    assert names(die(core, "broker", 1.5, code=0), Terminate) == ["guard"]
    assert kinds(die(core, "guard", 1.6, code=0), Finish) == [Finish(0)]


def test_a_stop_kills_what_does_not_end(core):
    core.stop(1.0)
    assert core.tick(1.0 + DRAIN_S - 0.1) == []
    late = [*core.tick(1.0 + DRAIN_S - 0.05), *core.tick(1.0 + DRAIN_S)]
    assert names(late, Sweep) == ["worker-1", "worker-2"]


def test_a_second_stop_is_fast(core):
    core.stop(1.0)
    assert names(core.stop(2.0), Terminate) == ["worker-1", "worker-2"]
    core.tick(2.0 + FAST_S / 2)
    assert names(core.tick(2.0 + FAST_S), Sweep) == ["worker-1", "worker-2"]
    assert core.stop(2.1) == []


def test_a_child_that_waits_for_its_next_start_does_not_hold_up_a_stop(core):
    die(core, "worker-1", 0.0)
    assert names(core.stop(0.1), Terminate) == ["worker-2"]
    assert names(die(core, "worker-2", 0.2, code=0), Terminate) == ["brain"]
    assert core.tick(5.0) == []


def test_a_child_that_came_up_during_a_stop_is_ended(core):
    die(core, "worker-1", 0.0)
    core.tick(0.3)
    core.children["worker-1"].phase = Phase.IDLE
    core.stop(0.4)
    assert core.started("worker-1", 300, 0.5) == [Terminate("worker-1")]


def test_a_refusing_broker_stops_the_rig_with_its_own_message(core):
    core.exited("broker", EXIT_REFUSED, None, "the database is damaged; restore it", 1.0)
    core.swept("broker", 1.0)
    assert core.stopping
    for name in ("worker-1", "worker-2", "brain", "bridge"):
        die(core, name, 1.1, code=0)
    end = kinds(die(core, "guard", 1.2, code=0), Finish)[0]
    assert end.code == EXIT_REFUSED
    assert "the database is damaged" in end.error


def test_a_broker_without_room_on_its_disk_is_started_again_for_as_long_as_it_takes(core):
    core.ready = True
    now, starts = 0.0, 0
    for pid in range(500, 560):
        core.exited("broker", EXIT_NO_ROOM, None, "", now)
        actions = core.swept("broker", now)
        assert not core.stopping and "the disk of the state folder is full" in text(actions)
        assert core.next_at() - now <= NO_ROOM_MAX_S + 0.01
        now = core.next_at()
        starts += names(core.tick(now), Start) == ["broker"]
        core.started("broker", pid, now)
    assert starts == 60


def test_a_rig_that_never_gets_ready_gives_up_with_the_reason(core):
    now = 0.0
    for _ in range(4):
        core.exited("bridge", 1, None, "no module x", now)
        core.swept("bridge", now)
        assert not core.stopping
        now = core.next_at()
        core.tick(now)
        core.started("bridge", 300, now)
    core.exited("bridge", 1, None, "no module x", now)
    said = core.swept("bridge", now)
    assert core.stopping
    assert "gives up" in text(said)
    for name in ("worker-1", "worker-2", "brain", "broker"):
        die(core, name, now, code=0)
    end = kinds(die(core, "guard", now, code=0), Finish)[0]
    assert end.code == 1
    assert "no module x" in end.error


def test_a_rig_that_was_ready_never_gives_up(core):
    core.ready = True
    now = 0.0
    for _ in range(20):
        die(core, "brain", now)
        now = core.next_at()
        core.tick(now)
        core.started("brain", 300, now)
    assert not core.stopping


def test_any_order_of_deaths_during_a_stop_ends_it(core):
    core.stop(1.0)
    done = []
    for name in ("broker", "guard", "bridge", "worker-2", "brain", "worker-1"):
        done += die(core, name, 1.1)
    assert len(kinds(done, Finish)) == 1


def test_missing_names_who_has_not_reported():
    status = {
        "brain": {"state": "seated"},
        "bridge": {"state": "absent"},
        "workers": [{"id": "a", "types": ["shell"]}],
    }
    assert missing(status, ["a", "b"]) == ["bridge", "b"]
    assert missing({}, []) == ["brain", "bridge"]


def test_a_death_is_told_once_by_session_and_again_only_to_a_new_broker():
    gone = Obituaries()
    gone.session_of("worker-1", "s1")
    gone.add("worker-1", "was ended by signal 9", False)
    [(corr, header)] = gone.untold()
    assert header == {"session": "s1", "why": "worker-1 was ended by signal 9"}
    gone.told(corr)
    assert gone.untold() == []
    gone.new_broker()
    assert gone.untold() == [(corr, header)]
    gone.told(corr)
    assert gone.answered(corr) == "worker-1"
    gone.new_broker()
    assert gone.untold() == []
    assert gone.answered(b"else") is None


def test_a_death_by_name_is_not_told_once_the_name_has_a_new_owner():
    gone = Obituaries()
    gone.add("brain", "was ended by signal 9", False, pid=7)
    [(_, header)] = gone.untold()
    assert (header["name"], header["pid"]) == ("brain", 7), "others of its name live"
    gone.taken_over("worker-1")
    assert gone.untold()
    gone.taken_over("brain")
    assert gone.untold() == []


def test_a_death_by_name_is_not_repeated_to_a_new_broker():
    gone = Obituaries()
    gone.add("brain", "has ended", False)
    gone.told(gone.untold()[0][0])
    gone.new_broker()
    assert gone.untold() == []


def test_a_worker_that_did_not_answer_is_reported_as_stuck(core):
    core.beat("worker-1", 1.0)
    core.tick(1.5)
    core.tick(3.9)
    core.tick(6.1)
    core.exited("worker-1", None, 9, "", 6.2)
    assert kinds(core.swept("worker-1", 6.2), Gone)[0].stuck
    core.tick(6.5)
    core.started("worker-1", 300, 6.5)
    assert not kinds(die(core, "worker-1", 7.0), Gone)[0].stuck
