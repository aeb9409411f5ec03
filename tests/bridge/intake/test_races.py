"""Files that change under the bridge's hands, that have other names elsewhere, that lie about their age, that are many."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from folders import Share, open_share

from rigbus.bridge.folder.contract.receipts import Invalid
from rigbus.bridge.folder.intake import core
from rigbus.bridge.folder.intake.drafts import copy_op, examine
from rigbus.bridge.folder.share import ops
from rigbus.plans.stage import stage_plan

PLAN = "# Plan: p\n\n## Tasks\n\n### one\n\n- **command**: `bash {PLAN_PATH}/scripts/run.sh`\n"
ROUNDS = 60
YEAR_S = 365 * 86400


@pytest.fixture
def share(tmp_path: Path) -> Iterator[Share]:
    with open_share(tmp_path / "share") as opened:
        yield opened


@contextmanager
def racer(swap: Callable[[random.Random], None]) -> Iterator[None]:
    """``swap`` again and again in a thread, until the end."""
    ended, dice, faults = threading.Event(), random.Random(7), list[BaseException]()

    def race() -> None:
        try:
            while not ended.is_set():
                swap(dice)
        except BaseException as e:
            faults.append(e)
            raise

    thread = threading.Thread(target=race)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert not faults, faults


def staged_content(staged: Path) -> dict[str, bytes]:
    return {str(p.relative_to(staged)): p.read_bytes() for p in sorted(staged.rglob("*")) if p.is_file()}


class TestRenameRaces:
    """What is executed is the staged copy; what was checked, hashed and named is that very copy."""

    def versions(self, share: Share) -> dict[str, set[bytes]]:
        """Plan ``p`` with two versions of each file beside it; the contents that each file may have."""
        plan = share.root / "inbox/p"
        (plan / "scripts").mkdir(parents=True)
        allowed: dict[str, set[bytes]] = {}
        for name, sizes in (
            ("plan.md", (0, 9000)),
            ("scripts/run.sh", (10, 300_000)),
            ("scripts/b.py", (1, 70_000)),
        ):
            for letter, size in zip("AB", sizes, strict=True):
                text = (PLAN if name == "plan.md" else "") + f"\n# {letter}" + letter * size
                file = share.root / f"{letter}-{name.replace('/', '-')}"
                file.write_text(text)
                allowed.setdefault(name, set()).add(text.encode())
            shutil.copy(share.root / f"A-{name.replace('/', '-')}", plan / name)
        return allowed

    def test_while_files_are_swapped_what_is_staged_is_what_was_hashed(
        self, share: Share, tmp_path: Path
    ) -> None:
        allowed = self.versions(share)
        plan, names = share.root / "inbox/p", sorted(allowed)

        def swap(dice: random.Random) -> None:
            name = dice.choice(names)
            source = share.root / f"{dice.choice('AB')}-{name.replace('/', '-')}"
            if dice.random() < 0.3:  # in place, byte by byte: the copy must notice
                with source.open("rb") as old, (plan / name).open("r+b") as new:
                    new.write(old.read())
                    new.truncate()
            else:
                shutil.copy(source, plan / f"{name}.new")
                os.replace(plan / f"{name}.new", plan / name)

        taken = torn = 0
        with racer(swap):
            for n in range(ROUNDS):
                place = tmp_path / f"copy-{n}" / "p"
                place.parent.mkdir()
                result = share.one(copy_op("inbox/p", place))
                if not result["ok"]:
                    assert result["errno"] in ("EBUSY", "ENOENT"), result
                    continue
                try:
                    draft = examine(place, tmp_path / "staged")
                except Invalid:
                    torn += 1  # a plan.md caught in the middle is refused or waits, and never runs
                    continue
                taken += 1
                content = staged_content(tmp_path / "staged" / draft.sha256)
                assert content == {
                    name: data for name, data in staged_content(place).items() if name in content
                }
                again = stage_plan(tmp_path / "staged" / draft.sha256, tmp_path / f"again-{n}")
                assert again.sha256 == draft.sha256, "executed is not what was hashed"
                for name, data in content.items():
                    if name in allowed and hashlib.sha256(data).digest() not in {
                        hashlib.sha256(one).digest() for one in allowed[name]
                    }:
                        torn += 1  # in place, and within one tick of the clock: it is still what was hashed
        assert taken >= 5, f"{taken} taken in, {torn} torn: the racer leaves nothing to look at"

    def test_a_folder_that_becomes_a_link_while_it_is_copied_lets_nothing_in_from_outside(
        self, share: Share, tmp_path: Path
    ) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "run.sh").write_text("SECRET")
        plan = share.root / "inbox/p"
        (plan / "scripts").mkdir(parents=True)
        (plan / "scripts/run.sh").write_text("true")
        (plan / "plan.md").write_text(PLAN)
        (share.root / "link").symlink_to(outside)

        def swap(_: random.Random) -> None:
            os.rename(plan / "scripts", share.root / "real")
            os.rename(share.root / "link", plan / "scripts")
            os.rename(plan / "scripts", share.root / "link")
            os.rename(share.root / "real", plan / "scripts")

        copied = 0
        with racer(swap):
            for n in range(ROUNDS * 3):
                place = tmp_path / f"copy-{n}" / "p"
                place.parent.mkdir()
                copied += share.one(copy_op("inbox/p", place))["ok"]
                found = place / "scripts/run.sh"
                assert not (place / "scripts").is_symlink()
                assert not found.exists() or "SECRET" not in found.read_text()
        assert copied, "no copy came through"


class TestHardLinks:
    """A file is what it holds when it is copied, whoever else names it: `cp -al` and backups link without harm."""

    def test_a_hard_link_to_a_file_elsewhere_is_copied_and_a_later_change_of_that_file_changes_nothing(
        self, share: Share, tmp_path: Path
    ) -> None:
        outside = tmp_path / "outside.sh"
        outside.write_text("echo checked")
        plan = share.root / "inbox/p"
        (plan / "scripts").mkdir(parents=True)
        (plan / "plan.md").write_text(PLAN)
        os.link(outside, plan / "scripts/run.sh")
        place = tmp_path / "copy" / "p"
        place.parent.mkdir()
        assert share.one(copy_op("inbox/p", place))["ok"]
        draft = examine(place, tmp_path / "staged")
        outside.write_text("echo changed")
        staged = tmp_path / "staged" / draft.sha256 / "scripts/run.sh"
        assert staged.read_text() == "echo checked"
        assert staged.stat().st_nlink == 1

    def test_the_mirror_never_writes_through_a_hard_link(self, share: Share, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.write_text("mine")
        share.one(ops.mkdirs("tasks/queue"))
        os.link(outside, share.root / "tasks/queue/a.json")
        assert share.one(ops.write("tasks/queue/a.json", b"theirs"))["ok"]
        assert outside.read_text() == "mine"


@pytest.mark.parametrize("years", [-10, 10, None], ids=["ten years ago", "in ten years", "1970"])
def test_files_of_any_age_settle_and_start_like_others(share: Share, years: int | None) -> None:
    """The Pi's clock may be wrong by any amount: times of files are compared with each other only."""
    at = 0.0 if years is None else time.time() + years * YEAR_S
    plan = share.root / "inbox/p"
    plan.mkdir(parents=True)
    (plan / "plan.md").write_text(PLAN)
    for path in (plan / "plan.md", plan):
        os.utime(path, (at, at))
    scan = ops.scan("inbox", depth=32)
    state, now = core.IntakeState(), 1000.0
    decided = []
    for _ in range(4):
        found = core.Scan(tuple(ops.entries(share.one(scan))))
        state, decisions = core.step(state, found, now, 3.0)
        decided.append([type(d).__name__ for d in decisions])
        now += 1.0
    assert decided == [["WriteReceipt"], [], [], ["StartIntake"]]
    (plan / "plan.md").write_text(PLAN + "\n")
    os.utime(plan / "plan.md", (at, at))  # an edit that its clock hides: the size tells
    found = core.Scan(tuple(ops.entries(share.one(scan))))
    state, decisions = core.step(state, found, now, 3.0)
    assert [type(d).__name__ for d in decisions] == ["WriteReceipt"]


