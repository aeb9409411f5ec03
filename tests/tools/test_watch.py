"""`watch` and the text of `why`: what fits, what is plain, what ends by itself."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import threading
from typing import Any

import pytest
from helpers import wait_for

from rigbus.tools import render
from rigbus.tools.watch_view import batch_line, lines_of, picture
from rigbus.tools.why import lines_of as why_lines

from .conftest import plan_text

STATES = ("waiting", "ready", "leased", "review", "failed", "done", "dead", "cancelled", "expired", "skipped")
AT = 1_795_258_527.0


def batch(name: str, state: str = "running", eta_s: float | None = None, **tasks: int) -> dict[str, Any]:
    counts = {s: tasks.get(s, 0) for s in STATES}
    total = sum(counts.values())
    ended = sum(counts[s] for s in ("done", "dead", "cancelled", "expired", "skipped"))
    return {
        "id": "20261121_111315_b47f4c",
        "plan": name,
        "name": name,
        "kind": "plan",
        "state": state,
        "created_at": AT - 60,
        "ended_at": None,
        "total": total,
        "tasks": counts,
        "progress": ended / total if total else 0.0,
        "eta_s": eta_s,
    }


def worker(name: str, state: str, *tasks: str) -> dict[str, Any]:
    return {"id": name, "state": state, "tasks": list(tasks), "slots": 2, "model": None}


def frame(**parts: Any) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "schema": "rigbus.watch/1",
        "at": AT,
        "broker": {"paused": False},
        "brain": {"state": "seated"},
        "bridge": {"state": "attached"},
        "batches": [
            batch("census", eta_s=12.3, done=14, leased=2, ready=24),
            batch("a very long name of a plan, longer than any column", "failed", done=3, dead=1, skipped=2),
            batch("stuck", ready=5)
            | {"why": "`write` ready: no worker offers llm: " + "worker-1 offers cpu; " * 9},
        ],
        "workers": [worker("worker-1", "busy", "x"), worker("worker-2", "paused")],
        "running": [{"id": "x", "name": "measure_" + "y" * 90, "worker": "worker-1", "started_at": AT - 75}],
        "decisions": [
            {"at": AT, "what": "task.shell.dead", "about": "measure_a", "why": "exit 1: " + "no " * 60},
            {"at": AT, "what": "task.shell.done", "about": "x\x1b[31m", "why": ""},
        ],
    }
    return shown | parts


def painted(shown: dict[str, Any], width: int = 80, height: int = 24, **console: Any) -> str:
    from rich.console import Console

    out = io.StringIO()
    screen = Console(
        file=out, width=width, height=height, force_terminal=True, legacy_windows=False, **console
    )
    screen.print(picture(shown))
    return out.getvalue()


def uncoloured(text: str) -> list[str]:
    return re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()


# ---------------------------------------------------------------- the picture


@pytest.mark.parametrize(("width", "height"), [(40, 12), (80, 24), (80, 12), (120, 50)])
def test_the_picture_fits_the_terminal(width: int, height: int) -> None:
    lines = uncoloured(painted(frame(), width, height))
    assert max(map(len, lines)) <= width
    assert len(lines) <= max(height, 16)


def test_the_picture_shows_bars_failures_eta_workers_and_decisions() -> None:
    text = "\n".join(uncoloured(painted(frame(), 100, 40)))
    for word in ("census", "14/40", "2 run", "~12 s", "6/6", "1 failed, 2 skipped", "no worker offers llm"):
        assert word in text
    for word in ("worker-1", "busy", "measure_", "worker-2", "paused", "task.shell.dead measure_a"):
        assert word in text
    assert "20261121_111315_b47f4c" in text, "a wide terminal has room for the id"
    assert "\x1b" not in text, "what tasks say never reaches the terminal as it is"


def test_no_color_means_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\x1b[3" in painted(frame())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", painted(frame()))


def test_many_batches_and_workers_leave_room_for_each_other() -> None:
    many = frame(
        batches=[batch(f"b{i}", done=1) | {"id": f"id{i}"} for i in range(40)],
        workers=[worker(f"w{i}", "idle") for i in range(40)],
    )
    lines = uncoloured(painted(many, 80, 24))
    assert len(lines) <= 24
    text = "\n".join(lines)
    assert "b39" in text and "w0" in text and "last decisions" in text


def test_an_empty_rig_says_how_to_begin() -> None:
    empty = frame(batches=[], workers=[], running=[], decisions=[])
    assert "rigbus submit PLAN" in painted(empty)
    assert lines_of(empty) == ["no batches: `rigbus submit PLAN`"]


# ---------------------------------------------------------------- plain lines


def test_plain_lines_fit_80_columns_and_have_no_escape() -> None:
    lines = lines_of(frame())
    assert max(map(len, lines)) <= 80
    assert not any("\x1b" in line for line in lines)
    assert lines[0] == "20261121_111315_b47f4c census         running     14/40  35%  2 run, eta 12 s"


def test_a_line_of_a_batch_says_what_its_bar_cannot() -> None:
    row = batch("p", "failed", done=1, dead=2, expired=1, cancelled=1, skipped=3)
    assert batch_line(row).endswith("8/8 100%  3 failed, 1 cancelled, 3 skipped")
    assert "eta" not in batch_line(row | {"eta_s": 5.0})


@pytest.mark.parametrize("columns", [40, 60, 80, 100])
def test_why_is_a_summary_and_lines_within_the_width(columns: int) -> None:
    tests = [
        {"name": "type", "ok": True, "value": "2 of 2 workers", "wanted": "runs shell", "fix": ""},
        {
            "name": "free credit",
            "ok": False,
            "value": "w holds 1 of 1; " * 9,
            "wanted": "",
            "fix": "wait " * 9,
        },
    ]
    answer = {
        "kind": "task",
        "id": "x",
        "name": "measure_1",
        "state": "ready",
        "summary": "all 2 workers that can run it are busy; 14 tasks before it, starts in 2.9 s",
        "reasons": ["its last attempt failed: " + "x" * 300],
        "predicates": tests,
        "workers": [{"worker": "w1", "predicates": tests}, {"worker": "w2", "predicates": tests}],
    }
    lines = why_lines(answer, columns)
    assert max(map(len, lines)) <= columns
    assert lines[0].startswith("task measure_1 is ready: ")
    assert any(line.startswith("  ok type: 2 of 2 workers") for line in lines)
    assert any(line.startswith("  NO free credit: ") for line in lines)
    assert all(line.isascii() for line in lines)


def test_the_fix_of_a_test_that_fails_can_be_pasted_and_a_dead_task_has_its_next_commands() -> None:
    test = {
        "name": "class",
        "ok": False,
        "value": "w1 offers cpu; w2 offers cpu, script; w3 offers cpu, script",
    }
    answer = {
        "kind": "task",
        "id": "0123456789ab",
        "name": "t",
        "state": "ready",
        "summary": "no worker offers llm",
    }
    answer |= {
        "reasons": [],
        "predicates": [test | {"fix": "pip install 'rigbus[llm]', then rigbus up --model F"}],
    }
    assert "      -> pip install 'rigbus[llm]', then rigbus up --model F" in why_lines(answer, 80)
    dead = answer | {"state": "dead", "predicates": []}
    assert why_lines(dead)[1:] == ["  -> rigbus logs 01234567", "  -> rigbus retry 01234567"]
    assert why_lines(dead | {"name": "t:expand"})[1:] == ["  -> rigbus retry 01234567"]


def test_a_number_keeps_its_unit_when_a_line_is_broken() -> None:
    for columns in range(10, 40):
        assert not any(
            re.match(r" *(s|min)\b", line) for line in render.wrap("starts in 2.9 s, ends in 3 min", columns)
        )


# ---------------------------------------------------------------- against a rig


def test_tail_prints_each_task_that_ends_and_ends_with_the_batch(say, here):
    gate = here.folder / "gate-tail"
    id_ = say(
        "submit",
        here.plan(plan_text(one=f"until [ -e {gate} ]; do sleep 0.02; done", two="false")),
        "--json",
    ).json["batch_id"]
    said = say_while(("watch", id_, "--tail", "--interval", "0.1"), here, gate.touch)
    assert said.returncode == 6
    words = [line.split()[1:3] for line in said.stdout.splitlines()]
    assert words == [["task.shell.done", "one"], ["task.shell.dead", "two:"]]


def test_brain_prints_decisions_and_json_has_a_schema(say, here):
    gate = here.folder / "gate-brain"
    id_ = say("submit", here.plan(plan_text(one=f"until [ -e {gate} ]; do sleep 0.02; done")), "--json").json[
        "batch_id"
    ]
    said = say_while(("watch", id_, "--brain", "--json", "--interval", "0.1"), here, gate.touch)
    assert said.returncode == 0
    records = [json.loads(line) for line in said.stdout.splitlines()]
    assert {r["schema"] for r in records} == {"rigbus.watch.decision/1"}
    assert records[-1]["what"] == "batch.plan.complete"


def say_while(words: tuple[str, ...], rig: Any, then: Any) -> subprocess.CompletedProcess[str]:
    """Run a verb as a process; ``then`` is done as soon as it says that it has reached the rig."""
    command = [sys.executable, "-u", "-m", "rigbus", *words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=rig.folder
    )
    assert process.stderr is not None
    first = process.stderr.readline()
    assert "bus mode" in first
    # it subscribes before its first look, and the log has what it missed; the gate opens some looks later
    timer = threading.Timer(0.6, then)
    timer.start()
    out, err = process.communicate(timeout=30)
    timer.join()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def test_two_ways_to_watch_at_once_are_a_mistake(say, here):
    assert say("watch", "--tail", "--brain").code == 2
    assert say("watch", "--interval", "0").code == 2


def test_a_piped_watch_prints_changes_only_and_ends_with_6_when_the_batch_failed(say, here):
    id_ = say("submit", here.plan(plan_text(bad="exit 3")), "--json").json["batch_id"]
    said = say("watch", id_)
    assert said.code == 6
    lines = said.out.splitlines()
    assert len({line[9:] for line in lines}) == len(lines), "no line twice"
    assert lines[-1].endswith("1/1 100%  1 failed")


def test_on_a_terminal_the_picture_ends_with_its_batch(say, here):
    id_ = say("submit", here.plan(plan_text(fine="true")), "--json").json["batch_id"]
    main, terminal = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        [sys.executable, "-m", "rigbus", "watch", id_],
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.PIPE,
        cwd=here.folder,
        env=env,
    )
    os.close(terminal)
    seen = b""
    try:
        while chunk := os.read(main, 65536):
            seen += chunk
    except OSError:
        pass  # the terminal's other end is closed
    finally:
        os.close(main)
    assert process.wait(20) == 0
    assert b"complete" in seen and b"batches" in seen


def test_a_running_batch_shows_its_worker_and_since_when(say, here):
    gate = here.folder / "gate-shown"
    id_ = say(
        "submit",
        here.plan(plan_text(shown=f"until [ -e {gate} ]; do sleep 0.02; done")),
        "--json",
    ).json["batch_id"]
    try:
        found = wait_for(lambda: say("watch", id_, "--once", "--json").json["running"])
        assert [(t["name"], t["worker"]) for t in found] == [("shown", "worker-1")]
        assert re.search(r"worker-1 +busy +shown \d+(\.\d)? s", say("watch", id_, "--once").out)
    finally:
        gate.touch()
    assert say("watch", id_).code == 0


def test_why_without_an_id_lists_what_does_not_move(say, here):
    folder = here.plan(plan_text(think="true").replace("task_class**: cpu", "task_class**: llm"))
    id_ = say("submit", folder, "--json").json["batch_id"]
    wait_for(lambda: say("task", "list", "--batch", id_, "--json").json["tasks"])
    said = say("why")
    assert said.code == 0
    assert "NO somebody runs shell (class llm): 1 ready task waits for a worker that offers llm" in said.out
    assert "pip install 'rigbus[llm]'" in " ".join(said.out.split())
    assert max(map(len, said.out.splitlines())) <= 100
    answer = say("why", "all", "--json").json
    assert (answer["schema"], answer["kind"]) == ("rigbus.why/1", "rig")
    assert id_ in {s["id"] for s in answer["stuck"]}
    say("cancel", id_)
