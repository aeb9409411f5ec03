"""`rigbus notify`: one thread reads the folder, one judges, and each sink has its own. None of them waits for another.

The folder is read only. What notify knows itself, that the rig is silent or the folder away, are alerts like the rig's own.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final

from ...bus.alerting.core import Alert, Alerts
from ...bus.alerting.rules import Policy, is_key
from ...bus.errors import Refused
from .deadman import DeadMan, Signs
from .tending import Kept, Sink, Times

log = logging.getLogger(__name__)

OLD_S: Final = 15.0  #: a folder that has not answered for so long is away
ACKS: Final = "acks"
ONCE_S: Final = 60.0
MAX_REST_S: Final = 5.0
SAY_S: Final = 60.0  #: the cards of Pis do not like to be written
GONE_S: Final = 30.0  #: a file that is missing for so long is gone

#: One reading: the alerts of the folder and the signs of the rig; None: there is no share.
Read = Callable[[], tuple[list[Alert], Signs] | None]


class Notices:
    """What is so, by the folder and by its silence. :meth:`judge` never touches the folder.

    The last good reading is kept: a notify that starts while the folder is away must not take it for "all is well", and
    give back the light.
    """

    def __init__(
        self, folder: Path, grace_s: float, mount_grace_s: float, policy: Policy, times: Times | None = None
    ) -> None:
        self._times = times or Times()
        now, wall = self._times.now(), self._times.wall()
        self._folder = folder
        self._kept, self._kept_rig = Kept(folder / "own.json"), Kept(folder / "rig.json")
        before = self._kept.load() or {}
        own, dead = before.get("own"), before.get("dead")
        self._own = Alerts(policy, own if isinstance(own, dict) else None, wall)
        self._dead = DeadMan(grace_s, mount_grace_s, dead if isinstance(dead, dict) else None, now, wall)
        rig = Alerts(policy, self._kept_rig.load(), wall)
        self._of_rig = {alert.key: alert for alert in rig.all()}
        self._missing: dict[str, float] = {}
        self._said_at = now - SAY_S

    def judge(self, reading: tuple[list[Alert], Signs] | None) -> list[Alert]:
        """All alerts, with those of the last good reading while the folder is away."""
        now, wall = self._times.now(), self._times.wall()
        if reading is not None:
            self._take(reading[0], now)
        changed = self._own.step(self._dead.see(reading[1] if reading else None, now, wall), now, wall)
        changed += self._acks(wall)
        for alert in changed:
            log.warning("%s is %s: %s", alert.key, alert.state.value, alert.title)
        try:
            self._kept_rig.save({"alerts": [alert.plain() for alert in self._of_rig.values()]})
            if changed or now - self._said_at >= SAY_S:
                self._said_at = now
                self._kept.save({"own": self._own.plain(), "dead": self._dead.plain(now, wall)})
        except OSError as e:
            log.warning("what notify knows cannot be kept (%s): a restart begins anew", e)
        mine = {alert.key for alert in self._own.all()}
        return [*(a for k, a in self._of_rig.items() if k not in mine), *self._own.all()]

    def _take(self, alerts: list[Alert], now: float) -> None:
        """One reading. The rig removes no file of a live alert, so one that is missing is a mount's mood, for a while."""
        there = {alert.key: alert for alert in alerts}
        gone = {k: a for k, a in self._of_rig.items() if a.live and k not in there}
        self._missing = {key: self._missing.get(key, now) for key in gone}
        self._of_rig = there | {k: a for k, a in gone.items() if now - self._missing[k] < GONE_S}

    def _acks(self, wall: float) -> list[Alert]:
        """`rigbus notify ack`: of our own alerts, which no rig can ack when it is dead."""
        changed = []
        try:
            names = sorted(os.listdir(self._folder / ACKS))
        except OSError:
            return []
        for name in names:
            alert = self._own.ack(name, wall) if is_key(name) else None
            if alert is not None:
                changed.append(alert)
            try:
                (self._folder / ACKS / name).unlink(missing_ok=True)
            except OSError as e:
                log.warning("%s cannot be removed: %s", name, e)
        return changed


