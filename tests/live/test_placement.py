"""Hot and cold on a real rig: four model workers, two models, and whoever asks for them."""

from __future__ import annotations

import json
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from drops import run_plan, tasks_of
from helpers import Processes, processes_of, short_folder, wait_for
from placed import asks, first, hot, others, rigbus, seats, start, write_models
from rigs import LiveRig

from rigbus import Task

pytestmark = [pytest.mark.live, pytest.mark.llm]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def rig(models: dict[str, Path]) -> Iterator[LiveRig]:
    """One rig for the tests that only ask: nothing cools by itself within their time."""
    with short_folder() as folder:
        processes = Processes(folder)
        try:
            rig = start(folder, processes, models, seats=4, min_hot=600.0)
            with rig.client() as bus:
                wait_for(lambda: hot(bus), timeout_s=30, what="a model to be hot")
            yield rig
            assert rig.stop() == 0
            wait_for(lambda: not processes_of(folder), what="every process of the rig to end")
        finally:
            processes.stop_all()


def test_one_is_hot_at_start_and_its_load_is_a_task_that_is_done(rig: LiveRig) -> None:
    with rig.client() as bus:
        wait_for(lambda: hot(bus), timeout_s=20, what="a model to be hot")
        assert list(hot(bus).values()) == ["small"]
        assert sorted(seats(bus)) == ["model-1", "model-2", "model-3", "model-4"]
        (ask,) = wait_for(lambda: [a for a in asks(bus) if a["state"] == "done"], what="its task to end")
        assert (ask["type"], ask["key"].partition(":")[2]) == ("load_llm", "load_llm:small")


def test_load_and_unload_by_hand(rig: LiveRig) -> None:
    with rig.client() as bus:
        name = others(bus)[0]
        said = rigbus(rig, "load", "large", "--worker", name)
        assert said.returncode == 0, said.stderr
        assert f"large is hot on {name}" in said.stdout
        assert (
            bus.call("generate", {"prompt": "hi", "max_tokens": 3, "model": "large"}, timeout_s=20)["model"]
            == "large"
        )
        gone = rigbus(rig, "unload", "large", "--json")
        assert gone.returncode == 0, gone.stderr
        assert json.loads(gone.stdout)["note"] == f"{name} is cold"
        assert seats(bus)[name]["phase"] == "cold"


def test_a_request_goes_to_the_worker_that_holds_its_model_and_why_says_where_it_is(rig: LiveRig) -> None:
    with rig.client() as bus:
        (id_,) = bus.submit(
            [Task(type="generate", payload={"prompt": "hi", "max_tokens": 3, "model": "nowhere"})]
        )
        why = wait_for(lambda: bus.query("why", id=id_), what="an answer")
        assert "model:nowhere" in why["summary"]
        bus.cancel(id_)


def test_what_cannot_be_is_said(rig: LiveRig) -> None:
    unknown = rigbus(rig, "load", "huge")
    assert unknown.returncode == 6
    assert "there is no model 'huge'; there are: broken, large, small" in unknown.stderr
    with rig.client() as bus:
        name = others(bus)[0]
        held = first(bus)
    for worker in (name, held):
        broken = rigbus(rig, "load", "broken", "--worker", worker)
        assert broken.returncode == 6
        assert "broken cannot be loaded" in broken.stderr and "broken.gguf" in broken.stderr
    with rig.client() as bus:
        assert seats(bus)[name]["phase"] == "cold"
        assert hot(bus)[held] == "small", "nothing makes room for what cannot be loaded"
    nothing = rigbus(rig, "unload")
    assert (nothing.returncode, "name a model" in nothing.stderr) == (2, True)


def test_a_file_that_is_repaired_can_be_loaded_at_once(rig: LiveRig, models: dict[str, Path]) -> None:
    file, bad = models["broken"], models["broken"].read_bytes()
    with rig.client() as bus:
        name = others(bus)[0]
    try:
        file.write_bytes(models["small"].read_bytes())
        repaired = rigbus(rig, "load", "broken", "--worker", name)
        assert repaired.returncode == 0, repaired.stderr
    finally:
        file.write_bytes(bad)
    assert rigbus(rig, "unload", "broken").returncode == 0


def test_an_unload_ends_a_load_that_nobody_waits_for_any_more(rig: LiveRig) -> None:
    with rig.client() as bus:
        for name in seats(bus):
            bus.control("pause", name)
        late = rigbus(rig, "load", "large", "--timeout", "0.5")
        assert late.returncode == 7
        found = re.search(r"goes on; .*`rigbus cancel ([\w-]+)` ends it", " ".join(late.stderr.split()))
        assert found is not None, late.stderr
        why = wait_for(
            lambda: next((w for w in [bus.query("why", id=found[1])] if "is paused" in w["summary"]), None),
            what="the brain's word",
        )
        assert [p["fix"] for p in why["predicates"] if not p["ok"]] == ["rigbus resume model-1"]
        assert rigbus(rig, "unload", "large").returncode == 0
        row = wait_for(
            lambda: next((r for r in bus.query("task", id=found[1])["rows"] if r["state"] == "dead"), None),
            what="the load to end",
        )
        assert "unloaded since then" in row["error"]
        for name in seats(bus):
            bus.control("resume", name)
        assert "large" not in hot(bus).values()


PLAN = """\
# Plan: warm
## Tasks
### warm
- **type**: load_llm
- **llm_model**: large
### ask
- **type**: generate
- **prompt**: hi
- **max_tokens**: 2
- **llm_model**: {NAME}
- **depends_on**: warm
### cool
- **type**: unload_llm
- **llm_model**: large
- **depends_on**: ask
## Inputs
- **NAME**: the file's stem will do (default: `large`)
"""


