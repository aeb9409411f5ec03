"""A worker whose card is hot: what goes back, what goes on, what is ended, and what passes all the same. Pure."""

from __future__ import annotations

from typing import Any

import pytest
from workbench import T1, T2, T3, Bench, kinds, lease, results, sent

from rigbus.agents.worker import events as ev
from rigbus.agents.worker.loop import _state
from rigbus.agents.worker.run import Phase
from rigbus.bus.wire import Verb

WARM = ev.Held("GPU 0 is at 84 °C, resumes below 79 °C")
HOT = ev.Held("GPU 0 is at 91 °C, resumes below 79 °C", critical=True)
REASON = "thermal: GPU 0 is at 91 °C, resumes below 79 °C"


def returns(actions: list[Any]) -> list[tuple[list[Any], str]]:
    return [(h["tokens"], h["reason"]) for h in sent(actions, Verb.RETURN)]


def test_a_warm_card_ends_the_credit_and_gives_back_what_has_not_begun() -> None:
    b = Bench(slots=1)
    b.run(T1)
    b.do(ev.Leases([lease(T2)]))
    assert b.do(WARM) == []
    sends = b.flush()
    assert [s.verb for s in sends] == [Verb.OFFER, Verb.RETURN], "or the same lease would come straight back"
    assert (sends[0].header["credit"], sends[0].header["held"]) == (0, WARM.reason)
    assert returns(sends) == [([T2], f"thermal: {WARM.reason}")]
    assert b.core.runs[T1].phase is Phase.RUNNING
    assert _state(b.core) == "held"


def test_what_runs_goes_on_under_its_own_time_limit() -> None:
    b = Bench()
    b.run(T1, timeout_s=5.0)
    b.do(WARM)
    b.flush()
    assert kinds(b.after(4.0)) == [ev.Send]  # RENEW: the lease goes on
    b.do(ev.Ended(T1, ev.Outcome(True)))
    assert [r["ok"] for r in results(b.flush())] == [True]


def test_a_runaway_that_heats_its_card_still_times_out() -> None:
    b = Bench()
    b.run(T1, timeout_s=5.0)
    b.do(WARM)
    assert ev.Terminate in kinds(b.after(5.1)), "a limit that stood still would hold the rig for ever"


def test_leases_that_were_on_their_way_go_back_with_the_reason() -> None:
    b = Bench()
    b.do(WARM)
    b.flush()
    assert b.do(ev.Leases([lease(T1), lease(T2, "noop")])) == []
    assert returns(b.flush()) == [([T1, T2], f"thermal: {WARM.reason}")]


def test_handlers_that_were_handed_over_are_called_back() -> None:
    b = Bench(slots=1)
    b.do(ev.Leases([lease(T1, "noop"), lease(T2, "noop")]), ev.Started(T1, b.now))
    (recall,) = b.do(WARM)
    assert isinstance(recall, ev.Recall)
    assert list(recall.tokens) == [T2]
    b.do(ev.Recalled([T2]))
    assert returns(b.flush()) == [([T2], f"thermal: {WARM.reason}")]


def test_a_cool_card_gives_the_credit_back() -> None:
    b = Bench(slots=2)
    b.do(WARM)
    b.flush()
    b.do(ev.Released())
    (offer,) = sent(b.flush(), Verb.OFFER)
    assert offer["credit"] == 2
    assert "held" not in offer
    b.do(ev.Released())
    assert b.flush() == []


def test_a_new_reason_is_offered_and_the_same_one_is_not() -> None:
    b = Bench()
    b.do(WARM)
    b.flush()
    b.do(WARM)
    assert b.flush() == []
    b.do(ev.Held("GPU 0 is at 85 °C, resumes below 79 °C"))
    assert [h["held"] for h in sent(b.flush(), Verb.OFFER)] == ["GPU 0 is at 85 °C, resumes below 79 °C"]


def test_a_new_session_is_told_of_the_hold() -> None:
    b = Bench()
    b.do(WARM, ev.Disconnected(), ev.Welcome())
    (offer,) = sent(b.flush(), Verb.OFFER)
    assert (offer["credit"], offer["held"]) == (0, WARM.reason)


@pytest.mark.parametrize("held", [WARM, HOT])
def test_control_commands_pass(held: ev.Held) -> None:
    b = Bench(kill_grace_s=1.0)
    b.run(T1)
    b.do(WARM)
    assert ev.Terminate in kinds(b.do(ev.Renewed(cancel=[T1])))
    b.do(held)
    assert ev.Kill in kinds(b.after(1.1)), "a cancel goes on as it began"
    b.do(ev.Ended(T1, ev.Outcome(False)))
    (row,) = results(b.flush())
    assert row["cancelled"]
    b.do(ev.Recorded([T1]))
    b.do(ev.Control("pause"), ev.Released())
    assert b.core.credit == 0
    b.do(held, ev.Control("resume"))
    assert b.core.credit == 0, "a person's resume does not cool a card"
    b.do(ev.Released())
    assert b.core.credit == 1
    b.do(held)
    assert kinds(b.do(ev.Drain())) == [ev.Exit]


