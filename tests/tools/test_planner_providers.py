"""Planners behind HTTP: both shapes over real sockets, and servers that refuse, stall, cut, babble or flood."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time

import pytest
from served import RawServer

from rigbus.bus.errors import ConfigError
from rigbus.tools.planning.asking import AskFailed, Question, object_in
from rigbus.tools.planning.provider import HttpPlanner, Patience

QUESTION = Question("answer", {}, "you are the planner", "what now", {"type": "object"})
ANSWER = {"action": "retry"}
PATIENCE = Patience(total_s=30, connect_s=10, silent_s=20, tries=3, backoff_s=0.01)
KEY = "sk-not-to-be-seen"


def http(body: bytes, status: str = "200 OK", *more: str, length: int | None = None) -> bytes:
    head = [f"HTTP/1.1 {status}", "Content-Type: application/json", "Connection: close", *more]
    head.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join([*head, "", ""]).encode() + body


def anthropic(value=ANSWER) -> bytes:
    return json.dumps({"content": [{"type": "tool_use", "name": "answer", "input": value}]}).encode()


def openai(text=None) -> bytes:
    message = {"role": "assistant", "content": json.dumps(ANSWER) if text is None else text}
    return json.dumps({"choices": [{"message": message, "finish_reason": "stop"}]}).encode()


def says(*replies: bytes):
    """A server that gives these in turn, then the last again."""

    def script(sock: socket.socket, n: int) -> None:
        sock.sendall(replies[min(n, len(replies) - 1)])
        sock.close()

    return script


def planner(server, provider="openai", **more) -> HttpPlanner:
    more = {"patience": PATIENCE, "pause": lambda _s: None, **more}
    return HttpPlanner(provider, "some-model", base_url=server.url, **more)


def request_in(asked: bytes) -> tuple[str, dict]:
    head, _, body = asked.partition(b"\r\n\r\n")
    return head.decode(), json.loads(body)


@pytest.mark.parametrize(("provider", "body"), [("anthropic", anthropic()), ("openai", openai())])
def test_both_shapes_are_asked_for_json_by_a_schema_and_read(provider, body, monkeypatch):
    monkeypatch.setenv("PLANNER_KEY", KEY)
    with RawServer(says(http(body))) as server:
        text = planner(server, provider, key_env="PLANNER_KEY").ask(QUESTION)
    assert object_in(text) == ANSWER
    head, sent = request_in(server.asked[0])
    assert sent["model"] == "some-model"
    if provider == "anthropic":
        assert head.startswith("POST /v1/messages ")
        assert f"x-api-key: {KEY}" in head
        assert "anthropic-version: " in head
        assert "Authorization" not in head
        assert sent["tools"][0]["input_schema"] == QUESTION.schema
        assert sent["system"] == QUESTION.system
    else:
        assert head.startswith("POST /v1/chat/completions ")
        assert f"Authorization: Bearer {KEY}" in head
        assert sent["response_format"]["json_schema"]["schema"] == QUESTION.schema
    assert KEY not in json.dumps(sent)


def test_a_later_is_waited_for_as_the_server_asks():
    pauses: list[float] = []
    replies = (
        http(b"{}", "429 Too Many Requests", "Retry-After: 7"),
        http(b'{"error": {"message": "overloaded"}}', "500 Internal Server Error"),
        http(openai()),
    )
    with RawServer(says(*replies)) as server:
        assert object_in(planner(server, pause=pauses.append).ask(QUESTION)) == ANSWER
    assert 7 <= pauses[0] <= 7 * 1.25
    assert 0 < pauses[1] < 1


def test_one_that_always_says_later_is_given_up_after_its_tries():
    with RawServer(says(http(b"{}", "503 Service Unavailable"))) as server:
        with pytest.raises(AskFailed, match=r"503.*3 tries"):
            planner(server).ask(QUESTION)
        assert len(server.asked) == 3


def test_a_refused_key_ends_it_and_is_in_no_message(monkeypatch):
    monkeypatch.setenv("PLANNER_KEY", KEY)
    body = json.dumps({"error": {"message": f"bad key {KEY}"}}).encode()
    with RawServer(says(http(body, "401 Unauthorized"))) as server:
        with pytest.raises(ConfigError) as caught:
            planner(server, key_env="PLANNER_KEY").ask(QUESTION)
        assert len(server.asked) == 1
    assert "PLANNER_KEY" in str(caught.value)
    assert KEY not in str(caught.value)


def test_a_server_that_knows_no_schemas_is_asked_without_one():
    replies = (http(b'{"error": {"message": "response_format?"}}', "400 Bad Request"), http(openai()))
    with RawServer(says(*replies)) as server:
        assert object_in(planner(server).ask(QUESTION)) == ANSWER
        assert "response_format" not in request_in(server.asked[1])[1]


def test_a_request_that_is_refused_is_not_repeated():
    with RawServer(says(http(b'{"error": {"message": "too long"}}', "413 Too Large"))) as server:
        with pytest.raises(AskFailed, match="too long"):
            planner(server).ask(QUESTION)
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("provider", "body"),
    [
        ("openai", b"<html>a login page</html>"),
        ("openai", b"[]"),
        ("openai", b'{"choices": []}'),
        ("openai", b'{"choices": [7]}'),
        ("anthropic", b'{"content": "text"}'),
        ("anthropic", b"\xff\xfe"),
        ("anthropic", b"[" * 100_000),
    ],
)
def test_an_answer_of_another_shape_is_none(provider, body):
    with RawServer(says(http(body))) as server, pytest.raises(AskFailed):
        planner(server, provider).ask(QUESTION)


@pytest.mark.parametrize("text", ["", "I cannot.", None])
def test_words_without_json_are_the_answer_and_are_judged_elsewhere(text):
    body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
    with RawServer(says(http(body))) as server:
        assert planner(server).ask(QUESTION) == (text or "")


def test_an_answer_that_is_cut_off_is_none():
    with RawServer(says(http(openai()[:20], length=5000))) as server, pytest.raises(AskFailed):
        planner(server).ask(QUESTION)


def test_one_that_hangs_is_left_when_its_time_is_over():
    gate = threading.Event()

    def script(_sock: socket.socket, _n: int) -> None:
        gate.wait(60)

    with RawServer(script) as server:
        patience = Patience(total_s=0.3, silent_s=60, tries=50, backoff_s=0.01)
        with pytest.raises(AskFailed, match=r"1 try in 0\.3 s"):
            planner(server, patience=patience).ask(QUESTION)
        gate.set()


def test_a_handshake_that_drips_for_ever_is_left_when_its_time_is_over():
    gate = threading.Event()

    def script(sock: socket.socket, _n: int) -> None:
        with sock, contextlib.suppress(OSError):
            sock.sendall(b"\x16\x03\x03\x3f\xff")  # a record of 16 KiB, which comes byte by byte
            while not gate.wait(0.02):
                sock.sendall(b"\x02")

    with RawServer(script) as server:
        patience = Patience(total_s=0.5, connect_s=60, silent_s=60, tries=1)
        url = server.url.replace("http://", "https://")
        began = time.monotonic()
        with pytest.raises(AskFailed):
            HttpPlanner("openai", "m", base_url=url, key_env="", patience=patience).ask(QUESTION)
        assert time.monotonic() - began < 15
        gate.set()


def test_one_that_asks_to_come_back_later_than_a_question_may_take_is_not_waited_for():
    pauses: list[float] = []
    later = http(b"{}", "429 Too Many Requests", "Retry-After: 50")
    with RawServer(says(later)) as server, pytest.raises(AskFailed, match=r"429.*1 try in 30 s"):
        planner(server, pause=pauses.append).ask(QUESTION)
    assert not pauses


def test_one_that_drips_for_ever_is_left_when_its_time_is_over():
    gate = threading.Event()

    def script(sock: socket.socket, _n: int) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        try:
            while not gate.wait(0.01):
                sock.sendall(b" ")
        except OSError:
            return

    with RawServer(script) as server:
        patience = Patience(total_s=0.5, silent_s=60, tries=1)
        with pytest.raises(AskFailed):
            planner(server, patience=patience).ask(QUESTION)
        gate.set()


def test_a_flood_is_left_before_it_fills_the_memory():
    def script(sock: socket.socket, _n: int) -> None:
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
        try:
            for _ in range(64):
                sock.sendall(b"x" * (1 << 20))
        except OSError:
            return

    with RawServer(script) as server, pytest.raises(AskFailed, match="more than 4 MiB"):
        planner(server, patience=Patience(tries=1)).ask(QUESTION)


def test_one_that_is_not_there_is_named():
    with RawServer(says(b"")) as server:
        url = server.url
    gone = HttpPlanner("openai", "m", base_url=url, patience=PATIENCE, pause=lambda _s: None)
    with pytest.raises(AskFailed, match="cannot be reached"):
        gone.ask(QUESTION)


class TestKeys:
    def test_a_file_that_others_may_read_is_refused(self, tmp_path):
        file = tmp_path / "key"
        file.write_text(KEY)
        file.chmod(0o640)
        with pytest.raises(ConfigError, match="chmod 600"):
            HttpPlanner("openai", "m", key_file=file)
        file.chmod(0o600)
        HttpPlanner("openai", "m", key_file=file)

    def test_without_a_key_the_cloud_is_not_asked(self, monkeypatch):
        monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
        with pytest.raises(ConfigError, match="ANTHROPIC_API_KEY"):
            HttpPlanner("anthropic", "m")

    def test_a_key_travels_over_plain_http_to_nobody_else(self, monkeypatch):
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        with pytest.raises(ConfigError, match="not sent over http"):
            HttpPlanner("openai", "m", base_url="http://192.0.2.1/v1")
        HttpPlanner("openai", "m", base_url="http://192.0.2.1/v1", key_env="")

    @pytest.mark.parametrize("url", ["ftp://x/v1", "no url", "https://user:pw@host/v1", "http://h:99999"])
    def test_a_url_that_is_none_is_refused(self, url):
        with pytest.raises(ConfigError):
            HttpPlanner("openai", "m", base_url=url, key_env="")
