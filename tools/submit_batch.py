"""``rigbus submit NAME.jsonl``: check an OpenAI Batch file, drop it into the inbox, and wait for its end where that is wished.

Over the bus and with nothing but the folder it goes the same way: the results come to stand beside the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import click

from ..bridge.batchfile import names
from ..bridge.folder.contract.receipts import receipt_stem
from ..bus.errors import NotFound, PlanError, Refused, TaskFailed, WaitTimeout
from ..bus.paths import write_atomic
from . import render
from .common import print_json, say, talk
from .file_rows import json_object, whole
from .files import is_silent
from .plan_source import require_share
from .reach import Reach
from .requests import LOOK_S, pause, problem_line
from .rows import ENDED

ANSWER_S: Final = 30.0  #: for the receipt of a rig that is there, without --wait
_PIECE: Final = 1 << 20
_SHOWN: Final = 5


def is_batch_file(given: str) -> bool:
    """Whether what is to be submitted is meant as one."""
    return given.endswith(names.SUFFIX)


@dataclass(frozen=True, slots=True)
class Checked:
    """A file that has something to run. ``bad`` lines will be in its errors file; ``problems`` are the first of them."""

    source: Path
    sha256: str
    requests: int
    bad: int
    problems: list[str] = field(default_factory=list)


def check(given: str) -> Checked:
    """Read all of it, as the rig will, but for the names of models.

    Raises:
        NotFound: no such file.  PlanError: nothing of it can run.  click.UsageError: its name is taken for results.
    """
    from ..bridge.batchfile.lines import Splitter
    from ..bridge.batchfile.requests import BadLine, Reader

    source = Path(given).expanduser()
    if not source.is_file():
        raise NotFound(f"no file {given!r}; give the path of a NAME.jsonl")
    if not names.is_input(source.name):
        raise click.UsageError(
            f"{source.name} is a name of results, or hidden; rename it: NAME.jsonl without .results or .errors"
        )
    reader, splitter, digest, problems = Reader(), Splitter(), hashlib.sha256(), list[str]()
    with source.open("rb") as file:
        while True:
            data = file.read(_PIECE)
            digest.update(data)
            for line in splitter.feed(data) if data else splitter.end():
                found = reader.read(line)
                if isinstance(found, BadLine) and len(problems) < _SHOWN:
                    problems.append(f"{source.name}:{found.line}: {found.message}")
            if not data:
                break
    if reader.requests == 0:
        raise PlanError(
            "nothing of it can run", problems or [f"{source.name}: it has no line; write one request a line"]
        )
    return Checked(source, digest.hexdigest(), reader.requests, reader.bad, problems)


class BatchSubmit:
    """One file on its way. ``receipt`` is the rig's last word about it."""

    def __init__(self, rig: Reach, checked: Checked, priority: str | None, until: float | None) -> None:
        self.checked, self._priority, self._until = checked, priority, until
        self._rig = rig
        self.inbox = rig.paths.shared / "inbox"
        name = checked.source.name
        self.target = self.inbox / name
        self.results = self.inbox / names.results_of(name)
        self.errors = self.inbox / names.errors_of(name)
        self.receipt_file = self.inbox / f"{receipt_stem(name)}.receipt.json"
        self._before = _signature(self.receipt_file)
        self.receipt: dict[str, Any] = {}

    @property
    def batch_id(self) -> str:
        return str(self.receipt.get("batch_id") or "")

    def hand_over(self, wait: bool) -> None:
        """Put it into the inbox; of a rig that is there its batch is waited for.

        Raises:
            Refused: another file of this name runs; or the rig refuses this one.
        """
        require_share(self._rig.paths.shared)
        self.inbox.mkdir(exist_ok=True)
        self._place()
        ready = {} if self._priority is None else {"priority": self._priority}
        mark = self.target.with_name(self.target.name + names.READY)
        write_atomic(mark, json.dumps(ready).encode() + b"\n", mode=0o664)
        there = self._rig.client is not None or not is_silent(self._rig.paths.shared)
        if wait or there:
            limit = None if wait else time.monotonic() + ANSWER_S
            self._await(lambda said: bool(said.get("batch_id") or said.get("status") in ENDED), limit)
        number = render.counted(self.checked.requests, "request")
        if self.batch_id:
            talk(f"submitted {self.batch_id}: {self.checked.source.name}, {number}")
        else:
            talk(f"written: {self.target}; the rig's answer will be {self.receipt_file}")
        if not wait:
            talk(f"its results will be {self.results}, errors {self.errors.name}")

    def wait(self) -> int:
        """Until all of it is answered.

        Raises:
            TaskFailed: some lines have errors.  WaitTimeout: not in time.
        """
        if not self._await(lambda said: said.get("status") in ENDED, None):
            word = f"batch {self.batch_id} still runs" if self.batch_id else "the rig has not answered"
            raise WaitTimeout(f"{word}; it goes on. {self.receipt_file} says how far it is")
        given = self.receipt.get("request_counts")
        counts = given if isinstance(given, dict) else {}
        status = str(self.receipt.get("status"))
        if status == "complete" and not counts.get("failed"):
            return 0
        failed = render.counted(whole(counts.get("failed")), "line")
        raise TaskFailed(
            f"batch {self.batch_id} ended {status}, {failed} with an error: see {self.errors}", state=status
        )

    def tell(self, as_json: bool) -> None:
        """The answer on stdout."""
        status = str(self.receipt.get("status") or "")
        if not as_json:
            if status in ENDED:
                say(f"{self.batch_id}  {status}\n{self.results}")
            elif self.batch_id:
                say(self.batch_id)
            return
        out: dict[str, Any] = {
            "schema": "rigbus.submit/1",
            "batch_id": self.batch_id or None,
            "plan": self.checked.source.name,
            "tasks": self.checked.requests,
            "bad_lines": self.checked.bad,
            "receipt": str(self.receipt_file),
            "results": str(self.results),
            "errors": str(self.errors),
        }
        if status:
            out |= {"state": status, "request_counts": self.receipt.get("request_counts")}
        print_json(out)

    # -- the folder ------------------------------------------------------------------------------------------

    def _place(self) -> None:
        source, target = self.checked.source, self.target
        if target.exists():
            if not target.is_file():
                raise Refused(f"{target} is there and is no file; rename yours, or remove that one")
            if os.path.realpath(source) == os.path.realpath(target) or _sha256(target) == self.checked.sha256:
                return
            said = _read(self.receipt_file)
            if said.get("status") not in ENDED and said.get("state") != "refused":
                raise Refused(
                    f"{target} is there with another content, and has not ended; rename yours, or wait for that one"
                )
        part = self.inbox / f".{target.name}.{uuid4().hex}.part"
        try:
            with source.open("rb") as data, part.open("xb") as out:
                shutil.copyfileobj(data, out, _PIECE)
                out.flush()
                os.fsync(out.fileno())
            part.chmod(0o664)
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise

    def _await(self, enough: Any, limit: float | None) -> bool:
        """Look at the receipt until it says enough, or it is time."""
        until = min((t for t in (limit, self._until) if t is not None), default=None)
        while True:
            self._look()
            if self.receipt and enough(self.receipt):
                return True
            left = LOOK_S if until is None else until - time.monotonic()
            if left <= 0:
                return False
            pause(min(LOOK_S, left))

    def _look(self) -> None:
        """The receipt, if it is about this content, and not of an earlier time.

        Raises:
            Refused: the rig refuses the file.
        """
        said = _read(self.receipt_file)
        changed = _signature(self.receipt_file) != self._before
        if said.get("state") == "refused" and changed:
            problems = [p for p in said.get("problems") or () if isinstance(p, dict)]
            raise Refused("; ".join(problem_line(p) for p in problems[:_SHOWN]) or "the rig refused it")
        if said.get("drop_id") == self.checked.sha256 and (changed or said.get("status") == "running"):
            self.receipt = said


def dry_run(checked: Checked, as_json: bool) -> int:
    """What would run."""
    if as_json:
        head = {"schema": "rigbus.submit/1", "batch_id": None, "plan": checked.source.name}
        print_json({**head, "tasks": checked.requests, "bad_lines": checked.bad, "dry_run": True})
        return 0
    number = render.counted(checked.requests, "request")
    bad = f", {render.counted(checked.bad, 'line')} cannot be used" if checked.bad else ""
    click.echo(f"{checked.source.name}: {number} would run{bad}; nothing was written")
    return 0


def warn(checked: Checked) -> None:
    """Say which lines will be in the errors file."""
    for problem in checked.problems:
        talk(f"warning: {render.clean(problem)}")
    if checked.bad > len(checked.problems):
        talk(f"warning: and {checked.bad - len(checked.problems)} more lines that cannot be used")


def _sha256(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


def _read(file: Path) -> dict[str, Any]:
    with suppress(OSError):
        os.listdir(file.parent)  # an NFS client shows a new file only after it has read the folder again
    return json_object(file) or {}


def _signature(file: Path) -> tuple[int, int, int] | None:
    try:
        info = file.stat()
    except OSError:
        return None
    return info.st_ino, info.st_size, info.st_mtime_ns
