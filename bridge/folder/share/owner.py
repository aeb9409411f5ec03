"""Whose shared folder it is: one rig's at a time, by a record in the folder and by watching it.

The record names a rig and one bridge process of it, and has a number, the *beat*, that this bridge counts up. Each batch
of a helper compares the record before it does anything, as it does the sentinel: a bridge that the record does not name
touches nothing. No clock is read across machines and no lock can go stale: who finds another rig's record watches it with
its own clock, while the folder answers, and takes the folder when the beat has not moved for :data:`SILENT_S`. Two
processes of one rig are told apart by a lock on the rig's local disk (`seat`), not here.

Standard library only: the helpers load it too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .beneath import READ_FLAGS, WRITE_FLAGS, OpError, open_regular, write_all
from .ops import shown

OWNER = ".rigbus-owner.json"
SCHEMA = "rigbus.owner/1"
MAX_BYTES = 64 << 10  #: the longest path of a state folder, escaped, fits
BEAT_S = 2.0  #: between two beats; they travel with batches, of which an idle bridge has two a second
SILENT_S = 60.0  #: without a beat, while the folder answered, the folder is free
LOOK_AGAIN_S = 5.0  #: between two looks at somebody else's record
LOST_SIGHT_S = 3 * LOOK_AGAIN_S  #: without a look for so long, nobody knows what the other one did meanwhile


class Owned(OpError):
    """The folder is another rig's; ``record`` is what says so."""

    def __init__(self, record: Mapping[str, Any]) -> None:
        super().__init__("EOWNED", f"{OWNER} names the rig {record.get('rig')}")
        self.record = dict(record)


# -- in the helper -------------------------------------------------------------------------------------------


def hold(root: int, claim: Mapping[str, Any]) -> None:
    """Compare the record with a bridge's ``claim`` (:meth:`Claim.header`), and write it where that is due.

    A record that cannot be written (a full or read-only share) stops nobody who would have the right to.

    Raises:
        Owned: another rig's, and this claim does not take it.  OSError: the folder fails.
    """
    found = read_record(root)
    mine = _past(claim["record"], found)
    if found is not None and not _same(found, mine) and not _may_take(found, claim):
        raise Owned(found)
    if found is not None and _same(found, mine) and found == mine:
        return
    taking = found is not None and found.get("rig") != mine["rig"]
    try:
        _write(root, mine, durably=found is None or not _same(found, mine))
    except OSError:
        if taking:
            raise


def read_record(root: int) -> dict[str, Any] | None:
    """The record as it stands; None where there is none, or none that names a rig."""
    try:
        file, _ = open_regular(OWNER, root, READ_FLAGS, OWNER)
    except (FileNotFoundError, OpError):
        return None
    try:
        return record_in(os.read(file, MAX_BYTES))
    finally:
        os.close(file)


def record_in(data: bytes) -> dict[str, Any] | None:
    """The record that a file's bytes are; None where they name no rig."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("rig"), str) else None


def _past(mine: dict[str, Any], found: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is to be written, with the broker's incarnation of before while this claim knows of none: a bridge that has
    not met its broker yet, a person's word. `rebuild` needs it, and nobody else has it any more."""
    known = None if found is None else incarnation_in(found)
    return mine if known is None or "incarnation" in mine else {**mine, "incarnation": known}


def incarnation_in(record: Mapping[str, Any]) -> int | None:
    """The broker's incarnation that a record names; None where it names none that can be."""
    given = record.get("incarnation")
    return given if type(given) is int and 0 <= given < 1 << 31 else None


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Both are of the same process."""
    return one.get("rig") == other.get("rig") and one.get("bridge") == other.get("bridge")


def _may_take(found: Mapping[str, Any], claim: Mapping[str, Any]) -> bool:
    if claim["force"] or found.get("left") is True:
        return True
    if found.get("rig") == claim["record"]["rig"] and (claim["first"] or found.get("any") is True):
        # an earlier process of this rig, whose lock says which is the later one; or a person's word
        return True
    return claim["take"] is not None and claim["take"] == life(found)


def life(record: Mapping[str, Any]) -> list[Any]:
    """What changes while its bridge lives."""
    return [record.get("rig"), record.get("bridge"), record.get("beat")]


def _write(root: int, record: Mapping[str, Any], *, durably: bool) -> None:
    temp = f"{OWNER}.{os.getpid()}.tmp~"
    file = os.open(temp, WRITE_FLAGS | os.O_TRUNC, 0o664, dir_fd=root)
    try:
        write_all(file, json.dumps(record, indent=1).encode() + b"\n")
        if durably:
            os.fsync(file)
        os.rename(temp, OWNER, src_dir_fd=root, dst_dir_fd=root)
    except OSError:
        os.unlink(temp, dir_fd=root)
        raise
    finally:
        os.close(file)


# -- in the bridge -------------------------------------------------------------------------------------------


def whose(record: Mapping[str, Any]) -> str:
    """The rig of a record for people; the record is anybody's who can write the share."""
    where = ", ".join(
        f"{word} {shown(str(record[key])[:200])}"
        for word, key in (("on", "host"), ("state folder", "state"), ("pid", "pid"))
        if record.get(key)
    )
    return f"the rig {shown(str(record.get('rig'))[:8])}{f' ({where})' if where else ''}"


@dataclass
class Claim:
    """What one bridge claims, and what it has seen of another's. Pure; ``now`` is monotonic seconds.

    ``rig`` is the id of the state folder, ``bridge`` of this process; ``said`` is for people (host, state folder, pid) and
    for `rebuild` (the broker's incarnation).
    """

    rig: str
    bridge: str
    said: dict[str, Any] = field(default_factory=dict)
    silent_s: float = SILENT_S
    force: bool = False
    leaving: bool = False
    held: bool = False  #: our last batch was let through
    _ever: bool = False
    _beat: int = 0
    _beat_at: float = float("-inf")
    _other: list[Any] | None = None
    _since: float = 0.0
    _looked_at: float = 0.0

    def header(self, now: float) -> dict[str, Any]:
        """What a batch carries to :func:`hold`."""
        if now - self._beat_at >= BEAT_S:
            self._beat, self._beat_at = self._beat + 1, now
        record = {"schema": SCHEMA, "rig": self.rig, "bridge": self.bridge, "beat": self._beat, **self.said}
        if self.leaving:
            record["left"] = True
        silent = self._other is not None and now - self._since >= self.silent_s and not self._lost_sight(now)
        take = self._other if silent else None
        return {"record": record, "take": take, "first": not self._ever, "force": self.force}

    def passed(self) -> None:
        """A batch was let through: it is ours."""
        self.held, self._ever, self._other = True, True, None

    def refused(self, record: Mapping[str, Any], now: float) -> str:
        """A batch was not: whose it is, since when it is silent, and the way out."""
        self.held = False
        if self._other != life(record) or self._lost_sight(now):
            self._other, self._since = life(record), now
        self._looked_at = now
        silent = now - self._since
        since = f"not heard for {silent:.0f} s" if silent >= LOST_SIGHT_S else "its bridge is being watched"
        return (
            f"this folder belongs to {whose(record)}; {since}: after {self.silent_s:g} s of silence "
            "it is taken over; `rigbus bridge take` gives it to this rig now"
        )

    def _lost_sight(self, now: float) -> bool:
        """The folder did not answer for long: its owner could not beat either, and comes back as we do."""
        return now - self._looked_at > LOST_SIGHT_S
