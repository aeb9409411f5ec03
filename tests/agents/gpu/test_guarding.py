"""The guard in a worker: what its ticks post, and a real rig with a real worker whose card gets hot."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rigbus import Task
from rigbus.agents.gpu.guard import ThermalLimits
from rigbus.agents.gpu.guarding import LOOK_S, CardKeeper, keeper_of
from rigbus.agents.gpu.readings import GpuReading
from rigbus.agents.testing import Rig
from rigbus.agents.worker import events as ev
from rigbus.agents.worker.main import thermal_limits
from rigbus.bus.config.models import Thermal
from rigbus.bus.config.settings import Settings
from rigbus.bus.errors import ConfigError
from rigbus.tools.cli import run

AGENTS = Path(__file__).parent.with_name("sample_agents.py")


class ScriptedCards:
    """Cards whose last sample the test sets; it grows old until the next."""

    devices: str | None = "0"

    def __init__(self) -> None:
        self.readings: Sequence[GpuReading] = ()
        self.age_s: float | None = None

    def latest(self) -> ScriptedCards:
        return self


class Bench:
    """A keeper with a clock that the test turns, and what it has posted."""

    def __init__(self, **how: Any) -> None:
        self.cards = ScriptedCards()
        self.posted: list[ev.Event] = []
        self.keeper = CardKeeper(self, self.cards, limits=ThermalLimits(min_pause_s=0.0), **how)
        self.now = 100.0

    def post(self, event: ev.Event, wake: bool = True) -> None:
        self.posted.append(event)

    def see(self, degrees: float | None, total_mb: int | None = None, error: str = "") -> list[ev.Event]:
        """A new sample; what it led to."""
        reading = GpuReading(index=0, temperature_c=degrees, memory_total_mb=total_mb, error=error)
        self.cards.readings, self.cards.age_s = [reading], 0.0
        return self.look(2.0)

    def look(self, seconds: float) -> list[ev.Event]:
        self.now += seconds
        self.posted.clear()
        assert self.keeper.tick(self.now) == self.now + LOOK_S
        return list(self.posted)


def test_a_hot_card_holds_and_a_cool_one_releases() -> None:
    b = Bench()
    assert b.see(84) == []
    assert b.see(84) == [ev.Held("GPU 0 is at 84 °C, resumes below 79 °C")]
    assert b.see(84) == []
    assert b.see(85) == [ev.Held("GPU 0 is at 85 °C, resumes below 79 °C")]
    assert b.see(91) == [ev.Held("GPU 0 is at 91 °C, resumes below 79 °C")]
    assert b.see(91) == [ev.Held("GPU 0 is at 91 °C, resumes below 79 °C", critical=True)]
    b.see(70)
    assert b.see(70) == [ev.Released()]
    assert b.see(70) == []


def test_nothing_is_done_between_two_looks_and_before_the_first_sample() -> None:
    b = Bench()
    assert b.look(1.0) == []
    b.see(84)
    b.cards.readings = []
    assert b.keeper.tick(b.now + 0.4) == b.now + LOOK_S


def test_a_driver_that_hangs_lets_its_sample_grow_old_and_holds_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    b = Bench()
    b.see(80)
    with caplog.at_level(logging.WARNING):
        for age_s in range(1, 120):
            b.cards.age_s = float(age_s)
            assert b.look(1.0) == []
    said = [r.getMessage() for r in caplog.records]
    assert said == ["GPU 0 has told no temperature for over 15 s: it cannot be guarded"]


def test_a_hold_whose_readings_end_is_over_after_a_minute() -> None:
    b = Bench()
    b.see(84)
    b.see(84)
    posted: list[ev.Event] = []
    for age_s in range(1, 70):
        b.cards.age_s = float(age_s)
        posted += b.look(1.0)
    assert [type(e) for e in posted] == [ev.Held, ev.Released]


def test_the_budget_is_told_once_and_when_it_changes() -> None:
    b = Bench()
    assert b.see(60) == []
    assert b.see(60, 6144) == [ev.VramBudget(4915)]
    assert b.see(60, 6144) == []
    assert b.see(60, None, error="GPU is lost") == [], "a card that is silent has not shrunk"
    assert b.see(60, 8192) == [ev.VramBudget(6553)]
    assert Bench(budget=False).see(60, 6144) == []


def test_a_worker_without_cards_of_its_own_has_no_guard() -> None:
    bench, cards = Bench(), ScriptedCards()
    assert keeper_of(bench, None) is None
    assert keeper_of(bench, cards) is not None
    cards.devices = None
    assert keeper_of(bench, cards) is None, "a CPU worker beside hot cards"
    assert keeper_of(bench, cards, uses_any=True) is not None


# ---------------------------------------------------------------- a real rig


class HotRig:
    """A broker, a worker `hot` whose card's temperature the test sets, and a client."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.card = rig.folder / "card"
        self.heat(60)
        script = Path(__file__).with_name("hot_worker.py")
        rig._start("hot", [str(script), str(rig.state), "hot", str(self.card)])
        rig.wait_joined("hot")

    def heat(self, degrees: float) -> None:
        new = self.card.with_suffix(".new")
        new.write_text(str(degrees))
        os.replace(new, self.card)

    def worker(self, name: str = "hot") -> dict[str, Any]:
        rows = self.rig.bus.query("status")["workers"]
        return next(row for row in rows if row["id"] == name)

    def until(self, state: str) -> dict[str, Any]:
        return self.rig.wait(
            lambda: (row := self.worker())["state"] == state and row, what=f"the worker being {state}"
        )

    def shell(self, command: str, **more: Any) -> str:
        (ref,) = self.rig.bus.submit([Task(type="shell", payload={"command": command}, **more)])
        return ref

    def task(self, ref: str) -> dict[str, Any]:
        row: dict[str, Any] = self.rig.bus.query("task", id=ref)["rows"][0]
        return row


