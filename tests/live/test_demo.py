"""`rigbus demo`: its plan, its kill, its report; and that nothing of it stays."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from helpers import processes_of, slack, wait_for
from rigs import SOURCE

_WITH = """
from rigbus.tools import cli, demo_rig
drop = demo_rig.DemoRig.drop
demo_rig.DemoRig.drop = lambda rig, plan, ready: drop(rig, plan, {"config": %r})
cli.main()
"""
#: The demo with few and short files: it may be over before anybody could be killed.
SMALL = _WITH % {"LIMIT": "32", "SOURCE": str(SOURCE)}
#: With so many of the largest ones that half-way something runs. `make demo` takes all 160.
MIDDLE_FILES = 96
MIDDLE = _WITH % {"LIMIT": str(MIDDLE_FILES)}


@pytest.fixture
def demo(processes, monkeypatch, rig_dir):
    """Starts ``rigbus demo``, ``how`` says which; its folder is in ``rig_dir``."""
    monkeypatch.setenv("TMPDIR", str(rig_dir))
    monkeypatch.setattr(tempfile, "tempdir", str(rig_dir))
    return lambda *words, how=("-m", "rigbus"): processes.python(*how, "demo", *words)


def demo_folder(rig_dir: Path) -> Path | None:
    return next(rig_dir.glob("rigbus-demo-*"), None)


def is_up(rig_dir: Path) -> bool:
    folder = demo_folder(rig_dir)
    return folder is not None and (folder / "state" / "run.json").exists()


def test_the_demo_tells_its_story_with_real_numbers(rig_dir):
    done = subprocess.run(
        [sys.executable, "-c", MIDDLE, "demo", "--json"],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        env={**os.environ, "TMPDIR": str(rig_dir)},
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["schema"] == "rigbus.demo/1"
    assert told["ok"] is True
    assert told["lost"] == 0
    assert told["recorded_twice"] == 0
    assert told["killed"]["leases_back"] >= 1
    assert told["killed"]["rerun"] == told["killed"]["leases_back"]
    assert told["killed"]["back_s"] < 3 * slack()
    assert set(told["tasks"]) == {"done"}
    report = json.loads(Path(told["report"]["json"]).read_text())
    assert report["totals"]["files"] == MIDDLE_FILES
    assert "<svg" in Path(told["report"]["html"]).read_text()
    life = "\n".join(told["life"])
    assert re.search(
        r"leased.*attempt=1(.|\n)*retry(.|\n)*leased.*attempt=2(.|\n)*RESULT(.|\n)*RECORDED", life
    )
    line = r"worker-\d killed → \d+ leases? back in \d+\.\d+ s → rerun → 0 lost, 0 recorded twice"
    assert re.search(line, done.stderr)
    folder = demo_folder(rig_dir)
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_takes_its_rig_with_it(demo, rig_dir, number):
    process = demo()
    wait_for(lambda: is_up(rig_dir), timeout_s=30, what="the rig")
    process.send_signal(number)
    assert process.wait(timeout=30) == 130
    wait_for(lambda: not processes_of(rig_dir), timeout_s=15, what="the end of the rig")
    folder = demo_folder(rig_dir)
    assert not (folder / "state").exists()


def test_a_killed_demo_takes_its_rig_with_it(demo, rig_dir):
    process = demo()
    wait_for(lambda: is_up(rig_dir), timeout_s=30, what="the rig")
    process.kill()
    process.wait()
    wait_for(lambda: not processes_of(rig_dir), timeout_s=15, what="the end of the rig")


@pytest.mark.smoke
def test_a_demo_that_stays_prints_lines_that_work(demo, processes, rig_dir):
    process = demo("--stay", how=("-c", SMALL))
    assert process.wait(timeout=100) == 0, processes.output(process)
    lines = processes.output(process).splitlines()
    export, _look, down = lines[-3:]
    assert export.startswith("export RIGBUS_STATE=")
    assert (demo_folder(rig_dir) / "state" / "run.json").exists()
    script = f"{export}\nrigbus version && {down}"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", script],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, done.stderr
    assert demo_folder(rig_dir) is None


def test_a_model_that_is_not_there_is_said_before_anything_starts(demo, processes, rig_dir):
    process = demo("--model", "/nowhere/x.gguf")
    assert process.wait(timeout=20) == 2
    assert "no such file" in processes.output(process)
    assert demo_folder(rig_dir) is None
