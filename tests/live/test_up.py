"""`rigbus up`: a real rig, its processes killed one by one and all at once, and nothing left behind."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import bearers_of_token, end_all, processes_of, short_folder, slack, wait_for, written

from rigbus import Client, Task
from rigbus.bus.paths import find_rig

READY_S = 40.0
NAMES = ("broker", "brain", "brain-worker", "bridge", "worker-1", "worker-2")


class Up:
    """One `rigbus up --json` on ``state``. ``run``: what it printed when it was ready."""

    def __init__(self, state: Path, *words: str) -> None:
        self.state = state
        self.log = state.parent / "up.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "rigbus", "up", "--json", "--state", str(state), *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        ready, _, _ = select.select([self.process.stdout], [], [], READY_S)
        line = self.process.stdout.readline() if ready else b""
        if not line:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"not ready: {self.said()}")
        self.run = json.loads(line)

    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")

    @property
    def pids(self) -> dict[str, int]:
        """The present ones."""
        run = find_rig(self.state).run
        return run["pids"] if run else {}

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=30)
        finally:
            self.process.stdout.close()


@pytest.fixture
def state(rig_dir: Path) -> Path:
    return rig_dir / "s"


@pytest.fixture
def up(state: Path) -> Iterator[Up]:
    rig = Up(state)
    try:
        yield rig
    finally:
        if rig.process.poll() is None:
            rig.process.send_signal(signal.SIGTERM)
            rig.process.send_signal(signal.SIGTERM)
        rig.stop()


def rigbus(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rigbus", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


def shell(client: Client, command: str, **options) -> str:
    return client.submit([Task(type="shell", payload={"command": command, "env": {}}, **options)])[0]


@pytest.mark.smoke
def test_up_is_ready_says_who_runs_and_stops_in_order(state):
    began = time.monotonic()
    rig = Up(state)
    took_s = time.monotonic() - began
    assert rig.run["schema"] == "rigbus.up/1"
    assert rig.run["ready"] is True
    assert tuple(rig.run["pids"]) == NAMES
    assert set(rig.run["endpoints"]) >= {"commands", "heartbeats", "events"}
    assert all(alive(pid) for pid in rig.run["pids"].values())
    assert "can run commands as" in rig.said()
    assert "on the Pi:" in rig.said()
    assert "class llm" in rig.said()
    with Client(state=state) as client:
        workers = {row["id"] for row in client.query("status")["workers"]}
    assert workers == {"brain-worker", "worker-1", "worker-2"}
    assert rig.stop() == 0
    assert not processes_of(state)
    assert not (state / "run.json").exists()
    print(f"ready after {took_s:.2f} s")


def test_down_stops_the_rig_and_a_second_down_finds_none(up):
    done = rigbus("down", "--state", up.state, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["pid"] == up.process.pid
    assert up.process.wait(timeout=1) == 0
    again = rigbus("down", "--state", up.state)
    assert again.returncode == 4
    assert "no rig is up" in again.stderr


def test_a_detached_rig_goes_on_until_down(state):
    started = rigbus("up", "-d", "--state", state, "--workers", "1")
    try:
        assert started.returncode == 0, started.stderr
        for name in ("broker", "brain", "brain-worker", "bridge", "worker-1"):
            assert name in started.stdout
        with Client(state=state) as client:
            assert client.query("status")["broker"]
    finally:
        assert rigbus("down", "--state", state).returncode == 0


@pytest.fixture(scope="module")
def killed() -> Iterator[Up]:
    """One rig for all kills: what one leaves behind is what the next one finds."""
    with short_folder() as folder:
        rig = Up(folder / "s")
        try:
            yield rig
        finally:
            assert rig.stop() == 0


@pytest.mark.parametrize("name", NAMES)
def test_each_process_comes_back_after_kill_9(killed, name):
    up, before = killed, killed.pids[name]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: up.pids.get(name, before) != before, timeout_s=30, what=f"a new {name}")
    assert f"{name} (pid {before}) was ended by signal 9" in up.said()
    with Client(state=up.state, timeout_s=10) as client:

        def whole() -> bool:
            status = client.query("status")
            workers = {row["id"]: row for row in status["workers"]}
            return (
                status["brain"]["state"] == "seated"
                and status["bridge"]["state"] == "attached"
                and all(workers.get(n, {}).get("types") for n in ("brain-worker", "worker-1", "worker-2"))
            )

        wait_for(whole, timeout_s=30, what="all of them at work again")


def test_the_leases_of_a_killed_worker_come_back_when_its_tree_is_dead(killed, rig_dir):
    up, mark = killed, rig_dir / "mark"
    with Client(state=up.state) as client:
        task = shell(
            client, f"echo $$ >> {mark}; setsid sleep 300 & [ $(wc -l < {mark}) -gt 1 ] || sleep 300"
        )
        wait_for(lambda: mark.exists() and mark.read_text(), what="the first attempt")
        row = client.query("task", id=task)["rows"][0]
        killed_at = time.monotonic()
        os.kill(up.pids[row["worker"]], signal.SIGKILL)
        result = next(iter(client.results([task], timeout_s=20)))
        took_s = time.monotonic() - killed_at
    assert result.ok
    assert took_s < 4 * slack(), "the leases waited for their time instead of the supervisor's word"
    first = int(mark.read_text().split()[0])
    assert not alive(first)


AGENT = """
import subprocess
from rigbus import Agent, handler

class Helper(Agent):
    @handler("help")
    def help(self, mark: str) -> int:
        process = subprocess.Popen(["bash", "-c", f"echo $$ > {mark}; exec sleep 300"], start_new_session=True)
        return process.wait()
