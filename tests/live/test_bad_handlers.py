"""Handlers that fail, hang, lie and die: each is named, its neighbours finish, the rig stays up."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Processes, wait_for

from rigbus import Client, Task
from rigbus.agents.base import load_agent
from rigbus.agents.testing import Rig
from rigbus.bus.client.work import Progress, Result
from rigbus.bus.errors import TaskFailed

AGENTS = Path(__file__).with_name("bad_agents.py")
Odd, Stream, Stuck, Apart = (load_agent(f"{AGENTS}:{name}") for name in ("Odd", "Stream", "Stuck", "Apart"))


@pytest.fixture(scope="module")
def odd() -> Iterator[Rig]:
    """One rig for the handlers that must not end their agent."""
    with Rig.running() as rig:
        rig.add(Odd)
        rig.add(Apart)
        yield rig


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file in which handlers say what they did."""
    return tmp_path / "mark"


def lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []


def run(rig: Rig, type_: str, payload: dict[str, Any] | None = None, **options: Any) -> Result:
    """Submit one task and wait for its end, good or bad."""
    ids = rig.bus.submit([Task(type=type_, payload=payload or {}, **options)])
    return next(iter(rig.bus.results(ids, timeout_s=30)))


def submit(rig: Rig, type_: str, payload: dict[str, Any], **options: Any) -> str:
    return rig.bus.submit([Task(type=type_, payload=payload, **options)])[0]


def end_of(rig: Rig, id_: str, timeout_s: float = 30.0) -> Result:
    return next(iter(rig.bus.results([id_], timeout_s=timeout_s)))


def row_of(rig: Rig, id_: str) -> dict[str, Any]:
    row: dict[str, Any] = rig.bus.query("task", id=id_)["rows"][0]
    return row


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    except OSError:
        return False


# ---------------------------------------------------------------- what is raised


def test_an_exception_is_retried_by_the_policy_and_each_attempt_keeps_its_traceback(
    odd: Rig, mark: Path
) -> None:
    result = run(odd, "odd.fail", {"mark": str(mark)}, policy={"task": 4, "backoff_s": 0.01})
    assert (result.ok, result.error_class, result.attempts) == (False, "task", 4)
    assert lines(mark) == ["1", "2", "3", "4"]
    said = str(result.error)
    assert said.splitlines()[0] == "Traceback (most recent call last):"
    assert "in _deeper" in said
    assert said.endswith("LookupError: the shelf is empty")
    attempts = odd.bus.query("task", id=result.id)["attempts"]
    assert [a["n"] for a in attempts] == [1, 2, 3, 4]
    assert all("LookupError" in a["error"] and a["class"] == "task" for a in attempts)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("surrogate", "no file caf"),
        ("huge", "xxx"),
        ("exit", "tried to end its process"),
        ("interrupt", "KeyboardInterrupt"),
        ("recursion", "RecursionError"),
        ("unprintable", "_Unprintable"),
    ],
)
def test_no_exception_ends_the_agent(odd: Rig, kind: str, said: str) -> None:
    pid = odd.call("odd.pid")
    result = run(odd, "odd.raise", {"kind": kind}, max_attempts=1)
    assert (result.state, result.error_class, result.attempts) == ("dead", "task", 1)
    assert said in str(result.error)
    assert odd.call("odd.pid") == pid


# ---------------------------------------------------------------- what is sent and returned


@pytest.mark.parametrize(
    ("payload", "field", "said"),
    [
        ({"when": "2026-01-01"}, "count", "required"),
        ({"count": "many", "when": "2026-01-01"}, "count", "'many'"),
        ({"count": 1, "when": "yesterday"}, "when", "'yesterday'"),
        ({"count": 1, "when": "2026-01-01", "tags": ["a", 5]}, "tags.1", "string"),
        ({"count": 1, "when": "2026-01-01", "tag": []}, "tag", "xtra"),
    ],
)
def test_a_wrong_payload_names_its_field_and_is_never_tried_again(
    odd: Rig, payload: dict[str, Any], field: str, said: str
) -> None:
    result = run(odd, "odd.typed", payload)
    assert (result.ok, result.error_class, result.attempts) == (False, "definition", 1)
    assert f'odd.typed: field "{field}"' in str(result.error)
    assert said in str(result.error)


