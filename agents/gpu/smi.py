"""Readings from ``nvidia-smi``, where NVML's Python module is missing: CSV from a child with a deadline.

A driver that hangs, hangs its tool as well, in a state in which it cannot even be killed. So nobody waits for it past the
deadline, and no second one is started while the first is still there.
"""

from __future__ import annotations

import csv
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from ...bus.errors import NotFound
from ..process.linux import default_launcher
from .readings import GpuReading, throttle_words

TIMEOUT_S: Final = 5.0
_BURY_S: Final = 0.2
_FIELDS: Final = (
    "index",
    "uuid",
    "name",
    "pci.bus_id",
    "temperature.gpu",
    "utilization.gpu",
    "memory.used",
    "memory.total",
    "power.draw",
    "enforced.power.limit",
    "fan.speed",
    "clocks.sm",
    "clocks_throttle_reasons.active",
)
_PROCESS_FIELDS: Final = ("gpu_uuid", "pid", "used_gpu_memory")
_CSV: Final = "--format=csv,noheader,nounits"
_UNKNOWN_FIELD: Final = re.compile(r'Field "([\w.]+)" is not a valid field', re.IGNORECASE)
#: ``Unable to determine the device handle for GPU 0000:03:00.0: GPU is lost.  Reboot the system to recover this GPU``
_NO_HANDLE: Final = re.compile(
    r"device handle for (?:gpu\s*\S*?)?([0-9A-F]{4,8}:[0-9A-F]{2}:[0-9A-F]{2}\.\d): (.*)", re.IGNORECASE
)


