"""The suite's own tools: a leak that they do not see would pass every live test."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from helpers import (
    MAX_IPC_PATH,
    Processes,
    bearers_of_token,
    end_all,
    free_endpoint,
    processes_of,
    short_folder,
    wait_for,
)

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def test_wait_for_returns_the_value_it_waited_for():
    values = iter([None, 0, "here"])
    assert wait_for(lambda: next(values), timeout_s=5) == "here"


def test_wait_for_names_what_did_not_come():
    with pytest.raises(AssertionError, match=r"waited 0\.05 s for a pig that flies; last value: \[\]"):
        wait_for(list, timeout_s=0.05, what="a pig that flies")


def test_an_endpoint_that_no_socket_could_have_is_refused(tmp_path):
    with short_folder() as folder:
        assert len(free_endpoint(folder).removeprefix("ipc://")) <= MAX_IPC_PATH
    with pytest.raises(ValueError, match="rig_dir"):
        free_endpoint(tmp_path / ("long" * 30))


@linux
@pytest.mark.parametrize("sign", ["environment", "arguments", "working folder"])
def test_a_process_of_a_folder_is_found_by_each_sign(rig_dir, sign):
    process = subprocess.Popen(
        [*SLEEP, str(rig_dir)] if sign == "arguments" else SLEEP,
        env={"RIGBUS_STATE": f"{rig_dir}/state"} if sign == "environment" else {},
        cwd=rig_dir if sign == "working folder" else "/",
    )
    try:
        wait_for(lambda: process.pid in processes_of(rig_dir), timeout_s=5, what="the process to be seen")
    finally:
        process.kill()
        process.wait()
    assert process.pid not in processes_of(rig_dir)


@linux
def test_a_token_finds_its_bearers_by_prefix():
    state = os.urandom(8).hex()
    with subprocess.Popen(SLEEP, env={"RIGBUS_TOKEN": f"{state}:s1:3.7"}) as process:
        try:
            wait_for(lambda: bearers_of_token(state) == {process.pid: f"{state}:s1:3.7"}, timeout_s=5)
            assert not bearers_of_token(f"{state}:s2")
        finally:
            end_all([process.pid])
    assert not bearers_of_token(state)


def test_processes_end_with_the_test_even_when_they_refuse(tmp_path):
    started = Processes(tmp_path)
    deaf = started.python(
        "-c",
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)",
    )
    wait_for(lambda: "deaf" in started.output(deaf), timeout_s=10)
    began = time.monotonic()
    started.stop_all(grace_s=0.2)
    assert deaf.poll() == -9
    assert time.monotonic() - began < 5


LEAKY = """
import subprocess, sys

def test_leaks(rig_dir):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd=rig_dir)
"""


@linux
def test_a_test_that_leaves_a_process_fails_and_the_process_is_ended(tmp_path):
    (tmp_path / "test_leaky.py").write_text(LEAKY, "utf-8")
    code = "import conftest, sys, pytest; conftest.LEAVE_TIME_S = 0.3\n"
    code += "sys.exit(pytest.main(sys.argv[1:], [conftest]))"
    tests = os.path.dirname(os.path.abspath(__file__))
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            code,
            "-p",
            "no:cacheprovider",
            "-p",
            "no:rigbus",
            "--rootdir",
            str(tmp_path),
            "-c",
            os.devnull,
            str(tmp_path),
        ],
        env={**os.environ, "PYTHONPATH": tests},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "outlived the test by 0.3 s" in done.stdout, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "1 error" in done.stdout
