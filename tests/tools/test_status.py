"""What `rigbus status` says of workers that have lost slots."""

from __future__ import annotations

from typing import Any

from rigbus.tools.rows import status_object
from rigbus.tools.status import lines_of

HANGS = "pid 4711 (cat /mnt/x, state D) cannot be killed"


def shown(**worker: Any) -> list[str]:
    row = {"id": "w1", "state": "idle", "classes": ["cpu"], "tasks": [], "heartbeat_age_s": 0.1, **worker}
    answer = {"seq": 1, "as_of": 1.0, "broker": {}, "brain": {}, "bridge": {}, "tasks": {}, "batches": []}
    return lines_of(status_object({**answer, "workers": [row]}, "bus"), 1.0)


def test_a_slot_that_hangs_is_named_beside_those_that_work() -> None:
    assert f"w1: {HANGS}" in shown(slots=1, unkillable=[HANGS])


def test_of_a_worker_that_is_held_for_it_it_is_said_once() -> None:
    lines = shown(state="held", held=HANGS, unkillable=[HANGS])
    assert [line for line in lines if HANGS in line] == [f"w1 is held: {HANGS}"]


def test_a_worker_of_an_older_version_hangs_nowhere() -> None:
    assert not any("cannot be killed" in line for line in shown(slots=1))
