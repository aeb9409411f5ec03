"""What a command may see of the worker's environment; the lifeline."""

from __future__ import annotations

import os
import select
import sys

import pytest

from rigbus.agents.attempts.environment import task_environment
from rigbus.agents.supervisor.lifeline import LIFELINE_VARIABLE, Lifeline, lifeline_fd
from rigbus.bus.errors import DefinitionError

BASE = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/home/u",
    "LC_ALL": "C.UTF-8",
    "CUDA_VISIBLE_DEVICES": "0",
    "LD_PRELOAD": "/evil.so",
    "LD_LIBRARY_PATH": "/opt/lib",
    "BASH_ENV": "/evil.sh",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "MY_ONE": "1",
    "MY_TWO": "2",
    "RIGBUS_TOKEN": "worker",
    "RIGBUS_LIFELINE_FD": "7",
}


def test_only_the_allow_list_passes() -> None:
    env = task_environment(BASE, {})
    assert set(env) == {"PATH", "HOME", "LC_ALL", "CUDA_VISIBLE_DEVICES"}


def test_env_pass_adds_names_and_patterns_but_never_the_rigs_own() -> None:
    env = task_environment(BASE, {}, ["MY_*", "RIGBUS_TOKEN", "LD_LIBRARY_PATH"])
    assert (env["MY_ONE"], env["MY_TWO"], env["LD_LIBRARY_PATH"]) == ("1", "2", "/opt/lib")
    assert "RIGBUS_TOKEN" not in env


def test_a_pattern_never_passes_what_a_loader_or_bash_would_run() -> None:
    env = task_environment(BASE, {}, ["*"])
    assert not {"LD_PRELOAD", "LD_LIBRARY_PATH", "BASH_ENV", "RIGBUS_TOKEN"} & set(env)
    assert env["MY_ONE"] == "1"


def test_path_starts_with_the_running_pythons_folder_once() -> None:
    folder = os.path.dirname(sys.executable)
    env = task_environment({"PATH": f"/usr/bin:{folder}:/bin"}, {})
    assert env["PATH"].split(":") == [folder, "/usr/bin", "/bin"]
    assert task_environment({}, {})["PATH"].startswith(f"{folder}:/")


def test_extra_values_of_the_task_are_added() -> None:
    assert task_environment({}, {"RIGBUS_V_1_ID": "a b; rm -rf x"})["RIGBUS_V_1_ID"] == "a b; rm -rf x"


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("LD_PRELOAD", "/x.so", "LD_PRELOAD"),
        ("RIGBUS_A=B", "x", "RIGBUS_A=B"),
        ("RIGBUS_V", "a\0b", "NUL"),
        ("RIGBUS_V", "é" * 40_000, "80000 bytes"),
    ],
)
def test_a_value_that_no_command_can_take_is_a_definition_error(name: str, value: str, word: str) -> None:
    with pytest.raises(DefinitionError, match=word):
        task_environment({}, {name: value})


def test_the_lifeline_becomes_readable_when_the_supervisor_lets_go() -> None:
    line = Lifeline()
    fd = lifeline_fd(line.env)
    assert fd == line.read_fd
    poller = select.poll()
    held = os.dup(line.read_fd)
    poller.register(held, select.POLLIN)
    assert poller.poll(0) == []
    line.close()
    assert [seen for seen, _ in poller.poll(2000)] == [held]
    assert os.read(held, 1) == b""
    os.close(held)


@pytest.mark.parametrize("text", ["", "x", "-1", "1", "99999", "²", "9" * 30])
def test_a_variable_that_names_no_pipe_counts_as_unsupervised(text: str) -> None:
    assert lifeline_fd({LIFELINE_VARIABLE: text}) is None
