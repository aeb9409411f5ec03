"""``rigbus down``: stop the rig of a state folder and wait for its end."""

from __future__ import annotations

import os
import select
import signal
import time
from pathlib import Path

import click

from ..bus.errors import Refused, Unreachable, WaitTimeout
from .common import config_option, json_option, print_json, state_option, talk, where

_LOOK_S = 0.1  #: where the system has no pidfd


@click.command()
@state_option
@config_option
@json_option
@click.option(
    "--now", is_flag=True, help="Do not wait for running tasks: end them, they go back to the queue."
)
@click.option(
    "--timeout",
    "timeout_s",
    type=float,
    default=60.0,
    show_default=True,
    metavar="S",
    help="How long to wait.",
)
def down(state: Path | None, config: Path | None, as_json: bool, now: bool, timeout_s: float) -> int:
    """Stop the rig. Running tasks get up to 20 s; everything accepted is there at the next `up`."""
    paths = where(state, None, config)
    pid = stop(paths.state, now=now, timeout_s=timeout_s)
    if as_json:
        print_json({"schema": "rigbus.down/1", "stopped": True, "pid": pid})
    else:
        talk(f"the rig on {paths.state} is down")
    return 0


def stop(state: Path, *, now: bool = False, timeout_s: float = 60.0) -> int:
    """Ask the supervisor of ``state`` to stop, wait for its end and return its pid.

    Raises:
        Unreachable: no rig is up there.  WaitTimeout: it has not ended in ``timeout_s`` seconds.
        Refused: it belongs to another user.
    """
    from ..agents.supervisor.folder import lock_holder

    pid = lock_holder(state)
    if pid is None:
        raise Unreachable(f"no rig is up on {state}; name the right one with --state DIR")
    handle = _handle(pid)
    try:
        # With the pidfd in hand the lock is looked at again: so it is this very process that we signal.
        if lock_holder(state) != pid:
            return pid
        _signal(pid, handle)
        if now:
            _signal(pid, handle)
        if not _ended(state, handle, timeout_s):
            raise WaitTimeout(
                f"the rig (pid {pid}) still stops after {timeout_s:g} s; `rigbus down --now` ends its tasks"
            )
    finally:
        if handle is not None:
            os.close(handle)
    return pid


def _handle(pid: int) -> int | None:
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None


def _signal(pid: int, handle: int | None) -> None:
    try:
        if handle is not None:
            signal.pidfd_send_signal(handle, signal.SIGTERM)
        else:
            os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass
    except PermissionError:
        raise Refused(f"the rig (pid {pid}) belongs to another user; stop it as that user") from None


def _ended(state: Path, handle: int | None, timeout_s: float) -> bool:
    if handle is not None:
        return bool(select.select([handle], [], [], timeout_s)[0])
    from ..agents.supervisor.folder import lock_holder

    until = time.monotonic() + timeout_s
    while lock_holder(state) is not None:
        if time.monotonic() >= until:
            return False
        select.select([], [], [], _LOOK_S)
    return True
