"""How a drop becomes ``plans/<name>/``: renames only, so nothing is ever half there and nothing is deleted.

A first drop is one rename. A second one is a new revision: what the old one ran from goes to
``plans/<name>/.rigbus-revisions/<drop>/``, the new entries take its place, and the folders that hold results stay.
Every step may be repeated after a crash: what is done shows in the share itself.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ..loop.flows import Flow, share
from ..share.ops import Entry, Op, Result, entries, mkdirs, rename, rmdir, scan, stat

log = logging.getLogger(__name__)

#: They belong to the plan's runs, not to a revision.
KEPT: Final = frozenset({"batches", "history", "output", "results"})
#: Of an old revision, these must not reach a run of the new one, also where it does not bring its own.
REPLACED: Final = frozenset({"plan.md", "scripts", "lib"})
KIND: Final = "intake"


#: The share refuses everything for now: what cannot be moved waits, and its run with it.
_PASSING: Final = frozenset({"EROFS", "ENOSPC", "EDQUOT", "EIO", "ESTALE", "EAGAIN", "EINTR"})


class Later(Exception):
    """This cannot be done now; it is decided anew in a while. ``note`` is for the receipt."""

    def __init__(self, note: str) -> None:
        super().__init__(note)
        self.note = note


class Stuck(Later):
    """As Later, of a drop that is in the journal: from there it goes on."""


@dataclass(frozen=True, slots=True)
class Drop:
    """What lies at ``path`` in the share: a folder, or one file, that is to be the plan ``name``."""

    path: str
    name: str
    inode: int
    is_folder: bool
    drop_id: str

    @property
    def home(self) -> str:
        """Where the plan is to lie."""
        return f"plans/{self.name}"

    @property
    def parked(self) -> str:
        """Where a new revision waits while its entries are moved; the name is hidden from views and readers."""
        return f"plans/.rigbus-{self.drop_id[:16]}"

    @property
    def entering(self) -> str:
        """Its name once the old revision is aside: from then on its entries move in, and nothing goes aside."""
        return f"{self.parked}.in"

    @property
    def old(self) -> str:
        """Where what it replaces goes."""
        return f"{self.home}/.rigbus-revisions/{self.drop_id[:16]}"


def settle_in(drop: Drop) -> Flow[tuple[str, str]]:
    """Bring the drop home: (the folder that is the plan now, why it could not be moved or "").

    Raises:
        ShareAway, Stuck: the share went away, or refuses all writes; to be called again.
    """
    if drop.path == drop.home:
        return drop.home, ""  # submitted from where it lies
    places = (drop.path, drop.home, drop.parked, drop.entering)
    found = yield from share(KIND, [stat(place) for place in places])
    here, home, parked, entering = (_entry(result) for result in found)
    here = here if here is not None and here.inode == drop.inode else None
    if not drop.is_folder:
        return (yield from _file_in(drop, here is not None))
    if here is not None:
        target = drop.home if home is None else drop.parked
        problem = yield from _first_problem([rename(drop.path, target)])
        if problem:
            return drop.path, problem
        if home is None:
            return drop.home, ""
        parked = here
    if parked is not None and entering is None:
        coming = yield from _names(drop.parked)
        moves = yield from _aside(drop, {name for name in coming if name not in KEPT})
        problem = yield from _first_problem([*moves, rename(drop.parked, drop.entering)])
        if problem:
            return drop.home, problem
        entering = parked
    if entering is not None:
        return drop.home, (yield from _move_in(drop))
    # Moved before (a crash after the rename), or taken away by somebody: the run needs its folder either way.
    return drop.home, (yield from _first_problem([mkdirs(drop.home)]))


def _file_in(drop: Drop, is_here: bool) -> Flow[tuple[str, str]]:
    """One ``name.md`` becomes ``plans/<name>/plan.md``."""
    problem = yield from _first_problem([mkdirs(drop.home)])
    if problem or not is_here:
        return drop.home, problem
    moves = yield from _aside(drop, {"plan.md"})
    problem = yield from _first_problem([*moves, rename(drop.path, f"{drop.home}/plan.md")])
    return drop.home, problem


def _move_in(drop: Drop) -> Flow[str]:
    """The entries of the new revision, one by one; what finds its place taken stays beside the old revision."""
    coming = yield from _names(drop.entering)
    taken = set((yield from _names(drop.home)))
    ops = [
        rename(f"{drop.entering}/{n}", f"{drop.old}/dropped-{n}" if n in taken else f"{drop.home}/{n}")
        for n in coming
    ]
    return (yield from _first_problem([*ops, rmdir(drop.entering)]))


def _names(folder: str) -> Flow[list[str]]:
    (result,) = yield from share(KIND, [scan(folder)])
    return [entry.path for entry in entries(result)] if result["ok"] else []


def _aside(drop: Drop, coming: set[str]) -> Flow[list[Op]]:
    """The moves of what the old revision ran from, and of what has the name of something that comes."""
    (result,) = yield from share(KIND, [scan(drop.home)])
    if not result["ok"]:
        return []
    leaving = [
        entry.path
        for entry in entries(result)
        if entry.path in coming
        or entry.path in REPLACED
        or (entry.type == "file" and not entry.path.startswith("."))
    ]
    old = yield from share(KIND, [stat(f"{drop.old}/{name}") for name in leaving])
    out: list[Op] = []
    for name, before in zip(leaving, old, strict=True):
        # After a crash the first half may be there: then what stands in the way now is the newer one.
        suffix = "" if _entry(before) is None else ".again"
        out.append(rename(f"{drop.home}/{name}", f"{drop.old}/{name}{suffix}"))
    return out


def _first_problem(ops: list[Op]) -> Flow[str]:
    """Run them in order; what went wrong first, or "".

    Raises:
        Stuck: for a reason that passes.
    """
    results = yield from share(KIND, ops, 30.0)
    bad = [result for result in results if not result["ok"]]
    for result in bad:
        if result["errno"] in _PASSING:
            raise Stuck(f"the share cannot be written ({result['what']}); it starts when it can")
        log.warning("moving a plan: %s", result["what"])
    return str(bad[0]["what"]) if bad else ""


def _entry(result: Result) -> Entry | None:
    found: Any = result.get("entry") if result["ok"] else None
    return Entry(*found) if found else None


def drop_of(entry: Mapping[str, Any]) -> Drop:
    """A drop as the journal keeps it.

    Raises:
        KeyError, TypeError: it is not what was written.
    """
    return Drop(
        str(entry["path"]),
        str(entry["name"]),
        int(entry["inode"]),
        bool(entry["is_folder"]),
        str(entry["drop_id"]),
    )
