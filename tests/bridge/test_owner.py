"""Whose folder it is: two ports on one share, as two rigs have them. The live one keeps it; a dead one is found out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_port import drive

from rigbus.bridge.folder import ops
from rigbus.bridge.folder.owner import BEAT_S, OWNER, Claim, life
from rigbus.bridge.folder.port import FolderPort
from rigbus.bridge.folder.seat import Seat
from rigbus.bridge.folder.taking_over import take_over
from rigbus.bus.errors import Refused
from rigbus.bus.paths import rig_paths


@pytest.fixture
def share(tmp_path: Path) -> Path:
    root = tmp_path / "share"
    root.mkdir()
    return root


def port(share: Path, rig: str, bridge: str = "b", silent_s: float = 60.0) -> FolderPort:
    claim = Claim(rig, f"{rig}-{bridge}", {"host": "pi", "state": f"/state/{rig}", "pid": 7}, silent_s)
    return FolderPort(share, claim=claim, backoff_s=(0.02, 0.1), start_grace_s=1.0)


def record(share: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((share / OWNER).read_text())
    return found


def serve(one: FolderPort, name: str = "mine") -> bool:
    return one.call("mirror", [ops.write(name, b"1")]).fault is None


def test_the_first_rig_has_it_and_a_second_one_touches_nothing_and_names_the_first(share: Path) -> None:
    with port(share, "one") as one, port(share, "two") as two:
        assert serve(one)
        reply = two.call("intake", [ops.write("theirs", b"2")])
        assert reply.fault is not None
        assert not (share / "theirs").exists()
        said = two.state.reason
        assert "belongs to the rig one" in said and "/state/one" in said and "rigbus bridge take" in said
        assert record(share)["rig"] == "one"


def test_a_rig_that_goes_on_keeps_it_however_long_another_one_waits(share: Path) -> None:
    with port(share, "one") as one, port(share, "two", silent_s=3 * BEAT_S) as two:
        assert serve(one)
        until = time.monotonic() + 4 * BEAT_S

        def goes_on() -> bool:
            assert serve(one)
            return time.monotonic() > until

        drive_both(two, goes_on)
        assert not two.state.available


def drive_both(waiting: FolderPort, until: Callable[[], bool], limit_s: float = 30.0) -> None:
    end = time.monotonic() + limit_s
    while not until():
        assert time.monotonic() < end, waiting.state
        waiting.poll()
        waiting.wait(0.05)


def test_a_rig_that_is_silent_loses_it_and_its_next_batch_is_refused(share: Path) -> None:
    with port(share, "one") as one, port(share, "two", silent_s=0.3) as two:
        assert serve(one)
        assert two.call("mirror", [ops.stat(".")]).fault is not None
        drive(two, lambda: two.state.available)
        assert record(share)["rig"] == "two"
        reply = one.call("mirror", [ops.write("late", b"1")])
        assert reply.fault is not None and reply.fault.code == "EOWNED"
        assert not (share / "late").exists(), "who lost the folder wrote into it"
        assert serve(two)


def test_a_rig_that_goes_in_order_leaves_it_free_at_once(share: Path) -> None:
    with port(share, "one") as one:
        assert serve(one)
        one.leave()
    assert record(share)["left"] is True
    with port(share, "two") as two:
        assert serve(two)


def test_the_next_process_of_a_rig_goes_on_at_once_and_the_former_one_does_not_take_it_back(
    share: Path,
) -> None:
    with port(share, "one", "b1") as former, port(share, "one", "b2") as later:
        assert serve(former)
        assert serve(later)
        assert former.call("mirror", [ops.write("late", b"1")]).fault is not None
        assert serve(later)


def test_of_two_that_find_a_silent_rig_one_has_it(share: Path) -> None:
    with port(share, "dead") as dead:
        assert serve(dead)
    with port(share, "one", silent_s=0.2) as one, port(share, "two", silent_s=0.2) as two:
        both = (one, two)
        for each in both:
            each.call("mirror", [ops.stat(".")])
        end = time.monotonic() + 10
        while not any(each.state.available for each in both):
            assert time.monotonic() < end
            for each in both:
                each.poll()
                each.wait(0.02)
        served = [serve(each, str(n)) for n, each in enumerate((*both, *both))]
        assert served[2:] in ([True, False], [False, True])


@pytest.mark.parametrize("left", [b"", b"{", b"[]", b'{"rig": 7}', b"\xff" * 9000, b"[" * 5000])
def test_a_record_that_names_nobody_is_written_anew(share: Path, left: bytes) -> None:
    (share / OWNER).write_bytes(left)
    with port(share, "one") as one:
        assert serve(one)
    assert record(share)["rig"] == "one"


@pytest.mark.parametrize("what", ["link", "fifo"])
def test_a_record_that_is_no_file_is_replaced_and_nothing_is_read_through_it(share: Path, what: str) -> None:
    if what == "link":
        outside = share.parent / "outside"
        outside.write_text(json.dumps({"rig": "evil"}))
        (share / OWNER).symlink_to(outside)
    else:
        os.mkfifo(share / OWNER)
    with port(share, "one") as one:
        assert serve(one)
    assert record(share)["rig"] == "one" and not (share / OWNER).is_symlink()


def test_a_person_gives_the_folder_to_this_rig(share: Path, tmp_path: Path) -> None:
    paths = rig_paths(tmp_path / "state", share)
    paths.state.mkdir()
    with port(share, "one") as one:
        assert serve(one)
        before = take_over(paths)
        assert before is not None and before["rig"] == "one"
        assert not serve(one)
        mine = record(share)["rig"]
        assert mine == (paths.state / "id").read_text().strip()
        with port(share, mine) as two:
            assert serve(two)


def test_a_folder_that_cannot_be_written_cannot_be_given(share: Path, tmp_path: Path) -> None:
    paths = rig_paths(tmp_path / "state", share / "nowhere")
    paths.state.mkdir()
    with pytest.raises(Refused, match="mount the shared folder"):
        take_over(paths)


def test_a_beat_changes_what_others_see_and_only_a_beat_does() -> None:
    claim = Claim("one", "b")
    first = life(claim.header(10.0)["record"])
    assert life(claim.header(10.0 + BEAT_S / 2)["record"]) == first
    assert life(claim.header(10.0 + BEAT_S)["record"]) != first


def test_silence_is_counted_from_the_first_look_and_anew_with_each_beat() -> None:
    claim = Claim("two", "b", silent_s=60)
    seen = {"rig": "one", "bridge": "x", "beat": 5}
    claim.refused(seen, 100.0)
    assert claim.header(159.0)["take"] is None
    claim.refused(seen | {"beat": 6}, 159.5)
    assert claim.header(200.0)["take"] is None
    claim.refused(seen | {"beat": 6}, 219.0)
    assert claim.header(219.6)["take"] == ["one", "x", 6]


def test_one_process_has_the_seat_of_a_rig_and_the_next_gets_it_with_its_end(tmp_path: Path) -> None:
    one, two = Seat(tmp_path / "s/bridge.lock"), Seat(tmp_path / "s/bridge.lock")
    assert one.take() and one.take()
    assert not two.take()
    assert two.holder() == str(os.getpid())
    one.leave()
    assert two.take() and not one.take()
    two.leave()
