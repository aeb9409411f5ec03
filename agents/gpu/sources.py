"""Which source of readings a process uses: what RIGBUS_GPU_SOURCE says, else the first that works."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...bus.errors import ConfigError, NotFound
from .readings import GpuSource

VARIABLE: Final = "RIGBUS_GPU_SOURCE"
FORMS: Final = "auto, nvml, nvidia-smi, synthetic:CARDS[:SEED], file:PATH or none"
#: How often to ask, in seconds. nvidia-smi is a process that opens and closes the driver each time.
_INTERVALS: Final = {"nvidia-smi": 5.0, "synthetic": 0.5, "file": 0.5}
_INTERVAL_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Choice:
    """A source that somebody has named: its kind, and what followed the colon."""

    kind: str
    rest: str = ""

    def open(self) -> GpuSource:
        """Open it. It may block for as long as the driver does.

        Raises:
            NotFound: no card; the message says what was tried.
            ConfigError: a file or a number is unusable.
        """
        openers: dict[str, Callable[[], GpuSource]] = {
            "auto": _first_that_works,
            "nvml": _nvml,
            "nvidia-smi": _smi,
            "synthetic": self._synthetic,
            "file": self._recorded,
            "none": self._none,
        }
        return openers[self.kind]()

    def _synthetic(self) -> GpuSource:
        from .played import SyntheticSource

        count, _, seed = self.rest.partition(":")
        return SyntheticSource(int(count), int(seed or 0))

    def _recorded(self) -> GpuSource:
        from .played import RecordedSource

        return RecordedSource(Path(self.rest))

    def _none(self) -> GpuSource:
        raise NotFound(f"{VARIABLE}=none: readings are switched off")


def interval_of(name: str) -> float:
    """How often the source of this name should be asked, in seconds."""
    return _INTERVALS.get(name, _INTERVAL_S)


def choice_of(spec: str) -> Choice:
    """What ``spec`` names; "" is auto. It opens nothing.

    Raises:
        ConfigError: it names no source.
    """
    kind, colon, rest = spec.strip().partition(":")
    kind = kind or "auto"
    if kind == "synthetic":
        numbers = rest.split(":")
        good = len(numbers) <= 2 and all(n.isdecimal() and len(n) < 10 for n in numbers)
    elif kind == "file":
        good = bool(rest)
    else:
        good = kind in ("auto", "nvml", "nvidia-smi", "none") and not colon
    if not good:
        raise ConfigError(f"{VARIABLE}={spec!r} is no source of readings; write {FORMS}")
    return Choice(kind, rest)


def chosen(environ: Mapping[str, str] = os.environ) -> Choice:
    """What RIGBUS_GPU_SOURCE names.

    Raises:
        ConfigError: it names no source.
    """
    return choice_of(environ.get(VARIABLE, ""))


def open_source(spec: str | None = None) -> GpuSource:
    """Open the source that ``spec`` names (None: as RIGBUS_GPU_SOURCE says; else NVML, else nvidia-smi).

    Raises:
        NotFound: no card; the message says what was tried.
        ConfigError: ``spec`` names no source, or its file is unusable.
    """
    return (chosen() if spec is None else choice_of(spec)).open()


def may_have_cards(devices: Path = Path("/dev")) -> bool:
    """Whether a look at the machine shows a sign of an NVIDIA driver; it asks no driver and loads no library."""
    try:
        names = os.listdir(devices)
    except OSError:
        names = []
    # dxg is the door to the cards under WSL2.
    return any(n == "dxg" or n.startswith("nvidia") for n in names) or shutil.which("nvidia-smi") is not None


def _first_that_works() -> GpuSource:
    tried = []
    for opener in (_nvml, _smi):
        try:
            return opener()
        except NotFound as e:
            tried.append(str(e))
    raise NotFound("; ".join(tried))


def _nvml() -> GpuSource:
    from .nvml import NvmlSource

    return NvmlSource()


def _smi() -> GpuSource:
    from .smi import SmiSource

    program = shutil.which("nvidia-smi")
    if program is None:
        raise NotFound("nvidia-smi: not on PATH")
    return SmiSource(program)
