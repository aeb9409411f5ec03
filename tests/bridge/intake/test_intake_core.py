"""The READY and settle rules, first on made-up scans, then on a real inbox."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from folders import UUID, Share
from hypothesis import given
from hypothesis import strategies as st

from rigbus.bridge.folder.contract.receipts import Problem
from rigbus.bridge.folder.intake.core import (
    Decision,
    FileRequest,
    IntakeState,
    Refuse,
    Request,
    Scan,
    Settings,
    StartIntake,
    WriteReceipt,
    again,
    drop_id,
    drop_settings,
    parse_request,
    step,
)
from rigbus.bridge.folder.share import ops
from rigbus.bridge.folder.share.ops import Entry

SETTLE = 3.0


def entry(path: str, kind: str = "file", *, size: int = 1, mtime_ns: int = 5, inode: int = 9) -> Entry:
    return Entry(path, kind, size, mtime_ns, inode, 0o644)


def plan(name: str = "census", *more: Entry) -> tuple[Entry, ...]:
    return (entry(name, "dir"), entry(f"{name}/plan.md"), *more)


class Inbox:
    """Feeds scans to the core and keeps its state."""

    def __init__(self) -> None:
        self.state = IntakeState()

    def look(
        self, entries: Iterable[Entry], now_s: float, *, cut: Iterable[str] = (), complete: bool = True
    ) -> list[Decision]:
        scan = Scan(tuple(entries), frozenset(cut), complete)
        self.state, decisions = step(self.state, scan, now_s, SETTLE)
        return decisions


def starts(decisions: list[Decision]) -> list[tuple[str, str]]:
    return [(d.name, d.why) for d in decisions if isinstance(d, StartIntake)]


def test_a_drop_with_ready_starts_at_once_and_once() -> None:
    inbox, drop = Inbox(), plan("census", entry("census/READY", size=0))
    assert starts(inbox.look(drop, 0)) == [("census", "READY")]
    assert inbox.look(drop, 1) == []
    assert inbox.look(drop, 100) == []


def test_a_drop_without_ready_gets_a_receipt_and_starts_when_it_lies_still() -> None:
    inbox = Inbox()
    first = inbox.look(plan(), 10)
    assert [type(d) for d in first] == [WriteReceipt]
    assert inbox.look(plan(), 12.9) == []
    assert starts(inbox.look(plan(), 13.0)) == [("census", "settled")]
    assert inbox.look(plan(), 20) == []


def test_a_drop_that_still_grows_does_not_start() -> None:
    inbox = Inbox()
    inbox.look(plan(), 0)
    for second in range(1, 20):
        grown = plan("census", entry("census/data", size=second))
        assert starts(inbox.look(grown, float(second))) == []
    assert starts(inbox.look(grown, 22.0)) == [("census", "settled")]


@pytest.mark.parametrize("change", [{"size": 2}, {"mtime_ns": -1}, {"mtime_ns": 4}])
def test_any_change_of_size_or_time_forward_or_back_settles_anew(change: dict[str, int]) -> None:
    inbox = Inbox()
    inbox.look(plan(), 0)
    changed = (entry("census", "dir"), entry("census/plan.md", **change))
    assert starts(inbox.look(changed, 5)) == []
    assert starts(inbox.look(changed, 8)) == [("census", "settled")]


def test_ready_that_comes_later_ends_the_wait() -> None:
    inbox = Inbox()
    inbox.look(plan(), 0)
    assert starts(inbox.look(plan("census", entry("census/READY")), 0.5)) == [("census", "READY")]


def test_an_edit_in_place_is_a_new_run_but_settles_even_under_an_old_ready() -> None:
    inbox, ready = Inbox(), entry("census/READY")
    inbox.look(plan("census", ready), 0)
    edited = (entry("census", "dir"), entry("census/plan.md", mtime_ns=6), ready)
    said = inbox.look(edited, 10)
    assert [type(d) for d in said] == [WriteReceipt]
    assert starts(inbox.look(edited, 13)) == [("census", "settled")]


def test_a_second_drop_of_the_name_is_taken_again() -> None:
    inbox = Inbox()
    inbox.look(plan("census", entry("census/READY")), 0)
    assert inbox.look([], 1) == []
    assert starts(inbox.look(plan("census", entry("census/READY", inode=10)), 2)) == [("census", "READY")]


def test_an_intake_that_failed_for_a_passing_reason_is_decided_anew() -> None:
    inbox, drop = Inbox(), plan("census", entry("census/READY"))
    inbox.look(drop, 0)
    inbox.state = again(inbox.state, "census")
    assert starts(inbox.look(drop, 1)) == [("census", "READY")]


def test_a_part_of_a_long_listing_does_not_make_the_rest_vanish() -> None:
    inbox = Inbox()
    inbox.look(plan("a") + plan("b"), 0)
    inbox.look(plan("a"), 1, complete=False)
    assert starts(inbox.look(plan("b"), 5, complete=False)) == [("b", "settled")]


@pytest.mark.parametrize(
    "name",
    [
        ".hidden",
        ".incoming-x",
        "a.receipt.md",
        "a.receipt.json",
        "a.md~",
        "a.md.tmp",
        "a.md.part",
        ".x.md.AbC123",
    ],
)
def test_some_names_are_never_plans(name: str) -> None:
    inbox = Inbox()
    assert inbox.look([entry(name)], 0) == []
    assert inbox.look([entry(name)], 100) == []


def test_a_single_md_file_is_a_plan() -> None:
    inbox = Inbox()
    inbox.look([entry("note.md")], 0)
    started = inbox.look([entry("note.md")], 3)
    assert isinstance(started[0], StartIntake)
    assert started[0].is_folder is False


@pytest.mark.parametrize("kind", ["link", "fifo", "socket", "device", "other"])
def test_what_is_no_file_or_folder_is_refused_at_once_with_the_fix(kind: str) -> None:
    (decision,) = Inbox().look([entry("x", kind)], 0)
    assert isinstance(decision, Refuse)
    assert decision.problem.where == "inbox/x"
    assert decision.problem.what
    assert decision.problem.fix


@pytest.mark.parametrize("name", ["-rf", "a b", "$(x)", "\x1b[31m", "a\nb", "x" * 65, "é", "bad\udcff"])
def test_a_folder_whose_name_cannot_name_a_plan_is_refused_at_once(name: str) -> None:
    (decision,) = Inbox().look(plan(name, entry(f"{name}/READY")), 0)
    assert isinstance(decision, Refuse)
    assert decision.problem.where.isprintable()
    assert "rename" in decision.problem.fix


def test_a_plan_md_that_is_a_link_is_refused() -> None:
    (decision,) = Inbox().look([entry("x", "dir"), entry("x/plan.md", "link")], 0)
    assert isinstance(decision, Refuse)
    assert decision.problem.where == "inbox/x/plan.md"


def test_a_folder_without_a_plan_waits_and_is_refused_only_when_called_ready() -> None:
    inbox = Inbox()
    (said,) = inbox.look([entry("x", "dir")], 0)
    assert isinstance(said, WriteReceipt)
    assert said.state == "waiting"
    assert inbox.look([entry("x", "dir")], 100) == []
    (refused,) = inbox.look([entry("x", "dir"), entry("x/READY")], 101)
    assert isinstance(refused, Refuse)


def test_a_foreign_file_is_left_where_it_lies() -> None:
    inbox = Inbox()
    assert inbox.look([entry("plan.tar.gz")], 0) == []
    (decision,) = inbox.look([entry("plan.tar.gz")], 3)
    assert isinstance(decision, Refuse)
    assert decision.move is False
    assert "unpack" in decision.problem.fix


def test_a_drop_too_big_to_watch_needs_ready() -> None:
    inbox = Inbox()
    (said,) = inbox.look(plan(), 0, cut=["census"])
    assert isinstance(said, WriteReceipt)
    assert "READY" in said.note
    assert inbox.look(plan(), 50, cut=["census"]) == []
    assert starts(inbox.look(plan("census", entry("census/READY")), 51, cut=["census"])) == [
        ("census", "READY")
    ]


def test_a_request_is_given_out_once_until_it_has_its_receipt() -> None:
    inbox, folder = Inbox(), entry(".requests", "dir")
    asked = entry(f".requests/{UUID}.json")
    answered = entry(f".requests/{UUID}.receipt.json")
    assert inbox.look([folder, asked], 0) == [Request(asked.path)]
    assert inbox.look([folder, asked], 1) == []
    inbox.state = again(inbox.state, asked.path)
    assert inbox.look([folder, asked], 2) == [Request(asked.path)]
    assert Inbox().look([folder, asked, answered], 0) == []


@pytest.mark.parametrize(
    "name", ["x.json", f"{UUID}.json.tmp", f".{UUID}.json", f"{UUID}/a.json", "../x.json"]
)
def test_what_is_not_named_as_a_request_is_none(name: str) -> None:
    assert Inbox().look([entry(f".requests/{name}")], 0) == []


def test_the_drop_id_is_one_folder_s_and_one_content_s() -> None:
    same = drop_id("census", 9, "abc")
    assert same == drop_id("census", 9, "abc")
    assert (
        len({same, drop_id("census", 10, "abc"), drop_id("census", 9, "abd"), drop_id("censu", 9, "abc")})
        == 4
    )


kinds = st.sampled_from(["file", "dir", "link", "fifo", "unreadable"])
paths = st.lists(st.text(min_size=1, max_size=4).filter(lambda t: "/" not in t), min_size=1, max_size=3)
rows = st.builds(lambda p, k, s: entry("/".join(p), k, size=s), paths, kinds, st.integers(0, 3))


@given(st.lists(st.lists(rows, max_size=8), max_size=5))
def test_whatever_lies_there_each_drop_is_decided_once_and_nothing_raises(looks: list[list[Entry]]) -> None:
    inbox = Inbox()
    for now, look in enumerate(looks):
        unique = {e.path: e for e in look}.values()
        first = inbox.look(unique, float(now))
        assert inbox.look(unique, float(now)) == []
        names = [d.name for d in first if not isinstance(d, Request)]
        assert len(names) == len(set(names))


def scan_inbox(share: Share) -> Scan:
    result = share.one(ops.scan("inbox", depth=8, enter=[".requests"]), kind="intake")
    return Scan(tuple(ops.entries(result)), frozenset(result["cut"]), not result["next"])


def test_a_real_inbox_full_of_evil_is_decided_without_blocking(share: Share, tmp_path: Path) -> None:
    inbox = share.root / "inbox"
    (inbox / "good").mkdir(parents=True)
    (inbox / "good/plan.md").write_text("# good")
    (inbox / "good/READY").touch()
    (inbox / "-rf $(x)").mkdir()
    (inbox / "-rf $(x)/plan.md").write_text("# evil")
    os.mkfifo(inbox / "pipe.md")
    (inbox / "out").symlink_to(tmp_path)
    (inbox / "slow").mkdir()
    (inbox / "slow/plan.md").write_text("# slow")
    (inbox / ".requests").mkdir()
    (inbox / f".requests/{UUID}.json").write_text("{}")
    state, decisions = step(IntakeState(), scan_inbox(share), 0.0, SETTLE)
    assert [(type(d).__name__, getattr(d, "name", "")) for d in decisions] == [
        ("Refuse", "-rf $(x)"),
        ("StartIntake", "good"),
        ("Refuse", "out"),
        ("Refuse", "pipe.md"),
        ("WriteReceipt", "slow"),
        ("Request", ""),
    ]
    # Receipts and a neighbour that is moved away do not disturb what settles.
    share.do(ops.write("inbox/slow.receipt.md", b"seen"), ops.rename("inbox/good", "plans/good"))
    _, later = step(state, scan_inbox(share), SETTLE, SETTLE)
    assert starts(later) == [("slow", "settled")]


def test_ready_and_config_json_carry_settings() -> None:
    assert drop_settings({}) == Settings({})
    assert drop_settings({"READY": b""}) == Settings({})
    both = drop_settings(
        {"config.json": b'{"config":{"A":1,"B":1}}', "READY": b'{"config":{"A":2},"priority":"high"}'}
    )
    assert both == Settings({"A": 2, "B": 1}, "high")
    assert drop_settings({"config.json": b'\xef\xbb\xbf{"A": 1}'}) == Settings({"A": 1})


@pytest.mark.parametrize(
    "data",
    [
        b'{"config": ',
        b"[1]",
        b"\xff\xfe",
        b'{"config": 5}',
        b'{"priority": "soon"}',
        b'{"config": {"a": NaN}}',
        b'{"config": {"a": 1e999}}',
        b'{"config": {"a": "\\ud800"}}',
        b'{"config": {"a": %s}}' % (b"9" * 30),
        b'{"config": {"a": %s}}' % (b"9" * 9000),
        b"[" * 60_000,
        b" " * 70_000 + b"{}",
        b'{"a":\n\n  tru}',
    ],
)
def test_settings_that_cannot_be_are_named(data: bytes) -> None:
    problem = drop_settings({"READY": data})
    assert isinstance(problem, Problem)
    assert problem.where == "READY"
    assert problem.what
    assert problem.fix


@given(st.binary(max_size=200))
def test_no_bytes_in_a_request_raise(data: bytes) -> None:
    assert isinstance(parse_request(f".requests/{UUID}.json", data), Problem | FileRequest)


def test_a_request_is_read_and_a_wrong_one_named() -> None:
    path = f".requests/{UUID}.json"
    good = b'{"schema":"rigbus.request/1","id":"%s","verb":"cancel","args":{},"batch_id":"b"}' % UUID.encode()
    assert parse_request(path, good) == FileRequest(UUID, "cancel", {}, "b")
    for bad in (good.replace(b"request/1", b"request/9"), good.replace(b'"args":{}', b'"args":[]'), b"{}"):
        assert isinstance(parse_request(path, bad), Problem)
    assert isinstance(parse_request(".requests/other.json", good), Problem)
