"""`rigbus gpu`, and what other verbs say of cards: workers with recorded cards on a real rig, and rows in memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from helpers import Processes, short_folder, wait_for, written

from rigbus import Client, Task
from rigbus.agents.gpu.cards import row_of
from rigbus.agents.gpu.played import SyntheticSource
from rigbus.agents.gpu.readings import GpuReading
from rigbus.bus.paths import endpoints, rig_paths
from rigbus.bus.telemetry import GpuSample, RigStatus
from rigbus.tools import gpu_view
from rigbus.tools.gpu_rig import RigNow


def cards_of(celsius: Sequence[float], pids: Sequence[int] = ()) -> list[GpuReading]:
    """Cards with these temperatures; ``pids`` compute on card 1."""
    return [
        GpuReading(
            index=n,
            uuid=f"GPU-{n:08d}",
            name="GTX 1060",
            temperature_c=c,
            utilization=0.5,
            memory_used_mb=3072,
            memory_total_mb=6144,
            power_w=100.0,
            power_limit_w=120.0,
            throttle=("power cap",) if n == 1 else (),
            pids=tuple(pids) if n == 1 else (),
        )
        for n, c in enumerate(celsius)
    ]


@dataclass
class CardRig:
    """A broker, a worker with card 1, and one with the pair 3 and 0. ``cards`` is the log that all play."""

    folder: Path
    state: Path
    cards: Path

    def show(self, readings: list[GpuReading]) -> None:
        """What the cards say from now on."""
        with self.cards.open("a") as out:
            out.write(
                json.dumps({"schema": "rigbus.gpu/1", "at": 0.0, "cards": [row_of(r) for r in readings]})
                + "\n"
            )

    def client(self) -> Client:
        return Client(endpoints(rig_paths(self.state))["commands"], self.state, timeout_s=20)


@pytest.fixture(scope="module")
def rig() -> Iterator[CardRig]:
    with short_folder() as folder:
        found = CardRig(folder, folder / "state", folder / "cards.jsonl")
        found.state.mkdir(mode=0o700)
        found.show(cards_of([40, 50, 60, 71]))
        processes = Processes(folder)
        env = {"RIGBUS_STATE": str(found.state), "RIGBUS_GPU_SOURCE": f"file:{found.cards}"}
        try:
            processes.python("-P", "-m", "rigbus", "broker", env=env)
            for name, card in (("solo", "1"), ("pair", "3,0")):
                processes.python("-P", "-m", "rigbus", "worker", "--name", name, "--gpu", card, env=env)
            with found.client() as bus:
                wait_for(
                    lambda: len(with_cards(bus)) == 2, timeout_s=20, what="two workers that see their cards"
                )
            yield found
        finally:
            processes.stop_all()


def with_cards(bus: Client) -> dict[str, Any]:
    return {w["id"]: w["gpu"] for w in bus.query("status")["workers"] if w["gpu"]}


@pytest.fixture
def here(rig: CardRig, monkeypatch: pytest.MonkeyPatch) -> CardRig:
    monkeypatch.setenv("RIGBUS_STATE", str(rig.state))
    monkeypatch.setenv("RIGBUS_GPU_SOURCE", f"file:{rig.cards}")
    return rig


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No rig."""
    monkeypatch.setenv("RIGBUS_STATE", str(tmp_path / "none"))
    return tmp_path


# -- workers with cards ----------------------------------------------------------------------------------------------


def test_a_workers_heartbeat_has_its_own_cards_and_status_shows_them(say, here: CardRig) -> None:
    shown = say("status", "--json").json
    RigStatus.model_validate(shown)
    gpus = {w["id"]: w["gpu"] for w in shown["workers"]}
    assert (gpus["solo"]["index"], [c["index"] for c in gpus["solo"]["cards"]]) == (1, [1])
    assert (gpus["pair"]["index"], [c["index"] for c in gpus["pair"]["cards"]]) == (3, [3, 0])
    assert (gpus["pair"]["source"], gpus["pair"]["temperature_c"]) == ("file", 71.0)
    lines = {line.split()[0]: line for line in say("status").out.splitlines() if line}
    assert lines["WORKER"].endswith("GPU")
    assert lines["solo"].endswith("50 °C 50% 3.0/6.0 GiB")
    assert lines["pair"].endswith("2 cards 71 °C 50% 6.0/12.0 GiB")
    assert "2 cards 71 °C" in say("watch", "--once").out


