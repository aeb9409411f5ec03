"""The files of ``tasks/queue`` that are on their way, on the local disk: none is lost, none is run twice.

An order is entered with the whole SUBMIT that it becomes before that goes out, and leaves when its end stands in the
lanes. The SUBMIT's key is its task_id, so the same file seen again is the same batch.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ....bus.paths import write_atomic
from ..intake.journal import Journal
from .core import QUEUE

log = logging.getLogger(__name__)

MAX_NAMES: Final = 50_000
Entry = dict[str, Any]


def batch_key(task_id: str) -> str:
    """The key of the batch that a task file becomes."""
    return f"queue:{task_id}"


class Books:
    """Open orders by task_id, and what the tasks of an author's batch are called (for ``depends_on``)."""

    def __init__(self, folder: Path) -> None:
        self.journal = Journal(folder)
        self._names_file = folder / "names.map"
        self.open: dict[str, Entry] = {}
        self._stems: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._lines = 0  #: of the file of names

    def begin(self) -> None:
        """Read what an earlier bridge left.

        Raises:
            OSError: the state folder refuses.
        """
        self.journal.open()
        self.open.clear()
        self._stems.clear()
        for entry in self.journal.entries().values():
            if _usable(entry):
                self._keep(entry)
            else:
                log.warning("an entry of the queue's journal is unusable: %.200r", entry.get("drop_id"))
                self.journal.leave(str(entry["drop_id"]))
        self._names, self._lines = _read_names(self._names_file)
        if self._lines != len(self._names):
            self._rewrite_names()

    def enter(self, entry: Entry) -> None:
        """Keep an order durably; the same task_id replaces it."""
        self.journal.enter(str(entry["task_id"]), {**entry, "drop_id": entry["task_id"]})
        self._keep(entry)

    def leave(self, task_id: str) -> None:
        """Its end is shown."""
        self.journal.leave(task_id)
        entry = self.open.pop(task_id, None)
        if entry is not None:
            for name in (str(entry["stem"]), str(entry["source"]).removesuffix(".json")):
                if self._stems.get(name) == task_id:  # else it is that of a newer order
                    del self._stems[name]

    def holder(self, name: str) -> Entry | None:
        """The open order that a file of the queue belongs to, by the file's name."""
        task_id = self._stems.get(name.removesuffix(".json"))
        return self.open.get(task_id) if task_id is not None else None

    def holds(self, name: str, was: Sequence[int]) -> bool:
        """The file of this name is that of an open order, or stands where the mirror draws its task. Another file that
        its author gave the same name (``was``: [inode, size, mtime_ns]) is an order of its own."""
        entry = self.holder(name)
        if entry is None or not entry["batch"]:
            return entry is not None
        drawn = entry["kind"] == "task" and name == f"{entry['task_id']}.json"
        return drawn or list(was) == entry.get("was")

    def author(self, path: str) -> tuple[int, int] | None:
        """Size and mtime of the author's own file at this path of the share, while its order is open."""
        folder, _, name = path.rpartition("/")
        entry = self.holder(name) if folder == QUEUE else None
        if entry is None or entry["source"] != name or not entry.get("was"):
            return None
        _, size, mtime_ns = entry["was"]
        return size, mtime_ns

    def public_id(self, task_id: str) -> str | None:
        """The id that the rig has for an open single task of this task_id."""
        entry = self.open.get(task_id)
        return str(entry["id"]) if entry is not None and entry["id"] else None

    def plans(self) -> Iterator[Entry]:
        """Open ones that are batches of a plan."""
        return (e for e in self.open.values() if e["kind"] == "plan" and e["batch"])

    def tasks(self) -> Iterator[Entry]:
        """Open ones that are single tasks."""
        return (e for e in self.open.values() if e["kind"] == "task" and e["batch"])

    def unsent(self) -> list[Entry]:
        """Entered, and not known to be submitted."""
        return [e for e in self.open.values() if not e["batch"]]

    # -- names -----------------------------------------------------------------------------------------------

    def named(self, batch: str, name: str) -> str | None:
        """The public id of the task called so in its author's batch."""
        return self._names.get(f"{batch}\n{name}")

    def name(self, batch: str, name: str, id_: str) -> None:
        """Remember it, durably; the oldest of many are forgotten."""
        key = f"{batch}\n{name}"
        if self._names.get(key) == id_:
            return
        self._names.pop(key, None)
        self._names[key] = id_
        while len(self._names) > MAX_NAMES:
            del self._names[next(iter(self._names))]
        if self._lines >= 2 * MAX_NAMES:
            self._rewrite_names()
            return
        with self._names_file.open("ab") as file:
            file.write(_line(key, id_))
            file.flush()
            os.fsync(file.fileno())
        self._lines += 1

    def _rewrite_names(self) -> None:
        write_atomic(self._names_file, b"".join(_line(key, id_) for key, id_ in self._names.items()))
        self._lines = len(self._names)

    def _keep(self, entry: Entry) -> None:
        self.open[str(entry["task_id"])] = entry
        self._stems[str(entry["stem"])] = str(entry["task_id"])
        self._stems[str(entry["source"]).removesuffix(".json")] = str(entry["task_id"])


def _usable(entry: Mapping[str, Any]) -> bool:
    texts = all(isinstance(entry.get(key), str) for key in ("task_id", "stem", "source", "batch", "id"))
    at = entry.get("at")
    return (
        texts
        and entry.get("kind") in ("plan", "task")
        and isinstance(entry.get("fields"), dict)
        and isinstance(entry.get("header"), dict)
        and isinstance(at, int | float)
        and _is_file(entry.get("was"))
    )


def _is_file(was: Any) -> bool:
    return isinstance(was, list) and len(was) == 3 and all(isinstance(one, int) for one in was)


def _line(key: str, id_: str) -> bytes:
    return json.dumps([key, id_]).encode() + b"\n"


def _read_names(file: Path) -> tuple[dict[str, str], int]:
    """Key -> id, the oldest first, and how many lines the file has. A line that a crash left half is passed over."""
    try:
        lines = file.read_bytes().splitlines()
    except FileNotFoundError:
        return {}, 0
    except OSError as e:
        log.warning("%s cannot be read (%s): names of earlier task files are forgotten", file, e)
        return {}, 0
    names: dict[str, str] = {}
    for line in lines[-MAX_NAMES:]:
        try:
            key, id_ = json.loads(line)
        except (ValueError, TypeError):
            continue
        if isinstance(key, str) and isinstance(id_, str):
            names.pop(key, None)
            names[key] = id_
    return names, len(lines)
