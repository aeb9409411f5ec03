"""The DEALER link: greeting, retries on a new socket, and what it does without a broker."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from busparts import ScriptedBroker, wait_until
from helpers import free_endpoint, slack

from rigbus.bus.client import link as link_module
from rigbus.bus.client.link import Connection, new_session
from rigbus.bus.errors import (
    BadFrame,
    Busy,
    Conflict,
    DefinitionError,
    LeaseLost,
    NotFound,
    Refused,
    RigbusError,
    Unreachable,
    WrongThread,
)
from rigbus.bus.wire import MAX_FRAME_BYTES, Verb, encode


@pytest.fixture
def endpoint(rig_dir: Path) -> str:
    return free_endpoint(rig_dir)


@pytest.fixture
def broker(endpoint: str) -> Iterator[ScriptedBroker]:
    broker = ScriptedBroker(endpoint)
    yield broker
    broker.stop()


@pytest.fixture
def link(endpoint: str) -> Iterator[Connection]:
    link = Connection(endpoint, role="client")
    yield link
    link.close()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "FIRST_TRY_S", 0.15)
    monkeypatch.setattr(link_module, "HELLO_TIMEOUT_S", 0.15)


def test_connect_says_who_it_is_and_returns_the_welcome(broker: ScriptedBroker, endpoint: str) -> None:
    extra = {"resume": [[1, 2]]}
    link = Connection(endpoint, role="worker", name="worker-1", hello_extra=lambda: extra)
    welcome = link.connect(5)
    hello = broker.hellos[0].header
    assert welcome["incarnation"] == 1
    assert (hello["role"], hello["name"], hello["session"]) == ("worker", "worker-1", link.session)
    assert hello["resume"] == [[1, 2]]
    assert hello["proto"] == [1, 0]
    link.close()


def test_session_ids_are_32_hex_digits_and_differ() -> None:
    first, second = new_session(), new_session()
    assert first != second
    assert len(first) == 32
    assert int(first, 16) >= 0


def test_without_a_broker_it_says_so_in_time_and_nothing_is_queued(link: Connection, endpoint: str) -> None:
    begun = time.monotonic()
    with pytest.raises(Unreachable, match="rigbus up"):
        link.connect(0.2)
    assert time.monotonic() - begun < 4 * slack()
    assert not link.send(Verb.RENEW, {})
    late = ScriptedBroker(endpoint)
    link.connect(5)
    assert late.seen == []  # the RENEW above reached nobody
    late.stop()


def test_a_broker_that_comes_late_is_greeted(link: Connection, endpoint: str) -> None:
    link.tend()
    assert not link.ready
    assert link.interest & zmq.POLLOUT
    broker = ScriptedBroker(endpoint)
    assert link.poll(5)
    envelope = link.recv()
    assert envelope is not None
    assert envelope.verb is Verb.WELCOME
    assert link.ready
    assert not link.interest & zmq.POLLOUT
    broker.stop()


def test_an_unanswered_hello_is_said_again_on_a_new_socket(
    hasty: None, broker: ScriptedBroker, link: Connection
) -> None:
    broker.silent = True
    with pytest.raises(Unreachable):
        link.connect(0.3)
    broker.silent = False
    link.connect(5)
    assert link.ready


def test_a_request_gets_its_own_answer_and_keeps_the_pushes(broker: ScriptedBroker, link: Connection) -> None:
    link.connect(5)
    link.recv()
    broker.answers[Verb.QUERY] = lambda e: [(Verb.OK, {"what": e.header["what"]}, [b"x"])]
    broker.push(Verb.ENDED, {"id": "a"})
    wait_until(lambda: link.poll(0.1))
    answer = link.request(Verb.QUERY, {"what": "status"})
    assert answer.header == {"what": "status"}
    assert list(answer.body) == [b"x"]
    push = link.recv()
    assert push is not None
    assert push.header == {"id": "a"}
    assert link.recv() is None


def test_a_lost_answer_is_asked_again_with_the_same_id(
    broker: ScriptedBroker, link: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link_module, "FIRST_TRY_S", 0.15)
    link.connect(5)
    tries: list[bytes] = []

    def answer(envelope: link_module.Envelope) -> list:  # type: ignore[type-arg]
        tries.append(envelope.corr)
        return [] if len(tries) < 3 else [(Verb.OK, {"n": len(tries)}, [])]

    broker.answers[Verb.QUERY] = answer
    said = link.request(Verb.QUERY, {"what": "status"}, timeout_s=20).header
    assert said["n"] >= 3  # more where an answer came later than it was waited for
    assert len(set(tries)) == 1
    assert len(broker.hellos) == len(tries)  # each try on a socket of its own
    assert len({h.header["session"] for h in broker.hellos}) == 1
    assert len({h.peer for h in broker.hellos}) == len(tries)


def test_a_request_that_is_never_answered_ends_at_its_deadline(
    hasty: None, broker: ScriptedBroker, link: Connection
) -> None:
    link.connect(5)
    begun = time.monotonic()
    with pytest.raises(Unreachable, match="QUERY"):
        link.request(Verb.QUERY, {"what": "status"}, timeout_s=0.4)
    assert 0.3 < time.monotonic() - begun < 4 * slack()


def test_a_forgotten_session_greets_again_and_asks_again(broker: ScriptedBroker, link: Connection) -> None:
    link.connect(5)
    broker.answers[Verb.QUERY] = lambda e: [(Verb.OK, {}, [])]
    broker.forget_sessions()
    link.request(Verb.QUERY, {"what": "status"}, timeout_s=5)
    assert link.generation == 2
    assert len(broker.hellos) == 2


def test_the_owner_sees_a_second_welcome(broker: ScriptedBroker, link: Connection) -> None:
    link.connect(5)
    assert link.recv() is not None
    broker.forget_sessions()
    link.send(Verb.STARTED, {"tokens": []})

    def welcomed() -> bool:
        envelope = link.recv()
        return envelope is not None and envelope.verb is Verb.WELCOME

    wait_until(welcomed, "the second WELCOME")


def test_a_restarted_broker_gets_nothing_old(hasty: None, endpoint: str) -> None:
    first = ScriptedBroker(endpoint)
    link = Connection(endpoint, role="client")
    link.connect(5)
    first.stop()
    wait_until(lambda: not link.send(Verb.CANCEL, {"ids": ["old"]}), "the loss of the broker")
    for _ in range(5):
        assert not link.send(Verb.CANCEL, {"ids": ["old"]})
    second = ScriptedBroker(endpoint)
    second.answers[Verb.QUERY] = lambda e: [(Verb.OK, {}, [])]
    link.request(Verb.QUERY, {"what": "status"}, timeout_s=10)
    assert Verb.CANCEL not in second.verbs()
    link.close()
    second.stop()


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((Verb.BUSY, {"retry_after_s": 2.5, "message": "full"}), Busy),
        ((Verb.CONFLICT, {"key": "k", "message": "other content"}), Conflict),
        ((Verb.ERROR, {"code": "not_found", "message": "no task"}), NotFound),
        ((Verb.ERROR, {"code": "refused", "message": "no"}), Refused),
        ((Verb.ERROR, {"code": "definition", "message": "cycle", "what": "task 'a'"}), DefinitionError),
        ((Verb.ERROR, {"code": "stale_token", "message": "another attempt runs"}), LeaseLost),
        ((Verb.ERROR, {"code": "bad_frame", "message": "broken"}), BadFrame),
        ((Verb.ERROR, {"code": "from the future", "message": "?"}), RigbusError),
    ],
)
def test_what_the_broker_refuses_is_a_named_error(
    broker: ScriptedBroker,
    link: Connection,
    answer: tuple[Verb, dict[str, object]],
    error: type[RigbusError],
) -> None:
    link.connect(5)
    broker.answers[Verb.SUBMIT] = lambda e: [(*answer, [])]
    with pytest.raises(error, match=str(answer[1]["message"]).replace("?", r"\?")) as caught:
        link.request(Verb.SUBMIT, {}, timeout_s=5)
    if isinstance(caught.value, Busy):
        assert caught.value.retry_after_s == 2.5


def test_another_protocol_version_is_refused_at_once(broker: ScriptedBroker, link: Connection) -> None:
    broker.answers[Verb.HELLO] = lambda e: [(Verb.ERROR, {"code": "version", "message": "speaks 2"}, [])]
    with pytest.raises(Refused, match="speaks 2"):
        link.connect(5)


def test_a_broker_with_too_many_sessions_is_busy_and_is_greeted_again(
    broker: ScriptedBroker, link: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rigbus.bus.client.link.HELLO_TIMEOUT_S", 0.2)
    busy = {"bound": "sessions", "message": "4000 sessions are open", "retry_after_s": 6.0}
    broker.answers[Verb.HELLO] = lambda e: [(Verb.BUSY, busy, [])]
    with pytest.raises(Busy, match="4000 sessions") as caught:
        link.connect(5)
    assert caught.value.retry_after_s == 6.0
    del broker.answers[Verb.HELLO]
    assert link.connect(5)["incarnation"] == 1


def test_a_question_among_too_many_is_asked_again(broker: ScriptedBroker, link: Connection) -> None:
    answers = iter(
        [(Verb.BUSY, {"bound": "requests", "retry_after_s": 0.1, "message": "too many"}), (Verb.OK, {"x": 1})]
    )
    broker.answers[Verb.QUERY] = lambda e: [(*next(answers), [])]
    assert link.request(Verb.QUERY, {"what": "status"}, timeout_s=10).header == {"x": 1}
    busy = {"bound": "requests", "retry_after_s": 60.0, "message": "too many"}
    broker.answers[Verb.QUERY] = lambda e: [(Verb.BUSY, busy, [])]
    with pytest.raises(Busy, match="too many"):  # at once: it is to come again after more than its time
        link.request(Verb.QUERY, {"what": "status"}, timeout_s=4)


def test_a_broker_of_another_major_version_is_asked_again_seldom_and_said_once(
    broker: ScriptedBroker,
    link: Connection,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(link_module, "REFUSED_S", 0.3)
    broker.answers[Verb.HELLO] = lambda e: [(Verb.ERROR, {"code": "version", "message": "speaks 2"}, [])]
    for _ in range(2):
        with pytest.raises(Refused, match="speaks 2"):
            link.connect(5)
    assert len(broker.hellos) == 1, "it knows"
    wait_until(lambda: [link.tend(), link.recv(), len(broker.hellos) >= 3][-1], "more HELLOs")
    assert caplog.text.count("stays idle and asks again") == 1
    del broker.answers[Verb.HELLO]  # it was updated
    wait_until(lambda: [link.tend(), link.recv(), link.ready][-1], "WELCOME")
    assert link.refused == ""


def test_frames_of_another_major_version_are_understood_as_that(
    broker: ScriptedBroker, link: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode_as_2(*args: object, **how: object) -> list[bytes]:
        return [b"RIG2", *encode(*args, **how)[1:]]  # type: ignore[arg-type]

    monkeypatch.setattr("busparts.encode", encode_as_2)
    broker.answers[Verb.HELLO] = lambda e: [
        (Verb.ERROR, {"code": "whatever", "message": "use version 2"}, [])
    ]
    with pytest.raises(Refused, match="use version 2"):
        link.connect(5)


def test_a_superseded_peer_does_not_greet_again(broker: ScriptedBroker, endpoint: str) -> None:
    link = Connection(endpoint, role="worker", name="worker-1")
    link.connect(5)
    broker.push(Verb.BYE, {"reason": "superseded"})
    wait_until(lambda: link.recv() and link.superseded, "BYE")
    assert not link.send(Verb.RENEW, {})
    with pytest.raises(Refused, match="worker-1"):
        link.request(Verb.QUERY, {"what": "status"}, timeout_s=5)
    assert len(broker.hellos) == 1
    link.close()


def test_another_thread_is_refused_by_name(broker: ScriptedBroker, link: Connection) -> None:
    link.connect(5)
    errors: list[BaseException] = []

    def intrude() -> None:
        try:
            link.send(Verb.RENEW, {})
        except WrongThread as e:
            errors.append(e)

    thread = threading.Thread(target=intrude)
    thread.start()
    thread.join()
    assert "open one in each thread" in str(errors[0])


def test_an_oversize_message_is_refused_here_and_the_link_lives(
    broker: ScriptedBroker, link: Connection
) -> None:
    link.connect(5)
    with pytest.raises(BadFrame, match="limit"):
        link.send(Verb.SUBMIT, {}, [b"x" * (MAX_FRAME_BYTES + 1)])
    assert link.send(Verb.RENEW, {})
    wait_until(lambda: Verb.RENEW in broker.verbs(), "the RENEW behind it")


def test_the_largest_frame_passes(broker: ScriptedBroker, link: Connection) -> None:
    link.connect(5)
    broker.answers[Verb.QUERY] = lambda e: [(Verb.OK, {}, [bytes(MAX_FRAME_BYTES)])]
    answer = link.request(Verb.QUERY, {}, [bytes(MAX_FRAME_BYTES)], timeout_s=5)
    assert len(answer.body[0]) == MAX_FRAME_BYTES


def test_close_says_bye_and_can_be_said_twice(broker: ScriptedBroker, link: Connection) -> None:
    link.connect(5)
    link.close()
    link.close()
    wait_until(lambda: Verb.BYE in broker.verbs(), "BYE")
    with pytest.raises(Unreachable, match="closed"):
        link.send(Verb.RENEW, {})


def test_a_bad_endpoint_is_named(rig_dir: Path) -> None:
    link = Connection("nonsense", role="client")
    with pytest.raises(Unreachable, match="nonsense"):
        link.connect(1)
    link.close()
