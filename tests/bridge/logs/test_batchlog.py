"""``batch_events.jsonl`` and the summaries of a batch: each event once, whoever was killed, and nobody's own file lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from folders import Share
from worlds import AT, BATCH, Drawn, raw_batch, raw_task

from rigbus.bridge.folder.contract import layout
from rigbus.bridge.folder.contract.summary import MAX_KEYS, NAMES, count_events
from rigbus.bridge.folder.logs.appending import Appending
from rigbus.bridge.folder.logs.batchlog import MAX_ENDS, MAX_FILES, BatchLogs
from rigbus.bus.client.follow import Event
from rigbus.bus.wire import pack

FOLDER = f"plans/census/batches/{BATCH}"
LOG = f"{FOLDER}/logs/batch_events.jsonl"
ONE, TWO = raw_task(1)["id"], raw_task(2)["id"]


@pytest.fixture
def drawn(share: Share, tmp_path: Path) -> Drawn:
    made = Drawn(share, tmp_path)
    made.pass_time(1.0)
    return made


def tell(drawn: Drawn, topic: str, id_: str | None = ONE, **data: Any) -> None:
    drawn.mirror.event(drawn.world.happen(topic, id_, **data))


def lines(drawn: Drawn) -> list[dict[str, Any]]:
    file = drawn.share.root / LOG
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def run_one(drawn: Drawn) -> None:
    """A task that fails once and then does it."""
    tell(drawn, "task.shell.waiting", created=True)
    tell(drawn, "task.shell.ready")
    tell(drawn, "task.shell.started", attempt=1, worker="w1")
    tell(drawn, "task.shell.retry", attempt=1, worker="w1", error="exit 3: oh")
    tell(drawn, "task.shell.started", attempt=2, worker="w2")
    tell(drawn, "task.shell.done", attempt=2, worker="w2")
    row = raw_task(1, "done", attempt=2, worker="w2", started_at=AT + 5, ended_at=AT + 6)
    drawn.world.put(row)
    drawn.world.results[ONE] = pack({"exit": 0, "output": "hi"})
    drawn.pass_time(1.0)


def end(drawn: Drawn, state: str = "complete", **counts: int) -> None:
    drawn.world.batches[:] = [
        raw_batch(state=state, ended_at=AT + 9, tasks=counts or {"done": 1}, total=sum(counts.values()) or 1)
    ]
    tell(drawn, f"batch.plan.{state}", None, name="census", total=1)
    drawn.pass_time(4.0)


def test_each_event_is_a_line_with_the_fields_that_summaries_are_made_of(drawn: Drawn) -> None:
    run_one(drawn)
    end(drawn)
    found = lines(drawn)
    assert [line["event"] for line in found] == [
        *(
            "task_released",
            "task_started",
            "task_retried",
            "task_started",
            "task_succeeded",
            "batch_completed",
        ),
    ]
    assert found[2] | {"recorded_at": 0, "requeued_at": 0} == {
        "event": "task_retried", "batch_id": BATCH, "recorded_at": 0, "task_id": ONE, "task_name": "one",
        "task_class": "cpu", "executor": "worker", "worker": "w1", "attempts": 1, "recorded_status": "pending",
        "requeued_at": 0, "error": "exit 3: oh", "seq": 4,
    }  # fmt: skip
    done = found[4]
    assert (done["success"], done["error_code"], done["recorded_status"]) == (True, 0, "complete")
    assert done["started_at"] < done["completed_at"] == done["recorded_at"]
    assert found[5]["success"] is True
    assert "null" not in (drawn.share.root / LOG).read_text()


@pytest.mark.parametrize(
    ("what", "event", "status"),
    [
        ("dead", "task_failed", "failed"),
        ("expired", "task_failed", "failed"),
        ("cancelled", "task_abandoned", "abandoned"),
        ("skipped", "task_abandoned", "abandoned"),
    ],
)
def test_a_bad_end_says_why(drawn: Drawn, what: str, event: str, status: str) -> None:
    drawn.world.put(raw_task(1, what, attempt=1, error="exit 3: oh\nno", ended_at=AT + 3))
    tell(drawn, f"task.shell.{what}", attempt=1, error="exit 3: oh\nno")
    drawn.pass_time(1.0)
    (line,) = lines(drawn)
    assert (line["event"], line["recorded_status"], line["success"]) == (event, status, False)
    assert (line["error"], line["summary"], line["error_type"]) == ("exit 3: oh\nno", "exit 3: oh", what)


def test_what_was_only_handed_back_is_no_event(drawn: Drawn) -> None:
    drawn.world.put(raw_task(1, "ready"))
    tell(drawn, "task.shell.leased", worker="w")
    tell(drawn, "task.shell.returned", worker="w")
    drawn.pass_time(1.0)
    assert lines(drawn) == []


def test_a_new_bridge_that_does_not_know_how_far_it_was_repeats_no_line(
    share: Share, tmp_path: Path, drawn: Drawn
) -> None:
    run_one(drawn)
    end(drawn)
    before = (drawn.share.root / LOG).read_text()
    summary = {name: (drawn.share.root / FOLDER / name).stat().st_ino for name in NAMES}
    (drawn.paths.state / "mirror.json").write_text(json.dumps({"schema": "x", "seq": 0, "batches": {}}))
    again = Drawn(share, tmp_path)
    again.world = drawn.world
    again.pass_time(6.0)
    assert (share.root / LOG).read_text() == before
    assert set(summary) == {p.name for p in (share.root / FOLDER).iterdir() if p.name in NAMES}
    assert not list((share.root / FOLDER).glob("*conflict*"))
    tell(again, "task.shell.dead", TWO, attempt=1)
    again.world.put(raw_task(2, "dead", attempt=1, ended_at=AT + 20))
    again.pass_time(2.0)
    assert [line["seq"] for line in lines(again)] == [2, 3, 4, 5, 6, 7, 8]


def test_a_line_that_was_cut_off_by_a_death_is_ended_and_said_again(
    share: Share, tmp_path: Path, drawn: Drawn
) -> None:
    run_one(drawn)
    file = share.root / LOG
    file.write_text(file.read_text()[:-30])
    (drawn.paths.state / "mirror.json").write_text(json.dumps({"schema": "x", "seq": 0, "batches": {}}))
    again = Drawn(share, tmp_path)
    again.world = drawn.world
    again.pass_time(2.0)
    *whole, torn, last = file.read_text().splitlines()
    assert [json.loads(line)["seq"] for line in (*whole, last)] == [2, 3, 4, 5, 6]
    assert last.startswith(torn)


def test_a_log_that_takes_no_line_is_tried_again_and_gets_each_once(drawn: Drawn) -> None:
    (drawn.share.root / LOG).mkdir(parents=True)
    run_one(drawn)
    end(drawn)
    (drawn.share.root / LOG).rmdir()
    drawn.pass_time(30.0)
    assert [line["seq"] for line in lines(drawn)] == [2, 3, 4, 5, 6, 7]
    assert drawn.read(f"{FOLDER}/RUN_SUMMARY.json")["event_counts"]["task_succeeded"] == 1


def test_a_batch_s_log_that_takes_no_line_does_not_hold_up_the_log_of_decisions(drawn: Drawn) -> None:
    (drawn.share.root / LOG).mkdir(parents=True)
    run_one(drawn)
    drawn.pass_time(2.0)
    tell(drawn, "task.shell.started", TWO, attempt=1, worker="w7")
    drawn.world.put(raw_task(2, "leased", started=True, attempt=1, worker="w7"))
    drawn.pass_time(2.0)
    assert "w7" in (drawn.share.root / layout.DECISIONS_LOG).read_text()
    drawn.pass_time(30.0)
    assert drawn.mirror._drawing.not_before == 0.0, "the share takes everything else"


def test_lines_that_wait_are_bounded() -> None:
    file = Appending("seq", 100)
    for seq in range(250):
        file.add(seq, seq, b"%d\n" % seq)
    data, count = file.some()
    assert (count, data.split()[0], file.untold()) == (100, b"150", 150)
    assert not file.knows(149) and file.knows(150)


def test_batches_whose_end_waits_and_files_that_are_remembered_are_bounded() -> None:
    logs = BatchLogs()
    for n in range(MAX_ENDS + 5):
        logs.batch(Event(n + 1, "batch.plan.complete", None, f"b{n}", {}, at=AT))
    assert len(logs.ends) == MAX_ENDS
    assert logs.untold() == 6
    for n in range(MAX_FILES + 5):
        logs.end(
            Event(n + 1, "batch.plan.complete", None, "b", {}, at=AT), {"id": "b", "created_at": AT}, f"f{n}"
        )
        logs.stands(f"f{n}/logs/batch_events.jsonl", b"")
    while logs.waiting():
        ops, counts = logs.ops()
        assert logs.done(ops, counts, [{"ok": True, "size": 1}] * len(ops))
    assert len(logs._files) == MAX_FILES


# -- summaries -----------------------------------------------------------------------------------------------


def test_a_batch_that_has_ended_has_its_summaries(drawn: Drawn) -> None:
    run_one(drawn)
    made = drawn.share.root / FOLDER / "output"
    made.mkdir(parents=True)
    (made / "report.md").write_text("# All is well\n")
    (made / "x.json").write_text('{"b": 1, "a": [2]}')
    (made.parent / "pic.png").write_bytes(b"\x89PNG")
    end(drawn)
    found = drawn.read(f"{FOLDER}/RUN_SUMMARY.json")
    assert (found["batch_id"], found["plan_name"], found["status"]) == (BATCH, "census", "complete")
    assert found["history_dir"] == f"/s/plans/census/batches/{BATCH}"
    assert found["event_counts"] == {
        "batch_completed": 1, "task_released": 1, "task_retried": 1, "task_started": 2, "task_succeeded": 1,
    }  # fmt: skip
    assert found["live_counts"] == {"done": 1}
    assert found["artifact_counts"] == {".": 1, "output": 2, "logs": 1, "total": 3}
    assert found["artifact_presence"] == {"output": True, "results": False, "logs": True}
    assert "failure" not in found
    first, second, third = found["important_artifacts"]
    assert (first["path"], first["kind"], first["excerpt"]) == ("output/report.md", "text", "# All is well\n")
    assert second["keys"] == ["b", "a"]
    assert (third["path"], third["kind"], "excerpt" in third) == ("pic.png", "image", False)
    text = (drawn.share.root / FOLDER / "RUN_SUMMARY.md").read_text()
    assert text.startswith("# census: complete\n")
    assert "`output/report.md` (14 bytes)" in text
    meta, stats = drawn.read(f"{FOLDER}/batch_meta.json"), drawn.read(f"{FOLDER}/execution_stats.json")
    assert (meta["total_tasks"], meta["priority"], meta["preemptible"]) == (1, "normal", False)
    assert stats["outcome"] == {"target": 1, "accepted": 1, "rejected": 0, "status": "complete"}
    assert stats["overall"]["total_tasks"] == 1
    for name in NAMES:
        assert (drawn.share.root / FOLDER / name).stat().st_mtime == AT + 9


def test_the_summary_of_a_failed_batch_names_the_task_and_why(drawn: Drawn) -> None:
    drawn.world.put(raw_task(2, "dead", attempt=3, worker="w", error="exit 3: \x1b[31moh", ended_at=AT + 3))
    tell(drawn, "task.shell.dead", TWO, attempt=3, error="exit 3")
    end(drawn, "failed", dead=1, skipped=4)
    found = drawn.read(f"{FOLDER}/RUN_SUMMARY.json")
    assert found["status"] == "failed"
    assert (found["failure"]["source_task"], found["failure"]["attempts"]) == ("t2", 3)
    text = (drawn.share.root / FOLDER / "RUN_SUMMARY.md").read_text()
    assert "t2: exit 3: \\x1b[31moh" in text
    assert lines(drawn)[-1]["event"] == "batch_aborted"


def test_a_batch_that_runs_again_gets_a_new_summary_at_its_new_end(drawn: Drawn) -> None:
    end(drawn, "failed", dead=1)
    drawn.world.batches[:] = [raw_batch(state="running")]
    tell(drawn, "batch.plan.running", None)
    drawn.pass_time(2.0)
    end(drawn, "complete", done=1)
    assert drawn.read(f"{FOLDER}/RUN_SUMMARY.json")["status"] == "complete"
    assert not list((drawn.share.root / FOLDER).glob("*conflict*"))
    assert [line["event"] for line in lines(drawn)] == ["batch_aborted", "batch_completed"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_of_a_plan_s_own_stays_and_one_that_is_removed_comes(drawn: Drawn, name: str) -> None:
    run_one(drawn)
    own = drawn.share.root / FOLDER / name
    own.write_text("its own")
    end(drawn)
    drawn.pass_time(30.0)
    assert own.read_text() == "its own"
    assert not list((drawn.share.root / FOLDER).glob("*conflict*"))
    own.unlink()
    drawn.pass_time(30.0)
    assert "census" in own.read_text() or BATCH in own.read_text()


def test_without_a_folder_there_is_nothing_to_write(share: Share, tmp_path: Path) -> None:
    made = Drawn(share, tmp_path)
    made.world.batches[:] = [raw_batch(plan=None, spec=None, kind="client")]
    made.pass_time(1.0)
    run_one(made)
    assert made.files(layout.COMPLETE) == [f"{ONE}.json"]
    assert sorted(share.root.rglob("*.jsonl")) == []


def test_names_of_events_that_somebody_makes_up_are_bounded() -> None:
    events: dict[str, int] = {}
    count_events(b"".join(b'{"event": "made up %d"}\n' % n for n in range(5000)), events)
    assert len(events) == MAX_KEYS + 1 and sum(events.values()) == 5000


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_events_are_counted_in_pieces_of_any_size(size: int) -> None:
    data = b'{"event": "task_started", "x": 1}\nrubbish\n{"event": "task_started"}\n{"event": "half'
    events: dict[str, int] = {}
    carry = b""
    for i in range(0, len(data), size):
        carry = count_events(data[i : i + size], events, carry)
    assert events == {"task_started": 2}
    assert carry == b'{"event": "half'


def test_the_log_of_decisions_has_a_line_for_each_event_still(drawn: Drawn) -> None:
    run_one(drawn)
    said = [json.loads(line) for line in (drawn.share.root / layout.DECISIONS_LOG).read_text().splitlines()]
    assert [line["type"] for line in said][-2:] == ["SHELL_EXECUTE", "SHELL_COMPLETE"]
