"""Answers to escalations: each applied once whatever is killed, nothing outside of the plan touched, a receipt always."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from escalated import FOLDER, Killed, World
from folders import Share

from rigbus.bridge.folder.contract.receipts import Invalid
from rigbus.bridge.folder.escalations import answers_core
from rigbus.bridge.folder.escalations import files as escalation_files
from rigbus.bridge.folder.escalations.patching import patched
from rigbus.bus import escalation as contract
from rigbus.bus.core import asking
from rigbus.bus.wire import Envelope, Verb

GOOD = "print('mended')\n"


@pytest.fixture
def world(share: Share, tmp_path: Path) -> World:
    return World(share, tmp_path / "state")


def test_the_names_are_those_of_the_contract() -> None:
    assert (escalation_files.FOLDER, escalation_files.ANSWER) == (contract.FOLDER, contract.ANSWER_SUFFIX)
    assert escalation_files.RECEIPT == contract.RECEIPT_SUFFIX
    assert answers_core.MAX_BYTES == contract.MAX_ANSWER_BYTES


# -- what each does ------------------------------------------------------------------------------------------


def test_retry_runs_what_failed_again_and_closes_it(world: World) -> None:
    world.answer("retry", by="ann", note="the disk was full")
    world.turn()
    said = world.receipt()
    assert said["state"] == "accepted" and said["batch_id"] == world.rig.batch
    assert "2 tasks run again, 1 that waited" in said["note"] and said["next"].startswith("rigbus watch")
    record = world.rig.record()
    assert (record["status"], record["by"], record["note"]) == ("applied", "ann", "the disk was full")
    assert world.rig.verbs() == ["REQUEUE"] and world.rig.attempts() == 2
    assert world.journal() == []


def test_retry_of_named_tasks_leaves_the_others(world: World) -> None:
    world.answer("retry", tasks=["three"])
    world.turn()
    assert world.receipt()["note"].startswith("1 task run again")
    assert (world.rig.attempts("one"), world.rig.attempts("three")) == (1, 2)


def test_a_name_that_did_not_fail_is_refused_with_the_nearest(world: World) -> None:
    world.answer("retry", tasks=["tree", "two"])
    world.turn()
    assert "did you mean 'three'?" in world.problems() and "'two' ended badly" in world.problems()
    assert world.rig.verbs() == [] and world.rig.record()["status"] == "pending"


def test_a_thousand_wrong_names_among_thousands_of_tasks_are_refused_at_once() -> None:
    """Compared with each other they would hold up the bridge for minutes."""
    rows = [{"key": f"measure_number_{n:06d}_of_the_long_night", "id": str(n)} for n in range(2000)]
    wrong = [f"measure_nomber_{n:06d}_of_the_lang_night" for n in range(1000)]
    begun = time.process_time()
    with pytest.raises(Invalid) as caught:
        answers_core.named(wrong, rows, "x.answer.json")
    assert time.process_time() - begun < 10.0
    assert "did you mean 'measure_number_000000" in caught.value.problems[0].fix
    assert len(caught.value.problems) == answers_core.MAX_PROBLEMS


def test_abandon_closes_it_and_the_batch_ends_as_it_is(world: World) -> None:
    world.answer("abandon", note="not worth it")
    world.turn()
    assert world.rig.verbs() == []  # it had ended
    assert world.rig.record()["status"] == "closed" and world.receipt()["state"] == "accepted"


def test_abandon_of_what_still_runs_cancels_it(world: World) -> None:
    world.rig.worker.offer(credit=0)
    world.rig.bridge.ask(Verb.REQUEUE, {"batch": world.rig.batch})
    world.answer("abandon")
    world.turn()
    assert world.rig.verbs() == ["CANCEL"] and world.rig.record()["status"] == "closed"
    row = world.rig.bridge.ask(Verb.QUERY, {"what": "batch", "id": world.rig.batch}).header
    assert row["state"] == "cancelled"


def test_human_gives_it_to_a_person_who_may_answer_then(world: World) -> None:
    world.answer("human", by="planner", note="the mount is gone")
    world.turn()
    assert world.rig.record()["status"] == "human" and world.receipt()["state"] == "accepted"
    world.begin()
    world.turn()  # the same file again changes nothing
    assert world.rig.record()["status"] == "human"
    world.answer("retry", by="ann")
    world.turn()
    assert world.rig.record()["status"] == "applied" and world.rig.attempts() == 2


def test_a_question_about_the_rig_has_answers_of_its_own(world: World) -> None:
    id_ = world.rig.raise_("w", rig=True, cause="workers_unhealthy")
    world.answer("retry", id_)
    world.turn()
    assert "of this escalation: abandon, human" in json.dumps(world.receipt(id_))
    world.answer("abandon", id_)
    world.turn()
    assert world.rig.record(id_)["status"] == "closed"


# -- revisions -----------------------------------------------------------------------------------------------


def test_a_patch_is_staged_checked_and_said_as_a_revision(world: World) -> None:
    world.answer(
        "patch", files={"scripts/one.py": GOOD, "lib/new/deep.py": "X = 1\n"}, config={"WORD": "hey"}
    )
    world.turn()
    assert world.receipt()["state"] == "accepted" and "revision 2" in world.receipt()["note"]
    (asked,) = world.rig.revisions.values()
    plan = asked["plan"]
    assert asked["batch"] == world.rig.batch and asked["key"].startswith(world.rig.id)
    assert plan["sha256"] != world.spec["sha256"]
    assert {**plan, "sha256": "", "config": {}} == {**world.spec, "sha256": "", "config": {}}
    assert plan["config"] == {"WORD": "hey"}
    staged = world.paths.staged / plan["sha256"]
    assert (staged / "scripts/one.py").read_text() == GOOD
    assert (staged / "lib/new/deep.py").read_text() == "X = 1\n"
    assert (staged / "plan.md").exists() and (staged / "notes.txt").exists()
    assert world.rig.record()["status"] == "applied" and world.journal() == []


def test_the_plan_in_the_share_is_mended_and_what_it_was_is_kept(world: World) -> None:
    world.answer("patch", files={"scripts/one.py": GOOD, "scripts/new.sh": "#!/bin/sh\n"})
    world.turn()
    plan = world.share.root / "plans/p"
    assert (plan / "scripts/one.py").read_text() == GOOD and (plan / "scripts/new.sh").exists()
    kept = plan / ".rigbus-revisions" / world.rig.id / "scripts/one.py"
    assert kept.read_text() == "raise SystemExit(3)\n"


def test_a_script_of_the_plan_stays_executable(world: World) -> None:
    plan = world.share.root / "plans/p"
    files = {"scripts/one.py": GOOD, "scripts/new.sh": "#!/bin/sh\n", "scripts/data.txt": "x\n"}
    world.answer("patch", files=files)
    (world.paths.staged / world.spec["sha256"] / "scripts/one.py").chmod(0o500)  # as it was submitted
    world.turn()
    runs = {path: os.access(plan / path, os.X_OK) for path in files}
    assert runs == {"scripts/one.py": True, "scripts/new.sh": True, "scripts/data.txt": False}


def test_what_could_not_be_kept_is_not_replaced(world: World) -> None:
    plan = world.share.root / "plans/p"
    (plan / ".rigbus-revisions").write_text("no folder")
    world.answer("patch", files={"scripts/one.py": GOOD, "scripts/new.py": GOOD})
    world.turn()
    assert (plan / "scripts/one.py").read_text() == "raise SystemExit(3)\n"
    assert (plan / "scripts/new.py").read_text() == GOOD
    assert world.receipt()["state"] == "accepted" and "scripts/one.py" in world.receipt()["note"]


def test_a_file_that_somebody_has_changed_meanwhile_stays_his(world: World) -> None:
    mine = world.share.root / "plans/p/scripts/one.py"
    mine.write_text("# mine\n")
    world.answer("patch", files={"scripts/one.py": GOOD})
    world.turn()
    assert mine.read_text() == "# mine\n" and "scripts/one.py" in world.receipt()["note"]
    assert world.rig.verbs() == ["REVISE"]  # the batch goes on all the same


def test_a_configuration_alone_is_a_revision_too(world: World) -> None:
    world.answer("config", config={"WORD": "new"})
    world.turn()
    (asked,) = world.rig.revisions.values()
    assert asked["plan"]["config"] == {"WORD": "new"} and asked["plan"]["sha256"] == world.spec["sha256"]


def test_a_config_json_in_the_patch_is_a_configuration(world: World) -> None:
    world.answer("patch", files={"config.json": '{"WORD": "file"}', "scripts/one.py": GOOD})
    world.turn()
    (asked,) = world.rig.revisions.values()
    assert asked["plan"]["config"] == {"WORD": "file"}


def test_a_plan_with_errors_is_refused_with_line_and_fix_like_a_drop(world: World) -> None:
    bad = "# Plan: p\n\n## Tasks\n\n### one\n\n- **command**: `true`\n- **depends_on**: nobody\n"
    world.answer("patch", files={"plan.md": bad})
    world.turn()
    assert "plan.md:8" in world.problems() and "nobody" in world.problems()
    assert world.rig.verbs() == [] and world.rig.record()["status"] == "pending"
    assert (world.share.root / "plans/p/plan.md").read_text() != bad


@pytest.mark.parametrize("action", ["patch", "config"])
def test_what_changes_nothing_is_refused(world: World, action: str) -> None:
    more: dict[str, Any] = {"config": {"WORD": "ho"}}
    if action == "patch":
        more = {"files": {"scripts/one.py": "raise SystemExit(3)\n"}}
    world.answer(action, **more)
    world.turn()
    assert "say retry" in world.problems()


def test_an_answer_for_an_old_revision_is_refused(world: World) -> None:
    world.answer("retry", plan_sha256="ab" * 32)
    world.turn()
    assert "another" not in world.problems() and "made for the revision abababababab" in world.problems()
    assert world.rig.verbs() == []
    world.answer("retry", plan_sha256=world.spec["sha256"])
    world.turn()
    assert world.receipt()["state"] == "accepted"


def test_a_revision_that_the_rig_refuses_leaves_it_open(world: World) -> None:
    no = Envelope(Verb.ERROR, {"code": "refused", "message": "100 revisions; submit it anew"})
    world.rig.revise = lambda _: no
    world.answer("patch", files={"scripts/one.py": GOOD})
    world.turn()
    assert "100 revisions" in world.problems()
    record = world.rig.record()
    assert record["status"] == "pending" and "could not be applied" in record["note"]
    assert (world.share.root / "plans/p/scripts/one.py").read_text() != GOOD
    world.later(60)
    assert world.rig.verbs() == ["REVISE"] and world.journal() == []  # it is not tried again by itself
    world.answer("retry")
    world.turn()
    assert world.rig.record()["status"] == "applied"


def test_a_full_broker_is_asked_again(world: World) -> None:
    busy = Envelope(Verb.BUSY, {"bound": "disk", "message": "disk full", "retry_after_s": 1.0})
    world.rig.revise = lambda _: busy
    world.answer("patch", files={"scripts/one.py": GOOD})
    world.turn()
    assert world.rig.record()["status"] == "answered" and len(world.journal()) == 1
    world.rig.revise = world.rig._revised
    world.turn()
    assert world.rig.record()["status"] == "applied" and world.receipt()["state"] == "accepted"


# -- nothing outside of the plan -----------------------------------------------------------------------------

EVIL = [
    {"../x": "x"},
    {"/etc/x": "x"},
    {"scripts/../../x": "x"},
    {"scripts//x": "x"},
    {".git/hooks/pre-commit": "x"},
    {"scripts/.hidden": "x"},
    {"scripts\\..\\x": "x"},
    {"scripts/a\nb": "x"},
    {"scripts/a\x00b": "x"},
    {"scripts/a\u202eb": "x"},
    {"scripts/x ": "x"},
    {"scripts/x.": "x"},
    {"input/data.csv": "x"},
    {"batches/20260101_000000_aaaaaa/x": "x"},
    {"READY": "x"},
    {"SCRIPTS/one.py": "x"},
    {"Plan.md": "x"},
    {"scripts/ONE.py": "x"},
    {"scripts/Ä.py": "x", "scripts/ä.py": "y"},
    {"scripts/é.py": "x", "scripts/e\u0301.py": "y"},
    {"scripts/gone/x": "below a link"},
    {"scripts": "x"},
    {"scripts/one.py/x": "x"},
    {"lib/a": "x", "lib/a/b": "y"},
    {"notes.txt": "x" * (2 << 20)},
    {"scripts/\ud800.py": "x"},
    {"scripts/one.py": "\ud800"},
]


def test_a_patch_that_reaches_out_is_refused_and_changes_nothing(world: World, tmp_path: Path) -> None:
    before = snapshot(world, tmp_path)
    for files in EVIL:
        world.answer("patch", files=files)
        world.turn()
        world.later(60)
        assert world.problems(), files
        (world.folder / f"{world.rig.id}.answer.json").unlink()
        (world.folder / f"{world.rig.id}.answer.receipt.json").unlink()
        assert snapshot(world, tmp_path) == before, files
        assert world.rig.verbs() == [] and world.rig.record()["status"] == "pending", files


def snapshot(world: World, tmp_path: Path) -> dict[str, bytes | str]:
    """Everything that lies in the share, in the rig's state and beside them."""
    found: dict[str, bytes | str] = {}
    for root in (world.share.root, world.paths.state, tmp_path):
        for path in root.rglob("*"):
            if "doors" not in path.parts:
                found[str(path)] = (
                    os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else ""
                )
    return found


