"""Reads all of a shared folder that a rebuild needs, through the port: a mount that hangs is an error, no hang."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from ....bus.errors import Refused
from ..contract import layout
from ..contract.rows import plan_folder
from ..intake.core import NEVER_SUFFIXES, REQUESTS
from ..share.ops import Entry, Op, Result, entries, read, scan
from ..share.owner import MAX_BYTES, OWNER, record_in
from ..share.port import FolderPort
from .remains import Remains

CALL_S: Final = 30.0
PAGE: Final = 10_000
AT_ONCE: Final = 32
#: No file of a task that the mirror draws is larger: its output is 64 Ki characters at most.
TASK_BYTES: Final = 1 << 20
PLAN_DEPTH: Final = 4
_AGAIN: Final = 20  #: times that a slow share may answer in part


@dataclass(slots=True)
class Found:
    """What stands in a share, read once."""

    remains: Remains = field(default_factory=Remains)
    plans: list[str] = field(default_factory=list)
    drops: list[str] = field(default_factory=list)
    orders: list[str] = field(default_factory=list)  #: files of ``tasks/queue`` that the mirror has not drawn
    running: list[tuple[str, dict[str, Any], int]] = field(default_factory=list)  #: (path, fields, mtime_ns)
    receipts: dict[str, dict[str, Any]] = field(default_factory=dict)  #: batch id -> an accepting receipt
    owner: dict[str, Any] | None = None


class Gleaner:
    """One reading of one share."""

    def __init__(self, port: FolderPort) -> None:
        self._port = port

    @property
    def root(self) -> str:
        """The share."""
        return self._port.root

    def owner(self) -> dict[str, Any] | None:
        """The record of whose folder it is; None where there is none."""
        (result,) = self._do([read(OWNER, MAX_BYTES)])
        return record_in(result["data"]) if result["ok"] else None

    def all(self) -> Found:
        """Everything.

        Raises:
            Refused: the share does not answer, or fails.
        """
        found = Found(owner=self.owner())
        for plan in sorted(self._plans("plans", 0)):
            found.plans.append(plan)
            ids = [e.path for e in self._list(f"plans/{plan}/batches") if e.type == "dir"]
            for path, result in self._read(f"plans/{plan}/batches/{id_}/batch.json" for id_ in ids):
                found.remains.take_batch(path, result["data"], result["size"])
        for lane in layout.LANES:
            self._lane(lane, found)
        for folder in [e.path for e in self._list(layout.ARCHIVE) if e.type == "dir"]:
            for kind in ("complete", "failed"):
                self._lane(f"{layout.ARCHIVE}/{folder}/{kind}", found)
        self._inbox(found)
        return found

    def _plans(self, folder: str, depth: int) -> Iterator[str]:
        """Folders below ``plans/`` that have batches or a plan, as paths below it."""
        listed = {e.path: e for e in self._list(folder)}
        name = folder.removeprefix("plans").removeprefix("/")
        batches = listed.get("batches")
        if name and ((batches is not None and batches.type == "dir") or "plan.md" in listed):
            if plan_folder(name) is not None:
                yield name
        elif depth < PLAN_DEPTH:
            for entry in listed.values():
                if entry.type == "dir" and not entry.path.startswith("."):
                    yield from self._plans(f"{folder}/{entry.path}", depth + 1)

    def _lane(self, lane: str, found: Found) -> None:
        names = [
            e.path
            for e in self._list(lane)
            if e.type == "file" and e.path.endswith(".json") and not e.path.startswith(".")
        ]
        for path, result in self._read(f"{lane}/{name}" for name in names):
            data = result["data"]
            found.remains.take_task(path, data, result["size"], result["mtime_ns"])
            if lane not in (layout.QUEUE, layout.PROCESSING):
                continue
            fields = _json(result)
            if fields is None or fields.get("mirrored_by") is None:
                if lane == layout.QUEUE:
                    found.orders.append(path)
            elif lane == layout.PROCESSING and fields.get("type") == "execute_plan" and "check" not in fields:
                found.running.append((path, fields, result["mtime_ns"]))

    def _inbox(self, found: Found) -> None:
        receipts = []
        for entry in self._list("inbox"):
            if entry.path.endswith(".receipt.json"):
                receipts.append(f"inbox/{entry.path}")
            elif not entry.path.startswith(".") and not entry.path.endswith(NEVER_SUFFIXES):
                found.drops.append(entry.path)
        receipts += [
            f"inbox/{REQUESTS}/{e.path}"
            for e in self._list(f"inbox/{REQUESTS}")
            if e.path.endswith(".receipt.json")
        ]
        for _, result in self._read(receipts):
            said = _json(result)
            if said is not None and said.get("state") == "accepted" and isinstance(said.get("batch_id"), str):
                found.receipts[said["batch_id"]] = said

    # -- one call --------------------------------------------------------------------------------------------

    def _list(self, folder: str) -> list[Entry]:
        """All entries; empty where there is no such folder."""
        found: list[Entry] = []
        after = ""
        while True:
            (result,) = self._do([scan(folder, budget=PAGE, after=after)])
            if not result["ok"]:
                if result["errno"] in ("ENOENT", "ENOTDIR", "ELOOP"):
                    return found
                raise Refused(f"{self._port.root}/{folder}: {result['what']}; mend the share and try again")
            found += entries(result)
            after = result["next"]
            if not after:
                return found

    def _read(self, paths: Iterable[str]) -> Iterator[tuple[str, Result]]:
        """Path and result of each that can be read; what has gone meanwhile, or is no file, is passed over."""
        todo = list(paths)
        for i in range(0, len(todo), AT_ONCE):
            part = todo[i : i + AT_ONCE]
            results = self._do([read(path, TASK_BYTES) for path in part])
            for path, result in zip(part, results, strict=True):
                if result["ok"]:
                    yield path, result
                elif result["errno"] not in ("ENOENT", "ENOTDIR", "ELOOP", "ENOTSUP", "EINVAL"):
                    raise Refused(f"{self._port.root}/{path}: {result['what']}; mend the share and try again")

    def _do(self, ops: list[Op]) -> list[Result]:
        """Results in order; what a slow share did not get to is asked again."""
        results: list[Result | None] = [None] * len(ops)
        for _ in range(_AGAIN):
            left = [i for i, result in enumerate(results) if result is None]
            if not left:
                break
            reply = self._port.call("mirror", [ops[i] for i in left], CALL_S)
            if reply.fault is not None:
                raise Refused(f"{reply.fault.what}; mount the shared folder, then try again")
            for i, result in zip(left, reply.results, strict=True):
                if result["ok"] or result["errno"] != "EAGAIN":
                    results[i] = result
        if any(result is None for result in results):
            raise Refused(f"{self._port.root} is too slow to be read; try again when it is not")
        return [result for result in results if result is not None]


def _json(result: Result) -> dict[str, Any] | None:
    """The JSON object of a file that was read; None for anything else."""
    if not result["ok"]:
        return None
    try:
        found = json.loads(result["data"])
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
