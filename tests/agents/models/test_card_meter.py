"""A seat beside a card whose readings are played: its model's memory is measured, remembered, and waited for."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_for

from rigbus.agents.gpu.cards import row_of
from rigbus.agents.gpu.played import RecordedSource
from rigbus.agents.gpu.readings import GpuReading
from rigbus.agents.gpu.watch import Sample
from rigbus.agents.models.card_meter import STEP_MB, CardMeter
from rigbus.agents.models.catalogue.entries import Entry, key_of
from rigbus.agents.models.catalogue.peaks import FILE, known_peak
from rigbus.agents.models.protocol import ModelState
from rigbus.agents.models.scripted import ScriptedModel
from rigbus.agents.models.seat import Seat
from rigbus.agents.models.seat_core import BACK_S
from rigbus.bus.errors import DefinitionError

PID = 4242


class PlayedCards:
    """The cards of a log that the test writes on; it is read when somebody asks for a new sample."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.stale = False
        self.source = "file"
        self.number = 0
        self.readings: list[GpuReading] = []
        file.touch()
        self.show(300)
        self._source = RecordedSource(file)
        self.sample()

    def show(self, used_mb: int, ours_mb: int | None = None, *, stranger: bool = False) -> None:
        """What the card says next; ``ours_mb``: of the model's process, None: it is not on it. A stranger's are not told."""
        ours = () if ours_mb is None else ((PID, ours_mb),)
        reading = GpuReading(
            index=1,
            uuid="GPU-1111",
            memory_used_mb=used_mb,
            memory_total_mb=6144,
            pids=(*(pid for pid, _ in ours), *([PID + 1] if stranger else [])),
            process_mb=ours,
        )
        with self._file.open("a") as file:
            file.write(json.dumps({"schema": "rigbus.gpu/1", "cards": [row_of(reading)]}) + "\n")

    def sample(self) -> None:
        self.readings = self._source.sample()
        self.number += 1

    refresh = sample

    def latest(self) -> Sample:
        return Sample(tuple(self.readings), 0.0, self.stale, self.number, self.source)


class HeldModel(ScriptedModel):
    """Ready at once, in a process that the card knows by its number."""

    pid: int | None = PID
    on_card = False
    failed = ""

    @property
    def state(self) -> ModelState:
        return ModelState("failed", 0.0, self.failed) if self.failed else super().state


class Bus:
    """A loop that grants every token at once."""

    def __init__(self) -> None:
        self.beats = 0

    def post(self, event: object, wake: bool = True) -> None:
        pass

    def beat(self) -> None:
        self.beats += 1

    def ask(
        self, verb: object, header: dict[str, Any], answered: Callable[[Mapping[str, Any]], None]
    ) -> bool:
        answered({"held": header["action"] == "take"})
        return True


class Bench:
    """A seat with a clock that the test turns."""

    def __init__(self, folder: Path) -> None:
        self.state = folder
        self.file = folder / "m.gguf"
        self.file.write_bytes(b"GGUF" + bytes(100))
        self.entry = Entry(name="m", path=str(self.file))
        self.cards = PlayedCards(folder / "cards.jsonl")
        self.now = 0.0
        self.generation = 0
        self.model = HeldModel()
        self.meter = CardMeter(self.cards, folder, wall=lambda: 17.0)
        self.seat = Seat(
            Bus(),
            group="pcie-0",
            open_model=lambda wanted: self.model,
            on_model=lambda wanted, model: None,
            runs=lambda: 0,
            clock=lambda: self.now,
            meter=self.meter,
        )

    def place(self, entry: Entry | None) -> None:
        self.generation += 1
        spec = entry.to_map() if entry is not None else None
        model = entry.name if entry is not None else None
        self.seat.control("place", {"generation": self.generation, "model": model, "spec": spec})

    def turn(self, seconds: float = 0.0) -> dict[str, Any]:
        """A turn of the loop; what the heartbeat says then."""
        self.now += seconds
        self.seat.tick(self.now)
        return self.seat.report()

    def load(self) -> dict[str, Any]:
        """A model that takes 2000 MB, hot."""
        self.model = HeldModel()
        self.place(self.entry)
        wait_for(lambda: self.turn()["phase"] == "hot", what="the model to be hot")
        self.cards.show(2300, 2000)
        self.cards.sample()
        return self.turn()

    def unload(self) -> None:
        """Its process has gone: from here on the card is asked."""
        self.place(None)
        wait_for(self.closed, what="its process to be gone")

    def closed(self) -> bool:
        return self.turn()["phase"] == "cold" or self.seat._core.back_by is not None

    def peak(self) -> int | None:
        """What is remembered, once what is being written is."""
        self.meter.close()
        return known_peak(self.state, key_of(self.entry))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_hot_model_is_measured_and_its_peak_is_remembered(bench: Bench) -> None:
    said = bench.load()
    assert (said["vram_mb"], bench.peak()) == (2000, 2000)
    (peak,) = json.loads((bench.state / FILE).read_text())["peaks"].values()
    assert peak == {"mb": 2000, "at": 17.0, "model": "m"}


