"""Processes of another protocol beside a rig: refused and idle, named to people; a newer minor is one of us."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import Processes, wait_for
from rigs import LiveRig

from rigbus import Client, Task

pytestmark = pytest.mark.live

#: ``rigbus …`` whose HELLO says another version, and fields that nobody knows.
_SKEWED = """
import sys
import rigbus.bus.client.link as link

link.PROTO_VERSION = tuple(map(int, sys.argv.pop(1).split(".")))
made = link.Connection.__init__

def init(self, *args, **how):
    extra = how.pop("hello_extra", None)
    more = {"unheard_of": {"a": [1, None]}, "mood": "good"}
    made(self, *args, **how, hello_extra=lambda: {**(extra() if extra else {}), **more})

link.Connection.__init__ = init
from rigbus.tools.cli import main

main()
"""
#: The same for one child of `up`, by its name.
_SITE = """
import sys

if any(word == "worker-2" for word in sys.orig_argv):
    import rigbus.bus.client.link

    rigbus.bus.client.link.PROTO_VERSION = (2, 0)
"""


def skewed(rig: LiveRig, version: str, *words: str) -> Any:
    """A process of the rig's other version."""
    line: list[str | Path] = [sys.executable, "-c", _SKEWED, version, *words, "--state", rig.state]
    return rig.processes.start(line, env=rig.env)


def refused(client: Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = client.query("status")["refused"]
    return found


def test_strangers_stay_idle_and_are_named_and_a_newer_minor_works(
    rig_dir: Path, processes: Processes
) -> None:
    rig = LiveRig(rig_dir, processes, workers=1)
    rig.start()
    strangers = {
        "worker gpu9 ": skewed(rig, "2.0", "worker", "--name", "gpu9"),
        "brain ": skewed(rig, "3.1", "brain"),
        "bridge ": skewed(rig, "2.0", "bridge"),
    }
    newer = skewed(rig, "1.99", "worker", "--name", "newer", "--pool", "new")
    with rig.client() as client:
        wait_for(lambda: len(refused(client)) == 3, timeout_s=30, what="all three to be refused")
        for who, process in strangers.items():
            (row,) = (r for r in refused(client) if f"(pid {process.pid} on " in r["who"])
            assert (
                row["who"].startswith(who)
                and row["kind"] == "version"
                and "this broker 1." in row["why"]
                and "same rigbus" in row["fix"]
            )
        why = client.query("why", id="gpu9")
        assert why["state"] == "refused" and "protocol 2.0" in why["summary"]
        ids = client.submit([Task(type="shell", payload={"command": "echo well"}, pool="new")])
        (result,) = client.results(ids, timeout_s=30)
        assert result.ok
        workers = {row["id"] for row in client.query("workers")["workers"]}
        assert "newer" in workers and "gpu9" not in workers
        assert client.query("status")["brain"]["state"] == "seated"
    for who, process in strangers.items():
        said = processes.output(process)
        assert process.poll() is None, f"{who} is no crash loop:\n{said}"
        assert said.count("stays idle and asks again every 30 s") == 1, said
        assert "Traceback" not in said
    for process in (*strangers.values(), newer):
        process.send_signal(signal.SIGTERM)
    assert [process.wait(20) for process in (*strangers.values(), newer)] == [0, 0, 0, 0]
    assert rig.stop() == 0


def test_up_says_which_child_is_refused_and_stops_in_order(rig_dir: Path, processes: Processes) -> None:
    (rig_dir / "site").mkdir()
    (rig_dir / "site" / "sitecustomize.py").write_text(_SITE)
    rig = LiveRig(rig_dir, processes, env={"PYTHONPATH": str(rig_dir / "site")})
    words: list[str | Path] = [sys.executable, "-m", "rigbus", "up", "--json", "--workers", "2"]
    up = rig.up = processes.start(words, env=rig.env)

    def said() -> bool:
        assert up.poll() is None, processes.output(up)
        return "refused: worker worker-2 (pid" in processes.output(up)

    wait_for(said, timeout_s=30, what="the word about worker-2")
    with rig.client() as client:
        (before,) = refused(client)
        ids = client.submit([Task(type="shell", payload={"command": "true"})])
        assert next(iter(client.results(ids, timeout_s=30))).ok, "the others work"
        (after,) = refused(client)
        assert after["who"] == before["who"], "the same process: nobody has started it again"
    assert processes.output(up).count("refused: ") == 1
    assert rig.stop() == 0
