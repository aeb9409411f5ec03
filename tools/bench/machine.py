"""What a figure depends on: the machine, its load, this code's commit; and the CPU that processes have used."""

from __future__ import annotations

import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent


def machine() -> dict[str, Any]:
    """The settings that every bench reports. A rate on a busy machine says little: ``load_before`` shows it."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "commit": commit(),
    }


def cpu_name() -> str:
    """The processor's name, as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Model"))]
    return names[0] if names else platform.machine()


def commit() -> str | None:
    """The commit of the source tree, with ``+`` where files of it have changed; None outside of one."""
    if not (ROOT / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"],
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def cpu_s(pid: int) -> float | None:
    """CPU seconds used so far by a process, all its threads, and the children that it has waited for.

    None where the system has no /proc, or the process is gone.
    """
    base = Path(f"/proc/{pid}")
    try:
        fields = (base / "stat").read_text().rpartition(")")[2].split()
        tick = os.sysconf("SC_CLK_TCK")
        children = (int(fields[13]) + int(fields[14])) / tick
        try:
            # Nanoseconds, thread by thread; the fields of `stat` count hundredths of a second.
            own = sum(int((t / "schedstat").read_text().split()[0]) for t in (base / "task").iterdir()) / 1e9
        except (OSError, ValueError, IndexError):
            own = (int(fields[11]) + int(fields[12])) / tick
    except (OSError, ValueError, IndexError):
        return None
    return own + children


def tree_cpu_s(pid: int) -> float | None:
    """As :func:`cpu_s`, with the process's living descendants."""
    own = cpu_s(pid)
    if own is None:
        return None
    try:
        lists = [(t / "children").read_text().split() for t in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return own
    return own + sum(tree_cpu_s(int(child)) or 0.0 for found in lists for child in found)


def rss_bytes(pid: int) -> int | None:
    """VmRSS of a process; None where the system does not tell."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        return None
    return None


def forget_peak(pid: int) -> None:
    """The peak of its memory (VmHWM) counts from now; nothing where the system does not allow it."""
    with suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def open_files(pid: int) -> int | None:
    """Descriptors of a process; None where the system does not tell."""
    try:
        return len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None
