"""What a worker owes and when it lies on disk; what it takes over from a dead process of its name. Pure."""

from __future__ import annotations

from typing import Any

import pytest
from workbench import T1, T2, T3, Bench, kinds, lease, results, sent

from rigbus.agents.worker import events as ev
from rigbus.agents.worker.loop import _state
from rigbus.agents.worker.outbox import MESSAGE_BYTES, SPOOL_S, Outbox
from rigbus.bus.wire import MAX_BATCH, Verb

HANGS = "pid 4711 (cat /mnt/x, state D) cannot be killed"


def spooled(actions: list[Any]) -> list[list[Any]]:
    return [[row["token"] for row in a.rows] for a in actions if isinstance(a, ev.Spool)]


def unspooled(actions: list[Any]) -> list[Any]:
    return [token for a in actions if isinstance(a, ev.Unspool) for token in a.tokens]


def end(b: Bench, token: tuple[int, int] = T1) -> None:
    b.run(token)
    b.do(ev.Ended(token, ev.Outcome(True, body=b"\x01")))


# ---------------------------------------------------------------- when


def test_what_is_answered_at_once_never_touches_the_disk() -> None:
    b = Bench(slots=2)
    for n in range(1, 50):
        end(b, (1, n))
        b.flush()
        b.after(0.1)
        b.do(ev.Recorded([(1, n)]))
    assert not {ev.Spool, ev.Unspool} & set(kinds(b.actions))


def test_a_result_without_an_answer_for_a_second_is_written_once_and_removed_when_recorded() -> None:
    b = Bench()
    end(b)
    b.flush()
    assert spooled(b.after(SPOOL_S - 0.1)) == []
    assert spooled(b.after(0.2)) == [[T1]]
    b.actions.clear()
    for _ in range(10):
        b.after(1.1)
        b.flush()
    assert spooled(b.actions) == [] and results(b.actions), "sent again, but written once"
    assert unspooled(b.do(ev.Recorded([T1]))) == [T1]
    assert b.do(ev.Recorded([T1])) == []


def test_while_the_broker_is_away_one_write_takes_all_that_ended() -> None:
    b = Bench(slots=3)
    for token in (T1, T2, T3):
        b.run(token)
    b.do(ev.Disconnected())
    b.do(*(ev.Ended(t, ev.Outcome(True, body=b"x")) for t in (T1, T2, T3)))
    actions = b.do(ev.Flush())
    assert spooled(actions) == [[T1, T2, T3]]
    assert [a.body for a in actions] == [[b"x"] * 3]
    assert b.do(ev.Flush()) == []
    b.do(ev.Welcome(kept=[T1, T2, T3]))
    assert len(results(b.flush())) == 3


def test_a_worker_that_leaves_without_an_answer_writes_first() -> None:
    b = Bench()
    end(b)
    b.flush()
    actions = b.do(ev.Drain(fast=True, patience_s=0.3))
    while ev.Exit not in kinds(actions):
        actions = b.after(0.4, silent=True)
    assert kinds(actions)[-2:] == [ev.Spool, ev.Exit]
    assert spooled(actions) == [[T1]]


def test_a_worker_whose_results_are_answered_leaves_nothing() -> None:
    b = Bench()
    end(b)
    b.flush()
    b.do(ev.Recorded([T1]))
    assert kinds(b.do(ev.Drain())) == [ev.Exit]


def test_a_superseded_worker_writes_nothing_its_successor_has_the_name() -> None:
    b = Bench()
    end(b)
    b.flush()
    b.do(ev.Superseded())
    assert spooled(b.actions) == []


def test_a_disk_that_refuses_is_asked_again_but_not_at_every_turn() -> None:
    b = Bench()
    end(b)
    b.do(ev.Disconnected())
    assert spooled(b.do(ev.Flush())) == [[T1]]
    b.do(ev.NotSpooled([T1]))
    assert b.do(ev.Flush()) == []
    b.now += 1.1
    assert spooled(b.do(ev.Flush())) == [[T1]]
    assert unspooled(b.do(ev.Stale([T1]))) == [T1]


@pytest.mark.parametrize("event", [ev.Welcome(stale=[T1]), ev.Renewed(stale=[T1]), ev.Stale([T1])])
def test_stale_ends_the_copy_too(event: ev.Event) -> None:
    b = Bench()
    end(b)
    b.do(ev.Disconnected(), ev.Flush())
    assert unspooled(b.do(event)) == [T1]
    assert b.core.resume() == []


def test_a_file_is_never_larger_than_a_message() -> None:
    box = Outbox()
    for n in range(40):
        box.add((1, n), ev.Outcome(True, body=b"x" * (256 << 10)))
    for n in range(2 * MAX_BATCH):
        box.add((2, n), ev.Outcome(True))
    files = box.spool()
    assert sum(len(f.rows) for f in files) == 40 + 2 * MAX_BATCH
    assert max(len(f.rows) for f in files) <= MAX_BATCH
    assert max(sum(map(len, f.body)) for f in files) <= MESSAGE_BYTES


# ---------------------------------------------------------------- what a dead process left

LEFT = ev.Inherited("dead", [{"token": (0, 9), "ok": True, "duration_s": 1.0}], [b"\x02"])


