"""NVIDIA cards, as the driver's own tool tells of them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Final

from ...agents.gpu.sources import VARIABLE, chosen, open_source
from ...bus.errors import RigbusError
from .children import Answer, Asked
from .findings import Finding, Status

GROUP: Final = "GPU"
SMI_S: Final = 5.0
_QUERY: Final = (
    "--query-gpu=name,driver_version,compute_cap,pcie.link.width.current,memory.total,uuid",
    "--format=csv,noheader",
)
_PASCAL: Final = 7.0


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """``devices`` are the cards that the kernel shows; ``rows`` nvidia-smi's: name, driver, compute capability,
    lanes, memory, UUID.

    ``nvml``: the module pynvml is installed. ``source``: what RIGBUS_GPU_SOURCE says where that is no driver, and
    ``played`` what comes of it: the cards that it names, or why there are none.
    """

    devices: int = 0
    wsl: bool = False
    smi: bool = False
    hung: bool = False
    error: str = ""
    rows: Sequence[Sequence[str]] = ()
    nvml: bool = True
    source: str = ""
    played: Sequence[str] | str = ()


def start() -> Asked | None:
    """The child that asks the driver; None without its tool."""
    smi = shutil.which("nvidia-smi")
    try:
        return Asked([smi, *_QUERY], SMI_S) if smi else None
    except OSError:
        return None


def gather(answer: Answer | None) -> GpuFacts:
    """The facts; ``answer`` is that of :func:`start`."""
    return replace(_asked(answer), **_played())


def _played() -> dict[str, Any]:
    """Readings that come from no driver: then the rig's processes see these cards, and no other ones."""
    said = os.environ.get(VARIABLE, "")
    try:
        if chosen().kind not in {"synthetic", "file", "none"}:
            return {}
        return {"source": said, "played": [card.name or "" for card in open_source().sample()]}
    except RigbusError as e:
        return {"source": said, "played": str(e)}


def _asked(answer: Answer | None) -> GpuFacts:
    try:
        names = os.listdir("/dev")
    except OSError:
        names = []
    devices = sum(name.startswith("nvidia") and name[6:].isdigit() for name in names)
    if answer is None:
        return GpuFacts(devices, "dxg" in names)
    good = answer.code == 0
    rows = [[cell.strip() for cell in line.split(",")] for line in answer.out.splitlines() if line.strip()]
    error = "" if good or answer.hung else answer.last_line()
    nvml = find_spec("pynvml") is not None
    return GpuFacts(devices, "dxg" in names, True, answer.hung, error, rows if good else (), nvml)


def judge(facts: GpuFacts) -> Iterable[Finding]:
    """One line without cards; else the cards and what is known of their kind."""
    if facts.hung:
        fix = "a card may have fallen off the bus: dmesg | grep -i xid, then reboot"
        yield Finding(GROUP, "driver", "fail", f"nvidia-smi gives no answer in {SMI_S:g} s", fix)
    elif facts.error:
        fix = "reboot after a driver update, or install the driver that fits the kernel"
        status: Status = "warn" if facts.devices else "info"
        yield Finding(GROUP, "driver", status, f"nvidia-smi: {facts.error}", fix if facts.devices else "")
    elif facts.devices and not facts.smi:
        fix = "install nvidia-smi (nvidia-utils), or give this container the driver's tools"
        yield Finding(GROUP, "driver", "warn", f"{facts.devices} cards, but no nvidia-smi", fix)
    elif not facts.rows and not facts.source:
        yield Finding(GROUP, "cards", "info", "none here: plans of class cpu and script run")
    for number, row in enumerate(facts.rows):
        yield from _card(number, row)
    if facts.rows and not facts.nvml:
        said = "no module pynvml: each worker starts nvidia-smi every 5 s for its readings"
        yield Finding(GROUP, "readings", "info", said, "pip install 'rigbus[gpu]'")
    if facts.source:
        yield _source(facts)
    if facts.wsl:
        yield Finding(GROUP, "wsl", "info", "under WSL2 some readings of the cards are missing")


def _source(facts: GpuFacts) -> Finding:
    said = f"{VARIABLE}={facts.source}: "
    if isinstance(facts.played, str):
        return Finding(GROUP, "readings", "warn", said + facts.played, f"correct or unset {VARIABLE}")
    cards = ", ".join(facts.played)
    said += f"{len(facts.played)} cards of readings that no driver gives ({cards})"
    return Finding(GROUP, "readings", "info", said)


def _card(number: int, row: Sequence[str]) -> Iterable[Finding]:
    name, driver, capability, lanes = (*row, "", "", "", "")[:4]
    yield Finding(GROUP, f"gpu-{number}", "ok", f"{name}, driver {driver}, compute capability {capability}")
    try:
        old = float(capability) < _PASCAL
    except ValueError:
        old = False
    if old:
        fix = "build llama-cpp-python with CUDA 12: CMAKE_ARGS=-DGGML_CUDA=on and a cu12x toolkit"
        said = f"{name} is Pascal or older, which CUDA 13 cannot build for"
        yield Finding(GROUP, f"gpu-{number} cuda", "info", said, fix)
    if lanes == "1":
        said = "PCIe x1: a model loads slowly, then runs as fast as elsewhere"
        yield Finding(
            GROUP, f"gpu-{number} pcie", "info", said, "keep models loaded; avoid plans that swap them"
        )