@pytest.fixture(scope="module")
def hot() -> Iterator[HotRig]:
    with Rig.running() as rig:
        yield HotRig(rig)


@pytest.mark.live
def test_a_warm_card_holds_its_worker_and_lets_go_when_it_has_cooled(hot: HotRig) -> None:
    go = hot.rig.folder / "go"
    running = hot.shell(f"until [ -e {go} ]; do sleep 0.05; done")
    hot.rig.wait(lambda: hot.task(running)["started"], what="the first task running")
    hot.heat(84)
    row = hot.until("held")
    assert row["held"] == "GPU 0 is at 84 °C, resumes below 79 °C"
    assert (row["credit"], row["tasks"]) == (0, [running])
    waiting, cancelled = hot.shell("true"), hot.shell("true")
    why = hot.rig.bus.query("why", id=waiting)
    assert why["summary"] == "no worker can take it: hot is held: GPU 0 is at 84 °C, resumes below 79 °C"
    hot.rig.bus.cancel([cancelled])
    go.touch()
    (result,) = hot.rig.bus.results([running], timeout_s=10)
    assert (result.ok, result.attempts) == (True, 1), "what runs goes on"
    assert hot.task(waiting)["state"] == "ready"
    beat = hot.rig.wait(
        lambda: (t := hot.worker()["telemetry"]).get("state") == "held" and t, what="its heartbeat"
    )
    assert beat["held"].startswith("GPU 0 is at 84 °C")
    hot.heat(70)
    (result,) = hot.rig.bus.results([waiting], timeout_s=10)
    assert (result.ok, result.attempts) == (True, 1)
    assert hot.worker()["held"] is None


@pytest.mark.live
def test_a_critical_card_ends_what_runs_and_it_runs_again_without_a_lost_attempt(hot: HotRig) -> None:
    mark = hot.rig.folder / "pids"
    ref = hot.shell(
        f"echo $$ >> {mark}; [ $(wc -l < {mark}) -gt 1 ] || (setsid sleep 300 & sleep 300)", max_attempts=1
    )
    hot.rig.wait(lambda: mark.exists() and hot.task(ref)["started"], what="the task running")
    hot.heat(91)
    hot.until("held")
    row = hot.rig.wait(
        lambda: (r := hot.task(ref))["state"] == "ready" and r, what="the task being given back"
    )
    assert row["reason"] == "thermal: GPU 0 is at 91 °C, resumes below 79 °C"
    assert (row["attempt"], row["attempts"]) == (0, {"task": 0, "crash": 0, "infra": 0})
    assert not Path("/proc", mark.read_text().strip()).exists(), "its tree is dead before it runs again"
    hot.heat(60)
    (result,) = hot.rig.bus.results([ref], timeout_s=10)
    assert (result.ok, result.attempts) == (True, 1)


@pytest.mark.live
def test_the_size_of_the_card_is_the_budget_of_its_worker(hot: HotRig) -> None:
    assert hot.rig.wait(lambda: hot.worker()["vram_mb"], what="the budget") == 4915
    fits, large = hot.shell("true", vram_mb=4915), hot.shell("true", vram_mb=5000)
    (result,) = hot.rig.bus.results([fits], timeout_s=10)
    assert result.ok
    why = hot.rig.bus.query("why", id=large)
    assert why["summary"] == "no worker may use 5000 MiB of VRAM: hot may use 4915 MiB"
    hot.rig.bus.cancel([large])


