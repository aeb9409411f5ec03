"""An agent that runs alone under its small parent: ended, restarted and killed as under ``rigbus up``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rigbus import Task
from rigbus.agents.testing import Rig

pytestmark = pytest.mark.live
AGENTS = Path(__file__).parent.with_name("sample_agents.py")
_IMPATIENT = """\
import sys
from rigbus.agents.worker.parent import Parent
sys.exit(Parent(sys.argv[2:], sys.argv[1], silent_s=4).run())
"""


class Alone:
    """A parent process with an agent below it."""

    def __init__(self, rig: Rig, words: list[str]) -> None:
        self.rig = rig
        self.log = rig.folder / "alone.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([sys.executable, *words], stderr=log, stdout=log)

    def end(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def hanger(rig: Rig) -> Iterator[Alone]:
    words = [sys.executable, "-P", "-m", "rigbus.agents.worker.main", "--agent", f"{AGENTS}:Hanger"]
    words += ["--state", str(rig.state), "--name", "hanger"]
    alone = Alone(rig, ["-c", _IMPATIENT, "hanger", *words])
    rig.wait_joined("hanger")
    yield alone
    alone.end()


def test_main_runs_the_agent_until_it_is_told_to_end(rig: Rig) -> None:
    alone = Alone(rig, [str(AGENTS), "Sampler", "--state", str(rig.state), "--name", "alone"])
    rig.wait_joined("alone")
    assert rig.call("pid") not in {os.getpid(), alone.process.pid}
    alone.process.send_signal(signal.SIGINT)
    assert alone.process.wait(10) == 0


def test_an_agent_dies_with_its_parent(rig: Rig) -> None:
    alone = Alone(rig, [str(AGENTS), "Sampler", "--state", str(rig.state), "--name", "alone"])
    rig.wait_joined("alone")
    pid = rig.call("pid")
    alone.process.kill()
    alone.process.wait()
    rig.wait(lambda: not Path(f"/proc/{pid}").exists(), timeout_s=20, what="the agent's end")


def test_a_killed_agent_is_started_again(hanger: Alone) -> None:
    rig = hanger.rig
    pid = rig.call("quick")
    os.kill(pid, signal.SIGKILL)
    assert rig.call("quick", timeout_s=20) != pid


def test_a_handler_that_holds_the_interpreters_lock_is_killed_and_named(hanger: Alone) -> None:
    rig = hanger.rig
    quick = rig.bus.submit([Task(type="quick")])
    assert next(rig.bus.results(quick, timeout_s=10)).ok
    ids = rig.bus.submit([Task(type="hold_the_lock", policy={"infra": 1, "crash": 1})])
    (result,) = rig.bus.results(ids, timeout_s=30)
    assert not result.ok
    assert result.error_class in {"infra", "crash"}
    said = hanger.log.read_text()
    assert "gave no sign of life" in said
    assert f"hold_the_lock (task {ids[0]})" in said
    assert rig.call("quick", timeout_s=20) > 0  # a fresh process goes on


def test_a_program_that_never_works_is_given_up() -> None:
    # In a process of its own: it becomes a subreaper, and orphans of later tests would be this one's to reap.
    words = [sys.executable, "-c", _IMPATIENT, "broken", sys.executable, "-c", "import sys; sys.exit(3)"]
    assert subprocess.run(words, stderr=subprocess.DEVNULL, timeout=20, check=False).returncode == 3
