"""Repair: what can be believed is kept, what is lost is said by batch, no number comes twice, nothing is done in place."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from harness import spec
from kept import Kept, names

from rigbus.bus.errors import Refused, StoreError
from rigbus.bus.states import ENDED_BADLY, BatchState, TaskState
from rigbus.bus.store.examining import READY, examine
from rigbus.bus.store.pages import PAGE_BYTES
from rigbus.bus.store.repairing import LEAP, repair
from rigbus.bus.store.store import Store
from rigbus.bus.store.tail import tail_path
from rigbus.bus.wire import Verb


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


def run(state: Path, **more: Any) -> dict[str, Any]:
    return repair(state, state / "rigbus.db", **more)


class Killed(BaseException):
    """As a kill -9: nothing of the program goes on."""


def rewind(rig: Kept) -> Callable[[], None]:
    """Call the answer when the rig has worked on and is closed: its database is then as it is now."""
    copies = {f.name: f.read_bytes() for f in rig.state.iterdir() if "db" in f.name}

    def back() -> None:
        for name, data in copies.items():
            (rig.state / name).write_bytes(data)

    return back


def test_nothing_to_repair_is_said_and_nothing_is_made(state: Path) -> None:
    Kept(state).store.close()
    before = names(state)
    assert run(state) == {
        "schema": "rigbus.repair/1",
        "state": str(state),
        "needed": False,
        "repaired": False,
        "problems": [],
    }
    assert [n for n in names(state) if "-" not in n] == [n for n in before if "-" not in n]


def test_lost_commits_are_counted_leases_come_back_and_no_number_comes_twice(state: Path) -> None:
    rig = Kept(state)
    worker, client = rig.worker(credit=2, slots=2), rig.client()
    a, b = client.tasks(spec("a"), spec("b"))
    leases = worker.leases()
    worker.started(leases[0])
    go_back, held = rewind(rig), rig.store.tail.commits
    worker.result(leases[0], 1)
    client.submit(spec("c"), spec("d"), key="late")
    used = {tuple(lease["token"]) for lease in [*leases, *worker.leases()]}
    last, commits = rig.core.seq, rig.store.tail.commits
    rig.store.close()
    go_back()
    with pytest.raises(StoreError, match="rigbus repair"):
        Store(state / "rigbus.db")

    report = run(state)
    assert report["needed"] and report["repaired"] and report["batches"] == []
    assert (
        report["lost_commits"] == commits - examine(Path(report["damaged"])).tail.commits
        or report["lost_commits"] > 0
    )
    assert report["lost_commits"] == commits - held
    assert report["lost_events"][1] == last and report["leases_back"] == 2
    again = Kept(state)
    assert again.core.incarnation == 2 == report["incarnation"] and again.core.seq > last
    assert again.core.batch_keys.keys() == rig.core.batch_keys.keys() - {"late"}
    assert again.core.ids[a.id].state is again.core.ids[b.id].state is TaskState.READY
    # what ran when it was lost counts as a loss of the rig, what had not begun as nothing
    assert (again.core.ids[a.id].counts, again.core.ids[b.id].counts) == ((0, 0, 1), (0, 0, 0))
    for since in range(last + 1):
        assert again.store.events(since, None, 5)[1] > last, "whoever follows takes a snapshot"
    worker = again.worker(credit=2, slots=2)
    again.wait(3, (worker, []))
    tokens = {tuple(lease["token"]) for lease in worker.leases()}
    assert len(tokens) == 2 and not tokens & used
    again.check()
    again.store.close()


def flip_page_of(state: Path, what: bytes, at: int = 0) -> None:
    """One wrong bit in the page that holds ``what``."""
    db = state / "rigbus.db"
    data = bytearray(db.read_bytes())
    data[data.index(what) + at] ^= 1
    db.write_bytes(data)


def test_a_page_that_is_wrong_costs_its_tasks_and_their_batch_says_so(state: Path) -> None:
    rig = Kept(state)
    client = rig.client()
    big = [b"%03d" % n + b"p" * 900 for n in range(60)]
    many = client.submit(*[spec(f"t{n}") for n in range(60)], payloads=big).header["batch"]
    other = client.tasks(spec("other"))[0]
    ids = {t.id for t in rig.core.batch_ids[many].keys.values()}
    rig.store.close()
    flip_page_of(state, b"030ppp", 300)

    report = run(state)
    (row,) = report["batches"]
    assert row["id"] == many and 1 <= row["lost_tasks"] <= 4 and set(row["ids"]) <= ids
    assert row["cancelled"] == 60 - row["lost_tasks"] and report["bad_pages"] == 1
    again = Kept(state)
    batch = again.core.batch_ids[many]
    assert batch.state is BatchState.FAILED and "rigbus retry" in (batch.error or "")
    kept = {t.id for t in batch.keys.values()}
    assert kept == ids - set(row["ids"]) and len(kept) == 60 - row["lost_tasks"]
    for t in batch.keys.values():
        assert again.store.payloads([t.no])[t.no][1] == big[int(t.key[1:])], "not one payload is wrong"
    assert again.core.ids[other.id].state is TaskState.READY, "its neighbour goes on"
    again.client().ask(Verb.REQUEUE, {"batch": many})
    assert again.core.counts[TaskState.READY] == len(kept) + 1
    again.check()
    again.store.close()


def test_a_value_that_runs_over_a_wrong_page_is_not_believed(state: Path) -> None:
    rig = Kept(state)
    # the last page of a long value: the tree is whole, SQLite would read on
    (task,) = rig.client().submit(spec("long"), payloads=[b"v" * 20_000 + b"the end"]).header["ids"]
    rig.store.close()
    flip_page_of(state, b"the end")
    report = run(state)
    assert [row["ids"] for row in report["batches"]] == [[task]]
    again = Kept(state)
    assert not again.core.tasks
    again.store.close()


def test_a_join_whose_feeder_is_lost_does_not_end_well_without_it(state: Path) -> None:
    rig = Kept(state)
    client = rig.client()
    client.submit(
        spec("join", join=True),
        spec("after", "join"),
        *[spec(f"f{n}", feeds=["join"]) for n in range(40)],
        payloads=[b"", b"", *[b"%03d" % n + b"p" * 900 for n in range(40)]],
    )
    (batch,) = rig.core.batches.values()
    rig.store.close()
    flip_page_of(state, b"020ppp", 100)
    run(state)
    again = Kept(state)
    states = {t.key: t.state for t in again.core.batch_ids[batch.id].keys.values()}
    assert {states["join"], states["after"]} <= ENDED_BADLY
    again.check()
    again.store.close()


def test_nothing_is_done_in_place_and_a_dry_run_does_nothing(state: Path) -> None:
    rig = Kept(state)
    rig.client().submit(spec("a"), payloads=[b"x" * 5000])
    rig.store.close()
    flip_page_of(state, b"xxxx", 2000)
    before = {n: (state / n).read_bytes() for n in names(state)}
    said = run(state, dry_run=True)
    assert said["needed"] and not said["repaired"]
    assert {n: (state / n).read_bytes() for n in before} == before and READY not in names(state)
    assert not [n for n in names(state) if n.startswith("repair")]
    report = run(state)
    assert Path(report["damaged"]).read_bytes() == before["rigbus.db"]
    assert Path(report["damaged"].replace("rigbus.db", "rigbus.tail")).read_bytes() == before["rigbus.tail"]
    assert examine(state / "rigbus.db").problems == []


def test_a_lost_tail_file_leaps_far_since_nobody_knows_what_was_given_out(state: Path) -> None:
    rig = Kept(state)
    rig.client().submit(spec("a"))
    rig.store.close()
    tail_path(state / "rigbus.db").unlink()
    report = run(state)
    assert report["lost_commits"] is None
    again = Kept(state)
    assert again.core.incarnation > LEAP and again.core.seq > LEAP and len(again.core.tasks) == 1
    again.store.close()


@pytest.mark.parametrize("gone", ["database", "header"])
def test_where_nothing_can_be_read_it_says_so_and_changes_nothing(state: Path, gone: str) -> None:
    rig = Kept(state)
    rig.client().submit(spec("a"))
    rig.store.close()
    db = state / "rigbus.db"
    if gone == "database":
        db.unlink()
    else:
        db.write_bytes(b"\xff" * PAGE_BYTES + db.read_bytes()[PAGE_BYTES:])
    before = {n: (state / n).read_bytes() for n in names(state)}
    with pytest.raises(StoreError, match="rigbus restore"):
        run(state)
    assert {n: (state / n).read_bytes() for n in before} == before
    assert not [n for n in names(state) if n.startswith("repair")]


def test_a_repair_needs_room_and_says_how_much(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Kept(state).store.close()
    tail_path(state / "rigbus.db").unlink()
    real = shutil.disk_usage(state)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=1000))
    with pytest.raises(Refused, match=r"needs \d+ MiB .* make room"):
        run(state)


def test_interrupted_at_any_step_of_the_swap_the_next_call_goes_on(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Kept(state)
    rig.client().submit(spec("a"), spec("b"))
    rig.store.close()
    tail_path(state / "rigbus.db").unlink()
    real = os.rename
    for stop in range(1, 20):
        copy = tmp_path / f"copy{stop}"
        shutil.copytree(state, copy)
        left = [stop]

        def rename(a: Any, b: Any, left: list[int] = left) -> None:
            left[0] -= 1
            if not left[0]:
                raise Killed
            real(a, b)

        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", rename)
            try:
                run(copy)
            except Killed:
                pass
            else:
                break
        if READY in names(copy):
            with pytest.raises(StoreError, match=r"repair was interrupted.*rigbus repair"):
                Store(copy / "rigbus.db")
        report = run(copy)
        assert report["repaired"], stop
        again = Kept(copy)
        assert len(again.core.tasks) == 2 and again.core.incarnation > LEAP
        again.store.close()
        assert [n for n in names(copy) if n.startswith("rigbus.db.damaged-")]
    assert stop > 5