@pytest.mark.live
def test_a_plain_worker_is_guarded_by_the_readings_of_its_own_card_only() -> None:
    """Whole: RIGBUS_GPU_SOURCE, the watch's thread, the guard, OFFER, `status`."""

    def line(*degrees: float) -> str:
        cards = [{"index": i, "temperature_c": d, "vram_total_mb": 6144} for i, d in enumerate(degrees)]
        return json.dumps({"schema": "rigbus.gpu/1", "cards": cards}) + "\n"

    def row(rig: Rig, name: str) -> dict[str, Any]:
        return next(r for r in rig.bus.query("status")["workers"] if r["id"] == name)

    with Rig.running() as rig:
        log_file = rig.folder / "cards.jsonl"
        log_file.write_text(line(70, 71))
        env = {"RIGBUS_GPU_SOURCE": f"file:{log_file}"}
        for name, words in (("w0", ["--gpu", "0"]), ("w1", ["--gpu", "1"]), ("cpu", [])):
            rig._worker(name, words, env)
        for name in ("w0", "w1", "cpu"):
            rig.wait_joined(name)
        rig.wait(lambda: row(rig, "w1")["vram_mb"] == 4915, what="the budget of a card")
        with log_file.open("a") as log:
            log.write(line(71, 84))
        rig.wait(lambda: row(rig, "w1")["held"], what="the worker of the hot card being held")
        assert row(rig, "w1")["held"] == "GPU 1 is at 84 °C, resumes below 79 °C"
        assert (row(rig, "w0")["held"], row(rig, "cpu")["held"]) == (None, None)
        assert row(rig, "cpu")["vram_mb"] is None


@pytest.mark.live
def test_an_agent_is_guarded_by_the_configured_limits() -> None:
    """Started by hand as a class's ``main()`` starts it, and by the verb with a file of its own."""
    hot_at_65 = "[thermal]\nwarn_c = 60\ncritical_c = 95\nhysteresis_c = 5\n"

    def row(rig: Rig, name: str) -> dict[str, Any]:
        return next((r for r in rig.bus.query("status")["workers"] if r["id"] == name), {})

    with Rig.running() as rig:
        log_file, home = rig.folder / "cards.jsonl", rig.folder / "home"
        cards = [{"index": 0, "temperature_c": 65, "vram_total_mb": 6144}]
        log_file.write_text(json.dumps({"schema": "rigbus.gpu/1", "cards": cards}) + "\n")
        (home / "rigbus").mkdir(parents=True)
        (home / "rigbus" / "config.toml").write_text(hot_at_65)
        (rig.folder / "own.toml").write_text(hot_at_65.replace("60", "64"))
        env = {"RIGBUS_GPU_SOURCE": f"file:{log_file}", "CUDA_VISIBLE_DEVICES": "0"}
        agent = ["--agent", f"{AGENTS}:Sampler"]
        rig._worker("plain", agent, {**env, "XDG_CONFIG_HOME": str(rig.folder)})
        rig._worker("by-hand", agent, {**env, "XDG_CONFIG_HOME": str(home)})
        rig._worker("named", [*agent, "--thermal", "62:95:1"], env)
        words = ["-m", "rigbus", "worker", "--state", str(rig.state), "--name", "verb", *agent]
        rig._start("verb", [*words, "--config", str(rig.folder / "own.toml")], env)
        for name, resumes_c in (("by-hand", 55), ("named", 61), ("verb", 59)):
            rig.wait(lambda name=name: row(rig, name).get("held"), what=f"{name} being held")
            assert row(rig, name)["held"] == f"GPU 0 is at 65 °C, resumes below {resumes_c} °C"
        rig.wait(lambda: (row(rig, "plain").get("gpu") or {}).get("temperature_c") == 65, what="its card")
        assert row(rig, "plain")["held"] is None, "65 °C is nothing by the defaults"


def test_the_limits_of_a_rig_reach_its_agents(monkeypatch: pytest.MonkeyPatch) -> None:
    """``up`` hands its settings on; the verb makes words of them."""
    seen: list[list[str]] = []
    monkeypatch.setattr("rigbus.agents.worker.main.main", seen.append)
    monkeypatch.setenv("RIGBUS_ALIVE_FD", "5")
    settings = Settings(thermal=Thermal(warn_c=70, critical_c=80, hysteresis_c=3)).model_dump(mode="json")
    monkeypatch.setenv("RIGBUS_UP_SETTINGS", json.dumps(settings))
    assert run(["worker", "--agent", "module:Class", "--name", "a"]) == 0
    (words,) = seen
    assert words[words.index("--thermal") + 1] == "70:80:3"
    assert words[words.index("--agent") + 1] == "module:Class"


def test_an_agent_without_cards_reads_no_configuration(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "rigbus.toml").write_text("[thermal]\nwarn_c = 'hot'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RIGBUS_GPU_SOURCE", "none")
    assert thermal_limits(None) is None
    monkeypatch.setenv("RIGBUS_GPU_SOURCE", "synthetic:1")
    with pytest.raises(ConfigError, match=r"rigbus\.toml: thermal\.warn_c"):
        thermal_limits(None)
    (tmp_path / "rigbus.toml").write_text("[thermal]\nwarn_c = 70\n")
    assert thermal_limits(None) == ThermalLimits(warn_c=70)
    assert thermal_limits("60:61:2") == ThermalLimits(warn_c=60, critical_c=61, hysteresis_c=2)
