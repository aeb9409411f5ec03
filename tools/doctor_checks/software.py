"""Python, the libraries, SQLite, and the model's extra."""

from __future__ import annotations

import importlib.util
import platform
import re
import sqlite3
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, requires
from importlib.metadata import version as installed
from typing import Final

from ... import __version__
from .children import Answer
from .findings import Finding

GROUP: Final = "Software"
MIN_PYTHON: Final = (3, 11)
MIN_LIBZMQ: Final = "4.3"
MIN_SQLITE: Final = "3.24"  # upserts
LOAD_S: Final = 10.0
#: In a child, since a wheel for another machine may end the process that loads it.
LOAD: Final = (
    "import json, msgpack, zmq; print(json.dumps({'libzmq': zmq.zmq_version(), 'ipc': bool(zmq.has('ipc'))}))"
)
_REQUIREMENT: Final = re.compile(r"([A-Za-z0-9._-]+)\s*(?:>=\s*([0-9.]+))?")


@dataclass(frozen=True, slots=True)
class SoftwareFacts:
    """``versions`` are those installed, by distribution, None where there is none; ``minimums`` those asked for.

    ``loaded`` is what loading pyzmq and msgpack in a child gave: libzmq's version, or "" and ``load_error``.
    """

    python: tuple[int, int, int] = (3, 12, 0)
    bits: int = 64
    prefix: str = "/venv"
    in_venv: bool = True
    rigbus: str = __version__
    versions: Mapping[str, str | None] = field(default_factory=dict)
    minimums: Mapping[str, str] = field(default_factory=dict)
    sqlite: str = "3.45.0"
    libzmq: str = "4.3.5"
    ipc: bool = True
    load_error: str = ""
    llama: str | None = None
    pynvml_clash: bool = False


def gather(loading: Answer) -> SoftwareFacts:
    """The facts of this interpreter; ``loading`` is the answer of a child that ran ``LOAD``."""
    minimums = needed()
    told = loading.object() or {}
    error = "" if told else ("no answer" if loading.hung else loading.last_line())
    nvml = [name for name in ("pynvml", "nvidia-ml-py") if version_of(name)]
    return SoftwareFacts(
        python=sys.version_info[:3],
        bits=64 if sys.maxsize > 2**32 else 32,
        prefix=sys.prefix,
        in_venv=sys.prefix != sys.base_prefix,
        versions={name: version_of(name) for name in minimums},
        minimums=minimums,
        sqlite=sqlite3.sqlite_version,
        libzmq=str(told.get("libzmq", "")),
        ipc=bool(told.get("ipc", True)),
        load_error=error,
        llama=version_of("llama-cpp-python") if importlib.util.find_spec("llama_cpp") else None,
        pynvml_clash=len(nvml) > 1,
    )


def version_of(name: str) -> str | None:
    """The installed version of a distribution, None without one."""
    try:
        return installed(name)
    except PackageNotFoundError:
        return None


def needed() -> dict[str, str]:
    """What the base install needs, by distribution, with the least version; from our own metadata."""
    try:
        lines = requires("rigbus") or []
    except PackageNotFoundError:
        return {}
    found = {}
    for line in lines:
        match = _REQUIREMENT.match(line)
        if match and "extra" not in line.partition(";")[2]:
            found[match[1]] = match[2] or "0"
    return found


def older(version: str, least: str) -> bool:
    """Whether a version is below another, by its leading numbers."""
    return _numbers(version) < _numbers(least)


def _numbers(version: str) -> list[int]:
    found = re.match(r"[0-9.]+", version)
    return [int(part) for part in (found.group() if found else "0").split(".") if part]


def judge(facts: SoftwareFacts) -> list[Finding]:
    """One finding a subject; libraries that are as they should be share one."""
    return [_python(facts), *_libraries(facts), _loading(facts), _sqlite(facts), *_llama(facts)]


def _python(facts: SoftwareFacts) -> Finding:
    where = f"venv {facts.prefix}" if facts.in_venv else f"no venv ({facts.prefix})"
    said = f"{'.'.join(map(str, facts.python))}, {facts.bits} bit, {where}"
    if facts.python[:2] < MIN_PYTHON:
        return Finding(
            GROUP, "python", "fail", said, "install Python 3.11 or newer and make the venv with it"
        )
    if facts.bits < 64:
        fix = "use a 64-bit system for the rig; as a machine that only reads the share this one will do"
        return Finding(GROUP, "python", "warn", said, fix)
    return Finding(GROUP, "python", "ok", said)


def _libraries(facts: SoftwareFacts) -> Iterable[Finding]:
    good = [f"rigbus {facts.rigbus}"]
    for name, least in facts.minimums.items():
        have = facts.versions.get(name)
        fix = f"pip install '{name}>={least}'"
        if have is None:
            yield Finding(GROUP, name, "fail", "not installed", fix)
        elif older(have, least):
            yield Finding(GROUP, name, "fail", f"{have}, {least} is needed", fix)
        else:
            good.append(f"{name} {have}")
    yield Finding(GROUP, "libraries", "ok", ", ".join(good))


def _loading(facts: SoftwareFacts) -> Finding:
    if facts.load_error:
        fix = "reinstall them for this machine: pip install --force-reinstall pyzmq msgpack"
        return Finding(GROUP, "libzmq", "fail", f"pyzmq does not load: {facts.load_error}", fix)
    if older(facts.libzmq, MIN_LIBZMQ):
        fix = "install pyzmq as a wheel, which brings a newer one: pip install --force-reinstall pyzmq"
        return Finding(GROUP, "libzmq", "fail", f"{facts.libzmq}, {MIN_LIBZMQ} is needed", fix)
    if not facts.ipc:
        fix = "run the rig on Linux, macOS or WSL2; as a machine that only reads the share this one will do"
        return Finding(GROUP, "libzmq", "fail", f"{facts.libzmq} without ipc://", fix)
    return Finding(GROUP, "libzmq", "ok", facts.libzmq)


def _sqlite(facts: SoftwareFacts) -> Finding:
    if older(facts.sqlite, MIN_SQLITE):
        fix = "use a Python that was built with a newer SQLite (python.org, uv, conda)"
        return Finding(GROUP, "sqlite", "fail", f"{facts.sqlite}, {MIN_SQLITE} is needed", fix)
    return Finding(GROUP, "sqlite", "ok", facts.sqlite)


def _llama(facts: SoftwareFacts) -> Iterable[Finding]:
    if facts.llama:
        yield Finding(GROUP, "llama", "ok", f"llama-cpp-python {facts.llama}")
    else:
        fix = "pip install 'rigbus[llm]', on the machine with the cards only"
        yield Finding(GROUP, "llama", "info", "not installed: this machine serves no model itself", fix)
    if facts.pynvml_clash:
        fix = "pip uninstall pynvml; nvidia-ml-py has the same module and is maintained"
        yield Finding(GROUP, "nvml", "warn", "both pynvml and nvidia-ml-py are installed", fix)


def platform_line() -> str:
    """The system, for the head of a report."""
    return f"{platform.system()} {platform.release()} {platform.machine()}"
