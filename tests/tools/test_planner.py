"""`rigbus planner run`: a program answers escalations; what it says is checked, written once, and never twice."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import slack, wait_for

from rigbus.bus.errors import ConfigError, Refused
from rigbus.tools import answering
from rigbus.tools.escalation_rows import FOLDER, Escalations
from rigbus.tools.planning import book as book_module
from rigbus.tools.planning.asking import AskFailed, Question
from rigbus.tools.planning.book import Book, book_file
from rigbus.tools.planning.loop import Loop
from rigbus.tools.planning.seat import RECORD, Seat

from .planned import ID, MENDED, answer_of, escalate, make_share, played_rig, put, sign

RETRY = {"action": "retry", "note": "it was chance"}
PATCH = {"action": "patch", "files": {"scripts/count.py": MENDED}}
OTHER = "20261121_081600_11111111"


@pytest.fixture
def share(tmp_path, monkeypatch):
    root = make_share(tmp_path / "share")
    monkeypatch.setenv("RIGBUS_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("RIGBUS_SHARED", str(root))
    monkeypatch.setattr(book_module, "PAUSE_S", 30.0)
    return root


class Said:
    """A planner that says what it was told to; ``asked`` are the questions."""

    name = "played"

    def __init__(self, *answers):
        self.answers = list(answers)
        self.asked: list[Question] = []

    def ask(self, question):
        self.asked.append(question)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, str) else json.dumps(answer)


class Desk:
    """A loop over a share, with its seat; ``clock`` is Unix seconds."""

    def __init__(self, share, planner, *, per_day=50, receipt_s=0.0, dry=False, without=(), beat_s=0.05):
        self.clock = 1_800_000_000.0
        self.outcomes = []
        file = book_file(share.parent / "state", share)
        self.book = Book(file, per_day, trial=dry)
        self.seat = None if dry else Seat(share, file.with_suffix(".lock"), beat_s=beat_s, free_s=1.0)
        self.loop = Loop(
            Escalations(share),
            planner,
            self.book,
            self.seat,
            self.outcomes.append,
            receipt_s=receipt_s,
            now=lambda: self.clock,
            without=without,
        )

    def __enter__(self):
        if self.seat is not None:
            self.seat.__enter__().take(wait=False)
        self.book.open()
        return self

    def __exit__(self, *exc):
        if self.seat is not None:
            self.seat.__exit__(*exc)

    def once(self):
        return [outcome.what for outcome in self.loop.once()]


def shell(text: str) -> str:
    """A command that prints this."""
    return f"cat > /dev/null; printf '%s' '{text}'"


class TestLoop:
    def test_a_pending_escalation_is_answered_once_and_the_receipt_heard(self, share):
        escalate(share)
        planner = Said(RETRY)
        with played_rig(share) as rig, Desk(share, planner, receipt_s=20) as desk:
            assert desk.once() == ["answered"]
            assert desk.once() == []
        assert [value["action"] for value in rig.seen] == ["retry"]
        assert rig.seen[0]["by"] == "played"
        assert desk.outcomes[0].note == "1 task runs again."
        assert not (share / RECORD).exists()
        (question,) = planner.asked
        assert question.names["RIGBUS_PLAN_PATH"] == str(share / "plans" / "census")
        assert "print(1 / 0)" in question.user

    def test_an_answer_bears_the_name_of_the_planner_whatever_it_says_of_itself(self, share):
        escalate(share)
        with Desk(share, Said({**RETRY, "by": "ann, who owns the rig"})) as desk:
            assert desk.once() == ["answered"]
        assert answer_of(share)["by"] == "ann, who owns the rig, by played"

    def test_a_patch_is_made_for_the_revision_that_failed(self, share):
        fields = escalate(share)
        with Desk(share, Said(PATCH)) as desk:
            assert desk.once() == ["answered"]
        assert answer_of(share)["plan_sha256"] == fields["plan_sha256"]
        assert answer_of(share)["files"] == PATCH["files"]

    @pytest.mark.parametrize("status", ["answered", "applied", "human", "closed"])
    def test_only_pending_ones_are_asked_about(self, share, status):
        escalate(share, status=status)
        planner = Said(RETRY)
        with Desk(share, planner) as desk:
            assert desk.once() == []
        assert not planner.asked

    def test_one_that_has_an_answer_is_left_alone_after_a_restart(self, share):
        escalate(share)
        for planner in (Said(RETRY), Said({"action": "abandon"})):
            with Desk(share, planner) as desk:
                desk.once()
        assert answer_of(share)["action"] == "retry"
        assert not planner.asked

    @pytest.mark.parametrize(
        "bad",
        [
            "I cannot help with that.",
            {"action": "explode"},
            {"action": "patch", "files": {"../../etc/passwd": "x"}},
            {"action": "patch", "files": {"plan.md": "no plan at all"}},
            {"escalation_id": OTHER, "action": "retry"},
            {"action": "retry", "shell": "rm -rf /"},
        ],
    )
    def test_a_bad_answer_is_given_back_once_with_its_error(self, share, bad):
        escalate(share)
        planner = Said(bad, RETRY)
        with Desk(share, planner) as desk:
            assert desk.once() == ["invalid", "answered"]
        assert answer_of(share)["action"] == "retry"
        previous = planner.asked[1].document["previous"]
        assert previous["problems"]
        assert previous["problems"][0] in planner.asked[1].user
        assert not (share.parent / "etc").exists()

    def test_two_bad_answers_hand_it_to_people(self, share):
        escalate(share)
        planner = Said("nonsense")
        with Desk(share, planner) as desk:
            assert desk.once() == ["invalid", "human"]
        assert answer_of(share)["action"] == "human"
        assert "could not be taken" in answer_of(share)["note"]
        assert len(planner.asked) == 2

    def test_what_the_rig_refuses_counts_as_a_bad_answer(self, share):
        escalate(share)
        problem = {"file": "answer.json", "what": "no task 'x' ended badly", "fix": "count did"}
        planner = Said({**RETRY, "tasks": ["x"]}, {**RETRY, "tasks": ["count"]})
        verdict = lambda value: [problem] if value["tasks"] == ["x"] else []  # noqa: E731
        with played_rig(share, verdict) as rig, Desk(share, planner, receipt_s=20) as desk:
            assert desk.once() == ["invalid", "answered"]
        assert [value["tasks"] for value in rig.seen] == [["x"], ["count"]]
        assert "no task 'x' ended badly" in planner.asked[1].user

    def test_failures_make_growing_pauses_and_lose_nothing(self, share):
        escalate(share)
        planner = Said(AskFailed("away"), AskFailed("away"), RETRY)
        with Desk(share, planner) as desk:
            assert desk.once() == ["failed"]
            assert desk.once() == []
            desk.clock += 31
            assert desk.once() == ["failed"]
            desk.clock += 31
            assert desk.once() == []
            desk.clock += 30
            assert desk.once() == ["answered"]
        assert len(planner.asked) == 3

    def test_a_failure_ends_the_look_so_that_a_dead_planner_is_not_asked_of_each(self, share):
        escalate(share)
        escalate(share, OTHER)
        planner = Said(AskFailed("away"))
        with Desk(share, planner) as desk:
            assert desk.once() == ["failed"]

    def test_the_budget_of_a_day_outlives_a_restart_and_ends_with_the_day(self, share):
        escalate(share)
        escalate(share, OTHER)
        for _ in range(2):
            with Desk(share, Said(RETRY), per_day=1) as desk:
                desk.once()
        assert answer_of(share, OTHER) is None
        with Desk(share, Said(RETRY), per_day=1) as desk:
            desk.clock += 86_400
            assert desk.once() == ["answered"]

    def test_a_dry_run_asks_and_writes_nothing(self, share):
        escalate(share)
        with Desk(share, Said(PATCH), dry=True) as desk:
            assert desk.once() == ["dry-run"]
        assert answer_of(share) is None
        assert desk.outcomes[0].answer["files"] == PATCH["files"]
        assert not (share / RECORD).exists()

    def test_bad_answers_to_a_dry_run_cost_questions_and_nothing_else(self, share):
        escalate(share)
        dry = Said("no", "no")
        with Desk(share, dry, dry=True) as desk:
            assert desk.once() == ["invalid", "human"]
        assert dry.asked[1].document["previous"]["answer"] == "no"
        with Desk(share, Said(AskFailed("away")), dry=True) as desk:
            assert desk.once() == ["failed"]
        planner = Said(RETRY)
        with Desk(share, planner) as desk:
            assert desk.book.left_today(desk.clock) == 47
            assert desk.once() == ["answered"]
        assert "previous" not in planner.asked[0].document

    def test_one_that_is_answered_while_the_planner_thinks_is_not_answered_again(self, share):
        escalate(share)

        class Slow(Said):
            def ask(self, question):
                put(share / FOLDER / f"{ID}.answer.json", {"escalation_id": ID, "action": "abandon"})
                return super().ask(question)

        with Desk(share, Slow(RETRY)) as desk:
            assert desk.once() == ["late"]
        assert answer_of(share)["action"] == "abandon"

    def test_who_has_lost_the_seat_while_it_thought_writes_nothing(self, share):
        escalate(share)

        class Robbed(Said):
            def ask(self, question):
                put(share / RECORD, {"id": "another", "beat": 1})
                return super().ask(question)

        with Desk(share, Robbed(RETRY), beat_s=60) as desk:  # no beat of ours may fall between
            assert desk.once() == ["lost"]
            with pytest.raises(Refused, match="taken"):
                desk.loop.forever()
        assert answer_of(share) is None
        assert json.loads((share / RECORD).read_bytes())["id"] == "another"

    def test_a_share_that_takes_no_answer_costs_growing_pauses_and_no_end(self, share, monkeypatch):
        escalate(share)
        planner = Said(RETRY)

        def full(*_):
            raise OSError(errno.ENOSPC, "No space left on device")

        with Desk(share, planner) as desk:
            with monkeypatch.context() as patched:
                patched.setattr(answering, "write", full)
                assert desk.once() == ["failed"]
                assert "No space left" in desk.outcomes[0].note
                assert desk.once() == []
                desk.clock += 31
                assert desk.once() == ["failed"]
                desk.clock += 31
                assert desk.once() == []
            desk.clock += 61
            assert desk.once() == ["answered"]
        assert len(planner.asked) == 3

    def test_a_plan_that_is_not_in_the_share_hinders_nothing(self, share):
        escalate(share, plan="../../etc", plan_sha256=None)
        escalate(share, OTHER, plan="gone", plan_sha256=None)
        with Desk(share, Said(RETRY)) as desk:
            assert desk.once() == ["answered", "answered"]


class TestBook:
    def test_a_damaged_one_is_no_licence_to_ask(self, tmp_path):
        file = tmp_path / "book.json"
        file.write_text("{}")
        with pytest.raises(ConfigError, match=r"book\.json is damaged"):
            Book(file, 5).open()

    def test_two_that_ask_at_the_same_time_ask_no_more_than_one_may(self, tmp_path):
        """`planner run` and `planner new` are processes of their own with one book."""
        books = [Book(tmp_path / "book.json", 40) for _ in range(4)]
        for book in books:
            book.open()
        with ThreadPoolExecutor(4) as pool:
            taken = pool.map(lambda book: sum(book.asks(0.0) for _ in range(20)), books)
            assert sum(taken) == 40
        books[0].failed(0.0)
        assert books[1].wait_s(0.0) == 30 and books[1].left_today(0.0) == 0

    def test_a_clock_that_was_set_back_pauses_no_longer(self, tmp_path):
        book = Book(tmp_path / "book.json", 5)
        book.open()
        assert book.failed(2_000_000_000.0) == 30
        assert book.wait_s(1_000_000_000.0) == 30
        assert [book.failed(0.0) for _ in range(12)][-1] == 3600

    def test_only_what_is_still_there_is_remembered(self, tmp_path):
        book = Book(tmp_path / "book.json", 5)
        book.open()
        book.invalid("a", ["x"], "y")
        book.keep_only(["b"])
        assert book.problems_of("a") == (0, [], "")


class TestSeat:
    def test_two_of_one_machine_exclude_each_other(self, share, tmp_path):
        with Seat(share, tmp_path / "lock") as first:
            first.take(wait=False)
            with Seat(share, tmp_path / "lock") as second, pytest.raises(Refused, match="on this machine"):
                second.take(wait=False)
            assert first.is_ours()
        assert not (share / RECORD).exists()

    def test_of_two_machines_the_one_whose_record_beats_keeps_it(self, share, tmp_path):
        with Seat(share, tmp_path / "a", beat_s=0.02) as first:
            first.take(wait=False)
            with (
                Seat(share, tmp_path / "b", free_s=60) as second,
                pytest.raises(Refused, match="another planner"),
            ):
                second.take(wait=False)
            assert first.is_ours()

    def test_a_record_that_does_not_beat_is_nobodys(self, share, tmp_path):
        put(share / RECORD, {"id": "gone", "host": "elsewhere", "boot": "x", "pid": 7, "beat": 3})
        with Seat(share, tmp_path / "b", free_s=0.3) as seat:
            seat.take(wait=True)
            assert seat.is_ours()

    def test_the_record_of_a_dead_process_of_this_machine_is_taken_at_once(self, share, tmp_path):
        code = (
            "import os, sys; from pathlib import Path; from rigbus.tools.planning.seat import Seat\n"
            "seat = Seat(Path(sys.argv[1]), Path(sys.argv[2])); seat.take(wait=False); os._exit(0)"
        )
        lock = str(tmp_path / "a")
        subprocess.run([sys.executable, "-c", code, str(share), lock], check=True, timeout=60)
        assert (share / RECORD).exists()
        if not Path("/proc/sys/kernel/random/boot_id").exists():
            pytest.skip("this kernel does not name its start")
        with Seat(share, tmp_path / "a", free_s=3600) as seat:
            seat.take(wait=False)
            assert seat.is_ours()

    def test_its_record_is_whole_from_its_first_moment(self, share, tmp_path, monkeypatch):
        named = []
        link = os.link

        def looked_at(src, dst):
            named.append((json.loads(Path(src).read_text())["pid"], os.path.lexists(dst)))
            link(src, dst)

        monkeypatch.setattr(os, "link", looked_at)
        with Seat(share, tmp_path / "a") as seat:
            seat.take(wait=False)
            assert named == [(os.getpid(), False)] and seat.is_ours()
            assert [p.name for p in (share / RECORD).parent.glob(".planner*")] == [".planner.json"]

    def test_who_waits_for_it_writes_nothing(self, share, tmp_path):
        put(share / RECORD, {"id": "other"})
        folder = (share / RECORD).parent
        before = folder.stat().st_mtime_ns
        with Seat(share, tmp_path / "a", free_s=60) as seat:
            assert seat._created() == (share / RECORD).read_bytes()
        assert folder.stat().st_mtime_ns == before

    def test_a_share_without_hard_links_has_a_seat_too(self, share, tmp_path, monkeypatch):
        def none(src, dst):
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", none)
        with Seat(share, tmp_path / "a", beat_s=60) as first:
            first.take(wait=False)
            assert first.is_ours()
            with Seat(share, tmp_path / "b", free_s=0.1) as second:
                second.take(wait=True)  # nothing beats: it is nobody's
                assert second.is_ours() and not first.is_ours()

    def test_a_record_that_somebody_removed_is_written_again(self, share, tmp_path):
        with Seat(share, tmp_path / "a", beat_s=0.02) as seat:
            seat.take(wait=False)
            (share / RECORD).unlink()
            wait_for(seat.is_ours, what="the record")

    def test_a_share_that_goes_and_comes_costs_the_seat_nothing_and_nothing_is_asked(self, share):
        escalate(share)
        planner = Said(RETRY)
        with Desk(share, planner) as desk:
            away = share.rename(share.with_name("away"))
            assert desk.seat.state() == "away"
            assert desk.once() == []
            away.rename(share)
            wait_for(desk.seat.is_ours, what="the record")
            assert desk.once() == ["answered"]
        assert len(planner.asked) == 1

    def test_a_record_of_nonsense_is_watched_like_any_other(self, share, tmp_path):
        (share / RECORD).write_bytes(b"\xff\x00{")
        with Seat(share, tmp_path / "b", free_s=0.3) as seat:
            seat.take(wait=False)
            assert seat.is_ours()


class TestVerb:
    def test_once_answers_and_ends_with_0_and_with_1_where_something_is_left(self, say, share):
        escalate(share)
        sign(share, 1e9)  # off: nobody waits for a receipt
        said = say("planner", "run", "--once", "--json", "--cmd", shell('{"action": "retry"}'))
        assert (said.code, said.json["outcome"], said.json["answer"]["action"]) == (0, "answered", "retry")
        escalate(share, OTHER)
        assert say("planner", "run", "--once", "--cmd", "exit 1").code == 1

    def test_it_wants_a_command_or_a_provider(self, say, share):
        assert say("planner", "run").code == 2
        assert say("planner", "run", "--cmd", "x", "--provider", "openai").code == 2
        assert say("planner", "run", "--provider", "openai").code == 2
        assert say("planner", "run", "--cmd", "x", "--shared", share.parent / "none").code == 4

    def test_the_schema_is_printed(self, say, share):
        assert "escalation_id" in say("planner", "schema").json["properties"]
        assert "files" in say("planner", "schema", "plan").json["properties"]

    def test_a_planner_that_is_killed_and_started_again_answers_each_once(self, share):
        ids = [f"20261121_0817{n:02d}_aaaaaaaa" for n in range(4)]
        for id_ in ids:
            escalate(share, id_)
        sign(share, 1e9)  # off: nobody waits for a receipt
        log = share.parent / "asked"
        command = f'echo "$RIGBUS_ESCALATION_ID" >> {log}; ' + shell('{"action": "retry"}')
        words = [sys.executable, "-m", "rigbus", "planner", "run", "--look", "0.1", "--cmd", command]
        first = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ)
        )
        try:
            wait_for(
                lambda: any(answer_of(share, id_) for id_ in ids), timeout_s=30 * slack(), what="an answer"
            )
        finally:
            first.send_signal(signal.SIGKILL)
            first.wait()
        second = subprocess.Popen(
            words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=dict(os.environ)
        )
        try:
            wait_for(
                lambda: all(answer_of(share, id_) for id_ in ids), timeout_s=30 * slack(), what="all answers"
            )
        finally:
            second.terminate()
            assert second.wait(30 * slack()) == 0
        assert not (share / RECORD).exists()
        asked = log.read_text().split()
        assert len(asked) <= len(ids) + 1
        assert set(asked) == set(ids)

    def test_of_two_planners_on_one_folder_one_answers(self, share):
        for n in range(3):
            escalate(share, f"20261121_0817{n:02d}_aaaaaaaa")
        log = share.parent / "asked"
        command = f'echo "$RIGBUS_ESCALATION_ID" >> {log}; ' + shell('{"action": "retry"}')
        both = [
            subprocess.Popen(
                [sys.executable, "-m", "rigbus", "planner", "run", "--once", "--cmd", command],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, "RIGBUS_STATE": str(share.parent / f"state{n}")},
            )
            for n in range(2)
        ]
        sign(share, 1e9)
        codes = [process.wait(60 * slack()) for process in both]
        assert sorted(codes) in ([0, 0], [0, 8])
        assert len(log.read_text().split()) == 3