@pytest.mark.parametrize("payload", [[1, 2], "text", 5, b"\xff\xc1"])
def test_a_payload_that_is_no_map_is_a_definition_error(odd: Rig, payload: Any) -> None:
    result = run(odd, "odd.typed", payload)
    assert (result.ok, result.error_class, result.attempts) == (False, "definition", 1)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("object", "object"),
        ("set", "set"),
        ("datetime", "datetime"),
        ("int keys", "int"),
        ("long int", "int"),
        ("surrogate", "surrogate"),
        ("loop", ""),
        ("generator", "generator"),
    ],
)
def test_a_value_that_is_not_plain_data_is_a_definition_error_that_names_it(
    odd: Rig, kind: str, said: str
) -> None:
    result = run(odd, "odd.return", {"kind": kind})
    assert (result.ok, result.error_class, result.attempts) == (False, "definition", 1)
    assert "the handler returned what cannot be sent" in str(result.error)
    assert said in str(result.error).lower()


def test_ten_megabytes_come_back_equal_and_travel_by_reference(odd: Rig) -> None:
    size = 10_000_000
    assert odd.call("odd.big", {"size": size}) == b"0123456789" * (size // 10)
    ids = odd.bus.submit([Task(type="odd.big", payload={"size": size})])
    end_of(odd, ids[0])
    assert odd.bus.query("task", id=ids[0])["rows"][0]["ref"]["bytes"] >= size
    # A client that does not see the state folder gets it piece by piece.
    with Client(f"ipc://{_socket(odd)}") as far:
        (result,) = far.results(ids, timeout_s=20)
    assert result.value == b"0123456789" * (size // 10)


def _socket(rig: Rig) -> Path:
    from rigbus.bus.paths import rig_paths

    return rig_paths(rig.state).runtime / "commands"


def test_a_value_over_the_limit_is_a_definition_error(odd: Rig) -> None:
    result = run(odd, "odd.big", {"size": 80 << 20})
    assert (result.error_class, result.attempts) == ("definition", 1)
    assert "write a file, return its path" in str(result.error)


@pytest.mark.parametrize("kind", ["note", "object", "nan", "big"])
def test_odd_progress_never_ends_the_agent(odd: Rig, kind: str) -> None:
    pid = odd.call("odd.pid")
    result = run(odd, "odd.say", {"kind": kind}, max_attempts=1)
    assert result.state in {"done", "dead"}
    if not result.ok:
        assert result.error_class in {"definition", "task"}
    assert odd.call("odd.pid") == pid


def test_a_handler_that_breaks_its_process_does_not_break_its_agent(odd: Rig) -> None:
    pid = odd.call("odd.pid")
    assert run(odd, "odd.close").ok
    assert odd.call("odd.pid") == pid


# ---------------------------------------------------------------- calls


def test_a_cancel_reaches_a_handler_that_waits_for_an_answer_and_what_it_waits_for(
    odd: Rig, mark: Path
) -> None:
    pid = odd.call("odd.pid")
    outer = submit(odd, "odd.asks", {"type": "odd.polite", "payload": {"mark": str(mark)}})
    wait_for(lambda: "begun" in lines(mark), what="the inner handler")
    odd.bus.cancel([outer])
    result = end_of(odd, outer, 20.0)
    assert result.state == "cancelled"
    wait_for(lambda: "tidied" in lines(mark), timeout_s=15, what="the end of the inner handler")
    batch = row_of(odd, outer)["batch"]
    wait_for(
        lambda: {row["state"] for row in odd.bus.query("tasks", batch=batch)["rows"]} == {"cancelled"},
        what="both to be recorded",
    )
    assert odd.call("odd.pid") == pid


def test_a_call_that_is_not_answered_in_time_fails_its_handler_and_ends_with_it(odd: Rig, mark: Path) -> None:
    payload = {"type": "odd.polite", "payload": {"mark": str(mark)}, "limit_s": 3.0}
    result = run(odd, "odd.asks", payload, max_attempts=1)
    assert (result.state, result.error_class) == ("dead", "task")
    assert "WaitTimeout" in str(result.error)
    wait_for(lambda: "tidied" in lines(mark), timeout_s=15, what="the end of the call that nobody waits for")


def test_a_failed_call_raises_in_its_handler_with_the_inner_reason(odd: Rig) -> None:
    result = run(odd, "odd.asks", {"type": "odd.fail", "payload": {}}, max_attempts=1)
    assert result.error_class == "task"
    assert "TaskFailed" in str(result.error)
    assert "the shelf is empty" in str(result.error)


def test_a_call_that_is_too_deep_is_named_and_nothing_deadlocks(odd: Rig) -> None:
    assert odd.call("odd.deeper", {"n": 8}) == 8
    with pytest.raises(TaskFailed, match="call depth"):
        odd.call("odd.deeper", {"n": 12}, timeout_s=20, max_attempts=1)
    assert odd.call("odd.deeper", {"n": 8}) == 8, "a slot was not given back"


def test_a_handler_that_asks_something_else_the_second_time_is_told_so(odd: Rig, mark: Path) -> None:
    result = run(odd, "odd.fickle", {"mark": str(mark)}, max_attempts=2, backoff_s=0.01)
    assert lines(mark) == ["1", "2"]
    assert not result.ok
    assert "non-deterministic" in str(result.error)


# ---------------------------------------------------------------- cancels


def test_a_handler_that_looks_at_cancelled_ends_at_once_and_may_tidy_up(odd: Rig, mark: Path) -> None:
    id_ = submit(odd, "odd.polite", {"mark": str(mark)})
    wait_for(lambda: lines(mark) == ["begun"], what="its start")
    odd.bus.cancel([id_])
    assert end_of(odd, id_, 20.0).state == "cancelled"
    assert lines(mark) == ["begun", "tidied"]


def test_a_cancel_ends_an_async_handler_at_its_await(odd: Rig, mark: Path) -> None:
    id_ = submit(odd, "odd.async", {"mark": str(mark)})
    wait_for(lambda: lines(mark) == ["begun"], what="its start")
    odd.bus.cancel([id_])
    assert end_of(odd, id_, 20.0).state == "cancelled"
    assert lines(mark) == ["begun", "tidied"]


def test_a_timeout_ends_handlers_that_listen_and_their_agent_goes_on(odd: Rig, mark: Path) -> None:
    pid = odd.call("odd.pid")
    asleep = run(odd, "odd.async", {"mark": str(mark)}, timeout_s=0.3, max_attempts=1)
    assert (asleep.state, asleep.error_class) == ("dead", "task")
    assert "timed out after 0.3 s" in str(asleep.error)
    listens = run(odd, "odd.patient", max_attempts=1)
    assert "timed out after 0.3 s" in str(listens.error)
    waits = run(
        odd,
        "odd.asks",
        {"type": "odd.polite", "payload": {"mark": str(mark)}},
        timeout_s=0.3,
        max_attempts=1,
    )
    assert "timed out after 0.3 s" in str(waits.error)
    assert odd.call("odd.pid") == pid, "the agent was restarted for a handler that had ended"


# ---------------------------------------------------------------- isolated


@pytest.mark.parametrize("end", ["timeout", "cancel"])
def test_an_isolated_handler_is_killed_with_all_its_children(odd: Rig, mark: Path, end: str) -> None:
    limit = {"timeout_s": 4.0} if end == "timeout" else {}
    id_ = submit(odd, "apart.family", {"mark": str(mark)}, max_attempts=1, **limit)
    wait_for(lambda: "ready" in lines(mark), what="its children")
    children = [int(line) for line in lines(mark) if line.isdigit()]
    assert len(children) == 3
    if end == "cancel":
        odd.bus.cancel([id_])
    result = end_of(odd, id_, 20.0)
    assert result.state == ("cancelled" if end == "cancel" else "dead")
    assert not [pid for pid in children if alive(pid)], "a child outlived its attempt's end"


@pytest.mark.parametrize("type_", ["apart.lock", "apart.deaf"])
def test_an_isolated_handler_that_listens_to_nothing_is_killed_alone(
    odd: Rig, mark: Path, type_: str
) -> None:
    pid = odd.call("odd.pid")
    apart = odd.pid("apart-1")
    result = run(odd, type_, {"mark": str(mark)}, timeout_s=3.0, max_attempts=1)
    assert (result.state, result.error_class) == ("dead", "task")
    assert "timed out after 3 s" in str(result.error)
    assert lines(mark) == ["ready"]
    assert (odd.call("odd.pid"), odd.pid("apart-1")) == (pid, apart)
    assert alive(apart)


def test_an_isolated_handler_that_ends_its_process_is_named(odd: Rig) -> None:
    result = run(odd, "apart.exit", max_attempts=1, policy={"crash": 1})
    assert not result.ok
    assert "7" in str(result.error)


def test_an_isolated_handler_may_print_without_end(odd: Rig) -> None:
    assert run(odd, "apart.print", {"n": 20_000}).value == "printed"


# ---------------------------------------------------------------- progress


@pytest.fixture
def streaming(rig: Rig) -> Rig:
    rig.add(Stream)
    return rig


def test_a_flood_of_progress_arrives_whole_and_in_order(streaming: Rig) -> None:
    seen = list(streaming.bus.stream("stream.flood", {"n": 20_000}, timeout_s=30))
    assert isinstance(seen[-1], Result)
    assert seen[-1].value == 20_000
    news = [p for p in seen if isinstance(p, Progress)]
    assert [p.n for p in news] == list(range(len(news)))
    assert [i for p in news for i in p.data] == list(range(20_000))
    assert news[-1].pct == 1.0


def test_a_stream_goes_on_with_the_next_attempt_when_its_worker_is_killed(streaming: Rig, mark: Path) -> None:
    rig = streaming
    seen: list[Progress] = []
    result = None
    for news in rig.bus.stream("stream.numbers", {"stop": str(mark)}, timeout_s=40):
        if isinstance(news, Result):
            result = news
            break
        seen.append(news)
        if len(seen) == 5:
            rig.kill("stream-1")
            rig.add(Stream, name="stream-1")
        if news.attempt == 2 and news.n > 5:
            mark.touch()
    assert result is not None
    assert (result.ok, result.attempts) == (True, 2)
    second = [p for p in seen if p.attempt == 2]
    assert [p.attempt for p in seen] == sorted(p.attempt for p in seen)
    assert [p.n for p in second] == list(range(len(second))), "the next attempt's numbers start anew"
    assert [n for p in second for _, n in p.data] == list(range(result.value))


def test_a_reader_that_stops_early_cancels_the_stream(streaming: Rig, mark: Path) -> None:
    rig = streaming
    stream = rig.bus.stream("stream.numbers", {"stop": str(mark)}, timeout_s=30)
    first = next(stream)
    assert isinstance(first, Progress)
    stream.close()  # type: ignore[attr-defined]
    wait_for(lambda: row_of(rig, first.id)["state"] == "cancelled", timeout_s=5, what="the cancel")
    assert rig.call("stream.pid", timeout_s=5) > 0


# ---------------------------------------------------------------- hangs


@pytest.fixture
def stuck(rig: Rig, processes: Processes) -> Rig:
    """Two agents of the same kind, as a user starts them: each under its own small parent."""
    for name in ("stuck-1", "stuck-2"):
        words = ["-m", "rigbus", "worker", "--agent", f"{AGENTS}:Stuck", "--state", rig.state, "--name", name]
        rig.parents = {**getattr(rig, "parents", {}), name: processes.python(*words)}  # type: ignore[attr-defined]
        rig.wait_joined(name)
    rig.said = lambda name: processes.output(rig.parents[name])  # type: ignore[attr-defined]
    return rig


def test_a_hanging_handler_is_named_its_neighbour_finishes_and_its_agent_starts_anew(
    stuck: Rig, mark: Path, tmp_path: Path
) -> None:
    rig = stuck
    go = tmp_path / "go"
    ids = [submit(rig, "stuck.neighbour", {"mark": str(mark), "go": str(go)}) for _ in range(2)]
    wait_for(lambda: len(lines(mark)) == 2, what="one neighbour on each agent")
    before = {row["id"]: row["pid"] for row in rig.bus.query("workers")["workers"]}
    hung = run(rig, "stuck.hang", max_attempts=1)
    assert (hung.state, hung.error_class) == ("dead", "task")
    assert "timed out after 0.5 s; its thread cannot be killed: use isolated=True" in str(hung.error)
    go.touch()
    results = list(rig.bus.results(ids, timeout_s=20))
    assert [(r.ok, r.attempts) for r in results] == [(True, 1)] * 2
    name = str(hung.worker)

    def anew() -> bool:
        return any(
            row["id"] == name and row["pid"] != before[name] and row["credit"]
            for row in rig.bus.query("workers")["workers"]
        )

    wait_for(anew, timeout_s=20, what=f"a fresh {name}")


def test_a_handler_that_holds_the_interpreter_is_killed_and_named_and_counts_as_a_crash_the_second_time(
    stuck: Rig, mark: Path, tmp_path: Path
) -> None:
    rig = stuck
    go, others = tmp_path / "go", tmp_path / "others"
    neighbours = [submit(rig, "stuck.neighbour", {"mark": str(others), "go": str(go)}) for _ in range(2)]
    wait_for(lambda: len(lines(others)) == 2, what="one neighbour on each agent")
    id_ = submit(rig, "stuck.lock", {"mark": str(mark)}, policy={"crash": 1})
    wait_for(lambda: lines(mark) == ["1"], what="the regex")
    # Whoever runs it stands still; work for the other agent goes on meanwhile.
    assert rig.call("stuck.pid", timeout_s=4) > 0
    result = end_of(rig, id_, 40.0)
    assert (result.state, result.error_class, result.attempts) == ("dead", "crash", 2)
    assert lines(mark) == ["1", "2"]

    def said() -> str:
        return str(rig.said("stuck-1") + rig.said("stuck-2"))  # type: ignore[attr-defined]

    wait_for(lambda: said().count("gave no sign of life") == 2, what="both parents to end their agents")
    assert f"stuck.lock (task {id_})" in said()
    go.touch()
    results = list(rig.bus.results(neighbours, timeout_s=30))
    assert [r.ok for r in results] == [True, True]
    assert max(r.attempts for r in results) <= 3
