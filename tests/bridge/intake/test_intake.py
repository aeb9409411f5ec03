"""Drops become batches: once, whatever is killed in between, and with a receipt that says what is wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flowing import Broker, Killed, away, drive
from folders import Share

from rigbus.bridge.folder.contract.receipts import Invalid
from rigbus.bridge.folder.intake.core import FileRequest, Settings
from rigbus.bridge.folder.intake.drafts import examine
from rigbus.bridge.folder.intake.moves import Drop, Later, Stuck, settle_in
from rigbus.bridge.folder.intake.requests import Requests, question
from rigbus.bridge.folder.intake.taking import Declined, Taker
from rigbus.bridge.folder.loop.clock import Clock
from rigbus.bridge.folder.loop.flows import ShareAway
from rigbus.bridge.folder.share import ops
from rigbus.bridge.folder.share.port import Reply
from rigbus.bus.paths import RigPaths, rig_paths
from rigbus.bus.wire import Envelope, Verb

GOOD = "# Plan: p\n\n## Tasks\n\n### one\n\n- **command**: `echo {WORD}`\n\n## Inputs\n\n- **WORD**: what (default: `hi`)\n"
ID = "3f2b8a52-6f0e-4c1c-9d0b-0a5a2c6f7e11"


@pytest.fixture
def paths(share: Share, tmp_path: Path) -> RigPaths:
    state = tmp_path / "state"
    state.mkdir()
    return rig_paths(state, share.root)


@pytest.fixture
def taker(paths: RigPaths) -> Iterator[Taker]:
    made = Taker(paths, Clock())
    made.journal.open()
    yield made
    left = [p.name for p in (paths.state / "incoming").iterdir() if p.name.startswith("copy-")]
    assert not left


def drop(share: Share, name: str = "p", text: str = GOOD, **files: str) -> Path:
    folder = share.root / "inbox" / name
    folder.mkdir(parents=True)
    (folder / "plan.md").write_text(text)
    for path, content in files.items():
        target = folder / path.replace("__", "/").replace("_dot_", ".")
        target.parent.mkdir(exist_ok=True)
        target.write_text(content)
    return folder


def take(taker: Taker, share: Share, broker: Broker, name: str = "p", **how: Any) -> Any:
    return drive(
        taker.take_in(f"inbox/{name}", name.removesuffix(".md"), not name.endswith(".md"), "listing", name),
        share.port,
        broker,
        **how,
    )


def receipt(share: Share, name: str = "p") -> dict[str, Any]:
    value: dict[str, Any] = json.loads((share.root / f"inbox/{name}.receipt.json").read_text())
    return value


class TestOneDrop:
    def test_it_becomes_a_plan_a_batch_and_a_receipt(
        self, share: Share, taker: Taker, paths: RigPaths
    ) -> None:
        broker = Broker()
        drop(share, READY="", config_dot_json='{"WORD": "a b"}', scripts__x_dot_sh="true")
        taken = take(taker, share, broker)
        (plan,) = broker.plans()
        assert plan["path"] == f"{share.root}/plans/p"
        assert plan["batch_root"] == f"{share.root}/plans/p/batches"
        assert (plan["config"], plan["source"]) == ({"WORD": "a b"}, "inbox")
        assert (paths.staged / plan["sha256"] / "scripts/x.sh").exists()
        assert (share.root / "plans/p/plan.md").read_text() == GOOD
        assert not (share.root / "plans/p/READY").exists()
        assert sorted(os.listdir(share.root / "inbox")) == ["p.receipt.json", "p.receipt.md"]
        said = receipt(share)
        assert said["state"] == "accepted"
        assert said["batch_id"] == taken.batch_id
        assert said["next"] == f"rigbus watch {taken.batch_id}"
        assert taker.journal.entries() == {}

    def test_one_file_becomes_a_plan_folder(self, share: Share, taker: Taker) -> None:
        broker = Broker()
        (share.root / "inbox").mkdir()
        (share.root / "inbox/solo.md").write_text(GOOD)
        take(taker, share, broker, "solo.md")
        assert (share.root / "plans/solo/plan.md").read_text() == GOOD
        assert receipt(share, "solo")["state"] == "accepted"

    def test_a_file_called_plan_md_is_the_plan_called_plan(self, share: Share, taker: Taker) -> None:
        broker = Broker()
        (share.root / "inbox").mkdir()
        (share.root / "inbox/plan.md").write_text(GOOD)
        take(taker, share, broker, "plan.md")
        assert broker.plans()[0]["name"] == "plan"

    @pytest.mark.parametrize("step", range(1, 12))
    def test_killed_after_any_step_it_runs_exactly_once(
        self, share: Share, taker: Taker, paths: RigPaths, step: int
    ) -> None:
        broker = Broker()
        drop(share, READY="")
        try:
            take(taker, share, broker, die_at=step)
        except Killed:
            pass
        again = Taker(paths, Clock())
        again.journal.open()
        for entry in again.journal.entries().values():
            drive(again.resume(entry), share.port, broker)
        if (share.root / "inbox/p").exists():  # killed before the journal: the inbox shows it again
            take(again, share, broker)
        assert len(broker.batches) == 1
        assert receipt(share)["state"] == "accepted"
        assert (share.root / "plans/p/plan.md").exists()
        assert again.journal.entries() == {}

    def test_the_same_folder_seen_twice_is_one_run_and_a_new_copy_another(
        self, share: Share, taker: Taker
    ) -> None:
        broker = Broker()
        drop(share)
        first = take(taker, share, broker)
        (share.root / "plans/p").rename(share.root / "inbox/p")  # as if the move had failed
        assert take(taker, share, broker).batch_id == first.batch_id
        drop(share)
        assert take(taker, share, broker).batch_id != first.batch_id

    def test_a_full_broker_is_asked_again(self, share: Share, taker: Taker) -> None:
        broker = Broker()
        broker.next = [Envelope(Verb.BUSY, {"retry_after_s": 0.01, "message": "full"})]
        drop(share)
        assert take(taker, share, broker).tasks == 1

    def test_what_the_broker_refuses_is_refused_with_its_words(self, share: Share, taker: Taker) -> None:
        broker = Broker()
        broker.next = [Envelope(Verb.ERROR, {"code": "definition", "message": "no room; make some"})]
        drop(share)
        with pytest.raises(Declined, match="no room") as caught:
            take(taker, share, broker)
        assert caught.value.lies == "plans/p"
        assert list(taker.journal.entries()) == [caught.value.drop_id], "until it is told"

    def test_a_share_that_hangs_leaves_the_drop_in_the_journal(self, share: Share, taker: Taker) -> None:
        drop(share)
        flow = taker.take_in("inbox/p", "p", True, "listing", "p")
        step = next(flow)
        step = flow.send(share.port.call(step.kind, step.ops))
        with pytest.raises(ShareAway):
            flow.send(away(step))
        (entry,) = taker.journal.entries().values()
        broker = Broker()
        drive(taker.resume(entry), share.port, broker)
        assert len(broker.batches) == 1

    def test_a_share_that_cannot_be_written_makes_the_drop_wait_in_the_journal(
        self, share: Share, taker: Taker
    ) -> None:
        drop(share)
        broker = Broker()
        flow = taker.take_in("inbox/p", "p", True, "listing", "p")
        step = next(flow)
        step = flow.send(share.port.call(step.kind, step.ops))  # copied
        step = flow.send(share.port.call(step.kind, step.ops))  # where it lies
        refusal = {"ok": False, "errno": "EROFS", "what": "plans/p: Read-only file system"}
        with pytest.raises(Stuck, match="Read-only"):
            flow.send(Reply(0, step.kind, [refusal for _ in step.ops]))
        assert broker.batches == {}
        (entry,) = taker.journal.entries().values()
        drive(taker.resume(entry), share.port, broker)
        assert receipt(share)["state"] == "accepted"

    def test_a_drop_that_vanishes_is_for_later(self, share: Share, taker: Taker) -> None:
        with pytest.raises(Later):
            take(taker, share, Broker(), "never")


class TestRevisions:
    def test_a_second_drop_replaces_what_runs_and_keeps_what_was_made(
        self, share: Share, taker: Taker
    ) -> None:
        broker = Broker()
        drop(share, scripts__a_dot_sh="old", notes_dot_txt="old", input__data_dot_csv="old")
        take(taker, share, broker)
        home = share.root / "plans/p"
        (home / "batches/b1").mkdir(parents=True)
        (home / "extra").mkdir()
        drop(share, text=GOOD + "\n", scripts__b_dot_sh="new", input__data_dot_csv="new", batches__x="mine")
        take(taker, share, broker)
        assert sorted(os.listdir(home / "scripts")) == ["b.sh"]
        assert (home / "input/data.csv").read_text() == "new"
        assert (home / "batches/b1").is_dir()
        assert not (home / "notes.txt").exists()
        assert (home / "extra").is_dir()
        (old,) = (home / ".rigbus-revisions").iterdir()
        assert (old / "scripts/a.sh").read_text() == "old"
        assert (old / "notes.txt").read_text() == "old"
        assert (old / "dropped-batches/x").read_text() == "mine"
        assert [n for n in os.listdir(share.root / "plans") if n.startswith(".")] == []
        assert len(broker.batches) == 2

    @pytest.mark.parametrize("step", range(1, 12))
    def test_killed_in_the_middle_of_the_moves_the_new_revision_is_whole(
        self, share: Share, step: int
    ) -> None:
        home = share.root / "plans/p"
        (home / "scripts").mkdir(parents=True)
        (home / "plan.md").write_text("old")
        (home / "scripts/old.sh").write_text("old")
        new = drop(share, text="new", scripts__new_dot_sh="new", a_dot_txt="new")
        moving = Drop("inbox/p", "p", new.stat().st_ino, True, "d" * 64)
        try:
            drive(settle_in(moving), share.port, die_at=step)
        except Killed:
            pass
        assert drive(settle_in(moving), share.port) == ("plans/p", "")
        assert (home / "plan.md").read_text() == "new"
        assert os.listdir(home / "scripts") == ["new.sh"]
        assert (home / "a.txt").read_text() == "new"
        assert os.listdir(share.root / "plans") == ["p"]

    def test_a_plan_folder_that_is_a_link_stays_as_it_is(
        self, share: Share, taker: Taker, tmp_path: Path
    ) -> None:
        (tmp_path / "elsewhere").mkdir()
        (share.root / "plans").mkdir()
        (share.root / "plans/p").symlink_to(tmp_path / "elsewhere")
        drop(share)
        taken = take(taker, share, Broker())
        assert "runs from plans/p" in taken.note or "runs from inbox/p" in taken.note
        assert (share.root / "plans/p").is_symlink()
        assert os.listdir(tmp_path / "elsewhere") == []


BAD_PLANS = {
    "half": ("# Plan: p\n\n## Tasks\n\n### one\n\n- **command**:\n\n```bash\necho", "never closed"),
    "no tasks": ("# Plan: p\n\njust words\n", "task"),
    "cyclic": (
        (
            "# Plan: p\n\n## Tasks\n\n### a\n- **command**: `true`\n- **depends_on**: b\n\n"
            "### b\n- **command**: `true`\n- **depends_on**: a\n"
        ),
        "wait for each other",
    ),
    "unresolved": (
        "# Plan: p\n\n## Tasks\n\n### a\n- **command**: `echo {NOBODY_SETS_IT}`\n",
        "NOBODY_SETS_IT",
    ),
    "injectable": (
        "# Plan: p\n\n## Inputs\n\n- **X**: a number\n\n## Tasks\n\n### a\n- **command**: `eval {X}`\n",
        "eval",
    ),
}


class TestBadPlans:
    @pytest.mark.parametrize("kind", BAD_PLANS)
    def test_the_refusal_names_line_and_fix(self, tmp_path: Path, kind: str) -> None:
        text, word = BAD_PLANS[kind]
        folder = tmp_path / "p"
        folder.mkdir()
        (folder / "plan.md").write_text(text)
        with pytest.raises(Invalid) as caught:
            examine(folder, tmp_path / "staged", Settings({"X": 1}))
        problem = caught.value.problems[0]
        assert word in problem.what
        assert problem.where == "plan.md"
        assert problem.fix
        assert not (tmp_path / "staged").exists()

    def test_a_mistyped_variable_is_told_and_another_programs_key_is_not(self, tmp_path: Path) -> None:
        folder = tmp_path / "p"
        folder.mkdir()
        (folder / "plan.md").write_text(
            GOOD + "\n## Inputs\n- **WHO**: whom (default: `you`)\n", encoding="utf-8"
        )
        draft = examine(folder, tmp_path / "staged", Settings({"WOH": "me", "retries_of_mine": 3}))
        assert "the configuration sets WOH, which the plan does not use (did you mean WHO?)" in draft.warnings
        assert "retries_of_mine" not in draft.warnings

    def test_the_refused_line_itself_is_shown(self, tmp_path: Path) -> None:
        folder = tmp_path / "p"
        folder.mkdir()
        (folder / "plan.md").write_text(BAD_PLANS["unresolved"][0])
        with pytest.raises(Invalid) as caught:
            examine(folder, tmp_path / "staged")
        problem = caught.value.problems[0]
        assert (problem.line, problem.text) == (6, "- **command**: `echo {NOBODY_SETS_IT}`")

    def test_a_binary_plan_is_refused(self, share: Share, taker: Taker) -> None:
        (drop(share) / "plan.md").write_bytes(bytes(range(256)) * 40)
        with pytest.raises(Invalid):
            take(taker, share, Broker())

    def test_fifty_megabytes_are_refused(self, share: Share, taker: Taker) -> None:
        with (drop(share) / "plan.md").open("wb") as file:
            file.truncate(50 << 20)
        with pytest.raises(Invalid, match="bytes"):
            take(taker, share, Broker())

    def test_a_link_out_of_the_plan_is_refused(self, share: Share, taker: Taker) -> None:
        (drop(share) / "secret").symlink_to("/etc/passwd")
        with pytest.raises(Invalid, match="leads out") as caught:
            take(taker, share, Broker())
        assert "copy the file" in caught.value.problems[0].fix

    def test_a_fifo_in_the_plan_is_refused_without_waiting(self, share: Share, taker: Taker) -> None:
        os.mkfifo(drop(share) / "pipe")
        with pytest.raises(Invalid, match="FIFO"):
            take(taker, share, Broker())

    def test_a_link_to_a_folder_is_data_and_stays(self, share: Share, taker: Taker, tmp_path: Path) -> None:
        (drop(share) / "big").symlink_to(tmp_path)
        assert take(taker, share, Broker()).tasks == 1
        assert (share.root / "plans/p/big").is_symlink()

    def test_an_unusable_config_is_refused_with_its_line(self, share: Share, taker: Taker) -> None:
        drop(share, config_dot_json='{\n "A": 1\n "B": 2\n}')
        with pytest.raises(Invalid) as caught:
            take(taker, share, Broker())
        assert (caught.value.problems[0].where, caught.value.problems[0].line) == ("config.json", 3)

    def test_a_configuration_too_large_for_the_bus_is_refused(self, share: Share, taker: Taker) -> None:
        drop(share, config_dot_json=json.dumps({"A": "x" * 20_000}))
        with pytest.raises(Invalid, match="bytes"):
            take(taker, share, Broker())

    def test_a_refused_drop_goes_out_of_the_way_and_a_second_one_beside_it(
        self, share: Share, taker: Taker
    ) -> None:
        for _ in range(2):
            drop(share)
            drive(taker.refuse("p", ()), share.port)
        assert sorted(os.listdir(share.root / "inbox/.refused")) == ["p", "p.2"]
        assert receipt(share)["state"] == "refused"


class TestRequests:
    def ask(self, share: Share, taker: Taker, broker: Broker, **request: Any) -> dict[str, Any]:
        body = {"schema": "rigbus.request/1", "id": ID, **request}
        (share.root / "inbox/.requests").mkdir(parents=True, exist_ok=True)
        (share.root / f"inbox/.requests/{ID}.json").write_text(json.dumps(body))
        drive(Requests(taker, Clock()).answer(f".requests/{ID}.json"), share.port, broker)
        value: dict[str, Any] = json.loads((share.root / f"inbox/.requests/{ID}.receipt.json").read_text())
        return value

    def test_a_plan_that_lies_in_plans_is_submitted_from_there(self, share: Share, taker: Taker) -> None:
        broker = Broker()
        drop(share).rename(share.root / "p")
        (share.root / "plans").mkdir()
        (share.root / "p").rename(share.root / "plans/p")
        said = self.ask(share, taker, broker, verb="submit", args={"plan": "p", "config": {"WORD": "x"}})
        assert said["state"] == "accepted"
        assert list(broker.batches) == [ID]
        assert broker.plans()[0]["config"] == {"WORD": "x"}
        assert (
            self.ask(share, taker, broker, verb="submit", args={"plan": "p"})["batch_id"] == said["batch_id"]
        )

    def test_a_plan_that_came_with_the_request_is_moved_home(self, share: Share, taker: Taker) -> None:
        folder = drop(share, "fresh")
        (share.root / f"inbox/.incoming-{ID}").mkdir()
        folder.rename(share.root / f"inbox/.incoming-{ID}/fresh")
        said = self.ask(share, taker, Broker(), verb="submit", args={"plan": "fresh", "priority": "high"})
        assert said["state"] == "accepted"
        assert (share.root / "plans/fresh/plan.md").exists()
        assert not (share.root / f"inbox/.incoming-{ID}").exists()

    def revise(self, share: Share, taker: Taker, broker: Broker, row: Any, **args: Any) -> dict[str, Any]:
        folder = drop(share, "p")
        (share.root / f"inbox/.incoming-{ID}").mkdir()
        folder.rename(share.root / f"inbox/.incoming-{ID}/p")
        broker.next = [Envelope(Verb.OK, row), Envelope(Verb.OK, {"batch": row["id"], "revision": 2})]
        request = {"verb": "revise", "batch_id": row["id"], "args": {"plan": "p", **args}}
        return self.ask(share, taker, broker, **request)

    def test_a_revise_stages_the_plan_and_keeps_the_batchs_configuration(
        self, share: Share, taker: Taker
    ) -> None:
        broker = Broker()
        row = {"id": "20260101_000000_abcdef", "kind": "plan", "plan": "p"}
        row["spec"] = {"name": "p", "config": {"OLD": "1", "WORD": "old"}}
        said = self.revise(share, taker, broker, row, config={"WORD": "new"}, reason="a typing error")
        assert said["state"] == "accepted" and said["batch_id"] == row["id"] and "revision 2" in said["note"]
        asked = next(a for a in broker.asked if a.verb is Verb.REVISE).header
        assert (asked["batch"], asked["key"], asked["reason"]) == (row["id"], ID, "a typing error")
        assert asked["plan"]["config"] == {"OLD": "1", "WORD": "new"} and asked["plan"]["name"] == "p"
        assert (share.root / "plans/p/plan.md").exists() and not broker.batches

    @pytest.mark.parametrize(
        ("row", "words"),
        [
            ({"kind": "client", "plan": None}, "of kind client"),
            ({"kind": "plan", "plan": "other"}, "a run of the plan 'other'"),
        ],
    )
    def test_a_revise_of_another_batch_is_refused_and_moves_nothing(
        self, share: Share, taker: Taker, row: dict[str, Any], words: str
    ) -> None:
        said = self.revise(share, taker, Broker(), {"id": "20260101_000000_abcdef", **row})
        assert said["state"] == "refused" and words in said["problems"][0]["what"]
        assert said["problems"][0]["fix"] and not (share.root / "plans/p").exists()

    @pytest.mark.parametrize(
        "args", [{}, {"plan": "../x"}, {"plan": 3}, {"plan": "nobody"}, {"plan": "p", "config": 1}]
    )
    def test_a_submit_that_cannot_be_is_refused(
        self, share: Share, taker: Taker, args: dict[str, Any]
    ) -> None:
        said = self.ask(share, taker, Broker(), verb="submit", args=args)
        assert said["state"] == "refused"
        assert said["problems"][0]["fix"]

    def test_a_cancel_is_passed_on_and_answered(self, share: Share, taker: Taker) -> None:
        broker = Broker()
        broker.next = [Envelope(Verb.OK, {"cancelled": 3})]
        said = self.ask(share, taker, broker, verb="cancel", batch_id="20260101_000000_abcdef")
        assert broker.asked[0].header["batch"] == "20260101_000000_abcdef"
        assert (said["state"], said["answer"]) == ("accepted", {"cancelled": 3})

    def test_what_the_broker_does_not_know_is_refused(self, share: Share, taker: Taker) -> None:
        broker = Broker()
        broker.next = [Envelope(Verb.ERROR, {"code": "not_found", "message": "no batch x"})]
        said = self.ask(share, taker, broker, verb="retry", args={"id": "x"})
        assert (said["state"], "no batch x" in said["problems"][0]["what"]) == ("refused", True)
        assert said["exit_code"] == 3

    def test_rubbish_is_refused(self, share: Share, taker: Taker) -> None:
        (share.root / "inbox/.requests").mkdir(parents=True)
        (share.root / f"inbox/.requests/{ID}.json").write_bytes(b"\xff{")
        drive(Requests(taker, Clock()).answer(f".requests/{ID}.json"), share.port)
        assert share.one(ops.stat(f"inbox/.requests/{ID}.receipt.json"))["entry"]

    @pytest.mark.parametrize(
        ("verb", "args", "expected"),
        [
            ("pause", {}, (Verb.CONTROL, {"action": "pause", "worker": "all"})),
            ("resume", {"worker": "w"}, (Verb.CONTROL, {"action": "resume", "worker": "w"})),
            ("drain", {"worker": "w"}, (Verb.DRAIN, {"worker": "w"})),
            ("retry", {"id": "20260101_000000_ab"}, (Verb.REQUEUE, {"batch": "20260101_000000_ab"})),
            ("retry", {"ids": ["a", "b"]}, (Verb.REQUEUE, {"ids": ["a", "b"]})),
            ("why", {"id": "worker-1"}, (Verb.QUERY, {"what": "why", "id": "worker-1"})),
            ("why", {}, (Verb.QUERY, {"what": "why", "id": None})),
        ],
    )
    def test_each_verb_has_its_word_on_the_bus(
        self, verb: str, args: dict[str, Any], expected: tuple[Verb, dict[str, Any]]
    ) -> None:
        assert question(FileRequest(ID, verb, args, None)) == expected

    @pytest.mark.parametrize(
        ("verb", "args"), [("explode", {}), ("cancel", {}), ("pause", {"worker": 3}), ("why", {"id": 3})]
    )
    def test_an_unknown_verb_or_an_empty_one_is_named(self, verb: str, args: dict[str, Any]) -> None:
        with pytest.raises(Invalid):
            question(FileRequest(ID, verb, args, None))
