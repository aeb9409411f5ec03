"""An NVIDIA driver that is not there: its cards as data, seen through a stand-in for ``pynvml`` and one for ``nvidia-smi``.

Both show one :class:`Driver`, so a test says once what the cards do. What they stand in for was never seen on a card here;
their names, codes and words are those of nvidia-ml-py and of NVIDIA's manual.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NOT_SUPPORTED, NOT_LOADED, IS_LOST, UNKNOWN = 3, 9, 15, 999
_WORDS = {
    1: "Uninitialized",
    NOT_SUPPORTED: "Not Supported",
    NOT_LOADED: "Driver Not Loaded",
    13: "Function Not Found",
    IS_LOST: "GPU is lost",
    UNKNOWN: "Unknown Error",
}


@dataclass
class Card:
    """A field that is None is one that this card does not tell."""

    uuid: str
    name: str = "NVIDIA GeForce GTX 1060 6GB"
    bus: str = "00000000:01:00.0"
    celsius: int | None = 61
    load_pct: int | None = 87
    used_mb: int | None = 5120
    total_mb: int | None = 6144
    power_mw: int | None = 101_500
    limit_mw: int | None = 120_000
    fan_pct: int | None = 54
    clock_mhz: int | None = 1708
    throttle: int | None = 0x4
    pids: list[int] = field(default_factory=list)
    process_mb: dict[str, int] = field(default_factory=dict)  # by pid, of those that are told
    lost: bool = False


@dataclass
class Driver:
    """``down``: the NVML error that every call ends with. ``unknown``: fields that this nvidia-smi has no name for."""

    cards: list[Card] = field(default_factory=list)
    down: int | None = None
    hangs: bool = False
    unknown: list[str] = field(default_factory=list)


def two_cards() -> Driver:
    """One that tells everything, and one that tells only half."""
    tells_less = {"fan_pct": None, "power_mw": None, "limit_mw": None, "throttle": None}
    return Driver(
        [
            Card("GPU-11111111-aaaa-0000-0000-000000000001", pids=[4321, 77], process_mb={"4321": 4100}),
            Card(
                "GPU-22222222-bbbb-0000-0000-000000000002", bus="00000000:04:00.0", celsius=44, **tells_less
            ),  # type: ignore[arg-type]
        ]
    )


# -- pynvml ----------------------------------------------------------------------------------------------------------


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return _WORDS.get(self.value, "?")


class FakeNvml:
    """Stands for the module ``pynvml``. Without ``nvmlInit`` every call is refused, as the real one does."""

    NVMLError = NVMLError

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.inits = 0
        self.open = 0

    def nvmlInit(self) -> None:  # noqa: N802
        self.inits += 1
        if self.driver.down is not None:
            raise NVMLError(self.driver.down)
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        if not self.open:
            raise NVMLError(1)
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        self._check()
        return len(self.driver.cards)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        self._check()
        card = self.driver.cards[index]
        if card.lost:
            raise NVMLError(IS_LOST)
        return card.uuid

    def nvmlDeviceGetUUID(self, handle: str) -> bytes:  # noqa: N802
        return self._card(handle).uuid.encode()  # older modules give bytes

    def nvmlDeviceGetName(self, handle: str) -> str:  # noqa: N802
        return self._card(handle).name

    def nvmlDeviceGetPciInfo(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(busId=self._card(handle).bus.encode())

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> Any:  # noqa: N802
        assert sensor == 0
        return self._told(handle, "celsius")

    def nvmlDeviceGetUtilizationRates(self, handle: str) -> Any:  # noqa: N802
        return SimpleNamespace(gpu=self._told(handle, "load_pct"), memory=3)

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> Any:  # noqa: N802
        used, total = self._told(handle, "used_mb"), self._told(handle, "total_mb")
        return SimpleNamespace(used=used << 20, total=total << 20, free=(total - used) << 20)

    def nvmlDeviceGetPowerUsage(self, handle: str) -> Any:  # noqa: N802
        return self._told(handle, "power_mw")

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> Any:  # noqa: N802
        return self._told(handle, "limit_mw")

    def nvmlDeviceGetFanSpeed(self, handle: str) -> Any:  # noqa: N802
        return self._told(handle, "fan_pct")

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> Any:  # noqa: N802
        assert kind == 1
        return self._told(handle, "clock_mhz")

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> Any:  # noqa: N802
        return self._told(handle, "throttle")

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:  # noqa: N802
        card = self._card(handle)
        told = {pid: card.process_mb.get(str(pid)) for pid in card.pids}
        return [
            SimpleNamespace(pid=pid, usedGpuMemory=None if mb is None else mb << 20)
            for pid, mb in told.items()
        ]

    def _check(self) -> None:
        if self.driver.down is not None:
            raise NVMLError(self.driver.down)
        if not self.open:
            raise NVMLError(1)

    def _card(self, handle: str) -> Card:
        self._check()
        card = next((card for card in self.driver.cards if card.uuid == handle), None)
        if card is None or card.lost:
            raise NVMLError(IS_LOST)
        return card

    def _told(self, handle: str, name: str) -> Any:
        value = getattr(self._card(handle), name)
        if value is None:
            raise NVMLError(NOT_SUPPORTED)
        return value


# -- nvidia-smi ------------------------------------------------------------------------------------------------------

_SMI = """#!{python}
import json, os, signal, sys

