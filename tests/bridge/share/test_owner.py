"""Whose folder it is: two ports on one share, as two rigs have them. The live one keeps it; a dead one is found out."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from folders import drive

from rigbus.bridge.folder import service
from rigbus.bridge.folder.rebuilding.taking_over import take_over
from rigbus.bridge.folder.seat import Seat
from rigbus.bridge.folder.share import ops
from rigbus.bridge.folder.share.owner import BEAT_S, LOOK_AGAIN_S, OWNER, Claim, life, whose
from rigbus.bridge.folder.share.port import FolderPort
from rigbus.bus.errors import NotFound, Refused
from rigbus.bus.lifeline import Alive
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


@dataclass
class Played(Claim):
    """Its time is the test's; ``looks`` at somebody else's record are counted."""

    now: Callable[[], float] = time.monotonic
    looks: int = 0

    def header(self, now: float) -> dict[str, Any]:
        return super().header(self.now())

    def refused(self, record: Mapping[str, Any], now: float) -> str:
        self.looks += 1
        return super().refused(record, self.now())


def test_a_rig_that_goes_on_keeps_it_however_long_another_one_waits(share: Path) -> None:
    at = 0.0
    mine, theirs = Played("one", "b", now=lambda: at), Played("two", "b", silent_s=3 * BEAT_S, now=lambda: at)
    with FolderPort(share, claim=mine) as one, FolderPort(share, claim=theirs, backoff_s=(0.02, 0.1)) as two:
        end = time.monotonic() + 30
        while theirs.looks < 12:
            assert time.monotonic() < end, two.state
            at += BEAT_S / 2
            assert serve(one)
            two.poll()
            two.wait(0.05)
        assert at > 5 * BEAT_S and not two.state.available


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


def test_an_empty_mount_point_is_not_taken_for_a_folder(share: Path, tmp_path: Path) -> None:
    paths = rig_paths(tmp_path / "state", share)
    paths.state.mkdir()
    with pytest.raises(NotFound, match="mount the shared folder"):
        take_over(paths)
    assert not list(share.iterdir()) and not (paths.state / "share.json").exists()
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    share.rmdir()
    share.symlink_to(mounted)
    remembered = FolderPort(share, remember=paths.state / "share.json", backoff_s=(0.02, 0.1))
    with remembered as mine:
        assert serve(mine)
    share.unlink()
    share.mkdir()
    with pytest.raises(Refused, match="is the share mounted"):
        take_over(paths)
    assert not list(share.iterdir())


def test_whoever_writes_the_record_last_the_brokers_incarnation_stays_in_it(
    share: Path, tmp_path: Path
) -> None:
    paths = rig_paths(tmp_path / "state", share)
    paths.state.mkdir()
    with port(share, "one") as one:
        assert one.claim is not None
        one.claim.said["incarnation"] = 1_000_007
        assert serve(one)
    with port(share, "one", "b2") as restarted:  # its broker has refused to start
        assert serve(restarted)
    assert record(share)["incarnation"] == 1_000_007
    take_over(paths)
    assert record(share)["incarnation"] == 1_000_007 and record(share)["rig"] != "one"


@pytest.mark.parametrize("said", ["7", True, -1, 1 << 40, [1]])
def test_an_incarnation_that_is_none_is_not_handed_on(share: Path, said: Any) -> None:
    (share / OWNER).write_text(json.dumps({"rig": "one", "bridge": "x", "left": True, "incarnation": said}))
    with port(share, "two") as two:
        assert serve(two)
    assert "incarnation" not in record(share)


def test_a_record_of_the_longest_path_can_be_read_again(share: Path) -> None:
    with port(share, "one") as one, port(share, "two") as two:
        assert one.claim is not None
        one.claim.said["state"] = "/" + "\U0001f980" * 1000
        assert serve(one)
        assert not serve(two), "a record too long to be read looks like none"


def test_what_a_record_says_reaches_nobodys_terminal_as_it_stands() -> None:
    assert whose({"rig": "\x1b[2Jevil", "host": "a\nb"}) == "the rig \\x1b[2Jevil (on a\\nb)"


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
    look(claim, seen, 100, 159)
    assert claim.header(159.0)["take"] is None
    look(claim, seen | {"beat": 6}, 160, 219)
    assert claim.header(219.6)["take"] is None
    claim.refused(seen | {"beat": 6}, 220.0)
    assert claim.header(220.1)["take"] == ["one", "x", 6]


def test_while_the_folder_does_not_answer_nobody_is_silent() -> None:
    claim = Claim("two", "b", silent_s=60)
    seen = {"rig": "one", "bridge": "x", "beat": 5}
    look(claim, seen, 0, 30)
    assert claim.header(120.0)["take"] is None, "the owner was away as long as we were"
    said = claim.refused(seen, 121.0)
    assert "is being watched" in said
    look(claim, seen, 125, 180)
    assert claim.header(180.5)["take"] is None
    claim.refused(seen, 182.0)
    assert claim.header(182.5)["take"] == ["one", "x", 5]


def look(claim: Claim, seen: dict[str, Any], begin: int, end: int) -> None:
    """What the other one's record says, every few seconds."""
    for at in range(begin, end, int(LOOK_AGAIN_S)):
        claim.refused(seen, float(at))


def test_one_process_has_the_seat_of_a_rig_and_the_next_gets_it_with_its_end(tmp_path: Path) -> None:
    one, two = Seat(tmp_path / "s/bridge.lock"), Seat(tmp_path / "s/bridge.lock")
    assert one.take() and one.take()
    assert not two.take()
    assert two.holder() == str(os.getpid())
    one.leave()
    assert two.take() and not one.take()
    two.leave()


def test_a_bridge_that_waits_for_its_seat_rests_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "SEAT_S", 0.1)
    bridge = service.Bridge(rig_paths(tmp_path / "s", tmp_path / "share"), f"ipc://{tmp_path}/no-broker")
    looks: list[float] = []

    def taken_at_the_fifth() -> bool:
        looks.append(time.monotonic())
        return len(looks) == 5

    monkeypatch.setattr(bridge._seat, "take", taken_at_the_fifth)
    wake, other = os.pipe()
    try:
        assert bridge._seated(wake, None, Alive(None))
    finally:
        bridge.close()
        os.close(wake)
        os.close(other)
    assert looks[-1] - looks[0] > 0.3, "it spins"
