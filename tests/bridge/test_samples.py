"""``training_samples.jsonl``: the fields that the earlier scripts read, each judgement once, a person's ratings kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from folders import UUID, Share
from worlds import AT, BATCH, Drawn, event, raw_task

from rigbus.bridge.folder import layout, rows
from rigbus.bridge.folder.decisions import task_decision
from rigbus.bridge.folder.samples import MAX_APPEND, MAX_LINES, Samples, sample_id

ID = raw_task(1)["id"]
EVALUATION = {
    "attempt": 1, "verdict": "reject", "at": AT, "note": "judged 2 of 5: shorter", "score": 2, "feedback": "shorter",
    "issues": ["long"], "model": "judge-7b", "tokens": 900, "seconds": 3.5,
    "sample": {"prompt": "sum it up", "context": "goal", "response": "words", "model": "worker-7b"},
}  # fmt: skip


def step(seq: int = 3, what: str = "rework", attempt: int = 1, **data: Any) -> rows.Transition:
    made = rows.transition(
        event(seq, f"task.shell.{what}", attempt=attempt, worker="w", evaluation={"score": 2}, **data)
    )
    assert made is not None
    return made


def lines(made: Samples) -> list[dict[str, Any]]:
    return [json.loads(line) for line in made.some()[0].splitlines() if line]


def test_a_line_has_the_fields_of_the_contract() -> None:
    samples = Samples()
    samples.judged(UUID, BATCH, step(), EVALUATION)
    (line,) = lines(samples)
    assert line == {
        "id": f"{UUID}.1",
        "timestamp": line["timestamp"],
        "sample_type": "worker_evaluation",
        "model": "worker-7b",
        "prompt": "sum it up",
        "context": "goal",
        "response": "words",
        "outcome": "bad",
        "human_rating": None,
        "metadata": {
            "brain_rating": 2, "brain_feedback": "shorter", "issues": ["long"], "worker": "w", "task": "one",
            "task_id": UUID, "batch_id": BATCH, "attempt": 1, "judge_model": "judge-7b", "tokens": 900, "seconds": 3.5,
        },
    }  # fmt: skip
    assert "+" not in line["timestamp"] and not line["timestamp"].endswith("Z")


@pytest.mark.parametrize("sample", [None, {}, {"prompt": None, "response": 7}, "x"])
def test_what_is_missing_is_empty_text_never_null(sample: Any) -> None:
    samples = Samples()
    samples.judged(UUID, BATCH, step(), {"verdict": "accept", "score": 4, "sample": sample})
    (line,) = lines(samples)
    assert [line[k] for k in ("model", "prompt", "context", "response")] == [""] * 4
    assert line["outcome"] == "good"
    assert None not in line["metadata"].values()


def test_an_unjudged_result_is_no_sample() -> None:
    unjudged = rows.transition(event(1, "task.shell.done", note="accepted unjudged: no model is configured"))
    assert unjudged is not None
    assert not unjudged.judged
    assert step().judged


def test_what_stands_is_not_told_again_and_a_torn_line_is_closed() -> None:
    samples = Samples()
    for attempt in (1, 2):
        samples.judged(UUID, BATCH, step(attempt=attempt), EVALUATION)
    assert samples.untold() == 3
    assert samples.in_doubt
    whole = json.dumps({"id": sample_id(UUID, 1), "human_rating": 5}).encode()
    samples.stands(b'nonsense\n[1]\n{"id": 7}\n' + whole + b'\n{"id": "to')
    assert not samples.in_doubt
    data, count = samples.some()
    assert (data[:1], count) == (b"\n", 1)
    assert json.loads(data)["id"] == sample_id(UUID, 2)
    samples.written(1)
    samples.judged(UUID, BATCH, step(attempt=1), EVALUATION)
    assert not samples.waiting()
    assert samples.untold() is None


def test_an_append_is_bounded_and_so_is_what_waits() -> None:
    samples = Samples()
    long = EVALUATION | {"sample": {"response": "x" * 20_000}}
    for n in range(MAX_LINES + 5):
        samples.judged(UUID, BATCH, step(attempt=n), long if n > MAX_LINES - 20 else EVALUATION)
    first, count = samples.some()
    assert len(first) <= MAX_APPEND
    left = 0
    while samples.waiting():
        data, count = samples.some()
        assert len(data) <= MAX_APPEND and count
        samples.written(count)
        left += count
    assert left == MAX_LINES


# -- in the share --------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(share: Share, tmp_path: Path) -> Drawn:
    made = Drawn(share, tmp_path)
    made.world.evaluations[ID] = [EVALUATION, EVALUATION | {"attempt": 2, "verdict": "accept", "score": 4}]
    made.world.put(raw_task(1, "ready", attempt=1))
    made.pass_time(1.0)
    return made


def told(drawn: Drawn) -> list[str]:
    file = drawn.share.root / layout.TRAINING_SAMPLES
    return [json.loads(line)["id"] for line in file.read_text().splitlines()] if file.exists() else []


def rework(drawn: Drawn) -> None:
    data = {"attempt": 1, "worker": "w", "note": "judged 2 of 5: shorter", "evaluation": {"score": 2}}
    drawn.mirror.event(drawn.world.happen("task.shell.rework", ID, **data))


def accept(drawn: Drawn) -> None:
    drawn.world.put(raw_task(1, "done", attempt=2, ended_at=AT + 9, evaluation=EVALUATION | {"score": 4}))
    data = {"attempt": 2, "worker": "w", "note": "judged 4 of 5", "evaluation": {"score": 4}}
    drawn.mirror.event(drawn.world.happen("task.shell.done", ID, **data))


def test_each_judgement_is_a_line_and_the_tasks_file_shows_the_last(drawn: Drawn) -> None:
    rework(drawn)
    drawn.pass_time(1.0)
    assert told(drawn) == [f"{ID}.1"]
    accept(drawn)
    drawn.pass_time(1.0)
    assert told(drawn) == [f"{ID}.1", f"{ID}.2"]
    shown = drawn.read(f"{layout.COMPLETE}/{ID}.json")["evaluation"]
    assert (shown["score"], shown["model"], shown["tokens"]) == (4, "judge-7b", 900)
    assert "sample" not in shown
    log = [json.loads(s) for s in (drawn.share.root / layout.DECISIONS_LOG).read_text().splitlines()]
    assert [(s["type"], s["details"].get("score")) for s in log[-2:]] == [("RETRY", 2), ("SHELL_COMPLETE", 4)]
    assert "judged 2 of 5: shorter" in log[-2]["message"]
    assert "judged 4 of 5" in log[-1]["message"]


def test_a_new_bridge_goes_on_and_repeats_nothing(share: Share, tmp_path: Path, drawn: Drawn) -> None:
    rework(drawn)
    drawn.turn()
    drawn.turn()  # the line stands, but nobody has noted so
    assert told(drawn) == [f"{ID}.1"]
    (drawn.paths.state / "mirror.json").write_text(json.dumps({"schema": "x", "seq": 0, "batches": {}}))
    again = Drawn(share, tmp_path)
    again.world = drawn.world
    accept(again)
    again.pass_time(2.0)
    assert told(again) == [f"{ID}.1", f"{ID}.2"]


def test_a_persons_rating_survives_the_next_line(drawn: Drawn) -> None:
    rework(drawn)
    drawn.pass_time(1.0)
    file = drawn.share.root / layout.TRAINING_SAMPLES
    rated = json.loads(file.read_text()) | {"human_rating": 4, "human_feedback": "not so bad"}
    new = file.with_suffix(".new")
    new.write_text(json.dumps(rated) + "\n")
    new.replace(file)
    accept(drawn)
    drawn.pass_time(1.0)
    assert told(drawn) == [f"{ID}.1", f"{ID}.2"]
    assert json.loads(file.read_text().splitlines()[0])["human_rating"] == 4


def test_a_file_that_takes_no_line_is_tried_again_and_gets_each_once(drawn: Drawn) -> None:
    file = drawn.share.root / layout.TRAINING_SAMPLES
    file.mkdir(parents=True)
    rework(drawn)
    drawn.pass_time(3.0)
    file.rmdir()
    accept(drawn)
    drawn.pass_time(30.0)
    assert told(drawn) == [f"{ID}.1", f"{ID}.2"]


def test_a_judge_has_no_file_of_its_own(drawn: Drawn) -> None:
    judge = raw_task(2, "leased", key="t1:judge.1", type="generate", aside=True, started=True, started_at=AT)
    drawn.world.put(judge)
    drawn.mirror.share_is_back()  # everything is compared anew
    drawn.pass_time(2.0)
    assert drawn.files(layout.PROCESSING) == []
    assert drawn.files(layout.QUEUE) == [f"{ID}.json"]


def test_what_nobody_judged_is_told_in_the_log() -> None:
    row = {
        "id": UUID,
        "batch": BATCH,
        "key": "one",
        "type": "shell",
        "state": "done",
        "note": "accepted unjudged: x",
    }
    decision = task_decision({"state": "review", "started": False}, row)
    assert decision is not None
    assert decision.message == "one, accepted unjudged: x"
