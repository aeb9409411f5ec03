"""The earlier system's scripts of the Pi, naive as they were, over a folder that the mirror has drawn."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import worlds
from folders import Share
from pi import (
    BrainTail,
    CompleteTail,
    Dashboard,
    Review,
    audit_decisions,
    audit_evaluations,
    export,
    status,
    status_task,
    status_tasks,
    submit,
    watch_once,
)
from worlds import BATCH, Drawn, raw_batch, raw_task

from rigbus.bridge.folder.contract import oldconfig
from rigbus.bus.states import STATE_NAMES
from rigbus.bus.wire import pack

CARD = {"index": 1, "temperature_c": 61.0, "utilization_pct": 87.0, "power_w": 90.0, "vram_used_mb": 5120}
PAIR = {**CARD, "index": 0, "cards": [{**CARD, "index": 0}, {**CARD, "index": 3, "throttle": ["thermal"]}]}
EARLIER = [
    {"n": 1, "worker": "w1", "started_at": 0.0, "ended_at": 0.0, "class": "task", "error": "exit 1"},
    {
        "n": 2,
        "worker": "w2",
        "started_at": 0.0,
        "ended_at": 0.0,
        "class": "infra",
        "error": "its worker fell silent",
    },
]
EVALUATION = {
    "attempt": 1, "verdict": "reject", "score": 2, "feedback": "shorter", "issues": ["long"], "model": "judge",
    "sample": {"prompt": "name a bird", "context": "", "response": "a dog", "model": "w"},
}  # fmt: skip


@pytest.fixture(autouse=True)
def today(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The readers go by the clock of the machine that they run on: the mirror's world is now, in UTC."""
    monkeypatch.setattr(worlds, "AT", float(int(time.time())) - 1010)
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def tasks() -> list[dict[str, Any]]:
    """A task in each state, of each kind."""
    at = worlds.AT
    made = []
    for state in STATE_NAMES:
        for kind in ("shell", "generate", "decide", "load_llm", "expand", "join", "custom"):
            ended = state in ("done", "dead", "cancelled", "expired", "skipped")
            meta: dict[str, Any] = {
                "executor": "brain" if kind == "decide" else "worker",
                "depends_on": ["scan"],
            }
            meta |= {"prompt": "name a bird " * 20} if kind in ("generate", "decide") else {"command": "true"}
            row = raw_task(len(made) + 1, state, type=kind, meta=meta, key=f"{kind}_{state}", created_at=at)
            row |= {
                "started": state == "leased",
                "attempt": int(state not in ("waiting", "ready", "skipped")),
            }
            row |= {"worker": "w1", "started_at": at + 1, "ended_at": at + 2 if ended else 0.0}
            row["error"] = "exit 3: oh" if state == "dead" else None
            made.append(row)
    return made


@pytest.fixture
def drawn(share: Share, tmp_path: Path) -> Drawn:
    (share.root / "gpus").mkdir()
    (share.root / "cpus").mkdir()
    made = Drawn(share, tmp_path)
    made.world.put(*tasks())
    made.world.results |= {
        row["id"]: pack({"text": "a robin", "model": "m", "usage": {"completion_tokens": 3}})
        for row in made.world.tasks.values()
        if row["type"] == "generate"
    }
    made.world.batches[0]["spec"]["config"] = {"LIMIT": 3}
    made.world.workers = [
        {"id": "w1", "state": "busy", "classes": ["cpu"], "needs": []},
        {"id": "w2", "state": "idle", "classes": ["cpu"], "needs": []},
        {"id": "brain-model", "state": "idle", "classes": ["llm"], "needs": ["role:brain"]},
    ]
    made.beats = [
        (
            "w1",
            {"state": "busy", "pid": 7, "host": "rig", "gpu": CARD, "running": [{"id": "x", "name": "one"}]},
        ),
        ("w2", {"state": "idle", "pid": 8, "host": "rig", "running": []}),
        (
            "brain-model",
            {"state": "idle", "pid": 9, "host": "rig", "gpu": PAIR, "model": "judge-14b", "running": []},
        ),
    ]
    made.pass_time(2.0)
    return made


@pytest.fixture
def config(drawn: Drawn) -> Path:
    return drawn.share.root / "config.json"


