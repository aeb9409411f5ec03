"""The results of a batch file's tasks: from the broker's log, in the order in which they ended, into the spool.

At the start, and where the log was trimmed, all tasks of the batch are looked at once; from then on the log tells which
have ended. A result counts when its line is on the local disk, so whatever is killed, it is read again or was written.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from ....bus.client.follow import event_of
from ....bus.client.work import decode_value
from ....bus.errors import BadFrame
from ....bus.wire import MAX_RESULT_BYTES, Verb
from ...batchfile.answers import Asked, NotAnAnswer, answered, ended_badly, failed, line_of
from ...batchfile.books import Books
from ..loop.flows import Flow, Idle, ask
from .spool import Run, Spool

log = logging.getLogger(__name__)

ROWS: Final = 100  #: results in one question
GROUP_BYTES: Final = 4 << 20  #: of lines, written and synced together
ENDED_BADLY: Final = ("dead", "cancelled", "expired", "skipped")
_NOW: Final = 2**62  #: past every number of the log


class Results:
    """Of one run. ``books`` know which lines are answered; ``row`` is the batch as it was last seen."""

    def __init__(self, run: Run, spool: Spool) -> None:
        self.run, self.books = run, spool.recover(run)
        self.row: Mapping[str, Any] = {}
        self.more = False
        self._spool = spool
        self._since: int | None = None
        self._odd: dict[int, str] = {}  #: done, and yet no answer: line -> why

    def collect(self) -> Flow[None]:
        """Write what has ended since the last call, or a part of it: then there is ``more``.

        Raises:
            NotFound: the broker has forgotten the batch.  OSError: the disk refuses.
        """
        if self._since is None:
            yield from self.look_at_all()
        else:
            yield from self._follow(self._since)
        if not self.more:
            self.row = (yield from ask(Verb.QUERY, {"what": "batch", "id": self.run.batch})).header

    def look_at_all(self) -> Flow[None]:
        """Every task of the batch that is done."""
        log_end = yield from ask(Verb.EVENTS, {"since": _NOW, "channel": "c", "limit": 1})
        cursor: int | None = 0
        while cursor is not None:
            page = {"what": "tasks", "batch": self.run.batch, "states": ["done"], "cursor": cursor}
            header = (yield from ask(Verb.QUERY, page)).header
            yield from self._fetch([row["id"] for row in header["rows"] if self._is_new(row.get("key"))])
            cursor = header["cursor"]
        self._since, self.more = int(log_end.header.get("last") or 0), False

    @property
    def missing(self) -> bool:
        """Whether more tasks are done than were written."""
        done = int((self.row.get("tasks") or {}).get("done") or 0)
        return done > self.books.count + len(self._odd)

    def _follow(self, since: int) -> Flow[None]:
        """The next page of the log."""
        answer = yield from ask(Verb.EVENTS, {"since": since, "channel": "c"})
        if answer.verb is Verb.RESNAPSHOT:
            log.info("%s: the log was trimmed; looking at all of its tasks", self.run.batch)
            yield from self.look_at_all()
            return
        events = [event_of(raw) for raw in answer.header["events"]]
        yield from self._fetch(
            [
                event.id
                for event in events
                if event.batch == self.run.batch
                and event.topic.endswith(".done")
                and event.id is not None
                and self._is_new(event.data.get("key"))
            ]
        )
        self.more = bool(answer.header["more"])
        last = events[-1].seq if events else since
        self._since = max(since, last if self.more else int(answer.header["last"]))

    def _is_new(self, key: object) -> bool:
        line = _number(key)
        return line is not None and line not in self.books and line not in self._odd

    # -- one result ------------------------------------------------------------------------------------------

    def _fetch(self, ids: Sequence[str]) -> Flow[None]:
        left = list(dict.fromkeys(ids))
        while left:
            answer = yield from ask(Verb.QUERY, {"what": "rows", "ids": left[:ROWS]})
            rows = answer.header["rows"]
            if not rows:  # forgotten meanwhile
                left = left[ROWS:]
                continue
            group: list[bytes] = []
            for row, data in zip(rows, answer.body, strict=False):
                value = data
                if row.get("ref"):
                    value = yield from self._referenced(row["id"])
                group += self._line(row, value)
                if sum(map(len, group)) > GROUP_BYTES:
                    self._write(group)
                    group = []
            self._write(group)
            got = {row["id"] for row in rows}
            left = [i for i in left if i not in got]

    def _referenced(self, id_: str) -> Flow[bytes]:
        """A result that is too large for a row, piece by piece."""
        data = b""
        while len(data) < MAX_RESULT_BYTES:
            answer = yield from ask(Verb.QUERY, {"what": "result", "id": id_, "offset": len(data)})
            if not answer.body or not answer.body[0]:
                break
            data += bytes(answer.body[0])
        return data

    def _line(self, row: Mapping[str, Any], data: bytes) -> list[bytes]:
        """The output line of a task that is done; none where it is written, or was no answer."""
        line = _number(row.get("key"))
        if line is None or line in self.books or row.get("state") != "done":
            return []
        try:
            asked = asked_of(self.run, row)
            return [answered(asked, decode_value(data), int(row.get("ended_at") or 0))]
        except (NotAnAnswer, BadFrame) as e:
            self._odd[line] = str(e)
            return []

    def _write(self, group: Sequence[bytes]) -> None:
        self._spool.add_results(self.run, group)
        for data in group:
            self.books.add(line_of(data, self.run.mark) or 0)

    # -- the end ---------------------------------------------------------------------------------------------

    def write_errors(self) -> Flow[None]:
        """A line for each request that has no result: how its task ended, or why there was none.

        Only now: what is dead may be revived as long as its batch lives.
        """
        run = self.run
        self._spool.restart_errors(run)
        told = Books(run.lines)
        cursor: int | None = 0 if run.batch else None
        while cursor is not None:
            page = {"what": "tasks", "batch": run.batch, "states": list(ENDED_BADLY), "cursor": cursor}
            header = (yield from ask(Verb.QUERY, {**page, "full": True})).header
            lines = []
            for row in header["rows"]:
                number = _number(row.get("key"))
                if number is not None and number not in self.books and told.add(number):
                    lines.append(ended_badly(asked_of(run, row), row))
            self._spool.add_errors(run, lines)
            cursor = header["cursor"]
        yield from self._write_others(told)
        run.done, run.failed = self.books.count, run.bad + told.count

    def _write_others(self, told: Books) -> Flow[None]:
        offset, more = 0, True
        while more:
            lines, more = [], False
            for n, (request, behind) in enumerate(self._spool.requests(self.run, offset)):
                offset = behind
                if request.line not in self.books and told.add(request.line):
                    asked = Asked(self.run.mark, request.line, request.custom_id)
                    lines.append(failed(asked, *self._why(request.line)))
                if n >= 500:
                    more = True
                    break
            self._spool.add_errors(self.run, lines)
            yield Idle(0)

    def _why(self, line: int) -> tuple[str, str]:
        if line in self._odd:
            return "not_an_answer", self._odd[line]
        if self.row.get("state") == "cancelled":
            return "batch_cancelled", "it was not begun: its batch was cancelled"
        if self.run.refused:
            return "batch_refused", f"the broker did not take it: {self.run.refused}"
        return "result_forgotten", "the rig has forgotten this task; drop its line again"


def spec_of(line: int, custom_id: str, type_: str, shape: str, model: str | None) -> dict[str, Any]:
    """The spec of a line's task. The same file gives the same specs: a repeated SUBMIT is no other one."""
    spec: dict[str, Any] = {"key": str(line), "type": type_, "class": "llm"}
    if model is not None:
        spec["needs"] = [f"model:{model}"]
    return {**spec, "meta": {"custom_id": custom_id, "shape": shape}}


def asked_of(run: Run, row: Mapping[str, Any]) -> Asked:
    """What the line of a task's row asked for."""
    meta = row.get("meta") or {}
    return Asked(run.mark, int(row["key"]), meta.get("custom_id"), meta.get("shape", "chat"))


def _number(key: object) -> int | None:
    return int(key) if isinstance(key, str) and key.isascii() and key.isdecimal() else None