def test_a_peak_is_written_again_when_it_has_grown_and_when_the_model_goes(bench: Bench) -> None:
    bench.load()
    for used, written in (
        (2000 + STEP_MB - 1, 2000),
        (2000 + STEP_MB, 2000 + STEP_MB),
        (1900, 2000 + STEP_MB),
    ):
        bench.cards.show(used + 300, used)
        bench.cards.sample()
        assert (bench.turn(1.0)["phase"], bench.peak()) == ("hot", written)
    bench.cards.show(2318, 2018)
    bench.cards.sample()
    bench.turn(1.0)
    bench.cards.show(300)
    bench.unload()
    assert bench.peak() == 2018


def test_what_cannot_be_judged_any_more_stays_missing_until_time_is_up(bench: Bench) -> None:
    bench.load()
    bench.cards.show(2300, 2000)
    bench.unload()
    assert "2000 of 2000 MB of m are not back" in bench.turn(1.0)["message"]
    bench.cards.show(4000, stranger=True)
    bench.cards.sample()
    assert bench.turn(1.0)["phase"] == "unloading"
    said = bench.turn(BACK_S)
    assert (said["phase"], "2000 of 2000 MB of m are not back" in said["message"]) == ("cold", True)


def test_where_nothing_can_be_judged_nobody_waits(bench: Bench) -> None:
    bench.load()
    bench.cards.show(4000, stranger=True)
    bench.unload()
    said = bench.turn(0.1)
    assert (said["phase"], "message" in said, "freed_mb" in said) == ("cold", False, False)


def test_a_formulas_memory_is_nobodys(bench: Bench) -> None:
    bench.cards.source = "synthetic"
    bench.model.on_card = True
    bench.meter.open(bench.entry.to_map())
    bench.cards.show(5000)
    bench.cards.sample()
    bench.meter.look(bench.model, hot=True)
    assert (bench.meter.peak_mb, bench.peak()) == (0, None)
    bench.cards.source = "nvml"
    bench.cards.sample()
    bench.meter.look(bench.model, hot=True)
    assert (bench.meter.peak_mb, bench.peak()) == (4700, 4700)


def test_a_worker_that_ends_remembers_what_it_saw_last(bench: Bench) -> None:
    bench.load()
    bench.cards.show(2310, 2010)
    bench.cards.sample()
    bench.seat.close()
    assert bench.peak() == 2010


def test_unloading_ends_when_the_memory_is_back(bench: Bench) -> None:
    bench.load()
    bench.cards.show(2300, 2000)
    bench.unload()
    said = bench.turn(1.0)
    assert (said["phase"], said["model"]) == ("unloading", "m"), "its process has gone, its memory is there"
    assert "2000 of 2000 MB of m are not back" in said["message"]
    bench.cards.show(310)
    bench.cards.sample()
    said = bench.turn(1.0)
    assert (said["phase"], said["freed_mb"], said.get("message")) == ("cold", 2000, None)


