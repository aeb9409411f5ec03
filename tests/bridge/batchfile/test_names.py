"""Which files are batch files, and when one is due."""

from __future__ import annotations

import time

import pytest
from helpers import slack

from rigbus.bridge.batchfile.names import (
    Due,
    Look,
    Settling,
    Unusable,
    Watch,
    belongs,
    errors_of,
    is_input,
    looks_of,
    results_of,
    step,
)

ONE: Look = ("file", 10, 1, 1)
TWO: Look = ("file", 20, 2, 1)
MARK: Look = ("file", 0, 5, 9)


@pytest.mark.parametrize(
    ("name", "mine", "runs"),
    [
        ("x.jsonl", True, True),
        ("a b.jsonl", True, True),
        ("x.jsonl.READY", True, False),
        ("x.results.jsonl", True, False),
        ("x.errors.jsonl", True, False),
        ("x.results.jsonl.part", True, False),
        ("x.results.jsonl.1", True, False),
        (".x.jsonl", True, False),
        (".jsonl", True, False),
        ("x.json", False, False),
        ("jsonl", False, False),
    ],
)
def test_names(name: str, mine: bool, runs: bool) -> None:
    assert (belongs(name), is_input(name)) == (mine, runs)


def test_results_bear_the_files_name() -> None:
    assert (results_of("x.y.jsonl"), errors_of("x.y.jsonl")) == ("x.y.results.jsonl", "x.y.errors.jsonl")


def test_folders_and_other_files_are_none() -> None:
    rows = [("x.jsonl", "dir", 1, 1, 1), ("y.md", "file", 1, 1, 1), ("z.jsonl", "fifo", 0, 1, 2)]
    assert looks_of(rows) == {"z.jsonl": ("fifo", 0, 1, 2)}


class TestWhenItIsDue:
    def test_it_settles_first_and_is_due_once(self) -> None:
        watch, decisions, wait = step(Watch(), {"x.jsonl": ONE}, 0.0, 3.0)
        assert (decisions, wait) == ([Settling("x.jsonl")], 3.0)
        watch, decisions, wait = step(watch, {"x.jsonl": ONE}, 2.0, 3.0)
        assert (decisions, wait) == ([], 1.0)
        watch, decisions, wait = step(watch, {"x.jsonl": ONE}, 3.0, 3.0)
        assert (decisions, wait) == ([Due("x.jsonl", ONE, False)], None)
        assert step(watch, {"x.jsonl": ONE}, 9.0, 3.0)[1:] == ([], None)

    def test_one_that_grows_begins_anew(self) -> None:
        watch, *_ = step(Watch(), {"x.jsonl": ONE}, 0.0, 3.0)
        watch, decisions, _ = step(watch, {"x.jsonl": TWO}, 2.9, 3.0)
        assert decisions == []
        assert step(watch, {"x.jsonl": TWO}, 5.0, 3.0)[1] == []
        assert step(watch, {"x.jsonl": TWO}, 5.9, 3.0)[1] == [Due("x.jsonl", TWO, False)]

    def test_with_ready_it_is_due_at_once_also_a_second_time(self) -> None:
        there = {"x.jsonl": ONE, "x.jsonl.READY": MARK}
        watch, decisions, _ = step(Watch(), there, 0.0, 3.0)
        assert decisions == [Due("x.jsonl", ONE, True)]
        assert step(watch, there, 1.0, 3.0)[1] == []
        watch, decisions, _ = step(watch, {"x.jsonl": ONE}, 2.0, 3.0)  # READY was taken away
        assert decisions == []
        assert step(watch, there, 3.0, 3.0)[1] == [Due("x.jsonl", ONE, True)]

    def test_what_was_dealt_with_before_a_restart_is_not_due_unless_it_has_changed(self) -> None:
        watch = Watch().handled({"x.jsonl": ONE})
        assert step(watch, {"x.jsonl": ONE}, 0.0, 0.0)[1] == []
        assert step(watch, {"x.jsonl": TWO}, 0.0, 0.0)[1] == [Due("x.jsonl", TWO, False)]

    def test_what_could_not_be_dealt_with_is_due_again(self) -> None:
        watch, *_ = step(Watch(), {"x.jsonl": ONE}, 0.0, 0.0)
        assert step(watch.again(["x.jsonl"]), {"x.jsonl": ONE}, 1.0, 0.0)[1] == [Due("x.jsonl", ONE, False)]
        assert watch.again(["other.jsonl"]) == watch

    @pytest.mark.parametrize("kind", ["link", "fifo", "device", "unreadable"])
    def test_what_is_no_file_is_refused_once(self, kind: str) -> None:
        watch, decisions, _ = step(Watch(), {"x.jsonl": (kind, 0, 1, 1)}, 0.0, 3.0)
        assert decisions == [Unusable("x.jsonl", f"it is a {kind}, not a file", "copy the file itself")]
        assert step(watch, {"x.jsonl": (kind, 0, 1, 1)}, 9.0, 3.0)[1] == []

    def test_a_name_without_room_for_that_of_its_results_is_refused(self) -> None:
        name = "é" * 98 + ".jsonl"
        _, (decision,), _ = step(Watch(), {name: ONE}, 0.0, 3.0)
        assert isinstance(decision, Unusable) and "200 bytes" in decision.what

    def test_what_a_look_costs_grows_with_the_files_only(self) -> None:
        looks = {f"{n:06d}.jsonl": ONE for n in range(10_000)}
        began = time.process_time()
        watch, decisions, _ = step(Watch().handled(looks), dict.fromkeys(looks, TWO), 0.0, 0.0)
        watch = watch.again(d.name for d in decisions)
        assert len(step(watch, dict.fromkeys(looks, TWO), 1.0, 0.0)[1]) == 10_000
        assert time.process_time() - began < 5 * slack()

    def test_one_that_has_gone_is_forgotten(self) -> None:
        watch, *_ = step(Watch(), {"x.jsonl": ONE}, 0.0, 0.0)
        assert step(watch, {}, 1.0, 0.0)[0] == Watch()
