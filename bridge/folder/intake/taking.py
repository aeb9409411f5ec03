"""One drop's way: copy to the local disk -> parse, check, stage -> journal -> move to ``plans/<name>/`` -> SUBMIT under
the drop's id -> receipt -> out of the journal.

Nothing of the share is opened by this process, and a drop that cannot go on now (share or broker away) goes on later.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from ....bus.errors import Busy, RigbusError
from ....bus.paths import RigPaths
from ....bus.wire import Verb
from ..contract.receipts import (
    Invalid,
    Problem,
    Receipt,
    problem_from,
    receipt_json,
    receipt_md,
    receipt_stem,
)
from ..loop.clock import Clock
from ..loop.flows import Flow, Idle, ask, share
from ..share.ops import Result, rename, shown, stat, unlink, write
from . import core
from .drafts import COPY_S, LOCAL_DISK, PASSING, Draft, copy_op, examine
from .journal import Journal
from .moves import KIND, Drop, Later, Stuck, drop_of, settle_in

log = logging.getLogger(__name__)

T = TypeVar("T")

INBOX: Final = "inbox"
TURN_S: Final = 0.05  #: between two looks whether another flow has done with a plan's folder
MAX_COPY_S: Final = 600.0
MAX_NAMES: Final = 100
_FIXES: Final = {
    "EACCES": "make it readable for the rig's user: chmod -R g+rX",
    "EFBIG": "keep what runs small; move data into input/, which is linked and not copied",
    "EXDEV": "copy the file into the plan, or link relatively inside it",
    "ENOTSUP": "remove it: what runs is files and folders",
    "ELOOP": "replace the link by what it leads to",
}


@dataclass(frozen=True, slots=True)
class Taken:
    """How a drop ended: its batch, and where its plan lies now."""

    batch_id: str
    tasks: int
    plan: str
    note: str


class Declined(Invalid):
    """The broker refuses it. It stays in the journal as ``drop_id`` until that is told; ``lies``: where it has been moved."""

    def __init__(self, drop_id: str, lies: str, problem: Problem) -> None:
        super().__init__(problem)
        self.drop_id, self.lies = drop_id, lies


class Taker:
    """Takes drops in. ``active`` are the ids of the drops that a flow is at; ``homes`` the folders of ``plans/`` that are
    being read or moved, of all takers of a bridge."""

    def __init__(
        self, paths: RigPaths, clock: Clock, journal: Journal | None = None, homes: set[str] | None = None
    ) -> None:
        self.journal = journal or Journal(paths.state / "incoming")
        self.active: set[str] = set()
        self.homes: set[str] = set() if homes is None else homes
        self._paths, self._clock = paths, clock

    def take_in(
        self,
        path: str,
        plan: str,
        is_folder: bool,
        listing: str,
        name: str,
        given: core.Settings | None = None,
        key: str = "",
        tries: int = 0,
        revises: Mapping[str, Any] | None = None,
    ) -> Flow[Taken | None]:
        """Copy, check, journal, move, submit and answer; None when another flow has this very drop already.

        ``name`` is what the receipt is called by; ``key`` (a request's id) comes in the place of the drop id. A slow
        share gets more time with each of ``tries``. ``revises``: `batch` and `reason` of a REVISE in the place of the SUBMIT.

        Raises:
            Invalid, Later, ShareAway.  Declined, Stuck: it is in the journal; a Stuck one goes on from there.
        """
        listing = f"{listing}:{key}" if key else listing  # two requests for one plan are two runs of it
        mark = core.drop_id(path, 0, listing)[:16]
        copied, draft = yield from self.prepare(path, plan, is_folder, mark, given, tries)
        drop_id = core.drop_id(name, copied["inode"], f"{copied['sha256']}:{listing}")
        if drop_id in self.active:
            return None
        drop = Drop(path, plan, copied["inode"], is_folder, drop_id)
        entry = self._entry(drop, draft, name, key) | ({"revises": dict(revises)} if revises else {})
        self.journal.enter(drop_id, entry)
        self.active.add(drop_id)
        try:
            return (yield from self._finish(entry))
        finally:
            self.active.discard(drop_id)

    def prepare(
        self, path: str, plan: str, is_folder: bool, mark: str, given: core.Settings | None, tries: int = 0
    ) -> Flow[tuple[Result, Draft]]:
        """Copy, check and stage the plan at ``path``: (the copy's result, its draft). ``mark`` names the copy; no two
        at once may have the same.

        Raises:
            Invalid, Later, ShareAway, OSError.
        """
        place = self.journal.copy_place(mark, plan)
        try:
            copied = yield from self._alone(path, self._copy(path, place, is_folder, tries))
            called = core.PLAN if is_folder else path.rpartition("/")[2]
            draft = self.check(place, given, called)
        finally:
            self.journal.drop_copy(place)
        return copied, draft

    def _alone(self, path: str, flow: Flow[T]) -> Flow[T]:
        """``flow``, while no other one reads or moves the same folder of ``plans/``."""
        home = "/".join(path.split("/")[:2])
        if not home.startswith("plans/"):
            return (yield from flow)
        while home in self.homes:
            yield Idle(TURN_S)
        self.homes.add(home)
        try:
            return (yield from flow)
        finally:
            self.homes.discard(home)

    def resume(self, entry: Mapping[str, Any]) -> Flow[None]:
        """Go on with a journal's entry.

        Raises:
            Declined.  ShareAway.  KeyError, TypeError, ValueError: the entry is damaged.
        """
        drop_id = str(entry["drop_id"])
        log.info("going on with %s", shown(str(entry["name"])))
        self.active.add(drop_id)
        try:
            yield from self._finish(entry)
        finally:
            self.active.discard(drop_id)

    def _entry(self, drop: Drop, draft: Draft, name: str, key: str) -> dict[str, Any]:
        shared = self._paths.shared
        header = draft.header(key or drop.drop_id, f"{shared}/{drop.home}", f"{shared}/{drop.home}/batches")
        return {
            "drop_id": drop.drop_id,
            "path": drop.path,
            "name": drop.name,
            "inode": drop.inode,
            "is_folder": drop.is_folder,
            "called": name,
            "request": key,
            "tasks": draft.tasks,
            "warnings": draft.warnings,
            "header": header,
        }

    def _copy(self, path: str, place: Path, is_folder: bool, tries: int) -> Flow[Result]:
        """The parts that run, on the local disk."""
        target = place
        if not is_folder:
            place.mkdir(mode=0o700)
            target = place / "plan.md"
        (result,) = yield from share(KIND, [copy_op(path, target)], min(COPY_S * 2**tries, MAX_COPY_S))
        if result["ok"]:
            return result
        code, what = result["errno"], str(result["what"])
        if code in LOCAL_DISK:
            raise Later(
                f"the rig's own disk refuses a copy of it ({what}); it is taken in when there is room"
            )
        if code in PASSING or code == "ENOENT":  # somebody may be about to rename it
            raise Later(f"it could not be copied ({what}); it is tried again")
        raise Invalid(Problem(what, path, _FIXES.get(code, "drop a plan folder of plain files")))

    def check(self, place: Path, given: core.Settings | None, called: str = core.PLAN) -> Draft:
        """Parse, check and stage the copy at ``place``; ``called`` is the plan file's name where it came from.

        Raises:
            Invalid: with every fault.  Later: the rig's own disk refuses.
        """
        try:
            return examine(place, self._paths.staged, given, called)
        except OSError as e:
            raise Later(
                f"the rig's own disk: {e.strerror or e}; it is taken in when that is mended"
            ) from None

    def _finish(self, entry: Mapping[str, Any]) -> Flow[Taken]:
        """From the journal on: each step may be repeated."""
        drop = drop_of(entry)
        home, unmoved = str(entry.get("home", "")), str(entry.get("unmoved", ""))
        if not home:
            home, unmoved = yield from self._alone(drop.home, settle_in(drop))
        if unmoved and "home" not in entry:
            # The run reads its data there: once submitted so, it must not be moved by a later try.
            entry = {**entry, "home": home, "unmoved": unmoved}
            self.journal.enter(drop.drop_id, entry)
        header = {**entry["header"]}
        plan = {**header["batch"]["plan"], "path": f"{self._paths.shared}/{home}"}
        header["batch"] = {**header["batch"], "plan": plan}
        revised, revision = "", 0
        try:
            if "revises" in entry:
                answer = yield from revise(entry["revises"], header["batch"])
                batch, revision = str(answer["batch"]), int(answer["revision"])
                revised = f"It is revision {revision} of that batch: what was done stays done."
            else:
                batch = yield from submit(header)
        except RigbusError as e:
            problem = problem_from(f"the broker refuses it: {e}", drop.path)
            raise Declined(drop.drop_id, "" if home == drop.path else home, problem) from None
        log.info("%s is batch %s, %d tasks in the plan", drop.name, batch, entry["tasks"])
        stays = (
            f"It could not be moved to plans/ as a whole, and runs from {home}: {unmoved}." if unmoved else ""
        )
        note = " ".join(text for text in (revised, stays, str(entry["warnings"])) if text)
        taken = Taken(batch, int(entry["tasks"]), drop.name, note)
        yield from self._accept(entry, drop, taken, revision)
        self.journal.leave(drop.drop_id)
        return taken

    def _accept(self, entry: Mapping[str, Any], drop: Drop, taken: Taken, revision: int = 0) -> Flow[None]:
        yield from share(KIND, [unlink(f"{drop.home}/{core.READY}")])
        receipt = Receipt(
            str(entry["called"]),
            "accepted",
            self._clock.wall(),
            batch_id=taken.batch_id,
            plan=taken.plan,
            drop_id=drop.drop_id,
            tasks=taken.tasks,
            more={"revision": revision} if revision else {},
            next=f"rigbus watch {taken.batch_id}",
            note=taken.note,
        )
        if not (yield from self.answer(receipt, str(entry["request"]))):
            raise Stuck(f"it runs as {taken.batch_id}; its receipt is written when the share can be")

    # -- answering -------------------------------------------------------------------------------------------

    def answer(self, receipt: Receipt, request: str = "") -> Flow[bool]:
        """Write both receipts, or the one of a ``request`` (its id); False where the share refuses them."""
        offset = self._clock.utc_offset_s(receipt.at)
        data = receipt_json(receipt, offset)
        if request:
            ops = [write(f"{INBOX}/{core.REQUESTS}/{request}.receipt.json", data, fsync=True)]
        else:
            stem = f"{INBOX}/{receipt_stem(receipt.name)}.receipt"
            page = receipt_md(receipt, offset)
            # The page first: who waits for the JSON finds both.
            ops = [write(f"{stem}.md", page, fsync=True), write(f"{stem}.json", data, fsync=True)]
        for result in (yield from share(KIND, ops)):
            if not result["ok"]:
                said = f"{receipt.state} {receipt.batch_id}".strip()
                log.warning("no receipt for %s (%s): %s", shown(receipt.name), said, result["what"])
                return False
        return True

    def refuse(
        self, name: str, problems: Sequence[Problem], *, move: bool = True, lies: str = ""
    ) -> Flow[bool]:
        """A refusal, and the drop out of the way; False where the share refuses the receipt. ``lies``: where it has been
        moved before, so that what has its name in the inbox now is another one."""
        log.warning("refused %s: %s", shown(name), "; ".join(p.what for p in problems[:5]))
        receipt = Receipt(name, "refused", self._clock.wall(), problems=tuple(problems))
        if lies:
            note = f"It lies in {lies} now: mend it there and submit that, or drop it again."
            return (yield from self.answer(replace(receipt, note=note)))
        to = (yield from self._free_place(name)) if move else ""
        if not to:
            return (yield from self.answer(receipt))
        note = f"It is kept in {to}: mend it there, and move it back to {INBOX}/."
        # Before the move: what has gone from the inbox without a receipt would never get one.
        stood = yield from self.answer(replace(receipt, note=note))
        (moved,) = yield from share(KIND, [rename(f"{INBOX}/{name}", to)])
        if not moved["ok"]:
            note = f"It stays where it is ({moved['what']}), and is looked at again when it changes."
            stood = yield from self.answer(replace(receipt, note=note))
        return stood

    def _free_place(self, name: str) -> Flow[str]:
        """Where a refused drop can go; "" where there is no room."""
        for n in range(1, MAX_NAMES):
            to = f"{INBOX}/.refused/{name if n == 1 else f'{receipt_stem(name)}.{n}'}"
            (found,) = yield from share(KIND, [stat(to)])
            if not found["ok"]:
                break
            if not found["entry"]:
                return to
        return ""


def submit(header: dict[str, Any]) -> Flow[str]:
    """The batch's id; a broker that is away or busy is waited for.

    Raises:
        RigbusError: it refuses.
    """
    return str((yield from submit_whole(header))["batch"])


def submit_whole(header: dict[str, Any], body: Sequence[bytes] = ()) -> Flow[Mapping[str, Any]]:
    """The header of ACCEPTED. As :func:`submit`."""
    return (yield from _patiently(Verb.SUBMIT, header, body))


def revise(revises: Mapping[str, Any], batch: Mapping[str, Any]) -> Flow[Mapping[str, Any]]:
    """The header of OK: ``batch`` of a SUBMIT as the new plan of the one that ``revises`` names. As :func:`submit`."""
    header = {"key": batch["key"], "plan": batch["plan"], **revises}
    return (yield from _patiently(Verb.REVISE, header))


def _patiently(verb: Verb, header: dict[str, Any], body: Sequence[bytes] = ()) -> Flow[Mapping[str, Any]]:
    while True:
        try:
            return (yield from ask(verb, header, body)).header
        except Busy as e:
            log.info("the broker is full: %s; trying again in %.1f s", e, e.retry_after_s)
            yield Idle(e.retry_after_s)
