"""The table of a task's life: every pair of state and event, and the database's word for it."""

from __future__ import annotations

import re
import sqlite3

import pytest
from helpers import ROOT

from rigbus.bus.states import (
    BATCH_ENDED,
    BATCH_STATE_NAMES,
    ENDED_BADLY,
    STATE_NAMES,
    TERMINAL,
    TRANSITIONS,
    BatchState,
    IllegalTransition,
    TaskEvent,
    TaskState,
    after,
)

SCHEMA = (ROOT / "bus" / "store" / "schema.sql").read_text()
PERSON = {TaskEvent.REQUEUE, TaskEvent.REVIVE}


@pytest.mark.parametrize("state", TaskState)
def test_every_pair_is_in_the_table_or_refused(state: TaskState) -> None:
    for event in TaskEvent:
        if (state, event) in TRANSITIONS:
            assert after(state, event) is TRANSITIONS[state, event]
        else:
            with pytest.raises(IllegalTransition, match=f"{state.name} \\+ {event.name}"):
                after(state, event)


@pytest.mark.parametrize("state", sorted(TERMINAL))
def test_a_terminal_state_absorbs_every_machine_event(state: TaskState) -> None:
    for event in set(TaskEvent) - PERSON:
        with pytest.raises(IllegalTransition, match=f"{state.name} \\+ {event.name}"):
            after(state, event)


def test_done_is_left_by_nobody() -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] is TaskState.DONE]


@pytest.mark.parametrize("state", [s for s in TaskState if s not in TERMINAL])
def test_whatever_has_not_ended_can_be_cancelled_and_can_expire(state: TaskState) -> None:
    assert after(state, TaskEvent.CANCEL) is TaskState.CANCELLED
    assert after(state, TaskEvent.EXPIRE) is TaskState.EXPIRED


def test_every_state_is_reachable_from_waiting_and_every_event_is_used() -> None:
    found = {TaskState.WAITING}
    while more := {new for (old, _), new in TRANSITIONS.items() if old in found} - found:
        found |= more
    assert found == set(TaskState)
    assert {event for _, event in TRANSITIONS} == set(TaskEvent)


def test_from_every_state_a_task_can_end() -> None:
    ends = set(TERMINAL)
    while more := {old for (old, _), new in TRANSITIONS.items() if new in ends} - ends:
        ends |= more
    assert ends == set(TaskState)


def test_numbers_are_stored_and_so_never_change() -> None:
    words = "waiting ready leased review failed done dead cancelled expired skipped"
    assert tuple(words.split()) == STATE_NAMES
    assert [int(s) for s in TaskState] == list(range(10))
    assert BATCH_STATE_NAMES == ("planning", "running", "complete", "failed", "cancelled")
    assert TERMINAL - {TaskState.DONE} == ENDED_BADLY


def test_the_schema_says_the_same_numbers() -> None:
    assert re.search(rf"CHECK \(state BETWEEN 0 AND {max(TaskState):d}\)", SCHEMA)
    assert re.search(rf"CHECK \(state BETWEEN 0 AND {max(BatchState):d}\)", SCHEMA)
    assert f"CHECK ((state >= {min(TERMINAL):d}) = (ended_at > 0))" in SCHEMA
    assert f"CHECK ((state >= {min(BATCH_ENDED):d}) = (ended_at > 0))" in SCHEMA
    assert f"CHECK (state <> {TaskState.LEASED:d} OR" in SCHEMA
    # ">=" is only right while the terminal states are the last ones
    assert sorted(TERMINAL) == [s for s in TaskState if s >= min(TERMINAL)]
    assert sorted(BATCH_ENDED) == [s for s in BatchState if s >= min(BATCH_ENDED)]


def _columns(table: str) -> list[tuple[str, bool]]:
    db = sqlite3.connect(":memory:")
    try:
        db.executescript(SCHEMA)
        return [(row[1], bool(row[3])) for row in db.execute(f"PRAGMA table_info({table})")]
    finally:
        db.close()


def _row(table: str, **values: object) -> tuple[str, list[object]]:
    filled = [
        values.get(name, 1 if name == "no" else (0 if needed else None)) for name, needed in _columns(table)
    ]
    return f"INSERT INTO {table} VALUES ({','.join('?' * len(filled))})", filled


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("tasks", {"state": 10}),
        ("tasks", {"state": -1}),
        ("tasks", {"state": TaskState.DONE}),  # ended, but at no time
        ("tasks", {"state": TaskState.READY, "ended_at": 5.0}),  # an end of what has not ended
        ("tasks", {"state": TaskState.LEASED}),  # leased under no token
        ("tasks", {"state": TaskState.LEASED, "tok": 1}),
        ("tasks", {"ending": 3}),
        ("tasks", {"attempt": -1}),
        ("batches", {"kind": "client", "state": 5}),
        ("batches", {"kind": "client", "state": BatchState.COMPLETE}),
        ("batches", {"kind": "client", "state": BatchState.RUNNING, "ended_at": 5.0}),
        ("batches", {"kind": "other"}),
        ("facts", {"rev": 0}),
        ("events", {"n": 0}),
        ("attempts", {"class": "bad luck"}),
    ],
)
def test_a_check_refuses_an_impossible_row(table: str, values: dict[str, object]) -> None:
    db = sqlite3.connect(":memory:")
    try:
        db.executescript(SCHEMA)
        sql, row = _row(table, **values)
        with pytest.raises(sqlite3.IntegrityError):
            db.execute(sql, row)
    finally:
        db.close()


@pytest.mark.parametrize("state", TaskState)
def test_a_check_takes_a_possible_row_of_each_state(state: TaskState) -> None:
    db = sqlite3.connect(":memory:")
    try:
        db.executescript(SCHEMA)
        ended_at = 5.0 if state in TERMINAL else 0.0
        token = {"tok": 1, "inc": 1} if state is TaskState.LEASED else {}
        db.execute(*_row("tasks", state=int(state), ended_at=ended_at, **token))
    finally:
        db.close()
