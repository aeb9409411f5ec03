"""What a Pi types: the base install without zmq, and a folder into which somebody writes what he likes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_for
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rigbus.tools.cli import run
from rigbus.tools.rows import task_object

from .planned import BATCH, ID, escalate, make_share, put, sign

#: Each verb in a process in which zmq cannot be loaded; what it said and how it ended.
PI = """
import contextlib, io, json, sys
sys.modules['zmq'] = None
from rigbus.tools.cli import run
ended = []
for words in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(words)
    ended.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(ended))
"""
TASK = f"{BATCH}/count"
JSONL = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
JSONL |= {"body": {"messages": [{"role": "user", "content": "hi"}]}}


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = make_share(tmp_path / "share")
    escalate(root)
    (tmp_path / "lines.jsonl").write_text(json.dumps(JSONL))
    monkeypatch.setenv("RIGBUS_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("RIGBUS_SHARED", str(root))
    return root


def test_status_counts_what_nobody_has_answered(say: Any, share: Path) -> None:
    escalate(share, "20261121_081600_11111111", status="human")
    escalate(share, "20261121_081700_22222222", status="answered")
    escalate(share, "20261121_081800_33333333", status="applied")
    escalate(share, "20261121_081900_44444444", source_task={})
    (batch,) = say("status", "--json").json["batches"]
    assert (batch["id"], batch["escalations"]) == (BATCH, 2)
    assert f"{BATCH} is escalated" in say("status").out
    assert say("batch", "show", BATCH, "--json").json["escalations"] == 2


class Rig(threading.Thread):
    """Answers every request with this."""

    def __init__(self, share: Path, answers: dict[str, dict[str, Any]]) -> None:
        super().__init__(daemon=True)
        self.share, self.answers, self.ended = share, answers, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.02):
            for file in (self.share / "inbox" / ".requests").glob("*.json"):
                if file.name.endswith(".receipt.json") or file.name.startswith("."):
                    continue
                receipt = file.with_name(file.name.removesuffix(".json") + ".receipt.json")
                if not receipt.exists():
                    verb = json.loads(file.read_bytes())["verb"]
                    answer = self.answers.get(verb, {})
                    put(receipt, {"state": "accepted", "batch_id": BATCH, "answer": answer})

    def __enter__(self) -> Rig:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join()


WHY = {
    "kind": "task",
    "id": "x",
    "name": "count",
    "state": "dead",
    "summary": "exit 1",
    "reasons": [],
    "predicates": [],
}
#: What the broker answers to these verbs over the bus; the bridge passes it on in a receipt.
ANSWERS: dict[str, dict[str, Any]] = {
    "cancel": {"cancelled": 1, "ending": 0, "already": 0},
    "retry": {"requeued": 1, "revived": 0},
    "why": WHY,
    "alert-test": {"state": "raised"},
}


#: Words, the exit code, and the schema of what --json prints.
ENDS: list[tuple[tuple[str, ...], int, str | None]] = [
    (("status",), 0, "rigbus.status/1"),
    (("batch", "list"), 0, "rigbus.batches/1"),
    (("batch", "show", BATCH), 0, "rigbus.batch.show/1"),
    (("task", "list"), 0, "rigbus.tasks/1"),
    (("task", "show", TASK), 0, "rigbus.task.show/1"),
    (("watch", "--once"), 0, "rigbus.watch/1"),
    (("logs", TASK), 0, "rigbus.logs/1"),
    (("logs", "nothing"), 3, None),
    (("why", TASK), 0, "rigbus.why/1"),
    (("cancel", BATCH), 0, "rigbus.cancel/1"),
    (("cancel", "nothing"), 3, None),
    (("retry", BATCH), 0, "rigbus.retry/1"),
    (("retry", BATCH, "--timeout", "0"), 0, "rigbus.request/1"),
    (("drain", "worker-1"), 0, "rigbus.drain/1"),
    (("planner", "run", "--once", "--cmd", "exit 1"), 1, "rigbus.planner.run/1"),
    (("planner", "new", "x", "--cmd", "exit 1"), 1, None),
    (("escalations", "list"), 0, "rigbus.escalations/1"),
    (("escalations", "show", ID[-8:]), 0, "rigbus.escalation/1"),
    (("escalations", "show", "nothing"), 3, None),
    (("escalations", "answer", ID, "--set", "A=1", "--timeout", "0"), 0, "rigbus.escalations.answer/1"),
    (("alerts", "list"), 0, "rigbus.alerts/1"),
    (("alerts", "ack", "nothing"), 3, None),
    (("alerts", "test"), 0, "rigbus.alert.test/1"),
    (("submit", "census"), 0, "rigbus.submit/1"),
    (("submit", "census", "--dry-run"), 0, "rigbus.submit/1"),
    (("submit", "no-such-plan"), 3, None),
    (("submit", "census", "--revise", BATCH), 0, "rigbus.submit/1"),
    (("submit", "census", "--revise", BATCH, "--dry-run"), 4, None),
    (("submit", "census", "--revise", "nothing"), 3, None),
    (("submit", "lines.jsonl", "--dry-run"), 0, "rigbus.submit/1"),
    (("notify", "--once", "--notify-state", "told"), 0, "rigbus.notify/1"),
]


def test_without_zmq_each_verb_ends_as_it_does_over_the_bus(share: Path) -> None:
    with Rig(share, ANSWERS):
        done = subprocess.run(
            [sys.executable, "-c", PI, json.dumps([[*words, "--json"] for words, _, _ in ENDS])],
            capture_output=True, text=True, timeout=120, check=False, cwd=share.parent,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for (words, code, schema), (ended, out, err) in zip(ENDS, json.loads(done.stdout), strict=True):
        said = json.loads(out.splitlines()[0])["schema"] if out else None
        assert (ended, said) == (code, schema), (words, out, err)
        assert "Traceback" not in err and (code in (0, 1) or "rigbus: " in err), (words, err)


def test_what_is_printed_has_the_keys_that_it_has_over_the_bus(say: Any, share: Path) -> None:
    row = {"id": "t", "key": "count", "state": "dead"}
    assert set(task_object(row, None)) <= set(say("task", "show", TASK, "--json").json)
    frame = say("watch", "--once", "--json").json
    assert {"broker", "brain", "bridge"} <= set(frame)
    status = say("status", "--json").json
    assert frame["broker"] == status["broker"] == {"state": "as mirrored"}
    sign(share, 1e9, "active")
    assert say("watch", "--once", "--json").json["broker"] == {"state": "stale"}


def test_a_batch_file_that_a_rig_refuses_is_told_at_once(say: Any, share: Path) -> None:
    """As over the bus, and as for a plan: who dropped it may be gone when somebody looks at the receipt."""
    inbox = share / "inbox"

    def refuse() -> None:
        wait_for((inbox / "lines.jsonl").exists, timeout_s=60)
        problems = [
            {"what": "no model of that name", "file": "lines.jsonl", "line": 1, "fix": "name another"}
        ]
        put(inbox / "lines.jsonl.receipt.json", {"state": "refused", "problems": problems})

    rig = threading.Thread(target=refuse)
    rig.start()
    said = say("submit", share.parent / "lines.jsonl")
    rig.join()
    assert said.code == 8
    assert "lines.jsonl:1: no model of that name; name another" in said.err


def test_what_a_revision_would_keep_is_known_to_the_broker_only_and_that_is_said(
    say: Any, share: Path
) -> None:
    said = say("submit", "census", "--revise", BATCH, "--dry-run")
    assert said.code == 4
    for words in ("no folder says", "broker", "without --revise"):
        assert words in said.err


@pytest.mark.parametrize("answer", [{}, {"kind": "task"}, {"kind": "rig", "predicates": 7}, [7], "x"])
@pytest.mark.parametrize("words", [("why", TASK), ("cancel", BATCH), ("retry", BATCH), ("alerts", "test")])
def test_a_receipt_of_nonsense_is_an_error_or_no_news(
    say: Any, share: Path, words: tuple[str, ...], answer: Any
) -> None:
    with Rig(share, {"why": answer, "cancel": answer, "retry": answer, "alert-test": answer}):
        said = say(*words, "--timeout", "60")
    assert said.code in (0, 1)
    assert said.out or "; " in said.err


EVIL = "\x1b]0;title\x07\x1b[2J\x9b31m\u202e"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([EVIL, "", "x", "dead", "9" * 400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["tasks", "x", EVIL]), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
VERBS = (
    ("status",), ("batch", "list"), ("batch", "show", BATCH), ("task", "list"), ("task", "show", TASK),
    ("watch", "--once"), ("logs", TASK), ("alerts", "list", "--all"), ("escalations", "list", "--all"),
    ("escalations", "show", ID),
)  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_stands_in_the_share_ends_no_verb_and_reaches_no_terminal(
    share: Path, capsys: pytest.CaptureFixture[str], data: st.DataObject
) -> None:
    alert = {"schema": "rigbus.alert/1", "key": "test", "rule": "test", "severity": "info", "state": "raised"}
    beat = {"name": "w", "state": "running", "active_tasks": [], "gpus": {}, "as_of": None}
    put(share / "alerts" / "test.json", alert | {"title": EVIL, "details": {}, "times": 1})
    (share / "workers" / "w").mkdir(exist_ok=True)
    put(share / "workers" / "w" / "heartbeat.json", beat)
    escalate(share, title=EVIL)
    files = [file for file in share.rglob("*.json") if "inbox" not in file.parts]
    before = {file: file.read_bytes() for file in files}
    try:
        for file in data.draw(st.lists(st.sampled_from(sorted(files)), min_size=1, max_size=4, unique=True)):
            fields = json.loads(before[file])
            for key in data.draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=6)):
                fields[key] = data.draw(VALUES)
            file.write_text(json.dumps(fields))
        words = data.draw(st.sampled_from(VERBS))
        as_json = data.draw(st.booleans())
        code = run([*words, *(["--json"] if as_json else [])])
        out, err = capsys.readouterr()
        assert code in (0, 3, 4)
        assert not {"\x1b", "\x07", "\x9b", "\u202e"} & set(out + err)
        if as_json and code == 0:
            assert isinstance(json.loads(out), dict)
    finally:
        for file, content in before.items():
            file.write_bytes(content)


def test_a_fifo_or_a_link_in_the_place_of_a_log_holds_nobody(say: Any, share: Path, tmp_path: Path) -> None:
    log = share / "plans" / "census" / "batches" / BATCH / "logs" / "count.1.log"
    log.unlink()
    os.mkfifo(log)
    assert say("logs", TASK).code == 0
    log.unlink()
    (tmp_path / "private").write_text("a key")
    log.symlink_to(tmp_path / "private")
    said = say("logs", TASK)
    assert said.code == 0 and "a key" not in said.out
