"""What commands by edited files need over restarts, on the local disk: the listing that ``state.json`` shows, the commands
that are on their way, and the names of the newest answers."""

from __future__ import annotations

import json
import logging
import uuid
from pathlib import Path
from typing import Any, Final

from ....bus.paths import write_atomic
from ..intake.journal import Journal
from ..mirror.listing import Listing

log = logging.getLogger(__name__)

SCHEMA: Final = "rigbus.listing/1"
RECEIPTS: Final = 100  #: answers of this door that stay in the inbox
Deed = dict[str, Any]


class ControlBooks:
    """Below ``folder``: ``listing`` and ``receipts``, and a journal of deeds."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.journal = Journal(folder)
        self.open: dict[str, Deed] | None = None  #: mark -> deed; None before :meth:`begin`
        self._receipts: list[str] = []
        self._told = False

    def listing(self) -> Listing:
        """The last one that was shown, or the first of a new state folder."""
        try:
            found = json.loads((self._folder / "listing").read_bytes())
            return Listing.from_json(found)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
            log.warning(
                "%s is damaged (%s): an edit of an older state.json cancels nothing",
                self._folder / "listing",
                e,
            )
        return Listing(uuid.uuid4().hex[:8])

    def keep(self, listing: Listing) -> None:
        """Make it durable.

        Raises:
            OSError: the disk refuses.
        """
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_atomic(
                self._folder / "listing", json.dumps({"schema": SCHEMA, **listing.to_json()}).encode()
            )
        except OSError as e:
            if not self._told:
                log.warning(
                    "the listing of state.json cannot be kept (%s): new batches cannot be cancelled by editing it",
                    e,
                )
            self._told = True
            raise
        self._told = False

    def begin(self) -> dict[str, Deed]:
        """Read what an earlier bridge left.

        Raises:
            OSError: the state folder refuses.
        """
        if self.open is None:
            self.journal.open()
            self.open = self.journal.entries()
            try:
                found = json.loads((self._folder / "receipts").read_bytes())
                self._receipts = [name for name in found if isinstance(name, str)]
            except (FileNotFoundError, ValueError, TypeError):
                self._receipts = []
        return self.open

    def enter(self, mark: str, deed: Deed) -> None:
        """Keep a deed durably; the same mark replaces it."""
        deed = {**deed, "drop_id": mark}
        self.journal.enter(mark, deed)
        self.begin()[mark] = deed

    def leave(self, mark: str) -> None:
        """It is done, and nothing of it stands any more."""
        self.journal.leave(mark)
        self.begin().pop(mark, None)

    def answered(self, name: str) -> list[str]:
        """An answer of this name is there; the names of those that are too many now."""
        self._receipts = [*(other for other in self._receipts if other != name), name]
        over, self._receipts = self._receipts[:-RECEIPTS], self._receipts[-RECEIPTS:]
        try:
            write_atomic(self._folder / "receipts", json.dumps(self._receipts).encode(), durable=False)
        except OSError as e:
            log.warning("the names of answers cannot be kept: %s", e)
        return over