def test_a_card_that_grows_hot_is_seen_without_a_question_to_it(here: CardRig) -> None:
    with here.client() as bus:
        try:
            here.show(cards_of([40, 88, 60, 71]))
            wait_for(lambda: with_cards(bus)["solo"]["temperature_c"] == 88.0, timeout_s=10, what="88 °C")
        finally:
            here.show(cards_of([40, 50, 60, 71]))
        wait_for(lambda: with_cards(bus)["solo"]["temperature_c"] == 50.0, timeout_s=10, what="50 °C")


def test_which_task_heats_the_card(
    say, here: CardRig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gate = here.folder / "gate"
    command = f"echo $$ > {here.folder}/pid-$CUDA_VISIBLE_DEVICES-$CUDA_DEVICE_ORDER; until [ -e {gate} ]; do sleep 0.02; done"
    now = tmp_path / "now.jsonl"
    monkeypatch.setenv("RIGBUS_GPU_SOURCE", f"file:{now}")
    monkeypatch.setattr(here, "cards", now)
    with here.client() as bus:
        ids = bus.submit(
            [Task(type="shell", key=name, payload={"command": command}) for name in ("left", "right")]
        )
        try:
            here.show(cards_of([40, 50, 60, 71]))
            found = wait_for(
                lambda: _tasks(say) if len(_tasks(say)) == 3 else None, timeout_s=10, what="three cards"
            )
            # Nobody has said which process computes: each worker's task on each of its cards.
            assert {card: worker for card, (worker, _) in found.items()} == {0: "pair", 1: "solo", 3: "pair"}
            names = {task for _, task in found.values()}
            assert names == {"left", "right"} and found[0] == found[3]
            # Now the driver names one: below the worker, so that it is proven whose it is, and only there.
            # a worker says "running" when it has made the process, which may not have come to its first line
            pid = int(wait_for(lambda: written(here.folder / "pid-1-PCI_BUS_ID").strip(), what="its pid"))
            now.unlink()
            here.show(cards_of([40, 50, 60, 71], pids=[pid]))
            assert _tasks(say) == {1: found[1]}
            said = say("gpu", "--count", "1").out.splitlines()
            assert said[0].split() == ["GPU", "NAME", "TEMP", "UTIL", "VRAM", "POWER", "THROTTLE", "RUNS"]
            assert f"power cap  solo: {found[1][1]} " in said[2]
            assert said[4].endswith("pair")
        finally:
            gate.touch()
        assert all(result.ok for result in bus.results(ids, timeout_s=20))


def _tasks(say: Any) -> dict[int, tuple[str, str]]:
    sample = say("gpu", "--count", "1", "--json").json
    GpuSample.model_validate(sample)
    return {
        card["index"]: (t["worker"], t["name"]) for card in sample["cards"] for t in card.get("tasks") or ()
    }


def test_a_machine_without_cards_shows_those_that_the_rig_reports(say, here: CardRig, monkeypatch) -> None:
    monkeypatch.setenv("RIGBUS_GPU_SOURCE", "none")
    sample = say("gpu", "--count", "1", "--json").json
    assert sample["source"] == "rig"
    assert [(c["index"], c["workers"]) for c in sample["cards"]] == [
        (0, ["pair"]),
        (1, ["solo"]),
        (3, ["pair"]),
    ]
    assert {c["temperature_c"] for c in sample["cards"]} == {40.0, 50.0, 71.0}


# -- the verb alone --------------------------------------------------------------------------------------------------


def test_without_a_card_and_without_a_rig_it_says_what_was_tried(say, nowhere: Path, monkeypatch) -> None:
    monkeypatch.setenv("RIGBUS_GPU_SOURCE", "nvidia-smi")
    monkeypatch.setenv("PATH", str(nowhere))
    said = say("gpu")
    assert (said.code, said.out) == (3, "")
    (line,) = (line for line in said.err.splitlines() if line.startswith("rigbus: "))
    assert "no GPU here: nvidia-smi: not on PATH; nor elsewhere: no broker answers" in line
    assert "rigbus[gpu]" in line


@pytest.mark.parametrize(
    ("source", "words", "code", "said"),
    [
        ("cuda", [], 2, "RIGBUS_GPU_SOURCE='cuda' is no source"),
        ("file:/dev/null/x", [], 2, "names a log of readings"),
        ("synthetic:0", [], 2, "1 to 64 cards"),
        ("synthetic:1", ["--summary", "x", "--count", "1"], 2, "--summary reads a log"),
        ("synthetic:1", ["--interval", "0"], 2, "--interval"),
        ("synthetic:1", ["--summary", "nothing.jsonl"], 1, "nothing.jsonl: No such file"),
        ("synthetic:1", ["--summary", "/dev/null"], 3, "no line of it is a sample"),
        ("synthetic:1", ["--count", "1", "--log", "no/folder/x"], 1, "no/folder/x: No such file"),
    ],
)
def test_what_cannot_be_done_is_refused(say, nowhere: Path, monkeypatch, source, words, code, said) -> None:
    monkeypatch.chdir(nowhere)
    monkeypatch.setenv("RIGBUS_GPU_SOURCE", source)
    got = say("gpu", *words)
    assert (got.code, got.out) == (code, "")
    assert said in got.err


def test_a_log_is_appended_line_by_line_and_summed_up(say, nowhere: Path, monkeypatch) -> None:
    monkeypatch.setenv("RIGBUS_GPU_SOURCE", "synthetic:2")
    log = nowhere / "cards.jsonl"
    log.write_text('{"schema": "rigbus.gpu/1", "at": 5, "car')  # a crash in the middle of a line
    assert say("gpu", "--count", "2", "--interval", "0.1", "--log", log).code == 0
    lines = say("gpu", "--count", "3", "--interval", "0.1", "--json", "--log", log).out.splitlines()
    written = log.read_text().splitlines()
    assert written[-3:] == lines and len(written) == 6
    for line in lines:
        GpuSample.model_validate_json(line)
    found = say("gpu", "--summary", log, "--json", "--warn", "30").json
    assert (found["schema"], found["skipped"], found["warn_c"]) == ("rigbus.gpu.summary/1", 1, 30.0)
    assert [(card["index"], card["samples"]) for card in found["cards"]] == [(0, 5), (1, 5)]
    assert found["cards"][0]["above_warn_s"] == found["cards"][0]["covered_s"] > 0.2
    text = say("gpu", "--summary", log).out
    assert "> 75 °C" in text and "1 line of the file were no samples" not in text
    assert "1 line was no sample" in text


def test_a_log_of_the_verb_can_be_played(say, nowhere: Path, monkeypatch) -> None:
    monkeypatch.setenv("RIGBUS_GPU_SOURCE", "synthetic:2")
    log = nowhere / "cards.jsonl"
    first = say("gpu", "--count", "1", "--json", "--log", log).json
    monkeypatch.setenv("RIGBUS_GPU_SOURCE", f"file:{log}")
    assert say("gpu", "--count", "1", "--json").json["cards"] == first["cards"]


def test_a_pipe_gets_a_line_a_card_as_it_is_read(nowhere: Path) -> None:
    env = {**os.environ, "RIGBUS_GPU_SOURCE": "synthetic:2"}
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "rigbus", "gpu", "--interval", "0.1"],
        stdout=subprocess.PIPE,
        env=env,
        text=True,
    ) as shown:
        assert shown.stdout is not None
        lines = [shown.stdout.readline() for _ in range(4)]
        shown.terminate()
    assert [line.split()[1] for line in lines] == ["gpu-0", "gpu-1"] * 2
    assert all("°C" in line and "GiB" in line and "/120 W" in line for line in lines)