def test_a_hundred_thousand_files_in_one_folder_cost_bounded_time_and_memory(tmp_path: Path) -> None:
    many = 100_000
    base = Path("/dev/shm") if Path("/dev/shm").is_dir() else tmp_path
    root = base / f"rigbus-many-{os.getpid()}"
    queue = root / "tasks/queue"
    try:
        queue.mkdir(parents=True)
        fd = os.open(queue, os.O_RDONLY)
        for n in range(many):
            os.close(os.open(f"{n:06}.json", os.O_WRONLY | os.O_CREAT, 0o644, dir_fd=fd))
        os.close(fd)
        with open_share(root) as share:
            share.one(ops.stat("."))
            before, began = helpers_kib(share), time.monotonic()
            seen, after, longest = 0, "", 0.0
            while True:
                page_at = time.monotonic()
                page = share.one(ops.scan("tasks/queue", after=after), deadline_s=60)
                longest = max(longest, time.monotonic() - page_at)
                seen += len(page["entries"])
                after = page["next"]
                if not after:
                    break
            took, grown = time.monotonic() - began, helpers_kib(share) - before
        assert seen == many
        print(
            f"{many} files: {took:.2f} s, longest page {longest:.2f} s, helper +{grown >> 10} MiB",
            file=sys.stderr,
        )
        assert took < 60
        assert grown < 128 << 10
    finally:
        shutil.rmtree(root, ignore_errors=True)


def helpers_kib(share: Share) -> int:
    """The most memory that the fullest helper has had."""
    found = []
    for pid in share.port.pids().values():
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        found += [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    return max(found)
