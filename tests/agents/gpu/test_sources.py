"""One suite over every source of readings; then what only one of them can do wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from gpu_drivers import IS_LOST, NOT_LOADED, Driver, FakeNvml, FakeSmi, NVMLError, two_cards

from rigbus.agents.gpu.cards import row_of
from rigbus.agents.gpu.nvml import RETRY_MOST_S, NvmlSource
from rigbus.agents.gpu.played import RecordedSource, SyntheticSource
from rigbus.agents.gpu.readings import GpuReading, GpuSource, throttle_words
from rigbus.agents.gpu.smi import SmiSource, parse
from rigbus.agents.gpu.sources import choice_of, may_have_cards, open_source
from rigbus.bus.errors import ConfigError, NotFound
from rigbus.bus.telemetry import GpuReading as Row

NAMES = ["nvml", "nvidia-smi", "synthetic", "file"]


def recorded(folder: Path, *samples: list[GpuReading]) -> Path:
    file = folder / "cards.jsonl"
    rows = [
        {"schema": "rigbus.gpu/1", "at": float(n), "cards": list(map(row_of, s))}
        for n, s in enumerate(samples)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class World:
    """A source of a driver's two cards, and the hands that break the driver."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.driver, self.clock = name, two_cards(), Clock()
        self.smi = FakeSmi(folder / "bin", self.driver)
        self.nvml = FakeNvml(self.driver)
        file = recorded(
            folder, [GpuReading(index=0, uuid="GPU-a"), GpuReading(index=1, uuid="GPU-b", temperature_c=50)]
        )
        makers: dict[str, Callable[[], GpuSource]] = {
            "nvml": lambda: NvmlSource(self.nvml, self.clock),
            "nvidia-smi": lambda: SmiSource(str(self.smi.program)),
            "synthetic": lambda: SyntheticSource(2, clock=lambda: 60.0),
            "file": lambda: RecordedSource(file),
        }
        self.source = makers[name]()

    def sample(self) -> list[GpuReading]:
        """After the driver has changed, and the back-off is over."""
        self.smi.show()
        self.clock.now += RETRY_MOST_S
        return self.source.sample()


@pytest.fixture
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    made = World(request.param, tmp_path)
    yield made
    made.source.close()


every_source = pytest.mark.parametrize("world", NAMES, indirect=True)
both_drivers = pytest.mark.parametrize("world", ["nvml", "nvidia-smi"], indirect=True)


@every_source
def test_each_card_once_by_index_in_units_that_a_person_expects(world: World) -> None:
    found = world.source.sample()
    assert [card.index for card in found] == [0, 1]
    assert len({card.uuid for card in found}) == 2
    for card in found:
        assert not card.error
        assert card.temperature_c is None or 0 < card.temperature_c < 120
        assert card.utilization is None or 0 <= card.utilization <= 1
        assert card.fan is None or 0 <= card.fan <= 1
        if card.memory_used_mb is not None and card.memory_total_mb is not None:
            assert 0 <= card.memory_used_mb <= card.memory_total_mb < 1 << 20


@every_source
def test_the_same_cards_come_again(world: World) -> None:
    assert [(c.index, c.uuid) for c in world.source.sample()] == [
        (c.index, c.uuid) for c in world.source.sample()
    ]


@every_source
def test_a_row_of_each_reading_is_what_the_schema_says(world: World) -> None:
    for reading in world.source.sample():
        row = row_of(reading)
        Row.model_validate(row)
        assert json.loads(json.dumps(row)) == row
        assert row.keys() <= Row.model_fields.keys()


@every_source
def test_closing_twice_is_closing(world: World) -> None:
    assert world.source.name == world.name
    world.source.close()
    world.source.close()


@both_drivers
def test_what_a_card_tells_is_read_and_what_it_does_not_is_none(world: World) -> None:
    full, half = world.sample()
    assert full == GpuReading(
        index=0,
        uuid=world.driver.cards[0].uuid,
        name="NVIDIA GeForce GTX 1060 6GB",
        pci_bus="00000000:01:00.0",
        temperature_c=61.0,
        utilization=0.87,
        memory_used_mb=5120,
        memory_total_mb=6144,
        power_w=101.5,
        power_limit_w=120.0,
        fan=0.54,
        clock_mhz=1708,
        throttle=("power cap",),
        pids=(77, 4321),
        process_mb=((4321, 4100),),
    )
    assert (half.temperature_c, half.power_w, half.power_limit_w, half.fan) == (44.0, None, None, None)
    assert (half.throttle, half.pids, half.error) == ((), (), "")


