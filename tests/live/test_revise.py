"""A plan that fails is mended and goes on: by the command, over the bus and by a file, with the rig's own processes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drops import HEAD, own_rig, task
from helpers import wait_for
from rigs import LiveRig

pytestmark = pytest.mark.live

FIRST = task("count", "echo run >> {BATCH_PATH}/count")
LIST = task(
    "make",
    'echo \'{"items": [{"id": "a"}, {"id": "b"}, {"id": "c"}]}\' > {BATCH_PATH}/l.json',
    depends_on="count",
)
EACH = task(
    "each",
    "python3 {PLAN_PATH}/scripts/item.py {ITEM.id}",
    foreach="{BATCH_PATH}/l.json:items",
    depends_on="make",
    max_attempts=1,
)
BROKEN = "import sys\nprint('item', sys.argv[1])\nsys.exit(sys.argv[1] == 'b')\n"
MENDED = "import sys\nprint('mended', sys.argv[1])\n"


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRig]:
    with own_rig(tmp_path_factory) as rig:
        yield rig


def write(folder: Path, plan: str, script: str) -> Path:
    (folder / "scripts").mkdir(parents=True, exist_ok=True)
    (folder / "plan.md").write_text(plan)
    (folder / "scripts/item.py").write_text(script)
    return folder


def rigbus(*words: str | Path, code: int = 0, env: dict[str, str]) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "rigbus", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=60,
        env={"PATH": "/usr/bin:/bin", **env},
        check=False,
    )
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    return json.loads(done.stdout) if "--json" in words and done.stdout else done.stdout


def test_a_failed_plan_is_mended_and_only_what_failed_runs_again(rig: LiveRig, tmp_path: Path) -> None:
    plan = HEAD + FIRST + LIST + EACH
    folder = write(tmp_path / "mend", plan, BROKEN)
    env = rig.env
    failed = rigbus("submit", folder, "--wait", "--timeout", "40", "--json", code=6, env=env)
    batch = failed["batch_id"]
    assert failed["counts"]["dead"] == 1 and failed["state"] == "failed"
    batch_path = rig.shared / "plans/mend/batches" / batch

    write(folder, plan + task("more", "echo more", depends_on="each"), MENDED)
    shown = rigbus("submit", folder, "--revise", batch, "--dry-run", "--json", env=env)
    becomes = {row["name"]: row["becomes"] for row in shown["would_become"]}
    assert becomes == {
        "count": "stays done",
        "make": "stays done",
        "each:expand": "stays done",
        "each": "runs again",
        "each_a": "stays done",
        "each_b": "changed, runs again",
        "each_c": "stays done",
        "more": "new",
    }
    words = (
        "submit",
        folder,
        "--revise",
        batch,
        "--reason",
        "a typing error",
        "--wait",
        "--timeout",
        "40",
        "--json",
    )
    done = rigbus(*words, env=env)
    assert (done["state"], done["revision"], done["batch_id"]) == ("complete", 2, batch)
    assert (batch_path / "count").read_text() == "run\n", "what was done did not run again"
    seen = rigbus("batch", "show", batch, "--json", env=env)
    tasks = {one["name"]: one for one in seen["tasks"]}
    assert (seen["revision"], seen["revised"]["reason"]) == (2, "a typing error")
    assert (
        "mended b" in tasks["each_b"]["result"]["output"] and "item a" in tasks["each_a"]["result"]["output"]
    )
    assert [a["n"] for a in tasks["each_b"]["attempts"]] == [1, 2]


def test_a_running_task_is_ended_and_the_new_one_runs_over_a_killed_brain_and_broker(
    rig: LiveRig, tmp_path: Path
) -> None:
    folder = write(
        tmp_path / "runs", HEAD + task("long", "sleep 600") + task("after", "echo end", depends_on="long"), ""
    )
    env = rig.env
    batch = rigbus("submit", folder, "--json", env=env)["batch_id"]
    with rig.client() as client:
        wait_for(
            lambda: any(row["started"] for row in client.query("tasks", batch=batch)["rows"]),
            timeout_s=30,
            what="the task to run",
        )
        write(folder, HEAD + task("long", "echo short") + task("after", "echo end", depends_on="long"), "")
        rig.kill("brain")
        rigbus("submit", folder, "--revise", batch, "--json", env=env)
        rig.kill("broker")
    done = rigbus("submit", folder, "--revise", batch, "--wait", "--timeout", "60", "--json", env=env)
    assert (done["state"], done["revision"]) == ("complete", 3)


def test_a_request_in_the_share_revises_and_is_answered(rig: LiveRig, tmp_path: Path) -> None:
    folder = write(tmp_path / "files", HEAD + task("one", "exit 1", max_attempts=1), "")
    env = rig.env
    batch = rigbus("submit", folder, "--wait", "--timeout", "40", "--json", code=6, env=env)["batch_id"]
    write(folder, HEAD + task("one", "echo mended"), "")
    shown = rig.shared / "plans/files/batches" / batch / "batch.json"
    wait_for(
        lambda: shown.exists() and json.loads(shown.read_text())["status"] == "failed", what="it in the share"
    )
    away = {"RIGBUS_SHARED": env["RIGBUS_SHARED"], "RIGBUS_STATE": str(tmp_path / "none")}
    done = rigbus("submit", folder, "--revise", batch, "--wait", "--timeout", "60", "--json", env=away)
    receipt = json.loads(Path(done["receipt"]).read_text())
    assert (receipt["state"], receipt["batch_id"]) == ("accepted", batch) and "revision 2" in receipt["note"]
    with rig.client() as client:
        row = rig.wait_batch(batch, client, timeout_s=40)
    assert (row["state"], row["revision"]) == ("complete", 2)
    wait_for(lambda: json.loads(shown.read_text())["status"] == "complete", what="its end in the share")
    fields = json.loads(shown.read_text())
    assert fields["revision"] == 2 and fields["plan_sha256"] == row["spec"]["sha256"]


def test_another_plan_is_refused_before_anything_is_written(rig: LiveRig, tmp_path: Path) -> None:
    env = rig.env
    one = write(tmp_path / "ones", HEAD + task("one", "true"), "")
    other = write(tmp_path / "others", HEAD + task("one", "true"), "")
    batch = rigbus("submit", one, "--wait", "--timeout", "40", "--json", env=env)["batch_id"]
    rigbus("submit", other, "--revise", batch, code=8, env=env)
    rigbus("submit", one, "--revise", "20200101_000000_abcdef", code=3, env=env)
    write(one, HEAD + "### one\n\n- **depends_on**: nobody\n", "")
    rigbus("submit", one, "--revise", batch, code=5, env=env)
