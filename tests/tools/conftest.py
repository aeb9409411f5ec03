"""One real rig for the verbs' tests: broker, brain and workers as processes, a module long."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from helpers import Processes, short_folder, wait_for

from rigbus.bus.client.client import Client
from rigbus.bus.paths import endpoints, rig_paths
from rigbus.tools import reach, rigclock
from rigbus.tools.cli import run


@pytest.fixture(autouse=True)
def _silence_is_found_out_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Folders of tests that stand still are of rigs that are silent."""
    monkeypatch.setattr(rigclock, "WATCH_S", 0.3)


AGENT = """
import threading
from rigbus import Agent, handler

class Teller(Agent):
    @handler("tell")
    def tell(self, words: list[str], times: int = 1):
        for word in words:
            self.task.progress(data=word)
        return {"words": len(words) * times}

    @handler("add")
    def add(self, a: int, b: float = 0.5):
        return a + b

    @handler("fall")
    def fall(self):
        raise ValueError("it fell\\x1b[31m")

    @handler("wait")
    def wait(self):
        gate = threading.Event()
        self.task.when_cancelled(gate.set)
        gate.wait(20)
"""


@dataclass
class VerbRig:
    """The rig, and how a test types a command."""

    folder: Path
    state: Path
    shared: Path
    made: int = field(default=0)

    def plan(self, text: str, name: str | None = None) -> Path:
        """A new plan folder outside the share."""
        self.made += 1
        folder = self.folder / "mine" / (name or f"plan{self.made}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.md").write_text(text, encoding="utf-8")
        return folder


def plan_text(**commands: str) -> str:
    """A plan whose tasks run in a row."""
    text, before = "# Plan: a test\n\n## Tasks\n", "none"
    for name, command in commands.items():
        text += f"\n### {name}\n- **executor**: worker\n- **task_class**: cpu\n- **max_attempts**: 1\n"
        text += f"- **backoff_s**: 0.05\n- **command**: `{command}`\n- **depends_on**: {before}\n"
        before = name
    return text


@pytest.fixture(scope="module")
def rig() -> Iterator[VerbRig]:
    with short_folder() as folder:
        found = VerbRig(folder, folder / "state", folder / "share")
        found.state.mkdir(mode=0o700)
        (found.shared / "inbox").mkdir(parents=True)
        (folder / "teller.py").write_text(AGENT, encoding="utf-8")
        processes = Processes(folder)
        env = {"RIGBUS_STATE": str(found.state), "RIGBUS_SHARED": str(found.shared)}
        state = ["--state", str(found.state)]
        try:
            for words in (
                ["broker", *state],
                ["brain", *state],
                ["worker", *state, "--name", "worker-1", "--slots", "2"],
            ):
                processes.python("-P", "-m", "rigbus", *words, env=env)
            agent = ["--agent", f"{folder / 'teller.py'}:Teller", "--name", "teller"]
            processes.python("-P", "-m", "rigbus.agents.worker.main", *state, *agent, env=env)
            with Client(endpoints(rig_paths(found.state))["commands"], timeout_s=20) as bus:
                wait_for(lambda: _is_up(bus), timeout_s=20, what="brain and workers")
            yield found
        finally:
            processes.stop_all()


def _is_up(bus: Client) -> bool:
    status = bus.query("status")
    ready = {w["id"] for w in status["workers"] if w["credit"]}
    return status["brain"]["state"] == "seated" and ready == {"worker-1", "teller"}


@dataclass
class Said:
    """What a command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Type a command in this process: ``say("status", "--json")``."""

    def typed(*words: str | Path) -> Said:
        capsys.readouterr()
        code = run([str(word) for word in words])
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return typed


@pytest.fixture
def here(rig: VerbRig, monkeypatch: pytest.MonkeyPatch) -> VerbRig:
    """The rig that commands of this test find by the environment."""
    monkeypatch.setenv("RIGBUS_STATE", str(rig.state))
    monkeypatch.setenv("RIGBUS_SHARED", str(rig.shared))
    monkeypatch.chdir(rig.folder)
    # A broker that is slow once, on a busy machine, is no reason to read the files instead.
    monkeypatch.setattr(reach, "ANSWER_S", 30.0)
    return rig
