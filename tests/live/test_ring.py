"""docs/agents.md's conversation as three programs of its own, each with one slot, that call in a ring.

The middle one and the broker are killed at moments that the test chooses by stopping processes, not by luck.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from helpers import ROOT, Processes, wait_for

from rigbus import Task
from rigbus.agents.testing import Rig

ROUNDS = 20
NAMES = ("author", "critic", "checker")
CHILDREN = ("critic.review", "checker.check", "author.meant")
#: What the doc's three agents say to each other, round by round.
TRANSCRIPT = [
    f"author: rigbus is fast{'er' * n} / critic: the author says: I measured it {n + 1} times"
    for n in range(ROUNDS)
]


class Conversation:
    """The doc's program, started three times; it is killed by pid, its own parent starts it again."""

    def __init__(self, rig: Rig, processes: Processes) -> None:
        self.rig = rig
        self.program = rig.folder / "conversation.py"
        page = (ROOT / "docs" / "agents.md").read_text()
        found = re.search(r"^```python\n# conversation\.py\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
        assert found, "docs/agents.md does not show conversation.py any more"
        self.program.write_text(found[1])
        self.parents = {
            name: processes.python(self.program, name, "--state", rig.state, "--name", name) for name in NAMES
        }
        for name in NAMES:
            rig.wait_joined(name)
        self.batch = ""

    def worker(self, name: str) -> dict[str, Any]:
        """The row of the agent that serves under this name now."""
        rows: list[dict[str, Any]] = self.rig.bus.query("workers")["workers"]
        return next(row for row in rows if row["id"] == name)

    def rows(self) -> list[dict[str, Any]]:
        """Every message of the conversation: each call is a task of its batch."""
        found: list[dict[str, Any]] = self.rig.bus.query("tasks", batch=self.batch, limit=500)["rows"]
        return found

    def find(self, type_: str, wanted: Callable[[dict[str, Any]], Any]) -> dict[str, Any] | None:
        return next((row for row in self.rows() if row["type"] == type_ and wanted(row)), None)

    def done(self, type_: str) -> int:
        return sum(row["type"] == type_ and row["state"] == "done" for row in self.rows())

    def begin(self) -> list[str]:
        ids = self.rig.bus.submit(
            [Task(type="author.write", payload={"subject": "rigbus", "rounds": ROUNDS})], name="ring"
        )
        self.batch = ids.batch
        return ids

    def child_of(self, row: dict[str, Any]) -> dict[str, Any] | None:
        """The call that a running task waits for: its key is the task's, with the number of the call."""
        return next((r for r in self.rows() if r["key"] == f"{row['key']}/1"), None)

    def asking(self) -> dict[str, Any] | None:
        """A review whose question is not answered."""

        def waits(row: dict[str, Any]) -> bool:
            return (
                row["state"] == "leased"
                and (child := self.child_of(row)) is not None
                and child["state"] != "done"
            )

        return self.find("critic.review", waits)

    def stop_asking(self, critic: int) -> dict[str, Any] | None:
        """The review that the critic, now stopped, waits in: an answer that was on its way to it is not meant."""
        if self.asking() is None:
            return None
        os.kill(critic, signal.SIGSTOP)
        if (review := self.asking()) is None:
            os.kill(critic, signal.SIGCONT)
        return review


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """The process neither runs nor answers meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            pass


@pytest.fixture
def ring(rig: Rig, processes: Processes) -> Conversation:
    return Conversation(rig, processes)


def test_three_programs_with_one_slot_each_call_in_a_ring(ring: Conversation) -> None:
    assert [ring.worker(name)["slots"] for name in NAMES] == [1, 1, 1]
    assert len({ring.worker(name)["pid"] for name in NAMES}) == 3
    (result,) = ring.rig.bus.results(ring.begin(), timeout_s=30)
    assert result.value["said"] == TRANSCRIPT


def test_many_conversations_at_once_all_come_to_their_end(ring: Conversation) -> None:
    """More than could wait in the slots of one agent: the others' turn comes, none dies of the crowd."""
    write = {"subject": "rigbus", "rounds": 2}
    ids = ring.rig.bus.submit([Task(type="author.write", payload=write) for _ in range(12)])
    results = list(ring.rig.bus.results(ids, timeout_s=30))
    assert [(r.ok, r.attempts) for r in results] == [(True, 1)] * 12
    assert all(r.value["said"] == TRANSCRIPT[:2] for r in results)


@pytest.mark.smoke
def test_the_ring_outlives_the_death_of_its_middle_and_of_the_broker(ring: Conversation) -> None:
    rig = ring.rig
    ids = ring.begin()
    wait_for(lambda: ring.done("critic.review") >= 2, what="two rounds")

    # The critic dies when its question has been answered, before it could use the answer.
    with stopped(ring.worker("checker")["pid"]):
        critic = ring.worker("critic")["pid"]
        review = wait_for(lambda: ring.stop_asking(critic), what="the critic to wait for the checker")
    answered = wait_for(
        lambda: (child := ring.child_of(review)) and child["state"] == "done" and child,
        what="the checker's answer",
    )
    os.kill(critic, signal.SIGKILL)
    again = wait_for(
        lambda: ring.find("critic.review", lambda r: r["id"] == review["id"] and r["state"] == "done"),
        what="the killed review to be done by the next critic",
    )
    assert again["attempt"] == 2
    assert ring.worker("critic")["pid"] != critic
    resumed = ring.child_of(review)
    assert resumed is not None
    assert (resumed["id"], resumed["attempt"]) == (answered["id"], 1), "the answered call was executed again"

    # The broker dies while all three are in a call.
    with stopped(ring.worker("checker")["pid"]):
        wait_for(ring.asking, what="the critic to wait again")
        rig.restart_broker()
    wait_for(lambda: ring.done("critic.review") >= 5, timeout_s=20, what="rounds after the restart")

    (result,) = rig.bus.results(ids, timeout_s=40)
    assert result.ok, result.error
    assert result.value["said"] == TRANSCRIPT
    rows = ring.rows()
    assert {row["state"] for row in rows} == {"done"}
    assert len({row["key"] for row in rows}) == len(rows) == 1 + 3 * ROUNDS, "a message was answered twice"
    for type_ in CHILDREN:
        assert sum(row["type"] == type_ for row in rows) == ROUNDS
    # A lease that did not reach the stopped checker is handed back; that is no failure and no second run.
    failed = {row["id"]: row["attempts"] for row in rows if any(row["attempts"].values())}
    assert list(failed) == [review["id"]], "the restart of the broker ended running work"
    assert failed[review["id"]] == {"task": 0, "crash": 0, "infra": 1}


def test_the_one_that_asked_first_resumes_from_its_recorded_answers(ring: Conversation) -> None:
    """The author has the longest record: every round before its death is answered from it."""
    ids = ring.begin()
    wait_for(lambda: ring.done("critic.review") >= 4, what="four rounds")
    os.kill(ring.worker("author")["pid"], signal.SIGKILL)
    (result,) = ring.rig.bus.results(ids, timeout_s=40)
    assert (result.value["said"], result.attempts) == (TRANSCRIPT, 2)
    reviews = [row for row in ring.rows() if row["type"] == "critic.review"]
    assert len(reviews) == ROUNDS
    assert sum(row["attempt"] > 1 for row in reviews) == 0
