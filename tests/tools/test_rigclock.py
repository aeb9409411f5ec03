"""A Pi whose clock is wrong: a living rig is not called silent, and a silent one not alive."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from rigbus.tools import rigclock
from rigbus.tools.cli import run
from rigbus.tools.files import Folder
from rigbus.tools.rigclock import RigClock

LIMIT_S = 30.0
HOUR_S = 3600.0


class Rig:
    """Stamps of a rig whose clock is ``ahead_s`` before this machine's; ``lives``: it renews them with every look."""

    def __init__(self, ahead_s: float, *, lives: bool) -> None:
        self.ahead_s, self.lives, self.looks = ahead_s, lives, 0
        self.at = time.time() + ahead_s

    def stamps(self) -> list[tuple[float, float]]:
        self.looks += 1
        if self.lives:
            self.at = time.time() + self.ahead_s
        return [(self.at, LIMIT_S)]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rigclock, "WATCH_S", 0.3)
    monkeypatch.setattr(rigclock, "LOOK_S", 0.01)


@pytest.mark.parametrize("ahead_s", [-10 * HOUR_S, -HOUR_S, 0.0, HOUR_S])
def test_of_a_rig_that_lives_it_is_the_rigs_time_whatever_this_clock_says(
    ahead_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rigclock, "WATCH_S", 30.0)  # it ends at the first sign
    clock = RigClock(Rig(ahead_s, lives=True).stamps)
    assert clock.now() == pytest.approx(time.time() + ahead_s, abs=5)


@pytest.mark.parametrize("ahead_s", [-10 * HOUR_S, -HOUR_S, HOUR_S])
def test_of_a_silent_rig_it_is_too_late_for_its_stamps_and_that_is_found_out_once(ahead_s: float) -> None:
    rig, said = Rig(ahead_s, lives=False), []
    clock = RigClock(rig.stamps, said.append)
    assert clock.now() - rig.at > LIMIT_S
    looks = rig.looks
    assert clock.now() - rig.at > LIMIT_S
    assert (rig.looks, len(said)) == (looks + 1, 1)
    rig.at += 2.0  # it is back
    assert clock.now() == pytest.approx(rig.at, abs=5)


def test_a_rig_that_begins_to_be_silent_is_found_out_too() -> None:
    rig = Rig(HOUR_S, lives=True)
    clock = RigClock(rig.stamps)
    clock.now()
    rig.lives = False
    rig.at = time.time() + HOUR_S - 2 * LIMIT_S
    assert clock.now() - rig.at > LIMIT_S


def test_where_the_clocks_agree_nothing_is_waited_for() -> None:
    rig = Rig(-20.0, lives=False)
    RigClock(rig.stamps).now()
    assert rig.looks == 1
    assert RigClock(list).now() == pytest.approx(time.time(), abs=5), "and where no rig was ever"


def _draw(share: Path, at: float) -> None:
    file = share / "brain/state.json"
    fresh = share / "brain/.state"
    fresh.write_text(json.dumps({"status": "active", "stale_after_s": LIMIT_S, "active_batches": {}}))
    os.utime(fresh, (at, at))
    fresh.rename(file)


@pytest.mark.parametrize(("lives", "code"), [(True, 0), (False, 4)])
def test_status_in_file_mode(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    lives: bool,
    code: int,
) -> None:
    if lives:
        monkeypatch.setattr(rigclock, "WATCH_S", 30.0)
    share = tmp_path / "share"
    for folder in ("inbox", "brain", "workers"):
        (share / folder).mkdir(parents=True)
    _draw(share, time.time() - HOUR_S)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.02):
            _draw(share, time.time() - HOUR_S)

    rig = threading.Thread(target=renew)
    if lives:
        rig.start()
    try:
        words = ["status", "--state", str(tmp_path / "none"), "--shared", str(share)]
        ended_with = run(words)
    finally:
        ended.set()
        if lives:
            rig.join()
    shown = capsys.readouterr()
    assert ended_with == code, shown
    assert "looking for" in shown.err
    if lives:
        assert Folder(share).now() == pytest.approx(time.time() - HOUR_S, abs=5)
    else:
        assert "stale" in shown.err
