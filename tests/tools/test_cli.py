"""The command: its help, its exit codes, what it loads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest

from rigbus.bus.errors import ConfigError, NotFound, PlanError, Refused, TaskFailed, Unreachable, WaitTimeout
from rigbus.bus.paths import rig_paths
from rigbus.tools import cli as module
from rigbus.tools.cli import GROUPS, VERBS, VerbEntry, run
from rigbus.tools.common import fold, print_json
from rigbus.tools.up import _moved_line

INTERFACE_VERBS = [
    "up",
    "broker",
    "brain",
    "worker",
    "bridge",
    "down",
    "load",
    "unload",
    "pause",
    "resume",
    "drain",
    "submit",
    "plan",
    "call",
    "status",
    "batch",
    "task",
    "logs",
    "watch",
    "gpu",
    "cancel",
    "retry",
    "repair",
    "backup",
    "restore",
    "dead",
    "escalations",
    "planner",
    "mcp",
    "why",
    "sniff",
    "config",
    "schema",
    "bench",
    "demo",
    "doctor",
    "version",
    "completion",
    "alerts",
    "notify",
]


@pytest.fixture
def verb(monkeypatch):
    """Put a verb of our own into the table: ``verb(function)``; it is run as ``rigbus probe``."""

    def add(function):
        monkeypatch.setitem(VERBS, "probe", VerbEntry("version", "version", "Look", "a probe"))
        monkeypatch.setattr(import_module("rigbus.tools.version"), "version", click.command()(function))

    return add


def test_the_table_has_every_verb_of_the_interface():
    assert set(INTERFACE_VERBS) == set(VERBS)


def test_help_shows_each_verb_in_its_group(capsys):
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    places = [text.index(f"\n{group}:") for group in GROUPS]
    assert places == sorted(places)
    for name, entry in VERBS.items():
        assert f"\n  {name} " in text
        assert entry.help.split()[0] in text


@pytest.mark.parametrize(
    "name", ["up", "down", "demo", "gpu", "broker", "brain", "worker", "bridge", "version"]
)
def test_each_verb_has_help(name, capsys):
    assert run([name, "--help"]) == 0
    assert "Usage: rigbus" in capsys.readouterr().out


def test_help_and_version_load_nothing_heavy():
    code = (
        "import sys\nfrom rigbus.tools.cli import run\n"
        "assert run(['--help']) == 0 and run(['--version']) == 0 and run(['up', '--help']) == 0\n"
        "assert run(['gpu', '--help']) == 0\n"
        "print(sorted({n.partition('.')[0] for n in sys.modules} & {'zmq', 'msgpack', 'pydantic', 'rich', 'sqlite3', 'pynvml'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_mistyped_verb_is_told_the_nearest_one(capsys):
    assert run(["statu"]) == 2
    assert "did you mean `rigbus status`?" in capsys.readouterr().err


def test_an_unknown_option_is_a_usage_error(capsys):
    assert run(["version", "--nonsense"]) == 2
    assert "--nonsense" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("a"), 2),
        (NotFound("a"), 3),
        (Unreachable("a"), 4),
        (PlanError("a"), 5),
        (TaskFailed("a"), 6),
        (WaitTimeout("a"), 7),
        (Refused("a"), 8),
        (FileNotFoundError(2, "No such file", "/x"), 1),
    ],
)
def test_an_error_ends_with_its_own_exit_code_and_a_line_on_stderr(verb, capsys, error, code):
    def fails():
        raise error

    verb(fails)
    assert run(["probe"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("rigbus: ")


def test_every_problem_of_a_plan_is_a_line(verb, capsys):
    def fails():
        raise PlanError("two problems", ["plan.md:3: x; do y", "plan.md:9: z; do w"])

    verb(fails)
    assert run(["probe"]) == 5
    assert capsys.readouterr().err == "rigbus: plan.md:3: x; do y\nrigbus: plan.md:9: z; do w\n"


def test_what_an_error_quotes_reaches_no_terminal_as_it_stands(verb, capsys):
    def fails():
        raise Refused("/share: the rig \x1b[2Jevil\u202e has it;\n\tend it first")

    verb(fails)
    assert run(["probe"]) == 8
    assert capsys.readouterr().err == "rigbus: /share: the rig \\x1b[2Jevil\\u202e has it;\n\tend it first\n"


def test_a_name_that_is_no_utf8_is_json_all_the_same(verb, capsys):
    verb(lambda: print_json({"name": "b\udcffé"}) or 0)
    assert run(["probe"]) == 0
    out = capsys.readouterr().out
    assert out == '{"name": "b\\udcffé"}\n' and json.loads(out) == {"name": "b\udcffé"}


def test_ctrl_c_ends_with_130(verb, capsys):
    def interrupted():
        raise KeyboardInterrupt

    verb(interrupted)
    assert run(["probe"]) == 130


def test_a_verb_returns_its_exit_code(verb):
    verb(lambda: 3)
    assert run(["probe"]) == 3


def test_a_reader_that_goes_away_ends_it_quietly():
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "rigbus", "--help"],
            stdout=write,
            stderr=subprocess.PIPE,
            timeout=30,
            check=False,
        )
    finally:
        os.close(write)
    assert done.stderr == b""
    assert done.returncode == 1


def test_version_as_json(capsys):
    assert run(["version", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "rigbus.version/1"
    assert told["libraries"]["pyzmq"]


def test_a_verb_that_is_no_command_is_a_fault_of_ours(monkeypatch):
    monkeypatch.setitem(VERBS, "probe", VerbEntry("version", "LIBRARIES", "Look", "a probe"))
    with pytest.raises(TypeError, match="no click command"):
        module.run(["probe"])


@pytest.mark.parametrize(
    ("text", "columns", "lines"),
    [
        ("short", 20, ["short"]),
        ("no plan 'x'; give a folder", 20, ["no plan 'x';", "  give a folder"]),
        ("try `rigbus up -d` or another", 12, ["try", "  `rigbus up -d`", "  or another"]),
        ("word by word goes on", 12, ["word by word", "  goes on"]),
        ("a_word_longer_than_a_line", 10, ["a_word_longer_than_a_line"]),
    ],
)
def test_a_long_line_is_folded_and_what_is_to_be_pasted_stays_whole(text, columns, lines):
    assert fold(text, columns) == lines


def test_up_says_when_the_rig_has_served_another_folder_before(tmp_path: Path) -> None:
    paths = rig_paths(tmp_path / "state", tmp_path / "new")
    former = tmp_path / "former"
    for folder in (paths.state, former):
        folder.mkdir()
    assert _moved_line(paths) == ""  # the first time
    record = paths.state / "share.json"
    record.write_text(json.dumps({str(tmp_path / "gone"): "1", str(former): "2"}))
    assert (
        _moved_line(paths)
        == f"until now this rig served {former}; to go on there: `rigbus up --shared {former}`"
    )
    record.write_text(json.dumps({str(former): "2", str(paths.shared): "3"}))
    assert _moved_line(paths) == ""
    record.write_text("{")
    assert _moved_line(paths) == ""
