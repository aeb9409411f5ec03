"""A day of a Raspberry Pi that has nothing but the shared folder, at a rig that stays up: from the first plan in the morning
over a power cut at noon to an alert in the evening.

The steps are told in their order. All day every reader of the earlier system looks at everything (`lookout`), and the clock
of the Pi is wrong: an hour ahead in the morning, an hour behind in the afternoon. Nothing here asks the rig but by a file.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from typing import Any

import pi_scripts
import pytest
from drops import HEAD, task
from helpers import ROOT, Processes, short_folder, wait_for, written
from old_plan import write_old_plan
from pi_scripts import CpuAgent, archive_tasks, kill_plan_1, read_state, reset
from piday import ENDED, HOUR_S, WAIT_S, Day, PiTime
from rigs import LiveRig

sys.path.insert(0, str(ROOT / "tests" / "bridge"))

from pi import Dashboard, Review, status, status_task, submit
from pi.orders import answer, hand_task, receipt_of, request, signal

pytestmark = pytest.mark.live

SAMPLES = "logs/training_samples.jsonl"
RUN_SECOND = "python3 {PLAN_PATH}/scripts/second.py"
MENDED = "print('mended')\n"
BROKEN = "import sys\nprint('looking')\nsys.exit(3)\n"
PLANNER = """import json, os, sys
asked = json.load(sys.stdin)
plan = os.environ["RIGBUS_PLAN_PATH"]
script = open(os.path.join(plan, "scripts/second.py")).read()
print(json.dumps({"action": "patch", "files": {"scripts/second.py": script.replace("exit(3)", "exit(0)")}}))
"""


@pytest.fixture(scope="module")
def day(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    oracle = json.dumps([{"spec": str(ROOT / "tests/echomodel.py") + ":Echo", "name": "oracle"}])
    with short_folder() as folder, pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("pi")
        for module in ("pi.submit", "pi.orders", "pi_scripts"):
            patch.setattr(sys.modules[module], "datetime", PiTime)
        patch.setattr(PiTime, "ahead_s", HOUR_S)
        env = {
            "RIGBUS_AGENTS": oracle,
            "RIGBUS_BRIDGE__RECONCILE_S": "0.5",
            "RIGBUS_ESCALATION__COOLDOWN_S": "0",
            "TMPDIR": str(folder),  # of the module: it is started again in the middle of a test
        }
        processes = Processes(tmp_path_factory.mktemp("processes"))
        rig = LiveRig(folder, processes, workers=2, env=env)
        try:
            rig.start()
            wait_for((rig.shared / "config.json").exists, timeout_s=WAIT_S, what="config.json")
            made = Day(rig, home)
            with made.lookout:
                yield made
            if made.lit:
                assert rig.stop() == 0
        finally:
            processes.stop_all()


class TestMorning:
    def test_the_readers_find_a_rig_before_anything_was_done(self, day: Day) -> None:
        for folder in ("queue", "processing", "complete", "failed"):
            assert (day.shared / "tasks" / folder).is_dir()
        wait_for(
            lambda: any("worker-1" in line for line in status(day.config)), timeout_s=WAIT_S, what="worker-1"
        )
        wait_for(lambda: Dashboard(day.config).brain()["state"] == "ok", timeout_s=WAIT_S, what="the brain")
        wait_for(lambda: day.lookout.looks["files"] > 2, timeout_s=WAIT_S, what="the readers to look")

    def test_a_plan_by_each_door_is_seen_to_its_end(self, day: Day) -> None:
        fan = task("list", f"echo '{json.dumps({'items': [{'id': f'i{n}'} for n in range(6)]})}' > list.json")
        for n in range(6):
            day.once(f"each-i{n}")
        each = task(
            "each",
            f"echo each-{{ITEM.id}} >> {day.runs}",
            foreach="{BATCH_PATH}/list.json:items",
            depends_on="list",
        )
        inbox = day.drop("inbox_door", HEAD + fan + each + task("last", day.once("last"), depends_on="each"))

        at_home = write_old_plan(day.home / "home/pi/shared/plans/sensor_survey")
        shutil.copytree(at_home, day.shared / "plans/sensor_survey")
        with day.writing():
            order = submit(day.shared, at_home, {"LIMIT": 4, "UNIT": "kelvin"})
            day.touch(day.shared / f"tasks/queue/{order}.json")
        queue = day.accepted(day.shared / f"inbox/{order}.receipt.json", "sensor_survey")

        plan = day.plan(day.home / "verb_door", HEAD + task("one", day.once("verb")))
        said = json.loads(day.rigbus("submit", plan, "--wait", "--timeout", WAIT_S, "--json"))
        assert said["state"] == "complete", said
        day.batches[said["batch_id"]] = ("verb_door", "complete")

        for batch in (inbox, queue):
            assert day.batch(batch)["status"] == "complete"
            plan_name = day.batches[batch][0]
            wait_for(
                (day.shared / f"plans/{plan_name}/batches/{batch}/execution_stats.json").exists,
                timeout_s=WAIT_S,
                what="the summary",
            )
            assert Dashboard(day.config).ended(plan_name, batch).startswith("complete: ")
        done = day.until(f"tasks/complete/{order}.json")
        assert (done["result"]["success"], done["result"]["batch_id"]) == (True, queue)
        assert "read_sensor" in (status_task(day.config, next(iter(self.ids(day, queue)))) or "")
        rows = (day.shared / f"plans/sensor_survey/batches/{queue}/table.csv").read_text().splitlines()
        assert len(rows) == 4

    def ids(self, day: Day, batch: str) -> list[str]:
        lane = day.lane("tasks/complete", batch)
        return [fields["task_id"] for name, fields in lane.items() if name.startswith("read_sensor")]

    def test_tasks_written_by_hand_end_under_their_own_names(self, day: Day) -> None:
        shell = day.write(hand_task, type="shell", task_class="cpu", command=day.once("hand"))
        asks = day.write(hand_task, type="decide", prompt="red or old?")
        load = day.write(
            hand_task, type="meta", task_class="meta", command="load_llm", created_by="kill_plan"
        )
        assert day.ended(shell)["result"]["success"]
        assert day.ended(asks)["result"]["success"], day.ended(asks)["result"]
        said = day.ended(load)
        assert (said["status"], said["result"]["success"]) == ("failed", False)
        assert "rigbus up --model" in said["result"]["error"]

    def test_a_folder_without_ready_settles_and_a_file_of_lines_is_answered_line_by_line(
        self, day: Day
    ) -> None:
        """Both are copied without a mark of their end, with times that are an hour away."""
        settling = day.plan(day.shared / "inbox/unmarked", HEAD + task("one", day.once("unmarked")))
        lines = [
            {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}
            for name, body in (
                ("good", {"messages": [{"role": "user", "content": "hello"}]}),
                ("bad", {"messages": [{"role": "user", "content": "bad one"}]}),
                ("none", {"messages": []}),
            )
        ]
        file = day.shared / "inbox/night.jsonl"
        with day.writing(file):
            file.write_text("".join(json.dumps(line) + "\n" for line in lines) + "rubbish\n")
        day.accepted(settling.with_name("unmarked.receipt.json"), "unmarked")
        day.until("inbox/night.jsonl.receipt.json", lambda found: found.get("status") in ENDED)
        read = lambda end: [json.loads(line) for line in (day.shared / f"inbox/night.{end}.jsonl").open()]  # noqa: E731
        (good,) = read("results")
        assert good["custom_id"] == "good"
        assert good["response"]["body"]["choices"][0]["message"]["content"] == "echo hello"
        errors = {one["custom_id"]: one for one in read("errors")}
        assert set(errors) == {"bad", "none", None} and errors[None]["line"] == 4

    def test_of_two_batches_that_run_the_one_that_was_killed_ends(self, day: Day) -> None:
        plan = lambda n: HEAD + task("a", day.gated("two", f"two-{n}")) + task("b", "true", depends_on="a")  # noqa: E731
        one, other = day.drop("killed", plan("one"), ends="cancelled"), day.drop("spared", plan("other"))
        day.expected["two-one"] = 0
        for batch in (one, other):
            day.running(batch, "a")
        wait_for(lambda: {one, other} <= set(read_state(day.shared)["active_batches"]), timeout_s=WAIT_S)
        with day.writing(day.shared / "brain/state.json"):
            kill_plan_1(day.shared, one)  # and the files of both
        assert day.batch(one)["status"] == "cancelled"
        assert day.until(f"inbox/kill-{one}.receipt.json")["state"] == "accepted"
        wait_for(lambda: set(day.lane("tasks/failed", one)) == {"a", "b"}, timeout_s=WAIT_S, what="its files")
        day.running(other, "a")  # drawn again
        day.open("two")
        assert day.batch(other)["status"] == "complete"

    def test_signals_abort_a_task_kill_a_worker_and_stop_all_until_a_request_says_go_on(
        self, day: Day
    ) -> None:
        slow = task("a", day.gated("never", "aborted", 0), max_attempts=1)
        aborted = day.drop("aborted", HEAD + slow, ends="failed")
        again = day.drop("again", HEAD + task("a", day.gated("again", "again")))
        by = {batch: day.running(batch, "a") for batch in (aborted, again)}
        worker, id_ = by[aborted]["assigned_to"], by[aborted]["task_id"]
        self.signalled(day, worker, "abort", id_, "takes too long")
        batch = day.batch(aborted)
        day.batches[aborted] = ("aborted", batch["status"])
        wait_for(lambda: "a" in day.lane("tasks/failed", aborted), timeout_s=WAIT_S, what="its file")
        assert "takes too long" in day.lane("tasks/failed", aborted)["a"]["result"]["error"]

        assert "pid" in self.signalled(day, by[again]["assigned_to"], "kill")["note"]
        self.signalled(day, "all", "stop")
        wait_for(
            lambda: "a" in {**day.lane("tasks/queue", again), **day.lane("tasks/processing", again)},
            timeout_s=WAIT_S,
        )
        day.open("again")
        asked = day.write(request, "resume", worker="all")
        assert day.until(receipt_of(asked))["state"] == "accepted"
        assert day.batch(again)["status"] == "complete"

    def signalled(self, day: Day, *words: str) -> dict[str, Any]:
        path = day.write(signal, *words)
        said = day.until(path.with_name(f"{path.name}.receipt.json"))
        assert said["state"] == "accepted", said
        wait_for(lambda: not path.exists(), timeout_s=WAIT_S, what=f"{path.name} to be taken away")
        return said

    def test_a_task_moved_back_to_the_queue_runs_again_and_archived_files_stay_away(self, day: Day) -> None:
        began = day.home / "began"
        batch = day.drop("reset", HEAD + task("a", f"echo x >> {began}; {day.gated('reset', 'reset')}"))
        day.running(batch, "a")
        wait_for(lambda: written(began), timeout_s=WAIT_S, what="its first run")
        with day.writing():
            (moved,) = reset(day.shared)
            day.touch(day.shared / f"tasks/queue/{moved}.json")
        assert day.until(f"inbox/reset-{moved}.receipt.json")["state"] == "accepted"
        wait_for(lambda: began.read_text().split() == ["x", "x"], timeout_s=WAIT_S, what="its second run")
        day.open("reset")
        assert day.batch(batch)["status"] == "complete"
        wait_for(lambda: "a" in day.lane("tasks/complete", batch), timeout_s=WAIT_S, what="its file")
        with day.writing():
            archived = archive_tasks(day.shared)
        assert moved in archived

    def test_a_sample_is_rated_while_another_one_comes(self, day: Day) -> None:
        judged = lambda n: HEAD + task("greet", f"echo hello {n}", evaluate="friendly")  # noqa: E731
        samples = day.shared / SAMPLES
        first = day.drop("judged", judged(1))
        wait_for(lambda: samples.exists() and first in samples.read_text(), timeout_s=WAIT_S, what="a sample")
        review = Review(day.config)
        (line,) = review.unrated()
        day.rated = line.split()[0]
        second = day.drop("judged_too", judged(2))  # while the person thinks
        wait_for(lambda: second in samples.read_text(), timeout_s=WAIT_S, what="another sample")
        review.rate(day.rated, 5, "friendly indeed", "hello, dear")
        with day.writing(samples):
            review.save()
        assert second not in samples.read_text(), "the line that came meanwhile is lost, as ever"

    def test_a_broken_plan_is_mended_by_a_file_and_another_one_by_a_planner(self, day: Day) -> None:
        batches = {}
        for name in ("broken", "broken_too"):
            second = task("second", RUN_SECOND, depends_on="first", max_attempts=1)
            plan = HEAD + task("first", day.once(f"{name}-first")) + second
            plan += task("third", day.once(f"{name}-third"), depends_on="second")
            batches[name] = day.drop(name, plan, second=BROKEN)
        asked = {name: day.escalation(batch) for name, batch in batches.items()}
        for name, one in asked.items():
            assert (one["status"], one["source_task"]["name"]) == ("pending", "second")
            assert day.batch(batches[name])["status"] == "failed"
        path = day.write(answer, asked["broken"], "patch", files={"scripts/second.py": MENDED})
        said = day.until(receipt_of(path))
        assert said["state"] == "accepted", said
        script = day.home / "planner.py"
        script.write_text(PLANNER)
        day.rigbus("planner", "run", "--once", "--cmd", f"{sys.executable} {script}")
        for name, one in asked.items():
            assert day.batch(batches[name], "complete")["revision"] == 2
            path = f"brain/escalations/{one['escalation_id']}.json"
            assert day.until(path, lambda found: found["status"] in ("applied", "closed"))


class TestNoon:
    def test_a_power_cut_loses_nothing_and_what_the_pi_writes_meanwhile_is_done(self, day: Day) -> None:
        quick = "".join(task(f"q{n}", day.once(f"noon-q{n}")) for n in range(3))
        held = "".join(
            task(f"g{n}", day.gated("noon", f"noon-g{n}"), depends_on="q0, q1, q2") for n in range(2)
        )
        last = task("last", day.once("noon-last"), depends_on="g0, g1")
        noon = day.drop("noon", HEAD + quick + held + last)
        for name in ("g0", "g1"):
            day.running(noon, name)
        doomed = day.drop("noon_killed", HEAD + task("a", day.gated("never", "killed", 0)), ends="cancelled")
        wait_for(lambda: "a" in day.lane("tasks/queue", doomed), timeout_s=WAIT_S, what="a batch to wait")
        wait_for(lambda: self.ratings(day) == [5, None], timeout_s=WAIT_S, what="the lost line to be back")
        wait_for(lambda: {noon, doomed} <= set(read_state(day.shared)["active_batches"]), timeout_s=WAIT_S)
        with day.lookout.dark():
            day.cut_power()
            PiTime.ahead_s = -HOUR_S
            with day.writing(day.shared / "brain/state.json"):
                pi_scripts.kill_plan_2(day.shared, doomed)
                (day.shared / SAMPLES).unlink()
            folder = day.plan(day.shared / "inbox/dark_inbox", HEAD + task("one", day.once("dark-inbox")))
            (folder / "READY").touch()
            plan = day.plan(day.shared / "plans/dark_queue", HEAD + task("one", day.once("dark-queue")))
            with day.writing():
                order = submit(day.shared, plan)
            hand = day.write(hand_task, type="shell", task_class="cpu", command=day.once("dark-hand"))
            day.power_on()
        day.open("noon")
        day.accepted(day.shared / "inbox/dark_inbox.receipt.json", "dark_inbox")
        day.accepted(day.shared / f"inbox/{order}.receipt.json", "dark_queue")
        assert day.ended(hand)["result"]["success"]
        for batch, (_, ends) in day.batches.items():
            assert day.batch(batch)["status"] == ends
        assert day.until(f"inbox/kill-{doomed}.receipt.json")["state"] == "accepted"
        wait_for(lambda: self.ratings(day) == [5, None], timeout_s=WAIT_S, what="the samples to be back")
        (rated,) = (s for s in Review(day.config).samples if s["id"] == day.rated)
        assert (rated["human_rating"], rated["human_feedback"]) == (5, "friendly indeed")
        assert rated["preferred_response"] == "hello, dear"

    def ratings(self, day: Day) -> list[int | None]:
        samples = Review(day.config).samples if (day.shared / SAMPLES).exists() else []
        return sorted((s["human_rating"] for s in samples), key=str)


class TestAfternoon:
    @pytest.mark.parametrize("zone", ["PI-1", "PI+1"])
    def test_an_hour_of_difference_is_not_taken_for_a_dead_rig(self, day: Day, zone: str) -> None:
        states = lambda: {w["state"] for w in json.loads(day.rigbus("status", "--json", TZ=zone))["workers"]}  # noqa: E731
        assert states() <= {"busy", "idle"}
        wait_for(lambda: states() == {"idle"}, timeout_s=WAIT_S, what="the files of the workers to say idle")
        plan = day.plan(day.home / f"zone{zone}", HEAD + task("one", day.once(f"zone{zone}")))
        plan = plan.rename(plan.with_name("zone_" + ("ahead" if zone == "PI-1" else "behind")))
        said = json.loads(day.rigbus("submit", plan, "--wait", "--timeout", WAIT_S, "--json", TZ=zone))
        assert said["state"] == "complete"
        day.batches[said["batch_id"]] = (plan.name, "complete")

    def test_an_agent_that_takes_files_for_itself_is_refused(self, day: Day) -> None:
        held = [day.drop(f"held{n}", HEAD + task("a", day.gated("held", f"held{n}"))) for n in range(2)]
        for batch in held:
            day.running(batch, "a")
        wanted = day.drop("wanted", HEAD + task("a", day.once("wanted")))
        wait_for(lambda: "a" in day.lane("tasks/queue", wanted), timeout_s=WAIT_S, what="it to be claimable")
        agent = CpuAgent(day.shared)
        with day.writing():
            claimed = agent.claim(day.lane("tasks/queue", wanted)["a"]["task_id"])
        assert claimed is not None
        said = day.until(f"inbox/claim-{claimed['task_id']}.receipt.json")
        assert said["state"] == "refused"
        with day.writing():
            agent.finish(claimed, "done on the Pi")
        complete = day.shared / "tasks/complete"
        wait_for(
            lambda: list(complete.glob(f"{claimed['task_id']}.json.conflict-*")),
            timeout_s=WAIT_S,
            what="its result put aside",
        )
        day.open("held")
        for batch in (*held, wanted):
            assert day.batch(batch)["status"] == "complete"


class TestEvening:
    def test_an_alert_is_seen_and_acked(self, day: Day) -> None:
        batch = day.drop("doomed", HEAD + task("one", "echo no; exit 4", max_attempts=1), ends="failed")
        alerts = lambda: {p.stem: day.read(p) for p in (day.shared / "alerts").glob("*.json")}  # noqa: E731
        key = wait_for(
            lambda: next((k for k, a in alerts().items() if batch in k and a["state"] == "raised"), None),
            timeout_s=WAIT_S,
            what="an alert",
        )
        said = alerts()[key]
        assert (said["rule"], said["severity"]) == ("batch-failed", "critical")
        asked = day.write(request, "ack", key=key, by="pi", note="seen")
        assert day.until(receipt_of(asked))["state"] == "accepted"
        day.until(f"alerts/{key}.json", lambda found: found["state"] == "cleared")

        def raised_wrongly() -> list[str]:
            ends = {id_: ends for id_, (_, ends) in day.batches.items()}
            raised = [a["subject"] for a in alerts().values() if a["state"] == "raised"]
            return [id_ for id_ in raised if ends.get(id_, "failed") != "failed"]

        wait_for(
            lambda: not raised_wrongly(), timeout_s=WAIT_S, what="alerts of what is mended to be cleared"
        )
        path = day.write(answer, day.escalation(batch), "abandon", note="it was a test")
        assert day.until(receipt_of(path))["state"] == "accepted"

    def test_everything_that_was_ordered_has_an_end_with_a_reason(self, day: Day) -> None:
        shared = day.shared
        for lane in ("brain/private_tasks", "tasks/queue", "tasks/processing"):
            empty = lambda lane=lane: not list((shared / lane).glob("*.json"))  # noqa: E731
            wait_for(empty, timeout_s=WAIT_S, what=f"{lane} to be empty")
        none_active = lambda: read_state(shared)["active_batches"] == {}  # noqa: E731
        wait_for(none_active, timeout_s=WAIT_S, what="no batch to be active")
        assert {id_: day.batch(id_)["status"] for id_ in day.batches} == {
            id_: ends for id_, (_, ends) in day.batches.items()
        }
        counted = day.counted()
        assert {id_: counted[id_] for id_ in day.expected} == dict(day.expected)
        assert set(counted) <= set(day.expected)
        wait_for(
            lambda: set(day.batches) <= self.told(day), timeout_s=WAIT_S, what="the log to tell of each end"
        )
        files = [
            p
            for folder in ("complete", "failed", "archive")
            for p in (shared / "tasks" / folder).rglob("*.json")
        ]
        for path in files:
            fields = day.read(path)
            assert fields["result"]["success"] or fields["result"]["error"], path
        left = {p.name for p in (shared / "inbox").iterdir() if not p.name.startswith(".")}
        assert all(".receipt." in name or name.startswith("night.") for name in left), left
        assert all(".receipt." in p.name for p in (shared / "signals").iterdir())
        questions = (shared / "brain/escalations").glob("*_????????.json")
        for path in questions:
            day.until(path, lambda found: found["status"] != "pending")

    def told(self, day: Day) -> set[str]:
        """The batches of whose end the log of decisions tells."""
        log = [json.loads(line) for line in (day.shared / "logs/brain_decisions.log").open()]
        return {line["details"].get("batch_id") for line in log if line["type"].startswith("BATCH_")}

    def test_no_reader_ever_stumbled(self, day: Day) -> None:
        lookout = day.lookout
        with lookout.writing():
            assert not lookout.faults, "\n".join(lookout.faults[:5])
            fresh = Dashboard(day.config)
            assert lookout.board.failures() == fresh.failures()
            for batch in day.batches:
                assert lookout.board.chain(batch) == fresh.chain(batch)
        assert min(lookout.looks.values()) > 20
        assert len(lookout.completed) == len(set(lookout.completed)) > 20
