"""``rigbus bridge`` is the bridge itself, and has two words below it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from rigbus.bridge.folder import service
from rigbus.bridge.folder.share.owner import OWNER
from rigbus.tools.cli import cli


@pytest.fixture
def share(tmp_path: Path) -> Path:
    folder = tmp_path / "share"
    (folder / "plans/census").mkdir(parents=True)
    (folder / "plans/census/plan.md").touch()
    return folder


def run(*words: str | Path) -> tuple[int, str, str]:
    found = CliRunner().invoke(cli, [str(w) for w in words], standalone_mode=False)
    return (1 if found.exception else 0), found.output, f"{found.exception or ''}"


def test_without_a_word_it_is_the_bridge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started = []
    monkeypatch.setattr(service, "main", lambda paths, **how: started.append((paths, how)) or 0)
    assert run("bridge", "--state", tmp_path / "s", "--shared", tmp_path / "x")[0] == 0
    ((paths, how),) = started
    assert (paths.state, paths.shared) == (tmp_path / "s", tmp_path / "x")
    assert "settle_s" in how


@pytest.mark.parametrize("before", [True, False], ids=["options before the word", "options after it"])
def test_options_may_stand_on_either_side(share: Path, tmp_path: Path, before: bool) -> None:
    options = ["--state", tmp_path / "s", "--shared", share]
    words = ["rebuild", "--from-files", "--dry-run", "--json"]
    code, out, error = run("bridge", *(options + words if before else words + options))
    assert code == 0, error
    said = json.loads(out)
    assert (said["schema"], said["shared"], said["rebuilt"]) == ("rigbus.rebuild/1", str(share), False)


def test_the_source_has_to_be_named(share: Path, tmp_path: Path) -> None:
    code, _, error = run("bridge", "rebuild", "--state", tmp_path / "s", "--shared", share)
    assert code and "--from-files" in error


def test_the_report_says_what_the_share_never_had_and_what_to_do_next(share: Path, tmp_path: Path) -> None:
    (share / "inbox/later").mkdir(parents=True)
    code, out, error = run("bridge", "rebuild", "--from-files", "--state", tmp_path / "s", "--shared", share)
    assert code == 0, error
    assert "taken in from the inbox: 1 drop (later)" in out
    assert "what the share never had:" in out
    assert "`rigbus up` goes on" in out
    code, out, _ = run("bridge", "rebuild", "--from-files", "--state", tmp_path / "s", "--shared", share)
    assert code == 0 and "nothing was changed" in out


def test_take_gives_the_folder_to_this_rig_and_says_whose_it_was(share: Path, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (share / OWNER).write_text(json.dumps({"rig": "0123456789abcdef", "bridge": "b", "beat": 1}))
    code, out, error = run("bridge", "take", "--state", tmp_path / "s", "--shared", share)
    assert code == 0, error
    assert "it was that of the rig 01234567" in out
    assert run("bridge", "take", "--state", tmp_path / "s", "--shared", share)[1].endswith("before, too\n")
    code, out, _ = run("bridge", "take", "--state", tmp_path / "s", "--shared", share, "--json")
    assert json.loads(out)["before"]["rig"] == (tmp_path / "s/id").read_text().strip()
