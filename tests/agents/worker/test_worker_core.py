"""The worker's pure core: every event in every phase of a lease, and the promises of its laws."""

from __future__ import annotations

from itertools import product

import pytest
from workbench import T1, T2, T3, Bench, kinds, lease, results, sent

from rigbus.agents.worker import events as ev
from rigbus.agents.worker.core import LISTEN_S
from rigbus.agents.worker.outbox import FULL_AT, RESEND_S, Outbox, Prefetch
from rigbus.agents.worker.run import Phase
from rigbus.bus.errors import BadFrame
from rigbus.bus.wire import MAX_FRAME_BYTES, Verb, encode

# ---------------------------------------------------------------- the usual way


def test_a_new_session_offers_credit_for_every_slot() -> None:
    b = Bench(connected=False, slots=3, needs=("gpu",), state_id="s1")
    b.do(ev.Welcome())
    (offer,) = sent(b.flush(), Verb.OFFER)
    assert offer["credit"] == offer["slots"] == 3
    assert offer["types"] == ["shell", "noop"]
    assert offer["needs"] == ["gpu"]
    assert offer["state_id"] == "s1"


def test_an_offer_that_was_lost_is_made_again() -> None:
    b = Bench(slots=2)
    b.now += 1.0
    b.do(ev.Tick())  # a RENEW: what it is answered is about the OFFER before it
    b.do(ev.Renewed(credit=2))
    assert sent(b.flush(), Verb.OFFER) == []
    b.do(ev.Renewed(credit=0))
    (offer,) = sent(b.flush(), Verb.OFFER)
    assert offer["credit"] == 2
    assert sent(b.flush(), Verb.OFFER) == []


def test_a_lease_runs_is_announced_and_its_result_is_kept_until_recorded() -> None:
    b = Bench()
    (start,) = b.do(ev.Leases([lease()]))
    assert isinstance(start, ev.Start)
    b.do(ev.Started(T1, b.now))
    assert sent(b.flush(), Verb.STARTED) == [], "a short task is over before it has to be said"
    due = b.core.next_due(b.now)
    assert due == b.now + b.core.config.announce_s
    b.now = due
    assert sent(b.flush(), Verb.STARTED) == [{"tokens": [T1]}]
    assert sent(b.flush(), Verb.STARTED) == []
    b.do(ev.Ended(T1, ev.Outcome(True, body=b"\xc0", duration_s=9)))
    (row,) = results(b.flush())
    assert row == {"token": T1, "ok": True, "duration_s": 9}
    assert b.core.resume() == [T1]
    b.do(ev.Recorded([T1]))
    assert b.core.resume() == []


def test_what_ended_before_the_flush_skips_started_and_shares_one_result_message() -> None:
    b = Bench(slots=2)
    b.do(ev.Leases([lease(T1, "noop"), lease(T2, "noop")]))
    for token in (T1, T2):
        b.do(ev.Started(token, b.now), ev.Ended(token, ev.Outcome(True, body=b"\xc0")))
    sends = b.flush()
    assert sent(sends, Verb.STARTED) == []
    assert len(sent(sends, Verb.RESULT)) == 1
    assert [row["token"] for row in results(sends)] == [T1, T2]


def test_a_command_waits_for_a_free_slot_and_takes_the_next_one() -> None:
    b = Bench(slots=1)
    assert kinds(b.do(ev.Leases([lease(T1), lease(T2)]))) == [ev.Start]
    (start,) = b.do(ev.Started(T1, b.now), ev.Ended(T1, ev.Outcome(True)))
    assert isinstance(start, ev.Start)
    assert start.lease.token == T2


def test_handler_leases_are_handed_over_beyond_the_slots_and_isolated_ones_are_not() -> None:
    b = Bench(slots=1)
    handed = b.do(ev.Leases([lease(T1, "noop"), lease(T2, "noop"), lease(T3, "shell")]))
    assert [a.lease.token for a in handed if isinstance(a, ev.Start)] == [T1, T2]
    assert b.core.runs[T3].phase is Phase.QUEUED


# ---------------------------------------------------------------- duplicates and lateness

