"""The worker's loop: what other threads post wakes it."""

from __future__ import annotations

import os
import select
from pathlib import Path

import pytest

from rigbus.agents.worker import events as ev
from rigbus.agents.worker import loop as loops
from rigbus.agents.worker.core import WorkerCore
from rigbus.agents.worker.loop import Loop, Peer
from rigbus.agents.worker.run import WorkerConfig


@pytest.mark.parametrize("when", ["before its byte is read", "after its byte is read"])
def test_a_post_in_the_midst_of_waking_up_is_not_the_last_that_wakes(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Handlers that reported progress at the same moment made their worker hear of results once a second only."""
    loop = Loop(Peer("w", f"ipc://{tmp_path}/nobody"), state=tmp_path)
    core = WorkerCore(WorkerConfig(), loop.clock())
    loop._poller.register(loop._wake_out, select.POLLIN)
    posted: list[str] = []

    def read(fd: int, count: int) -> bytes:
        if fd != loop._wake_out:
            return os_read(fd, count)
        if when.startswith("after"):
            data = os_read(fd, count)
            another_thread()
            return data
        another_thread()
        return os_read(fd, count)

    def another_thread() -> None:
        posted.append(when)
        loop.post(ev.Tick())

    os_read = os.read
    monkeypatch.setattr(loops.os, "read", read)
    try:
        loop.post(ev.Tick())
        loop._turn(core)
        assert posted == [when]
        assert not loop._inbox, "what came meanwhile was not taken"
        loop.post(ev.Tick())
        assert select.select([loop._wake_out], [], [], 0)[0], "a post does not wake the loop"
    finally:
        loop._close()
