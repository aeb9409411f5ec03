"""What an edit of the bridge's own files asks for: by table, and whatever order of writes, edits, losses and restarts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from folders import UUID
from helpers import ROOT
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from worlds import AT

from rigbus.bridge.batchfile import names
from rigbus.bridge.folder.alerts import files as alert_files
from rigbus.bridge.folder.contract import beats, layout, oldconfig, summary
from rigbus.bridge.folder.contract.ownership import RULES, Owner, may_write, rule_of
from rigbus.bridge.folder.control.core import (
    BARE_S,
    Half,
    Kill,
    NoCommand,
    Refused,
    Reset,
    mark_of,
    read_state,
    read_stray,
)
from rigbus.bridge.folder.escalations import files as escalation_files
from rigbus.bridge.folder.logs import batchlog
from rigbus.bridge.folder.mirror.listing import Listing, Since
from rigbus.bridge.folder.share.seal import sealed

LISTING = Listing("cafe0000", 3, {"a": Since(1, 10.0), "b": Since(2, 20.0), "c": Since(3, 200.0)})


def said(*batches: str, **other: Any) -> bytes:
    return json.dumps({"active_batches": {batch: {} for batch in batches}, **other}).encode()


class TestWhatAStateAsksFor:
    @pytest.mark.parametrize(
        ("data", "now", "meant", "spared"),
        [
            (said("a", "c", listing="cafe0000-3"), 0.0, ("b",), ()),
            (said(listing="cafe0000-3"), 0.0, ("a", "b", "c"), ()),
            (said(listing="cafe0000-2"), 900.0, ("a", "b"), ("c",)),
            (said("b", listing="cafe0000-1", pid=7), 0.0, ("a",), ("c",)),
            (said(), 200.0 + BARE_S, ("a", "b", "c"), ()),
            (said(), 199.0 + BARE_S, ("a", "b"), ("c",)),
            (b"{}", 199.0 + BARE_S, ("a", "b"), ("c",)),
            (said("x", "b"), 199.0 + BARE_S, ("a",), ("c",)),
            (said(), 5.0, ("a", "b", "c"), ()),  # the times are of before a reboot
        ],
    )
    def test_batches_that_it_leaves_out_and_its_base_had(
        self, data: bytes, now: float, meant: tuple[str, ...], spared: tuple[str, ...]
    ) -> None:
        assert read_state(data, LISTING, now) == Kill(meant, spared)

    @pytest.mark.parametrize(
        "data",
        [
            said("a", "b", "c", listing="cafe0000-3"),
            said("a", "b", listing="cafe0000-2"),
            said(listing="cafe0000-4"),  # from a time before this state folder was restored
            said(listing="cafe0000-0"),
            said(listing="cafe0000-"),
            said(listing="cafe0000-\u0663"),
            said(listing="cafe0000-" + "9" * 5000),
            said(listing="beef0000-3"),
            said(listing=None),
            said(listing=["cafe0000-3"]),
            b'{"active_batches": "none", "listing": "cafe0000-3"}',
            b'{"active_batches": null}',
            b'{"pid": 4}',
        ],
    )
    def test_all_else_asks_for_nothing_and_is_told_why(self, data: bytes) -> None:
        found = read_state(data, LISTING, 1000.0)
        assert isinstance(found, NoCommand)
        assert found.problem.what and found.problem.fix

    @pytest.mark.parametrize(
        "data", [b"", b"{", b"[", b"[1]", b"null", b"\xff\xfe", b'{"a": NaN}', b"[" * 100_000]
    )
    def test_what_is_no_object_may_be_half_of_one(self, data: bytes) -> None:
        assert isinstance(read_state(data, LISTING, 1000.0), Half)

    def test_the_listing_grows_with_what_comes_in_and_not_with_what_leaves(self) -> None:
        fewer = LISTING.after(["a", "c"])
        assert (fewer.mark, sorted(fewer.since)) == ("cafe0000-3", ["a", "c"])
        again = fewer.after(["a", "b", "c"])
        assert (again.mark, again.since["b"]) == ("cafe0000-4", Since(4, None))
        assert Listing.from_json(json.loads(json.dumps(again.to_json()))) == again
        assert again.shown(301.0).since == {**fewer.since, "b": Since(4, 301.0)}
        assert fewer.without(["a", "x"]).since == {"c": Since(3, 200.0)}

    def test_what_was_never_shown_no_file_without_a_listing_can_mean(self) -> None:
        unseen = Listing("cafe0000", 1, {"a": Since(1)})
        assert isinstance(read_state(said(), unseen, 1e9), NoCommand)

    @pytest.mark.parametrize(
        "found", [[], {}, {"id": "", "n": 1, "since": {}}, {"id": "x", "n": "y", "since": {}}]
    )
    def test_a_damaged_one_is_refused(self, found: Any) -> None:
        with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
            Listing.from_json(found)


def stray(**fields: Any) -> bytes:
    given = {
        "task_id": UUID,
        "mirrored_by": "rigbus",
        "seq": 42,
        "attempts": 2,
        "status": "pending",
        **fields,
    }
    return json.dumps({key: value for key, value in given.items() if value is not None}).encode()


def row(**changes: Any) -> dict[str, Any]:
    return {"id": UUID, "state": "leased", "started": True, "attempt": 2, "seq": 42, "worker": "w", **changes}


QUEUED, TAKEN = f"{layout.QUEUE}/{UUID}.json", f"{layout.PROCESSING}/{UUID}.json"


class TestWhatAStrayFileAsksFor:
    @pytest.mark.parametrize("changes", [{}, {"state": "review", "started": False}])
    def test_the_present_run_without_its_owner_in_the_queue_is_a_reset(self, changes: dict[str, Any]) -> None:
        assert read_stray(QUEUED, stray(), row(**changes)) == Reset(UUID, 42, 2)

    @pytest.mark.parametrize(
        ("fields", "changes"),
        [
            ({"assigned_to": "w"}, {}),  # only moved
            ({"started_at": "2026-02-08T18:46:10"}, {}),
            ({"seq": 41}, {}),  # an editor's late save of the drawing before
            ({"attempts": 1}, {}),
            ({"attempts": True}, {"attempt": 1}),
            ({"mirrored_by": None}, {}),
            ({"task_id": "another"}, {}),
            ({}, {"state": "ready", "started": False}),
            ({}, {"state": "leased", "started": False}),
            ({}, {"state": "done"}),
        ],
    )
    def test_all_else_is_not(self, fields: dict[str, Any], changes: dict[str, Any]) -> None:
        found = read_stray(QUEUED, stray(**fields), row(**changes))
        assert isinstance(found, Refused) and found.problem.fix
        assert found.claimer == ""

    def test_a_name_in_processing_is_a_claim(self) -> None:
        found = read_stray(TAKEN, stray(assigned_to="pi-cpu"), row(state="ready", worker=None))
        assert isinstance(found, Refused)
        assert found.claimer == "pi-cpu"

    @pytest.mark.parametrize("owner", ["w", "", 7, None])
    def test_but_not_the_rigs_own_worker_s(self, owner: Any) -> None:
        found = read_stray(TAKEN, stray(assigned_to=owner), row(state="done"))
        assert isinstance(found, Refused) and found.claimer == ""

    def test_a_claimer_s_name_is_for_a_terminal(self) -> None:
        found = read_stray(TAKEN, stray(assigned_to="\x1b[2Jx"), row(state="ready"))
        assert isinstance(found, Refused)
        assert "\x1b" not in found.problem.what and found.claimer == "somebody"

    @pytest.mark.parametrize("lane", [layout.COMPLETE, layout.FAILED])
    def test_a_result_that_nobody_asked_for(self, lane: str) -> None:
        data = stray(assigned_to="pi-cpu", result={"success": True, "output": ""})
        found = read_stray(f"{lane}/{UUID}.json", data, row(state="ready"))
        assert isinstance(found, Refused) and "did not ask for" in found.problem.what

    @pytest.mark.parametrize(
        "path", [TAKEN, f"{layout.COMPLETE}/{UUID}.json", f"{layout.PRIVATE}/{UUID}.json"]
    )
    @pytest.mark.parametrize("data", [b"{", b"", b"{}", b'{"assigned_to": null, "result": []}'])
    def test_rubbish_and_a_task_that_was_forgotten_ask_for_nothing(self, path: str, data: bytes) -> None:
        assert isinstance(read_stray(path, data, None), Refused | Half)

    @pytest.mark.parametrize("data", [b"{", b"", stray(type="execute_plan"), stray(assigned_to="pi-cpu")])
    def test_an_order_that_no_task_was_made_of_yet_is_left_to_the_queue_s_own_door(self, data: bytes) -> None:
        assert read_stray(QUEUED, data, None) is None


class TestWhoWritesWhat:
    def test_the_bridge_writes_only_what_is_its_own_or_both_s(self) -> None:
        task = {"id": UUID, "batch": "b", "key": "k", "type": "shell", "attempt": 0, "changed_at": AT}
        for state in (
            "waiting",
            "ready",
            "leased",
            "review",
            "done",
            "failed",
            "dead",
            "expired",
            "cancelled",
        ):
            file = layout.task_file({**task, "state": state}, 0.0)
            assert file is not None and may_write(file.path), state
        others = [
            layout.STATE_FILE,
            layout.DECISIONS_LOG,
            layout.TRAINING_SAMPLES,
            layout.archived("b", QUEUED),
        ]
        others += [
            "plans/p/batches/b/batch.json",
            "plans/a/b/batches/b/batch.json",
            layout.task_log("p", "b", "k", 1),
        ]
        others += [
            "workers/w/heartbeat.json",
            "workers/w/status.json",
            "inbox/p.receipt.json",
            ".rigbus-folder-id",
        ]
        others += [*beats.BRAIN, *oldconfig.PLACES, *(f"plans/p/batches/b/{name}" for name in summary.NAMES)]
        others += [
            batchlog.events_path("plans/p/batches/b"),
            "gpus/gpu_0/heartbeat.json",
            "cpus/w/heartbeat.json",
        ]
        others += [
            f"{escalation_files.FOLDER}/i.json",
            f"{escalation_files.FOLDER}/i{escalation_files.RECEIPT}",
        ]
        others += [
            f"{escalation_files.ARCHIVE}/i.json",
            f"{escalation_files.FOLDER}/{escalation_files.HUMAN}i.md",
        ]
        others += [f"{alert_files.FOLDER}/k.json", "schemas/x.json", "plans/p/.rigbus-revisions/i/plan.md"]
        others += [f"inbox/{names.results_of('x.jsonl')}", f"inbox/{names.errors_of('x.jsonl')}{names.PART}"]
        assert [path for path in others if not may_write(path)] == []

    @pytest.mark.parametrize(
        "path",
        [
            *("plans/p/plan.md", "inbox/p", "signals/w.stop", f"{layout.QUEUE}/x.lock", "notes.txt"),
            *(
                "inbox/x.jsonl",
                f"{escalation_files.FOLDER}/i{escalation_files.ANSWER}",
                "plans/p/scripts/x.py",
            ),
        ],
    )
    def test_what_is_people_s_or_nobody_s_it_does_not(self, path: str) -> None:
        assert not may_write(path)

    def test_a_new_file_of_the_queue_is_its_author_s(self) -> None:
        found = rule_of(QUEUED, new=True)
        assert found is not None and found.owner is Owner.PEOPLE

    def test_the_page_shows_the_table(self) -> None:
        page = (ROOT / "docs/control.md").read_text("utf-8")
        table, _, _ = page.partition("## What is a command")
        shown = [line for line in table.splitlines() if line.startswith("| `")]
        assert shown == [f"| `{r.path}` | {r.owner} | {r.edit} |" for r in RULES]


DEATHS = st.sampled_from(["", "", "before", "journal", "cancel"])


class Life(RuleBasedStateMachine):
    """A bridge, scripts that read its state and write an edited one later, faults; every run of a batch has a number.

    The bridge here does what `control` and `mirror` do, with the same core: journal, cancel, put aside, draw.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.runs: dict[str, int] = {}
        self.live: dict[str, int] = {}
        self.disk = self.listing = Listing("cafe0000")
        self.file: bytes | None = None
        self.over = b""  # the edit that may be drawn over
        self.journal: dict[str, tuple[bytes, Kill, bool]] = {}
        self.read: list[tuple[dict[str, Any], dict[str, int]]] = []
        self.old: list[bytes] = []
        self.shown: dict[tuple[str, int], float] = {}  #: when a run was shown first
        self.base: dict[str, int] | None = (
            None  #: what the edit that stands was made of; None: of nothing that it names
        )
        self.gone: set[str] = set()  #: what the edit that stands has left out

    # -- the rig ---------------------------------------------------------------------------------------------

    @rule(batch=st.sampled_from("abcd"))
    def submit_or_run_again(self, batch: str) -> None:
        if batch not in self.live:
            self.runs[batch] = self.live[batch] = self.runs.get(batch, 0) + 1
            self.draw()

    @rule(batch=st.sampled_from("abcd"))
    def end(self, batch: str) -> None:
        self.live.pop(batch, None)
        self.draw()

    @rule()
    def draw(self) -> None:
        after = self.listing.after(self.live)
        if after.n != self.listing.n:
            self.disk = after
        self.listing = after
        if self.file is not None and not sealed(self.file) and self.file != self.over:
            return
        batches = [_batch(b) for b in sorted(self.live)]
        file = layout.state_file(
            batches,
            pid=1,
            host="h",
            started_at=AT,
            changed_at=AT + self.now,
            utc_offset_s=0.0,
            listing=self.listing.mark,
        )
        self.file = file.data
        self.listing = self.listing.shown(self.now)
        self.old.append(file.data)
        for batch, run in self.live.items():
            self.shown.setdefault((batch, run), self.now)

    @rule(seconds=st.sampled_from([0.5, 30.0, BARE_S]), dies=st.booleans())
    def pass_time(self, seconds: float, dies: bool) -> None:
        self.now += seconds
        if dies:
            self.restart()

    def restart(self) -> None:
        self.listing, self.over = self.disk, b""

    # -- the other side --------------------------------------------------------------------------------------

    @precondition(lambda self: self.file is not None and sealed(self.file))
    @rule()
    def a_script_reads(self) -> None:
        found = json.loads(self.file or b"")
        self.read = [*self.read[-3:], (found, {b: self.live.get(b, 0) for b in found["active_batches"]})]

    @precondition(lambda self: self.read)
    @rule(
        n=st.integers(0, 3),
        leave=st.sets(st.sampled_from("abcd")),
        bare=st.sampled_from([False, False, True]),
        die=DEATHS,
    )
    def a_script_writes(self, n: int, leave: set[str], bare: bool, die: str) -> None:
        found, runs = self.read[n % len(self.read)]
        kept = {b: it for b, it in found["active_batches"].items() if b in leave}
        edited = {"active_batches": kept} if bare else {**found, "active_batches": kept, "by": self.now}
        self._write(json.dumps(edited, indent=2).encode())
        self.base = None if bare else runs
        self.gone = set("abcd") - kept.keys()
        self.look(die)

    @rule(
        data=st.sampled_from([None, b"", b"{", b"[]", b'{"pid": 3}', b"null"]),
        n=st.integers(0, 20),
        old=st.booleans(),
    )
    def it_is_damaged_or_vanishes_or_an_older_one_comes_back(
        self, data: bytes | None, n: int, old: bool
    ) -> None:
        self._write(self.old[n % len(self.old)] if old and self.old else data)

    def _write(self, data: bytes | None) -> None:
        self.file, self.base, self.gone = data, {}, set()

    # -- the door --------------------------------------------------------------------------------------------

    @rule(die=DEATHS)
    def look(self, die: str) -> None:
        for mark, (data, asked, done) in list(self.journal.items()):
            self._go_on(mark, data, asked, done)
        if die == "before":
            self.restart()
            return
        if self.file is None or sealed(self.file):
            return
        mark = mark_of(layout.STATE_FILE, self.file, ())
        if mark in self.journal:
            self.over = self.file
            return
        asked = read_state(self.file, self.listing, self.now)
        if isinstance(asked, Half | NoCommand):
            self.over = self.file
            return
        self._judge(asked)
        self.journal[mark] = (self.file, asked, False)
        if die == "journal":
            self.restart()
            return
        self.over = self.file
        self._go_on(mark, self.file, asked, False)
        if die == "cancel":
            self.journal[mark] = (self.file, asked, False)
            self.restart()

    def _go_on(self, mark: str, data: bytes, asked: Kill, done: bool) -> None:
        if not done:
            for batch in asked.batches:
                self.live.pop(batch, None)
            self.journal[mark] = (data, asked, True)
            self.disk = self.listing = self.listing.without(asked.batches)
        if self.file == data:
            self.over = data
        else:
            del self.journal[mark]

    def _judge(self, asked: Kill) -> None:
        """Only what the script had read and left out; all of it; and of an edit without a base only what is old."""
        meant = {b: self.live[b] for b in asked.batches if b in self.live}
        assert set(meant) <= self.gone, "a batch was cancelled that nobody has left out"
        if self.base is None:
            assert all(self.now - self.shown[b, run] >= BARE_S for b, run in meant.items())
        else:
            assert meant == {
                b: run for b, run in self.live.items() if b in self.gone and self.base.get(b) == run
            }


def _batch(id_: str) -> dict[str, Any]:
    return {
        "id": id_,
        "plan": "p",
        "kind": "plan",
        "state": "running",
        "priority": 5,
        "created_at": AT,
        "counts": {},
        "total": 1,
    }


TestAnyLife = Life.TestCase
TestAnyLife.settings = settings(
    max_examples=150,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