# ---------------------------------------------------------------- critical


def test_a_critical_card_ends_what_runs_and_gives_it_back_when_its_tree_is_dead() -> None:
    b = Bench(kill_grace_s=2.0)
    b.run(T1)
    assert b.do(HOT) == [ev.Terminate(T1)]
    assert returns(b.flush()) == []
    assert ev.Kill(T1) in b.after(2.1)
    b.do(ev.Ended(T1, ev.Outcome(False, cls="crash", error="signal 9")))
    sends = b.flush()
    assert results(sends) == [], "no attempt is burnt"
    assert returns(sends) == [([T1], REASON)]
    assert b.core.resume() == [T1]
    b.do(ev.Recorded([T1]))
    assert b.core.resume() == []


def test_its_renews_go_on_until_then() -> None:
    b = Bench()
    b.run(T1)
    b.do(HOT)
    assert [h["tokens"] for h in sent(b.after(1.1), Verb.RENEW)] == [[T1]]


def test_an_end_that_looks_good_after_we_asked_for_it_is_not_trusted() -> None:
    b = Bench()
    b.run(T1)
    b.do(HOT, ev.Ended(T1, ev.Outcome(True, body=b"half")))
    sends = b.flush()
    assert (results(sends), returns(sends)) == ([], [([T1], REASON)])


def test_warn_that_becomes_critical_ends_what_was_left_running() -> None:
    b = Bench()
    b.run(T1)
    assert b.do(WARM) == []
    assert b.do(HOT) == [ev.Terminate(T1)]
    assert b.do(HOT) == []
    assert b.do(ev.Held("GPU 0 is at 92 °C, resumes below 79 °C", critical=True)) == []


def test_a_command_that_is_just_being_started_is_ended_too() -> None:
    b = Bench()
    b.do(ev.Leases([lease(T1)]))
    assert b.do(HOT) == [ev.Terminate(T1)]
    b.do(ev.Started(T1, b.now))
    assert b.core.runs[T1].phase is Phase.ENDING
    b.do(ev.Ended(T1, ev.Outcome(False)))
    assert returns(b.flush()) == [([T1], REASON)]


def test_a_handler_that_begins_while_it_is_called_back_is_ended_in_either_case() -> None:
    for begun in (True, False):
        b = Bench()
        b.do(ev.Leases([lease(T1, "noop")]))
        assert kinds(b.do(HOT)) == [ev.Recall, ev.Terminate]
        b.do(ev.Ended(T1, ev.Outcome(False)) if begun else ev.Recalled([T1]))
        assert returns(b.flush()) == [([T1], REASON)]


def test_a_thread_that_does_not_end_costs_the_process_and_no_attempt() -> None:
    b = Bench(kill_grace_s=1.0)
    b.run(T1, "noop")
    b.do(HOT)
    b.after(1.1)
    ((tokens, reason),) = returns(b.flush())
    assert tokens == [T1]
    assert reason.startswith(REASON)
    (end,) = b.do(ev.Recorded([T1]))
    assert isinstance(end, ev.Exit)
    assert end.code == ev.EXIT_RESTART


def test_a_handler_that_waits_for_the_bus_gives_its_slot_back() -> None:
    b = Bench()
    b.run(T1, "noop")
    b.do(ev.Lent(T1, True), HOT, ev.Ended(T1, ev.Outcome(False)), ev.Released())
    assert b.core._lent == 0
    assert b.core.credit == 1


def test_nothing_runs_until_it_is_released() -> None:
    b = Bench(slots=2)
    b.do(HOT)
    b.do(ev.Leases([lease(T1), lease(T2, "noop"), lease(T3)]))
    assert b.core.runs == {}
    b.flush()
    b.do(WARM)
    assert b.core.credit == 0
    b.do(ev.Released())
    assert kinds(b.do(ev.Leases([lease((2, 1))]))) == [ev.Start]


# ---------------------------------------------------------------- memory


def test_the_budget_is_offered_less_what_the_model_takes() -> None:
    b = Bench(connected=False, vram_mb=4915)
    b.do(ev.Welcome())
    (offer,) = sent(b.flush(), Verb.OFFER)
    assert offer["vram_mb"] == 4915
    b.do(ev.ModelVram(3000))
    assert [h["vram_mb"] for h in sent(b.flush(), Verb.OFFER)] == [1915]
    b.do(ev.VramBudget(2000))
    assert [h["vram_mb"] for h in sent(b.flush(), Verb.OFFER)] == [0]
    b.do(ev.ModelVram(0))
    assert [h["vram_mb"] for h in sent(b.flush(), Verb.OFFER)] == [2000]
    b.do(ev.ModelVram(0))
    assert b.flush() == []


def test_a_worker_without_a_card_offers_no_budget() -> None:
    b = Bench(connected=False)
    b.do(ev.ModelVram(3000), ev.Welcome())
    (offer,) = sent(b.flush(), Verb.OFFER)
    assert "vram_mb" not in offer