TOKEN_EVENTS: list[ev.Event] = [
    ev.Started(T1, 100.0),
    ev.Ended(T1, ev.Outcome(True, body=b"x")),
    ev.Recalled([T1]),
    ev.Progress(T1, 0.5),
    ev.Active(T1),
    ev.Lent(T1, True),
    ev.Lent(T1, False),
    ev.Recorded([T1]),
    ev.Stale([T1]),
    ev.Renewed([T1], []),
    ev.Renewed([], [T1]),
    ev.Leases([lease(T1)]),
    ev.Leases([lease(T1, "noop")]),
    ev.Welcome([T1], []),
    ev.Welcome([], [T1]),
    ev.Control("pause"),
    ev.Control("resume"),
    ev.Control("drain"),
    ev.Control("hand_back", "why"),
    ev.Control("nonsense"),
    ev.Tick(),
    ev.Flush(),
    ev.Disconnected(),
    ev.Drain(False),
    ev.Drain(True),
    ev.Held("hot"),
    ev.Held("very hot", critical=True),
    ev.Released(),
    ev.VramBudget(4096),
    ev.ModelVram(512),
    ev.Unkillable(T1, "pid 7 cannot be killed"),
    ev.NotSpooled([T1]),
    ev.Superseded(),
]
SCENES = [
    "empty",
    "queued",
    "handed",
    "running",
    "waiting",
    "ending",
    "killed",
    "ended",
    "stuck",
    "leaving",
    "away",
    "held",
]


def scene(name: str, type: str) -> Bench:
    b = Bench(slots=1, kill_grace_s=1.0)
    if name == "queued":
        b.run((9, 9), "shell")
        b.do(ev.Leases([lease(T1, "shell")]))
    elif name == "handed":
        b.do(ev.Leases([lease(T1, type)]))
    elif name != "empty":
        b.run(T1, type, timeout_s=50.0)
    if name == "waiting":
        b.do(ev.Lent(T1, True))
    elif name in {"ending", "killed", "stuck"}:
        b.do(ev.Renewed([T1]))
        if name != "ending":
            b.after(2.0)
    elif name == "ended":
        b.do(ev.Ended(T1, ev.Outcome(True)))
    elif name == "leaving":
        b.do(ev.Drain())
    elif name == "away":
        b.do(ev.Disconnected())
    elif name == "held":
        b.do(ev.Held("hot"))
    return b


@pytest.mark.parametrize(("name", "type"), list(product(SCENES, ["shell", "noop"])))
def test_every_event_in_every_phase_keeps_the_books(name: str, type: str) -> None:
    for event in TOKEN_EVENTS:
        keeps_the_books(scene(name, type), event)


def keeps_the_books(b: Bench, event: ev.Event) -> None:
    for _ in range(2):  # everything comes twice
        b.do(event)
        b.flush()
        b.after(0.3)
    core = b.core
    assert core._lent == sum(r.waiting for r in core.runs.values()) >= 0
    assert not set(core.runs) & set(core.stuck)
    assert not set(core.unkillable) & {*core.runs, *core.stuck}
    assert core.next_due(b.now) >= b.now
    assert len(set(core.resume())) == len(core.resume())
    # Whatever happened: once everything ends and is recorded, nothing is owed and nothing is due at once.
    for token in [*core.runs, *core.stuck, *core.unkillable]:
        b.do(
            ev.Recalled([token])
            if core.runs.get(token) and core.runs[token].waits
            else ev.Ended(token, ev.Outcome(True))
        )
    b.do(ev.Recorded(core.outbox.tokens()))
    assert core.runs == {}
    assert core.stuck == core.unkillable == {}
    assert core._lent == 0
    assert core.resume() == []


def test_a_repeated_lease_runs_once() -> None:
    b = Bench(slots=2)
    assert kinds(b.do(ev.Leases([lease()]), ev.Leases([lease()]))) == [ev.Start]
    b.do(ev.Started(T1, b.now), ev.Ended(T1, ev.Outcome(True)))
    assert b.do(ev.Leases([lease()])) == []


def test_a_lease_without_its_fields_is_a_bad_frame() -> None:
    good = {"token": [1, 2], "id": "a", "batch": "b", "key": "k", "type": "t"}
    assert ev.Lease.from_wire(good, b"").token == (1, 2)
    for broken in ({}, {**good, "token": 3}, {k: v for k, v in good.items() if k != "id"}):
        with pytest.raises(BadFrame):
            ev.Lease.from_wire(broken, b"")


# ---------------------------------------------------------------- renewing and reconnecting


