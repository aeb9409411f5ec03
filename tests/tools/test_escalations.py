"""`rigbus escalations`: what is shown, what is checked before anything is written, and what the rig says."""

from __future__ import annotations

import json
import os
import threading

import pytest

from rigbus.bus.errors import Refused
from rigbus.tools import answering
from rigbus.tools.escalation_rows import FOLDER, Escalations

from .planned import BATCH, ID, MENDED, PLAN, SCRIPT, answer_of, escalate, make_share, played_rig, put
from .test_verbs import loaded_by


@pytest.fixture
def share(tmp_path, monkeypatch):
    root = make_share(tmp_path / "share")
    monkeypatch.setenv("RIGBUS_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("RIGBUS_SHARED", str(root))
    return root


@pytest.fixture
def copy(share, tmp_path):
    """A copy of the plan, with a mended script."""
    folder = tmp_path / "mine" / "census"
    (folder / "scripts").mkdir(parents=True)
    (folder / "plan.md").write_text(PLAN)
    (folder / "scripts" / "count.py").write_text(MENDED)
    return folder


class TestLooking:
    def test_the_list_has_age_batch_plan_cause_title_and_state(self, say, share):
        escalate(share)
        escalate(share, "20261121_070000_ffffffff", status="applied")
        said = say("escalations", "list", "--json")
        (row,) = said.json["escalations"]
        assert (row["id"], row["status"], row["batch"], row["plan"]) == (ID, "pending", BATCH, "census")
        assert (row["cause"], row["answers_left"], row["answer"]) == ("repeated_failures", 3, "none")
        assert 0 <= row["age_s"] < 600
        assert "count fails on every worker" in say("escalations", "list").out
        assert len(say("escalations", "list", "--all", "--json").json["escalations"]) == 2

    def test_nothing_escalated_is_said(self, say, share):
        assert "nothing is escalated" in say("escalations", "list").out

    def test_one_is_shown_with_its_evidence_and_no_escape_of_a_log(self, say, share):
        escalate(share)
        said = say("escalations", "show", "0a1b2c3d")
        assert said.code == 0
        assert "ZeroDivisionError" in said.out
        assert "\x1b" not in said.out
        assert f"rigbus escalations answer {ID}" in said.out
        assert say("escalations", "show", ID, "--json").json["attempts"][0]["worker"] == "worker-1"

    def test_strange_files_are_no_escalations(self, say, share):
        folder = share / FOLDER
        (folder / "20261121_080000_11111111.json").write_text("{half")
        put(folder / "20261121_080000_22222222.json", {"escalation_id": "another"})
        (folder / "20261121_080000_33333333.json").symlink_to("/etc/passwd")
        os.mkfifo(folder / "20261121_080000_44444444.json")
        (folder / "20261121_080000_55555555.json").write_text("[" * 100_000)
        assert say("escalations", "list", "--json").json["escalations"] == []

    def test_fields_of_a_wrong_type_are_shown_all_the_same(self, say, share):
        escalate(
            share, attempts="none", tried={"a": 1}, source_task=[], details="x", actions=None, created_at=7
        )
        assert say("escalations", "show", ID).code == 0
        assert say("escalations", "list").code == 0

    def test_an_unknown_one_is_3_and_no_share_is_4(self, say, share, tmp_path):
        assert say("escalations", "show", "nothing-like-it").code == 3
        assert say("escalations", "list", "--shared", str(tmp_path / "away")).code == 4

    def test_it_needs_no_zmq_and_a_list_no_pydantic(self, share):
        escalate(share)
        assert loaded_by(share, "escalations", "list", "--json") == "0 []"
        assert loaded_by(share, "escalations", "show", ID) == "0 []"
        assert "zmq" not in loaded_by(share, "escalations", "answer", ID, "--retry", "--dry-run")


class TestAnswering:
    def test_a_retry_is_written_and_the_rigs_receipt_printed(self, say, share):
        escalate(share)
        with played_rig(share) as rig:
            said = say(
                "escalations", "answer", ID, "--retry", "count", "--note", "the disk is back", "--by", "ann"
            )
        assert (said.code, said.out) == (0, "retry: 1 task runs again.\n")
        (value,) = rig.seen
        assert value["tasks"] == ["count"]
        assert (value["note"], value["by"]) == ("the disk is back", "ann")
        assert not list((share / FOLDER).glob(".*"))

    def test_what_the_rig_refuses_ends_with_8_and_can_be_answered_again(self, say, share):
        escalate(share)
        problem = {"file": "answer", "what": "no task 'x' ended badly", "fix": "did you mean 'count'?"}
        with played_rig(share, lambda value: [problem] if value["tasks"] == ["x"] else []):
            said = say("escalations", "answer", ID, "--retry", "x")
            assert said.code == 8
            assert "answer: no task 'x' ended badly; did you mean 'count'?" in said.err
            assert say("escalations", "answer", ID, "--retry", "count").code == 0

    def test_a_patch_sends_the_files_that_differ_from_the_plan_in_the_share(self, say, share, copy):
        fields = escalate(share)
        (copy / "scripts" / "new.py").write_text("print(2)\n")
        with played_rig(share) as rig:
            assert say("escalations", "answer", ID, "--patch", copy, "--set", "N=3").code == 0
        (value,) = rig.seen
        assert value["files"] == {"scripts/count.py": MENDED, "scripts/new.py": "print(2)\n"}
        assert value["plan_sha256"] == fields["plan_sha256"]
        assert value["config"] == {"N": 3}

    def test_files_are_sent_by_their_place_in_the_plan(self, say, share, copy):
        escalate(share)
        said = say(
            "escalations", "answer", ID, "--patch", copy / "scripts" / "count.py", "--dry-run", "--json"
        )
        assert said.json["files"] == {"scripts/count.py": MENDED}
        assert answer_of(share) is None

    def test_a_patch_that_breaks_the_plan_is_refused_with_its_line_before_anything_is_written(
        self, say, share, copy
    ):
        escalate(share)
        (copy / "plan.md").write_text(
            PLAN.replace("- **command**", "- **depends_on**: nobody\n- **command**")
        )
        said = say("escalations", "answer", ID, "--patch", copy)
        assert said.code == 5
        assert "plan.md:" in said.err
        assert answer_of(share) is None

    def test_of_a_plan_that_was_edited_since_only_the_rig_can_say(self, say, share, copy):
        escalate(share, plan_sha256="0" * 64)
        (copy / "plan.md").write_text("nothing\n")
        said = say("escalations", "answer", ID, "--patch", copy, "--dry-run")
        assert said.code == 0
        assert "not the revision that failed" in said.err

    def test_a_patch_without_a_difference_is_refused(self, say, share, copy):
        escalate(share)
        (copy / "scripts" / "count.py").write_text(SCRIPT)
        said = say("escalations", "answer", ID, "--patch", copy)
        assert said.code == 2
        assert "nothing differs" in said.err

    def test_a_link_out_of_the_folder_is_not_sent(self, say, share, copy):
        escalate(share)
        (copy / "scripts" / "secret.py").symlink_to("/etc/passwd")
        assert say("escalations", "answer", ID, "--patch", copy).code == 5
        assert answer_of(share) is None

    @pytest.mark.parametrize(
        ("words", "action"),
        [(["--abandon"], "abandon"), (["--human"], "human"), (["--set", "N=3"], "config")],
    )
    def test_each_way_to_answer(self, say, share, words, action):
        escalate(share)
        said = say("escalations", "answer", ID, *words, "--timeout", "0", "--json")
        assert (said.code, said.json["action"], said.json["accepted"]) == (0, action, False)
        assert answer_of(share)["action"] == action

    @pytest.mark.parametrize(
        "words",
        [[], ["--retry", "--abandon"], ["--abandon", "count"], ["--human", "--set", "N=3", "--retry"]],
    )
    def test_two_answers_at_once_are_a_usage_error(self, say, share, words):
        escalate(share)
        assert say("escalations", "answer", ID, *words).code == 2
        assert answer_of(share) is None

    @pytest.mark.parametrize(
        "text",
        [
            "{",
            "[]",
            '{"escalation_id": "x", "action": "retry"}',
            json.dumps({"escalation_id": ID, "action": "explode"}),
            json.dumps({"escalation_id": ID, "action": "retry", "unknown": 1}),
            json.dumps({"escalation_id": ID, "action": "patch", "files": {"../x": "y"}}),
            json.dumps({"escalation_id": ID, "action": "patch", "files": {"scripts/.x": "y"}}),
            json.dumps({"escalation_id": ID, "action": "patch", "files": {"data/x": "y"}}),
            json.dumps(
                {"escalation_id": ID, "action": "patch", "files": {"scripts/A.py": "", "scripts/a.py": ""}}
            ),
            json.dumps({"escalation_id": ID, "action": "config", "config": {"N": float("inf")}}),
            "[" * 50_000,
        ],
    )
    def test_a_file_that_is_no_answer_is_refused_before_anything_is_written(self, say, share, tmp_path, text):
        escalate(share)
        file = tmp_path / "answer.json"
        file.write_text(text)
        said = say("escalations", "answer", ID, "--file", file)
        assert said.code == 2
        assert said.err.startswith("rigbus: ")
        assert answer_of(share) is None

    def test_a_whole_answer_from_a_file_is_taken(self, say, share, tmp_path):
        escalate(share)
        file = tmp_path / "answer.json"
        file.write_text(json.dumps({"escalation_id": ID, "action": "retry"}))
        assert say("escalations", "answer", ID, "--file", file, "--timeout", "0").code == 0
        assert answer_of(share) == {"schema": "rigbus.answer/1", "escalation_id": ID, "action": "retry"}

    def test_an_action_that_is_not_to_be_had_is_refused(self, say, share):
        escalate(share, actions=["abandon"])
        said = say("escalations", "answer", ID, "--retry")
        assert said.code == 2
        assert "of this escalation: abandon" in said.err

    def test_a_second_answer_is_refused_while_the_first_waits(self, say, share):
        escalate(share)
        assert say("escalations", "answer", ID, "--retry", "--timeout", "0").code == 0
        said = say("escalations", "answer", ID, "--abandon")
        assert said.code == 8
        assert answer_of(share)["action"] == "retry"

    def test_a_person_answers_after_the_planner_gave_it_to_people(self, say, share):
        escalate(share)
        with played_rig(share):
            assert say("escalations", "answer", ID, "--human").code == 0
            assert say("escalations", "answer", ID, "--retry").code == 0
            assert say("escalations", "answer", ID, "--abandon").code == 8

    def test_a_rig_that_is_off_reads_it_later(self, say, share):
        from .planned import sign

        sign(share, 1e9)
        escalate(share)
        said = say("escalations", "answer", ID, "--retry", "--json")
        assert (said.code, said.json["accepted"]) == (0, False)

    def test_a_rig_that_does_not_answer_is_7(self, say, share):
        escalate(share)
        assert say("escalations", "answer", ID, "--retry", "--timeout", "0.3").code == 7

    def test_of_two_at_the_same_moment_one_answers(self, share):
        fields = escalate(share)
        found = Escalations(share)
        made = [
            answering.checked({"escalation_id": ID, "action": "retry", "by": f"{n}"}, fields)
            for n in range(8)
        ]
        gate = threading.Barrier(len(made))
        won: list[str] = []

        def go(answer):
            gate.wait()
            try:
                answering.write(found, answer)
            except Refused:
                return
            won.append(answer.by)

        threads = [threading.Thread(target=go, args=(one,)) for one in made]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [answer_of(share)["by"]] == won

    def test_a_share_without_hard_links_takes_answers_too(self, share, monkeypatch):
        fields = escalate(share)
        found = Escalations(share)

        def link(*_names):
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
        answering.write(found, answering.checked({"escalation_id": ID, "action": "retry"}, fields))
        assert answer_of(share)["action"] == "retry"
        with pytest.raises(Refused):
            answering.write(found, answering.checked({"escalation_id": ID, "action": "abandon"}, fields))
