"""Which batches ``state.json`` has shown as active, and since when: what an edit of it can have meant. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Since:
    """From which listing on a batch is shown, and when that was (monotonic seconds of this machine; None: not yet)."""

    n: int
    at: float | None = None


@dataclass(slots=True)
class Listing:
    """The batches that ``state.json`` shows as active. ``id`` tells the listings of one state folder from those of others."""

    id: str
    n: int = 0
    since: dict[str, Since] = field(default_factory=dict)

    @property
    def mark(self) -> str:
        """What the file says of itself."""
        return f"{self.id}-{self.n}"

    def after(self, active: Iterable[str]) -> Listing:
        """The listing once these are active. One with a higher ``n`` must be on the disk before it is shown."""
        shown = set(active)
        since = {batch: it for batch, it in self.since.items() if batch in shown}
        new = shown - since.keys()
        n = self.n + 1 if new else self.n
        return Listing(self.id, n, {**since, **{batch: Since(n) for batch in new}})

    def shown(self, now: float) -> Listing:
        """The listing once a file of it stands."""
        since = {batch: Since(it.n, now) if it.at is None else it for batch, it in self.since.items()}
        return Listing(self.id, self.n, since)

    def without(self, batches: Iterable[str]) -> Listing:
        """The listing once these are cancelled: should they run again, that is another run, which no older file has shown."""
        return self.after(self.since.keys() - set(batches))

    def to_json(self) -> dict[str, Any]:
        """For the disk."""
        since = {batch: [it.n, it.at] for batch, it in self.since.items()}
        return {"id": self.id, "n": self.n, "since": since}

    @classmethod
    def from_json(cls, found: Any) -> Listing:
        """What :meth:`to_json` gave.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is none.
        """
        since = {
            str(batch): Since(int(n), None if at is None else float(at))
            for batch, (n, at) in found["since"].items()
        }
        if not isinstance(found["id"], str) or not found["id"]:
            raise ValueError("it has no id")
        return cls(found["id"], int(found["n"]), since)
