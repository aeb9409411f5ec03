"""What a planner remembers: how often it asked today, how it fared, and which answers were not taken.

It lies on the planner's own disk and is written before each question, so that a planner that is killed and started again
keeps its budget. `planner run` and `planner new` have one book: each change is made under a lock, to what the file says
then. Decisions are pure: the clock comes in as a parameter.
"""

from __future__ import annotations

import copy
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from ...bus.errors import ConfigError
from ...bus.paths import write_atomic
from ..escalation_rows import read_object

PER_DAY: Final = 50
PAUSE_S: Final = 30.0  #: after the first failure; doubled each time
MAX_PAUSE_S: Final = 3600.0
MAX_INVALID: Final = 2  #: an answer, and one more with the error of the first
_SCHEMA: Final = "rigbus.planner.book/1"
_EMPTY: Final[dict[str, Any]] = {
    "schema": _SCHEMA, "day": "", "asked": 0, "failures": 0, "next_at": 0.0, "escalations": {},
}  # fmt: skip


class Book:
    """See the module. ``per_day``: questions, counted by the day of UTC. ``trial``: questions are counted, but how they
    fared is forgotten with this object: a dry run changes nothing for the next one that is none.

    Every method raises ConfigError where the file is damaged (a budget that is not known is none), OSError where the disk
    refuses.
    """

    def __init__(self, file: Path, per_day: int, *, trial: bool = False) -> None:
        self.file = file
        self.per_day = per_day
        self._trial = trial
        self._held: dict[str, Any] = copy.deepcopy(_EMPTY)  #: of a trial: what it was at its start, and since

    def open(self) -> None:
        """Make its folder, and see that it can be read."""
        self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._held = self._read()

    # -- may it ask ------------------------------------------------------------------------------------------

    def left_today(self, now_at: float) -> int:
        """Questions that may still be asked today."""
        return max(0, self.per_day - _asked(self._read(), now_at))

    def wait_s(self, now_at: float) -> float:
        """How long no question is asked, after failures; a clock that was set back does not make it longer."""
        data = self._known()
        return min(max(0.0, float(data["next_at"]) - now_at), _pause_s(data))

    # -- what happened ---------------------------------------------------------------------------------------

    def asks(self, now_at: float) -> bool:
        """A question is about to be asked; False: today's are all asked, and it is not counted."""
        with self._locked():
            data = self._read()
            asked = _asked(data, now_at)
            if asked >= self.per_day:
                return False
            self._write({**data, "day": _day(now_at), "asked": asked + 1})
        return True

    def failed(self, now_at: float) -> float:
        """No answer came; the pause in seconds."""
        with self._changing() as data:
            data["failures"] = min(int(data["failures"]) + 1, 1000)
            data["next_at"] = now_at + _pause_s(data)
            return _pause_s(data)

    def came(self) -> None:
        """Some answer came: whoever is asked is well."""
        if self._known()["failures"]:
            with self._changing() as data:
                data |= {"failures": 0, "next_at": 0.0}

    def invalid(self, id_: str, problems: list[str], previous: str) -> int:
        """An answer was not taken; how many that makes."""
        with self._changing() as data:
            n = int(_of(data, id_).get("invalid") or 0) + 1
            kept = {"invalid": n, "problems": problems[:20], "previous": previous[: 64 << 10]}
            data["escalations"] = {**data["escalations"], id_: kept}
            return n

    def problems_of(self, id_: str) -> tuple[int, list[str], str]:
        """How many answers to it were not taken, what was wrong with the last one, and that one."""
        kept = _of(self._known(), id_)
        problems = kept.get("problems")
        texts = [str(one) for one in problems] if isinstance(problems, list) else []
        return int(kept.get("invalid") or 0), texts, str(kept.get("previous") or "")

    def keep_only(self, ids: Iterable[str]) -> None:
        """Forget escalations that are there no more."""
        wanted = set(ids)
        if not wanted.issuperset(self._known()["escalations"]):
            with self._changing() as data:
                kept = data["escalations"]
                data["escalations"] = {id_: kept[id_] for id_ in kept if id_ in wanted}

    # -- the file --------------------------------------------------------------------------------------------

    def _known(self) -> dict[str, Any]:
        return self._held if self._trial else self._read()

    def _read(self) -> dict[str, Any]:
        if not os.path.lexists(self.file):
            return copy.deepcopy(_EMPTY)
        found = read_object(self.file)
        if found is None or not _is_whole(found):
            raise ConfigError(
                f"{self.file} is damaged: what was asked today is not known; remove it to begin anew"
            )
        return {**_EMPTY, **found}

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        if self._trial:
            yield self._held
            return
        with self._locked():
            data = self._read()
            yield data
            self._write(data)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self.file.with_suffix(".book"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _write(self, data: dict[str, Any]) -> None:
        write_atomic(self.file, json.dumps(data, indent=1).encode() + b"\n")


def book_file(state: Path, shared: Path) -> Path:
    """Where the book of the planner of a shared folder lies, in a state folder of this machine."""
    mark = hashlib.sha256(os.fsencode(os.path.realpath(shared))).hexdigest()[:12]
    return state / "planner" / f"{mark}.json"


def _asked(data: dict[str, Any], now_at: float) -> int:
    return int(data["asked"]) if data["day"] == _day(now_at) else 0


def _pause_s(data: dict[str, Any]) -> float:
    """The pause after so many failures in a row; 0 after none."""
    failures = int(data["failures"])
    return 0.0 if failures == 0 else float(min(MAX_PAUSE_S, PAUSE_S * 2.0 ** min(failures - 1, 16)))


def _of(data: dict[str, Any], id_: str) -> dict[str, Any]:
    found = data["escalations"].get(id_)
    return found if isinstance(found, dict) else {}


def _day(now_at: float) -> str:
    return datetime.fromtimestamp(now_at, UTC).strftime("%Y-%m-%d")


def _is_whole(found: dict[str, Any]) -> bool:
    numbers = all(
        isinstance(found.get(key), int | float) and not isinstance(found.get(key), bool) and found[key] >= 0
        for key in ("asked", "failures", "next_at")
    )
    return numbers and isinstance(found.get("escalations"), dict) and isinstance(found.get("day"), str)
