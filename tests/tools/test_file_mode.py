"""The verbs on a machine that has nothing but the shared folder, written as the bridge writes it."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest
from helpers import wait_for

from rigbus.bridge.folder.contract import beats, layout, rows
from rigbus.tools.files import Folder
from rigbus.tools.keyvalue import pairs, value_of

from .conftest import plan_text
from .test_verbs import loaded_by

LIVE, OLD = "20261121_080000_aaaaaa", "20261120_080000_bbbbbb"
COUNTS = {"waiting": 0, "ready": 1, "leased": 1, "done": 1, "dead": 1}


def put(root: Path, file: layout.File) -> None:
    path = root / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.data)
    os.utime(path, ns=(file.mtime_ns, file.mtime_ns))


def task(name, state, **more):
    id_ = f"{abs(hash(name)) % 10**8:08d}-0000-5000-8000-000000000000"
    row = {"id": id_, "type": "shell", "class": "cpu", "executor": "worker", "priority": 5, "batch": LIVE}
    row |= {"key": name, "state": state, "started": state == "leased", "attempt": int(state != "ready")}
    row |= {"worker": "worker-1", "created_at": 1.0, "changed_at": 2.0, "after": [], "command": "true"}
    return {**row, **more}


@pytest.fixture
def share(tmp_path, monkeypatch) -> Path:
    """A share as a running rig leaves it, seen from a machine without one."""
    root = tmp_path / "share"
    now = time.time()
    offset = time.localtime().tm_gmtoff
    for folder in layout.FOLDERS:
        (root / folder).mkdir(parents=True)
    batch = {
        "id": LIVE,
        "plan": "census",
        "kind": "plan",
        "state": "running",
        "priority": 8,
        "created_at": now - 60,
    }
    batch |= {"counts": COUNTS, "total": 4, "config": {}}
    put(
        root,
        layout.state_file([batch], pid=7, host="rig", started_at=now, changed_at=now, utc_offset_s=offset),
    )
    old = {**batch, "id": OLD, "state": "failed", "ended_at": now - 5, "error": "a task died"}
    put(root, layout.batch_file(old, offset))
    for row in (
        task("first", "done", result={"exit": 0, "output": "fine\n", "duration_s": 1.5}),
        task("second", "leased", worker="worker-1"),
        task("third", "ready"),
        task("fourth", "dead", error="exit 3"),
        task("fifth", "skipped", error="skipped: fourth ended dead"),
    ):
        put(root, layout.task_file(row, offset))
    worker = {"id": "worker-1", "state": "busy", "classes": ["cpu"], "seen_at": now, "tasks": ["x"], "pid": 8}
    put(root, beats.heartbeat_file(worker, offset))
    put(root, beats.status_file(worker, offset, now))
    logs = root / "plans" / "census" / "batches" / LIVE / "logs"
    logs.mkdir(parents=True)
    (logs / "first.1.log").write_text("fine\x1b[1m\n")
    line = {"timestamp": "2026-11-21T08:00:00", "type": "TASK_RELEASED", "message": "third", "details": {}}
    (root / layout.DECISIONS_LOG).write_text(json.dumps(line) + "\n")
    monkeypatch.setenv("RIGBUS_STATE", str(tmp_path / "none"))
    monkeypatch.setenv("RIGBUS_SHARED", str(root))
    return root


def requests(share: Path) -> list[dict]:
    return [json.loads(f.read_bytes()) for f in sorted((share / "inbox" / ".requests").glob("*.json"))]


def test_status_shows_what_the_folder_has_and_says_so(say, share):
    said = say("status", "--json")
    assert said.code == 0
    assert "file mode" in said.err
    status = said.json
    assert (status["schema"], status["mode"]) == ("rigbus.status/1", "file")
    assert [(w["id"], w["state"], w["classes"]) for w in status["workers"]] == [("worker-1", "busy", ["cpu"])]
    assert [(b["id"], b["state"], b["progress"]) for b in status["batches"]] == [
        (OLD, "failed", 0.5),
        (LIVE, "running", 0.5),
    ]
    assert "worker-1" in say("status").out


def test_the_cards_of_a_rig_are_seen_on_a_machine_that_has_only_the_folder(say, share, monkeypatch):
    cards = [
        {
            "index": 3,
            "uuid": "GPU-3",
            "temperature_c": 61.0,
            "utilization_pct": 87.0,
            "throttle": ["power cap"],
        },
        {"index": 0, "uuid": "GPU-0", "temperature_c": 79.0, "vram_used_mb": 3072, "vram_total_mb": 6144},
    ]
    beat = {"state": "busy", "gpu": {**cards[0], "cards": cards}, "running": [{"id": "x"}], "pid": 8}
    row = rows.worker_row("worker-1", beat, None, time.time())
    put(share, beats.heartbeat_file(row, time.localtime().tm_gmtoff))
    monkeypatch.setenv("RIGBUS_GPU_SOURCE", "none")
    sample = say("gpu", "--count", "1", "--json").json
    assert (sample["source"], [card["index"] for card in sample["cards"]]) == ("rig", [0, 3])
    assert {card["uuid"]: card["temperature_c"] for card in sample["cards"]} == {"GPU-0": 79.0, "GPU-3": 61.0}
    assert [task["name"] for task in sample["cards"][1]["tasks"]] == ["second"]
    assert "power cap  worker-1: second" in say("gpu", "--count", "1").out
    assert "2 cards 79 °C 87% 3.0/6.0 GiB" in say("status").out


def test_old_news_end_with_4(say, share):
    for file in (share / layout.STATE_FILE, share / "workers" / "worker-1" / "heartbeat.json"):
        os.utime(file, (1e9, 1e9))
    said = say("status", "--json")
    assert said.code == 4
    assert said.json["broker"] == {"state": "stale"}
    assert "stale" in said.err


def test_the_files_say_themselves_how_old_they_may_become(share):
    folder = Folder(share)
    now = folder.as_of()
    assert now is not None and folder.stale_for(now + layout.STALE_AFTER_S - 1) is None
    assert folder.stale_for(now + layout.STALE_AFTER_S + 2) > layout.STALE_AFTER_S
    (worker,) = folder.workers(now + layout.STALE_AFTER_S + 2)
    assert worker["state"] == "stale"


def test_a_rig_in_another_time_zone_is_not_stale(share):
    now = time.time()
    put(share, layout.state_file([], pid=7, host="rig", started_at=now, changed_at=now, utc_offset_s=-18_000))
    (share / "workers" / "worker-1" / "heartbeat.json").unlink()
    assert Folder(share).stale_for(now + 5) is None


def test_a_copy_of_an_old_mirror_is_as_old_as_it_says(share):
    long_ago = time.time() - 100_007
    offset = time.localtime().tm_gmtoff
    for file in (
        layout.state_file([], pid=7, host="rig", started_at=1.0, changed_at=long_ago, utc_offset_s=offset),
        beats.heartbeat_file({"id": "worker-1", "state": "busy", "seen_at": long_ago}, offset),
    ):
        (share / file.path).write_bytes(file.data)
    assert Folder(share).stale_for(time.time()) > 100_000


def test_who_has_ended_is_left_out_and_not_called_stale(say, share):
    gone = {"id": "worker-1", "state": "gone", "seen_at": 1.0}
    put(share, beats.status_file(gone, 0.0, 1.0))
    assert say("status", "--json").json["workers"] == []


def test_a_rig_that_was_stopped_is_not_called_stale(say, share):
    now = time.time()
    offset = time.localtime().tm_gmtoff
    put(
        share,
        layout.state_file(
            [], pid=7, host="r", started_at=now, changed_at=now, utc_offset_s=offset, status="stopped"
        ),
    )
    said = say("status", "--json")
    assert (said.code, said.json["broker"]) == (4, {"state": "stopped"})
    assert "was stopped" in said.err


def test_an_archived_task_is_still_found(say, share):
    file = layout.task_file(task("sixth", "done", result={"exit": 0, "output": "six\n"}), 0.0)
    put(share, file._replace(path=layout.archived(LIVE, file.path)))
    id_ = json.loads(file.data)["task_id"]
    for ref in (id_, id_[:8], f"{LIVE}/sixth"):
        assert say("task", "show", ref, "--json").json["state"] == "done"
    listed = [t["name"] for t in say("batch", "show", LIVE, "--json").json["tasks"]]
    assert "sixth" in listed


def test_batches_of_plans_that_lie_deeper_are_found(share):
    batch = {"id": "20261121_090000_cccccc", "plan": "arms/left", "state": "complete", "created_at": 1.0}
    put(share, layout.batch_file({**batch, "ended_at": 2.0, "counts": {"done": 1}, "total": 1}, 0.0))
    assert Folder(share).batch("20261121_090000_cccccc")["plan"] == "arms/left"


def test_a_folder_that_is_no_share_ends_with_4(say, tmp_path):
    said = say("status", "--state", tmp_path / "none", "--shared", tmp_path)
    assert said.code == 4
    assert "no shared folder of a rig" in said.err


def test_batches_and_tasks_are_those_of_the_lanes(say, share):
    shown = say("batch", "show", LIVE[:15], "--json").json
    states = {t["name"]: t["state"] for t in shown["tasks"]}
    assert states == {
        "first": "done",
        "second": "leased",
        "third": "ready",
        "fourth": "dead",
        "fifth": "skipped",
    }
    assert say("batch", "show", OLD, "--json").json["error"] == "a task died"
    assert say("batch", "show", "20990101").code == 3
    one = say("task", "show", f"{LIVE}/fourth", "--json").json
    assert (one["state"], one["error"], one["attempts"][0]["outcome"]) == ("dead", "exit 3", "dead")
    assert say("task", "list", "--state-is", "ready", "--json").json["tasks"][0]["name"] == "third"


def test_a_half_written_file_is_left_out(say, share):
    (share / "tasks" / "queue" / "torn.json").write_text('{"task_id": "torn')
    (share / "tasks" / "queue" / "list.json").write_text("[]")
    os.mkfifo(share / "tasks" / "queue" / "pipe.json")
    assert len(say("task", "list", "--json").json["tasks"]) == 5


def test_logs_and_watch_read_the_copies(say, share):
    assert say("logs", f"{LIVE}/first").out == "fine\\x1b[1m\n"
    said = say("watch", "--once")
    assert "TASK_RELEASED third" in said.out
    assert "census" in said.out


def test_cancel_and_retry_are_request_files(say, share):
    assert say("cancel", LIVE, "--reason", "enough", "--timeout", "0").code == 0
    said = say("retry", f"{LIVE}/fourth", "--timeout", "0", "--json").json
    found = {r["verb"]: r for r in requests(share)}
    assert found["cancel"]["batch_id"] == LIVE
    assert found["cancel"]["args"] == {"reason": "enough"}
    assert found["retry"]["args"] == {"ids": [task("fourth", "dead")["id"]]}
    assert Path(said["request"]).name == f"{found['retry']['id']}.json"
    assert say("pause", "worker-1", "--timeout", "0").code == 0
    assert say("cancel", "20990101").code == 3


@pytest.mark.parametrize(
    ("words", "answer", "said", "schema"),
    [
        (
            ("cancel", LIVE),
            {"cancelled": 2, "ending": 1, "already": 0},
            "census: 2 cancelled, 1 still running",
            "rigbus.cancel/1",
        ),
        (
            ("retry", f"{LIVE}/fourth"),
            {"requeued": 1, "revived": 1},
            "fourth runs again",
            "rigbus.retry/1",
        ),
        (("drain", "worker-1"), {"running": 3}, "3 tasks still run there", "rigbus.drain/1"),
        (
            ("why", f"{LIVE}/third"),
            {
                "kind": "task",
                "id": "x",
                "name": "third",
                "state": "ready",
                "summary": "waits for a worker",
                "reasons": ["no worker of class gpu"],
                "predicates": [{"name": "class", "value": "gpu", "ok": False, "fix": "rigbus up"}],
            },
            "waits for a worker",
            "rigbus.why/1",
        ),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_what_the_rig_answers_is_printed_as_over_the_bus(say, share, words, answer, said, schema):
    thread = answering(share, {"state": "accepted", "answer": answer})
    plain = say(*words)
    thread.join()
    assert (plain.code, said in plain.out) == (0, True), plain
    for file in (share / "inbox" / ".requests").iterdir():
        file.unlink()
    thread = answering(share, {"state": "accepted", "answer": answer})
    found = say(*words, "--json").json
    thread.join()
    assert found["schema"] == schema
    assert answer.items() <= found.items()


def test_what_the_rig_refuses_ends_with_8_and_the_reason(say, share):
    problem = {"what": "no batch of that id", "fix": "`rigbus batch list`"}
    thread = answering(share, {"state": "refused", "problems": [problem]})
    said = say("cancel", LIVE)
    thread.join()
    assert said.code == 8
    assert "no batch of that id; `rigbus batch list`" in said.err


def test_what_the_rig_does_not_know_ends_with_3(say, share):
    thread = answering(share, {"state": "refused", "exit_code": 3, "problems": [{"what": "no batch 'x'"}]})
    said = say("why", "nobody")
    thread.join()
    assert (said.code, said.err.splitlines()[-1]) == (3, "rigbus: no batch 'x'")


def test_a_verb_that_is_not_answered_ends_with_7_and_may_be_done_yet(say, share):
    said = say("cancel", LIVE, "--timeout", "0.1")
    assert said.code == 7
    assert ".receipt.json" in said.err


@pytest.mark.parametrize("words", [("cancel", LIVE), ("drain", "all"), ("submit", "{fine}")])
def test_nobody_waits_for_a_rig_that_is_not_there(say, share, tmp_path, words):
    for file in (share / layout.STATE_FILE, share / "workers" / "worker-1" / "heartbeat.json"):
        os.utime(file, (1e9, 1e9))
    (tmp_path / "fine.md").write_text(plan_text(a="true"))
    said = say(*[word.format(fine=tmp_path / "fine.md") for word in words])
    assert said.code == 0
    assert "the rig's answer will be" in said.err


def test_a_submit_says_which_batch_it_became(say, share, tmp_path):
    (tmp_path / "fine.md").write_text(plan_text(a="true"))
    thread = answering(share, {"state": "accepted", "batch_id": OLD})
    said = say("submit", tmp_path / "fine.md", "--json")
    thread.join()
    assert (said.code, said.json["batch_id"]) == (0, OLD)
    assert f"submitted {OLD}" in said.err


def test_a_plan_from_elsewhere_is_copied_before_its_request_is_written(say, share, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "plan.md").write_text(plan_text(a="true"))
    (tmp_path / "data.csv").write_text("1")
    (folder / "data.csv").symlink_to(tmp_path / "data.csv")
    said = say("submit", folder, "--priority", "high", "--set", "N=3", "--timeout", "0", "--json")
    assert said.code == 0, said.err
    (request,) = requests(share)
    assert request["schema"] == "rigbus.request/1"
    assert request["args"] == {"plan": "mine", "config": {"N": 3}, "priority": "high"}
    copy = share / "inbox" / f".incoming-{request['id']}"
    assert (copy / "plan.md").read_bytes() == (folder / "plan.md").read_bytes()
    assert not (copy / "data.csv").is_symlink()
    assert said.json["batch_id"] is None
    assert said.json["receipt"].endswith(f"{request['id']}.receipt.json")


def test_an_invalid_plan_is_refused_before_anything_is_written(say, share, tmp_path):
    (tmp_path / "bad.md").write_text("no plan at all\n")
    before = sorted(share.rglob("*"))
    assert say("submit", tmp_path / "bad.md").code == 5
    assert sorted(share.rglob("*")) == before


def answering(share: Path, receipt: dict) -> threading.Thread:
    """A rig that answers the next request."""

    def answer() -> None:
        wait_for(lambda: requests(share), timeout_s=60)
        name = requests(share)[0]["id"]
        (share / "inbox" / ".requests" / f"{name}.receipt.json").write_text(json.dumps(receipt))

    thread = threading.Thread(target=answer)
    thread.start()
    return thread


def test_a_submit_waits_for_the_receipt_and_for_the_end(say, share, tmp_path):
    (tmp_path / "fine.md").write_text(plan_text(a="true"))
    thread = answering(share, {"state": "accepted", "batch_id": OLD})
    said = say("submit", tmp_path / "fine.md", "--wait", "--timeout", "60", "--json")
    thread.join()
    assert said.code == 6
    assert (said.json["batch_id"], said.json["state"]) == (OLD, "failed")


def test_a_refused_receipt_ends_with_5_and_its_faults(say, share, tmp_path):
    (tmp_path / "fine.md").write_text(plan_text(a="true"))
    problem = {"file": "plan.md", "line": 3, "what": "it is wrong", "fix": "mend it"}
    thread = answering(share, {"state": "refused", "problems": [problem]})
    said = say("submit", tmp_path / "fine.md", "--wait", "--timeout", "60")
    thread.join()
    assert said.code == 5
    assert "plan.md:3: it is wrong; mend it" in said.err


def test_a_rig_that_does_not_answer_ends_with_7(say, share, tmp_path):
    (tmp_path / "fine.md").write_text(plan_text(a="true"))
    assert say("submit", tmp_path / "fine.md", "--wait", "--timeout", "0.1").code == 7


@pytest.mark.parametrize(
    ("words", "loads"),
    [
        (("status", "--json"), "0 []"),
        (("task", "list"), "0 []"),
        (("batch", "show", LIVE), "0 []"),
        (("logs", f"{LIVE}/first"), "0 []"),
        (("watch", "--once"), "0 []"),
        (("cancel", LIVE, "--timeout", "0"), "0 []"),
    ],
)
def test_file_mode_loads_no_library_of_the_bus(share, words, loads):
    assert loaded_by(share, *words) == loads


def test_submit_in_file_mode_loads_no_zmq(share, tmp_path):
    (tmp_path / "fine.md").write_text(plan_text(a="true"))
    found = loaded_by(share, "submit", tmp_path / "fine.md", "--timeout", "0")
    assert found.startswith("0 ")
    assert "zmq" not in found
    assert "llama" not in found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("-0.5", -0.5),
        ("true", True),
        ('["a", 1]', ["a", 1]),
        ('{"a": null}', {"a": None}),
        ("null", "null"),
        ('"quoted"', '"quoted"'),
        ("NaN", "NaN"),
        ("[NaN]", "[NaN]"),
        ("1e", "1e"),
        ("", ""),
        (str(2**64), str(2**64)),
        ("[" * 100_000, "[" * 100_000),
    ],
)
def test_a_value_is_json_where_it_is_more_than_text(text, value):
    assert value_of(text) == value
    assert pairs([f"K={text}"], "--set") == {"K": value}
