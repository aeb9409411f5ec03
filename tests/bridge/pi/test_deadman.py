"""Whether the rig lives: told apart are a dead rig, one that was stopped, a folder that is away, and clocks that disagree."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rigbus.bridge.pi.deadman import DeadMan, Signs

WALL = 1_770_000_000.0
LIMIT, GRACE, MOUNT = 30.0, 60.0, 20.0


class Reader:
    """Reads a folder that the test describes; ``apart_s`` is how far the rig's clock is ahead of ours."""

    def __init__(self, kept: dict[str, Any] | None = None, at: float = 0.0, apart_s: float = 0.0) -> None:
        self.now, self.apart_s, self.n = at, apart_s, 0
        self.said_at: float | None = None
        self.man = DeadMan(GRACE, MOUNT, kept, at, WALL + at)

    def renews(self) -> None:
        self.n += 1
        self.said_at = WALL + self.now + self.apart_s

    def see(self, later_s: float = 0.0, *, stopped: bool = False, away: bool = False) -> list[str]:
        self.now += later_s
        signs = None if away else Signs(stopped, self.said_at, LIMIT, f"{self.n}")
        return [c.rule for c in self.man.see(signs, self.now, WALL + self.now).conditions]

    def known(self, *, away: bool) -> frozenset[str]:
        signs = None if away else Signs(False, self.said_at, LIMIT, f"{self.n}")
        return self.man.see(signs, self.now, WALL + self.now).known


def living(**how: Any) -> Reader:
    reader = Reader(**how)
    for _ in range(3):
        reader.renews()
        assert "rig-silent" not in reader.see(10.0)
    return reader


def test_a_rig_that_is_not_renewed_any_more_is_silent_after_its_time_and_a_grace() -> None:
    reader = living()
    assert reader.see(LIMIT + GRACE) == []
    assert reader.see(0.1) == ["rig-silent"]
    reader.renews()
    assert reader.see(1.0) == []


def test_one_that_was_stopped_in_order_is_not() -> None:
    assert living().see(10 * (LIMIT + GRACE), stopped=True) == []


def test_a_folder_in_which_no_rig_has_written_is_not() -> None:
    assert Reader().see(1000.0) == []


def test_a_folder_that_is_away_is_told_and_says_nothing_of_the_rig() -> None:
    reader = living()
    assert reader.see(1.0, away=True) == []
    assert reader.known(away=True) == frozenset()
    assert reader.see(MOUNT, away=True) == ["mount-away"]
    assert reader.see(1000.0, away=True) == ["mount-away"]
    assert reader.known(away=True) == {"mount-away"}
    reader.renews()
    assert reader.see(1.0) == []


def test_a_rig_that_died_while_the_folder_was_away_is_silent_when_it_is_back() -> None:
    reader = living()
    reader.see(1.0, away=True)
    reader.see(1000.0, away=True)
    assert reader.see(1.0) == ["rig-silent"]


def test_clocks_that_disagree_are_no_death() -> None:
    for apart_s in (7200.0, -7200.0):
        reader = Reader(apart_s=apart_s)
        seen = []
        for _ in range(20):
            reader.renews()
            seen.append(reader.see(10.0))
        assert seen == [[]] + [["clocks-apart"]] * 19
        assert reader.see(LIMIT + GRACE + 1) == ["rig-silent"]


def test_a_clock_that_is_a_little_off_is_nothing() -> None:
    reader = Reader(apart_s=20.0)
    reader.renews()
    assert reader.see(5.0) == []


def test_a_restart_does_not_make_a_dead_rig_young_again() -> None:
    reader = living()
    reader.see(50.0)
    again = Reader(reader.man.plain(reader.now, WALL + reader.now), at=reader.now)
    again.n, again.said_at = reader.n, reader.said_at
    assert again.see(39.0) == []
    assert again.see(2.0) == ["rig-silent"]


def test_a_folder_that_is_away_for_one_run_after_another_is_told() -> None:
    reader = living()
    reader.see(1.0, away=True)
    again = Reader(reader.man.plain(reader.now, WALL + reader.now), at=reader.now)
    assert again.see(MOUNT - 1, away=True) == []
    assert again.see(1.0, away=True) == ["mount-away"]


def test_a_first_look_at_old_files_waits_whether_they_are_renewed() -> None:
    reader = Reader()
    reader.said_at = WALL - 5000
    assert reader.see(1.0) == []
    assert reader.see(LIMIT + GRACE) == []
    assert reader.see(1.0) == ["rig-silent"]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 25), st.booleans(), st.booleans()), max_size=60), st.floats(-1e5, 1e5))
def test_a_rig_that_renews_its_files_is_never_called_dead(steps: list[Any], apart_s: float) -> None:
    reader = Reader(apart_s=apart_s)
    for later_s, away, restart in steps:
        reader.renews()
        assert "rig-silent" not in reader.see(later_s, away=away)
        if restart:
            kept = reader.man.plain(reader.now, WALL + reader.now)
            reader.man = DeadMan(GRACE, MOUNT, kept, reader.now, WALL + reader.now)
