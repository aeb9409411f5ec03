"""What a sink's thread does, one turn at a time: `Messages` for ntfy, Home Assistant and webhooks, `Lights` for a room.

A turn may block for as long as its requests may take; it keeps what it has done before it does the next thing.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ...bus.alerting.core import Alert
from ...bus.errors import NotFound
from ...bus.paths import write_atomic
from .hue import HueBridge
from .hue_core import Colour, Lamp, Room, paint_command, wanted
from .outbox import PAUSES_S, Outbox, Wants
from .sinks import Build, Request
from .web import WebError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Times:
    """Where a turn gets its times from; tests give their own."""

    now: Callable[[], float] = time.monotonic
    wall: Callable[[], float] = time.time


class Sink(Protocol):
    """One way out."""

    def tend(self, alerts: Iterable[Alert]) -> float | None:
        """One thing that is due, if any; seconds until there may be another (None: when the alerts change)."""

    def owed(self, alerts: Iterable[Alert]) -> list[str]:
        """What it would do now, in words; nothing is done."""

    def settled(self) -> bool:
        """Nothing is owed any more."""


class Kept:
    """The state of one sink: a small file on the local disk."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._saved: bytes | None = None

    def load(self) -> dict[str, Any] | None:
        """What was kept; None the first time, or where it is damaged."""
        try:
            value = json.loads(self._file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as e:
            log.warning("%s cannot be read (%s): it begins anew", self._file, e)
            return None
        return value if isinstance(value, dict) else None

    def save(self, value: Mapping[str, Any]) -> None:
        """Durably; the same again costs nothing.

        Raises:
            OSError: the disk refuses.
        """
        data = json.dumps(value).encode()
        if data != self._saved:
            write_atomic(self._file, data)
            self._saved = data


class Messages:
    """A sink that is told of each alert once."""

    def __init__(
        self,
        name: str,
        wants: Wants,
        build: Build,
        send: Callable[[Request], None],
        kept: Kept,
        times: Times | None = None,
    ) -> None:
        self.name, self._build, self._send, self._kept = name, build, send, kept
        self._times = times or Times()
        before = kept.load()
        told = before.get("told") if before is not None else None
        self._box = Outbox(wants, told if isinstance(told, dict) else None)

    def tend(self, alerts: Iterable[Alert]) -> float | None:
        """See :class:`Sink`."""
        now = self._times.now()
        self._box.offer(alerts)
        alert = self._box.due(now)
        if alert is not None:
            try:
                self._send(self._build(alert, self._times.wall()))
            except WebError as e:
                after = self._times.now()
                given_up = self._box.failed(alert, after, retry_after_s=e.retry_after_s, refused=e.refused)
                then = "it is given up" if given_up else f"again in {self._box.wait_s(after) or 0:.0f} s"
                log.warning("%s: %s is not delivered: %s; %s", self.name, alert.key, e, then)
            else:
                self._box.done(alert, self._times.now())
                log.info("%s: %s (%s) is delivered", self.name, alert.key, alert.state.value)
        self._kept.save({"told": self._box.plain()})
        return self._box.wait_s(self._times.now())

    def owed(self, alerts: Iterable[Alert]) -> list[str]:
        """See :class:`Sink`."""
        self._box.offer(alerts)
        return [f"{a.severity.value} {a.state.value} {a.key}: {a.title}" for a in self._box.owed()]

    def settled(self) -> bool:
        """See :class:`Sink`."""
        return not self._box.owed()


class Lights:
    """A room that shows whether something is wrong."""

    def __init__(
        self,
        name: str,
        wants: Wants,
        bridge: HueBridge,
        group: str,
        brightness: float,
        kept: Kept,
        times: Times | None = None,
    ) -> None:
        self.name, self._wants, self._bridge = name, wants, bridge
        self._group, self._brightness, self._kept = group, brightness, kept
        self._times = times or Times()
        self.room = Room(kept.load(), self._times.now())
        self._ids: tuple[str, list[str]] | None = None
        self._pause_s = self._not_before = 0.0
        self._settled = False
        self._seen: dict[str, Lamp] | None = None  #: what the lamps show, while the scene is given back

    def tend(self, alerts: Iterable[Alert]) -> float | None:
        """See :class:`Sink`."""
        now = self._times.now()
        if now < self._not_before:
            return self._not_before - now
        colour = wanted(alerts, self._wants)
        step = self.room.next(colour, now)
        self._kept.save(self.room.plain())
        self._settled = step.do == "rest" and step.wait_s is None
        if step.do == "rest":
            return step.wait_s
        try:
            if step.do == "read":
                self.room.read(self._bridge.lamps(self._find()[1]))
            elif step.do == "paint":
                self._paint(step.colour)
            elif step.do == "look":
                self.room.looked(self._bridge.lamps(self._find()[1]))
            else:
                self._restore(step.lamp)
        except (WebError, NotFound) as e:
            self._pause_s = min(max(PAUSES_S[0], self._pause_s * 2), PAUSES_S[1])
            wait_s = max(self._pause_s, min(getattr(e, "retry_after_s", 0.0), PAUSES_S[1]))
            self._not_before = self._times.now() + wait_s
            self._ids = self._seen = None
            log.warning("%s: %s; again in %.0f s", self.name, e, wait_s)
        else:
            self._pause_s = 0.0
        self._kept.save(self.room.plain())
        return max(0.0, self._not_before - self._times.now())

    def owed(self, alerts: Iterable[Alert]) -> list[str]:
        """See :class:`Sink`."""
        colour = wanted(alerts, self._wants)
        step = Room(self.room.plain(), self._times.now() - 10.0).next(colour, self._times.now())
        words = {"rest": "", "look": "", "restore": f"{self._group} gets back what it showed before"}
        word = words.get(step.do, f"{self._group} turns {colour}")
        return [word] if word else []

    def settled(self) -> bool:
        """See :class:`Sink`."""
        return self._settled

    def _find(self) -> tuple[str, list[str]]:
        if self._ids is None:
            self._ids = self._bridge.find_group(self._group)
        return self._ids

    def _paint(self, colour: Colour) -> None:
        self._seen = None
        group, ids = self._find()
        shown = self._bridge.lamps(ids)
        if not shown or not all(lamp.shows(colour, self._brightness) for lamp in shown.values()):
            self.room.sending(shown, self._brightness, self._times.now())
            self._kept.save(
                self.room.plain()
            )  # before the colour: it overwrites what a hand has made of a lamp
            self._bridge.paint(group, paint_command(colour, self._brightness))
        self.room.painted(colour)

    def _restore(self, lamp: str) -> None:
        if self._seen is None:
            self._seen = self._bridge.lamps(self.room.scene or {})
        now_shown = self._seen.get(lamp)
        owed = self.room.owes(lamp, now_shown, self._brightness) if now_shown is not None else []
        for command in owed:
            try:
                self._bridge.command(lamp, command)
            except WebError as e:
                if not e.refused and e.status != 404:
                    raise
                log.warning("%s: lamp %s does not take %s: %s", self.name, lamp, command, e)
        self.room.restored(lamp, self._times.now())
        if self.room.scene is None:
            self._seen = None
