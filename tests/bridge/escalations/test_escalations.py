"""Escalations in the share: evidence, pages for people, schemas; drawn again when somebody removes them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from escalated import World
from folders import Share
from helpers import wait_for
from worlds import Drawn

from rigbus.bridge.folder.contract.layout import FOLDERS
from rigbus.bridge.folder.escalations import files
from rigbus.bridge.folder.escalations.escalations import ARCHIVE_S, LOOK_S, Escalations, tail_of
from rigbus.bridge.folder.logs.decisions import escalation_decision
from rigbus.bridge.folder.loop.flows import Ask, Idle
from rigbus.bridge.folder.share.ops import write
from rigbus.bus.client.follow import Event
from rigbus.bus.core.escalations import Guards
from rigbus.bus.escalation import Escalation, answer_path
from rigbus.bus.telemetry import FOLDER as SCHEMAS
from rigbus.bus.wire import Verb


@pytest.fixture
def world(share: Share, tmp_path: Path) -> World:
    return World(share, tmp_path / "state")


def shown(world: World, id_: str = "") -> dict[str, Any]:
    """The file as the mirror is given it."""
    found: dict[str, Any] = json.loads(world.files[f"{files.FOLDER}/{id_ or world.rig.id}.json"].data)
    Escalation.model_validate(found)
    return found


# -- the file ------------------------------------------------------------------------------------------------


def test_the_file_has_the_earlier_systems_fields_and_ours(world: World) -> None:
    world.log("one", 1, "reading\nTraceback: \x1b[31mboom\x07\n")
    world.draw()
    found = shown(world)
    assert (found["status"], found["target"], found["source"]) == ("pending", "cloud_brain", "local_brain")
    assert found["recommended_action"] == "diagnose_and_resubmit_plan"
    assert (found["type"], found["cause"]) == ("execute_plan_failure", "repeated_failures")
    assert found["created_at"].startswith("2023-11-14T23:13:20") and "+" not in found["created_at"]
    task = found["source_task"]
    assert (task["name"], task["batch_id"], task["config"]) == ("one", world.rig.batch, {"WORD": "ho"})
    assert task["plan_path"] == world.spec["path"] == found["details"]["context"]["requested_plan_path"]
    (attempt,) = found["attempts"]
    assert (attempt["attempt"], attempt["worker"], attempt["error_class"]) == (1, "w1", "task")
    assert attempt["log_tail"] == ["reading", "Traceback: \\x1b[31mboom\\x07"]
    assert attempt["log"] == f"plans/p/batches/{world.rig.batch}/logs/one.1.log"
    assert found["actions"] == ["retry", "patch", "config", "abandon", "human"]
    assert found["answer_to"] == answer_path(world.rig.id) and found["answers_left"] == 8
    assert (found["plan"], found["plan_sha256"], found["revision"]) == ("p", world.spec["sha256"], 1)
    assert "ran one 1 time, last on w1" in found["tried"][0]


def test_evidence_stays_what_it_was_when_the_task_runs_again(world: World) -> None:
    world.log("one", 1, "first\n")
    world.draw()
    before = shown(world)
    world.rig.bridge.ask(Verb.REQUEUE, {"batch": world.rig.batch})
    world.rig.worker.fail(world.rig.worker.lease())
    world.log("one", 2, "second\n")
    world.begin()
    world.draw()
    assert shown(world) == before


def test_no_log_is_no_fault(world: World) -> None:
    world.draw()
    assert "log_tail" not in shown(world)["attempts"][0]


def test_its_state_is_drawn_with_each_event(world: World) -> None:
    flow = world.escalations.run()
    world.turn(flow)
    world.answer("retry", by="ann")
    world.turn()
    world.turn(flow)
    found = shown(world)
    assert (found["status"], found["answered_by"], found["actions"]) == ("applied", "ann", [])
    world.files.clear()
    world.turn(flow)
    assert not world.files  # nothing has changed


def test_an_event_that_comes_while_it_draws_is_not_missed(world: World) -> None:
    flow = world.escalations.run()
    pauses = []
    value: Any = None
    for _ in range(200):
        step = flow.send(value)
        if isinstance(step, Idle):
            pauses.append(step.seconds)
            value = None
            if len(pauses) == 2:
                break
            continue
        value = world.answer_to(step)
        if isinstance(step, Ask) and step.header.get("what") == "escalations" and not pauses:
            world.answer("abandon")
            world.turn()
            world.escalations.heard()
    assert pauses == [0.0, LOOK_S] and shown(world)["status"] == "closed"


def test_a_question_about_the_rig_has_no_batch(world: World) -> None:
    id_ = world.rig.raise_("w", rig=True, cause="workers_unhealthy")
    world.draw()
    found = shown(world, id_)
    assert found["actions"] == ["abandon", "human"] and "batch_id" not in found["source_task"]


def test_what_tells_of_a_record_goes_to_the_archive_with_its_batch(share: Share, tmp_path: Path) -> None:
    world = World(share, tmp_path / "state", Guards(per_day=0))
    forgotten: list[str] = []
    world.escalations = Escalations(
        world.share.port,
        world.paths,
        world.clock,
        lambda file: share.do(write(file.path, file.data)),
        forgotten.append,
    )
    flow = world.escalations.run()
    world.turn(flow)
    id_ = world.rig.id
    mine = {"notes.txt", f"{id_}.answer.json", "20260101_000000_00000000.answer.json"}
    for name in mine:
        (world.folder / name).write_text("{")
    (world.folder / f"{id_}.answer.receipt.json").write_text("{}")
    world.now += ARCHIVE_S
    world.turn(flow)
    assert {f"{id_}.json", f"HUMAN_{id_}.md"} < set(os.listdir(world.folder)), "the rig knows it"
    world.rig.bridge.ask(Verb.CONTROL, {"action": "forget", "batch": world.rig.batch})
    world.now += ARCHIVE_S
    world.turn(flow)
    gone = {f"{id_}.json", f"HUMAN_{id_}.md", f"{id_}.answer.json", f"{id_}.answer.receipt.json"}
    assert set(os.listdir(world.folder / "archive")) == gone
    assert set(os.listdir(world.folder)) == {"archive", *(mine - gone)}
    assert forgotten == [f"brain/escalations/{id_}.json"], "else the mirror draws it again"
    world.turn(flow)
    assert set(os.listdir(world.folder)) == {"archive", *(mine - gone)}, "its page came back"


@pytest.mark.parametrize("kind", ["fifo", "link", "folder", "none"])
def test_what_stands_in_the_place_of_a_log_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "link":
        (tmp_path / "secret").write_text("x")
        path.symlink_to(tmp_path / "secret")
    elif kind == "folder":
        path.mkdir()
    assert tail_of(path) is None


def test_of_a_long_log_the_last_lines_are_kept_and_no_half_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"".join(b"line %d %s\n" % (n, b"\xff" * 40) for n in range(10_000)))
    found = tail_of(path)
    assert found is not None and len(found) == files.TAIL_LINES
    assert found[-1].startswith("line 9999 ") and all(line.startswith("line ") for line in found)
    path.write_text("x" * 100_000)
    assert tail_of(path) == []
    path.write_text("y" * 5000)
    (line,) = tail_of(path) or []
    assert len(line) == 300 and line.endswith("…")


# -- for people ----------------------------------------------------------------------------------------------


def page(world: World) -> Path:
    return world.folder / f"HUMAN_{world.rig.id}.md"


def test_a_person_has_a_page_while_it_is_his(share: Share, tmp_path: Path) -> None:
    world = World(share, tmp_path / "state", Guards(per_day=0))
    world.log("one", 1, "# boom\n")
    flow = world.escalations.run()
    world.turn(flow)
    text = page(world).read_text()
    assert "per\\_day = 0" in text and "    # boom" in text and f'"escalation_id": "{world.rig.id}"' in text
    assert shown(world)["status"] == "human" and shown(world)["target"] == "human"
    page(world).unlink()
    world.turn(flow)
    assert page(world).read_text() == text  # drawn again
    world.answer("retry")
    world.turn()
    world.turn(flow)
    assert not page(world).exists()


def test_a_page_that_somebody_has_written_into_is_his(share: Share, tmp_path: Path) -> None:
    world = World(share, tmp_path / "state", Guards(per_day=0))
    flow = world.escalations.run()
    world.turn(flow)
    mine = page(world).read_text() + "\nI look at it. Ann\n"
    page(world).write_text(mine)
    world.turn(flow)
    world.answer("abandon")
    world.turn()
    world.turn(flow)
    assert page(world).read_text() == mine


def test_one_for_the_planner_has_none(world: World) -> None:
    world.draw()
    assert not page(world).exists()


# -- beside them ---------------------------------------------------------------------------------------------


def test_schemas_stand_in_the_share_and_are_kept_as_they_are(world: World) -> None:
    folder = world.share.root / "schemas"
    folder.mkdir()
    (folder / "rigbus.answer.v1.json").write_text("of an older rig")
    world.draw()
    for file in SCHEMAS.glob("*.json"):
        assert (folder / file.name).read_bytes() == file.read_bytes()
    before = (folder / "rigbus.answer.v1.json").stat()
    world.begin()
    world.draw()
    assert (folder / "rigbus.answer.v1.json").stat() == before


def test_its_folder_is_made_with_the_others() -> None:
    assert files.FOLDER in FOLDERS


def test_the_mirror_draws_it_again_when_somebody_deletes_it_and_keeps_an_edit_aside(
    share: Share, tmp_path: Path
) -> None:
    drawn = Drawn(share, tmp_path, reconcile_s=1.0)
    record = {"id": "20260101_000000_0badcafe", "status": "pending", "cause": "plan_fault", "batch": "b"}
    record |= {
        "type": "execute_plan_failure",
        "title": "t",
        "tasks": [],
        "created_at": 1.0,
        "changed_at": 1.0,
    }
    record |= {"revision": 1, "left": 2, "seq": 3}
    file = files.escalation_file(record, [], "host", 0.0)
    drawn.mirror.want(file)
    drawn.turn()
    path = share.root / file.path
    assert path.read_bytes() == file.data
    path.unlink()
    drawn.pass_time(5)
    assert path.read_bytes() == file.data
    path.write_text("{}")
    drawn.pass_time(5)
    assert path.read_bytes() == file.data and [
        f.read_text() for f in path.parent.glob(f"{path.name}.conflict-*")
    ] == ["{}"]


def test_one_that_was_raised_while_the_share_was_away_appears_when_it_is_back(
    share: Share, tmp_path: Path
) -> None:
    drawn = Drawn(share, tmp_path)
    drawn.turn()
    away = share.root.with_name("away")
    share.root.rename(away)
    file = files.File(f"{files.FOLDER}/x.json", b'{\n  "a": 1\n}\n', 10**18, "same")
    drawn.mirror.want(file)
    drawn.pass_time(3)
    assert not share.root.exists()
    away.rename(share.root)
    wait_for(lambda: share.port.poll() == [] and share.port.state.available, what="the share to be back")
    drawn.mirror.share_is_back()
    drawn.pass_time(40)
    assert (share.root / file.path).read_bytes() == file.data


@pytest.mark.parametrize(
    ("state", "data", "word", "text"),
    [
        ("pending", {"new": True, "title": "a failed"}, "ESCALATION", "a failed"),
        ("human", {"new": True, "title": "a failed", "why": "per_day"}, "ESCALATION", "a failed"),
        ("answered", {"by": "ann"}, "ESCALATION_ANSWERED", "x is answered"),
        ("closed", {"note": "complete"}, "ESCALATION_ANSWERED", "x is closed: complete"),
        ("joined", {}, "", ""),
    ],
)
def test_the_log_of_decisions_has_two_words_for_it(
    state: str, data: dict[str, Any], word: str, text: str
) -> None:
    decision = escalation_decision(Event(7, f"escalation.x.{state}", None, "b", data, at=1.0, prev=6))
    assert (decision.type, decision.message) == (word, text) if word and decision else decision is None


def test_a_line_is_told_once(share: Share, tmp_path: Path) -> None:
    drawn = Drawn(share, tmp_path)
    drawn.turn()
    drawn.mirror.event(drawn.world.happen("escalation.x.pending", "", new=True, title="a failed", cause="c"))
    drawn.pass_time(3)
    log = (share.root / "logs/brain_decisions.log").read_text()
    assert log.count('"ESCALATION"') == 1 and "a failed" in log
