"""`rigbus alerts` on a machine that has the folder only, and `rigbus notify` as people run it."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Processes, wait_for

from rigbus.bridge.folder.alerts.files import alert_file
from rigbus.bridge.folder.contract import layout
from rigbus.bus.alerting.core import Alert, State
from rigbus.bus.alerting.rules import Severity
from rigbus.tools.alert_rows import of_share
from rigbus.tools.cli import run

sys.path.insert(0, str(Path(__file__).parents[1] / "bridge" / "pi"))
from hue_fake import KEY, FakeHue, certificate, fingerprint

from .test_verbs import loaded_by

NOW = time.time()
OFFSET = time.localtime().tm_gmtoff


def put(root: Path, *alerts: Alert) -> None:
    for alert in alerts:
        file = alert_file(alert, OFFSET)
        (root / file.path).write_bytes(file.data)


def alert(
    key: str = "batch-failed.b1", state: State = State.RAISED, severity: str = "critical", **more: Any
) -> Alert:
    times = {"first_at": NOW - 60, "raised_at": NOW - 60, "changed_at": NOW - 60}
    return Alert(
        key, key.partition(".")[0], Severity(severity), state, f"{key}\x1b[31m bad", **{**times, **more}
    )


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A share as a living rig leaves it, seen from a machine without one."""
    root = tmp_path / "share"
    for folder in layout.FOLDERS:
        (root / folder).mkdir(parents=True)
    state = layout.state_file(
        [], pid=7, host="rig", started_at=NOW, changed_at=time.time(), utc_offset_s=OFFSET
    )
    (root / state.path).write_bytes(state.data)
    os.utime(root / state.path, ns=(state.mtime_ns, state.mtime_ns))
    monkeypatch.setenv("RIGBUS_STATE", str(tmp_path / "none"))
    monkeypatch.setenv("RIGBUS_SHARED", str(root))
    monkeypatch.chdir(tmp_path)
    return root


def say(capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str, str]:
    code = run([str(w) for w in words])
    return code, *capsys.readouterr()


class TestAlerts:
    def test_the_list_has_the_gravest_first_and_no_escape_of_others(self, share: Path, capsys: Any) -> None:
        put(share, alert("disk-low", severity="warning"), alert(), alert("brain-away", State.CLEARED))
        code, out, _ = say(capsys, "alerts", "list")
        assert code == 0 and "\x1b" not in out
        assert [line.split()[2] for line in out.splitlines()[1:]] == ["batch-failed.b1", "disk-low"]
        code, out, _ = say(capsys, "alerts", "list", "--all", "--json")
        said = json.loads(out)
        assert said["counts"]["raised"] == 2 and len(said["alerts"]) == 3

    def test_status_counts_them(self, share: Path, capsys: Any) -> None:
        put(share, alert(), alert("disk-low", severity="warning"))
        assert "2 alerts are raised, 1 of them critical" in say(capsys, "status")[1]
        assert json.loads(say(capsys, "status", "--json")[1])["alerts"]["raised"] == 2

    def test_file_mode_loads_neither_zmq_nor_pydantic(self, share: Path) -> None:
        put(share, alert())
        assert loaded_by(share, "alerts", "list", "--json") == "0 []"

    def test_an_ack_is_a_request_and_its_receipt_the_answer(self, share: Path, capsys: Any) -> None:
        put(share, alert())
        asked: list[Any] = []

        def answer() -> None:
            folder = share / "inbox" / ".requests"
            request = wait_for(lambda: next(folder.glob("*.json"), None), timeout_s=30, what="the request")
            asked.append(json.loads(request.read_text()))
            receipt = {"state": "accepted", "answer": {"state": "cleared"}}
            (folder / f"{request.stem}.receipt.json").write_text(json.dumps(receipt))

        rig = threading.Thread(target=answer)
        rig.start()
        code, out, _ = say(capsys, "alerts", "ack", "batch-failed.b1", "--note", "mine", "--timeout", "40")
        rig.join()
        assert (code, out) == (0, "batch-failed.b1: cleared\n")
        assert asked[0]["verb"] == "ack" and asked[0]["args"] | {"by": ""} == {
            "key": "batch-failed.b1",
            "note": "mine",
            "by": "",
        }

    @pytest.mark.parametrize("key", ["no-such", "../x", ""])
    def test_a_key_that_is_none_ends_3(self, share: Path, capsys: Any, key: str) -> None:
        assert say(capsys, "alerts", "ack", key)[0] == 3
        assert not list((share / "inbox" / ".requests").iterdir())

    def test_what_is_no_alert_is_left_out(self, share: Path) -> None:
        put(share, alert())
        folder = share / "alerts"
        (folder / "half.json").write_text('{"key": "half", ')
        (folder / "other.json").write_text('{"key": "not-other", "rule": "x"}')
        (folder / "deep.json").write_text("[" * 50_000)
        (folder / "link.json").symlink_to(folder / "batch-failed.b1.json")
        os.mkfifo(folder / "pipe.json")
        assert [a.key for a in of_share(share)] == ["batch-failed.b1"]

    def test_an_alert_of_a_newer_rig_is_shown(self, share: Path) -> None:
        put(share, alert("test", severity="warning"))
        file = share / "alerts" / "test.json"
        fields = json.loads(file.read_text()) | {"key": "moon-full", "rule": "moon-full", "new": 1}
        (share / "alerts" / "moon-full.json").write_text(json.dumps(fields))
        file.unlink()
        assert [(a.key, a.rule) for a in of_share(share)] == [("moon-full", "moon-full")]


