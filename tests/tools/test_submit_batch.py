"""``rigbus submit NAME.jsonl`` on a machine that has nothing but the folder: checked, dropped whole, waited for."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import wait_for

from .test_verbs import loaded_by

GOOD = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"messages": [{"role": "user", "content": "hi"}]},
}


@pytest.fixture
def share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "share"
    (root / "inbox").mkdir(parents=True)
    monkeypatch.setenv("RIGBUS_SHARED", str(root))
    monkeypatch.setenv("RIGBUS_STATE", str(tmp_path / "no-rig"))
    return root


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps(GOOD) + "\nrubbish\n")
    return path


def receipt(share: Path, file: Path, **fields: Any) -> None:
    """What the bridge writes about it."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    said = {"schema": "rigbus.receipt/1", "state": "accepted", "drop_id": digest, **fields}
    place = share / "inbox/x.jsonl.receipt.json"
    new = place.with_suffix(".new")
    new.write_text(json.dumps(said))
    os.replace(new, place)


@pytest.fixture
def answering(share: Path, file: Path) -> Iterator[Callable[..., None]]:
    """A rig that answers when the file has come."""
    threads: list[threading.Thread] = []

    def start(**fields: Any) -> None:
        def answer() -> None:
            wait_for((share / "inbox/x.jsonl.READY").exists, timeout_s=20)
            receipt(share, file, **fields)

        threads.append(threading.Thread(target=answer))
        threads[-1].start()

    yield start
    for thread in threads:
        thread.join(20)


def inbox(share: Path) -> list[str]:
    return sorted(os.listdir(share / "inbox"))


def test_it_is_dropped_whole_with_its_priority(say, share, file):
    said = say("submit", file, "--priority", "high", "--json")
    assert said.code == 0, said.err
    assert inbox(share) == ["x.jsonl", "x.jsonl.READY"]
    assert (share / "inbox/x.jsonl").read_bytes() == file.read_bytes()
    assert json.loads((share / "inbox/x.jsonl.READY").read_text()) == {"priority": "high"}
    out = said.json
    assert (out["batch_id"], out["plan"], out["tasks"], out["bad_lines"]) == (None, "x.jsonl", 1, 1)
    assert out["results"] == str(share / "inbox/x.results.jsonl")
    assert "x.jsonl:2: the line is no JSON" in said.err


def test_it_waits_for_the_end(say, share, file, answering):
    counts = {"total": 2, "completed": 2, "failed": 0}
    answering(batch_id="b1", status="complete", request_counts=counts)
    said = say("submit", file, "--wait", "--timeout", "20", "--json")
    assert said.code == 0, said.err
    assert (said.json["batch_id"], said.json["state"], said.json["request_counts"]) == (
        "b1",
        "complete",
        counts,
    )


@pytest.mark.parametrize("status", ["complete", "failed", "cancelled"])
def test_an_end_with_errors_is_code_6(say, share, file, answering, status):
    answering(batch_id="b1", status=status, request_counts={"total": 2, "completed": 1, "failed": 1})
    said = say("submit", file, "--wait", "--timeout", "20")
    assert said.code == 6
    assert "1 line with an error" in said.err


def test_a_refusal_is_code_8_with_its_reason(say, share, file, answering):
    answering(state="refused", problems=[{"what": "there is no model 'x' here"}])
    said = say("submit", file, "--wait", "--timeout", "20")
    assert said.code == 8
    assert "there is no model 'x' here" in said.err


def test_a_wait_that_ends_first_is_code_7(say, share, file):
    assert say("submit", file, "--wait", "--timeout", "0.1").code == 7


def test_the_receipt_of_another_content_or_of_an_earlier_time_is_not_believed(say, share, file, tmp_path):
    other = tmp_path / "other.jsonl"
    other.write_text("other\n")
    receipt(share, other, batch_id="b0", status="complete", request_counts={"failed": 0})
    assert say("submit", file, "--wait", "--timeout", "0.1").code == 7
    receipt(share, file, batch_id="b0", status="complete", request_counts={"failed": 0})
    assert say("submit", file, "--wait", "--timeout", "0.1").code == 7


def test_nothing_that_can_run_is_code_5_and_nothing_is_written(say, share, tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"custom_id": "a"}\n[]\n')
    said = say("submit", bad)
    assert said.code == 5
    assert "bad.jsonl:1: method is missing" in said.err
    assert "bad.jsonl:2: the line is" in said.err
    assert inbox(share) == []


def test_another_content_of_that_name_that_runs_is_not_replaced(say, share, file):
    (share / "inbox/x.jsonl").write_text("other\n")
    assert say("submit", file).code == 8
    receipt(share, file, status="complete")
    assert say("submit", file).code == 0
    assert (share / "inbox/x.jsonl").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["x.results.jsonl"], 2),
        (["x.jsonl", "--set", "A=1"], 2),
        (["x.jsonl", "--config", "{}"], 2),
        (["missing.jsonl"], 3),
    ],
)
def test_what_cannot_be_meant(say, share, file, monkeypatch, words, code):
    monkeypatch.chdir(file.parent)
    (file.parent / "x.results.jsonl").write_bytes(file.read_bytes())
    assert say("submit", *words).code == code
    assert inbox(share) == []


def test_a_dry_run_writes_nothing(say, share, file):
    assert say("submit", file, "--dry-run", "--json").json["tasks"] == 1
    assert "1 line cannot be used" in say("submit", file, "--dry-run").out
    assert inbox(share) == []


def test_it_loads_no_zmq(share, file):
    found = loaded_by(share.parent, "submit", file)
    assert found.startswith("0 ")
    assert "zmq" not in found and "pydantic" not in found
