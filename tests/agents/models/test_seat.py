"""The way of a worker from one model to the next, without a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rigbus.agents.models.scripted import ScriptedModel
from rigbus.agents.models.seat import Seat
from rigbus.agents.models.seat_core import (
    ANSWER_S,
    BACK_S,
    RETRY_S,
    Action,
    Close,
    Closed,
    DropToken,
    Event,
    Loads,
    Memory,
    Offer,
    Open,
    Placed,
    SeatCore,
    TakeToken,
    Token,
    Unused,
    Wanted,
    Warn,
)

A = Wanted(1, "a", {"path": "/a"})
B = Wanted(2, "b", {"path": "/b"})
NONE = Wanted(2)


def after(*events: Event) -> tuple[SeatCore, list[Action]]:
    """A seat after these events, and what the last one brought."""
    seat, actions = SeatCore(), list[Action]()
    for event in events:
        actions = seat.step(event, 0.0)
    return seat, actions


HOT = (Placed(A), Token(True), Loads(ready=True))


def test_a_model_that_does_not_answer_goes_at_once_for_another_one() -> None:
    seat, _ = after(*HOT, Loads(share=0.3, message="it is started again"))
    assert seat.step(Placed(B), 1.0) == [Offer(None), Close()]
    assert seat.phase == "unloading"


def test_a_model_that_ceases_to_answer_while_its_leases_end_goes_at_once() -> None:
    seat, _ = after(*HOT, Placed(B))
    assert (seat.step(Loads(share=1.0, ready=True), 1.0), seat.phase) == ([], "emptying")
    assert seat.step(Loads(share=0.0), 2.0) == [Close()]


def test_a_model_is_loaded_under_the_token_and_offered_when_it_is_ready() -> None:
    seat, _ = after(Placed(A))
    assert (seat.phase, seat.due(0.0)) == ("asking", [TakeToken()])
    assert seat.due(1.0) == [], "one question at a time"
    assert seat.step(Token(True), 1.0) == [Open(A)]
    assert seat.step(Loads(share=0.4), 2.0) == []
    assert seat.report(2.0) == {
        "generation": 1,
        "phase": "loading",
        "model": "a",
        "share": 0.4,
        "since_s": 1.0,
    }
    assert seat.step(Loads(ready=True), 3.0) == [DropToken(), Offer(A)]
    assert seat.phase == "hot"


def test_a_token_that_another_holds_is_asked_for_again() -> None:
    seat, _ = after(Placed(A))
    seat.due(0.0)
    assert seat.step(Token(False, by="model-2"), 1.0) == []
    assert "model-2" in seat.report(1.0)["message"]
    assert seat.due(1.0 + RETRY_S / 2) == []
    assert seat.due(1.0 + RETRY_S) == [TakeToken()]


def test_a_question_that_is_never_answered_is_asked_again() -> None:
    seat, _ = after(Placed(A))
    seat.due(0.0)
    assert seat.due(ANSWER_S) == [TakeToken()]


def test_the_offer_goes_first_then_what_uses_it_then_the_model() -> None:
    seat, actions = after(*HOT, Placed(NONE))
    assert (seat.phase, actions) == ("emptying", [Offer(None)])
    assert seat.step(Unused(), 0.0) == [Close()]
    assert seat.report(0.0)["model"] == "a", "it is there until its process is gone"
    assert seat.step(Closed(), 0.0) == [DropToken()]
    assert (seat.phase, seat.report(0.0)["model"]) == ("cold", None)


def test_one_model_after_the_other() -> None:
    seat, _ = after(*HOT, Placed(B), Unused(), Closed())
    assert (seat.phase, seat.due(0.0)) == ("asking", [TakeToken()])
    assert seat.step(Token(True), 0.0) == [Open(B)]


def test_the_same_model_under_a_new_number_stays() -> None:
    again = Wanted(5, "a", {"path": "/a"})
    seat, actions = after(*HOT, Placed(again))
    assert (seat.phase, actions, seat.report(0.0)["generation"]) == ("hot", [], 5)


def test_one_that_is_wanted_again_while_it_empties_is_offered_again() -> None:
    again = Wanted(3, "a", {"path": "/a"})
    seat, actions = after(*HOT, Placed(NONE), Placed(again))
    assert (seat.phase, actions) == ("hot", [Offer(again)])


def test_an_older_placement_changes_nothing() -> None:
    seat, actions = after(Placed(B), Placed(A))
    assert (seat.wanted, actions) == (B, [])


def test_another_order_ends_a_load() -> None:
    seat, actions = after(Placed(A), Token(True), Placed(NONE))
    assert (seat.phase, actions) == ("unloading", [Close()])
    assert seat.step(Closed(), 0.0) == [DropToken()]


def test_another_order_while_it_asks() -> None:
    seat, actions = after(Placed(A), Placed(NONE))
    assert (seat.phase, actions) == ("cold", [DropToken()])
    assert seat.step(Token(True), 0.0) == [DropToken()], "the answer came too late: nobody needs the token"


def test_what_cannot_be_loaded_stays_failed_until_it_is_placed_anew() -> None:
    seat, actions = after(Placed(A), Token(True), Loads(failed="no GGUF"))
    assert (seat.phase, actions) == ("failed", [Close()])
    assert seat.step(Closed(), 0.0) == [DropToken()]
    assert (seat.phase, seat.report(0.0)["message"]) == ("failed", "no GGUF")
    assert seat.due(100.0) == []
    seat.step(Placed(Wanted(3, "a", {"path": "/a"})), 0.0)
    assert seat.phase == "asking"


def test_a_hot_model_that_fails_is_no_longer_offered() -> None:
    seat, actions = after(*HOT, Loads(failed="its file is gone"))
    assert (seat.phase, actions) == ("failed", [Offer(None), Close()])


def test_what_comes_while_a_failed_one_is_put_away_is_done_next() -> None:
    seat, _ = after(Placed(A), Token(True), Loads(failed="no GGUF"), Placed(B), Closed())
    assert (seat.phase, seat.wanted) == ("asking", B)


GONE = (*HOT, Placed(NONE), Unused(), Closed(took_mb=2000))


def test_a_model_that_was_measured_is_unloading_until_its_memory_is_back() -> None:
    seat, actions = after(*GONE)
    assert (seat.phase, actions, seat.back_by) == ("unloading", [], BACK_S)
    assert seat.step(Memory(500, "1500 MB are not back"), 1.0) == []
    assert (seat.report(1.0)["model"], seat.report(1.0)["message"]) == ("a", "1500 MB are not back")
    assert seat.step(Memory(2000), 2.0) == [DropToken()]
    said = seat.report(2.0)
    assert (said["phase"], said["freed_mb"], "message" in said) == ("cold", 2000, False)


def test_memory_is_waited_for_so_long_and_then_said_to_be_missing() -> None:
    seat, _ = after(*GONE, Memory(500, "1500 MB are not back"))
    assert seat.due(BACK_S - 0.1) == []
    assert seat.due(BACK_S) == [Warn("1500 MB are not back (waited 5 s)"), DropToken()]
    assert seat.due(BACK_S + 1) == []
    said = seat.report(BACK_S)
    assert (said["phase"], said["freed_mb"], said["message"]) == ("cold", 500, "1500 MB are not back")
    seat.step(Memory(0, judged=False), 7.0)
    assert "message" in seat.report(7.0), "what nobody can judge is not back for that"
    seat.step(Memory(2000), 8.0)
    assert "message" not in seat.report(8.0)


def test_a_card_that_tells_nothing_is_not_missed() -> None:
    seat, _ = after(*GONE)
    assert seat.due(BACK_S) == [DropToken()]
    seat, actions = after(*GONE, Memory(0, judged=False))
    assert (seat.phase, actions) == ("cold", [DropToken()])


def test_a_load_over_missing_memory_says_so_until_it_is_hot() -> None:
    seat, _ = after(*HOT, Placed(B), Unused(), Closed(took_mb=2000), Memory(0, "2000 MB are not back"))
    seat.due(BACK_S)
    assert seat.phase == "asking"
    actions = seat.step(Token(True), 6.0)
    assert actions == [Warn("b is loaded all the same: 2000 MB are not back"), Open(B)]
    assert seat.report(6.0)["message"] == "2000 MB are not back"
    seat.step(Loads(failed="out of memory"), 7.0)
    assert seat.report(7.0)["message"] == "out of memory; 2000 MB are not back"
    seat, _ = after(*HOT, Placed(B), Unused(), Closed(took_mb=2000), Memory(0, "2000 MB are not back"))
    seat.due(BACK_S)
    seat.step(Token(True), 6.0)
    seat.step(Loads(ready=True), 7.0)
    assert "message" not in seat.report(7.0)


def test_what_comes_while_memory_is_waited_for_is_done_when_it_is_back() -> None:
    again = Wanted(3, "a", {"path": "/a"})
    seat, actions = after(*GONE, Placed(again))
    assert (seat.phase, actions) == ("unloading", [])
    seat.step(Memory(2000), 1.0)
    assert (seat.phase, seat.wanted) == ("asking", again)


def test_a_failed_model_stays_failed_while_its_memory_is_waited_for() -> None:
    seat, actions = after(*HOT, Loads(failed="its file is gone"), Closed(took_mb=2000))
    assert (seat.phase, actions) == ("failed", [])
    assert seat.step(Memory(2000), 1.0) == [DropToken()]
    assert (seat.phase, seat.report(1.0)["message"]) == ("failed", "its file is gone")


def test_a_control_that_says_nothing_usable_is_none() -> None:
    for header in (
        {},
        {"generation": 0, "model": "a", "spec": {}},
        {"generation": True},
        {"generation": 1, "model": 7},
        {"generation": 1, "model": "a", "spec": None},
    ):
        assert Wanted.of(header) is None
    assert Wanted.of({"generation": 4, "model": None, "spec": None, "ask": "x"}) == Wanted(4)


class UnheardBus:
    """A loop whose broker answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[tuple[dict[str, Any], Callable[[Mapping[str, Any]], None]]] = []

    def post(self, event: object, wake: bool = True) -> None:
        pass

    def beat(self) -> None:
        pass

    def ask(
        self, verb: object, header: dict[str, Any], answered: Callable[[Mapping[str, Any]], None]
    ) -> bool:
        self.asked.append((header, answered))
        return True


def test_a_token_is_given_back_until_the_broker_has_heard_it() -> None:
    """A broker that died under the release kept the token of a whole group for a worker that was long hot."""
    bus, now = UnheardBus(), [0.0]
    seat = Seat(
        bus,
        group="pcie-0",
        open_model=lambda wanted: ScriptedModel([]),
        on_model=lambda wanted, model: None,
        runs=lambda: 0,
        clock=lambda: now[0],
    )
    seat.control("place", {"generation": 1, "model": None})
    for n in (1, 2, 3):
        due = seat.tick(now[0])
        assert [header["action"] for header, _ in bus.asked] == ["release"] * n
        assert due is not None
        now[0] = due
    bus.asked[-1][1]({"held": False})
    assert seat.tick(now[0] + 100) is None
    assert len(bus.asked) == 3
