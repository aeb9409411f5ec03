"""A room as an alert, at a bridge with real TLS: its own certificate or none, and its lamps as they were."""

from __future__ import annotations

import contextlib
import itertools
import logging
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hue_fake import BLUE, DARK, GROUP, KEY, WARM, FakeHue, certificate, fingerprint
from hypothesis import given, settings
from hypothesis import strategies as st

from rigbus.bridge.pi.hue import HueBridge, look, pair
from rigbus.bridge.pi.hue_core import GROUP_S, XY, Lamp, Room, wanted
from rigbus.bridge.pi.outbox import Wants
from rigbus.bridge.pi.tending import Kept, Lights, Times
from rigbus.bridge.pi.web import WebError, WrongCertificate
from rigbus.bus.alerting.core import Alert, State
from rigbus.bus.alerting.rules import Severity
from rigbus.bus.errors import ConfigError, NotFound

BAD = Alert("batch-failed.b", "batch-failed", Severity.CRITICAL, State.RAISED, "it has failed")
HOT = Alert("thermal-hold.w", "thermal-hold", Severity.WARNING, State.RAISED, "it is hot")


def over(alert: Alert) -> Alert:
    return Alert(alert.key, alert.rule, alert.severity, State.CLEARED, alert.title)


def seen(alert: Alert) -> Alert:
    return Alert(alert.key, alert.rule, alert.severity, State.ACKED, alert.title)


