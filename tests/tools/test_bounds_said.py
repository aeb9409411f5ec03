"""What `status` says of a full disk and of bounds, and how long a line of a process' log may be."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from rigbus.tools.common import LOG_CHARS
from rigbus.tools.rows import status_object
from rigbus.tools.status import bound_lines

DISK = {"level": "ample", "free_bytes": 3 << 20, "low_bytes": 512 << 20, "ballast_bytes": 0, "folder": "/rig"}


def shown(level: str = "ample", **limits: tuple[int, int]) -> dict[str, Any]:
    used = {name: {"used": used, "bound": bound} for name, (used, bound) in limits.items()}
    return {"disk": {**DISK, "level": level}, "limits": used}


def test_nothing_is_said_where_all_is_well() -> None:
    assert bound_lines(shown(live_tasks=(89, 100), facts=(0, 10))) == []
    assert bound_lines({"disk": None}) == []


@pytest.mark.parametrize(
    ("level", "words"), [("low", "no new tasks are taken; free"), ("full", "taken, none is started; free")]
)
def test_a_disk_without_room_is_said_with_what_follows_from_it(level: str, words: str) -> None:
    (line,) = bound_lines(shown(level))
    assert line.startswith(f"disk {level}: 3 MiB free in /rig, 512 MiB are wanted") and words in line


def test_a_bound_is_named_when_it_is_near_but_not_one_that_is_there_to_be_reached() -> None:
    limits = {
        "sessions": (90, 100),
        "ended_tasks": (100, 100),
        "worker_leases": (9, 9),
        "batch_tasks": (1, 1),
    }
    assert [line.split(":")[0] for line in bound_lines(shown(**limits))] == ["sessions"]


def test_a_status_of_an_older_broker_has_no_bounds() -> None:
    answer = {
        "as_of": 1,
        "seq": 1,
        "broker": {},
        "brain": {},
        "bridge": {},
        "workers": [],
        "tasks": {},
        "batches": [],
    }
    assert status_object(answer, "bus")["limits"] == {}
    assert bound_lines(status_object(answer, "bus")) == []


def test_a_line_of_a_process_log_is_cut_at_its_bound() -> None:
    code = (
        "import logging; from rigbus.tools.common import process_log; process_log('broker')\n"
        "logging.warning('a' * 50_000); logging.info('short')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    long, short = done.stderr.splitlines()
    assert len(long) < LOG_CHARS + 40 and long.endswith("characters more]") and " broker WARNING aaa" in long
    assert short.endswith("broker INFO short")
