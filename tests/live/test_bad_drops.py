"""Bad drops, as a person or a broken copy makes them: each gets a receipt that says what, where and the fix, nothing
is harmed, and the rig goes on. One rig for all."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from drops import GOOD, HEAD, drop, own_rig, receipt, run_plan, say, task, tasks_of
from helpers import wait_for
from rigs import LiveRig

A = task("a", "true")

#: name -> (the plan, file and line that the receipt names, words of it)
BAD_PLANS: dict[str, tuple[str | bytes, int, str]] = {
    "half-fence": (
        HEAD + "### a\n\n- **command**:\n\n```bash\necho hel",
        9,
        "never closed (is the file half",
    ),
    "half-table": ("# Plan: p\n\n## Tasks\n\n| id | command |\n|---|---|\n| one | `ec", 3, "no tasks"),
    "half-task": (HEAD + A + "### b\n\n- **comm", 9, "no command (is the file half written?)"),
    "half-list": (HEAD + '### a\n\n- **argv**: ["echo", "x', 7, "argv is no JSON list"),
    "half-word": (HEAD + A + task("two", "true", depends_on="aa"), 12, "unknown task 'aa'"),
    "binary": (bytes(range(256)) * 100, 1, "binary"),
    "latin-1": (HEAD.encode() + b"### a\n- **command**: `echo caf\xe9`\n", 6, "not UTF-8"),
    "empty": ("", 1, "empty"),
    "no-tasks": ("# Plan: p\n\nnothing to do\n", 1, "no tasks"),
    "cyclic": (HEAD + task("a", "true", depends_on="b") + task("b", "true", depends_on="a"), 8, "a → b → a"),
    "twice": (HEAD + A + A, 9, "stands twice"),
    "unresolved": (HEAD + task("a", "echo {NOBODY}"), 7, "{NOBODY}, which nothing sets"),
    "no-item": (HEAD + task("a", "echo {ITEM.id}"), 7, "has no foreach"),
    "bad-number": (HEAD + task("a", "true", timeout_s="soon"), 8, "timeout_s is 'soon'"),
}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRig]:
    with own_rig(tmp_path_factory) as rig:
        yield rig


@pytest.fixture(autouse=True)
def _the_rig_stays_up(rig: LiveRig, request: pytest.FixtureRequest) -> Iterator[None]:
    """After each test the same processes run, and a good plan does what it should."""
    before = rig.pids()
    yield
    assert rig.pids() == before
    name = f"good-{request.node.name[:40].strip('[]')}".replace("[", "-").replace(" ", "-")
    with rig.client() as client:
        assert rig.wait_batch(run_plan(rig, name, GOOD), client)["state"] == "complete"


def problem(rig: LiveRig, name: str) -> dict[str, object]:
    """The first problem of a refusal; it has all that a person needs, and the page says the same."""
    said = receipt(rig, name)
    assert said["state"] == "refused", said
    first: dict[str, object] = said["problems"][0]
    assert first["what"], said
    assert first["file"], said
    assert first["fix"], said
    page = (rig.shared / "inbox" / f"{name}.receipt.md").read_text()
    assert "refused" in page
    assert "Fix: " in page
    assert "/state/" not in page, "a path that means nothing on the Pi"
    return first


def test_a_bad_plan_is_refused_with_file_line_and_fix(rig: LiveRig) -> None:
    for name, (plan, _line, _words) in BAD_PLANS.items():
        drop(rig, name, plan)
    for name, (_plan, line, words) in BAD_PLANS.items():
        first = problem(rig, name)
        assert words in str(first["what"]), (name, first)
        assert (first["file"], first["line"]) == ("plan.md", line), (name, first)
    refused = rig.shared / "inbox" / ".refused"
    wait_for(lambda: set(BAD_PLANS) <= set(os.listdir(refused)), what="the refused to be put aside")


def test_a_refused_drop_that_is_mended_and_moved_back_runs(rig: LiveRig) -> None:
    inbox = rig.shared / "inbox"
    drop(rig, "mend", BAD_PLANS["unresolved"][0])
    problem(rig, "mend")
    aside = inbox / ".refused" / "mend"
    assert f"inbox/.refused/{aside.name}" in receipt(rig, "mend")["note"]
    wait_for(aside.is_dir, what="the refused to be put aside")
    (aside / "config.json").write_text('{"NOBODY": "somebody"}')
    aside.rename(inbox / "mend")
    said = wait_for(lambda: _accepted(inbox / "mend.receipt.json"), what="the second receipt")
    with rig.client() as client:
        assert rig.wait_batch(str(said), client)["state"] == "complete"


def _accepted(path: Path) -> str:
    said = json.loads(path.read_text())
    return str(said["batch_id"]) if said["state"] == "accepted" else ""


ODD_NAMES: dict[str | bytes, str] = {
    "-rf": "rf-686c39ac",
    "a\nb": "a-b-7e18f737",
    "a b; rm -rf x": "a-b-rm-rf-x-e3dcc3f9",
    "x" * 255: "x" * 40 + "-d22609da",
    b"caf\xe9": "caf-dafd66c0",
    "\x1b[31mred": "31mred-fdd8a1d7",
    "\u202egpj.exe": "",
}


def test_a_name_that_cannot_be_a_plans_is_refused_under_a_plain_one(rig: LiveRig) -> None:
    inbox = rig.shared / "inbox"
    before = set(os.listdir(rig.shared / "plans"))
    for name in ODD_NAMES:
        drop(rig, name)
    hidden = drop(rig, "..x")
    for name, stem in ODD_NAMES.items():
        if stem:
            assert "cannot name a plan" in str(problem(rig, stem)["what"]), name
    pages = "".join(p.read_text() for p in inbox.glob("*.receipt.md"))
    assert all(c.isprintable() or c == "\n" for c in pages), "a terminal would act on this"
    raw = {os.fsencode(name) for name in ODD_NAMES}
    aside = os.fsencode(inbox / ".refused")
    wait_for(lambda: raw <= set(os.listdir(aside)), what="the refused to be put aside")
    assert hidden.is_dir(), "a hidden name is never a plan"
    assert set(os.listdir(rig.shared / "plans")) == before


def test_what_is_no_folder_or_leads_out_of_it_is_refused(rig: LiveRig, tmp_path: Path) -> None:
    inbox = rig.shared / "inbox"
    secret = tmp_path / "secret"
    secret.write_text("secret")
    os.mkfifo(inbox / "pipe")
    (inbox / "way-out").symlink_to(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(inbox / "door"))
    with (drop(rig, "huge", "", ready=None) / "plan.md").open("wb") as file:
        file.truncate(50 << 20)
    (drop(rig, "file-out", ready=None) / "notes.txt").symlink_to(secret)
    (drop(rig, "folder-out", ready=None) / "scripts").symlink_to(tmp_path)
    deep = drop(rig, "deep-out", files={"scripts/a.py": ""}, ready=None)
    (deep / "scripts" / "b.py").symlink_to("../../../../../../etc/passwd")
    (drop(rig, "plan-out", None, ready=None) / "plan.md").symlink_to(secret)
    os.mkfifo(drop(rig, "plan-pipe", None, ready=None) / "plan.md")
    os.mkfifo(drop(rig, "pipe-in", files={"scripts/a.py": ""}, ready=None) / "scripts" / "p")
    drop(rig, "no-plan", None)
    for name in ("huge", "file-out", "folder-out", "deep-out", "plan-out", "plan-pipe", "pipe-in"):
        (inbox / name / "READY").touch()
    words = {
        "pipe": "it is a fifo",
        "way-out": "it is a link",
        "door": "it is a socket",
        "huge": "the limit is",
        "file-out": "leads out of its folder",
        "folder-out": "leads out of its folder",
        "deep-out": "leads out of its folder",
        "plan-out": "plan.md is a link",
        "plan-pipe": "plan.md is a fifo",
        "pipe-in": "not a regular file",
        "no-plan": "there is no plan.md",
    }
    for name, what in words.items():
        assert what in str(problem(rig, name)["what"]), name
    staged = [
        p for p in (rig.state / "staged").rglob("*") if p.is_file() and "secret" in p.read_text("latin-1")
    ]
    assert not staged
    assert secret.read_text() == "secret"


def test_a_ready_or_config_that_is_broken_says_where(rig: LiveRig) -> None:
    drop(rig, "ready-half", ready=b'{"config": {"A": ')
    drop(rig, "ready-list", ready=b"[1]")
    drop(rig, "ready-binary", ready=bytes(range(128, 256)))
    drop(rig, "ready-urgency", ready=b'{"priority": "mega"}')
    drop(rig, "config-half", files={"config.json": "{"})
    first = problem(rig, "ready-half")
    assert (first["file"], first["line"]) == ("READY", 1)
    assert "half written?" in str(first["what"])
    assert "leave it empty" in str(first["fix"])
    assert "no" in str(problem(rig, "ready-list")["what"])
    assert "UTF-8" in str(problem(rig, "ready-binary")["what"])
    assert "urgent" in str(problem(rig, "ready-urgency")["fix"])
    assert problem(rig, "config-half")["file"] == "config.json"


def test_a_slow_copy_starts_when_it_lies_still_and_a_single_file_too(rig: LiveRig) -> None:
    inbox = rig.shared / "inbox"
    slow = inbox / "slow"
    slow.mkdir()
    said = wait_for(lambda: _state(inbox / "slow.receipt.json"), what="a receipt at once")
    assert said == "waiting"
    (slow / "plan.md").write_text(HEAD + task("one", "cat {PLAN_PATH}/scripts/late.txt"))
    wait_for(lambda: _state(inbox / "slow.receipt.json") == "settling", what="the settling")
    (slow / "scripts").mkdir()
    (slow / "scripts" / "late.txt").write_text("it came\n")  # well before the plan has settled
    (inbox / "single.md").write_text(GOOD)
    (inbox / "lonely.md").write_text(HEAD + task("a", "echo {NOBODY}"))
    with rig.client() as client:
        batch = receipt(rig, "slow")["batch_id"]
        assert rig.wait_batch(batch, client)["state"] == "complete"
        log = rig.shared / f"plans/slow/batches/{batch}/logs/one.1.log"
        wait_for(lambda: log.exists() and log.read_text() == "it came\n", what="the log's copy")
        assert rig.wait_batch(receipt(rig, "single")["batch_id"], client)["state"] == "complete"
    assert problem(rig, "lonely")["file"] == "lonely.md"
    assert (rig.shared / "plans/single/plan.md").read_text() == GOOD


def _state(path: Path) -> str:
    try:
        return str(json.loads(path.read_text())["state"])
    except (OSError, ValueError):
        return ""


def test_a_new_copy_of_the_same_plan_is_a_new_run_and_keeps_the_old_results(rig: LiveRig) -> None:
    inbox, plan = rig.shared / "inbox", HEAD + task("one", "echo ran > {BATCH_PATH}/ran")
    batches = []
    with rig.client() as client:
        for _ in range(2):
            batches.append(run_plan(rig, "again", plan))
            rig.wait_batch(batches[-1], client)
            wait_for(lambda: not (inbox / "again").exists(), what="the drop to be moved")
            (inbox / "again.receipt.json").unlink()
    assert len(set(batches)) == 2
    for batch in batches:
        assert (rig.shared / f"plans/again/batches/{batch}/ran").read_text() == "ran\n"


LIST = "{PLAN_PATH}/input/list.json:items"
EVIL_IDS = ["a b; rm -rf x", "$(touch {BOOM})", "`touch {BOOM}`", "-rf", "../../etc", "é\n'\"\\", "\x1b[31m"]
#: name -> (foreach, the list file, words of the error)
BAD_LISTS: dict[str, tuple[str, str, str]] = {
    "list-twice": (
        LIST,
        '{"items": [{"id": "a"}, {"id": "b"}, {"id": "a"}]}',
        "stands twice in the list: 'a'",
    ),
    "list-missing": ("{PLAN_PATH}/input/none.json:items", "", "{PLAN_PATH}/input/none.json is not there"),
    "list-object": (LIST, '{"items": {"id": 1}}', "not a list"),
    "list-path": ("{PLAN_PATH}/input/list.json:things", '{"items": []}', "nothing at 'things'"),
    "list-half": (LIST, '{"items": [{"id":', "is no JSON"),
    "list-folder": ("{PLAN_PATH}/input:items", "", "is no file"),
    "list-device": ("/dev/zero:items", "", "is no file"),
    "list-field": (LIST, '{"items": [{"x": 1}]}', "ITEM has no id; its fields are: x"),
    "list-nul": (LIST, '{"items": [{"id": "a\\u0000b"}]}', "NUL"),
    "list-long": (LIST, json.dumps({"items": [{"id": "y" * 70_000}]}), "at most 65536"),
}


def _each(foreach: str) -> str:
    each = task("each", "echo {ITEM.id} | tee -a {BATCH_PATH}/out", foreach=foreach)
    return HEAD + each + task("end", "echo end", depends_on="each")


def test_a_list_that_cannot_be_used_ends_its_batch_with_the_reason(rig: LiveRig) -> None:
    batches = {
        name: run_plan(rig, name, _each(foreach), files={"input/list.json": text})
        for name, (foreach, text, _words) in BAD_LISTS.items()
    }
    with rig.client() as client:
        for name, batch in batches.items():
            assert rig.wait_batch(batch, client)["state"] == "failed", name
    for name, batch in batches.items():
        tasks = tasks_of(rig, batch)
        errors = [str(t["error"]) for t in tasks.values()]
        assert any(BAD_LISTS[name][2] in e for e in errors), (name, errors)
        assert tasks["end"]["state"] in ("skipped", "cancelled"), name


def test_ids_of_items_are_data_and_an_empty_list_is_done(rig: LiveRig, tmp_path: Path) -> None:
    boom = tmp_path / "boom"
    ids = [text.replace("{BOOM}", str(boom)) for text in EVIL_IDS]
    items = json.dumps({"items": [{"id": text} for text in ids]})
    evil = run_plan(rig, "evil-items", _each(LIST), files={"input/list.json": items})
    none = run_plan(rig, "no-items", _each(LIST), files={"input/list.json": '{"items": []}'})
    with rig.client() as client:
        assert rig.wait_batch(evil, client)["tasks"]["done"] == len(ids) + 3
        assert rig.wait_batch(none, client)["state"] == "complete"
    home = rig.shared / f"plans/evil-items/batches/{evil}"
    out = (home / "out").read_text()
    assert all(f"{text}\n" in out for text in ids)
    assert len(out) == sum(len(text) + 1 for text in ids)
    assert not boom.exists()
    logs = home / "logs"
    wait_for(lambda: len(list(logs.glob("*.log"))) == len(ids) + 1, what="the logs' copies")
    assert all(
        name.isascii() and name.isprintable() and not name.startswith("-") for name in os.listdir(logs)
    )


def test_three_failures_bury_a_task_and_retry_brings_it_back(rig: LiveRig) -> None:
    plan = HEAD + task("a", "echo oh no >&2; test -e {BATCH_PATH}/mended", backoff_s="0.1")
    batch = run_plan(rig, "thrice", plan + task("b", "echo b", depends_on="a"))
    with rig.client() as client:
        assert rig.wait_batch(batch, client)["state"] == "failed"
        tasks = tasks_of(rig, batch)
        assert (tasks["a"]["state"], tasks["b"]["state"]) == ("dead", "skipped")
        assert [a["error"] for a in tasks["a"]["attempts"]] == ["exit 1: oh no"] * 3
        code, out, _ = say(rig, "why", batch)
        assert code == 0
        assert "a dead: exit 1: oh no" in out
        assert f"rigbus retry {batch}" in out
        (rig.shared / f"plans/thrice/batches/{batch}/mended").touch()
        assert say(rig, "retry", batch)[0] == 0
        assert rig.wait_batch(batch, client)["state"] == "complete"
    assert {t["state"] for t in tasks_of(rig, batch).values()} == {"done"}


def test_on_failure_says_what_becomes_of_the_rest(rig: LiveRig, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    bad = {"max_attempts": 1, "backoff_s": "0.1"}
    waiting = task("b", f"until [ -e {gate} ]; do sleep 0.05; done; echo b")
    after = task("c", "echo c", depends_on="a")
    abort = run_plan(rig, "abort", HEAD + task("a", "exit 3", on_failure="abort", **bad) + waiting + after)
    goes_on = run_plan(rig, "goes-on", HEAD + task("a", "exit 3", on_failure="continue", **bad) + after)
    slow = run_plan(rig, "slow-task", HEAD + task("a", "sleep 30", timeout_s="0.5", **bad))
    with rig.client() as client:
        row = rig.wait_batch(abort, client)
        assert row["state"] == "failed"
        assert "a ended dead (exit 3)" in row["error"]
        assert {n: t["state"] for n, t in tasks_of(rig, abort).items()} == {
            "a": "dead",
            "b": "cancelled",
            "c": "skipped",
        }
        rig.wait_batch(goes_on, client)
        assert tasks_of(rig, goes_on)["c"]["state"] == "done"
        assert rig.wait_batch(slow, client)["tasks"]["dead"] == 1
    assert "timed out after 0.5 s" in str(tasks_of(rig, slow)["a"]["error"])


def test_two_plans_share_the_workers_and_one_is_cancelled_in_the_middle(rig: LiveRig, tmp_path: Path) -> None:
    both, never = tmp_path / "both", tmp_path / "never"
    plan = HEAD + "".join(
        task(f"t{n}", f"until [ -e {both} ]; do sleep 0.02; done; sleep 0.05") for n in range(40)
    )
    last = task("last", f"until [ -e {never} ]; do sleep 0.02; done", depends_on="t39")
    first, second = run_plan(rig, "first", plan), run_plan(rig, "second", plan + last)
    with rig.client() as client:
        wait_for(lambda: rig.batch(second, client)["total"] == 41, what="both to be planned")
        both.touch()
        done = rig.wait_done(second, client, 10)["tasks"]["done"]
        ahead = rig.batch(first, client)["tasks"]["done"] - done
        assert ahead < 30, "the second plan waited for the first one"
        code, out, err = say(rig, "cancel", second)
        assert code == 0, err
        assert "cancelled" in out + err
        row = rig.wait_batch(second, client)
        assert row["state"] == "cancelled"
        assert row["tasks"]["cancelled"] > 0
        assert rig.wait_batch(first, client)["state"] == "complete"


def test_a_deleted_mirror_comes_back_while_a_plan_runs(rig: LiveRig, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    waits = task("a", f"until [ -e {gate} ]; do sleep 0.05; done") + task("b", "echo b", depends_on="a")
    batch = run_plan(rig, "mirrored", HEAD + waits)
    here = rig.shared
    state = here / "brain/state.json"
    wait_for(lambda: state.exists() and batch in state.read_text(), what="the batch in the mirror")
    before = sorted(p.name for p in (here / "tasks/complete").iterdir())
    for folder in ("tasks", "brain", "workers", "logs", "signals"):
        # by one rename: the bridge goes on writing into it
        gone = (here / folder).rename(here.with_name(f"{folder}-gone"))
        shutil.rmtree(gone, ignore_errors=True)
    gate.touch()
    with rig.client() as client:
        assert rig.wait_batch(batch, client)["state"] == "complete"

    def back() -> bool:
        lane = here / "tasks/complete"
        names = set(os.listdir(lane)) if lane.is_dir() else set()
        rest = ("brain/state.json", "workers/worker-1/heartbeat.json", "logs/brain_decisions.log")
        return names > set(before) and all((here / path).exists() for path in rest)

    wait_for(back, timeout_s=40, what="the mirror to come back")
