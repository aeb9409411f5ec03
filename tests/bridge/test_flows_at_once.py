"""Two flows at one file, and one flow before and after the share went away or the bridge was killed."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flowing import Broker, Killed, drive
from folders import Share
from turning import Rig, Turning

from rigbus.bridge.folder.contract.receipts import Problem
from rigbus.bridge.folder.control.signals import Signals
from rigbus.bridge.folder.doors import doors
from rigbus.bridge.folder.intake.intake import Intake
from rigbus.bridge.folder.intake.journal import Journal
from rigbus.bridge.folder.intake.requests import Requests
from rigbus.bridge.folder.intake.taking import Declined, Taker
from rigbus.bridge.folder.loop.clock import Clock
from rigbus.bridge.folder.loop.flows import Ask, Flow
from rigbus.bridge.folder.queue.books import Books
from rigbus.bridge.folder.queue.core import PlanOrder, read_order
from rigbus.bridge.folder.queue.orders import Orders
from rigbus.bridge.folder.share.port import Fault, Reply
from rigbus.bus.paths import RigPaths, rig_paths
from rigbus.bus.wire import Envelope, Verb

PLAN = (
    "# Plan: p\n\n## Tasks\n\n### one\n\n- **command**: `echo {WORD}`\n- **task_class**: cpu\n\n"
    "## Inputs\n\n- **WORD**: what (default: `hi`)\n"
)


@pytest.fixture
def paths(share: Share, tmp_path: Path) -> RigPaths:
    (tmp_path / "state").mkdir()
    (share.root / "inbox/.requests").mkdir(parents=True)
    return rig_paths(tmp_path / "state", share.root)


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
def turning(share: Share, rig: Rig) -> Turning:
    share.do()
    return Turning(share.port, rig)


def put(share: Share, place: str, more: str = "", *, ready: bool = False) -> None:
    folder = share.root / place
    folder.mkdir(parents=True)
    (folder / "plan.md").write_text(PLAN + more)
    if ready:
        (folder / "READY").touch()


def request(share: Share, word: str = "w") -> str:
    """A `submit` of the plan p, as the command in file mode writes it; its id."""
    id_ = str(uuid.uuid4())
    args = {"plan": "p", "config": {"WORD": word}}
    half = share.root / f"inbox/.requests/{id_}.tmp"
    half.write_text(json.dumps({"schema": "rigbus.request/1", "id": id_, "verb": "submit", "args": args}))
    half.rename(half.with_suffix(".json"))
    return id_


def said(share: Share, id_: str) -> str:
    file = share.root / f"inbox/.requests/{id_}.receipt.json"
    return str(json.loads(file.read_text())["state"]) if file.exists() else ""


def take_in(turning: Turning, paths: RigPaths) -> None:
    taker = Taker(paths, turning.clock)
    answer = Requests(taker, turning.clock).answer
    turning.start(intake=Intake(turning.port, turning.flows, taker, answer, turning.clock, settle_s=1.0).run)


def submits(rig: Rig) -> list[dict[str, Any]]:
    return [ask.header["batch"]["plan"] for ask in rig.asked if ask.verb is Verb.SUBMIT]


def lost_once(share: Share, of: Callable[[list[dict[str, Any]]], bool]) -> None:
    """The first batch of operations like this is answered by a share that hangs."""
    real, hung = share.port.request, []

    def ask(kind: str, ops: list[dict[str, Any]], deadline_s: float = 10.0) -> int:
        if hung or not of(ops):
            return real(kind, ops, deadline_s)
        hung.append(real(kind, [], deadline_s))
        share.port._replies.append(Reply(hung[0], kind, [], Fault("HUNG", "the share gave no answer")))
        return hung[0]

    share.port.request = ask  # type: ignore[method-assign, assignment]


def killed(flow: Flow[Any], share: Share, broker: Callable[[Ask], Envelope], step: int) -> None:
    try:
        drive(flow, share.port, broker, die_at=step)
    except (Killed, Declined):
        pass


class Declining(Broker):
    def __call__(self, ask: Ask) -> Envelope:
        if ask.verb is Verb.SUBMIT:
            return Envelope(Verb.ERROR, {"code": "refused", "message": "no"})
        return super().__call__(ask)


def test_two_requests_for_one_plan_are_two_runs_of_it(
    share: Share, paths: RigPaths, rig: Rig, turning: Turning
) -> None:
    put(share, "plans/p")
    ids = [request(share, word) for word in ("a", "b", "c")]
    take_in(turning, paths)
    turning.until(lambda: all(said(share, id_) for id_ in ids))
    assert [said(share, id_) for id_ in ids] == ["accepted"] * 3
    assert sorted(plan["config"]["WORD"] for plan in submits(rig)) == ["a", "b", "c"]


def test_two_new_revisions_of_one_plan_settle_one_after_the_other(
    share: Share, paths: RigPaths, rig: Rig, turning: Turning
) -> None:
    put(share, "plans/p", "\nold\n")
    ids = [request(share, word) for word in "ab"]
    for id_ in ids:
        put(share, f"inbox/.incoming-{id_}/p", f"\n{id_}\n")
    take_in(turning, paths)
    turning.until(lambda: all(said(share, id_) for id_ in ids))
    assert [said(share, id_) for id_ in ids] == ["accepted"] * 2
    assert not [name for name in os.listdir(share.root / "plans") if name.startswith(".rigbus-")]
    assert len(os.listdir(share.root / "plans/p/.rigbus-revisions")) == 2
    assert {plan["path"] for plan in submits(rig)} == {f"{share.root}/plans/p"}


def test_a_drop_that_the_broker_refuses_takes_the_next_one_of_its_name_with_it_nowhere(
    share: Share, paths: RigPaths
) -> None:
    put(share, "inbox/p", ready=True)
    put(share, "next", "\nnext\n", ready=True)

    class Once(Rig):
        def __call__(self, ask: Ask) -> Envelope:
            if ask.verb is Verb.SUBMIT and not submits(self):
                self.asked.append(ask)
                (share.root / "next").rename(share.root / "inbox/p")  # its author drops the next one
                return Envelope(Verb.ERROR, {"code": "refused", "message": "no"})
            return super().__call__(ask)

    turning = Turning(share.port, rig := Once())
    share.do()
    take_in(turning, paths)
    receipt = share.root / "inbox/p.receipt.json"
    turning.until(lambda: receipt.exists() and json.loads(receipt.read_text())["state"] == "accepted")
    assert len(submits(rig)) == 2 and not (share.root / "inbox/p").exists()


@pytest.mark.parametrize("step", range(1, 12))
def test_a_brokers_refusal_is_told_whenever_the_bridge_is_killed(
    share: Share, paths: RigPaths, step: int
) -> None:
    put(share, "inbox/p", ready=True)

    def taken(taker: Taker, flow: Flow[Any]) -> Flow[None]:
        try:
            yield from flow
        except Declined as e:
            if (yield from taker.refuse("p", e.problems, lies=e.lies)):
                taker.journal.leave(e.drop_id)

    first = Taker(paths, Clock())
    first.journal.open()
    killed(taken(first, first.take_in("inbox/p", "p", True, "listing", "p")), share, Declining(), step)
    second = Taker(paths, Clock())
    second.journal.open()
    for entry in second.journal.entries().values():
        drive(taken(second, second.resume(entry)), share.port, Declining())
    if (share.root / "inbox/p").exists():
        drive(taken(second, second.take_in("inbox/p", "p", True, "listing", "p")), share.port, Declining())
    assert json.loads((share.root / "inbox/p.receipt.json").read_text())["state"] == "refused"
    assert not second.journal.entries()


@pytest.mark.parametrize("step", range(1, 22))
def test_a_request_that_was_taken_in_before_a_kill_is_answered_once_and_rightly(
    share: Share, paths: RigPaths, rig: Rig, turning: Turning, step: int
) -> None:
    put(share, "plans/p", "\nold\n")
    id_ = request(share)
    put(share, f"inbox/.incoming-{id_}", "\nnew\n")
    taker = Taker(paths, Clock())
    taker.journal.open()
    killed(Requests(taker, Clock()).answer(f".requests/{id_}.json"), share, rig, step)
    before = said(share, id_)
    take_in(turning, paths)
    assert turning.until(lambda: said(share, id_)) == "accepted" and before in ("", "accepted")
    assert len(rig.batches) == 1
    (batch,) = rig.batches.values()
    assert (paths.staged / batch["spec"]["sha256"] / "plan.md").read_text().endswith("new\n")


def test_a_signal_is_not_done_again_when_the_share_was_away_for_its_receipt(
    share: Share, paths: RigPaths, rig: Rig, turning: Turning
) -> None:
    (share.root / "signals").mkdir()
    (share.root / "signals/B1.abort").touch()
    rig.batches["k"] = {"id": "B1", "kind": "plan", "name": "p", "state": "running"}
    lost_once(share, lambda ops: any(op["op"] == "write" and "receipt" in op["path"] for op in ops))
    turning.start(signals=Signals(share.port, Journal(paths.state / "doors/signals"), turning.clock).run)
    # meanwhile somebody may have run the batch again
    turning.until((share.root / "signals/B1.abort.receipt.json").exists)
    assert len([ask for ask in rig.asked if ask.verb is Verb.CANCEL]) == 1


@pytest.mark.parametrize("first_ends", [True, False])
def test_two_orders_of_one_file_name_keep_both_their_answers(
    share: Share, paths: RigPaths, rig: Rig, turning: Turning, first_ends: bool
) -> None:
    put(share, "plans/p")
    tasks = share.root / "tasks"
    (tasks / "queue").mkdir(parents=True)
    both = doors(share.port, turning.flows, paths, turning.clock, lambda _: False)
    turning.start(**{name.replace(" ", "_"): run for name, run in both.items() if name.startswith("queue")})

    def order(word: str) -> None:
        fields = {"task_id": str(uuid.uuid4()), "type": "execute_plan", "config": {"WORD": word}}
        half = tasks / "queue/.half"
        half.write_text(json.dumps({**fields, "plan_path": f"{share.root}/plans/p"}))
        half.rename(tasks / "queue/nightly.json")

    def shown(lane: str) -> int:
        return len(os.listdir(tasks / lane)) if (tasks / lane).exists() else 0

    order("a")
    turning.until(lambda: shown("processing") == 1)
    order("b")
    turning.until(lambda: shown("processing") == 2)
    rows = list(rig.batches.values())
    for n, row in enumerate(rows if first_ends else rows[::-1], 1):
        row |= {"state": "complete", "ended_at": 1_770_576_400.0}
        turning.until(lambda n=n: shown("complete") == n)
    turning.until(lambda: shown("processing") == shown("queue") == 0)


def test_a_resume_requeues_once_whatever_dies_after_that(share: Share, paths: RigPaths, rig: Rig) -> None:
    """But for a kill between the broker's answer and the journal."""
    (share.root / "tasks/queue").mkdir(parents=True)
    batch = "20260208_184610_a1b2c3"
    fields = {"task_id": str(uuid.uuid4()), "type": "execute_plan", "plan_path": "plans/p"}
    fields["config"] = {"RUN_MODE": "resume", "RESUME_BATCH_ID": batch}  # type: ignore[assignment]
    row: dict[str, Any] = {
        "id": batch,
        "kind": "plan",
        "name": "p",
        "plan": "p",
        "total": 1,
        "tasks": {"dead": 1},
    }
    asked = 0
    for step in range(3, 9):
        rig.asked.clear()
        rig.batches["k"] = {**row, "state": "failed"}
        file = share.root / f"tasks/queue/{step}.json"
        file.write_text(json.dumps(fields))
        info = file.stat()

        def orders(step: int = step) -> Orders:
            books = Books(paths.state / f"doors/{step}")
            books.begin()
            return Orders(books, Taker(paths, Clock(), books.journal), paths, Clock())

        found = read_order(file.name, file.read_bytes())
        assert isinstance(found, PlanOrder)
        was = (info.st_ino, info.st_size, info.st_mtime_ns)
        killed(orders().take(file.name, was, found), share, rig, step)
        rig.batches["k"]["state"] = "failed"  # it ran again, and failed again, while nobody looked
        again = orders()
        for entry in again.books.unsent():
            drive(again.go_on(entry), share.port, rig)
            asked += 1
        assert len([ask for ask in rig.asked if ask.verb is Verb.REQUEUE]) == 1, step
    assert asked, "no kill fell between the requeue and its book"