def test_a_plan_loads_a_model_asks_it_and_unloads_that_one(rig: LiveRig) -> None:
    batch = run_plan(rig, "warm", PLAN)
    with rig.client() as bus:
        ended = rig.wait_batch(batch, bus, timeout_s=30)
        tasks = tasks_of(rig, batch)
        assert ended["state"] == "complete", {name: (t["state"], t["error"]) for name, t in tasks.items()}
        assert list(hot(bus).values()) == ["small"], "the other one was left where it was"


def test_loads_of_one_group_never_overlap(rig: LiveRig) -> None:
    with rig.client() as bus, rig.client() as eyes:
        metas = [{"model": "large", "worker": name} for name in others(bus)]
        ids = bus.submit([Task(type="load_llm", cls="meta", meta=meta) for meta in metas])
        most = 0

        def ended() -> bool:
            nonlocal most
            most = max(most, sum(p["phase"] == "loading" for p in seats(eyes).values()))
            return len(hot(eyes)) == 4

        wait_for(ended, timeout_s=30, what="all four to be hot")
        assert most == 1
        assert [r.ok for r in bus.results(ids, timeout_s=20)] == [True] * 3
        away = bus.submit([Task(type="unload_llm", cls="meta", meta=meta) for meta in metas])
        assert [r.ok for r in bus.results(away, timeout_s=20)] == [True] * 3
        assert list(hot(bus).values()) == ["small"]


def test_nothing_is_unloaded_under_a_request(rig: LiveRig) -> None:
    with rig.client() as bus:
        name = first(bus)
        (long,) = bus.submit(
            [Task(type="generate", payload={"prompt": "hi", "max_tokens": 900, "temperature": 2.0})]
        )
        wait_for(
            lambda: bus.query("task", id=long)["rows"][0]["state"] in ("leased", "done"), what="it to run"
        )
        (gone,) = bus.submit([Task(type="unload_llm", cls="meta", meta={"worker": name})])
        (text,) = bus.results([long], timeout_s=30)
        assert text.ok
        assert text.attempts == 1
        (cold,) = bus.results([gone], timeout_s=20)
        assert cold.ok
        (back,) = bus.submit([Task(type="load_llm", cls="meta", meta={"worker": name})])
        assert next(iter(bus.results([back], timeout_s=20))).ok, "without a name the default is meant"


ASK = """
import json, os, subprocess, sys, urllib.request
request = urllib.request.Request(
    os.environ["OPENAI_BASE_URL"] + "/chat/completions",
    json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5}).encode(),
    {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"},
)
with urllib.request.urlopen(request, timeout=30) as answer:
    print(json.load(answer)["usage"]["completion_tokens"], os.environ["RIGBUS_MODEL"], os.environ["WORKER_API_BASE"])
shown = subprocess.run([sys.executable, "-m", "rigbus", "config", "show", "--json"], capture_output=True, check=True)
(own,) = (s for s in json.loads(shown.stdout)["settings"] if s["name"] == "model")
print(own["value"], own["origin"])
"""


def test_a_command_of_class_llm_asks_its_workers_model_until_it_ends(rig: LiveRig) -> None:
    with rig.client() as bus:
        argv = [sys.executable, "-c", ASK]
        (said,) = bus.results(
            bus.submit([Task(type="shell", cls="llm", payload={"argv": argv})]), timeout_s=30
        )
        assert said.ok, said.error
        assert said.worker == first(bus)
        tokens, model, base, *own = said.value["output"].split()
        assert (tokens, model) == ("5", "small")
        assert own == ["None", "default"], (
            "a rig that the command starts does not take that name for its file"
        )
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{base}/v1/models", timeout=10)  # noqa: S310 - our own URL
        plain = bus.results(bus.submit([Task(type="shell", payload={"command": "env"})]), timeout_s=30)
        assert "OPENAI" not in next(iter(plain)).value["output"], "a command of another class is told nothing"


def test_a_file_in_the_share_loads_a_model(rig: LiveRig) -> None:
    queue = rig.shared / "tasks" / "queue"
    queue.mkdir(parents=True, exist_ok=True)
    with rig.client() as bus:
        name = others(bus)[0]
    task = {
        "task_id": "warm-it",
        "type": "meta",
        "command": "load_llm",
        "llm_model": "large",
        "worker": name,
    }
    (queue / "warm-it.json").write_text(json.dumps(task))
    with rig.client() as bus:
        wait_for(lambda: hot(bus).get(name) == "large", timeout_s=30, what="the file to be obeyed")
        wait_for(
            lambda: list((rig.shared / "tasks" / "complete").glob("warm-it*")),
            timeout_s=20,
            what="its end in the share",
        )
        assert rigbus(rig, "unload", "large").returncode == 0


def test_placements_outlive_broker_brain_and_worker(rig: LiveRig) -> None:
    with rig.client() as bus:
        held = first(bus)
        before = seats(bus)[held]["generation"]
        for name in ("brain", "broker", held):
            rig.kill(name)
        wait_for(
            lambda: (seats(bus).get(held) or {}).get("phase") == "hot",
            timeout_s=40,
            what="it to be hot again",
        )
        assert seats(bus)[held]["generation"] == before, "the same placement, not a new one"
        assert bus.call("generate", {"prompt": "hi", "max_tokens": 3}, timeout_s=30)["model"] == "small"
