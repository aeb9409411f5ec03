"""Batch files on a real rig: dropped, spread over workers, killed half-way, cancelled; and one that a real model answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from echomodel import GATE, Echo
from helpers import ROOT, Processes, wait_for
from rigs import LiveRig

from rigbus.agents.testing import Rig

BRIDGE = (
    "import logging, sys; from pathlib import Path\n"
    "logging.basicConfig(level=logging.INFO)\n"
    "from rigbus.bridge.folder.service import Bridge\n"
    "from rigbus.bus.paths import endpoints, rig_paths\n"
    "paths = rig_paths(Path(sys.argv[1]), Path(sys.argv[2]))\n"
    "sys.exit(Bridge(paths, endpoints(paths)['commands'], settle_s=0.3).run())\n"
)
WAIT_S = 60.0


class Files:
    """A rig with echoing models, a bridge, and a file that gets an answer for each line."""

    def __init__(self, rig: Rig, processes: Processes) -> None:
        self.rig, self.processes = rig, processes
        self.inbox = rig.shared / "inbox"
        self.env = {"RIGBUS_STATE": str(rig.state), "RIGBUS_SHARED": str(rig.shared)}
        self.gate = rig.folder / "gate"

    def bridge(self) -> subprocess.Popen[bytes]:
        return self.processes.python("-c", BRIDGE, self.rig.state, self.rig.shared, env=self.env)

    def drop(self, *lines: dict[str, Any]) -> None:
        whole = self.inbox / ".x.part"
        whole.write_text("".join(json.dumps(line) + "\n" for line in lines))
        (self.inbox / "x.jsonl.READY").touch()
        os.replace(whole, self.inbox / "x.jsonl")

    def receipt(self) -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads((self.inbox / "x.jsonl.receipt.json").read_text())
        except (OSError, ValueError):
            return {}
        return value

    def ended(self) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            said = self.receipt()
            return said if said.get("status") in ("complete", "failed", "cancelled") else None

        found = wait_for(there, timeout_s=WAIT_S, what="the end of the file")
        assert found is not None
        return found

    def some(self) -> dict[str, Any]:
        """Until the share shows some results."""

        def there() -> dict[str, Any] | None:
            said = self.receipt()
            return said if (said.get("request_counts") or {}).get("completed") else None

        found = wait_for(there, timeout_s=WAIT_S, what="some results")
        assert found is not None
        return found

    def lines(self, kind: str = "results") -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.inbox / f"x.{kind}.jsonl").read_text().splitlines()]

    def say(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "rigbus", *map(str, words)],
            env={**os.environ, **self.env},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )


@pytest.fixture
def files(rig: Rig, processes: Processes, monkeypatch: pytest.MonkeyPatch) -> Iterator[Files]:
    made = Files(rig, processes)
    made.gate.touch()
    monkeypatch.setenv(GATE, str(made.gate))
    for name in ("model-1", "model-2"):
        rig.add(Echo, name=name)
    made.bridge()
    wait_for((made.inbox / ".requests").exists, timeout_s=WAIT_S, what="the bridge")
    yield made
    made.gate.unlink(missing_ok=True)


def chat(custom_id: str, content: str = "", **body: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": content or custom_id}]
    return line(custom_id, "chat/completions", {"messages": messages, **body})


def line(custom_id: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": f"/v1/{path}", "body": body}


def test_every_kind_of_line_is_answered_and_the_verb_waits(files: Files, tmp_path: Path) -> None:
    schema = {"type": "object", "properties": {"said": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    lines = [
        chat("c", "hello"),
        chat("s", "what", response_format=form),
        line("p", "completions", {"prompt": "once"}),
        line("e", "embeddings", {"input": ["a", "b"]}),
        chat("bad", "bad one"),
        chat("m", model="nobody"),
    ]
    source = tmp_path / "x.jsonl"
    source.write_text("".join(json.dumps(one) + "\n" for one in lines) + "rubbish")
    done = files.say("submit", source, "--wait", "--timeout", "60", "--json")
    assert done.returncode == 6, done.stderr
    said = json.loads(done.stdout)
    assert (said["state"], said["request_counts"]) == ("failed", {"total": 7, "completed": 4, "failed": 3})
    found = {one["custom_id"]: one["response"]["body"] for one in files.lines()}
    assert found["c"]["choices"][0]["message"]["content"] == "echo hello"
    assert found["c"]["usage"]["completion_tokens"] == 2
    assert json.loads(found["s"]["choices"][0]["message"]["content"]) == {"said": "what"}
    assert found["p"]["choices"][0]["text"] == "echo once"
    assert [len(one["embedding"]) for one in found["e"]["data"]] == [8, 8]
    errors = {one["custom_id"]: one for one in files.lines("errors")}
    assert errors["bad"]["response"]["status_code"] == 400
    assert "this one can never run" in errors["bad"]["response"]["body"]["error"]["message"]
    assert errors["m"]["response"]["body"]["error"]["code"] == "model_not_found"
    assert (errors[None]["line"], errors[None]["error"]["code"]) == (7, "invalid_json_line")


def test_the_bridge_and_the_broker_killed_half_way_lose_nothing_and_answer_nothing_twice(
    files: Files,
) -> None:
    bridge = next(process for process, *_ in files.processes._started)
    names = [f"r{n}" for n in range(1200)]
    files.drop(*(chat(name, f"held {name}" if n % 60 == 59 else name) for n, name in enumerate(names)))
    files.some()
    files.processes.kill(bridge)
    bridge = files.bridge()
    wait_for(lambda: files.receipt()["request_counts"]["completed"] > 600, timeout_s=WAIT_S, what="half")
    files.rig.restart_broker()
    files.processes.kill(bridge)
    files.gate.unlink()
    files.bridge()
    said = files.ended()
    assert said["request_counts"] == {"total": 1200, "completed": 1200, "failed": 0}
    assert sorted(one["custom_id"] for one in files.lines()) == sorted(names)
    with files.rig.client() as bus:
        rows: list[dict[str, Any]] = []
        cursor: int | None = 0
        while cursor is not None:
            page = bus.query("tasks", batch=said["batch_id"], cursor=cursor)
            rows, cursor = rows + page["rows"], page["cursor"]
    assert len(rows) == 1200
    assert {row["worker"] for row in rows} == {"model-1", "model-2"}


def test_a_cancelled_file_keeps_what_was_done(files: Files) -> None:
    files.drop(*(chat(f"r{n}", "held" if n % 2 else "") for n in range(60)))
    files.some()
    batch = files.receipt()["batch_id"]
    shown = json.loads(files.say("batch", "show", batch, "--json").stdout)
    assert len(shown["tasks"]) == 60
    assert batch in files.say("status").stdout
    assert files.say("why", batch).returncode == 0
    assert files.say("cancel", batch).returncode == 0
    files.gate.unlink()
    assert files.ended()["status"] == "cancelled"
    done = {one["custom_id"] for one in files.lines()}
    errors = files.lines("errors")
    assert done
    assert {one["error"]["code"] for one in errors} == {"batch_cancelled"}
    assert sorted(done | {one["custom_id"] for one in errors}) == sorted(f"r{n}" for n in range(60))
    assert len(done) + len(errors) == 60


@pytest.mark.llm
def test_a_real_model_answers_a_file(rig_dir: Path, processes: Processes, tmp_path: Path) -> None:
    import runpy

    write = runpy.run_path(str(ROOT / "tests/agents/tiny_gguf.py"))["write_tiny_gguf"]
    rig = LiveRig(rig_dir, processes, workers=1, model=write(tmp_path / "tiny.gguf"))
    rig.start()
    schema = {"type": "object", "properties": {"word": {"enum": ["red", "old"]}}, "required": ["word"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    lines = [chat(f"c{n}", "hi", model="tiny", max_tokens=5, seed=n) for n in range(6)]
    lines += [chat("s", "a word", response_format=form, max_tokens=40)]
    lines += [line("e", "embeddings", {"input": "hi"}), chat("no", model="large")]
    source = tmp_path / "x.jsonl"
    source.write_text("".join(json.dumps(one) + "\n" for one in lines))
    done = subprocess.run(
        [sys.executable, "-m", "rigbus", "submit", source, "--wait", "--timeout", "60", "--json"],
        env={**os.environ, **rig.env},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 6, done.stderr  # one line names a model that is not there
    said = json.loads(done.stdout)
    assert said["request_counts"] == {"total": 9, "completed": 8, "failed": 1}
    results = [json.loads(one) for one in Path(said["results"]).read_text().splitlines()]
    found = {one["custom_id"]: one["response"]["body"] for one in results}
    assert all(found[f"c{n}"]["usage"]["completion_tokens"] in range(1, 6) for n in range(6))
    assert all(found[f"c{n}"]["usage"]["prompt_tokens"] > 0 for n in range(6))
    assert json.loads(found["s"]["choices"][0]["message"]["content"])["word"] in ("red", "old")
    assert found["e"]["data"][0]["embedding"]
    (error,) = [json.loads(one) for one in Path(said["errors"]).read_text().splitlines()]
    assert "tiny" in error["response"]["body"]["error"]["message"]
    assert rig.stop() == 0
