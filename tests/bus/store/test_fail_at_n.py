"""Each system call of a scene fails once, in turn: an error that is named, or nothing; and then all is well again.

`make fail-at-n` fails each call in each way, reads and looks as well (``tests/syscalls``).
"""

from __future__ import annotations

import os

import pytest
from syscalls.tracing import UNABLE, alone

pytestmark = [pytest.mark.skipif(bool(UNABLE), reason=UNABLE), pytest.mark.timeout(3600)]

ALL = os.environ.get("RIGBUS_TEST_FAILING") == "all"


@pytest.mark.parametrize(
    ("scene", "step", "calls"),
    [
        ("broker", 8, 150),  # a restart, then a task's whole life with checkpoints
        ("first", 5, 100),  # a state folder is made
        ("backup", 8, 120),  # and restored
        ("repair", 8, 150),
        ("spool", 1, 15),
        ("stage", 4, 60),  # with a batch's view, and what goes back to the plan
        ("drop", 5, 80),  # the intake of a plan, with the share's operations
    ],
)
def test_whichever_call_fails_nothing_is_lost_or_done_twice(scene: str, step: int, calls: int) -> None:
    found = alone("syscalls.failing", scene, "all" if ALL else step, timeout_s=3500.0 if ALL else 300.0)
    print(f"\n{scene}: {found}")
    assert found["failures"] == 0, "\n".join(found["first"])
    assert found["calls"] > calls, "too few calls: is everything seen?"


def test_what_the_disk_does_not_give_at_a_moment_is_not_called_damage() -> None:
    """Reads and looks fail as well here: all that is done to a database before it is opened."""
    found = alone("syscalls.failing", "examine", "all", timeout_s=300.0)
    print(f"\nexamine: {found}")
    assert found["failures"] == 0, "\n".join(found["first"])
    assert found["calls"] > 50, "too few calls: is everything seen?"
