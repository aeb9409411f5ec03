"""The outward side of escalations: the broker's records as files, with evidence, and pages for people.

A projection like the rest of the mirror: what is deleted is drawn again, what somebody has changed is kept aside. The
schemas of both files stand beside them, in ``schemas/``.
"""

from __future__ import annotations

import logging
import os
import socket
import stat as st
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from ....bus.errors import NotFound, RigbusError
from ....bus.paths import RigPaths, log_path
from ....bus.wire import Verb
from ..contract.layout import File
from ..contract.rows import plan_folder
from ..intake.moves import KIND
from ..loop.clock import Clock
from ..loop.flows import Flow, Idle, ShareAway, ask, share
from ..share.ops import entries, read, rename, scan, shown, unlink, write
from ..share.port import FolderPort
from . import files

log = logging.getLogger(__name__)

NAME: Final = "escalations"
LOOK_S: Final = 10.0  #: events poke it; this is for one that was lost
AGAIN_S: Final = 2.0
ARCHIVE_S: Final = 600.0  #: between two looks whether records have gone
PAGE: Final = 2000
PAGE_BYTES: Final = 64 * 1024
SCHEMAS: Final = Path(__file__).parents[3] / "bus/schemas"
_FLAGS: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Escalations:
    """See the module. ``want`` gives a file to the mirror, which keeps it until ``forget`` is said of its path."""

    def __init__(
        self,
        port: FolderPort,
        paths: RigPaths,
        clock: Clock,
        want: Callable[[File], None],
        forget: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._port, self._paths, self._clock, self._want, self._forget = port, paths, clock, want, forget
        self._since = 0
        self._archive_at = 0.0  #: monotonic
        self._pages: dict[str, dict[str, Any]] = {}  #: records whose page for people is to be looked after
        self._schemas_stand = False
        self._heard = False

    def heard(self) -> None:
        """An event about one of them came; poke the flow then. What comes while it draws is not missed."""
        self._heard = True

    def welcomed(self) -> None:
        """A new session, or the share is back: everything is looked at anew."""
        self._since = 0
        self._schemas_stand = False

    def run(self) -> Flow[None]:
        """Draw what has changed, for ever. Poke it when something has."""
        while True:
            if not self._port.state.available:
                yield Idle()
                continue
            try:
                if not self._schemas_stand:
                    yield from self._put_schemas()
                self._heard = False
                yield from self._draw()
                yield from self._look_after_pages()
                if self._clock.now() >= self._archive_at:
                    yield from self._archive()
                    self._archive_at = self._clock.now() + ARCHIVE_S
                yield Idle(0.0 if self._heard else LOOK_S)
            except (ShareAway, RigbusError, OSError) as e:
                log.warning("escalations are not drawn: %s; again in a while", e)
                yield Idle(AGAIN_S)

    # -- records ---------------------------------------------------------------------------------------------

    def _draw(self) -> Flow[None]:
        since = newest = self._since
        cursor: int | None = None
        while True:
            question = {"what": "escalations", "since": since, "cursor": cursor}
            page = (yield from ask(Verb.QUERY, question)).header
            for record in page["escalations"]:
                seen = yield from self._evidence(record)
                offset = self._clock.utc_offset_s(record["created_at"])
                self._want(files.escalation_file(record, seen, socket.gethostname(), offset))
                self._pages[record["id"]] = {"record": record, "page": files.human_page(record, seen, offset)}
                newest = max(newest, int(record["seq"]))
            cursor = page["cursor"]
            if cursor is None:
                self._since = max(self._since, newest) if since == self._since else self._since
                return

    def _evidence(self, record: dict[str, Any]) -> Flow[list[files.Seen]]:
        """The attempts of its first tasks, up to the one that it was raised for."""
        out: list[files.Seen] = []
        folder = plan_folder((record.get("plan") or {}).get("name"))
        for task in record["tasks"][: files.MAX_TASKS]:
            try:
                header = (yield from ask(Verb.QUERY, {"what": "task", "id": task["id"]})).header
            except NotFound:
                continue  # purged meanwhile
            mine = [a for a in header.get("attempts") or () if a["n"] <= task["attempt"]]
            for attempt in mine[-files.MAX_ATTEMPTS :]:
                path = log_path(self._paths.logs, record["batch"], task["key"], attempt["n"])
                copy = f"plans/{folder}/batches/{record['batch']}/logs/{path.name}" if folder else None
                tail = tail_of(path)
                out.append(files.Seen(task["key"], attempt, tail, copy if tail is not None else None))
        return out

    # -- records that are gone ---------------------------------------------------------------------------------

    def _archive(self) -> Flow[None]:
        """Records leave the broker with their batch. What tells of one leaves the folder then: it is listed all the time,
        and a question that is nobody's any more would be asked, and raised as an alert, for ever."""
        known = yield from self._known()
        there: dict[str, list[str]] = {}
        after = ""
        while True:
            (found,) = yield from share(KIND, [scan(files.FOLDER, budget=PAGE, after=after)])
            if not found["ok"]:
                return
            for entry in entries(found):
                if entry.type == "file" and (id_ := files.id_in(entry.path)) and id_ not in known:
                    there.setdefault(id_, []).append(entry.path)
            if not (after := str(found["next"])):
                break
        for id_, names in there.items():
            # An answer to nothing stays until its door has refused it.
            if any(name.endswith((f"{id_}.json", files.RECEIPT)) for name in names):
                self._forget(f"{files.FOLDER}/{id_}.json")
                self._pages.pop(id_, None)
                yield from self._put_away(names)

    def _known(self) -> Flow[set[str]]:
        known: set[str] = set()
        cursor: int | None = None
        while True:
            page = (yield from ask(Verb.QUERY, {"what": "escalations", "cursor": cursor})).header
            known |= {record["id"] for record in page["escalations"]}
            if (cursor := page["cursor"]) is None:
                return known

    def _put_away(self, names: Sequence[str]) -> Flow[None]:
        ops = [rename(f"{files.FOLDER}/{n}", f"{files.ARCHIVE}/{n}", replace=True) for n in names]
        for result in (yield from share(KIND, ops)):
            if not result["ok"] and result["errno"] != "ENOENT":
                log.warning("an old escalation stays where it is: %s", result["what"])

    # -- what is written without the mirror ------------------------------------------------------------------

    def _look_after_pages(self) -> Flow[None]:
        """A page stands while its record is a person's. One that somebody has written into is left as it is."""
        for id_, kept in list(self._pages.items()):
            record, page = kept["record"], kept["page"]
            path = f"{files.FOLDER}/{files.HUMAN}{id_}.md"
            (found,) = yield from share(KIND, [read(path, PAGE_BYTES)])
            stands = found["ok"] and files.is_ours(bytes(found["data"]))
            if record["status"] == "human":
                missing = not found["ok"] and found["errno"] == "ENOENT"
                if missing or (stands and found["data"] != page):
                    yield from self._write(path, page)
                continue
            if stands:
                was = [found["inode"], found["size"], found["mtime_ns"]]
                yield from share(KIND, [unlink(path, was=was)])
            del self._pages[id_]

    def _put_schemas(self) -> Flow[None]:
        for file in sorted(SCHEMAS.glob("*.json")):
            data = file.read_bytes()
            (found,) = yield from share(KIND, [read(f"schemas/{file.name}", len(data) + 1)])
            if not found["ok"] or found["data"] != data:
                yield from self._write(f"schemas/{file.name}", data)
        self._schemas_stand = True

    def _write(self, path: str, data: bytes) -> Flow[None]:
        (result,) = yield from share(KIND, [write(path, data)])
        if not result["ok"]:
            log.warning("%s cannot be written: %s", shown(path), result["what"])


def tail_of(path: Path) -> list[str] | None:
    """The last lines of an attempt's log on the local disk; None where there is none that can be shown.

    A command may have put anything in its place: what is no plain file is not opened, and nothing is followed.
    """
    try:
        fd = os.open(path, _FLAGS)
    except OSError:
        return None
    try:
        info = os.fstat(fd)
        if not st.S_ISREG(info.st_mode):
            return None
        start = max(0, info.st_size - files.TAIL_BYTES)
        return files.tail_lines(os.pread(fd, files.TAIL_BYTES, start), whole=start == 0)
    except OSError:
        return None
    finally:
        os.close(fd)