with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "driver.json")) as file:
    driver = json.load(file)
if driver["hangs"]:
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "hung.pid"), "w") as file:
        file.write(str(os.getpid()))
    signal.pause()
if driver["down"] is not None:
    print("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.")
    sys.exit(9)
option, _, names = sys.argv[1].partition("=")
assert sys.argv[2] == "--format=csv,noheader,nounits", sys.argv

def cell(value):
    return "[N/A]" if value is None else str(value)

for name in names.split(","):
    if name in driver["unknown"]:
        print(f'Field "{{name}}" is not a valid field to query.')
        sys.exit(2)
if option == "--query-compute-apps":
    for card in driver["cards"]:
        for pid in card["pids"]:
            row = {{"gpu_uuid": card["uuid"], "pid": pid, "used_gpu_memory": card["process_mb"].get(str(pid))}}
            print(*(cell(row[name]) for name in names.split(",")), sep=", ")
    sys.exit(0)
assert option == "--query-gpu", option
lost = False
for index, card in enumerate(driver["cards"]):
    if card["lost"]:
        bus = card["bus"][4:]
        print(f"Unable to determine the device handle for GPU {{bus}}: GPU is lost.  Reboot the system to recover this GPU")
        lost = True
        continue
    watt = lambda mw: None if mw is None else f"{{mw / 1000:.2f}}"
    values = {{
        "index": index, "uuid": card["uuid"], "name": card["name"], "pci.bus_id": card["bus"],
        "temperature.gpu": card["celsius"], "utilization.gpu": card["load_pct"], "memory.used": card["used_mb"],
        "memory.total": card["total_mb"], "power.draw": watt(card["power_mw"]),
        "enforced.power.limit": watt(card["limit_mw"]), "fan.speed": card["fan_pct"], "clocks.sm": card["clock_mhz"],
        "clocks_throttle_reasons.active": None if card["throttle"] is None else f"0x{{card['throttle']:016X}}",
    }}
    print(*(cell(values[name]) for name in names.split(",")), sep=", ")
sys.exit(15 if lost else 0)
"""


class FakeSmi:
    """An executable ``nvidia-smi`` in ``folder``; :meth:`show` puts the driver's state where its next run reads it."""

    def __init__(self, folder: Path, driver: Driver) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.driver = folder, driver
        self.program = folder / "nvidia-smi"
        self.program.write_text(_SMI.format(python=f"{sys.executable} -S"), encoding="utf-8")
        self.program.chmod(self.program.stat().st_mode | stat.S_IXUSR)
        self.show()

    def show(self) -> None:
        new = self.folder / "driver.json~"
        new.write_text(json.dumps(asdict(self.driver)), encoding="utf-8")
        os.replace(new, self.folder / "driver.json")
