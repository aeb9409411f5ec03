"""A rig whose disk has lost something: it does not start, `rigbus repair` says what is gone, and the rig goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Processes, wait_for
from rigs import LiveRig

from rigbus import Task
from rigbus.bus.store.examining import examine


def rigbus(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rigbus", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.fixture
def rig(rig_dir: Path, processes: Processes) -> Iterator[LiveRig]:
    rig = LiveRig(rig_dir, processes, workers=1)
    rig.start()
    yield rig
    if rig.up is not None and rig.up.poll() is None:
        rig.stop()


def _echo(text: str) -> Task:
    return Task(type="shell", payload={"command": f"echo {text}"})


def test_a_lost_log_is_named_repaired_and_the_rig_goes_on(rig: LiveRig) -> None:
    with rig.client() as client:
        early = client.submit([_echo("early")])
        assert next(iter(client.results(early, timeout_s=20))).ok
        assert client.query("status")["broker"]["durability"] == "full"
        first = rigbus("backup", "--state", rig.state, rig.state.parent / "copy", "--json")
        assert first.returncode == 0, first.stderr
        late = client.submit([_echo("late")])
        assert next(iter(client.results(late, timeout_s=20))).ok
        last = client.query("status")["seq"]
    rig.kill_everything()
    assert examine(rig.paths.db).problems == [], "a power cut alone is no loss"
    wal = rig.state / "rigbus.db-wal"
    wal.write_bytes(wal.read_bytes()[:20_000])

    for verb in ("broker", "up"):
        refused = rigbus(verb, "--state", rig.state)
        assert refused.returncode == 8, refused.stderr
        assert "commits are gone" in refused.stderr
        assert "rigbus repair" in refused.stderr
    said = rigbus("repair", "--state", rig.state, "--dry-run")
    assert said.returncode == 0, said.stderr
    assert "lost: the last" in said.stdout
    assert rigbus("broker", "--state", rig.state).returncode == 8, "a dry run changes nothing"
    done = rigbus("repair", "--state", rig.state, "--json")
    report = json.loads(done.stdout)
    assert (done.returncode, report["repaired"]) == (0, True), done.stderr
    assert report["lost_commits"] > 0
    assert Path(report["damaged"]).exists()

    rig.start()
    with rig.client() as client:
        status = client.query("status")
        assert status["seq"] > last
        assert status["broker"]["incarnation"] == 2
        assert next(iter(client.results(client.submit([_echo("again")]), timeout_s=20))).ok
        refused = rigbus("repair", "--state", rig.state)
        assert refused.returncode == 8
        assert "another broker" in refused.stderr
    assert rig.stop() == 0
    assert "nothing to repair" in rigbus("repair", "--state", rig.state).stdout
    # the copy of before, as another rig
    other = rig.state.parent / "other"
    made = rigbus("restore", "--state", other, rig.state.parent / "copy", "--json")
    assert made.returncode == 0, made.stderr
    assert json.loads(made.stdout)["kept"]["tasks"] >= 1
    assert rigbus("restore", "--state", other, rig.state.parent / "copy").returncode == 8


def test_with_durability_normal_the_loss_is_an_event(rig_dir: Path, processes: Processes) -> None:
    rig = LiveRig(rig_dir, processes, workers=0, env={"RIGBUS_DURABILITY": "normal"})
    rig.start()
    with rig.client() as client:
        client.submit([Task(type="nobody", payload=n) for n in range(5)])
    rig.kill_everything()
    wal = rig.state / "rigbus.db-wal"
    wal.write_bytes(b"")
    rig.start()
    with rig.client() as client:
        status = client.query("status")
        assert status["broker"]["durability"] == "normal"
    log = rig.state / "logs" / "broker.log"
    wait_for(lambda: "commits lost" in log.read_text(), what="the loss in the log")
    assert rig.stop() == 0
    topics = [event[4] for event in rig.events()]
    assert topics[0] == "rig.lost"
