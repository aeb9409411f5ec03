"""The inward doors on a real rig: the earlier system's submit, hand-written task files, signals, and a bridge that dies."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drops import own_rig, say
from helpers import wait_for, written
from old_plan import OLD_TABLE, write_old_plan, write_submit
from rigs import LiveRig

pytestmark = pytest.mark.live


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRig]:
    with own_rig(tmp_path_factory) as made:
        wait_for((made.shared / "tasks/queue").is_dir, what="the lanes")
        yield made


def read(rig: LiveRig, lane: str, name: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((rig.shared / f"tasks/{lane}/{name}.json").read_text())
    except FileNotFoundError:
        return {}
    return found


def until(rig: LiveRig, lane: str, name: str, *, timeout_s: float = 20.0) -> dict[str, Any]:
    found = wait_for(lambda: read(rig, lane, name), timeout_s=timeout_s, what=f"{name} in {lane}")
    assert found["task_id"] == name
    return found


def put(rig: LiveRig, **fields: Any) -> str:
    """A task file as a person writes it: in place, under its own name."""
    name = str(fields.get("task_id") or uuid.uuid4())
    given = {"task_id": name, "type": "shell", "task_class": "cpu", **fields}
    with (rig.shared / f"tasks/queue/{name}.json").open("w") as file:
        json.dump(given, file)
    return name


def gone(rig: LiveRig, name: str, *lanes: str) -> None:
    for lane in lanes:
        wait_for(lambda lane=lane: not read(rig, lane, name), what=f"{name} to leave {lane}")  # type: ignore[misc]


class TestThePlanOfTheEarlierSystem:
    def test_a_copied_folder_and_the_old_submit_run_it_to_the_end(self, rig: LiveRig, tmp_path: Path) -> None:
        """As its user would: the folder lies on the Pi, is copied to the share, and `submit` is called there."""
        on_the_pi = write_old_plan(tmp_path / "home/pi/shared/plans/sensor_survey")
        shutil.copytree(on_the_pi, rig.shared / "plans/sensor_survey")
        script = write_submit(tmp_path)
        words = [sys.executable, str(script), str(on_the_pi), "--config", '{"LIMIT": 4, "UNIT": "kelvin"}']
        env = {**os.environ, "OLD_SHARED": str(rig.shared)}
        task = subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout.strip()
        wait_for(lambda: read(rig, "processing", task) or read(rig, "complete", task), what="it to be taken")
        done = until(rig, "complete", task)
        assert done["result"]["success"], done
        assert (done["created_by"], done["plan_path"]) == ("submit", str(on_the_pi))
        gone(rig, task, "queue", "processing")
        batch = done["result"]["batch_id"]
        batches = rig.shared / "plans/sensor_survey/batches"
        rows = (batches / batch / "table.csv").read_text().splitlines()
        assert rows == [
            's1,it\'s "warm" $HOME,293',
            "s2,roof; true,293",
            "s3,north wall,293",
            's4,it\'s "warm" $HOME,293',
        ]
        assert (batches / "1f3a9c02/table.csv").read_text() == OLD_TABLE
        said = json.loads((rig.shared / f"inbox/{task}.receipt.json").read_text())
        assert (said["state"], said["batch_id"]) == ("accepted", batch)
        complete = rig.shared / "tasks/complete"
        wait_for(
            lambda: sum(batch in p.read_text() for p in complete.glob("*.json")) >= 7,
            what="its own file, and one of each task",
        )

    def test_a_missing_input_is_refused_with_its_line(self, rig: LiveRig) -> None:
        write_old_plan(rig.shared / "plans/of_sensors")
        task = put(rig, type="execute_plan", plan_path="/mnt/shared/plans/of_sensors", config={"LIMIT": 1})
        said = until(rig, "complete", task)
        assert said["status"] == "failed"
        assert "UNIT" in said["result"]["error"]


class TestTaskFiles:
    def test_a_shell_task_is_answered_under_its_own_id(self, rig: LiveRig) -> None:
        task = put(rig, command="echo hand; exit 0", name="by-hand")
        done = until(rig, "complete", task)
        assert done["result"]["output"] == "hand\n"
        gone(rig, task, "queue", "processing")

    def test_a_file_that_is_written_slowly(self, rig: LiveRig) -> None:
        name = str(uuid.uuid4())
        text = json.dumps({"task_id": name, "type": "shell", "task_class": "cpu", "command": "echo slow"})
        file = rig.shared / f"tasks/queue/{name}.json"
        with file.open("w") as out:
            for piece in (text[:9], text[9:40], text[40:]):
                out.write(piece)
                out.flush()
                until(rig, "complete", put(rig, command="true"))  # so the bridge has looked meanwhile
        assert until(rig, "complete", name)["result"]["output"] == "slow\n"

    def test_one_waits_for_another(self, rig: LiveRig) -> None:
        mark = rig.shared / "first-ran"
        second = put(rig, command=f"cat {mark}", name="b", batch_id="pair", depends_on=["a"])
        first = put(rig, command=f"echo yes > {mark}", name="a", batch_id="pair")
        assert until(rig, "complete", second)["result"]["output"] == "yes\n"
        until(rig, "complete", first)

    def test_litter_of_kill_plan_is_refused(self, rig: LiveRig) -> None:
        task = put(rig, type="meta", task_class="meta", command="load_llm", created_by="kill_plan")
        assert "--model" in until(rig, "failed", task)["result"]["error"]
        gone(rig, task, "queue")


class TestSignals:
    def runs(self, rig: LiveRig, *tasks: str) -> dict[str, str]:
        """Worker -> task, once all run."""

        def found() -> dict[str, str] | None:
            rows = {read(rig, "processing", task).get("assigned_to", ""): task for task in tasks}
            return rows if len(rows) == len(tasks) and "" not in rows else None

        return wait_for(found, timeout_s=20, what="the tasks to run")  # type: ignore[return-value]

    def receipt(self, rig: LiveRig, name: str) -> dict[str, Any]:
        file = rig.shared / f"signals/{name}.receipt.json"
        wait_for(file.exists, timeout_s=20, what=f"the answer to {name}")
        wait_for(lambda: not (rig.shared / "signals" / name).exists(), what=f"{name} to be taken away")
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def signal(self, rig: LiveRig, name: str, text: str = "") -> dict[str, Any]:
        (rig.shared / "signals" / name).write_text(text)
        return self.receipt(rig, name)

    def test_abort_kill_and_stop(self, rig: LiveRig) -> None:
        mark = rig.shared / "killed-ran"
        one = put(rig, command="sleep 60")
        two = put(rig, command=f"echo $$ >> {mark}; test $(wc -l < {mark}) -gt 1 || sleep 60")
        by = {task: worker for worker, task in self.runs(rig, one, two).items()}
        wait_for(lambda: written(mark), what="its first run")

        assert self.signal(rig, f"{by[one]}.abort", "takes too long")["state"] == "accepted"
        ended = until(rig, "failed", one)
        assert "takes too long" in ended["result"]["error"]

        pid = rig.pids()[by[two]]
        assert f"pid {pid}" in self.signal(rig, f"{by[two]}.kill")["note"]
        done = until(rig, "complete", two)  # it went back to the queue, and was run again
        assert len(mark.read_text().split()) == 2
        assert done["result"]["success"]
        wait_for(lambda: rig.pids().get(by[two], pid) != pid, timeout_s=15, what="the worker to be back")

        assert "rigbus resume all" in self.signal(rig, "all.stop")["note"]
        waiting = put(rig, command="echo after")
        wait_for(lambda: read(rig, "queue", waiting).get("mirrored_by"), what="it to wait in the queue")
        assert say(rig, "resume", "all")[0] == 0
        assert until(rig, "complete", waiting)["result"]["output"] == "after\n"

    def test_an_unknown_worker_is_named_with_those_there_are(self, rig: LiveRig) -> None:
        said = self.signal(rig, "gpu_7.stop")
        assert said["state"] == "refused"
        assert "worker-1, worker-2" in said["problems"][0]["fix"]


class TestABridgeThatDies:
    def test_nothing_is_lost_and_nothing_runs_twice(self, rig: LiveRig) -> None:
        plan = rig.shared / "plans/counted"
        plan.mkdir(parents=True)
        ran = rig.shared / "ran"
        (plan / "plan.md").write_text(
            f"# Plan: counted\n\n## Tasks\n\n### one\n\n- **command**: `echo {{WHO}} >> {ran}`\n- **task_class**: cpu\n\n"
            "## Inputs\n\n- **WHO**: a name\n"
        )
        names: list[str] = []
        for round_ in range(3):
            for n in range(4):
                who = f"r{round_}n{n}"
                path = "/home/pi/shared/plans/counted"
                names.append(put(rig, type="execute_plan", plan_path=path, config={"WHO": who}))
                names.append(put(rig, command=f"echo {who} >> {ran}"))
            if round_:  # the first time it dies before it can have looked
                met = names[-8 + 3 * round_]
                wait_for(lambda met=met: read(rig, "processing", met) or read(rig, "complete", met))  # type: ignore[misc]
            pid = rig.kill("bridge")
            wait_for(lambda pid=pid: rig.pids().get("bridge", pid) != pid, timeout_s=15)  # type: ignore[misc]
        for name in names:
            assert until(rig, "complete", name, timeout_s=40)["result"]["success"]
        lines = sorted(ran.read_text().split())
        assert lines == sorted(2 * [f"r{r}n{n}" for r in range(3) for n in range(4)])
        wait_for(lambda: not list((rig.shared / "tasks/queue").glob("*.json")), what="an empty queue")
        books = rig.state / "doors/queue"
        wait_for(lambda: not list(books.glob("*.json")), timeout_s=20, what="closed books")