def tell(drawn: Drawn, topic: str, id_: str | None, **data: Any) -> None:
    drawn.mirror.event(drawn.world.happen(topic, id_, **data))
    drawn.pass_time(1.0)


# -- status, watch -------------------------------------------------------------------------------------------


def test_status_shows_brain_workers_and_lanes(config: Path) -> None:
    assert status(config) == [
        "Brain: judge-14b on GPUs [0, 3]",
        "  w1:  (GPU 1, port 0)",
        "  w2:  (GPU -1, port 0)",
        "queue: 7",
        "processing: 14",
        "complete: 7",
        "failed: 35",
    ]


def test_status_shows_every_task_and_one_by_part_of_its_id(config: Path) -> None:
    lines = status_tasks(config)
    assert len(lines) == 63
    assert any(line.startswith("complete 00000000 generate w1 ") and "name a bird" in line for line in lines)
    assert '"name": "shell_done"' in (status_task(config, raw_task(36)["id"][:36]) or "")
    assert status_task(config, "no such id") is None


def test_watch_shows_what_failed_and_why(config: Path) -> None:
    lines = watch_once(config)
    assert any("failed: exit 3: oh" in line for line in lines if line.startswith("failed "))
    assert any(" ok a robin" in line for line in lines if line.startswith("complete "))
    assert not any("unknown" in line for line in lines)


def test_watch_tells_of_each_completed_task_once(drawn: Drawn, config: Path) -> None:
    tail = CompleteTail(config)
    assert tail.look() == []
    row = raw_task(8, "done", type="shell", attempt=1, ended_at=worlds.AT + 5)
    drawn.world.put(row)
    tell(drawn, "task.shell.done", row["id"], attempt=1)
    (line,) = tail.look()
    assert line.startswith("00000000 shell")
    assert tail.look() == []


def test_watch_follows_the_brain_through_one_descriptor(drawn: Drawn, config: Path) -> None:
    tail = BrainTail(config)
    id_ = raw_task(1)["id"]
    tell(drawn, "task.shell.started", id_, worker="w1", attempt=1)
    tell(drawn, "task.shell.ending", id_, worker="w1", attempt=1, reason="cancelled by ann")
    tell(drawn, "task.decide.done", id_, worker="w1", attempt=1)
    tell(drawn, "worker.w1.left", None, why="silent for 30 s")
    tell(drawn, "worker.w2.left", None, why="closed")
    tell(drawn, "worker.w2.quarantined", None, why="three crashes")
    tell(drawn, "task.unload_llm.done", id_, attempt=1)
    tell(drawn, "task.load_llm.ready", id_, created=True)
    tell(drawn, "batch.plan.complete", None, name="census")
    said = tail.look()
    tail.close()
    words = [text.split("[")[1].split("]")[0] for _, text in said]
    assert words == [
        *("SHELL_EXECUTE", "ABORT_SIGNAL", "DECIDE", "WORKER_MISSING", "WORKER_STOP", "GPU_UNHEALTHY"),
        *("MODEL_UNLOADED", "RESOURCE_TASK", "BATCH_COMPLETE"),
    ]
    assert [color for color, _ in said][-1] == "green"
    assert "    worker: w1" in said[0][1] and "one on w1: cancelled by ann" in said[1][1]
    assert all(text[2] == text[5] == ":" and text[8] == " " for _, text in said), "hh:mm:ss"
    assert len(audit_decisions(config)) == len(said)


# -- audit, review -------------------------------------------------------------------------------------------


def judge(drawn: Drawn, attempt: int) -> None:
    id_ = raw_task(2)["id"]
    drawn.world.evaluations[id_] = [EVALUATION | {"attempt": n} for n in range(1, attempt + 1)]
    tell(drawn, "task.generate.rework", id_, attempt=attempt, worker="w1", evaluation={"score": 2})


def test_audit_and_review_see_what_was_judged_and_ratings_come_back(drawn: Drawn, config: Path) -> None:
    judge(drawn, 1)
    assert audit_evaluations(config) == ["- **... w1: name a bird -> a dog", "  shorter long"]
    review = Review(config)
    (line,) = review.unrated()
    assert "worker_evaluation" in line and "a dog" in line
    id_ = line.split()[0]
    judge(drawn, 2)  # while the person thinks
    review.rate(id_, 1, "no bird", "a robin")
    review.save()
    assert len(Review(config).samples) == 1, "the race of the earlier scripts: the second line is lost"
    drawn.pass_time(15.0)
    assert [s["human_rating"] for s in Review(config).samples] == [1, None]
    assert export(config) == (0, 1)
    (drawn.share.root / "logs/training_samples.jsonl").unlink()
    drawn.pass_time(15.0)
    first, second = Review(config).samples
    assert (first["human_rating"], first["human_feedback"], first["preferred_response"]) == (
        1,
        "no bird",
        "a robin",
    )
    assert second["human_rating"] is None


