"""``training_samples.jsonl``: the fields that the earlier scripts read, each judgement once, a person's ratings kept."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from folders import UUID, Share
from worlds import AT, BATCH, Drawn, event, raw_task

from rigbus.bridge.folder.contract import layout, rows
from rigbus.bridge.folder.logs import sampling
from rigbus.bridge.folder.logs.decisions import task_decision
from rigbus.bridge.folder.logs.samplebook import Rating, SampleBook
from rigbus.bridge.folder.logs.samples import MAX_LINES, Reading, Samples, sample_id
from rigbus.bridge.folder.logs.sampling import MAX_APPEND
from rigbus.bridge.folder.share.port import Fault

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
    made.keep()
    return [json.loads(line) for line in made.book.some(1 << 30)[0].splitlines()]


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
        "human_feedback": None,
        "preferred_response": None,
        "worker": "w",
        "task_type": "shell",
        "task_id": UUID,
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


def test_a_line_is_the_books_before_it_is_the_shares_and_only_once() -> None:
    samples = Samples()
    for attempt in (1, 2, 1):
        samples.judged(UUID, BATCH, step(attempt=attempt), EVALUATION)
    assert samples.untold() == 3
    samples.keep()
    assert samples.untold() is None
    samples.judged(UUID, BATCH, step(attempt=2), EVALUATION)
    samples.keep()
    data, ids = samples.book.some(1 << 20)
    assert ids == [sample_id(UUID, 1), sample_id(UUID, 2)]
    assert len(data.splitlines()) == 2
    samples.book.written(ids, (1, 2, 3))
    assert (samples.book.unwritten(), samples.book.signature()) == (0, (1, 2, 3))


def test_what_waits_for_the_book_is_bounded_and_so_is_an_append() -> None:
    samples = Samples()
    long = EVALUATION | {"sample": {"response": "x" * 20_000}}
    for n in range(MAX_LINES + 5):
        samples.judged(UUID, BATCH, step(attempt=n), long if n > MAX_LINES - 20 else EVALUATION)
    samples.keep()
    left = 0
    while samples.book.unwritten():
        data, ids = samples.book.some(MAX_APPEND)
        assert len(data) <= MAX_APPEND and ids
        samples.book.written(ids, None)
        left += len(ids)
    assert left == MAX_LINES


# -- reading the file ----------------------------------------------------------------------------------------

RATED = {"id": "a", "human_rating": 5, "human_feedback": "fine", "preferred_response": ""}


def read_in(data: bytes, size: int) -> tuple[Reading, list[tuple[str, bytes | None, Rating]]]:
    reading = Reading()
    found = [one for i in range(0, len(data), size) for one in reading.piece(data[i : i + size])]
    return reading, found + reading.end()


@pytest.mark.parametrize("size", [1, 7, 1 << 20])
def test_samples_are_found_between_rubbish_in_pieces_of_any_size(size: int) -> None:
    rubbish = [b"nonsense", b"[1]", b'{"id": 7}', b'{"x": 1}', b"\xff\xfe", b'{"id": "\\ud800"}', b"[" * 5000]
    data = b"\n".join([*rubbish, json.dumps(RATED).encode(), b"", b'{"id": "b", "sample_type": "worker_exec'])
    reading, found = read_in(data, size)
    assert found == [("a", None, Rating(5, "fine", None))]
    assert (reading.bad, reading.first_bad, reading.torn) == (len(rubbish) + 1, 1, True)


@pytest.mark.parametrize("value", [0, 6, True, "5", 4.5, [], {}])
def test_a_rating_that_is_none_is_not_taken_and_the_line_is_still_that_sample(value: Any) -> None:
    reading, found = read_in(json.dumps(RATED | {"human_rating": value}).encode() + b"\n", 100)
    assert (found, reading.odd, reading.bad) == ([("a", None, Rating())], 1, 0)


def test_an_endless_line_is_passed_over_in_little_memory() -> None:
    reading = Reading()
    for _ in range(40):
        assert reading.piece(b"x" * 100_000) == []
    assert reading.piece(b'"}\n' + json.dumps(RATED).encode() + b"\n")[0][0] == "a"
    assert (reading.bad, reading.first_bad) == (1, 1)


def test_what_a_person_said_is_kept_over_a_restart_and_silence_does_not_take_it_back(tmp_path: Path) -> None:
    book = SampleBook(tmp_path / "samples.db")
    book.keep([("a", b'{"id": "a"}\n')])
    assert book.saw([("a", None, Rating(4, "so so", None)), ("unknown", None, Rating(1))]) == 1
    book.close()
    again = SampleBook(tmp_path / "samples.db")
    assert again.saw([("a", None, Rating(None, None, "better"))]) == 1
    assert again.saw([("a", None, Rating()), ("a", None, Rating(4))]) == 0
    assert again.rating("a") == Rating(4, "so so", "better")
    assert json.loads(again.some(100)[0])["preferred_response"] == "better"
    again.close()


def test_a_damaged_book_is_put_aside_and_a_new_one_begun(tmp_path: Path) -> None:
    file = tmp_path / "samples.db"
    file.write_bytes(b"no database at all " * 100)
    book = SampleBook(file)
    book.keep([("a", b"{}\n")])
    assert book.unwritten() == 1
    assert (tmp_path / "samples.db.damaged").exists()
    book.close()


def read_all(book: SampleBook, lines: list[tuple[str, bytes]]) -> None:
    book.begin_reading()
    book.saw((id_, line, Rating(4)) for id_, line in lines)
    book.end_reading((1, 2, 3))


def test_old_lines_of_a_file_larger_than_the_book_push_out_nothing_newer() -> None:
    lines = [(f"old{n}", b"{}\n") for n in range(9)]
    book = SampleBook(max_rows=4)
    read_all(book, lines)
    assert [book.knows(id_) for id_, _ in lines] == [False] * 5 + [True] * 4, "of a new book: the newest"
    new = [(f"new{n}", b"{}\n") for n in range(3)]
    book.keep(new)
    read_all(book, [*lines, new[0]])
    assert all(book.knows(id_) for id_, _ in new) and book.rating("new0") == Rating(4)
    assert book.some(1000)[1] == ["new1", "new2"], "not in the file yet"


def test_the_book_forgets_the_oldest() -> None:
    book = SampleBook(max_rows=10)
    book.keep([(f"s{n}", b"{}\n") for n in range(25)])
    assert (book.unwritten(), book.knows("s14"), book.knows("s15")) == (10, False, True)


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
    again.pass_time(10.0)
    assert told(again) == [f"{ID}.1", f"{ID}.2"]


def rate(drawn: Drawn, **said: Any) -> None:
    """As review_training does it: all lines are read, and the whole file is written anew."""
    file = drawn.share.root / layout.TRAINING_SAMPLES
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0] |= said
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_persons_rating_survives_the_next_line_and_the_loss_of_the_file(drawn: Drawn) -> None:
    rework(drawn)
    drawn.pass_time(1.0)
    rate(drawn, human_rating=4, human_feedback="not so bad")
    accept(drawn)
    drawn.pass_time(15.0)
    assert told(drawn) == [f"{ID}.1", f"{ID}.2"]
    file = drawn.share.root / layout.TRAINING_SAMPLES
    assert json.loads(file.read_text().splitlines()[0])["human_rating"] == 4
    file.unlink()
    drawn.pass_time(15.0)
    assert told(drawn) == [f"{ID}.1", f"{ID}.2"]
    first = json.loads(file.read_text().splitlines()[0])
    assert (first["human_rating"], first["human_feedback"]) == (4, "not so bad")
    log = (drawn.share.root / layout.DECISIONS_LOG).read_text()
    assert "1 rated by people" in log
    assert "2 lines that were gone are written again" in log


def test_a_line_that_a_rewriting_has_lost_is_written_again_once(drawn: Drawn) -> None:
    rework(drawn)
    drawn.pass_time(1.0)
    file = drawn.share.root / layout.TRAINING_SAMPLES
    before = file.read_text()
    accept(drawn)
    drawn.pass_time(1.0)
    assert told(drawn) == [f"{ID}.1", f"{ID}.2"]
    foreign = json.dumps({"id": "theirs", "human_rating": None}) + "\n"
    file.write_text(before + foreign + '{"half')  # what it had read, and no end
    drawn.pass_time(15.0)
    assert [json.loads(s)["id"] for s in file.read_text().splitlines() if "half" not in s] == [
        f"{ID}.1",
        "theirs",
        f"{ID}.2",
    ]
    unchanged = file.read_text()
    drawn.pass_time(20.0)
    assert file.read_text() == unchanged
    assert (
        "1 lines are no samples (the first is line 3)"
        in (drawn.share.root / layout.DECISIONS_LOG).read_text()
    )


def test_a_file_that_is_being_rewritten_is_left_in_peace_until_it_rests(drawn: Drawn) -> None:
    rework(drawn)
    drawn.pass_time(1.0)
    file = drawn.share.root / layout.TRAINING_SAMPLES
    whole = file.read_text()
    for n in range(1, 20):  # a slow writer, for longer than the rest that is asked for
        file.write_text(whole[: n * 10])
        drawn.pass_time(1.0)
        assert file.read_text() == whole[: n * 10]
    file.write_text(whole)
    drawn.pass_time(15.0)
    assert file.read_text() == whole


def test_a_file_that_nobody_has_written_is_not_read_again(drawn: Drawn) -> None:
    rework(drawn)
    drawn.pass_time(1.0)
    read = []
    call = drawn.share.port.call

    def watching(kind: str, ops: Any, deadline_s: float = 10.0) -> Any:
        read.extend(op for op in ops if op["op"] == "read" and op["path"] == layout.TRAINING_SAMPLES)
        return call(kind, ops, deadline_s)

    drawn.share.port.call = watching  # type: ignore[method-assign]
    accept(drawn)
    drawn.pass_time(60.0)
    assert told(drawn) == [f"{ID}.1", f"{ID}.2"]
    assert read == []


def test_a_file_that_takes_no_line_is_tried_again_and_gets_each_once(drawn: Drawn) -> None:
    file = drawn.share.root / layout.TRAINING_SAMPLES
    file.mkdir(parents=True)
    rework(drawn)
    drawn.pass_time(3.0)
    file.rmdir()
    accept(drawn)
    drawn.pass_time(30.0)
    assert told(drawn) == [f"{ID}.1", f"{ID}.2"]


@pytest.mark.parametrize("kind", ["fifo", "link"])
def test_what_is_no_file_is_left_and_waited_for(drawn: Drawn, kind: str, tmp_path: Path) -> None:
    file = drawn.share.root / layout.TRAINING_SAMPLES
    target = tmp_path / "elsewhere"
    if kind == "fifo":
        os.mkfifo(file)
    else:
        target.write_text("somebody's")
        file.symlink_to(target)
    rework(drawn)
    drawn.pass_time(15.0)
    assert kind == "fifo" or target.read_text() == "somebody's"
    file.unlink()
    drawn.pass_time(30.0)
    assert told(drawn) == [f"{ID}.1"]


def test_a_file_that_changes_while_it_is_read_is_read_again_from_its_beginning(
    drawn: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    rework(drawn)
    drawn.pass_time(1.0)
    monkeypatch.setattr(sampling, "PIECE", 100)
    rate(drawn, human_rating=3)
    file = drawn.share.root / layout.TRAINING_SAMPLES
    pieces = 0
    call = drawn.share.port.call

    def writing(kind: str, ops: Any, deadline_s: float = 10.0) -> Any:
        nonlocal pieces
        if any(op["op"] == "read" and op["path"] == layout.TRAINING_SAMPLES for op in ops):
            pieces += 1
            if pieces == 3:  # a foreign line, and the rating is another one
                rate(drawn, human_rating=5)
                with file.open("a") as out:
                    out.write(json.dumps({"id": "theirs"}) + "\n")
        return call(kind, ops, deadline_s)

    drawn.share.port.call = writing  # type: ignore[method-assign]
    drawn.pass_time(40.0)
    assert pieces > 10
    assert told(drawn) == [f"{ID}.1", "theirs"]
    book = SampleBook(drawn.paths.state / "samples.db")
    assert book.rating(f"{ID}.1") == Rating(5)
    assert book.unwritten() == 0
    book.close()


def test_an_append_without_an_answer_is_looked_for_before_it_is_repeated(drawn: Drawn) -> None:
    call = drawn.share.port.call
    lost = []

    def losing(kind: str, ops: Any, deadline_s: float = 10.0) -> Any:
        reply = call(kind, ops, deadline_s)
        if not lost and any(op["op"] == "append" and op["path"] == layout.TRAINING_SAMPLES for op in ops):
            lost.append(ops)
            return replace(reply, results=[], fault=Fault("HUNG", "no answer"))
        return reply

    drawn.share.port.call = losing  # type: ignore[method-assign]
    rework(drawn)
    drawn.pass_time(3.0)
    assert lost
    accept(drawn)
    drawn.pass_time(30.0)
    assert told(drawn) == [f"{ID}.1", f"{ID}.2"]


def test_a_book_that_cannot_be_written_holds_nobody_up_and_loses_nothing(
    drawn: Drawn, share: Share, tmp_path: Path
) -> None:
    book = drawn.paths.state / "samples.db"
    for end in ("", "-wal", "-shm"):
        book.with_name(book.name + end).unlink(missing_ok=True)
    book.mkdir()
    again = Drawn(share, tmp_path)
    again.world = drawn.world
    again.pass_time(1.0)
    rework(again)
    accept(again)
    again.pass_time(3.0)
    assert again.files(layout.COMPLETE) == [f"{ID}.json"]
    assert told(again) == []
    said = json.loads((again.paths.state / "mirror.json").read_text())
    assert said["seq"] < 2, "a bridge that is killed now has to hear of both again"
    book.rmdir()
    again.pass_time(30.0)
    assert told(again) == [f"{ID}.1", f"{ID}.2"]


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
