"""A model on a real rig: `up --model`, `call generate`, streaming, cancel, and the death of the model's process."""

from __future__ import annotations

import json
import os
import runpy
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT, Processes, processes_of, wait_for

from rigbus import Client, Result, Task
from rigbus.agents.llm import ModelAgent
from rigbus.bus.errors import TaskFailed

pytestmark = pytest.mark.llm
write_tiny_gguf = runpy.run_path(str(ROOT / "tests/agents/tiny_gguf.py"))["write_tiny_gguf"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")
    return path


def test_up_with_a_model_answers_generate(rig_dir: Path, tiny: Path, processes: Processes) -> None:
    state = rig_dir / "state"
    up = processes.python(
        "-m", "rigbus", "up", "--state", state, "--workers", "1", "--model", tiny, "--json",
        env={"RIGBUS_RUNTIME": str(rig_dir / "run")},
    )  # fmt: skip
    line = wait_for(lambda: _json_line(processes.output(up)), timeout_s=30, what="`up` to be ready")
    assert "model-1" in line["pids"]
    words = ["call", "generate", "prompt=hello", "max_tokens=20", "seed=3", "--state", str(state), "--json"]
    call = processes.python("-m", "rigbus", *words, env={"RIGBUS_RUNTIME": str(rig_dir / "run")})
    assert call.wait(60) == 0, processes.output(call)
    assert '"completion_tokens": 20' in processes.output(call).replace('":20', '": 20')
    up.send_signal(signal.SIGTERM)
    assert up.wait(30) == 0
    wait_for(lambda: not processes_of(rig_dir), what="every process of the rig to end")


PLAN = """\
# Plan: words

## Tasks

### list
- command: `echo '{"items": [{"id": "fox"}, {"id": "dog"}, {"id": "owl"}]}' > m.json`

### say
- foreach: m.json:items
- depends_on: list
- prompt: one word about the {ITEM.id}
- json_schema: word.json
- output: out/{ITEM.id}.json

### count
- depends_on: say
- command: `ls out | wc -l > count.txt`
"""


def test_a_plans_items_are_answered_by_schema_into_its_batch(
    rig_dir: Path, tiny: Path, processes: Processes
) -> None:
    share, state = rig_dir / "share", rig_dir / "state"
    plan = share / "plans" / "words"
    plan.mkdir(parents=True)
    (plan / "plan.md").write_text(PLAN)
    (plan / "word.json").write_text(
        '{"type": "object", "properties": {"word": {"enum": ["red", "old"]}}, "required": ["word"]}'
    )
    env = {"RIGBUS_RUNTIME": str(rig_dir / "run")}
    up = processes.python(
        "-m", "rigbus", "up", "--state", state, "--shared", share, "--workers", "1", "--model", tiny, "--json", env=env
    )  # fmt: skip
    wait_for(lambda: _json_line(processes.output(up)), timeout_s=30, what="`up` to be ready")
    submit = processes.python("-m", "rigbus", "submit", plan, "--wait", "--state", state, env=env)
    assert submit.wait(60) == 0, processes.output(submit)
    (batch,) = (plan / "batches").iterdir()
    assert (batch / "count.txt").read_text().strip() == "3"
    for name in ("fox", "dog", "owl"):
        assert json.loads((batch / "out" / f"{name}.json").read_text())["word"] in {"red", "old"}
    up.send_signal(signal.SIGTERM)
    assert up.wait(30) == 0


def _json_line(text: str) -> dict[str, Any] | None:
    for line in text.splitlines():
        if line.startswith("{"):
            found: dict[str, Any] = json.loads(line)
            return found
    return None


@pytest.fixture
def served(rig: Any, tiny: Path) -> Iterator[tuple[Any, ModelAgent]]:
    """A rig whose model agent runs in a thread of the test, so that the test sees the model's process."""
    agents: list[ModelAgent] = []

    class Tiny(ModelAgent):
        model_file = tiny
        ctx = 8192

        def on_start(self) -> None:
            agents.append(self)
            super().on_start()

    rig.add(Tiny, name="model-1")
    yield rig, agents[0]
    agents[0].on_stop()


def _task(rig: Any, id: str) -> dict[str, Any]:
    row: dict[str, Any] = rig.bus.query("task", id=id)["rows"][0]
    return row


def test_a_text_streams_over_the_bus(served: tuple[Any, ModelAgent]) -> None:
    rig, _ = served
    items = list(rig.bus.stream("generate", {"prompt": "hello", "max_tokens": 400, "seed": 1}, timeout_s=30))
    *progress, result = items
    assert isinstance(result, Result)
    assert result.ok
    assert len(progress) > 1
    assert [p.n for p in progress] == list(range(len(progress)))
    streamed = "".join(text for p in progress if not isinstance(p, Result) for text in p.data)
    assert streamed == result.value["text"]
    assert result.value["usage"]["completion_tokens"] == 400


def test_a_bad_request_fails_once_as_a_definition_error(served: tuple[Any, ModelAgent]) -> None:
    rig, _ = served
    with pytest.raises(TaskFailed, match="neither"):
        rig.call("generate", {})
    with pytest.raises(TaskFailed, match="context of model tiny holds"):
        rig.call("generate", {"prompt": "x" * 20_000})


def test_a_cancelled_call_frees_the_model(served: tuple[Any, ModelAgent]) -> None:
    rig, _ = served
    [long] = rig.bus.submit(
        [Task(type="generate", cls="llm", payload={"prompt": "hello", "max_tokens": 8000})]
    )
    wait_for(lambda: _task(rig, long)["state"] == "leased", what="the task to be leased")
    rig.bus.cancel(ids=[long])
    assert rig.call("generate", {"prompt": "hello", "max_tokens": 3})["usage"]["completion_tokens"] == 3
    assert _task(rig, long)["state"] == "cancelled"


def test_a_model_killed_in_the_middle_is_a_crash_and_the_next_attempt_succeeds(
    served: tuple[Any, ModelAgent],
) -> None:
    rig, agent = served
    model: Any = agent.model
    model.load(30)
    stream = rig.bus.stream("generate", {"prompt": "hello", "max_tokens": 4000}, timeout_s=60)
    first = next(stream)
    assert not isinstance(first, Result)
    os.kill(model.pid, signal.SIGKILL)
    *_, result = stream
    assert isinstance(result, Result)
    assert result.ok
    assert result.attempts == 2
    [failed] = rig.bus.query("task", id=result.id)["attempts"]
    assert failed["class"] == "crash"
    assert "ended by signal 9" in failed["error"]
    assert "Traceback" not in failed["error"]


def test_a_rig_finds_the_model_by_its_command(rig: Any, tiny: Path, processes: Processes) -> None:
    agent = processes.start(
        [sys.executable, "-m", "rigbus.agents.llm", "--model", tiny, "--state", rig.state, "--name", "alone"]
    )
    rig.wait(lambda: any(row["id"] == "alone" for row in rig.bus.query("workers")["workers"]), 30)
    with Client(state=rig.state) as bus:
        assert bus.call("generate", {"prompt": "hello", "max_tokens": 4}, timeout_s=30)["model"] == "tiny"
    agent.terminate()
    assert agent.wait(20) == 0, processes.output(agent)
