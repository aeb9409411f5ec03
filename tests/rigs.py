"""A whole rig for a test: ``rigbus up`` as a process, plans dropped into its share, anything of it killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgpack
from helpers import ROOT, Processes, wait_for

from rigbus import Client
from rigbus.bus.paths import rig_paths

EXAMPLE = ROOT / "plans" / "examples" / "code_census"
ENDED = ("complete", "failed", "cancelled")


class LiveRig:
    """One rig on one state folder; it can be killed whole and started again."""

    def __init__(
        self,
        folder: Path,
        processes: Processes,
        *,
        workers: int = 2,
        env: Mapping[str, str] | None = None,
        model: Path | None = None,
    ) -> None:
        self.state = folder / "state"
        self.shared = folder / "share"
        self.shared.mkdir(exist_ok=True)
        self.processes = processes
        self.workers = workers
        self.model = model
        self.env = {"RIGBUS_STATE": str(self.state), "RIGBUS_SHARED": str(self.shared), **(env or {})}
        self.paths = rig_paths(self.state, self.shared)
        self.up: subprocess.Popen[bytes] | None = None

    # -- starting, ending ------------------------------------------------------------------------------------

    def start(self, *, timeout_s: float = 30.0) -> dict[str, Any]:
        """``rigbus up --json``; its ready object."""
        words: list[str | Path] = [
            sys.executable,
            "-m",
            "rigbus",
            "up",
            "--json",
            "--workers",
            str(self.workers),
        ]
        words += [] if self.model is None else ["--model", self.model]
        up = self.up = self.processes.start(words, env=self.env)

        def ready() -> dict[str, Any] | None:
            assert up.poll() is None, f"`up` ended with {up.returncode}:\n{self.processes.output(up)}"
            for line in self.processes.output(up).splitlines():
                if line.startswith("{"):
                    found: dict[str, Any] = json.loads(line)
                    return found
            return None

        return wait_for(ready, timeout_s=timeout_s, what="the rig to be ready")  # type: ignore[return-value]

    def pids(self) -> dict[str, int]:
        """Present pids by name, from run.json."""
        found: dict[str, int] = json.loads(self.paths.run_json.read_text())["pids"]
        return found

    def kill(self, name: str) -> int:
        """``kill -9`` of one process of the rig, by its present pid."""
        pid = self.pids()[name]
        os.kill(pid, signal.SIGKILL)
        return pid

    def kill_everything(self) -> None:
        """``kill -9`` of `up` and every process of the rig at one instant, and no runtime folder: a power cut."""
        assert self.up is not None
        pids = [self.up.pid, *self.pids().values()]
        for pid in pids:
            try:
                os.kill(pid, signal.SIGSTOP)  # so that none of them sees another one die
            except ProcessLookupError:
                pass
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.up.wait(10)
        shutil.rmtree(self.paths.runtime, ignore_errors=True)

    def stop(self) -> int:
        """SIGTERM to `up`; its exit code."""
        assert self.up is not None
        self.up.terminate()
        return self.up.wait(40)

    # -- work ------------------------------------------------------------------------------------------------

    def client(self) -> Client:
        """A client of this rig, for this thread."""
        return Client(state=self.state, timeout_s=30)  # a broker that was killed may be starting

    def drop(
        self, name: str = "census", *, limit: int = 24, source: Path | None = None, plan: Path = EXAMPLE
    ) -> Path:
        """Drop the example plan into the inbox, READY last; where its receipt will be, no earlier one's stands there."""
        inbox = self.shared / "inbox"
        inbox.mkdir(exist_ok=True)
        (inbox / f"{name}.receipt.json").unlink(missing_ok=True)
        folder = inbox / name
        shutil.copytree(plan, folder, ignore=shutil.ignore_patterns("__pycache__"))
        config: dict[str, Any] = {"LIMIT": str(limit)}
        if source is not None:
            config["SOURCE"] = str(source)
        (folder / "READY").write_text(json.dumps({"config": config}))
        return inbox / f"{name}.receipt.json"

    def receipt(self, path: Path, *, timeout_s: float = 20.0) -> dict[str, Any]:
        """The final receipt of a drop (not `seen, settling`)."""

        def final() -> dict[str, Any] | None:
            try:
                value: dict[str, Any] = json.loads(path.read_text())
            except (FileNotFoundError, ValueError):
                return None
            return value if value.get("state") in ("accepted", "refused") else None

        return wait_for(final, timeout_s=timeout_s, what=f"the receipt {path}")  # type: ignore[return-value]

    def batch(self, id_: str, client: Client) -> dict[str, Any]:
        """A batch's row."""
        return client.query("batch", id=id_)

    def wait_batch(self, id_: str, client: Client, *, timeout_s: float = 60.0) -> dict[str, Any]:
        """Its row when it has ended."""

        def ended() -> dict[str, Any] | None:
            row = self.batch(id_, client)
            return row if row["state"] in ENDED else None

        return wait_for(ended, timeout_s=timeout_s, what=f"batch {id_} to end", poll_s=0.1)  # type: ignore[return-value]

    def wait_done(self, id_: str, client: Client, n: int, *, timeout_s: float = 60.0) -> dict[str, Any]:
        """Its row when at least ``n`` of its tasks are done."""

        def far() -> dict[str, Any] | None:
            row = self.batch(id_, client)
            return row if row["tasks"]["done"] >= n or row["state"] in ENDED else None

        return wait_for(far, timeout_s=timeout_s, what=f"{n} tasks of {id_}", poll_s=0.02)  # type: ignore[return-value]

    def report(self, plan: str, batch: str) -> dict[str, Any]:
        """report.json of a batch, without the part that names this run."""
        path = self.shared / "plans" / plan / "batches" / batch / "report.json"
        value: dict[str, Any] = json.loads(path.read_text())
        value.pop("run", None)
        return value

    # -- looking into the database, after the end ------------------------------------------------------------

    def events(self) -> list[list[Any]]:
        """The whole event log, from the database itself; only while no broker runs."""
        db = sqlite3.connect(f"file:{self.paths.db}?mode=ro", uri=True)
        try:
            return [
                e
                for (blob,) in db.execute("SELECT blob FROM events ORDER BY seq_first")
                for e in msgpack.unpackb(blob)
            ]
        finally:
            db.close()

    def check_log(self) -> None:
        """Nothing lost, nothing recorded twice: each task of the log has exactly one end, after all that happened to it."""
        ends: dict[str, list[str]] = {}
        seen: set[str] = set()
        last = 0
        for seq, _prev, _at, channel, topic, id_, _batch, _data in self.events():
            assert seq > last, f"event {seq} after {last}"
            last = seq
            if channel == "a" or not topic.startswith("task."):
                continue
            seen.add(id_)
            state = topic.rpartition(".")[2]
            if state in ("done", "dead", "cancelled", "expired", "skipped"):
                ends.setdefault(id_, []).append(state)
        assert seen, "the log is empty"
        assert set(ends) == seen, f"without an end: {seen - set(ends)}"
        twice = {k: v for k, v in ends.items() if len(v) > 1}
        assert not twice, f"recorded twice: {twice}"


#: Many files, each soon measured: the rig is tested, and not how fast the largest files of the library are read.
SOURCE = ROOT / "agents"
_MEASURE_ALL = """
import json, runpy, sys
script, folder = sys.argv[1:]
for item in json.load(open(folder + "/manifest.json"))["items"]:
    sys.argv = [script, "--out", folder + "/measures", "--file", item["path"], "--id", item["id"]]
    runpy.run_path(script, run_name="__main__")
"""


def expected_report(folder: Path, limit: int, source: str | Path = SOURCE) -> dict[str, Any]:
    """The report that the example's scripts make when nobody kills anything: run here, one after the other."""
    scripts = EXAMPLE / "scripts"

    def run(*argv: str | Path) -> None:
        subprocess.run([sys.executable, *map(str, argv)], check=True, capture_output=True)

    run(scripts / "scan.py", "--source", source, "--limit", str(limit), "--out", folder)
    run("-c", _MEASURE_ALL, scripts / "measure.py", folder)
    run(scripts / "aggregate.py", "--batch", folder)
    value: dict[str, Any] = json.loads((folder / "report.json").read_text())
    value.pop("run", None)
    return value
