"""``ModelAgent``: what a `generate` task sees, with a scripted model; and the real one in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from rigbus.agents.attempts.threads import run_handler
from rigbus.agents.context import TaskContext
from rigbus.agents.llm import ModelAgent
from rigbus.agents.models.protocol import Chunk, GenerateRequest, Model, ModelState, Queued, Usage
from rigbus.agents.models.scripted import ScriptedModel
from rigbus.agents.worker.events import Lease, Outcome
from rigbus.bus.errors import ConfigError
from rigbus.bus.wire import Token, pack, unpack


class Listener:
    """The worker's side of a handler: it keeps what was told."""

    def __init__(self) -> None:
        self.chunks: list[Any] = []
        self.notes: list[str] = []
        self.told = threading.Event()

    def progress(self, token: Token, pct: float | None, note: str | None, data: bytes | None) -> None:
        if data is not None:
            self.chunks.append(unpack(data))
        if note is not None:
            self.notes.append(note)
        self.told.set()

    def waiting(self, token: Token, waits: bool) -> None:
        raise AssertionError("generate never waits for the bus")


class Attempt:
    """One `generate` task run by an agent with this model."""

    def __init__(self, model: Model) -> None:
        self.listener = Listener()
        self._agent = ModelAgent()
        self._agent.model = model
        lease = Lease((1, 1), "id", "batch", "key", "generate")
        self.task = TaskContext(lease, self.listener)
        self._lease = lease

    def run(self, **payload: object) -> Outcome:
        self._lease.payload = pack(payload)
        return run_handler(self._agent, ModelAgent.specs()["generate"], self._lease, self.task, None)


def value_of(outcome: Outcome) -> Any:
    assert outcome.ok, outcome.error
    return unpack(outcome.body)


def test_generate_streams_the_text_and_returns_it_whole() -> None:
    attempt = Attempt(ScriptedModel(["one two three"]))
    value = value_of(attempt.run(prompt="count"))
    assert attempt.listener.chunks == ["one", " two", " three"]
    assert value["text"] == "one two three"
    assert value["model"] == "scripted"
    assert value["json"] is None
    assert value["usage"] == {"prompt_tokens": 1, "completion_tokens": 3, "cached_tokens": 0}


def test_a_text_is_written_where_the_task_wants_it(tmp_path: Path) -> None:
    path = tmp_path / "out" / "a.txt"
    assert (
        value_of(Attempt(ScriptedModel(["some text"])).run(prompt="x", output=str(path)))["text"]
        == "some text"
    )
    assert path.read_text() == "some text"


def test_an_answer_by_schema_comes_with_its_value(tmp_path: Path) -> None:
    (tmp_path / "grade.json").write_text('{"enum": [1, 2]}')
    model = ScriptedModel(["2", "2"])
    assert value_of(Attempt(model).run(prompt="x", json_schema=str(tmp_path / "grade.json")))["json"] == 2
    assert model.asked[0].json_schema == {"enum": [1, 2]}
    assert value_of(Attempt(model).run(prompt="x", json_schema={"enum": [2]}))["json"] == 2


def test_the_fields_of_the_payload_reach_the_model() -> None:
    model = ScriptedModel(["a"])
    Attempt(model).run(
        messages=[{"role": "user", "content": "x"}], max_tokens=3, temperature=0, seed=4, stop="END"
    )
    request = model.asked[0]
    assert request.messages == [{"role": "user", "content": "x"}]
    assert (request.max_tokens, request.temperature, request.seed, list(request.stop)) == (3, 0.0, 4, ["END"])


@pytest.mark.parametrize(
    ("payload", "word"),
    [
        ({}, '"prompt" nor "messages"'),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, "both"),
        ({"prompt": 5}, '"prompt"'),
        ({"prompt": "a", "max_tokens": "many"}, '"max_tokens"'),
        ({"prompt": "a", "colour": "red"}, '"colour"'),
        ({"prompt": "a", "model": "gpt"}, "no 'gpt' here"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ],
)
def test_a_wrong_payload_is_a_definition_error_that_names_the_field(
    payload: dict[str, object], word: str
) -> None:
    outcome = Attempt(ScriptedModel(["a"])).run(**payload)
    assert outcome.cls == "definition"
    assert word in (outcome.error or "")


