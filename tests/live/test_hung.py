"""A command that hangs in the kernel: the rig that ran it stops all the same, and says what is left."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from frozen import frozen_mount, in_state_d, thaw, wait_hanging
from helpers import Processes, slack, wait_for
from rigs import LiveRig

from rigbus import Task

pytestmark = pytest.mark.live


def test_a_rig_stops_though_a_command_of_it_hangs_in_the_kernel(
    rig_dir: Path, tmp_path: Path, processes: Processes
) -> None:
    with frozen_mount(tmp_path) as mount:
        rig = LiveRig(rig_dir, processes, workers=1)
        rig.start()
        assert rig.up is not None
        pid_file = rig_dir / "pid"
        script = f'echo $$ > "{pid_file}.new"; mv "{pid_file}.new" "{pid_file}"; exec touch "{mount}/x"'
        with rig.client() as bus:
            bus.submit([Task(type="shell", payload={"command": script})])
            pid = int(wait_for(lambda: pid_file.exists() and pid_file.read_text(), what="the command"))
            wait_hanging(pid)
        began = time.monotonic()
        rig.up.terminate()
        wait_for(lambda: "stopping" in processes.output(rig.up), what="the first word of the stop")
        rig.up.terminate()
        assert rig.up.wait(40) == 0
        took_s = time.monotonic() - began
        said = processes.output(rig.up)
        assert re.search(rf"pid {pid} \(touch .*, state D\) cannot be killed", said)  # a long command is cut
        assert "the rig stops without it" in said
        assert took_s < 20.0 * slack(), took_s
        assert in_state_d(pid), "nothing can end it"
        thaw(mount)
        wait_for(lambda: _gone(pid), what="its end, when its file system goes on")


def _gone(pid: int) -> bool:
    try:
        os.waitpid(
            pid, os.WNOHANG
        )  # ours by now, where an earlier test has made us the one who gathers orphans
    except ChildProcessError:
        pass
    return not Path(f"/proc/{pid}").exists()