@both_drivers
def test_a_lost_card_says_so_and_the_other_goes_on(world: World) -> None:
    world.sample()
    world.driver.cards[1].lost = True
    well, lost = world.sample()
    assert (well.temperature_c, well.error) == (61.0, "")
    assert "lost" in lost.error
    assert (lost.index, lost.uuid, lost.temperature_c) == (1, world.driver.cards[1].uuid, None)
    assert "lost" in world.sample()[1].error
    world.driver.cards[1].lost = False
    assert world.sample()[1].temperature_c == 44.0


@both_drivers
def test_a_driver_that_goes_away_is_named_by_each_card_and_found_again(world: World) -> None:
    world.sample()
    world.driver.down = NOT_LOADED
    gone = world.sample()
    assert [card.uuid for card in gone] == [card.uuid for card in world.driver.cards]
    assert all("river" in card.error and card.temperature_c is None for card in gone)
    world.driver.down = None
    assert [card.error for card in world.sample()] == ["", ""]


@both_drivers
def test_a_card_that_the_driver_drops_stays_known(world: World) -> None:
    world.sample()
    del world.driver.cards[0]
    if world.name == "nvml":  # it numbers anew only after a restart of the driver
        world.driver.down = NOT_LOADED
        world.sample()
        world.driver.down = None
    found = world.sample()
    assert {(card.uuid[:12], bool(card.error)) for card in found} == {
        ("GPU-11111111", True),
        ("GPU-22222222", False),
    }


# -- NVML ------------------------------------------------------------------------------------------------------------


def test_nvml_is_asked_anew_with_a_back_off_not_at_each_sample() -> None:
    driver, clock = two_cards(), Clock()
    nvml = FakeNvml(driver)
    source = NvmlSource(nvml, clock)
    driver.down = NOT_LOADED
    for _ in range(600):
        source.sample()
        clock.now += 1.0
    assert 9 <= nvml.inits <= 17  # 1, 2, 4 … 60 s apart in ten minutes
    driver.down = None
    clock.now += RETRY_MOST_S
    assert source.sample()[0].temperature_c == 61.0
    source.close()
    assert nvml.open == 0


def test_a_card_of_which_nvml_says_nothing_but_errors_has_the_error() -> None:
    driver = two_cards()
    for name in ("celsius", "load_pct", "used_mb", "total_mb", "power_mw"):
        setattr(driver.cards[0], name, None)
    found = NvmlSource(FakeNvml(driver)).sample()[0]
    assert found.error == "Not Supported (NVML error 3)"
    assert found.clock_mhz == 1708


FIELD_CALLS = sorted(
    {name for name in vars(FakeNvml) if name.startswith("nvmlDeviceGet")}
    - {"nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"}
)


@pytest.mark.parametrize("call", FIELD_CALLS)
def test_a_module_without_a_call_costs_that_field_only(call: str) -> None:
    whole = NvmlSource(FakeNvml(two_cards())).sample()[0]
    nvml = FakeNvml(two_cards())
    setattr(nvml, call, None)
    less = NvmlSource(nvml).sample()[0]
    lost = [name for name in GpuReading.__slots__ if getattr(less, name) != getattr(whole, name)]
    assert 1 <= len(lost) <= 2 and not less.error


@pytest.mark.parametrize(
    "answer", [TypeError("no"), ValueError("utf-8"), OSError("symbol"), AttributeError("x")]
)
def test_a_library_that_is_not_what_the_module_expects_costs_a_field(answer: Exception) -> None:
    nvml = FakeNvml(two_cards())

    def broken(*_: object) -> None:
        raise answer

    nvml.nvmlDeviceGetFanSpeed = broken  # type: ignore[method-assign]
    found = NvmlSource(nvml).sample()[0]
    assert (found.fan, found.temperature_c) == (None, 61.0)


def test_an_older_driver_is_asked_for_its_processes_in_the_older_way() -> None:
    nvml = FakeNvml(two_cards())
    newest = nvml.nvmlDeviceGetComputeRunningProcesses

    def unknown(_: str) -> list[object]:
        raise NVMLError(13)

    nvml.nvmlDeviceGetComputeRunningProcesses = unknown  # type: ignore[method-assign]
    assert NvmlSource(nvml).sample()[0].pids == ()
    nvml.nvmlDeviceGetComputeRunningProcesses_v2 = newest  # type: ignore[attr-defined]
    found = NvmlSource(nvml).sample()[0]
    assert (found.pids, found.process_mb) == ((77, 4321), ((4321, 4100),))


def test_without_a_driver_or_a_card_nvml_is_not_found() -> None:
    with pytest.raises(NotFound, match=r"NVML: Driver Not Loaded \(NVML error 9\)"):
        NvmlSource(FakeNvml(Driver(down=NOT_LOADED)))
    nvml = FakeNvml(Driver())
    with pytest.raises(NotFound, match="shows no card"):
        NvmlSource(nvml)
    assert nvml.open == 0


