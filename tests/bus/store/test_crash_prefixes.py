"""A run is cut off behind each of its system calls, with the power or without: what was answered is there, whole.

Recorded are all writes, syncs and renames of SQLite and of ours (``tests/syscalls``); `make prefixes` takes longer runs.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from syscalls import prefixes
from syscalls.tracing import UNABLE, alone

from rigbus.bus.store.repairing import repair
from rigbus.bus.store.store import Store, state_id

pytestmark = [pytest.mark.skipif(bool(UNABLE), reason=UNABLE), pytest.mark.timeout(3600)]

#: How many times as long as here a run is.
LONGER = int(os.environ.get("RIGBUS_TEST_PREFIXES", "1"))


@pytest.mark.parametrize(
    ("scene", "rounds", "states"),
    [
        ("store", 3, 300),
        ("normal", 2, 180),
        ("repair", 6, 200),
        ("backup", 3, 40),
        ("restore", 3, 70),
        ("spool", 6, 30),
        ("drop", 1, 50),  # the bridge's journal, with state folder and share on two disks
    ],
)
def test_behind_every_call_all_that_was_answered_is_there(scene: str, rounds: int, states: int) -> None:
    found = alone("syscalls.prefixes", scene, rounds * LONGER, timeout_s=300.0 * LONGER)
    print(f"\n{scene}: {found}")
    assert found["failures"] == 0, "\n".join(found["first"])
    assert found["states"] > states, "too few moments: is everything recorded?"


@pytest.mark.parametrize("defect", ["sync", "order"])
def test_a_defect_is_found(defect: str) -> None:
    """A commit that is answered before it is synced; a tail that is written before its commit."""
    found = alone("syscalls.prefixes", "store", 1, defect, timeout_s=300.0)
    assert found["failures"] > 0


def test_an_id_without_content_is_made_anew(tmp_path: Path) -> None:
    """As a power loss left it that came before it was synced."""
    (tmp_path / "id").write_text("")
    made = state_id(tmp_path)
    assert len(made) == 32 and state_id(tmp_path) == made
    assert [p.name for p in tmp_path.iterdir()] == ["id"]


def test_a_repair_that_was_cut_off_while_it_tidied_up_is_over(tmp_path: Path) -> None:
    scene = prefixes.Repairs(6)
    scene.prepare(tmp_path)
    state = tmp_path / "state"
    report = repair(state, state / "rigbus.db")
    assert report["repaired"]
    left = state / "repair.done"
    left.mkdir()
    (left / "report.json").write_text("{}")
    store = Store(state / "rigbus.db")
    store.close()
    assert not repair(state, state / "rigbus.db")["needed"]
