"""The earlier system's config.json becomes a rigbus.toml that loads, with a word about every field."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rigbus.bus.config.settings import load
from rigbus.tools.config_import import Imported, imported

FIRST = {
    "shared_path": "/mnt/shared",
    "poll_interval_seconds": 5,
    "brain": {"name": "brain", "model": "qwen2.5:14b", "gpus": [0, 3], "think_timeout_seconds": 120},
    "workers": [
        {"name": "gpu-1", "model": "qwen2.5:7b", "gpu": 1, "port": 11435},
        {"name": "gpu-2", "model": "qwen2.5:7b", "gpu": 2, "port": 11436},
        {"name": "gpu-4", "model": "qwen2.5:7b", "gpu": 4, "port": 11437},
    ],
    "permissions_path": "permissions/",
    "gpu_temp_limit": 80,
}
LATER = {
    "shared_path": "..",
    "brain": {"model": "qwen-14b", "gpus": [0, 3], "host": "rig"},
    "gpus": [
        {"name": "gpu-0", "id": 0, "model": "qwen-7b", "port": 11434},
        {"name": "gpu-1", "id": 1, "model": "qwen-7b", "port": 11435},
        {"name": "gpu-2", "id": 2, "model": "qwen-7b", "port": 11436},
        {"name": "gpu-4", "id": 4, "model": "qwen-7b", "port": 11437},
    ],
    "models": [
        {"id": "qwen-7b", "tier": 1, "placement": "single_gpu", "gguf_path": "/models/qwen-7b.gguf"},
        {
            "id": "qwen-14b",
            "tier": 2,
            "placement": "split_gpu",
            "gguf_path": "/models/qwen-14b.gguf",
            "split_groups": [{"id": "pair_1_2", "members": ["gpu-1", "gpu-2"], "port": 11440}],
        },
    ],
    "initial_hot_workers": 2,
    "max_hot_workers": 4,
    "thermal": {"gpu_warn_c": 75, "gpu_critical_c": 90, "cpu_warn_c": 78},
    "default_priority": "normal",
}


def of(*given: Any) -> Imported:
    return imported([(f"c{n}.json", "/mnt/shared/agents", value) for n, value in enumerate(given, 1)])


def settings(made: Imported, tmp_path: Path) -> Any:
    assert made.wrong == []
    file = tmp_path / "rigbus.toml"
    file.write_text(made.toml)
    return load(config=file).settings


def fields(notes: Any) -> dict[str, str]:
    return {note.field: note.what for note in notes}


def test_the_first_generation_s_file_becomes_settings_that_load(tmp_path: Path) -> None:
    made = of(FIRST)
    found = settings(made, tmp_path)
    assert str(found.shared) == "/mnt/shared"
    assert found.worker_gpus == ["1", "2", "4"]
    assert found.brain_gpus == ["0", "3"]
    assert found.models == {}, "a name is no file"
    assert '# [models."qwen2.5-14b"]' in made.toml
    left = fields(made.left)
    assert "nothing is polled" in left["poll_interval_seconds"]
    assert "put its GGUF into" in left["brain.model"]
    assert "ports" in left["workers[].port"]
    assert {
        "workers[].name",
        "permissions_path",
        "gpu_temp_limit",
        "brain.think_timeout_seconds",
    } <= left.keys()


def test_a_name_becomes_a_model_when_its_file_is_filled_in(tmp_path: Path) -> None:
    made = of(FIRST)
    made.toml = "\n".join(
        line.removeprefix("# ") if "name only" not in line else "" for line in made.toml.splitlines()[1:]
    )
    found = settings(made, tmp_path)
    brain = found.models["qwen2.5-14b"]
    assert (brain.role, brain.split, brain.path.name) == ("brain", ["0", "3"], "qwen2.5-14b.gguf")
    assert found.models["qwen2.5-7b"].role == "worker"


def test_the_later_generation_s_file_becomes_settings_that_load(tmp_path: Path) -> None:
    made = of(LATER | {"brain": {"gpus": [0, 3], "host": "rig"}})
    found = settings(made, tmp_path)
    assert str(found.shared) == "/mnt/shared"
    assert found.worker_gpus == ["1", "2", "4"], "0 is the brain's"
    pair = found.models["qwen-14b"]
    assert (str(pair.path), pair.tier, pair.split) == ("/models/qwen-14b.gguf", 2, ["1", "2"])
    assert found.models["qwen-7b"].placement == "single_gpu"
    assert (found.placement.hot_at_start, found.placement.max_hot) == (2, 4)
    assert (found.thermal.warn_c, found.thermal.critical_c) == (75, 90)
    left = fields(made.left)
    assert "taken from the file's own folder" in left["shared_path"]
    assert {"default_priority", "thermal.cpu_warn_c"} <= left.keys()


def test_every_field_is_told_of(tmp_path: Path) -> None:
    made = of(FIRST)
    said = [*fields(made.mapped), *fields(made.left)]
    for key in FIRST:
        assert any(field.startswith(key) for field in said), key


def test_of_two_files_the_first_is_believed_and_the_other_completes_it(tmp_path: Path) -> None:
    made = of(FIRST, LATER | {"shared_path": "/elsewhere", "brain": {}})
    found = settings(made, tmp_path)
    assert str(found.shared) == "/mnt/shared"
    assert found.placement.max_hot == 4
    second = [note for note in made.left if note.file == "c2.json"]
    assert "by a file before this one" in fields(second)["shared_path"]


@pytest.mark.parametrize(
    ("given", "field", "says"),
    [
        (7, "the file", "no JSON object"),
        ({"shared_path": 7}, "shared_path", "no path"),
        ({"shared_path": "~\0"}, "shared_path", "no path"),
        ({"models": [{"id": "m", "gguf_path": "a\0.gguf"}]}, "models[0].gguf_path", "no path"),
        ({"brain": []}, "brain", "no object"),
        ({"brain": {"gpus": "0,3"}}, "brain.gpus", "no list of cards"),
        ({"brain": {"gpus": [0, 0]}}, "brain.gpus", "named twice"),
        ({"workers": {}}, "workers", "no list"),
        ({"workers": [{"gpu": 1}]}, "workers[0].name", "no name"),
        ({"workers": [{"name": "a", "gpu": "first"}]}, "workers[0].gpu", "is no card"),
        ({"workers": [{"name": "a", "gpu": True}]}, "workers[0].gpu", "is no card"),
        ({"workers": [{"name": "a", "gpu": 1}, {"name": "b", "gpu": 1}]}, "workers[1]", "both on card 1"),
        (
            {"brain": {"gpus": [1]}, "workers": [{"name": "a", "gpu": 1}]},
            "workers[0]",
            "which is the brain's",
        ),
        ({"models": [{"tier": 1}]}, "models[0].id", "no name"),
        ({"models": [{"id": "m", "tier": "high"}]}, "models[0].tier", "1 to 100"),
        ({"models": [{"id": "m", "placement": "both"}]}, "models[0].placement", "single_gpu, split_gpu"),
        (
            {"models": [{"id": "m", "split_groups": [{"members": ["a", "b"]}]}]},
            "models[0].split_groups[0].members",
            "no worker with a card",
        ),
        ({"initial_hot_workers": "all"}, "initial_hot_workers", "0 to 256"),
        ({"initial_hot_workers": 3, "max_hot_workers": 2}, "initial_hot_workers", "lower one"),
        ({"thermal": {"warn_c": 95, "critical_c": 90}}, "thermal", "not above"),
        ({"thermal": {"warn_c": 900}}, "thermal.warn_c", "30 to 120"),
    ],
)
def test_what_is_wrong_is_said_with_file_field_and_fix(given: Any, field: str, says: str) -> None:
    (note,) = of(given).wrong
    assert (note.file, note.field) == ("c1.json", field)
    assert says in note.what


@pytest.mark.parametrize(
    "name", ['a"b\\c', "ä\x7f\n", "\x9b2J\u202e", "\ud800", "../../x", "😀", "-", "x" * 500]
)
def test_odd_names_make_a_file_that_loads(name: str, tmp_path: Path) -> None:
    made = of({"shared_path": f"/mnt/{name}", "workers": [{"name": name, "model": name, "gpu": 1}], name: 1})
    tomllib.loads(made.toml)
    assert settings(made, tmp_path).worker_gpus == ["1"]
    assert made.toml.replace("\n", "").isprintable()


# -- the verb ------------------------------------------------------------------------------------------------


@pytest.fixture
def old(tmp_path: Path) -> Path:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(FIRST))
    return file


def test_the_verb_prints_the_settings_and_talks_beside_them(old: Path, say: Callable[..., Any]) -> None:
    said = say("config", "import", str(old))
    assert said.code == 0
    assert tomllib.loads(said.out)["worker_gpus"] == ["1", "2", "4"]
    assert "poll_interval_seconds: nothing is polled" in said.err


def test_the_verb_writes_a_new_file_and_never_over_one(
    old: Path, tmp_path: Path, say: Callable[..., Any]
) -> None:
    target = tmp_path / "rigbus.toml"
    words = ("config", "import", str(old), "--write", "--output", str(target), "--json")
    said = say(*words)
    assert said.code == 0
    told = json.loads(said.out)
    assert (told["schema"], told["written"]) == ("rigbus.config-import/1", str(target))
    assert load(config=target).settings.worker_gpus == ["1", "2", "4"]
    again = say(*words)
    assert again.code == 8
    assert "is there already" in again.err


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        (None, 3, "no such file"),
        (b"{", 2, "is no JSON"),
        (b"[" * 100_000, 2, "is no JSON"),
        (b"[]", 2, "no JSON object"),
        (b'{"workers": [{"gpu": 1}]}', 2, "workers[0].name"),
    ],
)
def test_a_file_that_is_none_is_refused(
    data: bytes | None, code: int, says: str, tmp_path: Path, say: Callable[..., Any]
) -> None:
    file = tmp_path / "config.json"
    if data is not None:
        file.write_bytes(data)
    said = say("config", "import", str(file))
    assert (said.code, said.out) == (code, "")
    assert says in said.err