def test_what_a_dead_process_left_is_named_by_hello_and_presented_in_its_name() -> None:
    b = Bench(connected=False)
    b.do(LEFT)
    assert b.core.owes() == {"dead": [(0, 9)]}
    assert b.core.resume() == [], "it holds no lease of that session"
    assert b.do(ev.Flush()) == [], "it lies on disk already"
    b.do(ev.Welcome())
    (result,) = sent(b.flush(), Verb.RESULT)
    assert result == {"session": "dead", "results": LEFT.rows}
    (renew,) = sent(b.after(1.1), Verb.RENEW)
    assert renew["tokens"] == []
    assert unspooled(b.do(ev.Recorded([(0, 9)]))) == [(0, 9)]
    assert b.core.owes() == {}


def test_own_results_and_inherited_ones_go_in_messages_of_their_own() -> None:
    b = Bench()
    b.run(T1)
    b.do(LEFT, ev.Ended(T1, ev.Outcome(True)))
    assert [h.get("session") for h in sent(b.flush(), Verb.RESULT)] == ["dead", None]


def test_it_is_presented_again_to_the_next_broker_until_it_is_answered() -> None:
    b = Bench(connected=False)
    b.do(LEFT, ev.Welcome())
    b.flush()
    b.do(ev.Disconnected(), ev.Welcome())
    assert [h["session"] for h in sent(b.flush(), Verb.RESULT)] == ["dead"]
    assert unspooled(b.do(ev.Stale([(0, 9)]))) == [(0, 9)]


# ---------------------------------------------------------------- what cannot be killed


def test_what_cannot_be_killed_is_reported_and_keeps_its_slot_until_it_ends() -> None:
    b = Bench(slots=2)
    b.run(T1)
    b.do(ev.Unkillable(T1, HANGS))
    sends = b.flush()
    (row,) = results(sends)
    assert (row["ok"], row["class"]) == (False, "infra")
    assert HANGS in row["error"]
    (offer,) = sent(sends, Verb.OFFER)
    assert (offer["credit"], offer["slots"], offer["unkillable"]) == (1, 1, [HANGS])
    assert "held" not in offer
    b.do(ev.Recorded([T1]))
    (renew,) = sent(b.after(1.1), Verb.RENEW)
    assert renew["tokens"] == [], "its lease is over"
    assert kinds(b.do(ev.Leases([lease(T2), lease(T3)]))) == [ev.Start], "one slot is left"
    (started,) = b.do(ev.Ended(T1, ev.Outcome(True)))
    assert isinstance(started, ev.Start) and started.lease.token == T3
    sends = b.flush()
    assert results(sends) == [], "it was reported"
    (offer,) = sent(sends, Verb.OFFER)
    assert (offer["slots"], "unkillable" in offer) == (2, False)


@pytest.mark.parametrize(
    "config", [{"slots": 1}, {"slots": 4, "info": {"cards": "0"}}, {"slots": 4, "vram_mb": 8000}]
)
def test_without_a_slot_left_or_where_it_may_hold_a_card_the_worker_is_held(config: dict[str, Any]) -> None:
    b = Bench(**config)
    b.run(T1)
    b.do(ev.Leases([lease(T2, "noop")]) if config["slots"] > 1 else ev.Leases([lease(T2)]))
    b.do(ev.Unkillable(T1, HANGS))
    sends = b.flush()
    assert sends[0].verb is Verb.OFFER, "or what goes back comes straight again"
    assert (sends[0].header["credit"], sends[0].header["held"]) == (0, HANGS)
    assert _state(b.core) == "held"
    b.do(ev.Leases([lease(T3)]))
    back = [t for h in sent(b.flush() + sends, Verb.RETURN) for t in h["tokens"]]
    assert T3 in back
    b.do(ev.Recorded([T1, *back]), ev.Ended(T1, ev.Outcome(True)))
    (offer,) = sent(b.flush(), Verb.OFFER)
    assert offer["credit"] >= 1 and "held" not in offer
    assert _state(b.core) != "held"


def test_a_timeout_stays_the_tasks_fault_and_a_cancel_a_cancel() -> None:
    b = Bench(slots=3, kill_grace_s=1.0)
    b.run(T1, timeout_s=5.0)
    b.run(T2)
    b.after(5.1)
    b.do(ev.Renewed(cancel=[T2]))
    b.after(1.1)
    b.do(ev.Unkillable(T1, HANGS), ev.Unkillable(T2, HANGS))
    timed_out, cancelled = results(b.flush())
    assert (timed_out["class"], timed_out["error"]) == ("task", f"timed out after 5 s; {HANGS}")
    assert cancelled["cancelled"] is True


def test_of_a_stale_attempt_nothing_is_said_but_its_slot_is_gone() -> None:
    b = Bench(slots=2)
    b.run(T1)
    b.do(ev.Stale([T1]), ev.Unkillable(T1, HANGS))
    sends = b.flush()
    assert results(sends) == []
    assert sent(sends, Verb.OFFER)[0]["slots"] == 1


def test_a_worker_that_drains_does_not_wait_for_it() -> None:
    b = Bench()
    b.run(T1)
    b.do(ev.Unkillable(T1, HANGS))
    b.flush()
    b.do(ev.Recorded([T1]))
    assert kinds(b.do(ev.Drain()))[-1] is ev.Exit


def test_it_is_said_once() -> None:
    b = Bench(slots=2)
    b.run(T1)
    b.do(ev.Unkillable(T1, HANGS))
    b.flush()
    assert b.do(ev.Unkillable(T1, HANGS)) == []
    assert b.do(ev.Leases([lease(T1)])) == [], "a lease that came twice does not run beside its own ghost"
