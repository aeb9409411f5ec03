"""`rigbus planner new`: a plan is dropped whole and only when it is clean; nothing outside its folder is touched."""

from __future__ import annotations

import json
import os
import shlex
import threading
from pathlib import Path

import pytest
from helpers import wait_for

from rigbus.tools.plan_files import MAX_BYTES, problems_of_names

from .planned import PLAN, escalate, make_share, put, sign

GOOD = {
    "name": "count-words",
    "files": {"plan.md": PLAN.replace("census", "count-words")},
    "note": "It counts.",
}
GOOD["files"]["scripts/count.py"] = "#!/usr/bin/env python3\nprint(1)\n"
BAD = {
    "name": "count-words",
    "files": {"plan.md": "# Plan: x\n\n## Tasks\n\n### a\n- **depends_on**: nobody\n"},
}


@pytest.fixture
def share(tmp_path, monkeypatch):
    root = make_share(tmp_path / "share")
    sign(root, 1e9)  # off: nobody waits for a receipt
    monkeypatch.setenv("RIGBUS_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("RIGBUS_SHARED", str(root))
    return root


@pytest.fixture
def author(tmp_path):
    """A command that says these in turn, and keeps what it was asked."""

    def of(*answers) -> str:
        folder = tmp_path / "author"
        folder.mkdir()
        for n, answer in enumerate(answers):
            (folder / f"{n}.json").write_text(answer if isinstance(answer, str) else json.dumps(answer))
        place = shlex.quote(str(folder))
        return (
            f"n=$(ls {place} | grep -c asked); cat > {place}/asked-$n; "
            f"[ -e {place}/$n.json ] || n={len(answers) - 1}; cat {place}/$n.json"
        )

    return of


def asked(tmp_path: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in sorted((tmp_path / "author").glob("asked-*"))]


def everything(share: Path) -> set[str]:
    return {
        os.path.relpath(os.path.join(below, name), share)
        for below, _, names in os.walk(share)
        for name in names
    }


def test_a_clean_plan_is_dropped_whole_and_ready(say, share, author, tmp_path):
    before = everything(share)
    said = say("planner", "new", "count words", "--json", "--cmd", author(GOOD))
    assert said.code == 0, said.err
    assert (said.json["plan"], said.json["tasks"], said.json["rounds"]) == ("count-words", 1, 0)
    new = {f"inbox/count-words/{name}" for name in ("plan.md", "scripts/count.py", "READY")}
    assert everything(share) - before == new
    assert os.access(share / "inbox" / "count-words" / "scripts" / "count.py", os.X_OK)
    assert (share / "inbox" / "count-words" / "plan.md").stat().st_mode & 0o777 == 0o664
    assert asked(tmp_path)[0]["goal"] == "count words"


def test_the_errors_of_our_parser_go_back_until_it_is_clean(say, share, author, tmp_path):
    said = say("planner", "new", "count words", "--json", "--cmd", author(BAD, "no JSON", GOOD))
    assert (said.code, said.json["rounds"]) == (0, 2)
    first, second, third = asked(tmp_path)
    assert "previous" not in first
    assert any("plan.md:" in text for text in second["previous"]["problems"])
    assert "no JSON object" in third["previous"]["problems"][0]


def test_after_three_rounds_it_is_given_up_and_nothing_is_dropped(say, share, author, tmp_path):
    before = everything(share)
    said = say("planner", "new", "count words", "--cmd", author(BAD))
    assert said.code == 5
    assert "plan.md:" in said.err
    assert len(asked(tmp_path)) == 4
    assert everything(share) == before


def test_a_dry_run_prints_it_and_drops_nothing(say, share, author):
    before = everything(share)
    said = say("planner", "new", "count words", "--dry-run", "--cmd", author(GOOD))
    assert said.code == 0
    assert "--- count-words/scripts/count.py" in said.out
    assert everything(share) == before


EVIL = [
    "../escape",
    "/etc/passwd",
    "scripts/../../x",
    ".hidden",
    "scripts/.x",
    "data/x",
    "READY",
    "a\\b",
    "scripts/x ",
]
EVIL += [
    "",
    "scripts/\u202ex",
    "a\nb",
    "x" * 300,
    "x.receipt.json",
    "scripts",
    "SCRIPTS/count.py",
    "plan.md/x",
]


@pytest.mark.parametrize("name", EVIL)
def test_evil_names_are_refused_and_nothing_is_written(say, share, author, name):
    before = everything(share)
    evil = {**GOOD, "files": {**GOOD["files"], name: "x"}}
    assert say("planner", "new", "count words", "--cmd", author(evil)).code == 5
    assert everything(share) == before


@pytest.mark.parametrize("name", ["../census", "a/b", ".x", "", 7, None, "x.tmp"])
def test_evil_names_of_plans_are_refused(say, share, author, name):
    assert say("planner", "new", "count words", "--cmd", author({**GOOD, "name": name})).code == 5


@pytest.mark.parametrize("files", [None, [], {"plan.md": 7}, {}, {f"f{n}.md": "" for n in range(100)}])
def test_what_is_no_map_of_files_is_refused(say, share, author, files):
    assert say("planner", "new", "count words", "--cmd", author({**GOOD, "files": files})).code == 5


def test_too_much_is_refused():
    assert problems_of_names({"plan.md": "x" * (MAX_BYTES + 1)})
    assert problems_of_names({"plan.md": "\ud800"})
    assert not problems_of_names(GOOD["files"])


@pytest.mark.parametrize("there", ["plans/census", "inbox/census"])
@pytest.mark.parametrize("given", [True, False])
def test_a_plan_that_is_there_is_never_replaced(say, share, author, tmp_path, there, given):
    (share / there).mkdir(parents=True, exist_ok=True)
    before = everything(share)
    named = ("--name", "census") if given else ()
    said = say("planner", "new", "count words", *named, "--cmd", author({**GOOD, "name": "census"}))
    assert said.code == 8
    assert "another name" in said.err
    assert everything(share) == before
    assert len(asked(tmp_path)) == (0 if given else 1)  # a name that cannot be had costs no question


def test_its_questions_are_of_the_same_day_as_those_about_escalations(say, share, author, tmp_path):
    words = ("planner", "new", "count words", "--dry-run", "--per-day", "3", "--cmd", author(BAD, BAD, GOOD))
    escalate(share)
    answering = """cat > /dev/null; printf '{"action": "retry"}'"""
    assert say("planner", "run", "--once", "--per-day", "3", "--cmd", answering).code == 0
    said = say(*words)
    assert said.code == 8, said.err
    assert (
        "today's 3 questions are asked" in said.err and "no command" in said.err and "--per-day" in said.err
    )
    assert len(asked(tmp_path)) == 2
    escalate(share, "20261121_081600_11111111")
    assert say("planner", "run", "--once", "--per-day", "3", "--cmd", answering).code == 1
    assert say("planner", "run", "--once", "--per-day", "4", "--cmd", answering).code == 0


def test_the_name_that_a_person_gives_goes_before_the_planners(say, share, author):
    assert say("planner", "new", "count words", "--name", "mine", "--cmd", author(GOOD)).code == 0
    assert (share / "inbox" / "mine" / "READY").exists()
    assert say("planner", "new", "x", "--name", "../x", "--cmd", "true").code == 2
    assert say("planner", "new", " ", "--cmd", "true").code == 2


@pytest.mark.parametrize(("state", "code"), [("accepted", 0), ("refused", 8)])
def test_the_rigs_receipt_is_heard(say, share, author, state, code):
    from time import time

    sign(share, time())
    folder, file = share / "inbox" / "count-words", share / "inbox" / "count-words.receipt.json"
    put(file, {"state": "accepted", "batch_id": "of an earlier drop"})

    def rig():
        wait_for((folder / "READY").exists, timeout_s=60)
        put(file, {"state": "settling", "name": "count-words"})
        problems = [{"what": "no room", "fix": "wait"}]
        put(file, {"state": state, "name": "count-words", "batch_id": "B1", "problems": problems})

    thread = threading.Thread(target=rig)
    thread.start()
    said = say("planner", "new", "count words", "--timeout", "60", "--cmd", author(GOOD))
    thread.join()
    assert said.code == code
    assert (said.out == "B1\n") if code == 0 else ("no room; wait" in said.err)


def test_a_command_that_fails_is_1(say, share):
    said = say("planner", "new", "count words", "--cmd", "echo no quota >&2; exit 9")
    assert said.code == 1
    assert "exit 9: no quota" in said.err
