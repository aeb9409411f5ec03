"""A machine that sleeps, and whose wall clock is set, as far as one process can see: libc's clock answers what the test says."""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

_SHIM = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile double *ahead;  /* seconds that the boot clock and the wall clock are ahead of the machine's */

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("MACHINE_CLOCKS");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *page = mmap(0, 16, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (page != MAP_FAILED) ahead = page;
}

int clock_gettime(clockid_t id, struct timespec *at) {
    int failed = syscall(SYS_clock_gettime, id, at);
    if (failed || !ahead || (id != CLOCK_BOOTTIME && id != CLOCK_REALTIME)) return failed;
    double by = ahead[id == CLOCK_REALTIME], whole = floor(by);
    at->tv_sec += (time_t)whole;
    at->tv_nsec += (long)((by - whole) * 1e9);
    if (at->tv_nsec >= 1000000000L) { at->tv_nsec -= 1000000000L; at->tv_sec++; }
    return 0;
}
"""


class MachineClocks:
    """``env`` is for the processes that shall see it; nobody else does."""

    def __init__(self, folder: Path) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None or sys.platform != "linux":
            pytest.skip("a sleeping machine was not played: there is no C compiler here, or no Linux")
        source, library, page = (folder / name for name in ("clocks.c", "clocks.so", "clocks"))
        source.write_text(_SHIM)
        words = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-lm"]
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            pytest.skip(f"a sleeping machine was not played: {compiler} says {done.stderr[:300]}")
        page.write_bytes(bytes(16))
        fd = os.open(page, os.O_RDWR)
        self._page = mmap.mmap(fd, 16)
        os.close(fd)
        self._boot = self._wall = 0.0
        self.env = {"LD_PRELOAD": str(library), "MACHINE_CLOCKS": str(page)}

    def sleep(self, for_s: float) -> None:
        """Suspend and resume at once: monotonic time has stood still, the other clocks went on."""
        self._set(self._boot + for_s, self._wall + for_s)

    def set_wall(self, by_s: float) -> None:
        """Somebody sets the date."""
        self._set(self._boot, self._wall + by_s)

    def _set(self, boot: float, wall: float) -> None:
        self._boot, self._wall = boot, wall
        self._page[:] = struct.pack("dd", boot, wall)
