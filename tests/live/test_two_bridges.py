"""Two bridges on one folder, as processes: of one rig, and of two rigs. One serves it, the other says why it does not."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers import Processes, wait_for
from parts import Part, drop, runs, wait_ran

from rigbus import Client

pytestmark = pytest.mark.live


@pytest.fixture
def share(rig_dir: Path) -> Path:
    folder = rig_dir / "share"
    (folder / "inbox").mkdir(parents=True)
    return folder


def test_a_second_bridge_of_a_rig_waits_and_says_so_until_the_first_is_gone(
    rig_dir: Path, share: Path, processes: Processes
) -> None:
    rig = Part(rig_dir / "s", share, processes)
    rig.rest()
    first = rig.bridge()
    wait_for((share / "brain/state.json").exists, timeout_s=30, what="the mirror")
    second = rig.bridge()
    found = rig.until("the second one to be told of", standby=[second.pid])
    assert found["pid"] == first.pid
    assert f"another bridge (pid {first.pid}) serves this rig" in processes.output(second)
    assert second.poll() is None
    names = [f"p{n}" for n in range(6)]
    for name in names[:3]:
        drop(share, name)
    wait_ran(share, *names[:3])
    processes.kill(first)
    for name in names[3:]:
        drop(share, name)
    wait_ran(share, *names)
    assert runs(share) == dict.fromkeys(names, 1)
    rig.until("the second one to serve", pid=second.pid, standby=[])


def test_of_two_rigs_on_one_folder_one_has_it_and_the_other_takes_it_when_the_first_has_left(
    rig_dir: Path, share: Path, processes: Processes
) -> None:
    one, two = Part(rig_dir / "s1", share, processes), Part(rig_dir / "s2", share, processes)
    one.rest()
    bridge = one.bridge()
    wait_for((share / "brain/state.json").exists, timeout_s=30, what="the mirror")
    two.rest()
    other = two.bridge()
    rig_id = (one.state / "id").read_text()[:8]
    two.until("the other rig to say whose it is", available=False, reason=f"belongs to the rig {rig_id}")
    assert "rigbus bridge take" in processes.output(other)
    names = [f"p{n}" for n in range(6)]
    for name in names[:3]:
        drop(share, name)
    wait_ran(share, *names[:3])
    bridge.terminate()
    assert bridge.wait(20) == 0
    for name in names[3:]:
        drop(share, name)
    wait_ran(share, *names)
    two.until("the other rig to have it", available=True)
    assert runs(share) == dict.fromkeys(names, 1)
    with Client(state=two.state) as client:
        assert sum(b["kind"] == "plan" for b in client.query("batches", all=True)["batches"]) == 3