# -- the dashboard -------------------------------------------------------------------------------------------


def test_the_dashboard_shows_batches_brain_and_workers(drawn: Drawn, config: Path) -> None:
    board = Dashboard(config)
    (line,) = board.batches().values()
    assert line.startswith("census 1 tasks since ") and "['LIMIT']" in line
    brain = board.brain()
    assert (brain["model"], brain["state"]) == ("judge-14b", "ok")
    assert brain["cards"] == {0: (61.0, 87.0, 5120), 3: (61.0, 87.0, 5120)}
    workers = board.workers()
    assert workers["w1"].startswith("running rig cold 61.0 °C") and workers["w1"].endswith("one")
    assert workers["w2"].startswith("idle rig")
    assert board.missing() == []
    shutil.rmtree(drawn.share.root / "gpus/gpu_1")
    assert board.missing() == ["w1"]
    drawn.pass_time(15.0)
    assert board.missing() == [], "drawn again"


def test_the_dashboard_has_an_error_for_each_failure_and_the_chain_of_a_batch(config: Path) -> None:
    board = Dashboard(config)
    failures = board.failures()
    assert len(failures) == 35
    assert all(failures.values())
    assert len(board.chain(BATCH)) == 70
    assert "shell_done <- scan (worker, cpu)" in board.chain(BATCH)


def test_the_dashboard_shows_a_batch_that_has_ended(drawn: Drawn, config: Path) -> None:
    at = worlds.AT
    counts = {"done": 3, "dead": 1}
    drawn.world.batches[:] = [
        raw_batch(state="failed", created_at=at, ended_at=at + 90, total=4, tasks=counts)
    ]
    tell(drawn, "batch.plan.failed", None, name="census")
    drawn.pass_time(4.0)
    assert Dashboard(config).ended("census", BATCH) == "failed: 3 of 4 (1 rejected), 4 in 0:01:30"
    assert Dashboard(config).batches() == {}


def test_without_the_folders_of_the_later_generation_nothing_is_drawn_there(
    share: Share, tmp_path: Path
) -> None:
    made = Drawn(share, tmp_path)
    made.world.workers = [{"id": "w1", "state": "idle", "classes": []}]
    made.beats = [("w1", {"state": "idle", "gpu": CARD})]
    made.pass_time(2.0)
    assert (share.root / "workers/w1/heartbeat.json").exists()
    assert not (share.root / "gpus").exists() and not (share.root / "cpus").exists()
    assert "gpus" not in made.read("config.json")


# -- what was tried ------------------------------------------------------------------------------------------


def test_all_workers_and_times_of_earlier_attempts_are_in_the_task_s_file(drawn: Drawn) -> None:
    at = worlds.AT
    past = [one | {"started_at": at + i, "ended_at": at + i + 0.5} for i, one in enumerate(EARLIER)]
    row = raw_task(91, "leased", started=True, attempt=3, worker="w1", started_at=at + 9, earlier=past)
    drawn.world.put(row)
    tell(drawn, "task.shell.started", row["id"], attempt=3, worker="w1")
    found = drawn.read(f"tasks/processing/{row['id']}.json")
    assert (found["attempts"], found["retry_count"], found["workers_attempted"]) == (3, 2, ["w1", "w2"])
    times = [found[name] for name in ("first_attempted_at", "requeued_at", "last_attempt_at", "started_at")]
    assert times == sorted(times) and times[0] < times[1] < times[2] == times[3]
    assert found["requeue_reason"] == "its worker fell silent"
    drawn.world.put(row | {"state": "ready", "started": False, "attempt": 2})
    tell(drawn, "task.shell.retry", row["id"], attempt=2)
    again = drawn.read(f"tasks/queue/{row['id']}.json")
    assert again["requeue_reason"] == "its worker fell silent"
    assert again["workers_attempted"] == ["w1", "w2"]
    assert not {"assigned_to", "started_at", "result"} & again.keys()
    asked = [ask.header for ask in drawn.world.asked if ask.header.get("what") == "rows"]
    assert all(header["history"] for header in asked if header["ids"] == [row["id"]])