def test_a_signal_that_is_written_anew_while_it_is_read_is_done_once(
    share: Share, paths: RigPaths, rig: Rig, turning: Turning
) -> None:
    (share.root / "signals").mkdir()
    file = share.root / "signals/B1.abort"
    file.touch()
    rig.batches["k"] = {"id": "B1", "kind": "plan", "name": "p", "state": "running"}
    real, anew = share.port.request, []

    def ask(kind: str, ops: list[dict[str, Any]], deadline_s: float = 10.0) -> int:
        if not anew and any(op["op"] == "read" for op in ops):
            anew.append(1)
            (share.root / "anew").write_text('{"reason": "for another reason"}')
            (share.root / "anew").rename(file)
        return real(kind, ops, deadline_s)

    share.port.request = ask  # type: ignore[method-assign, assignment]
    turning.start(signals=Signals(share.port, Journal(paths.state / "doors/signals"), turning.clock).run)
    turning.until(lambda: (share.root / "signals/B1.abort.receipt.json").exists() and not file.exists())
    assert [ask.header["reason"] for ask in rig.asked if ask.verb is Verb.CANCEL] == [
        "signal B1.abort: for another reason"
    ]


def test_half_an_order_that_was_made_whole_meanwhile_is_not_put_aside(share: Share, paths: RigPaths) -> None:
    queue = share.root / "tasks/queue"
    queue.mkdir(parents=True)
    file = queue / "o.json"
    file.write_text('{"task_id": ')
    info, data = file.stat(), file.read_bytes()
    books = Books(paths.state / "doors/queue")
    books.begin()
    orders = Orders(books, Taker(paths, Clock(), books.journal), paths, Clock())
    was = (info.st_ino, info.st_size, info.st_mtime_ns)
    (queue / "whole").write_text('{"task_id": "a", "type": "shell", "command": "true"}')
    (queue / "whole").rename(file)
    assert not drive(orders.refuse(file.name, data, (Problem("half", "x"),), was), share.port)
    assert file.exists()
