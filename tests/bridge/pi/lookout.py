"""All readers of the Pi at once, again and again, all day: what any of them stumbles over, and what cannot be so.

A file that goes between two steps of a script is the script's own crash, which no writer can prevent: those are counted.
Everything else that one of them raises is a fault of what was drawn. Beside them the folder itself is looked at: a state
that must not *last* (a task in two lanes) is a fault once it was seen for ``LASTS_S`` without a break.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from naive import check_mode, check_task, check_values
from pi_scripts import CpuAgent

from .audit import audit_decisions, audit_evaluations
from .dashboard import Dashboard
from .review import Review
from .status import status, status_tasks
from .watch import BrainTail, CompleteTail, watch_once

PAUSE_S = 0.05
LASTS_S = 15.0  #: a mirror needs a moment for a move; on a busy machine a much longer one
LANES = ("brain/private_tasks", "tasks/queue", "tasks/processing", "tasks/complete", "tasks/failed")
ENDED = ("complete", "failed", "cancelled")
#: Files of the rig of which a reader may take the whole at any moment.
WHOLE = (
    "alerts/*.json",
    "brain/escalations/*.json",
    "config.json",
    "heartbeats/*.json",
    "inbox/*.receipt.json",
    "inbox/.requests/*.receipt.json",
    "signals/*.receipt.json",
    "workers/*/*.json",
)
MISTAKES = (ValueError, KeyError, TypeError, AttributeError, IndexError, OSError)


class Lookout:
    """See the module. ``faults`` are said at the end; ``looks`` counts them by reader."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.board = Dashboard(config)  # kept all day: it remembers what it has parsed
        self.brain, self.tail = BrainTail(config), CompleteTail(config)
        self.lines: list[str] = []
        self.completed: list[str] = []
        self.faults: list[str] = []
        self.looks: Counter[str] = Counter()
        self.vanished: Counter[str] = Counter()
        self.done: set[str] = set()
        self._shared = self.board.shared
        self._since: dict[str, float] = {}
        self._power = True
        self._lock = threading.Lock()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lookout", daemon=True)

    def __enter__(self) -> Lookout:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(30)
        self.brain.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The Pi itself writes in place meanwhile, for its group, too: what is torn then is its own."""
        with self._lock:
            former = os.umask(0o002)
            try:
                yield
            finally:
                os.umask(former)

    @contextmanager
    def dark(self) -> Iterator[None]:
        """The rig has no power: what was cut in the middle lasts until it is back."""
        self._power = False
        try:
            yield
        finally:
            with self._lock:
                self._since.clear()
            self._power = True

    def _run(self) -> None:
        readers: dict[str, Callable[[], object]] = {
            "status": lambda: status(self.config),
            "status --tasks": lambda: status_tasks(self.config),
            "watch --once": lambda: watch_once(self.config),
            "watch --tail": lambda: self.completed.extend(self.tail.look()),
            "watch --brain": lambda: self.lines.extend(text for _, text in self.brain.look()),
            "audit --decisions": lambda: audit_decisions(self.config),
            "audit --evaluations": lambda: audit_evaluations(self.config),
            "review": lambda: Review(self.config).unrated(),
            "dashboard batches": self.board.batches,
            "dashboard brain": self.board.brain,
            "dashboard workers": self.board.workers,
            "dashboard missing": self.board.missing,
            "dashboard failures": self.board.failures,
            "files": self._files,
        }
        while not self._end.wait(PAUSE_S):
            for name, read in readers.items():
                with self._lock:
                    self._try(name, read)
            for batch in self._batches():
                with self._lock:
                    self._try("dashboard chain", lambda batch=batch: self.board.chain(batch))  # type: ignore[misc]

    def _try(self, name: str, read: Callable[[], object]) -> None:
        try:
            read()
        except FileNotFoundError:
            self.vanished[name] += 1
        except MISTAKES as e:
            if self._sidecars():
                self.vanished[name] += (
                    1  # an agent of the Pi puts them beside the tasks, and the oldest readers know none
                )
            else:
                self.faults.append(f"{name}: {e!r}")
        self.looks[name] += 1

    def _sidecars(self) -> bool:
        return any((self._shared / "tasks/processing").glob("*.heartbeat.json"))

    def _batches(self) -> list[str]:
        try:
            return list(self.board.batches())
        except MISTAKES:
            return []  # the reader of that name says it

    # -- the folder itself -----------------------------------------------------------------------------------

    def _files(self) -> None:
        lanes: dict[str, list[str]] = defaultdict(list)
        working: dict[str, str] = {}  #: batch -> a task of it that has not ended
        for lane in LANES:
            for path in (self._shared / lane).glob("*.json"):
                found = None if path.name.endswith(".heartbeat.json") else self._task(path, lane)
                if found is not None:
                    lanes[path.stem].append(lane)
                    if lane in LANES[:3]:
                        working[str(found.get("batch_id"))] = f"{found.get('name')} in {lane}"
        now: set[str] = set()
        for id_, seen in lanes.items():
            if len(seen) > 1:
                now.add(f"{id_} is in {' and '.join(seen)}")
            elif seen == ["tasks/complete"]:
                self.done.add(id_)
            elif id_ in self.done:
                self.faults.append(f"{id_} was complete, and is in {seen[0]}")
        now |= self._whole(working)
        self._lasting(now)

    def _task(self, path: Path, lane: str) -> dict[str, Any] | None:
        """A task's file, if the rig has drawn it."""
        try:
            info, text = path.stat(), path.read_text()
        except FileNotFoundError:
            return None
        try:
            found: dict[str, Any] = json.loads(text)
            if found.get("mirrored_by") is None or found.get("assigned_to") == CpuAgent.NAME:
                return None  # the Pi's own, not taken in yet
            check_mode(info)
            if found["type"] == "execute_plan" or not found["seq"]:
                # its author's own file, shown again with what became of it: the time in it is by his clock
                check_values({**found, "created_at": ""}, "")
            else:
                check_values(found, "")
                check_task(path, found, lane, info)
        except MISTAKES as e:
            self.faults.append(f"{path.relative_to(self._shared)}: {e!r}\n{text[:2000]}")
            return None
        return found

    def _whole(self, working: dict[str, str]) -> set[str]:
        """Files that are read whole; what they say that must not last."""
        for pattern in WHOLE:
            for path in self._shared.glob(pattern):
                self._json(path)
        active = self._json(self._shared / "brain/state.json").get("active_batches", {})
        out = set()
        for path in self._shared.glob("plans/*/batches/*/batch.json"):
            batch = self._json(path)
            if not batch:
                continue
            if sum(batch["tasks"].values()) != batch["total_tasks"]:
                self.faults.append(f"{path}: {batch['tasks']} are not {batch['total_tasks']} tasks")
            if batch["status"] in ENDED:
                id_ = batch["batch_id"]
                out |= {f"{id_} is {batch['status']}, and active"} if id_ in active else set()
                out |= {f"{id_} is {batch['status']}, and {working[id_]}"} if id_ in working else set()
        return out

    def _json(self, path: Path) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(path.read_text())
        except FileNotFoundError:
            return {}
        except ValueError as e:
            self.faults.append(f"{path.relative_to(self._shared)}: {e!r}")
            return {}
        return found

    def _lasting(self, now: set[str]) -> None:
        at = time.monotonic()
        self._since = {what: self._since.get(what, at) for what in now} if self._power else {}
        for what, since in self._since.items():
            if at - since > LASTS_S:
                self.faults.append(f"for {at - since:.1f} s: {what}")
                self._since[what] = at
