"""What the bridge's doors ask of the broker beside the usual: an id for a batch, and the hard end of a worker."""

from __future__ import annotations

import pytest
from harness import Harness, error_of, spec

from rigbus.bus.wire import Verb


@pytest.fixture
def rig() -> Harness:
    return Harness()


def submit(rig: Harness, key: str, **head: object) -> object:
    batch = {"key": key, "kind": "client", "name": "n", **head}
    return rig.client().ask(Verb.SUBMIT, {"batch": batch, "tasks": [spec("a")]}, [b""])


def test_a_batch_gets_the_id_that_was_asked_for(rig: Harness) -> None:
    answer = submit(rig, "k", want_id="nightly_1")
    assert answer.header["batch"] == "nightly_1"  # type: ignore[attr-defined]
    again = submit(rig, "k", want_id="nightly_1")
    assert again.header == answer.header | {"states": again.header["states"]}  # type: ignore[attr-defined]


def test_an_id_that_is_taken_is_a_conflict(rig: Harness) -> None:
    submit(rig, "k", want_id="nightly_1")
    assert submit(rig, "other", want_id="nightly_1").verb is Verb.CONFLICT  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "wanted", ["../../etc", "short", "", 5, ["nightly_1"], "x" * 65, "a/bcdefg", "nightly_1\n"]
)
def test_an_id_that_names_no_folder_is_refused(rig: Harness, wanted: object) -> None:
    answer = submit(rig, "k", want_id=wanted)
    assert error_of(answer) == "definition"  # type: ignore[arg-type]
    assert not rig.core.batches


def test_kill_is_passed_to_the_supervisor_with_the_pid(rig: Harness) -> None:
    rig.worker(name="w1")
    (worker,) = [s for s in rig.core.sessions.values() if s.role == "worker"]
    supervisor = rig.peer("supervisor")
    answer = rig.client().ask(Verb.CONTROL, {"action": "kill", "worker": "w1", "session": worker.id})
    assert answer.header == {"worker": "w1", "pid": worker.pid, "supervisors": 1}
    want = {"action": "kill", "worker": "w1", "pid": worker.pid}
    assert supervisor.take(Verb.CONTROL) == [want]


def test_kill_of_a_process_that_has_gone_hits_nobody(rig: Harness) -> None:
    rig.worker(name="w1")
    supervisor = rig.peer("supervisor")
    answer = rig.client().ask(Verb.CONTROL, {"action": "kill", "worker": "w1", "session": "0" * 32})
    assert answer.header["supervisors"] == 0
    assert supervisor.take(Verb.CONTROL) == []


def test_kill_without_a_supervisor_or_a_worker_is_refused(rig: Harness) -> None:
    person = rig.client()
    assert error_of(person.ask(Verb.CONTROL, {"action": "kill", "worker": "w1"})) == "not_found"
    rig.worker(name="w1")
    assert error_of(person.ask(Verb.CONTROL, {"action": "kill", "worker": "w1"})) == "refused"
