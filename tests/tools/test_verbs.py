"""The verbs against a real broker, brain and workers: what they print, and how they end."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
from helpers import slack, wait_for

from rigbus.bus.client.client import Client
from rigbus.bus.paths import rig_paths
from rigbus.bus.telemetry import RigStatus
from rigbus.tools import reach
from rigbus.tools.cli import VERBS

from .conftest import plan_text


def submitted(say, rig, *options, **commands):
    """A plan run to its end: the answer of submit."""
    return say("submit", rig.plan(plan_text(**commands)), "--wait", "--timeout", "30", "--json", *options)


def test_a_submitted_plan_runs_to_its_end(say, here):
    said = submitted(say, here, make="echo made > {BATCH_PATH}/x.txt", show="cat {BATCH_PATH}/x.txt")
    assert said.code == 0, said.err
    answer = said.json
    assert (answer["schema"], answer["tasks"], answer["state"]) == ("rigbus.submit/1", 2, "complete")
    batch = here.shared / "plans" / answer["plan"] / "batches" / answer["batch_id"]
    assert (batch / "x.txt").read_text() == "made\n"
    assert "bus mode" in said.err


def test_an_invalid_plan_ends_with_5_and_nothing_is_written(say, here):
    before = sorted(here.shared.rglob("*"))
    folder = here.plan(
        "# Plan: x\n\n## Tasks\n\n### a\n- **command**: `true`\n- **depends_on**: b\n\n### a\n"
    )
    said = say("submit", folder)
    assert said.code == 5
    assert f"{folder}/plan.md:7: " in said.err
    assert "'b'" in said.err
    assert sorted(here.shared.rglob("*")) == before
    assert not said.out


def test_a_config_json_in_the_plans_folder_counts_and_flags_go_before_it(say, here):
    folder = here.plan(plan_text(a="echo {WORD} {OTHER} > {BATCH_PATH}/w"))
    (folder / "config.json").write_text('{"config": {"WORD": "file", "OTHER": "o"}, "priority": "high"}')
    said = say("submit", folder, "--wait", "--json", "--set", "WORD=flag")
    assert said.code == 0, said.err
    batch = here.shared / "plans" / folder.name / "batches" / said.json["batch_id"]
    assert (batch / "w").read_text() == "flag o\n"
    assert say("batch", "show", said.json["batch_id"], "--json").json["priority"] == 8

    (folder / "config.json").write_text('{"WORD": ')
    refused = say("submit", folder)
    assert refused.code == 5
    assert "config.json:1: it is no valid JSON" in refused.err


def test_a_variable_without_a_value_is_named_and_can_be_set(say, here):
    folder = here.plan(plan_text(a="echo {WORD} > {BATCH_PATH}/w"))
    refused = say("submit", folder)
    assert refused.code == 5
    assert "--set WORD=" in refused.err
    said = say("submit", folder, "--wait", "--json", "--config", '{"WORD": "x"}', "--set", "WORD=it's $(me)")
    assert said.code == 0, said.err
    batch = here.shared / "plans" / folder.name / "batches" / said.json["batch_id"]
    assert (batch / "w").read_text() == "it's $(me)\n"


def test_a_plan_in_the_share_runs_by_its_name_and_keeps_earlier_runs(say, here):
    folder = here.plan(plan_text(a="true"), name="again")
    (folder / "scripts").mkdir()
    (folder / "scripts" / "old.py").write_text("1")
    first = say("submit", folder, "--wait", "--json").json["batch_id"]
    (folder / "scripts" / "old.py").unlink()
    (folder / "scripts" / "new.py").write_text("2")
    assert say("submit", folder, "--wait").code == 0
    third = say("submit", "again", "--wait", "--json").json
    plan = here.shared / "plans" / "again"
    assert sorted(p.name for p in (plan / "scripts").iterdir()) == ["new.py"]
    assert {first, third["batch_id"]} <= {p.name for p in (plan / "batches").iterdir()}
    assert not [p.name for p in (here.shared / "plans").iterdir() if p.name.startswith(".")]


def test_a_name_that_is_no_plan_ends_with_3_and_the_nearest(say, here):
    say("submit", here.plan(plan_text(a="true"), name="census"), "--wait")
    said = say("submit", "censu")
    assert said.code == 3
    assert "did you mean 'census'?" in said.err


def test_a_dry_run_writes_nothing_and_needs_no_rig(say, here, tmp_path):
    folder = here.plan(plan_text(a="echo {WORD}", b="true"))
    said = say("submit", folder, "--set", "WORD=1", "--dry-run", "--json", "--state", tmp_path / "none")
    assert said.code == 0, said.err
    assert [t["name"] for t in said.json["would_run"]] == ["a", "b"]
    assert said.json["values"]["WORD"] == 1
    assert not (here.shared / "plans" / folder.name).exists()


def test_a_plan_that_fails_ends_with_6_and_retry_revives_what_was_skipped(say, here):
    flag = here.folder / "flag"
    said = submitted(say, here, fails=f"test -e {flag}", after="echo fine")
    assert said.code == 6
    assert "fails dead" in said.err
    batch = said.json["batch_id"]
    shown = say("batch", "show", batch, "--json").json
    assert {t["name"]: t["state"] for t in shown["tasks"]} == {"fails": "dead", "after": "skipped"}
    assert shown["tasks"][0]["attempts"][0]["outcome"] == "task"
    assert say("watch", batch).code == 6
    flag.touch()
    again = say("retry", batch, "--json")
    assert again.code == 0
    assert again.json["requeued"] + again.json["revived"] == 2
    assert say("watch", batch).code == 0
    nothing = say("retry", batch)
    assert nothing.code == 1
    assert "nothing to run again" in nothing.err


def test_a_wait_that_is_too_short_ends_with_7_and_cancel_ends_the_task(say, here):
    folder = here.plan(plan_text(long="exec sleep 30"))
    said = say("submit", folder, "--wait", "--timeout", "0.3", "--json")
    assert said.code == 7
    batch = said.json["batch_id"]
    wait_for(lambda: say("task", "list", "--batch", batch, "--json").json["tasks"], what="it to be planned")
    wait_for(lambda: say("task", "show", f"{batch}/long", "--json").json["state"] == "leased")
    cancelled = say("cancel", f"{batch}/long", "--json").json
    assert cancelled["ending"] + cancelled["cancelled"] == 1
    wait_for(lambda: say("task", "show", f"{batch}/long", "--json").json["state"] == "cancelled")
    assert say("cancel", batch, "--json").json["already"] == 1


def test_ctrl_c_in_the_submit_of_a_load_takes_it_back(say, here, monkeypatch):
    submit, asked = Client.submit, []

    def interrupted(bus, *given, **how):
        ids = submit(bus, *given, **how)
        asked.append(ids[0])
        if len(asked) == 1:  # the broker has it, its answer is not read yet
            raise KeyboardInterrupt
        return ids

    monkeypatch.setattr(Client, "submit", interrupted)
    assert say("load", "small").code == 130
    assert len(set(asked)) == 1 and len(asked) == 2
    with Client(state=here.state) as bus:
        row = bus.query("task", id=asked[0])["rows"][0]
        assert row["cancel_requested"] or row["state"] == "cancelled"


def test_status_is_what_the_schema_says(say, here):
    submitted(say, here, a="true")
    said = say("status", "--json")
    assert said.code == 0
    status = RigStatus.model_validate(said.json)
    assert {w.id for w in status.workers} == {"worker-1", "teller"}
    assert status.batches[-1].state == "complete"
    assert status.batches[-1].progress == 1
    assert said.json["tasks"]["done"] >= 1
    assert "worker-1" in say("status").out


def test_tasks_can_be_listed_and_shown_by_the_start_of_their_id(say, here):
    batch = submitted(say, here, one="echo first; echo second >&2").json["batch_id"]
    (row,) = say("task", "list", "--batch", batch, "--json").json["tasks"]
    shown = say("task", "show", row["id"][:8], "--json").json
    assert (shown["name"], shown["state"], shown["result"]["exit"]) == ("one", "done", 0)
    assert shown["attempts"][0]["worker"] == "worker-1"
    assert say("task", "list", "--batch", batch, "--state-is", "dead", "--json").json["tasks"] == []
    assert "first" in say("task", "show", f"{batch}/one").out
    assert say("task", "show", "00000000").code == 3


def test_logs_show_what_a_task_wrote_and_follow_it_to_its_end(say, here):
    folder = here.plan(plan_text(slow="echo one; read -t 0.6 x <> <(:); printf 'two\\x1b[31m\\n'"))
    batch = say("submit", folder, "--json").json["batch_id"]
    wait_for(lambda: say("task", "list", "--batch", batch, "--json").json["tasks"])
    said = say("logs", "-f", f"{batch}/slow")
    assert said.code == 0
    assert said.out == "one\ntwo\\x1b[31m\n"
    assert say("logs", f"{batch}/slow").out == said.out
    assert say("logs", f"{batch}/slow", "--json").json["text"] == "one\ntwo\x1b[31m\n"
    assert say("logs", f"{batch}/slow", "--attempt", "7").code == 3


def test_why_names_the_test_that_fails_and_the_command_that_changes_it(say, here):
    assert say("pause", "worker-1", "--json").json["action"] == "pause"
    try:
        batch = say("submit", here.plan(plan_text(held="true")), "--json").json["batch_id"]
        wait_for(lambda: say("task", "list", "--batch", batch, "--json").json["tasks"])
        said = say("why", f"{batch}/held", "--json").json
        tests = {p["name"]: p for w in said["workers"] if w["worker"] == "worker-1" for p in w["predicates"]}
        assert tests["type"]["ok"]
        assert not tests["worker not paused"]["ok"]
        assert "NO worker not paused: worker-1 is paused -> rigbus resume worker-1" in say("why", batch).out
        assert "paused" in say("why", "worker-1").out
    finally:
        assert say("resume", "all").code == 0
    assert say("watch", batch).code == 0
    assert say("why", "nobody").code == 3


def test_drain_and_pause_of_an_unknown_worker_end_with_3(say, here):
    assert say("drain", "worker-1", "--json").json == {
        "schema": "rigbus.drain/1",
        "worker": "worker-1",
        "running": 0,
    }
    wait_for(lambda: say("status", "--json").json["workers"][1]["state"] == "draining")
    say("resume", "worker-1")
    assert say("pause", "worker-9").code == 3


def test_a_call_streams_text_and_otherwise_prints_its_value(say, here):
    said = say("call", "tell", 'words=["one ", "two\\u001b"]')
    assert (said.code, said.out) == (0, "one two\\x1b\n")
    assert say("call", "add", "a=2").json == 2.5
    whole = say("call", "tell", 'words=["x"]', "times=3", "--json").json
    assert (whole["ok"], whole["value"]) == (True, {"words": 3})


def test_a_call_that_fails_ends_with_6_and_one_that_lasts_with_7(say, here):
    said = say("call", "fall", "--attempts", "1")
    assert said.code == 6
    assert "it fell\\x1b[31m" in said.err
    assert say("call", "add", "a=x").code == 6
    assert say("call", "add", "novalue").code == 2
    assert say("call", "wait", "--timeout", "0.2").code == 7
    nobody = say("call", "nothing", "--timeout", "0.1")
    assert nobody.code == 7
    assert "no agent handles 'nothing'" in nobody.err
    [command] = re.findall(r"`rigbus (why \S+)` tells why", nobody.err)
    assert say(*command.split()).code == 0  # as it stands there
    assert "did you mean fall?" in say("call", "fal", "--timeout", "0.1").err


def test_sniff_follows_one_task_from_the_log_in_order(say, here):
    batch = submitted(say, here, a="true", b="true").json["batch_id"]
    said = say("sniff", "--follow", f"{batch}/b", "--for", "10")
    assert said.code == 0
    records = [json.loads(line) for line in said.out.splitlines()]
    words = [r["topic"].rpartition(".")[2] for r in records if r["verb"] == "EVENT"]
    assert words[0] == "waiting"
    assert [w for w in words if w in ("ready", "leased", "done")] == ["ready", "leased", "done"]
    assert {"ts", "seq", "dir", "peer", "verb", "topic", "task_id", "batch_id", "bytes", "latency_ms"} <= set(
        records[0]
    )
    assert all(a["ts"] <= b["ts"] for a, b in pairwise(records))


def test_sniff_shows_what_passes_and_reads_what_it_wrote(say, here, tmp_path):
    # Workers RENEW every second, so something always passes.
    capture = tmp_path / "capture"
    said = say("sniff", "-n", "3", "--for", "10", "--write", capture, "verb=RENEW,RENEWED")
    assert [json.loads(line)["verb"][:5] for line in said.out.splitlines()] == ["RENEW"] * 3
    incoming = sum(json.loads(line)["dir"] == "in" for line in said.out.splitlines())
    assert say("sniff", "--read", capture, "dir=in").out.count("\n") == incoming
    capture.write_text("{}\n")
    assert say("sniff", "--read", capture).code == 2
    assert say("sniff", "nonsense=1").code == 2


def test_sniff_since_reads_the_log(say, here):
    submitted(say, here, a="true")
    said = say("sniff", "--since", "1h", "-n", "2", "task.shell.done")
    assert said.code == 0
    assert [json.loads(line)["topic"] for line in said.out.splitlines()] == ["task.shell.done"] * len(
        said.out.splitlines()
    )
    assert say("sniff", "--since", "soon").code == 2


def test_watch_once_shows_batches_workers_and_decisions(say, here):
    batch = submitted(say, here, seen="true").json["batch_id"]
    said = say("watch", "--once")
    assert batch in said.out
    assert "100%" in said.out
    assert "task.shell.done seen" in said.out
    frame = say("watch", batch, "--once", "--json").json
    assert [b["state"] for b in frame["batches"]] == ["complete"]


def test_batches_of_clients_are_listed(say, here):
    with Client() as bus:
        assert bus.call("add", {"a": 1}, timeout_s=10) == 1.5
        from rigbus.bus.client.work import Task

        ids = bus.submit([Task(type="add", payload={"a": 2})], name="mine")
        assert [r.value for r in bus.results(ids, timeout_s=10)] == [2.5]
    rows = say("batch", "list", "--json").json["batches"]
    assert ("mine", "client", "complete") in {(b["name"], b["kind"], b["state"]) for b in rows}
    shown = say("batch", "show", ids.batch, "--json").json
    assert shown["tasks"][0]["result"] == 2.5


@pytest.mark.parametrize("words", [("why", "x"), ("call", "x"), ("sniff",)])
def test_a_verb_of_the_bus_without_a_rig_ends_with_4_at_once(say, tmp_path, words):
    said = say(*words, "--state", tmp_path)
    assert said.code == 4
    assert "rigbus up" in said.err


def test_a_socket_that_nobody_listens_to_is_no_rig(say, here, rig_dir, monkeypatch):
    monkeypatch.setattr(reach, "ANSWER_S", 2.0)
    monkeypatch.setenv("RIGBUS_RUNTIME", str(rig_dir))
    paths = rig_paths(rig_dir / "state")
    paths.runtime.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(paths.runtime / "commands"))
    began = time.monotonic()
    assert say("why", "x", "--state", paths.state).code == 4
    assert time.monotonic() - began < 4 * slack()
    said = say("status", "--state", paths.state)
    assert "file mode" in said.err


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_has_help(say, name):
    said = say(name, "--help")
    assert said.code == 0
    assert f"Usage: rigbus {name}" in said.out


def loaded_by(rig, *words):
    """The names of our heavy libraries that a command loads in a process of its own."""
    code = (
        "import sys\nfrom rigbus.tools.cli import run\n"
        f"code = run({[str(w) for w in words]!r})\n"
        "heavy = {'zmq', 'msgpack', 'pydantic', 'rich', 'llama_cpp', 'markdown_it'}\n"
        "print(code, sorted({n.partition('.')[0] for n in sys.modules} & heavy), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False, cwd=rig
    )
    return done.stderr.splitlines()[-1]


def test_status_loads_neither_pydantic_nor_rich(here):
    assert loaded_by(here.folder, "status", "--json") == "0 ['msgpack', 'zmq']"


def test_config_show_says_where_a_value_comes_from(say, here):
    rows = {r["name"]: r for r in say("config", "show", "--json").json["settings"]}
    assert rows["state"]["origin"] == "RIGBUS_STATE"
    assert rows["lease_s"] == {"name": "lease_s", "value": 5.0, "origin": "default"}
    assert "RIGBUS_STATE" in say("config", "show").out


def test_schemas_can_be_written_to_a_folder(say, tmp_path):
    files = say("schema", "export", "--out", tmp_path, "--json").json["files"]
    assert json.loads(Path(files[0]).read_text())["$schema"].endswith("2020-12/schema")
    assert "rigbus.status/1" in say("schema", "export").json


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(say, shell):
    assert "_RIGBUS_COMPLETE" in say("completion", shell).out
