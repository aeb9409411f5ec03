"""``rigbus bridge rebuild --from-files``: a new state folder from what a shared folder still says (ADR 0026).

A batch that had ended is ended again, with its tasks and what their files have of their results. A batch that had not
goes on: its tasks that are known to be done are done, the brain declares the others anew, and they run. Whatever cannot
be known runs again or is said. Nothing in the share is changed but the record of whose it is; the state folder is made
beside its place and renamed into it, whole.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ....bus.errors import NotFound, Refused
from ....bus.paths import RigPaths
from ....bus.store.repairing import LEAP
from ....bus.store.store import state_id
from ....bus.store.tail import sync_folder, write_durably
from ..contract.layout import priority_word
from ..contract.receipts import Invalid, Problem
from ..intake import drafts
from ..intake.core import Settings
from ..intake.drafts import Draft
from ..queue.books import Books, batch_key
from ..share.beneath import OpError
from ..share.copies import copy_in
from ..share.owner import BEAT_S, Claim, incarnation_in, life, whose
from ..share.port import FolderPort
from .gleaning import Found, Gleaner
from .rebuilt import Plan, Rebuilt, fill
from .remains import Ran

SCHEMA: Final = "rigbus.rebuild/1"
REPORT: Final = "rebuild.json"
#: An owner that lives has counted by then, also on a busy machine.
WATCH_S: Final = 4 * BEAT_S
SHOWN: Final = 200  #: files that are named in the report
COPIES: Final = 3  #: tries at one plan

#: Told with each report: these were on the lost disk only.
NEVER: Final = (
    "logs that were not copied into the batch folders, and the attempts before a task's last one",
    "results over 64 Ki characters, or in files of the lost disk: their beginning or end is what the share has",
    "calls between agents and batches of clients, models that were loaded, pauses and quarantines",
    "escalations that were open: what fails again is raised again; of a batch that had ended, submit the plan again",
    "what the mirror had not drawn yet, a second or so before the end: it runs again, also a cancel is to be said again",
)


def rebuild(paths: RigPaths, *, dry_run: bool = False, watch_s: float = WATCH_S) -> dict[str, Any]:
    """Make the state folder of ``paths``, which is new or empty, from its shared folder; the report.

    A second call after a success changes nothing and gives its report again.

    Raises:
        NotFound: there is no shared folder of a rig.  Refused: the state folder is not empty or cannot be replaced by
            another one, the share fails or belongs to a rig that lives.
    """
    if (done := _done_before(paths)) is not None:
        return done
    _require_empty(paths.state)
    if paths.shared.is_relative_to(paths.state):
        raise NotFound(
            f"{paths.shared} lies in the state folder itself; name the shared folder that has survived: --shared DIR"
        )
    with FolderPort(paths.shared, make_id=False) as port:
        gleaner = Gleaner(port)
        found = gleaner.all()
        if not found.plans and not found.remains.tasks and found.owner is None:
            raise NotFound(
                f"{paths.shared}: nothing of a rig is there; name its shared folder with --shared DIR"
            )
        if not dry_run:
            _require_unowned(gleaner, found, watch_s)
        with _work_folder(paths.state) as work:
            rebuilt = _prepare(found, port, paths, work)
            report = _report(found, rebuilt, paths, dry_run=dry_run)
            if dry_run:
                return report
            _fill(found, rebuilt, paths, work, report)
            _own(port, work, paths)
            work.rename(paths.state)  # over an empty folder, or to a new name: whole, or not there
            sync_folder(paths.state.parent)
    return report


# -- before ----------------------------------------------------------------------------------------------------


def _done_before(paths: RigPaths) -> dict[str, Any] | None:
    """The report of a rebuild from this share that has succeeded."""
    try:
        report = json.loads((paths.state / REPORT).read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(report, dict) or report.get("shared") != str(paths.shared) or not paths.db.exists():
        return None
    return report | {"rebuilt": False, "before": True}


def _require_empty(state: Path) -> None:
    if state.is_symlink() or os.path.ismount(state):
        raise Refused(
            f"{state} is a link or a file system of its own, and the new folder is renamed into its place; name a folder "
            f"in it: --state {state}/state"
        )
    try:
        names = sorted(p.name for p in state.iterdir())
    except FileNotFoundError:
        return
    except OSError as e:
        raise Refused(f"{state}: {e.strerror}; choose another --state") from None
    if names:
        what = "has a database" if "rigbus.db" in names else f"is not empty ({names[0]}, …)"
        raise Refused(
            f"{state} {what}; a rebuild makes a new rig: choose another --state, or move that folder aside "
            "(`rigbus repair` mends a damaged database)"
        )


def _require_unowned(gleaner: Gleaner, found: Found, watch_s: float) -> None:
    """The rig that had this folder must be gone: its record does not move any more."""
    if found.owner is None or found.owner.get("left") is True:
        return
    end = time.monotonic() + watch_s
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, BEAT_S / 2))  # somebody else's file: there is nothing to wait for but its change
        now = gleaner.owner()
        if now is not None and life(now) != life(found.owner):
            raise Refused(
                f"{gleaner.root}: {whose(now)} still serves this folder; end it first: two rigs on one folder would run what "
                "lies there twice"
            )


@contextmanager
def _work_folder(state: Path) -> Iterator[Path]:
    """An empty folder beside the state folder, for one rebuild at a time; what an interrupted one left is removed."""
    parent = state.parent
    parent.mkdir(parents=True, exist_ok=True)
    lock = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    work = state.with_name(f"{state.name}.rebuilding")
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"{work}: another rebuild runs; wait for it") from None
        _remove(work)
        work.mkdir(mode=0o700)
        try:
            yield work
        finally:
            _remove(work)
    finally:
        os.close(lock)


def _remove(folder: Path) -> None:
    """A tree with staged, read-only folders in it. The module is loaded when it is wanted: it is not small."""
    from ....plans.stage import remove_tree

    remove_tree(folder)


# -- what can go on --------------------------------------------------------------------------------------------


def _prepare(found: Found, port: FolderPort, paths: RigPaths, work: Path) -> list[Rebuilt]:
    """Each batch with its tasks; of those that go on, the plan is staged again."""
    out = []
    for n, ran in enumerate(sorted(found.remains.batches.values(), key=lambda r: (r.created_at, r.id)), 1):
        tasks = found.remains.tasks.get(ran.id, {})
        one = Rebuilt(n, ran, tasks)
        out.append(one)
        if ran.ended:
            continue
        try:
            draft = _stage(ran, port, paths, work)
        except Invalid as e:
            one.stopped = f"its plan cannot run as it lies there now: {e}; mend it and submit it again"
            continue
        sha = ran.fields.get("plan_sha256")
        if isinstance(sha, str) and sha != draft.sha256:
            one.stopped = (
                "its plan was changed after it had begun, and what ran then was on the lost disk; "
                f"`rigbus submit plans/{ran.plan}` runs it as it is now"
            )
            continue
        one.plan = _plan_of(ran, draft, paths)
    return out


def _stage(ran: Ran, port: FolderPort, paths: RigPaths, work: Path) -> Draft:
    """Copy, check and stage the plan of a batch, as a drop is.

    Raises:
        Invalid: it is not there or cannot run.  Refused: the share or our disk fails, which is no fault of the plan.
    """
    place = work / "copy" / ran.plan.rpartition("/")[2]
    try:
        _copy(port, ran.plan_path, place)
        config, level = ran.fields.get("config"), ran.fields.get("plan_priority")
        word = priority_word(level) if type(level) is int else None
        given = Settings(config if isinstance(config, Mapping) else {}, word)
        return drafts.examine(place, work / "staged", given)
    finally:
        _remove(place.parent)


def _copy(port: FolderPort, path: str, place: Path) -> None:
    """Copy the parts of a plan that run; a slow share gets more time, a file that changes another try.

    Raises:
        Invalid, Refused: as :func:`_stage`.
    """
    code = what = ""
    for tries in range(COPIES):
        _remove(place.parent)
        place.parent.mkdir(mode=0o700)
        if path.startswith("/"):
            code, what = _copy_local(path, place)
        else:
            reply = port.call("mirror", [drafts.copy_op(path, place)], drafts.COPY_S * 2**tries)
            if reply.fault is not None:
                raise Refused(
                    f"{reply.fault.what}; nothing was rebuilt: mount the shared folder, then try again"
                )
            (result,) = reply.results
            code, what = ("", "") if result["ok"] else (str(result["errno"]), str(result["what"]))
        if code not in drafts.PASSING:
            break
    if code in drafts.PASSING | drafts.LOCAL_DISK:
        raise Refused(f"{what}; nothing was rebuilt: try again when that is mended")
    if code:
        raise Invalid(Problem(what, path))


def _copy_local(path: str, place: Path) -> tuple[str, str]:
    """A plan that was submitted from a folder outside of the share: how that failed, as an errno's name and words."""
    folder, _, name = path.rpartition("/")
    limits = {k: v for k, v in drafts.copy_op(name, place).items() if k not in ("op", "path", "to")}
    try:
        fd = os.open(folder or "/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            copy_in(fd, name, str(place), late=lambda: False, **limits)
        finally:
            os.close(fd)
    except OSError as e:
        return errno.errorcode.get(e.errno or 0, "EIO"), f"{path}: {e.strerror}"
    except OpError as e:
        return e.code, str(e)
    except ValueError as e:  # no path of any file
        return "EINVAL", str(e)
    return "", ""


def _plan_of(ran: Ran, draft: Draft, paths: RigPaths) -> Plan:
    path = ran.plan_path
    home = path if path.startswith("/") else f"{paths.shared}/{path}"
    spec: dict[str, Any] = {
        "name": ran.plan.rpartition("/")[2],
        "sha256": draft.sha256,
        "path": home,
        "batch_root": f"{paths.shared}/plans/{ran.plan}/batches",
        "config": draft.config,
        "priority": draft.priority,
        "source": "rebuild",
    }
    if "/" in ran.plan:
        spec["folder"] = ran.plan
    return Plan(spec, draft.batch_priority)


# -- making it -------------------------------------------------------------------------------------------------


def _fill(found: Found, rebuilt: list[Rebuilt], paths: RigPaths, work: Path, report: dict[str, Any]) -> None:
    """The database, the door's books and the report, in the work folder; durable."""
    state_id(work)
    fill(work / paths.db.name, rebuilt, seq=report["seq"], incarnation=report["incarnation"] - 1, said=report)
    books = Books(work / "doors/queue")
    books.journal.open()
    for entry in _open_orders(found, rebuilt):
        books.enter(entry)
    write_durably(work / REPORT, json.dumps(report | {"rebuilt": True}, indent=1).encode())
    for folder, _, files in os.walk(work):
        for name in files:
            fd = os.open(os.path.join(folder, name), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_folder(Path(folder))


def _open_orders(found: Found, rebuilt: list[Rebuilt]) -> Iterator[dict[str, Any]]:
    """The ``execute_plan`` files that wait for the end of a batch that is known again."""
    by_key = {one.ran.key: one.ran for one in rebuilt}
    ours = ("status", "assigned_to", "started_at", "mirrored_by", "seq", "as_of")
    for path, fields, mtime_ns in found.running:
        task = fields.get("task_id")
        ran = by_key.get(batch_key(task)) if isinstance(task, str) else None
        if ran is None:
            continue
        name = path.rpartition("/")[2]
        yield {
            "kind": "plan",
            "task_id": task,
            "source": name,
            "stem": name.removesuffix(".json"),
            "was": [0, 0, 0],
            "at": mtime_ns / 1e9,
            "fields": {k: v for k, v in fields.items() if k not in ours},
            "header": {},
            "batch": ran.id,
            "id": "",
            "note": "",
        }


def _own(port: FolderPort, work: Path, paths: RigPaths) -> None:
    """The folder is this rig's; its bridge takes it as soon as it comes."""
    port.claim = Claim(state_id(work), "rebuild", {"state": str(paths.state), "any": True}, force=True)
    reply = port.call("mirror", [])
    if reply.fault is not None:
        raise Refused(
            f"{reply.fault.what}; nothing was rebuilt: mount the shared folder writable, then try again"
        )


# -- saying it -------------------------------------------------------------------------------------------------


def _report(found: Found, rebuilt: list[Rebuilt], paths: RigPaths, *, dry_run: bool) -> dict[str, Any]:
    known = {one.ran.id for one in rebuilt}
    owner = found.owner or {}
    beyond = incarnation_in(owner) or 0
    clients = {}
    for batch, tasks in found.remains.tasks.items():
        if batch not in known:
            ended = sum(one.state is not None for one in tasks.values())
            clients[batch] = {"ended": ended, "lost": len(tasks) - ended}
    receipts = {
        id_: str(said.get("plan") or said.get("name") or "")
        for id_, said in found.receipts.items()
        if id_ not in known
    }
    return {
        "schema": SCHEMA,
        "shared": str(paths.shared),
        "state": str(paths.state),
        "at": time.time(),
        "rebuilt": not dry_run,
        "before": False,
        "owner": {k: owner.get(k) for k in ("rig", "host", "state", "incarnation")} if owner else None,
        "incarnation": beyond + LEAP + 1,
        "seq": found.remains.highest + LEAP,
        "batches": [one.row() for one in rebuilt],
        "plans": found.plans,
        "drops": found.drops,
        "orders": found.orders[:SHOWN],
        "without_a_batch": [{"batch": b, **counts} for b, counts in sorted(clients.items())],
        "accepted_only": [{"batch": b, "plan": plan} for b, plan in sorted(receipts.items())],
        "not_believed": [{"path": path, "why": why} for path, why in found.remains.doubted[:SHOWN]],
        "not_believed_count": len(found.remains.doubted),
        "never": list(NEVER),
    }
