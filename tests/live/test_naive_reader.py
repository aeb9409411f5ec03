"""The mirror as the scripts on the Pi read it: every file, all the time, with no care at all; and the verbs in file
mode on the share of a rig that is dead."""

from __future__ import annotations

import json
import os
import threading
from datetime import datetime
from pathlib import Path
from typing import IO

import pytest
from drops import HEAD, run_plan, say, task
from helpers import Processes, wait_for
from naive import STATUS, check_mode, check_task, check_values
from rigs import LiveRig


class Reader:
    """Reads as they do: glob, open, json.load. ``faults`` are what they would have stumbled over."""

    def __init__(self, share: Path) -> None:
        self.share = share
        self.faults: list[str] = []
        self.read = 0
        self.lanes: dict[str, set[str]] = {lane: set() for lane in STATUS}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(10)
        self.look()  # what came while its last round was under way

    def _loop(self) -> None:
        while not self._stop.wait(0.005):
            self.look()

    def look(self) -> None:
        for lane in STATUS:
            for path in (self.share / lane).glob("*.json"):
                self._one(path, lane)
        for path in [*self.share.glob("workers/*/*.json"), self.share / "brain/state.json"]:
            self._one(path, "")
        for path in self.share.glob("plans/*/batches/*/batch.json"):
            self._one(path, "")

    def _one(self, path: Path, lane: str) -> None:
        try:
            info, text = path.stat(), path.read_text()
        except FileNotFoundError:
            return  # it has changed its lane
        self.read += 1
        try:
            found = json.loads(text)
            check_values(found, "")
            if lane:
                check_task(path, found, lane, info)
                self.lanes[lane].add(found["name"])
            check_mode(info)
        except (ValueError, KeyError, TypeError) as e:
            self.faults.append(f"{path.relative_to(self.share)}: {e!r}\n{text[:2000]}")


def _plan() -> str:
    each = task(
        "each", "echo {ITEM.id}; sleep 0.02", foreach="{BATCH_PATH}/list.json:items", depends_on="list"
    )
    bad = task("bad", "echo oh no; exit 3", max_attempts=2, backoff_s="0.1")
    items = json.dumps({"items": [{"id": f"i{n}"} for n in range(30)]})
    first = f"### list\n\n- **argv**: {json.dumps(['bash', '-c', 'echo $1 > list.json', '-', items])}\n\n"
    last = task("last", "sleep 0.3; echo last", depends_on="each") + task("never", "true", depends_on="bad")
    return HEAD + first + each + bad + last


def test_a_reader_without_any_care_never_stumbles(rig_dir: Path, processes: Processes) -> None:
    rig = LiveRig(rig_dir, processes)
    rig.start()
    share = rig.shared
    log = share / "logs/brain_decisions.log"
    wait_for(lambda: log.parent.is_dir() and (share / "brain/state.json").exists(), what="the folders")
    for lane in (*STATUS, "logs", "signals"):
        assert (share / lane).is_dir(), lane
        assert (share / lane).stat().st_mode & 0o775 == 0o775, lane
    with rig.client() as client, Reader(share) as reader:
        run_plan(rig, "early", _plan())
        wait_for(log.exists, what="the log")
        with log.open() as kept:  # the descriptor that `watch --brain` holds
            inode = log.stat().st_ino
            batch = run_plan(rig, "read", _plan())
            row = rig.wait_batch(batch, client)
            assert (row["tasks"]["dead"], row["tasks"]["skipped"]) == (1, 1)
            wait_for(lambda: _ended(share, batch, row["total"]), timeout_s=20, what="the mirror's end")
            lines: list[str] = []
            wait_for(lambda: _all_lines(kept, lines, batch), what="the log's last line")
        assert log.stat().st_ino == inode, "the log was replaced"
    assert not reader.faults, reader.faults[0]
    assert reader.read > 300
    assert {"last", "each_i0", "each_i29", "list"} <= reader.lanes["tasks/complete"]
    assert {"bad", "never"} <= reader.lanes["tasks/failed"]
    assert reader.lanes["tasks/processing"], "nothing was ever seen running"
    for line in lines:
        said = json.loads(line)
        assert len(said["timestamp"]) == len("2026-02-08T18:46:10"), said
        assert said["type"] == said["type"].upper()
        assert said["message"]
    assert rig.stop() == 0


def _ended(share: Path, batch: str, total: int) -> bool:
    ends = [*share.glob("tasks/complete/*.json"), *share.glob("tasks/failed/*.json")]
    file = share / f"plans/read/batches/{batch}/batch.json"
    return (
        sum(batch in p.read_text() for p in ends) == total
        and json.loads(file.read_text())["status"] == "failed"
    )


def _all_lines(kept: IO[str], lines: list[str], batch: str) -> list[str]:
    """What came to an open descriptor, once the batch's end is among it."""
    lines += kept.readlines()
    return lines if any("BATCH_" in line and batch in line for line in lines) else []


def _ended_alone(file: Path) -> bool:
    return file.exists() and json.loads(file.read_text())["status"] == "complete"


@pytest.fixture
def dead_rig(rig_dir: Path, processes: Processes) -> LiveRig:
    rig = LiveRig(rig_dir, processes, workers=1)
    rig.start()
    with rig.client() as client:
        batch = run_plan(rig, "before", HEAD + task("one", "echo one"))
        rig.wait_batch(batch, client)
    wait_for(lambda: _ended_alone(rig.shared / f"plans/before/batches/{batch}/batch.json"), what="the mirror")
    rig.kill_everything()
    return rig


def test_the_verbs_in_file_mode_on_the_share_of_a_dead_rig(dead_rig: LiveRig, tmp_path: Path) -> None:
    rig = dead_rig
    long_ago = datetime.now().timestamp() - 300
    for path in [rig.shared / "brain/state.json", *rig.shared.glob("workers/*/*.json")]:
        os.utime(path, (long_ago, long_ago))
    code, out, err = say(rig, "status")
    assert code == 4, (out, err)
    assert "stale" in out + err
    assert "file mode" in err
    assert say(rig, "status", "--json")[0] == 4
    code, out, _ = say(rig, "batch", "list", "--json")
    assert (code, [b["plan"] for b in json.loads(out)["batches"]]) == (0, ["before"])
    plan = tmp_path / "later"
    plan.mkdir()
    (plan / "plan.md").write_text(HEAD + task("one", "echo later"))
    code, out, err = say(rig, "submit", str(plan), "--json", "--timeout", "1")
    assert code in (0, 7), (code, out, err)
    requests = [p for p in (rig.shared / "inbox/.requests").glob("*.json") if "receipt" not in p.name]
    assert len(requests) == 1, err
    rig.start()
    answer = requests[0].with_suffix(".receipt.json")
    wait_for(answer.exists, timeout_s=20, what="the answer")
    said = json.loads(answer.read_text())
    assert said["state"] == "accepted", said
    with rig.client() as client:
        assert rig.wait_batch(said["batch_id"], client)["state"] == "complete"
    assert say(rig, "status")[0] == 0
    assert rig.stop() == 0