# -- views -----------------------------------------------------------------------------------------------------------


def worker(name: str, *indexes: int, **more: Any) -> dict[str, Any]:
    cards = [{"index": n, "uuid": f"GPU-{n}"} for n in indexes]
    return {"id": name, "gpu": {**cards[0], "cards": cards} if cards else None, **more}


CARDS = [{"index": n, "uuid": f"GPU-{n}"} for n in range(3)]
RUNNING = {
    "a": [{"id": "1", "name": "x", "elapsed_s": 3.0}],
    "b": [{"id": "2", "name": "y", "elapsed_s": None}],
}


def test_without_known_processes_each_worker_that_may_use_a_card_is_named() -> None:
    shown = gpu_view.with_tasks(
        CARDS, [worker("a", 0, 1), worker("b", 1), worker("c")], RUNNING, lambda pid: None
    )
    assert [card["workers"] for card in shown] == [["a"], ["a", "b"], []]
    assert [[t["name"] for t in card["tasks"]] for card in shown] == [["x"], ["x", "y"], []]


def test_a_process_of_nobody_here_proves_nothing() -> None:
    cards = [{**CARDS[0], "pids": [7]}, *CARDS[1:]]
    shown = gpu_view.with_tasks(cards, [worker("a", 0)], RUNNING, lambda pid: None)
    assert [len(card["tasks"]) for card in shown] == [1, 0, 0]


