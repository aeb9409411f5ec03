"""Scenes for fail-at-N and crash prefixes: plans that are staged and viewed, and the intake of one through the share."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from helpers import ROOT

from rigbus.bridge.folder.contract.receipts import Invalid
from rigbus.bridge.folder.intake.moves import Later, Stuck
from rigbus.bridge.folder.intake.taking import Taker
from rigbus.bridge.folder.loop.clock import Clock
from rigbus.bridge.folder.loop.flows import Ask, ShareAway
from rigbus.bridge.folder.share.frames import HEAD, leave_blobs, take_blobs
from rigbus.bridge.folder.share.helper import run_batch
from rigbus.bridge.folder.share.port import Fault, Reply
from rigbus.bus.paths import rig_paths
from rigbus.bus.wire import Envelope, Verb
from rigbus.plans import StageError, harvest_view, make_view, stage_plan

from .disk import Crash
from .lives import Life
from .prefixes import Say, Scene

sys.path.insert(0, str(ROOT / "tests/bridge"))

from flowing import Broker, drive


class Stages(Life):
    """A plan is staged, a batch gets its view of it, and gives back what it has made."""

    errors = (StageError,)

    def prepare(self, folder: Path) -> None:
        plan = folder / "share/census"
        (plan / "scripts").mkdir(parents=True)
        (plan / "plan.md").write_text("# Plan: census\n")
        (plan / "scripts/run.sh").write_text("#!/bin/sh\n")
        (plan / "model.bin").write_bytes(b"\0")

    def run(self, folder: Path, say: Say) -> None:
        staged = stage_plan(folder / "share/census", folder / "state/staged")
        say("staged", staged.sha256)
        view = make_view(staged.path, folder / "share/census", folder / "state/views/b")
        say("viewed", 1)
        try:
            (view / "made.txt").write_text("made")
        except OSError:
            return  # the attempt's own error
        harvest_view(staged.path, folder / "share/census", view)
        say("harvested", 1)

    def judge(self, folder: Path, said: Sequence[tuple[str, Any]]) -> None:
        share, done = folder / "share/census", dict(said)
        made = share / "made.txt"
        if made.exists():
            assert made.read_text() == "made"
            made.rename(folder / "away.txt")  # a text at the top is a part of the plan
        staged = stage_plan(share, folder / "state/staged")
        if (folder / "away.txt").exists():
            (folder / "away.txt").rename(made)
        assert staged.files == ["plan.md", "scripts/run.sh"], staged.files
        assert done.get("staged", staged.sha256) == staged.sha256
        assert (staged.path / "scripts/run.sh").read_text() == "#!/bin/sh\n"
        view = make_view(staged.path, share, folder / "state/views/b")
        assert (view / "plan.md").read_text() == "# Plan: census\n"
        assert (view / "model.bin").read_bytes() == b"\0"
        if "harvested" not in done:
            if not made.exists():
                (view / "made.txt").write_text("made")
            harvest_view(staged.path, share, view)
        assert (share / "made.txt").read_text() == "made" == (view / "made.txt").read_text()
        assert not list(share.glob("made.txt.*")), "kept twice"

    def require_words(self, words: str, folder: Path) -> None:
        assert re.search(r"(/|plan\.md|scripts|census)", words), f"where? {words}"


# -- the shared folder -------------------------------------------------------------------------------------------


class HerePort:
    """The helper's batches, run here: its calls are those that fail."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def call(self, kind: str, ops: Any, deadline_s: float = 10.0) -> Reply:
        """As :meth:`FolderPort.call`."""
        ops, blobs = leave_blobs([dict(op) for op in ops])
        header = {"ticket": 1, "ops": ops, "budget_s": deadline_s, "folder_id": None}
        packed = run_batch(str(self.root), header, b"".join(blobs))
        head, _ = HEAD.unpack(packed[: HEAD.size])
        answer = json.loads(packed[HEAD.size : HEAD.size + head])
        if "fault" in answer:
            return Reply(1, kind, [], Fault(answer["fault"]["errno"], answer["fault"]["what"]))
        take_blobs(answer["results"], packed[HEAD.size + head :])
        return Reply(1, kind, answer["results"])


class Drops(Life):
    """A dropped plan is copied, staged, moved, submitted and answered."""

    errors = (Later, Stuck, ShareAway, Invalid, OSError)
    PLAN: Final = "# Plan: p\n\n## Tasks\n\n### one\n\n- **command**: `echo hi`\n"

    def prepare(self, folder: Path) -> None:
        drop = folder / "share/inbox/p"
        (drop / "scripts").mkdir(parents=True)
        (drop / "plan.md").write_text(self.PLAN)
        (drop / "scripts/x.sh").write_text("true\n")
        (drop / "READY").write_text("")
        (folder / "state").mkdir()

    def run(self, folder: Path, say: Say) -> None:
        self._take(folder, Submits(say, {}))

    def _take(self, folder: Path, broker: Submits) -> None:
        """What the intake does at a start: go on with what is in the journal, then look into the inbox."""
        taker = Taker(rig_paths(folder / "state", folder / "share"), Clock())
        taker.journal.open()
        port: Any = HerePort(folder / "share")
        for entry in taker.journal.entries().values():
            drive(taker.resume(entry), port, broker)
        if (folder / "share/inbox/p").exists():
            drive(taker.take_in("inbox/p", "p", True, "listing", "p"), port, broker)

    def judge(self, folder: Path, said: Sequence[tuple[str, Any]]) -> None:
        broker = Submits(lambda *_: None, dict(v for what, v in said if what == "accepted"))
        self._take(folder, broker)
        assert len(broker.batches) == 1, f"runs of one drop: {broker.batches}"
        home = folder / "share/plans/p"
        assert (home / "plan.md").read_text() == self.PLAN and (home / "scripts/x.sh").exists()
        inbox = sorted(p.name for p in (folder / "share/inbox").iterdir() if not p.name.startswith("."))
        assert inbox == ["p.receipt.json", "p.receipt.md"], inbox
        assert '"accepted"' in (folder / "share/inbox/p.receipt.json").read_text()
        left = [p.name for p in (folder / "state/incoming").iterdir()]
        assert not left, f"left in the journal: {left}"

    def require_words(self, words: str, folder: Path) -> None:
        assert re.search(r"(/|plan|inbox|disk|share)", words), f"where? {words}"
        assert not words.startswith("Invalid"), f"the plan is refused for a disk's fault: {words}"


class CutDrops(Scene):
    """The same for crash prefixes: state folder and share are two disks."""

    def prepare(self, folder: Path) -> None:
        Drops().prepare(folder)

    def run(self, folder: Path, say: Say) -> None:
        Drops().run(folder, say)

    def judge(self, folder: Path, crash: Crash, said: list[tuple[str, Any]]) -> None:
        # The files were written anew: the drop's folder has another inode than the journal knows.
        lies = next((p for p in (folder / "share/inbox/p", folder / "share/plans/p") if p.exists()), folder)
        for file in (folder / "state/incoming").glob("*.json"):
            entry = json.loads(file.read_bytes())
            file.write_text(json.dumps({**entry, "inode": lies.stat().st_ino}))
        Drops().judge(folder, said)


class Submits(Broker):
    """A broker that tells what it accepts, and knows what it has accepted before."""

    def __init__(self, say: Say, known: dict[str, str]) -> None:
        super().__init__()
        self.batches = known
        self._say = say

    def __call__(self, ask: Ask) -> Envelope:
        answer = super().__call__(ask)
        if ask.verb is Verb.SUBMIT:
            self._say("accepted", [ask.header["batch"]["key"], answer.header["batch"]])
        return answer
