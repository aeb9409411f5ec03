"""Short leases and hung processes in a whole rig."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import Processes, wait_for
from rigs import LiveRig

from rigbus import Client, Task
from rigbus.bus.paths import log_path

pytestmark = pytest.mark.live

SETTINGS = """\
lease_s = 0.5
kill_grace_s = 0.3
[logs]
task_bytes = 4096
tail_bytes = 256
[[agents]]
spec = "{agent}:Chatty"
"""

AGENT = """
from rigbus import Agent, handler

class Chatty(Agent):
    @handler("chat")
    def chat(self) -> None:
        for n in range(1000):
            self.task.log("x" * 99)

    @handler("chat_apart", isolated=True)
    def chat_apart(self) -> None:
        self.chat()
"""


@pytest.fixture
def rig(rig_dir: Path, processes: Processes) -> Iterator[LiveRig]:
    """A rig whose leases are ten times as short as usual."""
    config = rig_dir / "xdg" / "rigbus" / "config.toml"
    config.parent.mkdir(parents=True)
    agent = rig_dir / "chatty.py"
    agent.write_text(AGENT)
    config.write_text(SETTINGS.replace("{agent}", str(agent)))
    made = LiveRig(rig_dir, processes, env={"XDG_CONFIG_HOME": str(rig_dir / "xdg")})
    made.start()
    yield made
    assert made.up is not None
    if made.up.poll() is None:
        made.stop()


def shell(command: str, **more: object) -> Task:
    return Task(type="shell", payload={"command": command, "env": {}}, **more)  # type: ignore[arg-type]


def said(rig: LiveRig) -> str:
    assert rig.up is not None
    return rig.processes.output(rig.up)


def test_a_batch_runs_on_short_leases_and_nobody_is_killed_for_them(rig: LiveRig) -> None:
    before = rig.pids()
    with rig.client() as client:
        long = [shell("sleep 1.5", key=f"long{n}") for n in range(4)]
        results = list(
            client.results(client.submit([*long, *(shell("true") for _ in range(300))]), timeout_s=60)
        )
    assert all(result.ok for result in results) and len(results) == 304
    assert "does not answer" not in said(rig)
    assert rig.pids() == before
    assert rig.stop() == 0
    rig.check_log()


def test_the_bounds_of_an_attempt_are_those_of_the_settings(rig: LiveRig) -> None:
    with rig.client() as client:
        (flood,) = client.results(
            client.submit([shell("yes | head -c 100000; echo; printf last")]), timeout_s=20
        )
        (deaf,) = client.results(
            client.submit([shell("trap '' TERM; sleep 300 & wait; wait", timeout_s=0.5, max_attempts=1)]),
            timeout_s=20,
        )
        chats = client.submit([Task(type="chat"), Task(type="chat_apart")])
        assert all(result.ok for result in client.results(chats, timeout_s=20))
        rows = [client.query("task", id=id_)["rows"][0] for id_ in chats]
    for row in rows:
        said_bytes = log_path(rig.state / "logs", row["batch"], row["key"], 1).stat().st_size
        assert 4096 - 100 <= said_bytes <= 4096 + 100, row["type"]
    assert flood.ok and len(flood.value["output"]) == 256 and flood.value["output"].endswith("last")
    log = Path(flood.value["log"]).read_bytes()
    assert b"ends at 4096 bytes" in log and len(log) < 4096 + 200
    assert deaf.error == "timed out after 0.5 s"
    assert deaf.value["duration_s"] < 5, "the grace was that of the defaults, 10 s"


def test_a_hung_broker_is_replaced_and_what_ran_goes_on(rig: LiveRig, rig_dir: Path) -> None:
    mark, go = rig_dir / "mark", rig_dir / "go"
    with rig.client() as client:
        (task,) = client.submit(
            [shell(f"echo start >> {mark}; until [ -e {go} ]; do sleep 0.1; done; echo end >> {mark}")]
        )
        wait_for(lambda: mark.exists() and mark.read_text(), what="the task to run")
        workers = {name: pid for name, pid in rig.pids().items() if "worker" in name}
        hung = rig.pids()["broker"]
        os.kill(hung, signal.SIGSTOP)
        wait_for(lambda: rig.pids().get("broker", hung) != hung, timeout_s=20, what="a new broker")
    assert f"broker (pid {hung}) does not answer" in said(rig)
    with Client(state=rig.state, timeout_s=10) as client:
        (later,) = client.results(client.submit([shell("true")]), timeout_s=20)
        assert later.ok
        go.touch()
        (result,) = client.results([task], timeout_s=20)
    assert result.ok and mark.read_text().split() == ["start", "end"], "it was executed twice"
    assert {name: pid for name, pid in rig.pids().items() if "worker" in name} == workers
    assert rig.stop() == 0
    rig.check_log()
