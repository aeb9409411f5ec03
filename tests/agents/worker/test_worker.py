"""The worker of commands and foreach sources: real bash, real files, a real broker."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rigbus import Result, Task
from rigbus.agents.attempts.expand import SourceError, read_items
from rigbus.agents.testing import Rig
from rigbus.bus.errors import TaskFailed
from rigbus.plans.stage import stage_plan


def run(rig: Rig, **task: Any) -> Result:
    task.setdefault("max_attempts", 1)
    (result,) = rig.bus.results(rig.bus.submit([Task(**task)]), timeout_s=30)
    return result


def shell(rig: Rig, command: str, **more: Any) -> Result:
    plan = more.pop("plan", None)
    payload = {"command": command, "env": more.pop("env", {}), "plan": plan}
    return run(rig, type="shell", payload=payload, **more)


pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def worker() -> Iterator[Rig]:
    """One rig with one worker for the whole file: no test here changes it for the next."""
    with Rig.running() as rig:
        rig.add_worker("--slots", "2")
        yield rig


@pytest.fixture
def plan(worker: Rig, request: pytest.FixtureRequest) -> dict[str, str]:
    """A staged plan of this rig, as the brain describes it in a payload."""
    rig = worker
    name = hashlib.sha256(request.node.name.encode()).hexdigest()[:8]
    folder = rig.shared / "plans" / name
    (folder / "scripts").mkdir(parents=True)
    (folder / "plan.md").write_text("# Plan: demo\n\n## Tasks\n\n### a\n- **command**: `true`\n")
    (folder / "scripts" / "x.sh").write_text("echo from the script\n")
    (folder / "big.bin").write_bytes(b"\0" * 100)
    staged = stage_plan(folder, rig.state / "staged")
    return {
        "sha256": staged.sha256,
        "staged": str(staged.path),
        "original": str(folder),
        "view": str(rig.state / "views" / name),
        "batch_path": str(folder / "batches" / "b1"),
    }


# ---------------------------------------------------------------- commands


def test_a_command_gives_its_exit_output_and_log(worker: Rig) -> None:
    result = shell(worker, "echo out; echo err >&2; printf '%s' \"$RIGBUS_TASK_KEY/$RIGBUS_ATTEMPT\"")
    assert result.ok
    assert result.value["exit"] == 0
    assert result.value["output"].startswith("out\nerr\n")
    assert result.value["output"].endswith("/1")
    assert Path(result.value["log"]).read_text() == result.value["output"]
    assert Path(result.value["log"]).is_relative_to(worker.state / "logs")


def test_a_list_of_words_needs_no_shell(worker: Rig) -> None:
    result = run(worker, type="shell", payload={"argv": ["printf", "%s|", "a b", "$HOME", "; rm -rf x"]})
    assert result.value["output"] == "a b|$HOME|; rm -rf x|"


def test_values_come_by_environment_and_secrets_do_not(worker: Rig) -> None:
    evil = "$(touch pwned) `id` ' \" \n;"
    result = shell(worker, 'printf "%s" "$RIGBUS_V_X"; env | grep -c SSH_AUTH_SOCK', env={"RIGBUS_V_X": evil})
    assert result.value["output"] == evil + "0\n"


def test_an_exit_code_is_of_class_task_and_keeps_its_output(worker: Rig) -> None:
    result = shell(worker, "echo the reason; exit 7")
    assert (result.ok, result.error_class) == (False, "task")
    assert result.error == "exit 7: the reason"
    assert result.value["exit"] == 7
    assert result.value["output"] == "the reason\n"


def test_a_signal_that_is_not_ours_is_a_crash(worker: Rig) -> None:
    result = run(
        worker, type="shell", payload={"command": "kill -SEGV $$"}, policy={"crash": 1}, max_attempts=None
    )
    assert (result.error_class, result.value["signal"]) == ("crash", signal.SIGSEGV.value)


def test_a_timeout_ends_the_whole_tree_and_is_of_class_task(worker: Rig) -> None:
    result = shell(worker, f"setsid sleep 300.{os.getpid()} & sleep 300", timeout_s=1)
    assert (result.error, result.error_class) == ("timed out after 1 s", "task")
    assert not _running(f"300.{os.getpid()}")


def test_silence_ends_a_command_that_must_make_progress(worker: Rig) -> None:
    result = shell(worker, "for i in 1 2 3 4; do echo $i; sleep 0.4; done; sleep 60", no_progress_s=1.5)
    assert result.error == "no progress for 1.5 s"
    assert result.value["output"] == "1\n2\n3\n4\n"


def test_a_cancel_ends_the_tree_and_then_the_task(worker: Rig) -> None:
    mark = f"301.{os.getpid()}"
    ids = worker.bus.submit(
        [Task(type="shell", payload={"command": f"(setsid sleep {mark} &) ; sleep {mark}"})]
    )
    worker.wait(lambda: _running(mark), what="its processes")
    worker.bus.cancel(ids)
    (result,) = worker.bus.results(ids, timeout_s=20)
    assert result.state == "cancelled"
    assert not _running(mark)


def test_a_grandchild_that_holds_the_output_does_not_hold_the_task(worker: Rig) -> None:
    result = shell(worker, f"(setsid sleep 302.{os.getpid()} &) ; echo done")
    assert result.value["output"] == "done\n"
    assert result.value["duration_s"] < 60
    assert not _running(f"302.{os.getpid()}")


def test_a_flood_of_output_is_bounded(worker: Rig) -> None:
    result = shell(worker, "head -c 3000000 /dev/zero | tr '\\0' '\\377'; echo end")
    assert len(result.value["output"].encode()) <= 256 << 10
    assert result.value["output"].endswith("end\n")
    assert result.value["truncated_bytes"] > 2_900_000
    assert Path(result.value["log"]).stat().st_size == 3_000_004


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        ({}, "command"),
        ({"command": "x", "argv": ["x"]}, "either"),
        ({"command": ""}, "command"),
        ({"command": "a\0b"}, "NUL"),
        ({"argv": "x"}, "argv"),
        ({"argv": []}, "argv"),
        ({"command": "x", "env": {"A": 1}}, "env"),
        ({"command": "x", "env": {"PATH": "/evil"}}, "PATH"),
        ({"command": "x", "plan": {"view": "relative"}}, "plan.view"),
        ({"command": "x", "plan": {"view": "/v"}}, "plan.staged"),
        ([1], "map"),
    ],
)
def test_a_payload_that_is_no_command_is_a_definition_error(worker: Rig, payload: Any, named: str) -> None:
    result = run(worker, type="shell", payload=payload, max_attempts=3)
    assert (result.error_class, result.attempts) == ("definition", 1)
    assert named in str(result.error)


def test_a_killed_worker_loses_no_task_and_leaves_no_process(rig: Rig) -> None:
    first = rig.add_worker()
    flag = rig.folder / "second"
    mark = f"303.{os.getpid()}"
    command = f'if [ -e "{flag}" ]; then echo again; else touch "{flag}"; sleep {mark}; fi'
    ids = rig.bus.submit([Task(type="shell", payload={"command": command})])
    rig.wait(flag.exists, what="the first attempt")
    rig.kill(first)
    rig.wait(lambda: not _running(mark), timeout_s=15, what="the end of its command")
    rig.add_worker(name=first)  # the same name: the broker takes the old leases back at once
    (result,) = rig.bus.results(ids, timeout_s=20)
    assert (result.value["output"], result.attempts) == ("again\n", 2)


# ---------------------------------------------------------------- plans


def test_a_plans_command_runs_in_its_batch_folder_with_its_view(worker: Rig, plan: dict[str, str]) -> None:
    command = 'pwd; bash "$RIGBUS_PLAN_PATH/scripts/x.sh"; readlink "$RIGBUS_PLAN_PATH/big.bin"; echo data > out.txt'
    result = shell(worker, command, plan=plan)
    assert result.ok, result.error
    assert result.value["output"].splitlines() == [
        plan["batch_path"],
        "from the script",
        f"{plan['original']}/big.bin",
    ]
    assert (Path(plan["batch_path"]) / "out.txt").read_text() == "data\n"
    assert (Path(plan["batch_path"]) / "out.txt").stat().st_mode & 0o777 == 0o664


def test_what_an_attempt_makes_beside_the_plan_comes_to_the_share(worker: Rig, plan: dict[str, str]) -> None:
    result = shell(worker, 'echo new > "$RIGBUS_PLAN_PATH/found.txt"', plan=plan)
    assert result.ok, result.error
    assert (Path(plan["original"]) / "found.txt").read_text() == "new\n"
    assert (Path(plan["view"]) / "found.txt").is_symlink()
    assert "[rigbus] found.txt was moved" in Path(result.value["log"]).read_text()


def test_a_view_is_made_once_for_many_attempts_and_again_when_it_is_gone(
    worker: Rig, plan: dict[str, str]
) -> None:
    tasks = [
        Task(type="shell", payload={"command": "test -d $RIGBUS_PLAN_PATH/scripts", "plan": plan})
        for _ in range(6)
    ]
    assert all(r.ok for r in worker.bus.results(worker.bus.submit(tasks), timeout_s=30))
    shutil.rmtree(plan["view"])
    assert shell(worker, "test -d $RIGBUS_PLAN_PATH/scripts", plan=plan).ok


def test_a_share_that_is_away_costs_no_attempt(worker: Rig, plan: dict[str, str]) -> None:
    away = Path(plan["original"]).rename(worker.folder / "away")
    ids = worker.bus.submit(
        [Task(type="shell", payload={"command": "echo back", "plan": plan}, max_attempts=1)]
    )

    def returned() -> bool:
        row = worker.bus.query("task", id=ids[0])["rows"][0]
        return row["state"] == "ready" and "share unavailable" in json.dumps(
            worker.bus.query("why", id=ids[0])
        )

    worker.wait(returned, what="the return of the lease")
    away.rename(plan["original"])
    (result,) = worker.bus.results(ids, timeout_s=20)
    assert (result.ok, result.value["output"]) == (True, "back\n")


# ---------------------------------------------------------------- expand


def test_a_foreach_source_becomes_a_recorded_list(worker: Rig, tmp_path: Path) -> None:
    source = tmp_path / "m.json"
    source.write_text(json.dumps({"items": [{"id": "a"}, {"id": "b"}]}))
    value = worker.call("expand", {"source": str(source), "json_path": "items"})
    assert value == {"items": [{"id": "a"}, {"id": "b"}], "count": 2}


def test_a_long_list_comes_by_reference(worker: Rig, tmp_path: Path) -> None:
    source = tmp_path / "m.json"
    source.write_text(json.dumps([{"id": f"item-{n}"} for n in range(70_000)]))
    assert worker.call("expand", {"source": str(source), "json_path": ""})["count"] == 70_000


@pytest.mark.parametrize(
    ("content", "path", "named", "error_class"),
    [
        ("{", "items", "no JSON", "task"),  # half written: it may be whole the next time
        ("[]", "items", "no 'items'", "definition"),
        ('{"items": 3}', "items", "not a list", "definition"),
        ("[" * 100_000, "", "no JSON", "task"),
    ],
)
def test_a_source_that_cannot_be_expanded_says_why(
    tmp_path: Path, content: str, path: str, named: str, error_class: str
) -> None:
    source = tmp_path / "m.json"
    source.write_text(content)
    with pytest.raises(SourceError, match=named) as e:
        read_items(str(source), path, str(tmp_path))
    assert e.value.error_class == error_class


def test_a_source_that_is_no_file_is_refused_without_blocking(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SourceError, match="is no file"):
        read_items(str(tmp_path / "fifo"), "", str(tmp_path))


def test_the_list_of_a_first_task_may_lie_in_the_plan_itself(worker: Rig, plan: dict[str, str]) -> None:
    (Path(plan["original"]) / "input").mkdir()
    (Path(plan["original"]) / "input" / "m.json").write_text("[1, 2]")
    source = f"{plan['view']}/input/m.json"  # no command has run yet, so nobody has made the view
    assert worker.call("expand", {"source": source, "json_path": "", "plan": plan})["count"] == 2
    missing = {"source": f"{plan['view']}/none.json", "json_path": "", "plan": plan}
    with pytest.raises(TaskFailed, match=r"PLAN_PATH}/none\.json is not there"):
        worker.call("expand", missing, max_attempts=1)
    for unusable in ("input", "plan.md"):
        source = f"{plan['view']}/{unusable}"
        with pytest.raises(TaskFailed, match=r"is no file|is no JSON"):
            worker.call("expand", {"source": source, "json_path": "", "plan": plan}, max_attempts=1)


def test_a_list_on_a_share_that_is_away_costs_no_attempt(worker: Rig, plan: dict[str, str]) -> None:
    source = Path(plan["batch_path"]) / "m.json"
    source.parent.mkdir(parents=True)
    source.write_text("[1]")
    away = Path(plan["original"]).rename(worker.folder / "away")
    payload = {"source": str(source), "json_path": "", "plan": plan}
    ids = worker.bus.submit([Task(type="expand", payload=payload, max_attempts=1)])
    worker.wait(
        lambda: "share unavailable" in json.dumps(worker.bus.query("why", id=ids[0])),
        what="the return of the lease",
    )
    away.rename(plan["original"])
    (result,) = worker.bus.results(ids, timeout_s=20)
    assert (result.ok, result.value["count"]) == (True, 1)


def test_nothing_is_made_in_the_empty_mount_point_of_a_share(worker: Rig, plan: dict[str, str]) -> None:
    assert shell(worker, "true", plan=plan).ok  # its view stands
    away = Path(plan["original"]).rename(worker.folder / "away")
    payload = {"command": "echo back", "plan": plan}
    ids = worker.bus.submit([Task(type="shell", payload=payload, max_attempts=1)])
    worker.wait(
        lambda: "share unavailable" in json.dumps(worker.bus.query("why", id=ids[0])),
        what="the return of the lease",
    )
    assert not Path(plan["original"]).exists()
    away.rename(plan["original"])
    (result,) = worker.bus.results(ids, timeout_s=20)
    assert result.ok


def test_a_missing_source_fails_its_task(worker: Rig) -> None:
    with pytest.raises(TaskFailed, match="is not there"):
        worker.call("expand", {"source": "/no/such.json", "json_path": ""}, max_attempts=1)
    with pytest.raises(TaskFailed, match="absolute path"):
        worker.call("expand", {"source": "relative.json"})


def _running(mark: str) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if mark.encode() in words and words[0].endswith(b"sleep"):
            found.append(path.parent.name)
    return found