def test_words_of_a_command_line_are_taken_as_numbers() -> None:
    model = ScriptedModel(["a b c"])
    assert value_of(Attempt(model).run(prompt="x", max_tokens="2", seed="7"))["text"] == "a b"


class SlowModel(ScriptedModel):
    """Loads until it is told to be ready, and speaks until it is cancelled."""

    def __init__(self) -> None:
        super().__init__(["x"])
        self.go = threading.Event()

    @property
    def state(self) -> ModelState:
        return ModelState("ready", 1.0) if self.go.is_set() else ModelState("loading", 0.25)

    def generate(self, request: GenerateRequest) -> Any:
        return Endless(self.go)


class Endless:
    def __init__(self, go: threading.Event) -> None:
        self._go = go
        self._cancelled = threading.Event()

    def poll(self, timeout_s: float) -> Chunk | Usage | None:
        if self._cancelled.is_set():
            return Usage(finish="cancelled")
        return Chunk("more ") if self._go.wait(0.01) else None

    def cancel(self) -> None:
        self._cancelled.set()


def test_who_waits_for_a_loading_model_hears_how_far_it_is() -> None:
    model = SlowModel()
    attempt = Attempt(model)
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(attempt.run(prompt="x")))
    thread.start()
    assert attempt.listener.told.wait(5)
    attempt.task.cancel()
    thread.join(5)
    assert attempt.listener.notes[0] == "the model is loading: 25%"
    assert value_of(outcomes[0])["finish"] == "cancelled"


class Waiting:
    """Waits behind two others, then one, then none."""

    def __init__(self) -> None:
        self._items = iter([Queued(2), Queued(1), Queued(0), Chunk("x"), Usage()])

    def poll(self, timeout_s: float) -> Chunk | Queued | Usage | None:
        return next(self._items)

    def cancel(self) -> None: ...


def test_who_waits_behind_others_hears_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScriptedModel()
    monkeypatch.setattr(model, "generate", lambda request: Waiting())
    attempt = Attempt(model)
    assert value_of(attempt.run(prompt="x"))["text"] == "x"
    assert attempt.listener.notes == [
        "2 requests before this one",
        "1 request before this one",
        "this request is the next one",
    ]


def test_a_cancelled_task_stops_its_generation() -> None:
    model = SlowModel()
    model.go.set()
    attempt = Attempt(model)
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(attempt.run(prompt="x")))
    thread.start()
    assert attempt.listener.told.wait(5)
    attempt.task.cancel()
    thread.join(5)
    assert value_of(outcomes[0])["finish"] == "cancelled"
    assert attempt.listener.chunks[0] == "more "


def test_an_agent_without_a_model_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RIGBUS_MODEL", raising=False)
    with pytest.raises(ConfigError, match=r"--model FILE\.gguf"):
        ModelAgent().on_start()
    monkeypatch.setenv("RIGBUS_MODEL", "x.gguf")
    monkeypatch.setenv("RIGBUS_MODEL_CTX", "big")
    with pytest.raises(ConfigError, match="RIGBUS_MODEL_CTX='big'"):
        ModelAgent().on_start()
    monkeypatch.setenv("RIGBUS_TASK_ID", "in a command of a rig")
    monkeypatch.setenv("RIGBUS_MODEL", "the-name-of-its-workers-model")
    with pytest.raises(ConfigError, match=r"no model: give --model FILE\.gguf"):
        ModelAgent().on_start()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no model: give --model FILE.gguf"),
        (["--model", "missing.gguf"], "missing.gguf: No such file"),
        (["--model", __file__], "no GGUF file"),
        (["--model", "x", "--ctx", "many"], "--ctx"),
    ],
)
def test_the_command_refuses_what_cannot_be_a_model(words: list[str], said: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rigbus.agents.llm", *words],
        env={**os.environ, "RIGBUS_STATE": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