def test_another_module_of_that_name_is_no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", ModuleType("pynvml"))
    with pytest.raises(NotFound, match="is not the one of nvidia-ml-py"):
        NvmlSource()


def test_a_card_that_is_lost_from_the_start_has_its_index_and_the_reason() -> None:
    driver = two_cards()
    driver.cards[0].lost = True
    first, second = NvmlSource(FakeNvml(driver)).sample()
    assert (first.index, first.uuid, first.error) == (0, "", f"GPU is lost (NVML error {IS_LOST})")
    assert second.temperature_c == 44.0


def test_the_stand_in_has_the_real_modules_names() -> None:
    import pynvml

    calls = [name for name in vars(FakeNvml) if name.startswith("nvml")]
    assert calls and all(callable(getattr(pynvml, name)) for name in calls)
    assert pynvml.NVML_ERROR_GPU_IS_LOST == IS_LOST and pynvml.NVML_ERROR_DRIVER_NOT_LOADED == NOT_LOADED
    assert (pynvml.NVML_TEMPERATURE_GPU, pynvml.NVML_CLOCK_SM) == (0, 1)
    bits = {
        name: getattr(pynvml, name) for name in vars(pynvml) if name.startswith("nvmlClocksThrottleReason")
    }
    assert throttle_words(bits["nvmlClocksThrottleReasonSwThermalSlowdown"]) == ("thermal",)
    assert throttle_words(bits["nvmlClocksThrottleReasonHwThermalSlowdown"]) == ("thermal",)
    assert throttle_words(bits["nvmlClocksThrottleReasonSwPowerCap"]) == ("power cap",)
    assert throttle_words(bits["nvmlClocksThrottleReasonHwPowerBrakeSlowdown"]) == ("power brake",)
    assert throttle_words(bits["nvmlClocksThrottleReasonGpuIdle"]) == ()


_ASK = """
import json, sys
from rigbus.agents.gpu.cards import row_of
from rigbus.agents.gpu.nvml import NvmlSource
source = NvmlSource()
print(json.dumps([row_of(card) for card in source.sample()]))
source.close()
"""