def test_a_proven_process_takes_the_task_from_cards_that_it_leaves_alone() -> None:
    cards = [CARDS[0], {**CARDS[1], "pids": [7, 8]}, {**CARDS[2], "pids": [9]}]
    owner = {7: "a", 8: "a"}
    shown = gpu_view.with_tasks(cards, [worker("a", 0, 1, 2), worker("b", 0)], RUNNING, owner.get)
    assert [card["workers"] for card in shown] == [["a", "b"], ["a"], ["a"]]
    assert [len(card["tasks"]) for card in shown] == [0, 1, 0]


def test_a_process_belongs_to_the_worker_above_it() -> None:
    me = os.getpid()
    with subprocess.Popen(["sleep", "30"]) as below:
        try:
            assert RigNow([{"id": "w", "pid": me}]).worker_of(below.pid) == "w"
            assert RigNow([{"id": "w", "pid": None}]).worker_of(below.pid) is None
            assert RigNow([{"id": "w", "pid": below.pid}]).worker_of(me) is None
        finally:
            below.kill()


@pytest.mark.parametrize(
    ("field", "words"),
    [
        (None, ""),
        ({"index": 0, "temperature_c": 71.4, "utilization_pct": 98.0, "vram_used_mb": 5222, "vram_total_mb": 6144},
         "71 °C 98% 5.1/6.0 GiB"),
        ({"index": 0, "error": "GPU is lost"}, "no readings"),
        ({"index": 0, "temperature_c": 50, "age_s": 12.0, "stale": True}, "50 °C (12 s old)"),
        ({"index": 0, "cards": [{"index": 0, "temperature_c": 50}, {"index": 1, "error": "lost"}]}, "2 cards 50 °C"),
        ({"index": 0}, ""),
    ],
)  # fmt: skip
def test_a_workers_cards_in_a_few_words(field: Any, words: str) -> None:
    assert gpu_view.short(field) == words


def test_the_picture_shows_each_card_and_no_markup_of_a_cards_name() -> None:
    from rich.console import Console

    cards = [row_of(card) for card in SyntheticSource(2, clock=lambda: 0.0).sample()]
    cards[0] |= {"name": "[red]x[/red]\x1b[31m", "tasks": [{"id": "1", "name": "census", "worker": "w"}]}
    cards[1] = {"index": 1, "error": "GPU is lost"}
    sample = {"at": 1.0, "host": "rig", "source": "nvml", "stale": True, "cards": cards}
    console = Console(width=140, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(gpu_view.picture(sample, 75.0))
    text = console.export_text()
    assert "[red]x[/red]" in text and "\x1b" not in text
    assert "w: census" in text and "GPU is lost" in text and "stale: read at" in text