class Runner:
    """A sink in a thread of its own."""

    def __init__(self, name: str, sink: Sink) -> None:
        self.name, self.sink = name, sink
        self._alerts: list[Alert] | None = None
        self._news = threading.Condition()
        self._ending = False
        self._thread = threading.Thread(target=self._run, name=f"sink-{name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def offer(self, alerts: Iterable[Alert]) -> None:
        """How things stand; what the sink has not looked at before is replaced."""
        with self._news:
            self._alerts = list(alerts)
            self._news.notify()

    def end(self, wait_s: float) -> None:
        """Finish the turn that is under way; one that hangs is left behind."""
        with self._news:
            self._ending = True
            self._news.notify()
        self._thread.join(wait_s)

    def _run(self) -> None:
        current: list[Alert] | None = None
        wait_s: float | None = None
        while True:
            with self._news:
                if self._alerts is None and not self._ending:
                    self._news.wait(MAX_REST_S if wait_s is None else min(wait_s, MAX_REST_S))
                if self._ending:
                    return
                if self._alerts is not None:
                    current, self._alerts = self._alerts, None
            if current is not None:
                wait_s = self._turn(current)

    def _turn(self, alerts: list[Alert]) -> float | None:
        try:
            wait_s = self.sink.tend(alerts)
        except OSError as e:
            log.warning("%s: its state cannot be kept (%s); again in %g s", self.name, e, MAX_REST_S)
            return MAX_REST_S
        except Exception:
            # A fault of ours in one sink: the others go on, and this one tries again.
            log.exception("%s: a fault in rigbus; please report this", self.name)
            return MAX_REST_S
        return wait_s


class Reader:
    """Reads the folder in a thread of its own, since a mount that hangs cannot be interrupted."""

    def __init__(self, read: Read, poll_s: float, times: Times | None = None) -> None:
        self._read, self._poll_s, self._times = read, poll_s, times or Times()
        self._lock = threading.Lock()
        self._last: tuple[float, tuple[list[Alert], Signs] | None] | None = None
        self._ending = threading.Event()
        self._began_at = self._times.now()
        self._thread = threading.Thread(target=self._run, name="reader", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def end(self) -> None:
        """No further reading; one that hangs is left behind."""
        self._ending.set()

    def last(self) -> tuple[bool, tuple[list[Alert], Signs] | None]:
        """(something is known, the last reading); None as reading: the folder is away, or has not answered for long."""
        with self._lock:
            last = self._last
        now = self._times.now()
        if last is None:
            return now - self._began_at > OLD_S, None
        return True, last[1] if now - last[0] <= OLD_S + self._poll_s else None

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                found = self._read()
            except OSError as e:
                log.info("the folder cannot be read: %s", e)
                found = None
            with self._lock:
                self._last = (self._times.now(), found)
            self._ending.wait(self._poll_s)


def run(
    read: Read, notices: Notices, sinks: Mapping[str, Sink], poll_s: float, ending: threading.Event
) -> None:
    """Until ``ending`` is set."""
    reader = Reader(read, poll_s)
    runners = [Runner(name, sink) for name, sink in sinks.items()]
    reader.start()
    for runner in runners:
        runner.start()
    while not ending.is_set():
        known, reading = reader.last()
        if known:
            alerts = notices.judge(reading)
            for runner in runners:
                runner.offer(alerts)
        ending.wait(poll_s if known else 0.05)
    reader.end()
    for runner in runners:
        runner.end(2.0)


def once(
    read: Read,
    notices: Notices,
    sinks: Mapping[str, Sink],
    *,
    limit_s: float = ONCE_S,
    times: Times | None = None,
) -> list[str]:
    """One reading, and all that is owed for it; the names of the sinks that have not got everything."""
    times = times or Times()
    found: list[tuple[list[Alert], Signs] | None] = [None]

    def look() -> None:
        try:
            found[0] = read()
        except OSError as e:
            log.info("the folder cannot be read: %s", e)

    reading = threading.Thread(target=look, daemon=True)
    reading.start()
    reading.join(OLD_S)
    alerts = notices.judge(found[0])
    until = times.now() + limit_s
    done: dict[str, bool] = dict.fromkeys(sinks, False)
    pause = threading.Event()

    def all_of(name: str) -> None:
        try:
            while times.now() < until:
                wait_s = sinks[name].tend(alerts)
                if sinks[name].settled():
                    done[name] = True
                    return
                pause.wait(min(wait_s or 0.0, max(0.0, until - times.now())))
        except OSError as e:
            log.warning("%s: its state cannot be kept: %s", name, e)

    threads = [threading.Thread(target=all_of, args=(name,), daemon=True) for name in sinks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - times.now()) + 0.5)
    return [name for name, is_done in done.items() if not is_done]


def lock(folder: Path) -> int:
    """Make the state folder, and be the only one who uses it; the descriptor holds the lock.

    Raises:
        Refused: another one does.  OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise Refused(
            f"another `rigbus notify` uses {folder}; end it, or give another --notify-state"
        ) from None
    return fd
