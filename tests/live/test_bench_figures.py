"""Each bench once, small, as a person types it: its figures, and nothing left behind."""

from __future__ import annotations

import json
import runpy
import tempfile
from pathlib import Path
from typing import Any

import pytest
from benched import bench
from helpers import ROOT

pytestmark = pytest.mark.live

CASES = {
    "bus": "--tasks 200 --repeats 1 --singles 10",
    "dag": "--chain 20 --fan 20 --items 50 --repeats 1",
    "shell": "--tasks 10 --repeats 1",
    "scale": "--tasks 600 --small 50 --part 200 --repeats 1",
    "mirror": "--rate 50 --for 1 --repeats 1",
}


@pytest.mark.parametrize("name", [name for name in CASES if name != "bus"])
def test_a_bench_gives_its_figures_and_leaves_nothing(name):
    figures(name)


def figures(name: str, *words: str) -> dict[str, Any]:
    """What a bench prints as JSON, after what holds for each of them."""
    said = bench(name, "--json", *words, *CASES[name].split())
    assert said.returncode == 0, said.stderr
    found: dict[str, Any] = json.loads(said.stdout)
    assert (found["schema"], found["bench"]) == ("rigbus.bench/1", name)
    assert found["figures"]
    assert all(f["min"] <= f["median"] <= f["max"] for f in found["figures"])
    assert found["fsync_p50_us"] > 0
    assert found["settings"]["durability"] == "full"
    if Path("/proc/self").exists():
        assert found["cpu_us_per_task"]["broker"] > 0
    assert not [p for p in Path(tempfile.gettempdir()).iterdir() if p.name.startswith("rigbus-bench-")]
    return found


@pytest.mark.llm
def test_a_model_is_measured_alone_together_and_through_the_bus(tmp_path_factory):
    write = runpy.run_path(str(ROOT / "tests/agents/tiny_gguf.py"))["write_tiny_gguf"]
    model = write(tmp_path_factory.mktemp("bench") / "tiny.gguf")
    said = bench("llm", "--json", "--model", str(model), "--tokens", "8", "--ctx", "1024", "--repeats", "1")
    assert said.returncode == 0, said.stderr
    found = {f["name"]: f for f in json.loads(said.stdout)["figures"]}
    for name in ("one request, engine", "eight requests, engine", "eight requests, through the bus"):
        assert found[name]["median"] > 0
        assert found[name]["target"] is None, "a step of the tiny model measures Python"


def test_bus_keeps_the_keys_of_the_interface_and_profiles_each_process(tmp_path):
    found = figures("bus", "--profile", str(tmp_path / "p"))
    speed = found["tasks_per_s"]
    assert set(speed) == {"median", "min", "max"}
    assert 0 < speed["min"] <= speed["median"] <= speed["max"]
    assert set(found["cpu_us_per_task"]) == {"broker", "workers", "client", "sum"}
    assert found["p50_ms"] > 0
    assert set(found["hops_us"]) == {
        "client to broker",
        "submit, commit, lease",
        "worker",
        "result, commit, end",
        "broker to client",
    }
    assert sorted(p.name for p in (tmp_path / "p").iterdir()) == [
        "agent-1.pstats",
        "agent-2.pstats",
        "broker.pstats",
    ]
    assert any(
        "store.py" in row["function"] or "sqlite3" in row["function"] for row in found["profiles"]["broker"]
    )