def test_one_renew_names_everything_that_is_held() -> None:
    b = Bench(slots=2)
    b.run(T1)
    b.run(T2)
    b.do(ev.Ended(T2, ev.Outcome(True)))
    (renew,) = sent(b.after(1.1), Verb.RENEW)
    assert sorted(renew["tokens"]) == [T1, T2]
    assert sent(b.after(0.5), Verb.RENEW) == []
    assert len(sent(b.after(0.6), Verb.RENEW)) == 1


def test_results_made_while_the_broker_is_away_go_out_with_the_next_session() -> None:
    b = Bench()
    b.run()
    b.do(ev.Disconnected(), ev.Ended(T1, ev.Outcome(True, body=b"x")))
    assert b.flush() == []
    assert b.core.resume() == [T1]
    b.do(ev.Welcome(kept=[T1]))
    sends = b.flush()
    assert [r["token"] for r in results(sends)] == [T1]
    assert len(sent(sends, Verb.OFFER)) == 1


def test_a_result_that_is_not_answered_is_sent_again() -> None:
    b = Bench()
    b.run()
    b.do(ev.Ended(T1, ev.Outcome(True)))
    assert len(results(b.flush())) == 1
    for _ in range(int(RESEND_S) + 2):
        b.after(1.01)
    assert [r["token"] for r in results(b.flush())] == [T1]


def test_running_work_goes_on_without_a_broker_and_is_kept_by_the_next_one() -> None:
    b = Bench()
    b.run()
    b.do(ev.Disconnected())
    b.actions.clear()
    for _ in range(60):
        b.after(1.0)
    assert b.actions == []
    b.do(ev.Welcome(kept=[T1]))
    assert sent(b.flush(), Verb.STARTED) == [{"tokens": [T1]}]


def test_over_tcp_the_work_ends_before_the_lease_does() -> None:
    b = Bench(fence=True)
    b.run()
    b.do(ev.Disconnected())
    b.actions.clear()
    while not b.actions:
        b.now = b.core.next_due(b.now + 0.01)
        b.do(ev.Tick())
    assert kinds(b.actions) == [ev.Kill]
    assert b.now == pytest.approx(104.0, abs=0.2)


def test_silence_of_the_broker_asks_for_a_new_connection() -> None:
    b = Bench()
    for _ in range(10):
        b.after(1.01, silent=True)
    assert ev.Reconnect in kinds(b.actions)
    assert not b.core.connected


def test_what_the_broker_calls_stale_is_killed_and_never_reported() -> None:
    b = Bench()
    b.run()
    assert kinds(b.do(ev.Renewed(stale=[T1]))) == [ev.Kill]
    b.do(ev.Ended(T1, ev.Outcome(True)))
    assert results(b.flush()) == []
    assert b.core.resume() == []


def test_a_stale_result_is_forgotten() -> None:
    b = Bench()
    b.run()
    b.do(ev.Ended(T1, ev.Outcome(True)), ev.Stale([T1]))
    assert b.core.resume() == []


# ---------------------------------------------------------------- ending


def test_a_cancel_is_reported_only_when_the_tree_is_dead() -> None:
    b = Bench(kill_grace_s=10.0)
    b.run()
    assert kinds(b.do(ev.Renewed(cancel=[T1]))) == [ev.Terminate]
    assert b.do(ev.Renewed(cancel=[T1])) == []
    assert ev.Kill not in kinds(b.after(9.9))
    assert ev.Kill in kinds(b.after(0.2))
    assert results(b.flush()) == []
    b.do(ev.Ended(T1, ev.Outcome(False, cls="crash")))
    (row,) = results(b.flush())
    assert row["cancelled"] is True
    assert row["ok"] is False


def test_a_result_that_came_before_the_cancel_wins() -> None:
    b = Bench()
    b.run()
    b.do(ev.Ended(T1, ev.Outcome(True)), ev.Renewed(cancel=[T1]))
    assert [r["ok"] for r in results(b.flush())] == [True]


def test_a_cancel_of_what_has_not_begun_needs_no_process() -> None:
    b = Bench(slots=1)
    b.run(T1)
    b.do(ev.Leases([lease(T2)]), ev.Renewed(cancel=[T2]))
    assert [r.get("cancelled") for r in results(b.flush())] == [True]


def test_a_handed_lease_is_cancelled_wherever_it_is() -> None:
    b = Bench()
    b.do(ev.Leases([lease(T1, "noop")]))
    assert kinds(b.do(ev.Renewed(cancel=[T1]))) == [ev.Terminate, ev.Recall]
    b.do(ev.Recalled([T1]))
    assert [r.get("cancelled") for r in results(b.flush())] == [True]


