"""Whether a plan that lies in the share is still being copied there: an order may arrive before its plan is whole.

The beginning of a plan.md can be a valid plan, so a plan that is as new as its order counts when two looks at what runs
of it are equal. One that is older was there before, and is not waited for: both times come from the same file system.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from ..intake.moves import KIND
from ..loop.clock import Clock
from ..loop.flows import Flow, share
from ..share.ops import Result, entries, scan, stat

NEW_NS: Final = 2_000_000_000  #: some file systems keep times to two seconds
MAX_FILES: Final = 2000
MAX_PLANS: Final = 200
_RUNS: Final = ("scripts", "lib")

Look = tuple[tuple[Any, ...], ...]


@dataclass(slots=True)
class Rest:
    """What was seen of plans that are new. ``settle_s``: for so long they have to look the same."""

    clock: Clock
    settle_s: float
    _seen: dict[str, tuple[Look, float]] = field(default_factory=dict)

    def at_rest(self, place: str, ordered_ns: int) -> Flow[bool]:
        """The plan at ``place`` is whole, as far as can be seen; ``ordered_ns`` is the mtime of its order."""
        if self.settle_s <= 0:
            return True
        ops = [stat(f"{place}/plan.md"), *(scan(f"{place}/{n}", depth=4, budget=MAX_FILES) for n in _RUNS)]
        look = _look((yield from share(KIND, ops)))
        now = self.clock.now()
        if all(mtime_ns < ordered_ns - NEW_NS for _, _, mtime_ns, _ in look):
            return True
        before, since = self._seen.get(place, ((), now))
        if before == look:
            return now - since >= self.settle_s  # kept: the next order of this plan need not wait again
        if len(self._seen) >= MAX_PLANS:
            self._seen.clear()  # those wait a little longer
        self._seen[place] = look, now
        return False


def _look(results: list[Result]) -> Look:
    """Path, size, mtime and inode of the files."""
    plan, *folders = results
    there = plan.get("entry") if plan["ok"] else None
    found = [("plan.md", there[2], there[3], there[4])] if there is not None else []
    for name, result in zip(_RUNS, folders, strict=True):
        listed = entries(result) if result["ok"] else []
        found += [(f"{name}/{e.path}", e.size, e.mtime_ns, e.inode) for e in listed if e.type == "file"]
    return tuple(found)
