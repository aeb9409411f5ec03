"""What of a batch file stands in the inbox beside it: growing ``.part`` files, the receipt, and at the end the whole files.

A file under its final name is whole. The parts are appended in place, so that `tail -f` and `wc -l` work; they may end
in the midst of a line. The spool is what counts: a part that somebody removes or spoils is written again.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from ...batchfile.answers import line_of
from ...batchfile.names import PART, errors_of, results_of
from ..contract.receipts import Receipt, receipt_json, receipt_md, receipt_stem
from ..intake.moves import KIND, Later
from ..intake.taking import INBOX
from ..loop.clock import Clock
from ..loop.flows import Flow, share
from ..share.ops import copy_out, read, rename, stat, write
from .spool import ERRORS, RESULTS, Run, Spool

log = logging.getLogger(__name__)

SHOW_S: Final = 1.0
COPY_S: Final = 60.0
MAX_ASIDE: Final = 99
_WORDS: Final = {"complete": "it has ended", "failed": "it has ended", "cancelled": "it was cancelled"}


class Shown:
    """Of one batch file."""

    def __init__(self, spool: Spool, clock: Clock) -> None:
        self._spool, self._clock = spool, clock
        self._offsets = {RESULTS: 0, ERRORS: 0}
        self._at = float("-inf")
        self._counts: tuple[int, int] | None = None
        self._why = ""

    def progress(self, run: Run, done: int, failed: int) -> Flow[None]:
        """Show how far it is, now and then.

        Raises:
            ShareAway
        """
        now = self._clock.now()
        if now - self._at < SHOW_S or self._counts == (done, failed):
            return
        first, self._at = self._counts is None, now
        for name in (RESULTS, ERRORS):
            yield from self._copy(run, name, whole=False)
        note = f"{_counted(run, done, failed)}; what there is so far: {results_of(run.name)}{PART}"
        if (yield from self._answer(run, "running", done, failed, note, fsync=first)):
            self._counts = (done, failed)

    def publish(self, run: Run) -> Flow[None]:
        """Both files whole, under their names, and the last receipt.

        Raises:
            ShareAway, Later: not now; to be called again.
        """
        for name in (ERRORS, RESULTS):
            # The errors were written anew, and whoever has touched a part changed nothing.
            self._offsets[name] = 0
            yield from self._copy(run, name, whole=True)
        # The errors first: who waits for the results finds both.
        asides = []
        for final in (errors_of(run.name), results_of(run.name)):
            aside = yield from self._make_room(run, f"{INBOX}/{final}")
            asides += [aside] if aside else []
            (moved,) = yield from share(
                KIND, [rename(f"{INBOX}/{final}{PART}", f"{INBOX}/{final}", replace=True)]
            )
            if not moved["ok"]:
                raise Later(str(moved["what"]))
        kept = f"; what stood there before is now {' and '.join(asides)}" if asides else ""
        why = (
            f"; the broker took no more of it: {run.refused}"
            if run.refused and run.state != "cancelled"
            else ""
        )
        note = f"{_WORDS.get(run.state, 'it has ended')}: {_counted(run, run.done, run.failed)}{why}{kept}"
        if not (yield from self._answer(run, run.state, run.done, run.failed, note, fsync=True)):
            raise Later("its receipt cannot be written")

    def waits(self, run: Run, why: str) -> Flow[None]:
        """What holds up the results, for whoever can mend it.

        Raises:
            ShareAway
        """
        if why != self._why:
            note = f"its results wait: {why}; tried again every few seconds"
            if (yield from self._answer(run, "running", run.done, run.failed, note, fsync=False)):
                self._why = why

    def say_again(self, run: Run) -> Flow[None]:
        """The receipt of one that was answered before, for whoever has dropped it again."""
        note = f"it was answered before: {_counted(run, run.done, run.failed)}"
        yield from self._answer(run, run.state, run.done, run.failed, note, fsync=True)

    # -- files -----------------------------------------------------------------------------------------------

    def _copy(self, run: Run, name: str, *, whole: bool) -> Flow[None]:
        """What a part lacks: of a whole one all of it, synced, else a piece.

        Raises:
            Later: the share refuses a whole one. ShareAway
        """
        final = results_of(run.name) if name == RESULTS else errors_of(run.name)
        source = self._spool.file(run, name)
        while True:
            op = copy_out(source, f"{INBOX}/{final}{PART}", self._offsets[name], fsync=whole)
            (result,) = yield from share(KIND, [op], COPY_S)
            if not result["ok"]:
                if whole:
                    raise Later(str(result["what"]))
                log.warning("%s%s cannot be written: %s", final, PART, result["what"])
                return
            self._offsets[name] = int(result["offset"])
            if not whole or not result["more"]:
                return

    def _make_room(self, run: Run, path: str) -> Flow[str]:
        """Put aside the results of another content that stand under this name; what they are called then, or ""."""
        (found,) = yield from share(KIND, [stat(path)])
        if not found["ok"]:
            raise Later(str(found["what"]))
        if found["entry"] is None or (found["entry"][1] == "file" and found["entry"][2] == 0):
            return ""
        (head,) = yield from share(KIND, [read(path, 100)])
        if head["ok"] and line_of(head["data"], run.mark) is not None:
            return ""
        for n in range(1, MAX_ASIDE + 1):
            (moved,) = yield from share(KIND, [rename(path, f"{path}.{n}")])
            if moved["ok"]:
                return f"{path}.{n}".rpartition("/")[2]
            if moved["errno"] != "EEXIST":
                break
        raise Later(f"{path} stands in the way and cannot be put aside: {moved['what']}")

    # -- the receipt -----------------------------------------------------------------------------------------

    def _answer(self, run: Run, status: str, done: int, failed: int, note: str, *, fsync: bool) -> Flow[bool]:
        more: dict[str, Any] = {
            "status": status,
            "request_counts": {"total": run.requests + run.bad, "completed": done, "failed": failed},
            "results": f"{INBOX}/{results_of(run.name)}",
            "errors": f"{INBOX}/{errors_of(run.name)}",
        }
        receipt = Receipt(
            run.name,
            "accepted",
            self._clock.wall(),
            batch_id=run.batch,
            drop_id=run.sha256,
            tasks=run.requests,
            next=f"rigbus watch {run.batch}" if run.batch else "",
            note=note,
            more=more,
        )
        offset = self._clock.utc_offset_s(receipt.at)
        stem = f"{INBOX}/{receipt_stem(run.name)}.receipt"
        ops = [
            write(f"{stem}.md", receipt_md(receipt, offset), fsync=fsync),
            write(f"{stem}.json", receipt_json(receipt, offset), fsync=fsync),
        ]
        for result in (yield from share(KIND, ops)):
            if not result["ok"]:
                log.warning("no receipt for %s: %s", run.name, result["what"])
                return False
        return True


def _counted(run: Run, done: int, failed: int) -> str:
    return f"{done} of {run.requests + run.bad} lines have a result, {failed} an error"