@pytest.mark.parametrize(
    ("own", "handler", "expected"), [(3.0, 7.0, 3.0), (None, 7.0, 7.0), (None, None, 1800.0)]
)
def test_the_timeout_is_the_tasks_then_the_handlers_then_half_an_hour(
    own: float | None, handler: float | None, expected: float
) -> None:
    b = Bench(timeouts={"shell": handler})
    b.run(timeout_s=own)
    b.core._renew_at = 1e9
    assert ev.Terminate not in kinds(b.after(expected - 0.1))
    assert ev.Terminate in kinds(b.after(0.2))
    b.do(ev.Ended(T1, ev.Outcome(False, body=b"known", exit=143)))
    (row,) = results(b.flush())
    assert row["class"] == "task"
    assert row["error"] == f"timed out after {expected:g} s"


def test_no_progress_ends_a_task_and_output_or_progress_keeps_it() -> None:
    b = Bench()
    b.run(no_progress_s=5.0)
    for event in (ev.Active(T1), ev.Progress(T1, 0.1)):
        b.now += 4.0
        b.do(event, ev.Renewed(), ev.Tick())
    assert ev.Terminate not in kinds(b.actions)
    assert ev.Terminate in kinds(b.after(5.1))


def test_the_timeout_starts_when_the_attempt_starts() -> None:
    b = Bench(slots=1)
    b.do(ev.Leases([lease(timeout_s=5.0)]))
    b.after(100.0)
    b.do(ev.Started(T1, b.now))
    assert ev.Terminate not in kinds(b.after(4.0))


# ---------------------------------------------------------------- threads cannot be killed


def test_a_handler_past_its_timeout_is_reported_and_the_worker_restarts_when_idle() -> None:
    b = Bench(slots=2)
    b.run(T1, "noop", timeout_s=5.0)
    b.run(T2, "noop", timeout_s=50.0)
    assert ev.Terminate in kinds(b.after(5.1))
    assert results(b.flush()) == [], "it may still listen and return"
    b.after(LISTEN_S)
    (row,) = results(sends := b.flush())
    assert "its thread cannot be killed: use isolated=True" in row["error"]
    assert sent(sends, Verb.OFFER)[-1]["credit"] == 0
    b.do(ev.Recorded([T1]))
    assert ev.Exit not in kinds(b.actions)
    b.do(ev.Ended(T2, ev.Outcome(True)))
    b.flush()
    (end,) = [a for a in b.do(ev.Recorded([T2])) if isinstance(a, ev.Exit)]
    assert end.code == ev.EXIT_RESTART


def test_a_handler_that_returns_soon_after_its_timeout_costs_its_agent_nothing() -> None:
    b = Bench(slots=2)
    b.run(T1, "noop", timeout_s=5.0)
    b.after(5.1)
    b.do(ev.Ended(T1, ev.Outcome(True)))
    (row,) = results(b.flush())
    assert (row["ok"], row["class"], row["error"]) == (False, "task", "timed out after 5 s")
    assert ev.Exit not in kinds(b.do(ev.Recorded([T1])))
    assert b.core.credit == 2


def test_a_hanging_handler_that_ends_after_all_saves_the_process() -> None:
    b = Bench(slots=2)
    b.run(T1, "noop", timeout_s=5.0)
    b.run(T2, "noop", timeout_s=50.0)
    b.after(5.1)
    b.after(LISTEN_S)
    b.flush()
    b.do(ev.Ended(T1, ev.Outcome(True)))
    assert sent(b.flush(), Verb.OFFER)[-1]["credit"] == 2
    b.do(ev.Ended(T2, ev.Outcome(True)), ev.Recorded([T1, T2]))
    assert ev.Exit not in kinds(b.actions)


def test_a_cancelled_handler_that_hangs_is_not_reported_while_it_lives() -> None:
    b = Bench(kill_grace_s=2.0)
    b.run(T1, "noop")
    b.do(ev.Renewed(cancel=[T1]))
    assert [a.code for a in b.after(2.1) if isinstance(a, ev.Exit)] == [ev.EXIT_RESTART]
    assert results(b.flush()) == []
    assert b.core.resume() == [T1]


# ---------------------------------------------------------------- credit