class SmiSource:
    """Cards as ``nvidia-smi`` tells of them; a sample costs up to two of its processes."""

    name = "nvidia-smi"

    def __init__(self, program: str = "nvidia-smi", timeout_s: float = TIMEOUT_S) -> None:
        """
        Raises:
            NotFound: it cannot be started, gives no answer in time, or knows no card; the message says which.
        """
        # Its end comes with ours: a tool that hangs would outlive the worker that asked it.
        self._launcher = default_launcher() if sys.platform.startswith("linux") else []
        self._program = program
        self._timeout_s = timeout_s
        self._fields: tuple[str, ...] = _FIELDS
        self._process_fields: tuple[str, ...] = _PROCESS_FIELDS
        self._hung: subprocess.Popen[str] | None = None
        self._known: list[GpuReading] = []
        self._first: list[GpuReading] | None = self._ask_all()

    def sample(self) -> list[GpuReading]:
        if self._first is not None:  # it was asked a moment ago
            first, self._first = self._first, None
            return first
        try:
            return self._ask_all()
        except NotFound as e:  # the next sample asks again
            return [replace(who, error=str(e)) for who in self._known]

    def close(self) -> None:
        """Nothing is held; a child that hangs ends when the kernel lets go of it."""
        if self._hung is not None:
            self._hung.poll()

    # -- asking ----------------------------------------------------------------------------------------------

    def _ask_all(self) -> list[GpuReading]:
        """Every card.

        Raises:
            NotFound: the tool says nothing of any card; the message has what it says instead.
        """
        code, out, self._fields = self._query("gpu", self._fields)
        rows = parse(out, self._fields) if code is not None else []
        lost = lost_cards(out, [*self._known, *rows])
        if not rows and not lost:
            raise NotFound(f"nvidia-smi: {self._why(code, out)}")
        if rows:
            _, told, self._process_fields = self._query("compute-apps", self._process_fields)
            processes = parse_processes(told)
            rows = [_with_processes(row, processes.get(row.uuid, {})) for row in rows]
        found = {row.uuid or row.pci_bus: row for row in lost}
        found |= {row.uuid or row.pci_bus: row for row in rows}
        for who in self._known:  # it was there before
            found.setdefault(
                who.uuid or who.pci_bus, replace(who, error="nvidia-smi does not list it any more")
            )
        readings = sorted(found.values(), key=lambda row: row.index)
        self._known = [identity(row) for row in readings]
        return readings

    def _query(self, table: str, fields: tuple[str, ...]) -> tuple[int | None, str, tuple[str, ...]]:
        """The exit code, the table, and its columns: those of ``fields`` that this driver's tool knows."""
        while True:
            code, out = self._run(f"--query-{table}={','.join(fields)}", _CSV)
            unknown = _UNKNOWN_FIELD.search(out) if code else None
            if unknown is None or unknown[1] not in fields:
                return code, out, fields
            fields = tuple(name for name in fields if name != unknown[1])

    def _run(self, *words: str) -> tuple[int | None, str]:
        """(exit code, what it wrote); the code is None when it gave no answer in time."""
        if self._hung is not None:
            if self._hung.poll() is None:
                return None, ""
            self._hung = None
        try:
            # In our own session: a worker takes children of other sessions for orphans of its tasks.
            child = subprocess.Popen(
                [*self._launcher, self._program, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as e:
            return 127, f"{self._program} cannot be started: {e.strerror or e}"
        try:
            out, _ = child.communicate(timeout=self._timeout_s)
        except subprocess.TimeoutExpired:
            child.kill()
            if child.stdout is not None:
                child.stdout.close()  # what it started may hold the other end
            try:
                child.wait(_BURY_S)
            except subprocess.TimeoutExpired:
                self._hung = child
            return None, ""
        return child.returncode, out

    def _why(self, code: int | None, out: str) -> str:
        if code is None:
            return (
                f"no answer in {self._timeout_s:g} s; a card may have fallen off the bus: dmesg | grep -i xid"
            )
        lines = [line.strip() for line in out.splitlines() if line.strip()]
        return lines[-1][:200] if lines else f"it ended with exit code {code} and no card"


# -- its answers, pure -----------------------------------------------------------------------------------------------


def parse(out: str, fields: Sequence[str]) -> list[GpuReading]:
    """The rows of ``--query-gpu``; lines that are none are left out, and so is what a card does not tell."""
    found = []
    for cells in csv.reader(out.splitlines(), skipinitialspace=True):
        if len(cells) != len(fields):
            continue
        row = {name: cell.strip() for name, cell in zip(fields, cells, strict=True)}
        if row.get("index", "").isdecimal():
            found.append(_reading(row))
    return found


def parse_processes(out: str) -> dict[str, dict[int, int | None]]:
    """UUID -> what computes on that card, of ``--query-compute-apps``: pid -> its MiB, None where they are not told."""
    found: dict[str, dict[int, int | None]] = {}
    for cells in csv.reader(out.splitlines(), skipinitialspace=True):
        if len(cells) in (2, 3) and cells[1].strip().isdecimal():
            mb = _whole(cells[2].strip()) if len(cells) == 3 else None
            found.setdefault(cells[0].strip(), {})[int(cells[1])] = mb
    return found


def lost_cards(out: str, known: Sequence[GpuReading]) -> list[GpuReading]:
    """The cards of which the tool only says that it cannot ask them; ``known`` says who has which PCI bus."""
    found = []
    for match in _NO_HANDLE.finditer(out):
        bus = match[1]
        who = next((r for r in known if bus_tail(r.pci_bus) == bus_tail(bus)), None)
        if who is not None:
            found.append(replace(identity(who), error=match[2].strip() or "the driver cannot ask it"))
    return found


def bus_tail(bus: str) -> str:
    """``00000000:01:00.0`` and ``0000:01:00.0`` are the same place: the domain's leading zeros are left out."""
    domain, _, rest = bus.lower().partition(":")
    return f"{domain.lstrip('0')}:{rest}"


def identity(reading: GpuReading) -> GpuReading:
    """Who it is, without what it said."""
    return GpuReading(index=reading.index, uuid=reading.uuid, name=reading.name, pci_bus=reading.pci_bus)


def _with_processes(reading: GpuReading, processes: Mapping[int, int | None]) -> GpuReading:
    told = tuple((pid, mb) for pid, mb in sorted(processes.items()) if mb is not None)
    return replace(reading, pids=tuple(sorted(processes)), process_mb=told)


def _reading(row: Mapping[str, str]) -> GpuReading:
    numbers: dict[str, Any] = {
        "temperature_c": _number(row.get("temperature.gpu")),
        "utilization": _share(row.get("utilization.gpu")),
        "memory_used_mb": _whole(row.get("memory.used")),
        "memory_total_mb": _whole(row.get("memory.total")),
        "power_w": _number(row.get("power.draw")),
        "power_limit_w": _number(row.get("enforced.power.limit")),
        "fan": _share(row.get("fan.speed")),
        "clock_mhz": _whole(row.get("clocks.sm")),
    }
    heard = any(value is not None for value in numbers.values())
    return GpuReading(
        index=int(row["index"]),
        uuid=_text(row.get("uuid")),
        name=_text(row.get("name")),
        pci_bus=_text(row.get("pci.bus_id")),
        throttle=throttle_words(_bits(row.get("clocks_throttle_reasons.active"))),
        error="" if heard else _complaint(row),
        **numbers,
    )


def _complaint(row: Mapping[str, str]) -> str:
    """``[GPU is lost]``, which stands in every cell of such a card."""
    return row.get("temperature.gpu", "").strip("[]") or "the card tells nothing"


def _text(cell: str | None) -> str:
    return cell if cell and not cell.startswith("[") and cell != "N/A" else ""


def _number(cell: str | None) -> float | None:
    """``[N/A]``, ``[Not Supported]``, ``[Unknown Error]`` and whatever else is no number: None."""
    try:
        value = float(cell or "")
    except ValueError:
        return None
    return value if 0 <= value < 1e9 else None  # nan and inf are no readings either


def _whole(cell: str | None) -> int | None:
    value = _number(cell)
    return None if value is None else int(value)


def _share(cell: str | None) -> float | None:
    value = _number(cell)
    return None if value is None else min(1.0, value / 100)


def _bits(cell: str | None) -> int:
    try:
        return int(cell or "", 16)
    except ValueError:
        return 0
