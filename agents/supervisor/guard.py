"""The rig's last process: ``python -m rigbus.agents.supervisor.guard``. It waits for the supervisor's death.

When `up` is killed, the kernel and the lifeline end the rig's processes, and each worker ends its trees. Not all can:
one that hangs does not see the lifeline, and what a handler started by itself has no worker that knows it. So when
the supervisor is gone this process gives the others a moment, then ends everything that bears the rig's mark.
"""

from __future__ import annotations

import os
import select
import sys
import time
from typing import Final

from ..process.api import TOKEN_VARIABLE
from ..process.linux import Processes, processes
from .lifeline import lifeline_fd

GRACE_S: Final = 1.5  #: workers end their trees and hand their results over
LOOK_S: Final = 0.2  #: where an end cannot be waited for


def main() -> int:
    """Wait, then sweep. 0: it was not needed, or all is ended; 1: something could not be ended."""
    lifeline = lifeline_fd()
    state_id, _, rest = os.environ.get(TOKEN_VARIABLE, "").partition(":")
    if lifeline is None or not state_id or not rest:
        print("the guard of a rig is started by `rigbus up` only", file=sys.stderr)
        return 2
    waiting = select.poll()
    waiting.register(lifeline, select.POLLIN)
    waiting.poll()  # nothing is ever written: readable is the supervisor's end
    control = processes()
    prefix = f"{state_id}:"
    await_ends(control, prefix, GRACE_S)
    report = control.sweep_prefix(prefix)
    if report.killed:
        print(f"the supervisor is gone: {report.killed} processes were left and are ended", file=sys.stderr)
    for left in report.survivors:
        print(f"pid {left.pid} cannot be ended ({left.cmdline[:80]}): end it by hand", file=sys.stderr)
    return 1 if report.survivors else 0


def await_ends(control: Processes, prefix: str, timeout_s: float) -> None:
    """Until no process bears the mark, or ``timeout_s`` seconds are over."""
    until = time.monotonic() + timeout_s
    while (left_s := until - time.monotonic()) > 0:
        bearers = control.orphans(prefix)
        if not bearers:
            return
        handle = _handle(bearers[0].pid)
        if handle is None:
            select.select([], [], [], min(LOOK_S, left_s))
            continue
        try:
            select.select([handle], [], [], left_s)
        finally:
            os.close(handle)


def _handle(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None
    except OSError:
        return None


if __name__ == "__main__":
    sys.exit(main())