def test_short_tasks_earn_a_queue_and_a_long_one_ends_it() -> None:
    b = Bench(slots=1)
    for i in range(20):
        token = (0, 100 + i)
        b.do(ev.Leases([lease(token, "noop")]), ev.Started(token, b.now))
        b.do(ev.Ended(token, ev.Outcome(True, duration_s=0.0001)))
    offer = sent(b.flush(), Verb.OFFER)[-1]
    assert offer["credit"] > 50
    b.do(ev.Leases([lease(T1, "noop"), lease(T2, "noop")]), ev.Started(T1, b.now))
    (recall,) = [a for a in b.after(0.25) if isinstance(a, ev.Recall)]
    assert recall.tokens == [T2]
    b.do(ev.Recalled([T2]))
    sends = b.flush()
    assert sent(sends, Verb.OFFER)[-1]["credit"] == 1
    assert sent(sends, Verb.RETURN) == [{"tokens": [T2], "reason": "worker busy"}]


def test_a_worker_without_credit_says_so_before_it_returns() -> None:
    b = Bench(slots=1)
    b.run(T1)
    b.do(ev.Leases([lease(T2)]), ev.Control("pause"))
    verbs = [a.verb for a in b.flush()]
    assert verbs.index(Verb.OFFER) < verbs.index(Verb.RETURN)


def test_a_queue_that_moves_is_not_returned() -> None:
    b = Bench(slots=1)
    b.do(ev.Leases([lease((1, n), "noop") for n in range(10)]))
    for n in range(9):
        b.do(ev.Started((1, n), b.now))
        assert ev.Recall not in kinds(b.after(0.15))
        b.do(ev.Ended((1, n), ev.Outcome(True, duration_s=0.15)))


def test_a_handler_that_waits_lends_its_slot() -> None:
    b = Bench(slots=1)
    b.run(T1)
    b.do(ev.Lent(T1, True))
    assert sent(b.flush(), Verb.OFFER)[-1]["credit"] == 2
    assert kinds(b.do(ev.Leases([lease(T2)]))) == [ev.Start]
    b.do(ev.Lent(T1, False), ev.Lent(T1, False))
    assert b.core.credit == 1


def test_a_lent_slot_comes_back_with_the_end_of_its_handler() -> None:
    b = Bench(slots=1)
    b.run(T1, "noop")
    b.do(ev.Lent(T1, True), ev.Ended(T1, ev.Outcome(True, duration_s=9)))
    assert b.core.credit == 1


def test_paused_means_no_credit_and_what_waits_goes_back() -> None:
    b = Bench(slots=1)
    b.run(T1)
    b.do(ev.Leases([lease(T2)]), ev.Control("pause"), ev.Leases([lease(T3)]))
    sends = b.flush()
    assert sent(sends, Verb.OFFER)[-1]["credit"] == 0
    assert sorted(t for h in sent(sends, Verb.RETURN) for t in h["tokens"]) == [T2, T3]
    assert T1 in b.core.runs
    b.do(ev.Recorded([T2, T3]), ev.Control("resume"))
    assert sent(b.flush(), Verb.OFFER)[-1]["credit"] == 1


def test_asked_to_hand_back_it_returns_what_waits_and_goes_on() -> None:
    b = Bench(slots=1)
    b.run(T1)
    b.do(ev.Leases([lease(T2)]), ev.Control("hand_back", "quarantined: 3 different tasks crashed there"))
    reason = "quarantined: 3 different tasks crashed there"
    assert sent(b.flush(), Verb.RETURN) == [{"tokens": [T2], "reason": reason}]
    assert T1 in b.core.runs and b.core.credit == 1


def test_a_worker_with_too_many_unanswered_results_takes_no_more() -> None:
    b = Bench(slots=1)
    for n in range(FULL_AT):
        b.core.outbox.add((1, n), ev.Outcome(True))
    assert b.core.credit == 0
    b.do(ev.Recorded([(1, n) for n in range(FULL_AT)]))
    assert b.core.credit == 1


def test_the_queue_of_leases_follows_the_length_of_tasks() -> None:
    p = Prefetch(slots=1)
    for _ in range(30):
        p.ran(0.0001)
    assert p.depth > 50
    for _ in range(30):
        p.ran(0.1)
    assert p.depth == 0


# ---------------------------------------------------------------- progress


