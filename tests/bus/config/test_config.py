"""Settings: the order of the sources, their origins, and errors that name place, key and fix."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rigbus.bus.config.settings import Settings, load
from rigbus.bus.errors import ConfigError


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.chdir(tmp_path)


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def test_without_any_source_the_defaults_hold() -> None:
    loaded = load()
    assert loaded.settings.lease_s == 5.0
    assert loaded.settings.renewal_s == 1.0
    assert loaded.settings.durability == "full"
    assert {row.origin for row in loaded.show()} == {"default"}


def test_flags_beat_the_environment_beats_the_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = write(tmp_path / "rigbus.toml", "workers = 3\nlease_s = 7\n[retention]\nevents = 50_000\n")
    user = write(tmp_path / "xdg/rigbus/config.toml", "workers = 4\nslots = 2\n[retention]\ntasks = 5000\n")
    monkeypatch.setenv("RIGBUS_LEASE_S", "8")
    monkeypatch.setenv("RIGBUS_LOGS__LEVEL", "debug")
    monkeypatch.setenv("RIGBUS_BRAIN__INFER_WAIT_S", "0")
    loaded = load({"durability": "normal", "settle_s": None})
    s = loaded.settings
    assert (s.workers, s.lease_s, s.slots, s.durability) == (3, 8.0, 2, "normal")
    assert (s.retention.events, s.retention.tasks) == (50_000, 5000)
    assert s.brain.infer_wait_s == 0
    origins = {row.name: row.origin for row in loaded.show()}
    assert origins["workers"] == str(here)
    assert origins["slots"] == str(user)
    assert origins["retention.tasks"] == str(user)
    assert origins["lease_s"] == "RIGBUS_LEASE_S"
    assert origins["logs.level"] == "RIGBUS_LOGS__LEVEL"
    assert origins["durability"] == "--durability"
    assert origins["settle_s"] == "default"


def test_config_names_the_only_file(tmp_path: Path) -> None:
    write(tmp_path / "rigbus.toml", "workers = 3\n")
    file = write(tmp_path / "other.toml", "slots = 4\n")
    loaded = load(config=file)
    assert loaded.settings.workers is None
    assert loaded.settings.slots == 4
    with pytest.raises(ConfigError, match="no such file; correct --config"):
        load(config=tmp_path / "none.toml")


def test_paths_in_a_file_are_relative_to_it(tmp_path: Path) -> None:
    write(tmp_path / "xdg/rigbus/config.toml", 'state = "st"\n[models.small]\npath = "m.gguf"\n')
    settings = load().settings
    assert settings.state == tmp_path / "xdg/rigbus/st"
    assert settings.models["small"].path == tmp_path / "xdg/rigbus/m.gguf"
    assert settings.paths.db.parent == settings.state


def test_agents_and_lists_come_from_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "rigbus.toml", '[[agents]]\nspec = "mine:Shouter"\nslots = 2\n')
    monkeypatch.setenv("RIGBUS_ENV_PASS", '["LANG", "HF_HOME"]')
    loaded = load()
    assert loaded.settings.agents[0].spec == "mine:Shouter"
    assert loaded.settings.env_pass == ["LANG", "HF_HOME"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("worker = 3\n", ["rigbus.toml: worker", "unknown key", "did you mean 'workers'"]),
        ("zzz = 3\n", ["zzz", "unknown key", "known are"]),
        ("[retention]\nevent = 3\n", ["retention.event", "did you mean 'events'"]),
        ("lease_s = 'long'\n", ["rigbus.toml: lease_s", "number", "'long'"]),
        ("lease_s = 0.01\n", ["lease_s", "greater than or equal to 0.2"]),
        ("lease_s = 301\n", ["lease_s", "less than or equal to 300"]),
        (
            "renew_s = 2\n",
            ["rigbus.toml: renew_s", "2 is too seldom for lease_s = 5", "at most 1.5", "(1 then)"],
        ),
        ("lease_s = 0.5\nrenew_s = 0.2\n", ["renew_s", "lease_s = 0.5", "at most 0.15", "(0.1 then)"]),
        ("durability = 'fast'\n", ["durability", "'full' or 'normal'"]),
        ("[[agents]]\nslots = 1\n", ["rigbus.toml: agents.0.spec", "missing"]),
        ("[[agents]]\nspec = 'a:B'\nsloyts = 2\n", ["rigbus.toml: agents.0.sloyts", "did you mean 'slots'"]),
        ("workers = \n", ["rigbus.toml", "not TOML", "line 1"]),
        ("[limits]\nlive_tasks = 2000000\n", ["limits.live_tasks", "1000000"]),
        ("[brain]\ninfer_wait_s = -1\n", ["brain.infer_wait_s", "greater than or equal to 0"]),
        ("[brain]\ninfer_wait_s = nan\n", ["brain.infer_wait_s"]),
        ("[brain]\ninfer_wait = 3\n", ["brain.infer_wait", "did you mean 'infer_wait_s'"]),
    ],
)
def test_a_wrong_file_is_named_with_key_and_fix(tmp_path: Path, text: str, parts: list[str]) -> None:
    write(tmp_path / "rigbus.toml", text)
    with pytest.raises(ConfigError) as caught:
        load()
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "lease_s", "renewal_s"),
    [
        ("", 5.0, 1.0),
        ("lease_s = 0.2\n", 0.2, 0.04),
        ("lease_s = 0.5\nrenew_s = 0.15\n", 0.5, 0.15),
        ("lease_s = 300\n", 300.0, 1.0),
    ],
)
def test_renewals_follow_the_lease(tmp_path: Path, text: str, lease_s: float, renewal_s: float) -> None:
    write(tmp_path / "rigbus.toml", text)
    settings = load().settings
    assert (settings.lease_s, settings.renewal_s) == (lease_s, pytest.approx(renewal_s))


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    (tmp_path / "rigbus.toml").write_bytes(b"workers = \xff\n")
    with pytest.raises(ConfigError, match="UTF-8"):
        load()


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIGBUS_WORKERS", "many")
    with pytest.raises(ConfigError, match=r"RIGBUS_WORKERS: .*'many'"):
        load()
    monkeypatch.delenv("RIGBUS_WORKERS")
    monkeypatch.setenv("RIGBUS_ENV_PASS", "LANG,HOME")
    with pytest.raises(ConfigError, match="JSON"):
        load()


def test_variables_of_processes_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIGBUS_TOKEN", "a:b:1.2")
    monkeypatch.setenv("RIGBUS_RUNTIME", "/tmp/x")
    assert load().settings.workers is None


def test_a_wrong_flag_is_named() -> None:
    with pytest.raises(ConfigError, match="--lease-s"):
        load({"lease_s": -1})


@pytest.mark.parametrize(
    ("settle", "network", "expected"), [(None, False, 3), (None, True, 30), (5.0, True, 5)]
)
def test_the_settle_time_follows_the_mount(settle: float | None, network: bool, expected: float) -> None:
    assert Settings(settle_s=settle).settling_s(network=network) == expected


def test_paths_and_client_load_no_pydantic() -> None:
    code = (
        "import sys, rigbus.bus.paths, rigbus.bus.mounts, rigbus.bus.client.client\n"
        "assert not {'pydantic', 'pydantic_settings', 'rich'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


def test_paths_load_no_zmq() -> None:
    code = "import sys, rigbus.bus.paths, rigbus.bus.mounts\nassert not {'zmq', 'msgpack'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("tiny", None),
        ("a.b-7b", None),
        ("tiny.gguf", "tiny.gguf"),
        ("./tiny", "tiny"),
        ("/m/tiny", "/m/tiny"),
    ],
)
def test_the_name_of_a_model_in_a_command_is_no_file_of_a_rig(
    monkeypatch: pytest.MonkeyPatch, given: str, taken: str | None
) -> None:
    monkeypatch.setenv("RIGBUS_MODEL", given)
    assert load().settings.model == Path(given), "outside of a command every value is a path"
    monkeypatch.setenv("RIGBUS_TASK_ID", "t")
    assert load().settings.model == (taken and Path(taken))
    assert "model" not in load().origins or taken
    assert load({"model": "x.gguf"}).settings.model == Path("x.gguf")
