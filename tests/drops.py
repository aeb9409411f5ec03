"""Plans and drops for the live tests, written as a person on the Pi would make them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from helpers import Processes, short_folder
from rigs import LiveRig

HEAD = "# Plan: p\n\n## Tasks\n\n"


def task(id_: str, command: str, **fields: object) -> str:
    """A task's section."""
    lines = [f"- **command**: `{command}`", *(f"- **{name}**: {value}" for name, value in fields.items())]
    return f"### {id_}\n\n" + "\n".join(lines) + "\n\n"


GOOD = HEAD + task("one", "echo hi")


@contextmanager
def own_rig(
    tmp_path_factory: pytest.TempPathFactory,
    *,
    workers: int = 2,
    model: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[LiveRig]:
    """A rig for a whole module, with a model where a file is named: started once, stopped at the end."""
    with short_folder() as folder:
        processes = Processes(tmp_path_factory.mktemp("processes"))
        rig = LiveRig(folder, processes, workers=workers, model=model, env=env)
        try:
            rig.start()
            yield rig
            assert rig.stop() == 0
        finally:
            processes.stop_all()


def drop(
    rig: LiveRig,
    name: str | bytes,
    plan: str | bytes | None = GOOD,
    *,
    ready: bytes | None = b"",
    files: Mapping[str, str | bytes] | None = None,
) -> Path:
    """Put a folder into the inbox, READY last (None: none); the folder."""
    folder = Path(os.fsdecode(os.fsencode(rig.shared / "inbox") + b"/" + os.fsencode(name)))
    folder.mkdir(parents=True)
    wanted = {**({} if plan is None else {"plan.md": plan}), **(files or {})}
    for path, data in wanted.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_bytes(data if isinstance(data, bytes) else data.encode())
    if ready is not None:
        (folder / "READY").write_bytes(ready)
    return folder


def receipt(rig: LiveRig, name: str, *, timeout_s: float = 20.0) -> dict[str, Any]:
    """The final receipt of a drop; ``name`` as it stands in the receipt's own name."""
    return rig.receipt(rig.shared / "inbox" / f"{name}.receipt.json", timeout_s=timeout_s)


def run_plan(rig: LiveRig, name: str, plan: str, *, files: Mapping[str, str | bytes] | None = None) -> str:
    """Drop a plan that is accepted; its batch. The receipt of an earlier one of this name is taken away first."""
    (rig.shared / "inbox" / f"{name}.receipt.json").unlink(missing_ok=True)
    drop(rig, name, plan, files=files)
    said = receipt(rig, name)
    assert said["state"] == "accepted", said
    batch: str = said["batch_id"]
    return batch


def tasks_of(rig: LiveRig, batch: str) -> dict[str, dict[str, Any]]:
    """Tasks by name, as ``rigbus batch show --json`` has them."""
    code, out, err = say(rig, "batch", "show", batch, "--json")
    assert code == 0, err
    return {t["name"]: t for t in json.loads(out)["tasks"]}


def say(rig: LiveRig, *words: str, cwd: Path | None = None) -> tuple[int, str, str]:
    """``rigbus WORDS``: exit code, stdout, stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "rigbus", *words],
        env={**os.environ, **rig.env},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=cwd,
    )
    return done.returncode, done.stdout, done.stderr
