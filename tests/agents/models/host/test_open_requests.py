"""Whose fault a child's death was, who is sent again, and when a model is given up: no process, no clock."""

from __future__ import annotations

from typing import Any

import pytest

from rigbus.agents.models.host.crash_budget import CrashBudget
from rigbus.agents.models.host.generation import Hosted, HostedEmbedding, HostedGeneration
from rigbus.agents.models.host.open_requests import MAX_RESENDS, MAX_SUSPECTS, OpenRequests
from rigbus.agents.models.protocol import (
    Chunk,
    EmbedRequest,
    GenerateRequest,
    ModelBusy,
    ModelCrashed,
    Queued,
    Usage,
)
from rigbus.bus.errors import DefinitionError


class Desk:
    """Open requests, and the generations that were asked."""

    def __init__(self, running: int = 4, waiting: int = 8) -> None:
        self.open = OpenRequests("m", running, waiting)
        self.asked: list[HostedGeneration] = []

    def ask(
        self, number: int, prompt: str = "x", *, sent: bool = True, begun: bool = False
    ) -> HostedGeneration:
        request = HostedGeneration(number, GenerateRequest(prompt=prompt), lambda request: None)
        self.open.add(request)
        request.sent, request.begun = sent, begun
        self.asked.append(request)
        return request

    def send(self) -> list[int]:
        """Who goes to the child now, and begins there."""
        found = self.open.to_send()
        for request in found:
            request.sent = request.begun = True
        return [request.number for request in found]

    def die(self, *, loading: bool = False, by: tuple[int, ...] = ()) -> dict[int, str]:
        """What each request's fate is."""
        self.open.died("model m ended", loading=loading, by=by)
        return {request.number: fate(request) for request in self.asked}


def fate(request: Hosted[Any]) -> str:
    try:
        item = request.poll(0)
        while isinstance(item, Queued):
            item = request.poll(0)
    except ModelCrashed as e:
        return str(e.error_class)
    if isinstance(item, Usage):
        return item.finish
    return "sent" if request.sent else "again"


def test_what_dies_while_it_takes_a_request_in_hand_dies_by_that_one() -> None:
    desk = Desk()
    for number in (1, 2, 3):
        desk.ask(number, begun=number == 1)
    assert desk.open.heard({"taking": 2})
    assert desk.die() == {1: "infra", 2: "crash", 3: "again"}


def test_a_request_that_was_taken_is_not_to_blame() -> None:
    desk = Desk()
    desk.ask(1, begun=True)
    desk.ask(2)
    desk.open.heard({"taking": 2})
    desk.open.heard({"taken": 2})
    assert desk.die() == {1: "crash", 2: "again"}


def test_a_refused_request_is_not_to_blame() -> None:
    desk = Desk()
    refused = desk.ask(1)
    desk.open.heard({"taking": 1})
    desk.open.heard({"refused": 1, "message": "no"})
    with pytest.raises(DefinitionError, match="no"):
        next(refused)
    desk.asked.clear()
    desk.ask(2, begun=True)
    assert desk.die() == {2: "crash"}


def test_of_several_that_run_none_is_to_blame() -> None:
    desk = Desk()
    desk.ask(1, begun=True)
    desk.ask(2, begun=True)
    desk.ask(3).cancel_by = 1.0
    assert desk.die() == {1: "infra", 2: "infra", 3: "cancelled"}


def test_the_one_that_the_child_names_is_to_blame_alone() -> None:
    desk = Desk()
    for number in (1, 2, 3):
        desk.ask(number, begun=number != 3)
    assert desk.die(by=(2,)) == {1: "infra", 2: "crash", 3: "again"}


def test_of_several_that_the_child_suspects_none_is_to_blame_and_each_runs_alone_next() -> None:
    desk = Desk()
    for number, prompt in enumerate(("well", "poison", "other"), 1):
        desk.ask(number, prompt, begun=True)
    assert desk.die(by=(1, 2)) == {1: "infra", 2: "infra", 3: "infra"}
    desk.asked.clear()
    for number, prompt in enumerate(("other", "well", "poison", "new"), 4):  # they come again
        desk.ask(number, prompt, sent=False)
    assert desk.send() == [4]
    assert desk.send() == [], "a suspect waits until nobody is there, and is not passed"
    desk.open.answer(4, Usage())
    assert desk.send() == [5]
    assert desk.send() == [], "nobody joins a suspect"
    desk.open.answer(5, Usage())
    assert desk.send() == [6]
    assert desk.die() == {4: "stop", 5: "stop", 6: "crash", 7: "again"}
    desk.asked.clear()
    desk.ask(8, "well", sent=False)
    assert desk.send() == [7, 8], "who has got its answer is no suspect any more"


