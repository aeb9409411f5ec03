"""The bridge's alerts on a real share with real helpers: files, journal, orders and requests, over restarts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from folders import Share
from helpers import wait_for

from rigbus.bridge.folder.alerts import alerts as alerts_module
from rigbus.bridge.folder.alerts.alerts import ESCALATIONS, NO_RECORDS, OLD_S, BridgeAlerts
from rigbus.bridge.folder.alerts.files import Book, alert_file
from rigbus.bridge.folder.intake.drafts import Invalid
from rigbus.bridge.folder.logs.decisions import Decision
from rigbus.bridge.folder.loop.clock import Clock
from rigbus.bridge.folder.loop.flows import Ask, Flow, Idle, Ops
from rigbus.bridge.folder.share.seal import sealed
from rigbus.bus import escalation
from rigbus.bus.alerting.core import State
from rigbus.bus.alerting.rules import Policy
from rigbus.bus.client.follow import Event
from rigbus.bus.telemetry import AlertFile
from rigbus.bus.wire import Envelope, Verb
from rigbus.tools.alert_rows import of_journal, of_share

WALL = 1_770_576_370.0


def failed(mark: float = 0.0, **more: Any) -> dict[str, Any]:
    row = {
        "id": "b1",
        "plan": "census",
        "kind": "plan",
        "state": "failed",
        "ended_at": WALL + mark,
        "tasks": {},
    }
    return {**row, "error": "exit 3", **more}


class Bridge:
    """Alerts of one bridge; the test is its clock and its broker."""

    def __init__(self, share: Share, state: Path, policy: Policy | None = None) -> None:
        self.share, self.state, self.policy, self.time = share, state, policy, 1000.0
        self.status: dict[str, Any] | None = {"broker": {"incarnation": 1}, "workers": [], "batches": []}
        self.log: list[list[Any]] = []
        self.trimmed = 0
        self.told: list[Decision] = []
        state.mkdir(exist_ok=True)
        share.do()
        self.start()

    def start(self) -> None:
        clock = Clock(lambda: self.time, lambda: WALL + self.time - 1000.0, lambda _: 3600.0)
        self.alerts = BridgeAlerts(
            self.share.port,
            Book(self.state),
            clock,
            self.policy,
            attached=lambda: self.status is not None,
            say=lambda at, decision: self.told.append(decision),
        )
        self.alerts.welcomed()
        self.flows = {name: run() for name, run in self.alerts.flows().items()}

    def __call__(self, ask: Ask) -> Envelope:
        if ask.verb is Verb.EVENTS:
            if ask.header["since"] < self.trimmed:
                return Envelope(Verb.RESNAPSHOT, {"oldest": self.trimmed + 1, "last": 9})
            return Envelope(Verb.EVENTS, {"events": self.log[:1], "more": False, "last": 9})
        assert ask.header == {"what": "status"} and self.status is not None
        return Envelope(Verb.OK, self.status)

    def turn(self, later_s: float = 6.0) -> None:
        """``later_s`` later: every flow up to its pause, in the order in which they run."""
        self.time += later_s
        for flow in self.flows.values():
            self._pass(flow)

    def _pass(self, flow: Flow[None]) -> None:
        value: Any = None
        for _ in range(50):
            step = flow.send(value)
            if isinstance(step, Ops):
                value = self.share.port.call(step.kind, step.ops, step.deadline_s)
            elif isinstance(step, Ask):
                value = self(step)
            elif isinstance(step, Idle):
                if step.seconds is None or step.seconds > 0:
                    return
                value = None
        raise AssertionError("it never pauses")

    def kill(self) -> None:
        """Another process begins."""
        for flow in self.flows.values():
            flow.close()
        self.start()

    def files(self) -> dict[str, dict[str, Any]]:
        folder = self.share.root / "alerts"
        return {p.stem: json.loads(p.read_text()) for p in folder.glob("*.json")} if folder.is_dir() else {}

    def file(self, key: str) -> Path:
        return self.share.root / "alerts" / f"{key}.json"

    def order(self, verb: str, **args: Any) -> None:
        folder = self.state / "doors" / "alerts"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{len(list(folder.iterdir())):04d}.json").write_text(
            json.dumps({"verb": verb, "args": args})
        )


@pytest.fixture
def bridge(share: Share, tmp_path: Path) -> Bridge:
    made = Bridge(share, tmp_path / "state")
    made.turn(1.0)
    return made


class TestFiles:
    def test_a_failed_batch_is_a_sealed_file_of_the_schema(self, bridge: Bridge) -> None:
        bridge.status = {**(bridge.status or {}), "batches": [failed()]}
        bridge.turn()
        said = bridge.files()["batch-failed.b1"]
        assert sealed(bridge.file("batch-failed.b1").read_bytes())
        assert AlertFile.model_validate(said).state == "raised"
        assert (
            said["severity"] == "critical"
            and "exit 3" in said["title"]
            and said["details"]["plan"] == "census"
        )
        assert said["raised_at"].startswith("2026-02-08T19:46:") and "Z" not in said["raised_at"]
        assert not {"acked_at", "cleared_at", "by"} & said.keys()
        assert [d.type for d in bridge.told] == ["ALERT_RAISED"]

    def test_what_does_not_change_is_not_written_again_not_even_by_the_next_process(
        self, bridge: Bridge
    ) -> None:
        bridge.status = {**(bridge.status or {}), "batches": [failed()]}
        bridge.turn()
        before = bridge.file("batch-failed.b1").stat()
        for _ in range(3):
            bridge.turn()
        bridge.kill()
        for _ in range(3):
            bridge.turn()
        after = bridge.file("batch-failed.b1").stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
        assert [d.type for d in bridge.told] == ["ALERT_RAISED"]

    def test_a_file_that_somebody_removes_or_edits_is_drawn_again(self, bridge: Bridge) -> None:
        bridge.status = {**(bridge.status or {}), "batches": [failed()]}
        bridge.turn()
        file = bridge.file("batch-failed.b1")
        was = file.read_bytes()
        file.unlink()
        bridge.turn(61.0)
        bridge.turn()
        assert file.read_bytes() == was
        file.write_text('{"mine": true}')
        bridge.turn(61.0)
        bridge.turn()
        assert file.read_bytes() == was
        assert [p.name for p in file.parent.glob("*.conflict*")]

    def test_one_that_is_forgotten_goes_and_what_others_keep_there_stays(
        self, share: Share, tmp_path: Path
    ) -> None:
        bridge = Bridge(share, tmp_path / "state", Policy(keep_s=100.0))
        bridge.status = {**(bridge.status or {}), "batches": [failed()]}
        bridge.turn()
        (share.root / "alerts" / "note.json").write_text("{}")
        os.symlink("/etc/hostname", share.root / "alerts" / "link.json")
        bridge.alerts.asked("ack", {"key": "batch-failed.b1"})
        bridge.kill()
        bridge.turn(200.0)
        bridge.turn(61.0)
        assert sorted(p.name for p in (share.root / "alerts").iterdir()) == ["link.json", "note.json"]

    def test_a_share_that_is_away_is_an_alert_and_is_shown_when_it_is_back(self, bridge: Bridge) -> None:
        away = bridge.share.root.with_name("away")
        bridge.share.root.rename(away)
        for _ in range(12):
            bridge.share.port.call("mirror", [{"op": "stat", "path": "x"}], 5.0)
            bridge.turn()
        assert [a.key for a in of_journal(bridge.state) or ()] == ["share-away"]
        away.rename(bridge.share.root)
        port = bridge.share.port
        wait_for(
            lambda: (port.poll(), port.state.available)[1], timeout_s=60, what="the share to be found again"
        )
        for _ in range(4):
            bridge.turn()
        assert bridge.files()["share-away"]["state"] == "cleared"


class TestWhatIsHeard:
    def test_a_broker_that_is_away_is_told_and_clears_nothing(self, bridge: Bridge) -> None:
        bridge.status = {**(bridge.status or {}), "batches": [failed(tasks={"dead": 1})]}
        bridge.turn()
        back, bridge.status = bridge.status, None
        bridge.turn(OLD_S + 1)
        bridge.turn(31.0)
        assert {k: v["state"] for k, v in bridge.files().items()} == {
            "batch-failed.b1": "raised",
            "broker-away": "raised",
        }
        bridge.status = back
        bridge.turn()
        bridge.turn()
        assert bridge.files()["broker-away"]["state"] == "cleared"

    def test_a_bridge_that_has_just_begun_knows_nothing_yet(self, share: Share, tmp_path: Path) -> None:
        bridge = Bridge(share, tmp_path / "state", Policy(raise_after_s={"broker-away": 0.0}))
        bridge.status = None
        bridge.turn(1.0)
        bridge.turn(5.0)
        assert bridge.files() == {}
        bridge.turn(OLD_S)
        assert list(bridge.files()) == ["broker-away"]

    def test_a_log_that_begins_with_a_loss_is_an_alert(self, share: Share, tmp_path: Path) -> None:
        bridge = Bridge(share, tmp_path / "state")
        bridge.trimmed = 1_000_000
        bridge.log = [[1_000_001, 0, WALL, "p", "rig.lost", "", "", {"commits": 3}]]
        bridge.turn(1.0)
        said = bridge.files()["rig-lost.lost"]
        assert (said["severity"], said["details"]) == ("critical", {"commits": 3})

    def test_an_event_makes_it_look_sooner(self, bridge: Bridge) -> None:
        assert bridge.alerts.event(Event(5, "batch.plan.failed"))
        assert bridge.alerts.event(Event(6, "task.shell.dead", "t"))
        assert not bridge.alerts.event(Event(7, "task.shell.done", "t"))
        bridge.status = {**(bridge.status or {}), "batches": [failed()]}
        bridge.turn(2.0)
        assert "batch-failed.b1" in bridge.files()

    def test_an_escalation_that_waits_for_a_person(self, bridge: Bridge) -> None:
        folder = bridge.share.root / "brain" / "escalations"
        folder.mkdir(parents=True)
        record = {"escalation_id": "20260101_000000_aaaaaaaa", "status": "human", "title": "help"}
        (folder / "20260101_000000_aaaaaaaa.json").write_text(json.dumps(record))
        (folder / "20260101_000000_aaaaaaaa.json.conflict-20260101000000000.json").write_text(
            json.dumps(record)
        )
        (folder / "20260101_000000_bbbbbbbb.json").write_text('{"status": "answered"}')
        (folder / "20260101_000000_aaaaaaaa.answer.json").write_text('{"status": "human"}')
        (folder / "20260101_000000_cccccccc.json").write_text("[" * 10_000)
        os.mkfifo(folder / "20260101_000000_dddddddd.json")
        bridge.turn()
        assert list(bridge.files()) == ["escalation-human.20260101_000000_aaaaaaaa"]
        (folder / "20260101_000000_aaaaaaaa.json").write_text(json.dumps({**record, "status": "applied"}))
        bridge.turn()
        bridge.turn()
        assert [f["state"] for f in bridge.files().values()] == ["cleared"]

    def test_the_newest_escalation_among_many_old_files_is_found(
        self, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(alerts_module, "PAGE", 10)
        folder = bridge.share.root / "brain" / "escalations"
        folder.mkdir(parents=True)
        for n in range(25):
            (folder / f"20250101_000000_{n:08x}.answer.receipt.json").write_text("{}")
        record = {"escalation_id": "20260101_000000_aaaaaaaa", "status": "human", "title": "help"}
        (folder / "20260101_000000_aaaaaaaa.json").write_text(json.dumps(record))
        bridge.turn()
        assert list(bridge.files()) == ["escalation-human.20260101_000000_aaaaaaaa"]


class TestAcks:
    def test_an_order_of_this_machine_is_carried_out_once_and_kept(self, bridge: Bridge) -> None:
        bridge.status = {**(bridge.status or {}), "batches": [failed()]}
        bridge.turn()
        bridge.order("ack", key="batch-failed.b1", by="ana", note="seen")
        bridge.turn()
        said = bridge.files()["batch-failed.b1"]
        assert (said["state"], said["by"], said["note"], said["why"]) == ("cleared", "ana", "seen", "acked")
        assert not list((bridge.state / "doors" / "alerts").iterdir())
        bridge.kill()
        bridge.turn()
        bridge.turn()
        assert bridge.files()["batch-failed.b1"] == said

    def test_rubbish_among_the_orders_is_removed(self, bridge: Bridge) -> None:
        bridge.order("ack", key="../x")
        bridge.order("ack", key="no-such")
        bridge.order("dance")
        (bridge.state / "doors" / "alerts" / "zz.json").write_text("[")
        bridge.turn()
        assert not list((bridge.state / "doors" / "alerts").iterdir())

    @pytest.mark.parametrize(
        ("verb", "args"),
        [
            ("ack", {}),
            ("ack", {"key": 7}),
            ("ack", {"key": "../x"}),
            ("ack", {"key": "no-such"}),
            ("alert-test", {"severity": "loud"}),
        ],
    )
    def test_a_request_that_means_nothing_is_refused_with_the_fix(
        self, bridge: Bridge, verb: str, args: Any
    ) -> None:
        with pytest.raises(Invalid) as refused:
            bridge.alerts.asked(verb, args)
        assert all(p.what and p.fix for p in refused.value.problems)

    def test_a_test_is_raised_and_ends_by_an_ack(self, bridge: Bridge) -> None:
        bridge.alerts.asked("alert-test", {"by": "ana", "severity": "critical"})
        bridge.turn()
        assert bridge.files()["test"]["severity"] == "critical"
        assert bridge.alerts.asked("ack", {"key": "test"})["state"] == "cleared"
        bridge.turn()
        bridge.turn()
        assert bridge.files()["test"]["state"] == "cleared"

    def test_turned_off_nothing_is_asked_and_what_stood_is_over(self, bridge: Bridge) -> None:
        bridge.status = {**(bridge.status or {}), "batches": [failed()]}
        bridge.turn()
        bridge.policy, bridge.status = Policy(enabled=False), None
        bridge.kill()
        bridge.turn(OLD_S + 1)
        bridge.turn()
        assert {k: v["state"] for k, v in bridge.files().items()} == {"batch-failed.b1": "cleared"}

    def test_the_count_for_status(self, bridge: Bridge) -> None:
        bridge.alerts.asked("alert-test", {"severity": "warning"})
        bridge.turn()
        assert bridge.alerts.counts() == {"raised": 1, "acked": 0, "info": 0, "warning": 1, "critical": 0}


def test_a_journal_that_is_damaged_is_put_aside(share: Share, tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "alerts.json").write_text("{")
    bridge = Bridge(share, tmp_path / "state")
    bridge.turn()
    assert (tmp_path / "state" / "alerts.damaged").read_text() == "{"
    assert of_journal(tmp_path / "state") == []


def test_what_is_drawn_is_read_back(bridge: Bridge) -> None:
    bridge.status = {**(bridge.status or {}), "batches": [failed()], "disk": {"level": "low", "folder": "/s"}}
    bridge.turn()
    bridge.turn(11.0)
    kept = {a.key: (a.state, a.severity, a.title, a.times) for a in of_journal(bridge.state) or ()}
    shown = {a.key: (a.state, a.severity, a.title, a.times) for a in of_share(bridge.share.root)}
    assert kept == shown and len(kept) == 2
    assert all(state is State.RAISED for state, *_ in kept.values())


def test_a_file_names_the_alert_and_nothing_else() -> None:
    from rigbus.bus.alerting.core import Alert
    from rigbus.bus.alerting.rules import Severity

    alert = Alert(
        "test", "test", Severity.INFO, State.RAISED, "t", details={"a": float("nan"), "b": None, "c": 1}
    )
    fields = json.loads(alert_file(alert, 0.0).data)
    assert fields["details"] == {"c": 1}


def test_escalations_are_looked_for_where_they_are_written() -> None:
    assert (ESCALATIONS, NO_RECORDS) == (
        escalation.FOLDER,
        (escalation.ANSWER_SUFFIX, escalation.RECEIPT_SUFFIX),
    )