@pytest.fixture(scope="module")
def pems(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("pem")
    return certificate(folder, "bridge"), certificate(folder, "impostor")


@pytest.fixture
def hue(pems: tuple[Path, Path]) -> Iterator[FakeHue]:
    fake = FakeHue(pems[0])
    yield fake
    fake.close()


class Notify:
    """One process after another that shows alerts in a room; the test is the clock."""

    def __init__(
        self, hue: FakeHue, pem: Path, folder: Path, group: str = "Office", timeout_s: float = 20.0
    ) -> None:
        self.hue, self.time, self.folder, self.group = hue, 1000.0, folder, group
        self.bridge = HueBridge(hue.address, KEY, fingerprint(pem), timeout_s)
        self.start()

    def start(self) -> None:
        times = Times(lambda: self.time, lambda: self.time)
        kept = Kept(self.folder / "sink-room.json")
        self.lights = Lights("room", Wants(), self.bridge, self.group, 100.0, kept, times)

    def show(self, *alerts: Alert, turns: int = 50) -> list[float]:
        """Until nothing is due any more; the pauses that it took."""
        pauses = []
        for _ in range(turns):
            wait_s = self.lights.tend(alerts)
            if self.lights.settled():
                return pauses
            pauses.append(wait_s or 0.0)
            self.time += wait_s or 0.0
        return pauses


@pytest.fixture
def notify(hue: FakeHue, pems: tuple[Path, Path], tmp_path: Path) -> Notify:
    return Notify(hue, pems[0], tmp_path)


def red(hue: FakeHue) -> bool:
    return all(Lamp.of(lamp).shows("red", 100.0) for lamp in hue.lamps.values())


def as_before(hue: FakeHue, before: dict[str, Lamp]) -> bool:
    """By what people see: a lamp that shows a white has a place among the colours, too."""
    return all(Lamp.of(lamp).same(before[id_]) for id_, lamp in hue.lamps.items())


class TestARoom:
    def test_it_turns_red_and_gets_back_what_it_showed(self, notify: Notify, hue: FakeHue) -> None:
        before = {k: Lamp.of(v) for k, v in hue.lamps.items()}
        notify.show(BAD)
        assert red(hue)
        assert [p for p, _ in hue.puts()] == [f"grouped_light/{GROUP}"]
        notify.show(over(BAD))
        assert as_before(hue, before)

    def test_a_lamp_that_was_off_gets_its_colour_before_it_goes_out(
        self, notify: Notify, hue: FakeHue
    ) -> None:
        notify.show(BAD)
        notify.show()
        (colour, off) = [b for p, b in hue.puts() if p == "light/l3"]
        assert colour["color"] == DARK["color"] and "on" not in colour and off == {"on": {"on": False}}

    def test_an_ack_gives_the_light_back_too(self, notify: Notify, hue: FakeHue) -> None:
        notify.show(BAD)
        notify.show(seen(BAD))
        assert Lamp.of(hue.lamps["l2"]).same(Lamp.of(BLUE))

    def test_amber_for_a_hot_card_red_when_worse_and_amber_again(self, notify: Notify, hue: FakeHue) -> None:
        notify.show(HOT)
        notify.show(HOT, BAD)
        notify.show(HOT)
        shown = [b["color"]["xy"]["x"] for _, b in hue.puts("grouped")]
        assert shown == [XY["amber"][0], XY["red"][0], XY["amber"][0]]
        notify.show()
        assert Lamp.of(hue.lamps["l1"]).same(Lamp.of(WARM))

    def test_nothing_is_sent_to_a_lamp_that_shows_it_already(self, notify: Notify, hue: FakeHue) -> None:
        notify.show(BAD)
        count = len(hue.asked)
        for _ in range(5):
            notify.time += 10
            notify.show(BAD)
        assert len(hue.asked) == count

    def test_a_zone_has_the_lamps_themselves(
        self, hue: FakeHue, pems: tuple[Path, Path], tmp_path: Path
    ) -> None:
        zone = Notify(hue, pems[0], tmp_path, "Desk")
        assert zone.bridge.find_group("Desk") == ("zone-light", ["l2"])

    def test_a_group_that_is_not_there_is_named_with_those_that_are(self, notify: Notify) -> None:
        with pytest.raises(NotFound, match="it has Desk, Office"):
            notify.bridge.find_group("Attic")

    def test_a_lamp_that_has_gone_holds_up_no_other(self, notify: Notify, hue: FakeHue) -> None:
        notify.show(BAD)
        del hue.lamps["l1"]
        notify.show()
        assert notify.lights.settled() and Lamp.of(hue.lamps["l2"]).same(Lamp.of(BLUE))


class TestARestart:
    def test_the_scene_is_kept_before_the_first_colour_is_sent(self, notify: Notify, hue: FakeHue) -> None:
        while not hue.puts():
            before = Kept(notify.folder / "sink-room.json").load() or {}
            notify.time += notify.lights.tend([BAD]) or 0.0
        assert set(before["scene"]) == {"l1", "l2", "l3"}

    @pytest.mark.parametrize("die_after", range(1, 12))
    def test_wherever_it_is_killed_the_scene_comes_back_and_each_lamp_is_told_once(
        self, notify: Notify, hue: FakeHue, die_after: int
    ) -> None:
        before = {k: Lamp.of(v) for k, v in hue.lamps.items()}
        wishes: list[list[Alert]] = [[BAD]] * 6 + [[]] * 12
        for turn, alerts in enumerate(wishes):
            notify.time += max(notify.lights.tend(alerts) or 0.0, GROUP_S)
            if turn == die_after:
                notify.start()
        notify.show()
        assert as_before(hue, before)
        for lamp in ("l1", "l2"):
            assert len(hue.puts(f"/light/{lamp}")) == 1
        assert len(hue.puts("grouped")) == 1

    def test_an_alert_that_is_over_while_it_was_away_gives_the_light_back(
        self, notify: Notify, hue: FakeHue
    ) -> None:
        notify.show(BAD)
        notify.start()
        notify.show()
        assert Lamp.of(hue.lamps["l1"]).same(Lamp.of(WARM))
        count = len(hue.asked)
        notify.start()
        notify.show()
        assert len(hue.asked) == count

    def test_one_that_was_killed_before_it_could_keep_what_it_had_sent_sends_it_not_again(
        self, notify: Notify, hue: FakeHue
    ) -> None:
        notify.show(BAD)
        kept = Kept(notify.folder / "sink-room.json")
        kept.save({**(kept.load() or {}), "shown": ""})
        notify.start()
        notify.show(BAD)
        assert len(hue.puts("grouped")) == 1

    def test_an_alert_in_the_middle_of_giving_back_keeps_the_first_scene(
        self, notify: Notify, hue: FakeHue
    ) -> None:
        notify.show(BAD)
        notify.lights.tend([])  # one lamp has its scene
        assert len(hue.puts("/light/")) == 1
        notify.show(BAD)
        assert red(hue)
        notify.show()
        assert Lamp.of(hue.lamps["l1"]).same(Lamp.of(WARM)) and Lamp.of(hue.lamps["l2"]).same(Lamp.of(BLUE))


class TestTroubles:
    def test_another_certificate_is_refused_with_both_and_nothing_is_said_to_it(
        self, pems: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        impostor = FakeHue(pems[1])
        try:
            notify = Notify(impostor, pems[0], tmp_path)
            with pytest.raises(WrongCertificate) as refused:
                notify.bridge.find_group("Office")
            assert refused.value.wanted == fingerprint(pems[0]) and refused.value.found == fingerprint(
                pems[1]
            )
            assert fingerprint(pems[0]) in str(refused.value) and fingerprint(pems[1]) in str(refused.value)
            with caplog.at_level(logging.WARNING):
                notify.show(BAD, turns=3)
            assert fingerprint(pems[1]) in caplog.text and KEY not in caplog.text
            assert impostor.asked == []
        finally:
            impostor.close()

    def test_a_bridge_that_asks_for_a_day_is_asked_again_after_minutes(
        self, notify: Notify, hue: FakeHue
    ) -> None:
        hue.retry_after, hue.trouble = "86400", [429]
        assert max(notify.show(BAD)) == 300.0
        assert red(hue)

    @pytest.mark.parametrize("status", [429, 503])
    def test_a_bridge_that_is_busy_is_asked_again_when_it_says(
        self, notify: Notify, hue: FakeHue, status: int
    ) -> None:
        hue.trouble = [status, status]
        pauses = notify.show(BAD)
        assert red(hue)
        assert [p for p in pauses if p > 1.0] == [7.0, 7.0]

    def test_one_that_fails_is_asked_with_growing_pauses(self, notify: Notify, hue: FakeHue) -> None:
        hue.trouble = [500] * 5
        assert [p for p in notify.show(BAD) if p > 1.0] == [2.0, 4.0, 8.0, 16.0]
        assert red(hue)

    def test_one_that_hangs_costs_its_time_and_no_more(
        self, hue: FakeHue, pems: tuple[Path, Path], tmp_path: Path
    ) -> None:
        notify = Notify(hue, pems[0], tmp_path, timeout_s=0.5)
        hue.trouble = ["hang"]
        with pytest.raises(WebError):
            notify.bridge.find_group("Office")
        patient = Notify(hue, pems[0], tmp_path)
        patient.show(BAD)
        assert red(hue)

    def test_one_that_says_a_byte_now_and_then_costs_its_time_and_no_more(
        self, hue: FakeHue, pems: tuple[Path, Path], tmp_path: Path
    ) -> None:
        hue.trouble = ["drip"]
        began = time.monotonic()
        with pytest.raises(WebError, match=r"no whole answer within 0\.5 s"):
            Notify(hue, pems[0], tmp_path, timeout_s=0.5).bridge.find_group("Office")
        assert time.monotonic() - began < 15

    def test_a_handshake_that_never_ends_costs_its_time_and_no_more(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            released = threading.Event()

            def drip() -> None:
                peer, _ = server.accept()
                with peer, contextlib.suppress(OSError):
                    peer.sendall(b"\x16\x03\x03\x3f\xff")  # a record of 16 KiB, which comes byte by byte
                    while not released.wait(0.05):
                        peer.sendall(b"\x02")

            slow = threading.Thread(target=drip, daemon=True)
            slow.start()
            began = time.monotonic()
            with pytest.raises(WebError):
                look(f"127.0.0.1:{server.getsockname()[1]}", timeout_s=0.5)
            assert time.monotonic() - began < 15
            released.set()
            slow.join()

    def test_a_group_gets_at_most_one_command_a_second_whatever_happens(
        self, notify: Notify, hue: FakeHue
    ) -> None:
        sent: list[float] = []
        paint = notify.bridge.paint

        def noting(group: str, command: Any) -> None:
            sent.append(notify.time)
            paint(group, command)

        notify.bridge.paint = noting  # type: ignore[method-assign]
        for n in range(60):
            notify.lights.tend([BAD] if n % 2 else [HOT])
            notify.time += 0.1
            if n == 30:
                notify.start()
        assert len(sent) >= 4
        assert min(b - a for a, b in itertools.pairwise(sent)) >= GROUP_S - 1e-9


class TestPairing:
    def test_the_certificate_is_shown_and_the_key_comes_with_the_button(
        self, hue: FakeHue, pems: tuple[Path, Path]
    ) -> None:
        found, id_ = look(hue.address)
        assert (found, id_) == (fingerprint(pems[0]), "001788FFFE123456")
        assert pair(hue.address, found) is None
        hue.pressed = True
        assert pair(hue.address, found) == KEY

    def test_one_that_is_another_by_then_gets_no_answer(self, hue: FakeHue, pems: tuple[Path, Path]) -> None:
        with pytest.raises(WrongCertificate):
            pair(hue.address, fingerprint(pems[1]))
        assert hue.asked == []

    @pytest.mark.parametrize("address", ["", "http://x", "a b", "1.2.3.4/x", "user@host", "host:port", "-\n"])
    def test_what_is_no_address(self, address: str) -> None:
        with pytest.raises(ConfigError):
            HueBridge(address, "k", "0" * 64, 1.0)


@pytest.mark.parametrize(
    ("alerts", "colour"),
    [
        ([], ""),
        ([HOT], "amber"),
        ([BAD], "red"),
        ([HOT, BAD], "red"),
        ([over(BAD)], ""),
        ([seen(BAD), HOT], "amber"),
        ([Alert("test", "test", Severity.INFO, State.RAISED, "t")], "amber"),
        ([Alert("clocks-apart", "clocks-apart", Severity.INFO, State.RAISED, "t")], ""),
    ],
)
def test_which_colour_is_wanted(alerts: list[Alert], colour: str) -> None:
    assert wanted(alerts, Wants()) == colour


HANDS = (Lamp(True, 55.0, (0.3, 0.5)), Lamp(True, 10.0, None, 250), Lamp(False, 30.0, (0.2, 0.6)))


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["", "red", "amber"]),
            st.booleans(),
            st.floats(0, 2),
            st.none() | st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(HANDS)),
        ),
        max_size=40,
    )
)
def test_a_room_always_finds_back_to_what_people_want_whatever_happens_and_whenever_it_is_killed(
    steps: list[Any],
) -> None:
    wish = {"a": Lamp(True, 40.0, None, 366), "b": Lamp(False, 20.0, (0.4, 0.4))}  # what people did last
    now, room = {**wish}, Room(None, 0.0)
    clock, last_paint = 0.0, -9.0
    ends = [("", False, 2.0, None)] * 6
    for colour, die, later_s, hand in [*steps, *ends]:
        clock += later_s
        # In the second between a colour and the look at what became of it nobody knows whose a change is.
        if hand is not None and (room.scene is None or room.ours is not None):
            wish[hand[0]] = now[hand[0]] = hand[1]
        step = room.next(colour, clock)
        if step.do == "read":
            assert now == wish  # nothing of ours is ever taken for the scene
            room.read(now)
        elif step.do == "look":
            room.looked(now)
        elif step.do == "paint":
            # as the core adds: a difference of floats may be a hair less
            assert clock >= last_paint + GROUP_S
            last_paint = clock
            room.sending(now, 100.0, clock)
            # lamps of small gamuts answer another colour than they were sent
            now = {"a": Lamp(True, 100.0, XY[step.colour]), "b": Lamp(True, 90.0, (0.5, 0.3))}
            room.painted(step.colour)
        elif step.do == "restore":
            if room.owes(step.lamp, now[step.lamp], 100.0):
                now[step.lamp] = (room.scene or {})[step.lamp]
            room.restored(step.lamp, clock)
        if die:
            room = Room(room.plain(), clock)
    assert now == wish and room.scene is None


