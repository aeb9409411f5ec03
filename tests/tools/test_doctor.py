"""`rigbus doctor`: its probes on real folders, real processes that hang, and the verb. Judgements: test_doctor_judges.py."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from helpers import short_folder

from rigbus.tools import doctor as module
from rigbus.tools.doctor_checks import folder_probe as probe
from rigbus.tools.doctor_checks.children import Asked, ask, within
from rigbus.tools.doctor_checks.findings import WIDTH, Finding, exit_code, lines_of, report, size
from rigbus.tools.doctor_checks.share import ShareFacts
from rigbus.tools.doctor_checks.state import StateFacts

from .test_verbs import loaded_by

# -- probes on real folders ----------------------------------------------------------------------------------


def test_a_folder_of_a_state_is_measured_and_nothing_stays(tmp_path):
    (tmp_path / "logs" / "b").mkdir(parents=True)
    (tmp_path / "logs" / "b" / "a.1.log").write_text("x" * 100)
    (tmp_path / "id").write_text("ab" * 16)
    (tmp_path / "incoming" / "copy-1").mkdir(parents=True)
    (tmp_path / "incoming" / "d.json").write_text("{}")
    before = sorted(tmp_path.rglob("*"))
    facts = StateFacts(**probe.look_at_state(str(tmp_path)))
    assert sorted(tmp_path.rglob("*")) == before
    assert len(facts.fsync_us) == probe.FSYNCS
    assert facts.sizes["logs"] == {"bytes": 100, "files": 1, "cut": False}
    assert (facts.state_id, facts.journal, facts.copies) == ("ab" * 16, 1, 1)
    assert facts.free_bytes


def test_a_state_folder_that_is_not_there_is_not_made(tmp_path):
    facts = StateFacts(**probe.look_at_state(str(tmp_path / "a" / "b")))
    assert not facts.exists
    assert facts.above == str(tmp_path)
    assert facts.above_writable
    assert list(tmp_path.iterdir()) == []


def test_a_share_is_tried_and_nothing_stays(tmp_path):
    for folder in ("inbox/.requests", "inbox/.incoming-old", "brain"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "brain" / "state.json").write_text("{}")
    requests = tmp_path / "inbox" / ".requests"
    for name in ("a.json", "b.json", "b.receipt.json", "new.json"):
        (requests / name).write_text("{}")
    old = time.time() - 1000
    for path in (requests / "a.json", requests / "b.json", tmp_path / "inbox" / ".incoming-old"):
        os.utime(path, (old, old))
    before = sorted(tmp_path.rglob("*"))
    facts = ShareFacts(**probe.look_at_share(str(tmp_path)))
    assert sorted(tmp_path.rglob("*")) == before
    assert abs(facts.skew_s) < 2
    assert facts.rename_error is None
    assert (facts.case_folds, facts.names) == (False, "kept")
    assert (facts.is_share, facts.sentinel) == (True, False)
    assert facts.news_age_s < 5
    assert facts.incoming == [".incoming-old"]
    assert facts.unanswered == 1
    assert 999 < facts.unanswered_age_s < 1010


@pytest.mark.parametrize("look", [probe.look_at_state, probe.look_at_share])
def test_a_file_in_place_of_a_folder_is_seen(look, tmp_path):
    (tmp_path / "file").write_text("")
    assert look(str(tmp_path / "file"))["is_dir"] is False
    assert look(str(tmp_path / "file" / "below"))["error"] == "ENOTDIR"


def test_what_a_killed_doctor_left_is_named(tmp_path):
    (tmp_path / f"{probe.MARK}1~").mkdir()
    assert probe.look_at_share(str(tmp_path))["doctor_left"] == []
    os.utime(tmp_path / f"{probe.MARK}1~", (1e9, 1e9))
    assert probe.look_at_share(str(tmp_path))["doctor_left"] == [f"{probe.MARK}1~"]


# -- children that hang --------------------------------------------------------------------------------------


def test_a_child_that_never_answers_is_left_when_its_time_is_up(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    began = time.monotonic()
    asked = Asked([sys.executable, "-c", f"open({str(tmp_path / 'pipe')!r})"], 0.3)
    assert asked.answer().hung
    assert time.monotonic() - began < 20
    with pytest.raises(ProcessLookupError):
        os.kill(asked.pid, 0)
    assert ask(["/no/such/program"], 1).code == 127


def test_a_function_that_hangs_is_left_in_its_thread(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TimeoutError, match=r"0\.1 s"):
        within(0.1, lambda: (tmp_path / "pipe").open().close())
    os.close(os.open(tmp_path / "pipe", os.O_RDWR))  # lets it go
    with pytest.raises(KeyError):
        within(1, lambda: {}["x"])


def test_a_share_that_does_not_answer_is_said_and_everything_else_too(monkeypatch, tmp_path, say):
    """The probe is stopped by a real signal, as a hung mount would hold it."""
    monkeypatch.setattr(module, "FOLDER_S", 0.5)
    started, stopped_pids = module._probe, []

    def stopped(kind: str, folder: Path):
        asked = started(kind, folder)
        if kind == "share":
            os.kill(asked.pid, signal.SIGSTOP)
            stopped_pids.append(asked.pid)
        return asked

    monkeypatch.setattr(module, "_probe", stopped)
    said = say("doctor", "--state", tmp_path / "none", "--shared", tmp_path, "--json")
    (pid,) = stopped_pids
    os.kill(pid, signal.SIGCONT)
    assert os.waitpid(pid, 0)[1] == 256, "it goes on by itself, and then nobody listens"
    assert list(tmp_path.iterdir()) == []
    assert said.code == 1
    (failed,) = [f for f in said.json["findings"] if f["status"] == "fail"]
    assert (failed["group"], "does not answer" in failed["value"]) == ("Shared folder", True)
    assert {f["group"] for f in said.json["findings"]} >= {"Software", "Sockets", "Limits", "GPU"}


# -- the verb ------------------------------------------------------------------------------------------------


@pytest.fixture
def pi(tmp_path, monkeypatch) -> Path:
    """A share seen from a machine that has nothing else."""
    root = tmp_path / "share"
    (root / "inbox").mkdir(parents=True)
    (root / "brain").mkdir()
    (root / "brain" / "state.json").write_text("{}")
    (root / ".rigbus-folder-id").write_text("x\n")
    monkeypatch.setenv("RIGBUS_STATE", str(tmp_path / "none"))
    monkeypatch.setenv("RIGBUS_SHARED", str(root))
    monkeypatch.chdir(tmp_path)
    return root


def test_a_machine_with_only_the_share_is_well_and_stays_as_it_was(say, pi):
    before = sorted(pi.parent.rglob("*"))
    said = say("doctor", "--json")
    assert sorted(pi.parent.rglob("*")) == before
    assert said.code == 0
    assert (said.json["schema"], said.json["mode"], said.json["ok"]) == ("rigbus.doctor/1", "file", True)
    assert said.json["shared"] == str(pi)
    found = {(f["group"], f["check"]): f["status"] for f in said.json["findings"]}
    assert found["Shared folder", "writable"] == found["Shared folder", "news"] == "ok"
    assert sum(said.json["counts"].values()) == len(said.json["findings"])


def test_file_mode_loads_no_library_of_the_bus(pi):
    assert loaded_by(pi, "doctor", "--json") == "0 []"


def test_for_people_it_is_aligned_and_narrow(say, pi):
    said = say("doctor")
    assert said.code == 0
    lines = said.out.splitlines()
    assert all(len(line) <= WIDTH for line in lines if str(pi.parent) not in line)
    assert "Shared folder" in lines
    assert "ok" in lines[-1]


@pytest.mark.parametrize(
    ("text", "chosen", "value"),
    [
        ("workers = [\n", False, "rigbus.toml: not TOML"),
        ("workers = [\n", True, "rigbus.toml: not TOML"),
        ("state = 3\n", False, None),
        (None, True, "no such file"),
    ],
)
def test_a_configuration_that_cannot_be_read_is_a_finding(text, chosen, value, say, pi):
    file = pi.parent / "rigbus.toml"
    if text is not None:
        file.write_text(text)
    said = say("doctor", "--json", *(["--config", file] if chosen else []))
    failed = [f for f in said.json["findings"] if f["status"] == "fail"]
    assert [f["check"] for f in failed] == (["configuration"] if value else [])
    assert said.code == len(failed)
    assert all(value in f["value"] and f["fix"] for f in failed)


def test_a_setting_that_nobody_knows_is_a_finding_where_a_rig_is(say, pi):
    with short_folder() as folder:
        (folder / "rigbus.toml").write_text("wrokers = 3\n")
        said = say("doctor", "--state", folder, "--config", folder / "rigbus.toml", "--json")
    (failed,) = [f for f in said.json["findings"] if f["status"] == "fail"]
    assert failed["check"] == "configuration"
    assert "wrokers" in failed["value"]


def test_a_share_that_is_not_there_fails(say, pi):
    said = say("doctor", "--shared", pi / "none", "--json")
    assert said.code == 1
    assert "is not there" in next(f["value"] for f in said.json["findings"] if f["status"] == "fail")
    assert not (pi / "none").exists()


def test_a_damaged_state_folder_does_not_stop_it(say, pi, tmp_path):
    with short_folder() as folder:
        (folder / "run.json").write_text("{torn")
        (folder / "id").write_bytes(b"\xff\xfe")
        said = say("doctor", "--state", folder, "--json")
    assert said.code == 1
    (failed,) = [f for f in said.json["findings"] if f["status"] == "fail"]
    assert failed["check"] == "run.json"


def test_only_a_failure_ends_with_1():
    calm = [Finding("Rig", "a", status, "x") for status in ("ok", "info", "warn")]
    assert exit_code(calm) == 0
    assert exit_code([*calm, Finding("Rig", "a", "fail", "x")]) == 1
    assert report(calm, {})["counts"] == {"ok": 1, "info": 1, "warn": 1, "fail": 0}
    assert report(calm, {})["findings"][0]["fix"] is None


def test_long_values_are_wrapped_under_themselves_and_control_characters_shown():
    finding = Finding("Rig", "broker", "fail", "word " * 40, "do \x1b[31m this " * 10)
    lines = lines_of([finding])
    assert lines[0] == "Rig"
    assert max(map(len, lines)) <= WIDTH
    assert lines[1].startswith("  fail  broker           word")
    assert all(line.startswith(" " * 25) for line in lines[2:-2])
    assert "\x1b" not in "".join(lines)
    assert lines[-1] == "1 fail"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (900 << 20, "900 MiB"), (5 << 40, "5.0 TiB")],
)
def test_sizes_are_for_people(count, text):
    assert size(count) == text


def test_the_probe_runs_alone_without_our_package(tmp_path):
    done = ask([sys.executable, "-I", "-S", probe.__file__, "share", str(tmp_path)], 10)
    assert json.loads(done.out)["exists"] is True
