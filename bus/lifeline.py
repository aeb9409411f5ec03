"""The reading end of the lifeline: the pipe by which the rig's processes learn that their supervisor is gone.

Standard library only; the writing end is the supervisor's (`agents/lifeline.py`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Final

LIFELINE_VARIABLE: Final = "RIGBUS_LIFELINE_FD"


def lifeline_fd(environ: Mapping[str, str] | None = None) -> int | None:
    """The inherited read end, or None when nobody supervises this process.

    Register it in the poller: readable means that the supervisor is dead. The descriptor is not passed on
    to this process's own children. A number that is no open pipe (a stale variable) counts as none.
    """
    text = (os.environ if environ is None else environ).get(LIFELINE_VARIABLE, "")
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        return None
    fd = int(text)
    try:
        if fd <= 2 or not stat.S_ISFIFO(os.fstat(fd).st_mode):
            return None
        os.set_inheritable(fd, False)
    except OSError:
        return None
    return fd