@pytest.mark.parametrize("path", ["scripts/link", "scripts/way/x"])
def test_a_link_in_the_copy_is_neither_written_through_nor_replaced(tmp_path: Path, path: str) -> None:
    outside, staged = tmp_path / "outside", tmp_path / "staged"
    outside.mkdir()
    (staged / "scripts").mkdir(parents=True)
    (staged / "scripts/link").symlink_to(outside / "new")
    (staged / "scripts/way").symlink_to(outside)
    with pytest.raises(Invalid, match="is a link"):
        patched(staged, tmp_path / "copy", {path: "x"})
    assert list(outside.iterdir()) == []


def test_links_in_the_plans_folder_of_the_share_are_not_followed(world: World, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    shutil.rmtree(world.share.root / "plans/p/scripts")
    (world.share.root / "plans/p/scripts").symlink_to(outside)
    world.answer("patch", files={"scripts/new.py": GOOD})
    world.turn()
    assert world.receipt()["state"] == "accepted" and "cannot be written" in world.receipt()["note"]
    assert list(outside.iterdir()) == []


# -- files of others -----------------------------------------------------------------------------------------


def test_a_half_written_answer_is_looked_at_again(world: World) -> None:
    whole = json.dumps({"escalation_id": world.rig.id, "action": "retry"})
    file = world.folder / f"{world.rig.id}.answer.json"
    for n in range(0, len(whole), 7):
        file.write_text(whole[:n])
        world.later(5)
        assert not (world.folder / f"{world.rig.id}.answer.receipt.json").exists()
    file.write_text(whole)
    world.later(5)
    assert world.receipt()["state"] == "accepted"


@pytest.mark.parametrize("text", ['{"escalation_id": "', "retry", "", "\0" * 50])
def test_what_stays_half_is_refused_in_the_end(world: World, text: str) -> None:
    (world.folder / f"{world.rig.id}.answer.json").write_text(text)
    world.turn()
    world.later(9)
    assert not (world.folder / f"{world.rig.id}.answer.receipt.json").exists()
    world.later(2)
    assert "no JSON" in world.problems()
    world.answer("retry")
    world.turn()
    assert world.receipt()["state"] == "accepted"


WRONG: list[tuple[Any, str]] = [
    ([], "it is a list"),
    ({"action": "retry"}, "escalation_id"),
    ({"escalation_id": "20260101_000000_00000000", "action": "retry"}, "lies beside"),
    ({"escalation_id": "ID", "action": "reboot"}, "action"),
    ({"escalation_id": "ID", "action": "retry", "sudo": True}, "sudo"),
    ({"escalation_id": "ID", "action": "patch"}, "`patch` has `files`"),
    ({"escalation_id": "ID", "action": "retry", "schema": "rigbus.answer/9"}, "schema"),
]


def test_a_wrong_answer_is_refused_at_once_by_field(world: World) -> None:
    for value, said in WRONG:
        text = json.dumps(value).replace('"ID"', json.dumps(world.rig.id))
        (world.folder / f"{world.rig.id}.answer.json").write_text(text)
        world.turn()
        assert said in world.problems() and world.rig.verbs() == [], said


@pytest.mark.parametrize("value", ["NaN", "1e999", "9" * 40, '"\\ud800"', '{"A": 1, "A": 2}'])
def test_what_the_bus_cannot_carry_is_refused_and_the_door_lives_on(world: World, value: str) -> None:
    head = f'{{"escalation_id": "{world.rig.id}", "action": "config"'
    (world.folder / f"{world.rig.id}.answer.json").write_text(f'{head}, "config": {{"WORD": {value}}}}}')
    world.turn()
    assert world.problems() and world.rig.verbs() == [] and world.journal() == []
    world.answer("retry")
    world.turn()
    assert world.receipt()["state"] == "accepted"


def test_what_is_no_file_of_reasonable_size_is_refused(world: World, tmp_path: Path) -> None:
    path = world.folder / f"{world.rig.id}.answer.json"
    (tmp_path / "x").write_text("{}")
    made: list[tuple[Any, Any, str]] = [
        (lambda: path.symlink_to(tmp_path / "x"), path.unlink, "it is a link"),
        (lambda: os.mkfifo(path), path.unlink, "it is a fifo"),
        (path.mkdir, path.rmdir, "it is a dir"),
        (lambda: path.write_bytes(b" " * ((1 << 20) + 1)), path.unlink, "at most 1048576"),
    ]
    for make, remove, said in made:
        make()
        world.turn()
        assert said in world.problems() and world.rig.verbs() == [], said
        remove()


def test_an_answer_to_nothing_is_refused(world: World) -> None:
    id_ = "20260101_000000_00000000"
    world.answer("retry", id_)
    world.turn()
    assert "there is no escalation" in json.dumps(world.receipt(id_))


def test_the_same_answer_twice_is_one_and_another_is_refused(world: World) -> None:
    file = world.answer("retry", by="ann")
    world.turn()
    file.write_text(json.dumps(json.loads(file.read_text()), indent=4, sort_keys=True))
    world.turn()
    assert world.receipt()["state"] == "accepted" and world.rig.verbs() == ["REQUEUE"]
    world.answer("abandon", by="bob")
    world.turn()
    assert "the escalation is applied by ann" in world.problems()
    assert world.rig.record()["status"] == "applied"


def test_an_answer_to_a_closed_one_is_refused_with_its_state(world: World) -> None:
    world.rig.tell(settle=[{"id": world.rig.id, "note": "all is well"}])
    world.answer("retry")
    world.turn()
    assert "closed" in world.problems() and "all is well" in world.problems()


def test_tasks_that_are_still_being_ended_are_waited_for(world: World) -> None:
    rig = world.rig
    rig.bridge.ask(Verb.REQUEUE, {"batch": rig.batch})
    rig.bridge.ask(Verb.CANCEL, {"ids": [rig.core.core.batch_ids[rig.batch].keys["one"].id]})
    world.answer("retry")
    world.turn()
    assert rig.verbs() == [] and rig.record()["status"] == "answered"
    lease = rig.worker.lease()
    rig.worker.result(lease, ok=False, cancelled=True, **{"class": "infra"})
    world.turn()
    assert rig.verbs() == ["REQUEUE"] and rig.record()["status"] == "applied"


def test_they_are_waited_for_on_every_page_of_the_batch(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = world.rig
    monkeypatch.setattr(asking, "PAGE", 1)
    rig.bridge.ask(Verb.REQUEUE, {"batch": rig.batch})
    rig.worker.lease()
    rig.core.worker(name="w2", credit=1).lease()
    rig.bridge.ask(Verb.CANCEL, {"ids": [rig.core.core.batch_ids[rig.batch].keys["three"].id]})
    world.answer("retry")
    world.turn()
    assert rig.verbs() == [] and rig.record()["status"] == "answered"


def test_an_answer_among_ten_thousand_files_is_found(world: World) -> None:
    for n in range(5000):
        id_ = f"20250101_{n // 3600:02d}{n // 60 % 60:02d}{n % 60:02d}_{n:08x}"
        (world.folder / f"{id_}.json").write_text("{}")
        (world.folder / f"HUMAN_{id_}.md").write_text("x")
    world.answer("retry")
    steps = world.turn()
    assert world.receipt()["state"] == "accepted" and steps < 40
    assert world.turn() < 10  # and what was done is not read again


def test_old_answers_are_not_done_again_by_the_next_bridge(world: World) -> None:
    world.answer("retry")
    world.turn()
    receipt = world.receipt()
    world.begin()
    world.turn()
    assert world.rig.verbs() == ["REQUEUE"] and world.receipt() == receipt


# -- killed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "more"), [("retry", {}), ("patch", {"files": {"scripts/one.py": GOOD}}), ("human", {})]
)
def test_killed_after_any_step_it_is_applied_once(
    share: Share, tmp_path: Path, action: str, more: dict[str, Any]
) -> None:
    steps = 99
    for die_at in range(steps):
        if die_at > steps:
            break
        shutil.rmtree(share.root / FOLDER, ignore_errors=True)
        shutil.rmtree(share.root / "plans", ignore_errors=True)
        world = World(share, tmp_path / f"state-{die_at}")
        world.answer(action, **more)
        if not die_at:
            steps = world.turn()
        else:
            try:
                world.turn(die_at=die_at)
            except Killed:
                pass
            world.begin()
            world.turn()
        where = f"killed after step {die_at} of {steps}"
        assert world.receipt()["state"] == "accepted", where
        assert world.rig.record()["status"] == ("human" if action == "human" else "applied"), where
        assert world.journal() == [], where
        assert len(world.rig.revisions) == (action == "patch"), where
        if action == "retry":
            assert world.rig.attempts() == 2, where
        if action == "patch":
            assert (share.root / "plans/p/scripts/one.py").read_text() == GOOD, where
    assert steps < 99


def test_a_task_that_failed_again_before_the_bridge_came_back_is_not_run_a_third_time(world: World) -> None:
    world.answer("retry")
    for die_at in range(1, 99):  # until the verb was said
        try:
            world.turn(die_at=die_at)
        except Killed:
            if "REQUEUE" in world.rig.verbs():
                break
            world.begin()
    world.rig.worker.fail(world.rig.worker.lease())
    world.begin()
    world.turn()
    assert world.rig.attempts() == 2 and world.rig.record()["status"] == "applied"


def test_a_damaged_journal_is_put_aside_and_the_file_is_taken_again(world: World) -> None:
    world.answer("retry")
    with pytest.raises(Killed):
        world.turn(die_at=6)
    for path in (world.paths.state / "doors/answers").glob("*.json"):
        path.write_text("{")
    world.begin()
    world.turn()
    assert world.receipt()["state"] == "accepted" and world.rig.attempts() == 2
