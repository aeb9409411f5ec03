"""A rig whose state disk died, made again from its shared folder: what had ended stays so, the rest goes on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from drops import say
from helpers import Processes, end_all, processes_of, wait_for
from rigs import LiveRig

from rigbus.bridge.folder.rebuilding.rebuild import rebuild

pytestmark = pytest.mark.live

#: `mark` leaves a line for each run; `gate` waits for a file, for as long as the rig lives.
PLAN = """# Plan: {name}

## Tasks

### first

- **command**: `echo first >> {{BATCH_PATH}}/ran; echo the first`

### items

- **command**: `echo {{ITEM.id}} >> {{BATCH_PATH}}/ran; {item}`
- **foreach**: `{{PLAN_PATH}}/list.json:items`
- **depends_on**: first

### last

- **command**: `echo last >> {{BATCH_PATH}}/ran; {last}`
- **max_attempts**: 1
- **depends_on**: items
"""
WAIT = "until [ -e {gate} ]; do sleep 0.05; done"


def drop(rig: LiveRig, name: str, *, item: str = "true", last: str = "true") -> Path:
    folder = rig.shared / "inbox" / f".{name}"
    folder.mkdir(parents=True)
    (folder / "plan.md").write_text(PLAN.format(name=name, item=item, last=last))
    (folder / "list.json").write_text(json.dumps({"items": [{"id": f"i{n}"} for n in range(6)]}))
    (folder / "READY").touch()
    return folder.rename(rig.shared / "inbox" / name)


def accepted(rig: LiveRig, name: str) -> str:
    return str(rig.receipt(rig.shared / "inbox" / f"{name}.receipt.json")["batch_id"])


def folder_of(rig: LiveRig, name: str, batch: str) -> Path:
    return rig.shared / "plans" / name / "batches" / batch


def ran(rig: LiveRig, name: str, batch: str) -> list[str]:
    file = folder_of(rig, name, batch) / "ran"
    return file.read_text().split() if file.exists() else []


def shown(rig: LiveRig, name: str, batch: str) -> dict[str, Any]:
    try:
        said: dict[str, Any] = json.loads((folder_of(rig, name, batch) / "batch.json").read_text())
    except (OSError, ValueError):
        return {}
    return said


def wait_shown(rig: LiveRig, name: str, batch: str, status: str) -> dict[str, Any]:
    return wait_for(
        lambda: said if (said := shown(rig, name, batch)).get("status") == status else None,
        timeout_s=60,
        what=f"{name} to be {status} in the share",
    )


def dry_run(rig: LiveRig) -> dict[str, Any]:
    """The command, as a person gives it."""
    words = ["bridge", "rebuild", "--from-files", "--state", rig.state, "--shared", rig.shared]
    code, out, err = say(rig, *map(str, words), "--dry-run", "--json")
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def live_until_half_of_a_batch(rig: LiveRig, gate: Path) -> dict[str, str]:
    """One batch ends well, one badly, one waits at the gate in its last item; their ids."""
    drop(rig, "done")
    drop(rig, "bad", last="exit 3")
    ids = {name: accepted(rig, name) for name in ("done", "bad")}
    wait_shown(rig, "done", ids["done"], "complete")
    wait_shown(rig, "bad", ids["bad"], "failed")
    drop(rig, "half", item=f"case {{ITEM.id}} in i5) {WAIT.format(gate=gate)};; esac")
    ids["half"] = accepted(rig, "half")
    wait_for(
        lambda: shown(rig, "half", ids["half"]).get("tasks", {}).get("done", 0) >= 7,
        timeout_s=60,
        what="half of it",
    )
    tasks = rig.shared / "tasks"
    # The share is drawn a little later than things happen, and it is all that will be left.
    wanted = {"first", *(f"items_i{n}" for n in range(5))}
    wait_for(
        lambda: wanted <= {t["name"] for t in _shown(tasks / "complete") if t["batch_id"] == ids["half"]},
        what="the files of what is done",
    )
    wait_for(
        lambda: list((tasks / "processing").glob("*.json")), what="something that runs when the rig dies"
    )
    return ids


def _shown(lane: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in lane.glob("*.json")]


def lose_the_state(rig: LiveRig, folder: Path) -> None:
    """The machine dies, and its disk with it."""
    rig.kill_everything()
    wait_for(lambda: not [p for p, c in processes_of(folder).items() if "rigbus" in c], what="the rig's end")
    end_all(processes_of(folder))
    shutil.rmtree(rig.state)


def check_report(report: dict[str, Any]) -> None:
    assert report["rebuilt"]
    rows = {row["plan"]: row for row in report["batches"]}
    becomes = {plan: row["becomes"] for plan, row in rows.items()}
    assert becomes == {"done": "ended", "bad": "ended", "half": "goes on"}
    assert rows["half"]["done"] == 6, rows["half"]  # the list itself is read again
    assert report["drops"] == ["late"]


def test_after_the_state_disk_died_ended_batches_stay_so_and_others_go_on(
    rig_dir: Path, processes: Processes
) -> None:
    rig, gate = LiveRig(rig_dir, processes), rig_dir / "gate"
    rig.start()
    ids = live_until_half_of_a_batch(rig, gate)
    before = {name: ran(rig, name, ids[name]) for name in ids}

    lose_the_state(rig, rig_dir)
    drop(rig, "late")
    dry = dry_run(rig)
    assert not rig.state.exists()
    report = rebuild(rig.paths, watch_s=1.0)
    check_report(report)
    assert dry["batches"] == report["batches"]

    gate.touch()
    rig.start()
    with rig.client() as client:
        assert rig.wait_batch(ids["half"], client)["state"] == "complete"
        assert rig.batch(ids["done"], client)["state"] == "complete"
        assert rig.batch(ids["bad"], client)["state"] == "failed"
        tasks = {t["key"]: t for t in client.query("tasks", batch=ids["done"])["rows"]}
        assert tasks["first"]["state"] == "done"
        assert rig.wait_batch(accepted(rig, "late"), client)["state"] == "complete"
        assert client.query("status")["broker"]["incarnation"] > 1_000_000
    assert ran(rig, "done", ids["done"]) == before["done"], "an ended batch ran again"
    assert ran(rig, "bad", ids["bad"]) == before["bad"]
    after = ran(rig, "half", ids["half"])
    for known in ("first", "i0", "i1", "i2", "i3", "i4"):
        assert after.count(known) == 1, f"{known} was done and ran again"
    assert set(after) == {"first", "last", *(f"i{n}" for n in range(6))}
    wait_shown(rig, "half", ids["half"], "complete")
    assert shown(rig, "done", ids["done"])["status"] == "complete"
    assert rig.stop() == 0