def test_memory_that_does_not_come_back_is_said_and_the_worker_goes_on(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.load()
    bench.cards.show(2000)
    bench.unload()
    bench.turn()
    assert bench.turn(BACK_S - 0.1)["phase"] == "unloading"
    with caplog.at_level(logging.WARNING):
        said = bench.turn(0.1)
    lost = (
        "card 1: 1700 of 2000 MB of m are not back (2000 MB used, 300 before it was loaded); nvidia-smi shows who "
        "holds them"
    )
    assert (said["phase"], said["freed_mb"], said["message"]) == ("cold", 300, lost)
    assert [r.getMessage() for r in caplog.records] == [f"{lost} (waited {BACK_S:g} s)"]
    bench.cards.show(300)
    bench.cards.sample()
    said = bench.turn(1.0)
    assert (said["phase"], said["freed_mb"], said.get("message")) == ("cold", 2000, None), "it came later"


def test_no_model_is_loaded_over_lost_memory_without_a_word(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.load()
    bench.cards.show(2000)
    bench.unload()
    bench.turn(1.0)
    bench.turn(BACK_S)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        bench.model = HeldModel()
        bench.place(Entry(name="n", path=str(bench.file)))
        wait_for(lambda: bench.turn()["phase"] == "hot", what="the next model to be hot")
    (said,) = [r.getMessage() for r in caplog.records]
    assert said.startswith("n is loaded all the same: card 1: 1700 of 2000 MB of m are not back")
    assert "message" not in bench.turn()


def test_what_is_missing_is_still_looked_for_after_a_load_over_it_has_failed(bench: Bench) -> None:
    bench.load()
    bench.cards.show(2000)
    bench.unload()
    bench.turn(1.0)
    bench.turn(BACK_S)
    bench.model = HeldModel()
    bench.model.failed = "out of memory"
    bench.place(Entry(name="n", path=str(bench.file)))
    wait_for(lambda: bench.turn()["phase"] == "failed", what="the load to fail")
    wait_for(
        lambda: "rigbus-unload" not in {t.name for t in threading.enumerate()}, what="its process to end"
    )
    bench.cards.sample()
    assert "out of memory; card 1: 1700 of 2000 MB of m are not back" in bench.turn(1.0)["message"]
    bench.cards.show(300)
    bench.cards.sample()
    assert bench.turn(1.0)["message"] == "out of memory"


def test_the_next_model_waits_until_the_memory_of_the_last_is_back(bench: Bench) -> None:
    bench.load()
    bench.cards.show(2300, 2000)
    bench.model = HeldModel()
    bench.place(Entry(name="n", path=str(bench.file)))
    wait_for(bench.closed, what="the process of the last to be gone")
    assert (bench.turn(1.0)["phase"], bench.turn()["model"]) == ("unloading", "m")
    bench.cards.show(300)
    bench.cards.sample()
    wait_for(lambda: bench.turn()["phase"] == "hot", what="the next one to be hot")
    assert bench.turn()["model"] == "n"


def test_a_driver_that_is_silent_is_not_waited_for(bench: Bench) -> None:
    bench.load()
    bench.cards.stale = True
    bench.unload()
    assert (bench.turn()["phase"], bench.turn().get("freed_mb"), bench.turn().get("message")) == (
        "cold",
        None,
        None,
    )


def test_a_model_that_fails_gives_its_memory_back_before_it_is_tried_again(bench: Bench) -> None:
    bench.load()
    bench.cards.show(2300, 2000)
    bench.model.failed = "its file is gone"
    assert bench.turn()["phase"] == "failed"
    wait_for(bench.closed, what="its process to be gone")
    bench.model = HeldModel()
    bench.place(bench.entry)
    assert bench.turn(1.0)["phase"] == "failed", "not over what is still there"
    bench.cards.show(300)
    bench.cards.sample()
    wait_for(lambda: bench.turn()["phase"] == "hot", what="the next try")


@pytest.mark.parametrize(
    "spec",
    [{"name": "far", "url": "http://h/v1"}, {"name": "lost", "path": "/nowhere/m.gguf"}],
    ids=["behind a url", "no file"],
)
def test_what_has_no_file_is_not_remembered(bench: Bench, spec: dict[str, Any]) -> None:
    bench.meter.open(spec)
    bench.cards.show(2300, 2000)
    bench.cards.sample()
    bench.meter.look(HeldModel(), hot=True)
    assert bench.meter.leave(HeldModel()) == 2000
    assert not (bench.state / FILE).exists()


def test_a_model_without_a_process_on_a_card_takes_nothing_of_it(bench: Bench) -> None:
    bench.meter.open(bench.entry.to_map())
    bench.cards.show(5000)
    bench.cards.sample()
    bench.meter.look(
        HeldModel(), hot=True
    )  # llama.cpp is built for the CPU, and somebody else fills the card
    bench.meter.look(ScriptedModel(), hot=True)
    assert (bench.meter.leave(HeldModel()), bench.peak()) == (0, None)


def test_a_state_folder_that_cannot_be_written_ends_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    (bench.state / f".{FILE}.lock").mkdir()
    with caplog.at_level(logging.WARNING):
        assert bench.load()["vram_mb"] == 2000
        bench.turn(1.0)
        assert bench.peak() is None
    (said,) = [r.getMessage() for r in caplog.records]
    assert said.startswith("that m took 2000 MB is not remembered: ")


def test_a_placement_that_is_no_models_is_refused_as_before(bench: Bench) -> None:
    with pytest.raises(DefinitionError, match="a placement that is no model's"):
        bench.meter.open({"path": 7})


def test_the_readings_of_before_are_not_those_with_the_last_model_in_them(bench: Bench) -> None:
    bench.cards.refresh = lambda: None  # type: ignore[method-assign]
    bench.meter.gone()  # a model of which nothing was measured; no sample has come since
    bench.meter.open(bench.entry.to_map())
    model = HeldModel()
    model.on_card = True
    bench.cards.show(2300)
    bench.cards.sample()
    bench.cards.sample()
    bench.meter.look(model, hot=True)
    assert bench.meter.peak_mb == 0, "the difference from then would be nonsense"
