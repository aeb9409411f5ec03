"""A share in a temporary folder, and rows as the broker gives them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rigbus.bridge.folder.share.ops import Op, Result
from rigbus.bridge.folder.share.port import FolderPort, Reply

UUID = "3f2b8a52-6f0e-4c1c-9d0b-0a5a2c6f7e11"


class Share:
    """A real folder and a real port on it."""

    def __init__(self, root: Path, port: FolderPort) -> None:
        self.root, self.port = root, port

    def do(self, *batch: Op, kind: str = "mirror", deadline_s: float = 10.0) -> list[Result]:
        reply = self.port.call(kind, batch, deadline_s)
        assert reply.fault is None, reply.fault
        return reply.results

    def one(self, op: Op, **how: Any) -> Result:
        return self.do(op, **how)[0]


@contextmanager
def open_share(root: Path) -> Iterator[Share]:
    root.mkdir(exist_ok=True)
    with FolderPort(root) as port:
        yield Share(root, port)


def task(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": UUID,
        "no": 7,
        "batch": "20260208_184610_a1b2c3",
        "key": "measure_003",
        "type": "shell",
        "class": "cpu",
        "executor": "worker",
        "priority": 5,
        "state": "ready",
        "started": False,
        "attempt": 0,
        "attempts": {"task": 0, "crash": 0, "infra": 0},
        "worker": None,
        "created_at": 1_770_576_370.0,
        "started_at": None,
        "ended_at": None,
        "changed_at": 1_770_576_370.0,
        "after": ["scan"],
        "command": "python3 measure.py",
        "foreach": None,
        "timeout_s": 1800.0,
        "error": None,
        "result": None,
        "plan_path": "/rig/views/b",
        "batch_path": "/share/plans/p/batches/b",
        "seq": 42,
    }
    return {**row, **changes}


def batch(**changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": "20260208_184610_a1b2c3",
        "plan": "census",
        "kind": "plan",
        "state": "running",
        "priority": 5,
        "created_at": 1_770_576_370.0,
        "ended_at": None,
        "counts": {"done": 3, "ready": 1},
        "total": 4,
        "config": {"LIMIT": 10},
        "error": None,
        "plan_path": "/rig/views/b",
        "batch_path": "/share/plans/census/batches/b",
        "mirror": False,
        "seq": 40,
    }
    return {**row, **changes}


def drive(port: FolderPort, until: Callable[[], bool], limit_s: float = 10.0) -> list[Reply]:
    """Poll as the bridge does until the condition holds."""
    end, seen = time.monotonic() + limit_s, []
    while True:
        seen += port.poll()
        if until():
            return seen
        left = end - time.monotonic()
        assert left > 0, f"waited {limit_s} s in vain; {port.state}"
        wait = port.timeout_s()
        port.wait(left if wait is None else min(wait, left))
