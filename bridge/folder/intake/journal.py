"""Drops that are on their way from the inbox to a batch, on the local disk.

A drop is entered, durably, with the whole SUBMIT that it will become, before it is moved out of the inbox; it leaves
the journal when its receipt stands. So whatever is killed in between, the drop is neither lost (its journal entry goes
on) nor run twice (the SUBMIT bears its key).
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ....bus.paths import write_atomic
from ....plans.stage import remove_tree

log = logging.getLogger(__name__)


class Journal:
    """The folder ``<state>/incoming``: ``<drop id>.json`` of each drop under way, and copies in the making."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.unread = False  #: the last look left entries behind that the disk did not give

    def open(self) -> None:
        """Make the folder, and remove the copies and half-written entries that a killed bridge left.

        Raises:
            OSError: the state folder is full or not writable.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for left in self._folder.glob("copy-*"):
            remove_tree(left)
        for unfinished in self._folder.glob(".*.json.*"):
            unfinished.unlink(missing_ok=True)

    def copy_place(self, drop: str, name: str) -> Path:
        """A new place for the local copy of a plan: ``<folder>/copy-<drop>/<name>``; its parent is made, empty.

        Raises:
            OSError: the disk refuses.
        """
        parent = self._folder / f"copy-{drop}"
        remove_tree(parent)
        parent.mkdir(parents=True, mode=0o700)
        return parent / name

    def drop_copy(self, place: Path) -> None:
        """Remove a copy and the folder made for it."""
        remove_tree(place.parent)

    def enter(self, drop: str, entry: Mapping[str, Any]) -> None:
        """Keep an entry durably; the same drop again replaces it.

        Raises:
            OSError: the disk refuses.
        """
        write_atomic(self._file(drop), json.dumps(entry, indent=1).encode())

    def leave(self, drop: str) -> None:
        """The drop has its receipt."""
        try:
            os.unlink(self._file(drop))
        except FileNotFoundError:
            pass

    def entries(self) -> dict[str, dict[str, Any]]:
        """Drop id -> entry, of all that are under way. A damaged one is put aside and named."""
        found: dict[str, dict[str, Any]] = {}
        self.unread = False
        for file in sorted(self._folder.glob("*.json")):
            try:
                entry = json.loads(file.read_bytes())
                found[entry["drop_id"]] = entry
            except OSError as e:
                self.unread = True
                log.warning("%s cannot be read (%s): what it tells of waits there", file, e.strerror)
            except (ValueError, KeyError, TypeError) as e:
                log.warning("%s is damaged (%s): put aside; drop that plan again", file, e)
                os.replace(file, file.with_suffix(".damaged"))
        return found

    def _file(self, drop: str) -> Path:
        return self._folder / f"{drop}.json"