# -- config.json ---------------------------------------------------------------------------------------------


def test_somebody_s_own_config_stays_and_ours_comes_when_it_goes(share: Share, tmp_path: Path) -> None:
    own = share.root / "config.json"
    own.write_text('{"shared_path": "/their/own"}')
    made = Drawn(share, tmp_path)
    made.world.workers = [{"id": "w1", "state": "idle", "classes": []}]
    made.pass_time(30.0)
    assert own.read_text() == '{"shared_path": "/their/own"}'
    assert made.read("agents/config.json")["workers"][0]["name"] == "w1"
    own.write_text('{"shared_path": "/their/other"}')
    made.pass_time(30.0)
    assert own.read_text() == '{"shared_path": "/their/other"}'
    assert not list(share.root.glob("*conflict*"))
    own.unlink()
    made.pass_time(30.0)
    assert own.read_text() == (share.root / "agents/config.json").read_text()


def test_an_unchanged_config_is_not_written_again(drawn: Drawn, config: Path) -> None:
    before = (config.stat().st_ino, config.read_bytes())
    drawn.pass_time(60.0)
    assert (config.stat().st_ino, config.read_bytes()) == before


@pytest.mark.parametrize(
    ("path_map", "wanted"),
    [
        ([], "/srv/share"),
        (["/mnt/pi=/srv/share"], "/mnt/pi"),
        (["/mnt/pi/plans=/srv/share/plans"], "/mnt/pi"),
        (["/mnt/pi/plans/=plans/"], "/mnt/pi"),
        (["/home/pi/work=plans/work"], "/srv/share"),
        (["/home/pi/census=plans/other", "/media/x/plans/a=plans/a"], "/media/x"),
    ],
)
def test_the_share_s_path_is_the_pi_s_where_the_setting_tells_it(path_map: list[str], wanted: str) -> None:
    assert oldconfig.shared_path("/srv/share", path_map) == wanted


# -- the readers are as naive as they were --------------------------------------------------------------------


def edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


@pytest.mark.parametrize(
    ("file", "change", "reader"),
    [
        ("task", lambda f: f.update(prompt=None), status_tasks),
        ("task", lambda f: f.pop("task_id"), status_tasks),
        ("task", lambda f: f.update(created_at="2026-02-08T18:46:10+00:00"), status_tasks),
        ("task", lambda f: f["result"].update(output=None), watch_once),
        ("config", lambda f: f["workers"][0].pop("port"), status),
        ("config", lambda f: f["brain"].pop("model"), status),
        ("config", lambda f: f.update(shared_path="share"), lambda c: bool(status_tasks(c)) or 1 / 0),
        ("brain", lambda f: f.update(brain_gpus=[f["brain_gpus"]]), lambda c: Dashboard(c).brain()),
        ("brain", lambda f: f.update(last_updated="2026-02-08T18:46:10Z"), lambda c: Dashboard(c).brain()),
        ("task", lambda f: f.update(depends_on=None), lambda c: Dashboard(c).chain(BATCH)),
    ],
)
def test_what_the_contract_forbids_makes_a_reader_stumble(
    drawn: Drawn, config: Path, file: str, change: Any, reader: Callable[[Path], Any]
) -> None:
    path = {
        "task": drawn.share.root / f"tasks/complete/{raw_task(36)['id']}.json",
        "config": config,
        "brain": drawn.share.root / "heartbeats/brain.json",
    }[file]
    reader(config)
    edit(path, change)
    with pytest.raises((TypeError, KeyError, AttributeError, ZeroDivisionError)):
        reader(config)


def test_an_order_of_a_plan_is_a_file_in_the_queue(drawn: Drawn, tmp_path: Path, config: Path) -> None:
    plan = drawn.share.root / "plans/census"
    plan.mkdir(parents=True, exist_ok=True)
    (plan / "plan.md").write_text("# Plan: p\n")
    id_ = submit(drawn.share.root, plan, {"LIMIT": 3})
    assert f"queue {id_[:8]} execute_plan - 0m" in "\n".join(status_tasks(config))