class TestAHand:
    """Somebody who changes a lamp while the room is red wants it so."""

    def test_what_a_person_made_of_a_lamp_is_left_and_the_others_get_theirs_back(
        self, notify: Notify, hue: FakeHue
    ) -> None:
        notify.show(BAD)
        hue.lamps["l1"] |= {"dimming": {"brightness": 15.0}, "color": {"xy": {"x": 0.3, "y": 0.5}}}
        notify.start()  # it is known over a restart
        notify.show()
        assert Lamp.of(hue.lamps["l1"]) == Lamp(True, 15.0, (0.3, 0.5)) and not hue.puts("/light/l1")
        assert Lamp.of(hue.lamps["l2"]).same(Lamp.of(BLUE))

    def test_another_colour_is_given_back_to_what_the_person_made(self, notify: Notify, hue: FakeHue) -> None:
        notify.show(HOT)
        hue.lamps["l1"] |= {"dimming": {"brightness": 15.0}, "color": {"xy": {"x": 0.3, "y": 0.5}}}
        notify.show(HOT, BAD)
        assert red(hue)
        notify.show()
        assert Lamp.of(hue.lamps["l1"]).same(Lamp(True, 15.0, (0.3, 0.5)))
        assert Lamp.of(hue.lamps["l2"]).same(Lamp.of(BLUE))

    def test_one_that_was_only_switched_off_stays_off_and_is_not_red_when_it_is_next_turned_on(
        self, notify: Notify, hue: FakeHue
    ) -> None:
        notify.show(BAD)
        hue.lamps["l2"]["on"] = {"on": False}
        notify.show()
        assert hue.puts("/light/l2") == [
            ("light/l2", {"dimming": BLUE["dimming"], "color": BLUE["color"]}),
        ]
        assert Lamp.of(hue.lamps["l2"]).same(Lamp(False, 80.0, (0.17, 0.2)))

    def test_a_lamp_that_answers_another_colour_than_it_was_sent_is_in_nobodys_hand(
        self, notify: Notify, hue: FakeHue
    ) -> None:
        paint = notify.bridge.paint

        def clipped(group: str, command: Any) -> None:
            paint(group, command)
            hue.lamps["l2"] |= {"dimming": {"brightness": 93.0}, "color": {"xy": {"x": 0.5, "y": 0.31}}}

        notify.bridge.paint = clipped  # type: ignore[method-assign]
        notify.show(BAD)
        notify.show()
        assert Lamp.of(hue.lamps["l2"]).same(Lamp.of(BLUE))

    def test_a_lamp_that_came_into_the_room_meanwhile_gets_its_own_light_back(
        self, notify: Notify, hue: FakeHue
    ) -> None:
        notify.show(HOT)
        hue.lamps["l4"] = dict(WARM)
        notify.start()
        notify.show(BAD)
        notify.show()
        assert Lamp.of(hue.lamps["l4"]).same(Lamp.of(WARM))

    def test_a_state_of_before_hands_were_looked_at_gives_all_back(
        self, notify: Notify, hue: FakeHue
    ) -> None:
        notify.show(BAD)
        kept = Kept(notify.folder / "sink-room.json")
        kept.save({k: v for k, v in (kept.load() or {}).items() if k != "ours"})
        notify.start()
        notify.show()
        assert Lamp.of(hue.lamps["l1"]).same(Lamp.of(WARM))


@pytest.mark.parametrize(
    "kept", [{}, {"scene": 7}, {"scene": {"a": 7}}, {"scene": {"a": [True]}, "shown": "red"}]
)
def test_a_damaged_scene_is_none(kept: dict[str, Any]) -> None:
    assert Room(kept, 0.0).scene is None