@pytest.fixture
def hue(tmp_path: Path) -> Iterator[FakeHue]:
    pem = certificate(tmp_path, "bridge")
    fake = FakeHue(pem)
    fake.pin = fingerprint(pem)  # type: ignore[attr-defined]
    yield fake
    fake.close()


def config(tmp_path: Path, hue: FakeHue) -> Path:
    key = tmp_path / "key"
    key.write_text(KEY)
    key.chmod(0o600)
    file = tmp_path / "notify.toml"
    file.write_text(
        f'[notify]\npoll_s = 0.2\n[notify.sinks.room]\ntype = "hue"\nbridge = "{hue.address}"\ngroup = "Office"\n'
        f'fingerprint = "{hue.pin}"\nkey_file = "{key}"\n'  # type: ignore[attr-defined]
    )
    return file


class TestNotify:
    def test_once_turns_the_room_red_and_later_gives_it_back(
        self, share: Path, tmp_path: Path, hue: FakeHue, capsys: Any
    ) -> None:
        words = ("--config", config(tmp_path, hue), "--notify-state", tmp_path / "n")
        put(share, alert())
        before = set(share.rglob("*"))
        code, out, _ = say(capsys, "notify", "--dry-run", *words)
        assert (code, out) == (0, "room: Office turns red\n")
        assert not hue.asked and not (tmp_path / "n").exists()
        assert say(capsys, "notify", "--once", *words)[0] == 0
        assert [b["color"]["xy"]["x"] for _, b in hue.puts("grouped")] == [0.675]
        assert say(capsys, "notify", "--once", *words)[0] == 0
        assert len(hue.puts()) == 1
        put(share, alert(state=State.CLEARED, cleared_at=NOW))
        assert say(capsys, "notify", "--once", *words)[0] == 0
        assert hue.lamps["l2"]["color"]["xy"]["x"] == 0.17
        assert set(share.rglob("*")) == before  # it only reads

    def test_a_process_that_is_killed_and_started_again_gives_the_light_back(
        self, share: Path, tmp_path: Path, hue: FakeHue, processes: Processes
    ) -> None:
        words = ["-m", "rigbus", "notify", "--shared", str(share), "--config", str(config(tmp_path, hue))]
        words += ["--notify-state", str(tmp_path / "n")]
        put(share, alert())
        first = processes.python(*words)
        wait_for(lambda: hue.puts("grouped"), timeout_s=60, what="the room to turn red")
        processes.kill(first)
        put(share, alert(state=State.ACKED, acked_at=NOW))
        second = processes.python(*words)
        wait_for(lambda: len(hue.puts("/light/")) >= 4, timeout_s=60, what="the lamps to get their scene")
        second.terminate()
        assert second.wait(30) == 0
        assert len(hue.puts("grouped")) == 1
        assert hue.lamps["l2"]["color"]["xy"]["x"] == 0.17

    def test_a_test_is_amber_for_a_moment(
        self, share: Path, tmp_path: Path, hue: FakeHue, capsys: Any
    ) -> None:
        code, out, _ = say(capsys, "notify", "test", "--for", "0", "--config", config(tmp_path, hue))
        assert (code, out) == (0, "room: it has arrived\n")
        assert hue.lamps["l2"]["color"]["xy"]["x"] == 0.17 and len(hue.puts("grouped")) == 1

    def test_a_test_that_does_not_arrive_ends_1(
        self, share: Path, tmp_path: Path, hue: FakeHue, capsys: Any
    ) -> None:
        file = config(tmp_path, hue)
        file.write_text(file.read_text().replace("Office", "Attic"))
        assert say(capsys, "notify", "test", "--config", file)[0] == 1

    def test_pairing_shows_the_fingerprint_and_keeps_the_key_private(
        self, share: Path, tmp_path: Path, hue: FakeHue, capsys: Any
    ) -> None:
        hue.pressed = True
        words = ("--bridge", hue.address, "--key-file", tmp_path / "new" / "key")
        code, out, err = say(capsys, "notify", "pair", *words)
        assert code == 0 and "001788FFFE123456" in err and hue.pin in out and KEY not in out + err  # type: ignore[attr-defined]
        file = tmp_path / "new" / "key"
        assert file.read_text() == f"{KEY}\n" and file.stat().st_mode & 0o777 == 0o600
        assert say(capsys, "notify", "pair", *words)[0] == 8  # it is there already

    def test_pairing_refuses_another_certificate_and_ends_without_the_button(
        self, share: Path, tmp_path: Path, hue: FakeHue, capsys: Any
    ) -> None:
        words = ("--bridge", hue.address, "--key-file", tmp_path / "k")
        code, _, err = say(capsys, "notify", "pair", *words, "--fingerprint", "ab" * 32)
        assert code == 1 and hue.pin in err and "ab" * 32 in err  # type: ignore[attr-defined]
        assert say(capsys, "notify", "pair", *words, "--timeout", "0")[0] == 7
        assert not (tmp_path / "k").exists()

    def test_an_ack_of_notifys_own(self, share: Path, tmp_path: Path, capsys: Any) -> None:
        assert say(capsys, "notify", "ack", "rig-silent", "--notify-state", tmp_path / "n")[0] == 0
        assert (tmp_path / "n" / "acks" / "rig-silent").exists()
        assert say(capsys, "notify", "ack", "batch-failed.b1", "--notify-state", tmp_path / "n")[0] == 3
