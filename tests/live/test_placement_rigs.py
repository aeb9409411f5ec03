"""Hot and cold on rigs of a test's own: what heats and cools by itself, a model that hangs, and a card that is shared."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from helpers import Processes, processes_of, wait_for
from placed import asks, first, hot, rigbus, seats, start, write_models
from rigs import LiveRig

from rigbus import Task

pytestmark = [pytest.mark.live, pytest.mark.llm]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_models(tmp_path_factory.mktemp("models"))


def test_an_ask_that_a_person_cancels_ends_nothing_else(
    rig_dir: Path, processes: Processes, models: dict[str, Path]
) -> None:
    rig = start(rig_dir, processes, models, hot=0)
    with rig.client() as bus:
        wait_for(lambda: len(seats(bus)) == 2, timeout_s=20, what="the model workers")
        for name in sorted(seats(bus)):
            bus.control("pause", name)  # so that the ask stays open
        first_try = bus.submit(
            [Task(type="generate", payload={"prompt": "hi", "max_tokens": 2, "model": "large"})]
        )
        (ask,) = wait_for(lambda: asks(bus), timeout_s=20, what="the rig to ask for the model")
        bus.cancel(ask["id"])
        for name in sorted(seats(bus)):
            bus.control("resume", name)
        (other,) = bus.submit([Task(type="load_llm", cls="meta", meta={"model": "large"})])
        assert next(iter(bus.results([other], timeout_s=30))).ok
        assert next(iter(bus.results(first_try, timeout_s=30))).ok
    assert rig.stop() == 0


def test_another_model_on_the_command_line_is_the_one_that_answers(
    rig_dir: Path, processes: Processes, models: dict[str, Path]
) -> None:
    rig = LiveRig(rig_dir, processes, workers=1, env={"RIGBUS_MODEL": ""})
    for name in ("small", "large"):
        rig.env["RIGBUS_MODEL"] = str(models[name])
        rig.start()
        with rig.client() as bus:
            wait_for(
                lambda name=name: list(hot(bus).values()) == [name], timeout_s=30, what=f"{name} to be hot"
            )
            assert bus.call("generate", {"prompt": "hi", "max_tokens": 2}, timeout_s=20)["model"] == name
        assert rig.stop() == 0


def test_work_heats_and_commands_cool(rig_dir: Path, processes: Processes, models: dict[str, Path]) -> None:
    rig = start(rig_dir, processes, models, hot=0)
    with rig.client() as bus:
        wait_for(lambda: len(seats(bus)) == 2, timeout_s=20, what="the model workers")
        assert hot(bus) == {}
        tasks = [Task(type="generate", payload={"prompt": "hi", "max_tokens": 4}) for _ in range(3)]
        ids = bus.submit(tasks)
        why = wait_for(lambda: bus.query("why", id=ids[0]), what="an answer")
        assert why["summary"]
        assert all(r.ok for r in bus.results(ids, timeout_s=40))
        assert len(hot(bus)) == 1, "one is enough for them"
        bus.control("pause", "worker-1")
        script = bus.submit([Task(type="shell", cls="script", payload={"command": "true"})])
        wait_for(lambda: not hot(bus), timeout_s=20, what="the idle model to make room")
        wait_for(lambda: [a["state"] for a in asks(bus)] == ["done", "done"], what="both asks to end")
        bus.control("resume", "worker-1")
        assert next(iter(bus.results(script, timeout_s=20))).ok
    assert rig.stop() == 0
    wait_for(lambda: not processes_of(rig_dir), what="every process of the rig to end")


def model_child(folder: Path, worker: int) -> int | None:
    """The process that holds the model of this worker."""
    for pid, line in processes_of(folder).items():
        try:
            parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue  # it has just ended
        if parent == worker and "models.engine.child" in line:
            return pid
    return None


def test_a_worker_whose_model_hangs_in_its_next_load_can_be_given_another_one(
    rig_dir: Path, processes: Processes, models: dict[str, Path]
) -> None:
    rig = start(rig_dir, processes, models, min_hot=600.0)
    with rig.client() as bus:
        wait_for(lambda: hot(bus), timeout_s=30, what="a model to be hot")
        name = first(bus)
        worker = rig.pids()[name]
        former = wait_for(lambda: model_child(rig_dir, worker), what="its model's process")
        os.kill(former, signal.SIGKILL)
        hung = wait_for(
            lambda: (pid := model_child(rig_dir, worker)) != former and pid, what="the next process"
        )
        os.kill(hung, signal.SIGSTOP)  # before it has so much as imported llama.cpp
        (stuck,) = bus.submit([Task(type="generate", payload={"prompt": "hi", "max_tokens": 3})])
        wait_for(lambda: bus.query("task", id=stuck)["rows"][0]["state"] == "leased", what="its lease")
        done = rigbus(rig, "load", "large", "--worker", name, "--timeout", "20")
        assert (done.returncode, done.stdout) == (0, f"large is hot on {name}\n"), done.stderr
        (row,) = bus.query("task", id=stuck)["rows"]
        assert row["state"] != "dead", "who waited for it waits for another worker"
    assert rig.stop() == 0


def test_a_model_that_is_asked_for_by_name_takes_the_place_of_an_idle_one(
    rig_dir: Path, processes: Processes, models: dict[str, Path]
) -> None:
    rig = start(rig_dir, processes, models, seats=3, hot=2)
    with rig.client() as bus:
        wait_for(lambda: len(hot(bus)) == 2, timeout_s=30, what="two models, which are as many as may be hot")
        task = Task(type="generate", needs=["model:large"], payload={"prompt": "hi", "max_tokens": 3})
        (result,) = bus.results(bus.submit([task]), timeout_s=40)
        assert result.value["model"] == "large"
    assert rig.stop() == 0


def test_commands_on_the_card_get_what_the_model_leaves(
    rig_dir: Path, processes: Processes, models: dict[str, Path]
) -> None:
    config = rig_dir / "xdg" / "rigbus"
    config.mkdir(parents=True)
    (config / "config.toml").write_text(
        f'worker_gpus = ["0"]\n[models.small]\npath = "{models["small"]}"\nvram_mb = 3000\n[placement]\nhot_at_start = 0\n'
    )
    env = {"XDG_CONFIG_HOME": str(rig_dir / "xdg"), "RIGBUS_GPU_SOURCE": "synthetic:1"}
    rig = LiveRig(rig_dir, processes, workers=1, env=env)
    rig.start()
    with rig.client() as bus:

        def budget() -> int | None:
            (row,) = (w for w in bus.query("workers")["workers"] if w["id"] == "worker-1")
            found: int | None = row["vram_mb"]
            return found

        whole = wait_for(budget, timeout_s=20, what="the size of the card")
        assert whole is not None
        task = Task(type="shell", cls="script", vram_mb=whole - 1000, payload={"command": "sleep 60"})
        (held,) = bus.submit([task])
        wait_for(
            lambda: bus.query("task", id=held)["rows"][0]["state"] == "leased", what="the command to run"
        )
        (ask,) = bus.submit([Task(type="load_llm", cls="meta")])
        wait_for(lambda: budget() == whole - 3000, timeout_s=20, what="the place to be kept")
        assert seats(bus)["model-1"]["phase"] == "cold", "the command still has the memory"
        bus.cancel(held)
        (done,) = bus.results([ask], timeout_s=30)
        assert done.ok
        (gone,) = bus.submit([Task(type="unload_llm", cls="meta", meta={"worker": "model-1"})])
        assert next(iter(bus.results([gone], timeout_s=30))).ok
        wait_for(lambda: budget() == whole, timeout_s=20, what="the place to be given back")
    assert rig.stop() == 0
