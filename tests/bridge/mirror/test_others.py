"""The files of the mirror that stand in no lane, while other flows want newer ones at any moment."""

from __future__ import annotations

from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from rigbus.bridge.folder.contract.layout import File
from rigbus.bridge.folder.mirror.others import Others
from rigbus.bridge.folder.share.ops import Op

STEPS = st.one_of(st.integers(0, 2), st.sampled_from(["begin", "written", "refused", "lost"]))


class Folder:
    """The share, and one batch of writes that may be on its way there."""

    def __init__(self) -> None:
        self.others, self.data, self.batch = Others(), b"", list[Op]()

    def want(self, n: int) -> None:
        self.others.want(File("x.json", b"%d" % n, 1, same=str(n)), 0.0)

    def begin(self) -> None:
        if not self.batch:
            self.batch = self.others.ops()

    def end(self, how: str) -> None:
        """What was begun stands, or was refused; of what was lost (a share that went away) nobody knows."""
        batch, self.batch = self.batch, []
        if how != "refused":
            for op in batch:
                self.data = op["data"]
        if how != "lost":
            results: list[dict[str, Any]] = [
                {"ok": how == "written", "size": len(op["data"]), "mtime_ns": 1} for op in batch
            ]
            self.others.done(batch, results, 0.0)


@given(st.lists(STEPS, max_size=12), st.integers(0, 2))
@example([0, "begin", 1, "written"], 1)  # a newer one while the older is on its way
@example([0, "begin", "written", 1, "begin", 0, "written"], 0)  # and back to what stood before
@example([0, "begin", 1, "refused"], 1)
@example([0, "begin", "written", 1, "begin", "lost", 0], 0)
def test_what_was_wanted_last_comes_to_stand_whenever_it_was_wanted(steps: list[Any], last: int) -> None:
    folder, wanted = Folder(), None
    for step in steps:
        if isinstance(step, int):
            folder.want(wanted := step)
        elif step == "begin":
            folder.begin()
        else:
            folder.end(step)
    if wanted != last:
        folder.want(last)
    folder.end("written")
    folder.others.again()
    folder.begin()
    folder.end("written")
    assert folder.data == b"%d" % last
    assert not folder.others.waiting()