def test_a_request_that_ended_a_child_runs_alone_when_it_comes_again() -> None:
    desk = Desk()
    desk.ask(1, "poison", begun=True)
    assert desk.die() == {1: "crash"}
    desk.asked.clear()
    desk.ask(2, "well", sent=False)
    poison = desk.ask(3, "poison", sent=False)
    assert desk.send() == [2]
    assert poison.poll(0) == Queued(0)
    desk.open.heard({"waiting": [[2], []]})
    assert poison.poll(0) is None, "what the child says of others does not move it"
    desk.open.answer(2, Usage())
    assert desk.send() == [3]


def test_suspects_beyond_the_bound_are_forgotten() -> None:
    desk = Desk(running=MAX_SUSPECTS + 2)
    for number in range(MAX_SUSPECTS + 1):
        desk.ask(number, f"prompt {number}", begun=True)
    desk.die()
    desk.asked.clear()
    desk.ask(1000, "prompt 0", sent=False)
    desk.ask(1001, "new", sent=False)
    assert desk.send() == [1000, 1001]


def test_nobody_is_to_blame_for_a_model_that_dies_while_it_loads() -> None:
    desk = Desk()
    desk.ask(1, sent=False)
    assert desk.die(loading=True) == {1: "infra"}


def test_who_only_waits_is_sent_again_but_not_for_ever() -> None:
    desk = Desk()
    waiting = desk.ask(1)
    for _ in range(MAX_RESENDS):
        assert desk.die() == {1: "again"}
        waiting.sent = True
    desk.open.died("model m ended", loading=False)
    with pytest.raises(ModelCrashed, match="waited through 3 such ends") as caught:
        next(waiting)
    assert caught.value.error_class == "infra"
    assert list(desk.open) == []


def test_one_request_too_many_is_busy_and_names_the_bound() -> None:
    desk = Desk(running=1, waiting=2)
    for number in (1, 2, 3):
        desk.ask(number)
    late = desk.ask(4)
    with pytest.raises(ModelBusy, match="1 requests may run and 2 wait") as caught:
        next(late)
    assert caught.value.error_class == "infra"
    desk.open.answer(1, Usage())
    assert desk.ask(5) in desk.open


def test_who_reads_late_hears_of_the_last_place_only() -> None:
    desk = Desk()
    request = desk.ask(9)
    for line in ([7, 8, 9], [8, 9]):
        desk.open.heard({"waiting": [line, []]})
    assert request.poll(0) == Queued(1)
    desk.open.heard({"waiting": [[8, 9], []]})
    assert request.poll(0) is None
    desk.open.heard({"waiting": [[9], []]})
    desk.open.heard({"waiting": [[], []]})
    desk.open.heard({"chunk": 9, "text": "at last"})
    assert request.poll(0) == Chunk("at last")


def test_who_iterates_hears_of_no_place() -> None:
    desk = Desk()
    request = desk.ask(9)
    desk.open.heard({"waiting": [[9], []]})
    desk.open.heard({"chunk": 9, "text": "x"})
    desk.open.heard({"usage": 9, "finish": "stop"})
    assert list(request) == [Chunk("x"), Usage()]


@pytest.mark.parametrize("message", [{"usage": 1, "colour": 5}, {"vector": 1, "index": 0, "data": b"abc"}])
def test_what_no_child_says_is_an_error_for_the_keeper(message: dict[str, Any]) -> None:
    desk = Desk()
    desk.open.add(HostedEmbedding(1, EmbedRequest(texts=["x"]), lambda request: None))
    with pytest.raises((TypeError, ValueError)):
        desk.open.heard(message)


# ------------------------------------------------------------ giving up


def test_crashes_in_a_short_time_spend_the_budget() -> None:
    budget = CrashBudget(3, 100.0)
    assert [budget.crashed(now) for now in (0, 10, 20)] == [False, False, True]


def test_crashes_far_apart_do_not() -> None:
    budget = CrashBudget(3, 100.0)
    assert not any(budget.crashed(now) for now in (0, 60, 120, 180, 240))
    assert budget.in_a_row == 5


def test_a_good_answer_forgives_all() -> None:
    budget = CrashBudget(3, 100.0)
    budget.crashed(0)
    budget.crashed(1)
    budget.answered()
    assert budget.in_a_row == 0
    assert not budget.crashed(2)