"""


@pytest.mark.parametrize("hangs", [False, True])
def test_kill_9_of_up_ends_what_a_handler_has_started_even_when_its_agent_hangs(state, rig_dir, hangs):
    (rig_dir / "helper.py").write_text(AGENT)
    config = rig_dir / "rigbus.toml"
    config.write_text(f'workers = 0\n[[agents]]\nspec = "{rig_dir / "helper.py"}:Helper"\n')
    rig = Up(state, "--config", str(config))
    mark = rig_dir / "mark"
    with Client(state=state) as client:
        client.submit([Task(type="help", payload={"mark": str(mark)})])
        wait_for(lambda: mark.exists() and mark.read_text(), what="what the handler starts")
        pid = int(mark.read_text())
    if hangs:
        os.kill(rig.pids["brain-worker"], signal.SIGSTOP)
    rig.process.kill()
    rig.process.wait()
    rig.process.stdout.close()
    left = [pid, *rig.run["pids"].values()]
    wait_for(lambda: not any(alive(one) for one in left), timeout_s=15, what="the end of all")


def test_what_a_handler_has_started_ends_with_its_killed_agent(state, rig_dir):
    (rig_dir / "helper.py").write_text(AGENT)
    config = rig_dir / "rigbus.toml"
    config.write_text(f'workers = 0\n[[agents]]\nspec = "{rig_dir / "helper.py"}:Helper"\n')
    rig = Up(state, "--config", str(config))
    try:
        mark = rig_dir / "mark"
        with Client(state=state) as client:
            client.submit([Task(type="help", payload={"mark": str(mark)})])
            wait_for(lambda: mark.exists() and mark.read_text(), what="what the handler starts")
            pid = int(mark.read_text())
            os.kill(rig.pids["helper"], signal.SIGKILL)
            wait_for(lambda: not alive(pid), timeout_s=15, what="its end")
    finally:
        rig.process.send_signal(signal.SIGTERM)
        rig.process.send_signal(signal.SIGTERM)
        assert rig.stop() == 0


def rig_id(state: Path) -> str:
    return (state / "id").read_text().strip()


def test_up_ends_what_an_earlier_run_left_and_goes_on_with_its_tasks(state, rig_dir):
    rig = Up(state)
    mark = rig_dir / "mark"
    with Client(state=state) as client:
        task = shell(client, f"echo $$ >> {mark}; [ $(wc -l < {mark}) -gt 1 ] || setsid sleep 300")
        wait_for(lambda: mark.exists() and mark.read_text(), what="the first attempt")
    # A power cut for the rig's processes, not for what its tasks have started.
    end_all([rig.process.pid, *rig.run["pids"].values()])
    rig.process.wait()
    rig.process.stdout.close()
    again = Up(state)
    try:
        with Client(state=state) as client:
            assert next(iter(client.results([task], timeout_s=30))).ok
        left = [pid for pid, token in bearers_of_token(rig_id(state)).items() if ":rig:" not in token]
        assert not left
    finally:
        assert again.stop() == 0


def test_sigterm_lets_a_running_task_finish(up, rig_dir):
    mark = rig_dir / "mark"
    with Client(state=up.state) as client:
        shell(client, f"echo start > {mark}; sleep 1; echo end >> {mark}")
        wait_for(lambda: written(mark), what="the task")
    assert up.stop() == 0
    assert mark.read_text().split() == ["start", "end"]


def test_a_second_signal_ends_it_at_once_and_the_task_is_not_lost(state, rig_dir):
    rig = Up(state)
    mark = rig_dir / "mark"
    with Client(state=state) as client:
        task = shell(client, f"echo x >> {mark}; [ $(wc -l < {mark}) -gt 1 ] || sleep 300")
        wait_for(lambda: written(mark), what="the task")
    rig.process.send_signal(signal.SIGINT)
    wait_for(lambda: "once more to stop at once" in rig.said(), what="the first signal")
    asked_at = time.monotonic()
    rig.process.send_signal(signal.SIGINT)
    assert rig.process.wait(timeout=15 * slack()) == 0
    assert time.monotonic() - asked_at < 10 * slack()
    rig.process.stdout.close()
    again = Up(state)
    try:
        with Client(state=state) as client:
            assert next(iter(client.results([task], timeout_s=30))).ok
    finally:
        assert again.stop() == 0


def test_a_worker_that_lives_but_does_not_answer_is_killed_and_named(state, rig_dir):
    config = rig_dir / "rigbus.toml"
    config.write_text("lease_s = 1.5\n")
    rig = Up(state, "--config", str(config))
    try:
        pid = rig.pids["worker-1"]
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: "worker-1 (pid" in rig.said() and "does not answer" in rig.said(), what="its end")
        wait_for(lambda: rig.pids.get("worker-1", pid) != pid, what="a new worker-1")
    finally:
        assert rig.stop() == 0


def test_agents_of_the_configuration_run_beside_the_workers(state, rig_dir):
    agent = rig_dir / "shouting.py"
    agent.write_text(
        "from rigbus import Agent, handler\n\n"
        "class Shouter(Agent):\n"
        "    @handler('shout')\n"
        "    def shout(self, text: str) -> str:\n"
        "        return text.upper()\n"
    )
    config = rig_dir / "rigbus.toml"
    config.write_text(f'workers = 0\n[[agents]]\nspec = "{agent}:Shouter"\ncount = 2\n')
    rig = Up(state, "--config", str(config))
    try:
        assert {"shouter-1", "shouter-2"} < set(rig.run["pids"])
        with Client(state=state) as client:
            assert client.call("shout", {"text": "hi"}, timeout_s=10) == "HI"
    finally:
        assert rig.stop() == 0