def test_the_first_progress_goes_at_once_and_the_next_are_gathered() -> None:
    b = Bench()
    b.run()
    (first,) = sent(b.do(ev.Progress(T1, 0.1, "a", b"1")), Verb.PROGRESS)
    assert first == {"token": T1, "n": 0, "pct": 0.1, "note": "a"}
    assert b.do(ev.Progress(T1, 0.2, None, b"2"), ev.Progress(T1, 0.3, "c", b"3")) == []
    assert b.core.next_due(b.now) == pytest.approx(b.now + 0.02)
    (send,) = [a for a in b.after(0.02) if isinstance(a, ev.Send) and a.verb is Verb.PROGRESS]
    assert send.header == {"token": T1, "n": 1, "pct": 0.3, "note": "c"}
    assert list(send.body) == [b"2", b"3"]


def test_pending_progress_comes_before_the_result() -> None:
    b = Bench()
    b.run()
    b.do(ev.Progress(T1, 0.1), ev.Progress(T1, 0.9))
    b.actions.clear()
    b.do(ev.Ended(T1, ev.Outcome(True)))
    b.flush()
    assert [a.verb for a in b.actions if isinstance(a, ev.Send)][:2] == [Verb.PROGRESS, Verb.RESULT]


# ---------------------------------------------------------------- leaving


def test_a_drain_finishes_what_runs_returns_the_rest_and_exits_after_recorded() -> None:
    b = Bench(slots=1)
    b.run(T1)
    b.do(ev.Leases([lease(T2)]), ev.Drain())
    assert sent(b.flush(), Verb.RETURN)[0]["tokens"] == [T2]
    b.do(ev.Recorded([T2]), ev.Ended(T1, ev.Outcome(True)))
    assert ev.Exit not in kinds(b.actions)
    b.flush()
    (end,) = b.do(ev.Recorded([T1]))
    assert isinstance(end, ev.Exit)
    assert end.code == 0


def test_a_fast_drain_kills_and_reports_infra() -> None:
    b = Bench()
    b.run(T1)
    assert ev.Kill in kinds(b.do(ev.Drain(), ev.Drain(fast=True)))
    b.do(ev.Ended(T1, ev.Outcome(False, cls="crash")))
    assert [r["class"] for r in results(b.flush())] == ["infra"]
    assert kinds(b.do(ev.Recorded([T1]))) == [ev.Exit]


def test_a_drain_that_takes_too_long_becomes_fast() -> None:
    b = Bench(drain_s=20.0)
    b.run(T1)
    b.do(ev.Drain())
    assert ev.Kill not in kinds(b.after(19.0))
    assert ev.Kill in kinds(b.after(1.1))


def test_a_drain_without_a_broker_ends_in_the_end() -> None:
    b = Bench(drain_s=1.0)
    b.run(T1)
    b.do(ev.Disconnected(), ev.Ended(T1, ev.Outcome(True)), ev.Drain())
    for _ in range(10):
        b.after(1.0)
    assert ev.Exit in kinds(b.actions)


def test_an_idle_worker_leaves_at_once() -> None:
    assert kinds(Bench().do(ev.Drain())) == [ev.Exit]


def test_a_superseded_worker_kills_its_trees_and_says_nothing_more() -> None:
    b = Bench(slots=2)
    b.run(T1)
    b.run(T2, "noop")
    assert kinds(b.do(ev.Superseded())) == [ev.Kill]
    (end,) = b.do(ev.Ended(T1, ev.Outcome(True)))
    assert isinstance(end, ev.Exit)
    assert end.code == ev.EXIT_SUPERSEDED
    assert b.flush() == []


# ---------------------------------------------------------------- the outbox's limits


def test_a_message_of_results_never_breaks_the_wires_limits() -> None:
    box = Outbox()
    for n in range(2500):
        box.add(
            (1, n),
            ev.failed("task", "\U0001f600" * 40_000) if n % 50 == 0 else ev.Outcome(True, body=b"x" * 30_000),
        )
    sends = box.flush(0.0)
    rows = [row for s in sends for row in s.header["results"]]
    assert [r["token"][1] for r in rows] == list(range(2500))
    for s in sends:
        assert len(s.header["results"]) == len(s.body) <= 1000
        assert sum(map(len, s.body)) <= 4 << 20
        assert len(encode(s.verb, s.header, s.body)[3]) < MAX_FRAME_BYTES


def test_a_share_that_is_away_returns_the_lease_with_a_delay() -> None:
    b = Bench()
    b.run()
    b.do(ev.Ended(T1, ev.returned("share unavailable: gone", 5.0)))
    sends = b.flush()
    assert sent(sends, Verb.RETURN) == [
        {"tokens": [T1], "reason": "share unavailable: gone", "not_before_s": 5.0}
    ]
    assert results(sends) == []
