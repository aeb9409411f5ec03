"""On a real rig: a model over two cards and those of the single ones, a load that is taken back, an answer's length."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from helpers import ROOT, Processes, processes_of, short_folder, wait_for
from rigs import LiveRig

from rigbus import Client, Task

pytestmark = [pytest.mark.live, pytest.mark.llm]
write_tiny_gguf = runpy.run_path(str(ROOT / "tests/agents/tiny_gguf.py"))["write_tiny_gguf"]
PAIR = "model-cards-0-1"

CONFIG = """\
worker_gpus = ["0", "1"]

[models.small]
path = "{folder}/small.gguf"
ctx = 1024
vram_mb = 1000
max_tokens = 7

[models.wide]
path = "{folder}/wide.gguf"
ctx = 1024
split = ["0", "1"]
tensor_split = [3, 1]
vram_mb = 4000

[models.away]
url = "http://127.0.0.1:9/v1"
max_tokens = 9

[placement]
default_model = "small"
hot_at_start = 0
heat_after_s = 0.2
min_hot_s = 0.5
"""


@pytest.fixture(scope="module")
def rig() -> Iterator[LiveRig]:
    with short_folder() as folder:
        for name in ("small", "wide"):
            write_tiny_gguf(folder / f"{name}.gguf")
        config = folder / "xdg" / "rigbus"
        config.mkdir(parents=True)
        (config / "config.toml").write_text(CONFIG.format(folder=folder))
        processes = Processes(folder)
        env = {"XDG_CONFIG_HOME": str(folder / "xdg"), "RIGBUS_GPU_SOURCE": "synthetic:2"}
        try:
            rig = LiveRig(folder, processes, workers=2, env=env)
            rig.start()
            with rig.client() as bus:
                wait_for(lambda: len(seats(bus)) == 3, timeout_s=20, what="the model workers")
            yield rig
            assert rig.stop() == 0
            wait_for(lambda: not processes_of(folder), what="every process of the rig to end")
        finally:
            processes.stop_all()


def seats(bus: Client) -> dict[str, dict[str, Any]]:
    return {w["id"]: w["placement"] for w in bus.query("workers")["workers"] if w.get("placement")}


def hot(bus: Client) -> dict[str, str]:
    return {name: p["model"] for name, p in seats(bus).items() if p["phase"] == "hot"}


def load(bus: Client, model: str, worker: str = "") -> None:
    (ask,) = bus.submit([Task(type="load_llm", cls="meta", meta={"model": model, "worker": worker})])
    (result,) = bus.results([ask], timeout_s=30)
    assert result.ok, result.error


def budgets(bus: Client) -> dict[str, int]:
    return {w["id"]: w["vram_mb"] for w in bus.query("workers")["workers"] if w["id"].startswith("worker-")}


def test_the_pair_and_the_single_workers_give_way_to_each_other(rig: LiveRig) -> None:
    with rig.client() as bus:
        whole = wait_for(lambda: all(budgets(bus).values()) and budgets(bus), what="the size of the cards")
        load(bus, "small", "model-2")
        assert hot(bus) == {"model-2": "small"}
        load(bus, "wide")
        assert hot(bus) == {PAIR: "wide"}
        left = {"worker-1": whole["worker-1"] - 3000, "worker-2": whole["worker-2"] - 1000}
        wait_for(
            lambda: budgets(bus) == left, what="the commands of both cards to have what the model leaves"
        )
        task = Task(type="generate", needs=["model:small"], payload={"prompt": "hi", "max_tokens": 2})
        (result,) = bus.results(bus.submit([task]), timeout_s=40)
        assert result.ok and result.value["model"] == "small"
        held = hot(bus)
        assert PAIR not in held and list(held.values()) == ["small"], "work for it has taken a card back"


SCRIPT = """
import json, os, urllib.request
request = urllib.request.Request(
    os.environ["OPENAI_BASE_URL"] + "/completions",
    json.dumps({"prompt": "hi", "temperature": 0}).encode(),
    {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"},
)
with urllib.request.urlopen(request, timeout=30) as answer:
    print(json.load(answer)["usage"]["completion_tokens"])
"""


def test_without_a_number_an_answer_has_that_of_its_model(rig: LiveRig) -> None:
    with rig.client() as bus:
        load(bus, "small", "model-1")
        asks = [{"prompt": "hi", "temperature": 0, **more} for more in ({}, {"max_tokens": 40})]
        tasks = [Task(type="generate", payload=payload) for payload in asks]
        tasks.append(Task(type="shell", cls="llm", payload={"argv": [sys.executable, "-c", SCRIPT]}))
        ids = bus.submit(tasks)
        said = {r.id: r.value for r in bus.results(ids, timeout_s=30)}
        assert [said[id_]["usage"]["completion_tokens"] for id_ in ids[:2]] == [7, 40]
        assert int(said[ids[2]]["output"]) == 7


def loading(bus: Client, worker: str) -> bool:
    return seats(bus)[worker]["phase"] == "loading"


def test_a_load_that_is_cancelled_ends(rig: LiveRig) -> None:
    with rig.client() as bus:
        (ask,) = bus.submit([Task(type="load_llm", cls="meta", meta={"model": "away", "worker": "model-2"})])
        wait_for(lambda: loading(bus, "model-2"), what="the load to begin")
        bus.cancel([ask])
        wait_for(lambda: seats(bus)["model-2"]["phase"] == "cold", timeout_s=20, what="the load to end")


def test_ctrl_c_takes_a_load_back_that_the_same_worker_has_begun(rig: LiveRig) -> None:
    with rig.client() as bus:
        words = [sys.executable, "-m", "rigbus", "load", "away", "--worker", "model-2"]
        going = subprocess.Popen(words, env={**os.environ, **rig.env}, stderr=subprocess.PIPE)
        try:
            wait_for(lambda: loading(bus, "model-2"), timeout_s=20, what="the load to begin")
            going.send_signal(signal.SIGINT)
            assert going.wait(10) == 130
            wait_for(lambda: seats(bus)["model-2"]["phase"] == "cold", timeout_s=20, what="the load to end")
        finally:
            going.kill()
            going.communicate()