@pytest.mark.skipif(
    shutil.which("cc") is None, reason="needs a C compiler: the library stands in for the driver's own"
)
def test_through_the_real_module_and_a_library_in_place_of_the_drivers(tmp_path: Path) -> None:
    """pynvml's own structures and calling conventions; only the library below them is ours."""
    library = tmp_path / "libnvidia-ml.so.1"
    source = Path(__file__).with_name("fake_nvml.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    env = {**os.environ, "LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", _ASK], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = json.loads(done.stdout)
    assert first == {
        "index": 0,
        "uuid": "GPU-c0000000",
        "name": "Card C",
        "pci_bus": "00000000:01:00.0",
        "temperature_c": 71.0,
        "utilization_pct": 93.0,
        "vram_used_mb": 1024,
        "vram_total_mb": 6144,
        "power_w": 118.25,
        "power_limit_w": 120.0,
        "fan_pct": 66.0,
        "clock_mhz": 1500,
        "throttle": ["thermal", "power cap"],
        "pids": [4242],
        "processes": [{"pid": 4242, "vram_used_mb": 900}],
    }
    assert second == {"index": 1, "uuid": "GPU-c0000001", "name": "Card C", "pci_bus": "00000000:02:00.0",
                      "error": "GPU is lost (NVML error 15)"}  # fmt: skip


# -- nvidia-smi ------------------------------------------------------------------------------------------------------


def test_a_field_that_the_tool_does_not_know_is_left_out(tmp_path: Path) -> None:
    driver = two_cards()
    driver.unknown = ["clocks_throttle_reasons.active", "fan.speed", "used_gpu_memory"]
    found = SmiSource(str(FakeSmi(tmp_path, driver).program)).sample()[0]
    assert (found.temperature_c, found.fan, found.throttle) == (61.0, None, ())
    assert (found.pids, found.process_mb) == ((77, 4321), ())


def test_a_tool_that_hangs_is_ended_in_time_and_the_cards_say_so(tmp_path: Path) -> None:
    driver = two_cards()
    smi = FakeSmi(tmp_path, driver)
    source = SmiSource(str(smi.program), timeout_s=30.0)
    source.sample()
    source._timeout_s = 0.2  # long enough to start, and to be seen to hang
    driver.hangs = True
    smi.show()
    assert {card.error for card in source.sample()} == {
        "nvidia-smi: no answer in 0.2 s; a card may have fallen off the bus: dmesg | grep -i xid"
    }
    with pytest.raises(NotFound, match="no answer"):
        SmiSource(str(smi.program), timeout_s=0.2)


def test_no_second_tool_is_started_while_one_cannot_be_killed(tmp_path: Path) -> None:
    """A child in the kernel's hands: here one that simply lives on."""
    smi = FakeSmi(tmp_path, two_cards())
    source = SmiSource(str(smi.program))
    source.sample()
    with subprocess.Popen(["sleep", "60"], text=True) as stuck:
        source._hung = stuck
        smi.program.unlink()  # it would be noticed
        assert all("no answer" in card.error for card in source.sample())
        stuck.send_signal(signal.SIGKILL)
    assert all("No such file" in card.error for card in source.sample())


@pytest.mark.parametrize(
    ("cells", "temperature", "error"),
    [
        ("0, GPU-x, GTX, 0:1, 61", 61.0, ""),
        ("0, GPU-x, GTX, 0:1, [N/A]", None, "N/A"),
        ("0, GPU-x, GTX, 0:1, [GPU is lost]", None, "GPU is lost"),
        ("0, GPU-x, GTX, 0:1, nan", None, "nan"),
    ],
)
def test_a_cell_that_is_no_number_is_no_reading(cells: str, temperature: float | None, error: str) -> None:
    (found,) = parse(cells, ("index", "uuid", "name", "pci.bus_id", "temperature.gpu"))
    assert (found.temperature_c, found.error) == (temperature, error)


@pytest.mark.parametrize("text", ["", "\n\n", "No devices were found", "a, b", "x, y, z", '"'])
def test_words_that_are_no_table_are_no_cards(text: str) -> None:
    assert parse(text, ("index", "uuid", "name")) == []


# -- played ----------------------------------------------------------------------------------------------------------


def test_synthetic_cards_are_the_same_in_every_process_and_change_with_time() -> None:
    one, other = SyntheticSource(5, 3, lambda: 60.0), SyntheticSource(5, 3, lambda: 60.0)
    assert one.sample() == other.sample() != SyntheticSource(5, 3, lambda: 90.0).sample()
    assert one.sample() != SyntheticSource(5, 4, lambda: 60.0).sample()
    day = [SyntheticSource(1, 0, lambda t=t: float(t)).sample()[0] for t in range(0, 180)]  # type: ignore[misc]
    heats = [card.temperature_c or 0 for card in day]
    assert min(heats) < 40 and max(heats) > 75
    assert any(card.throttle == ("thermal",) for card in day) and any(not card.throttle for card in day)


def test_a_recording_plays_line_by_line_keeps_the_last_and_follows_what_is_appended(tmp_path: Path) -> None:
    file = recorded(tmp_path, *([GpuReading(index=0, temperature_c=c)] for c in (40.0, 50.0)))
    source = RecordedSource(file)
    assert [source.sample()[0].temperature_c for _ in range(4)] == [40.0, 50.0, 50.0, 50.0]
    line = json.dumps({"cards": [{"index": 0, "temperature_c": 90.0}]})
    with file.open("a") as out:
        out.write('what is no sample\n{"cards": []}\n' + line[:20])
        out.flush()
        assert source.sample()[0].temperature_c == 50.0  # its writer has not finished
        out.write(line[20:] + "\n")
    assert source.sample()[0].temperature_c == 90.0
    source.close()


# -- the choice ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec", ["nvidia", "synthetic", "synthetic:", "synthetic:x", "synthetic:1:2:3", "file:", "nvml:0", ":"]
)
def test_what_names_no_source_is_refused_with_the_forms(spec: str) -> None:
    with pytest.raises(ConfigError, match="write auto, nvml"):
        choice_of(spec)


@pytest.mark.parametrize(
    ("spec", "error", "said"),
    [
        ("synthetic:0", ConfigError, "1 to 64 cards"),
        ("file:/dev/null/x", ConfigError, "names a log of readings"),
        ("file:/dev/null", ConfigError, "no line of it is a sample"),
        ("none", NotFound, "switched off"),
    ],
)
def test_a_source_that_cannot_be_opened_says_why(spec: str, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        open_source(spec)


def test_the_variable_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RIGBUS_GPU_SOURCE", "synthetic:3:9")
    assert [card.index for card in open_source().sample()] == [0, 1, 2]


def test_by_itself_nvml_comes_before_nvidia_smi_and_all_that_was_tried_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(two_cards()))
    assert open_source("").name == "nvml"
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFound, match=r"no module pynvml; .*rigbus\[gpu\].*; nvidia-smi: not on PATH"):
        open_source("auto")
    FakeSmi(tmp_path, two_cards())
    assert open_source("auto").name == "nvidia-smi"


def test_a_sign_of_a_driver_is_a_device_or_its_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    devices = tmp_path / "dev"
    assert not may_have_cards(devices)
    devices.mkdir()
    (devices / "null").touch()
    assert not may_have_cards(devices)
    (devices / "nvidia0").touch()
    assert may_have_cards(devices)
    (devices / "nvidia0").unlink()
    FakeSmi(tmp_path / "bin", two_cards())
    assert may_have_cards(devices)
