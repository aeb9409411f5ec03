"""Clients that break HTTP, come too slowly, ask too much, or go: the endpoint answers, or lets go, and serves the next."""

from __future__ import annotations

import http.client
import json
import select
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic
from urllib.parse import urlsplit

import pytest
from helpers import wait_for
from served import HeldModel, endpoint_of

from rigbus.agents.models.endpoint import loopback
from rigbus.agents.models.endpoint.peers import TABLE
from rigbus.agents.models.endpoint.server import Endpoint, Limits
from rigbus.agents.models.scripted import ScriptedModel

Connect = Callable[[], socket.socket]
linux = pytest.mark.skipif(
    not TABLE.exists(), reason="needs the kernel's table of connections, /proc/net/tcp"
)
#: `heard` waits until a connection that was answered is closed.
USUAL = Limits(connections=6, body_bytes=20_000, idle_s=0.3)
QUICK = Limits(connections=6, body_bytes=20_000, head_s=0.3, body_s=0.6, idle_s=0.3, write_s=0.5)
CHAT = json.dumps({"messages": [{"role": "user", "content": "hi"}]}).encode()


class Rig:
    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.port = urlsplit(endpoint.url).port or 0
        self.secret = endpoint.grant("task")
        self._sockets: list[socket.socket] = []

    def connect(self) -> socket.socket:
        self._sockets.append(socket.create_connection(("127.0.0.1", self.port), timeout=10))
        return self._sockets[-1]

    def head(self, line: str = "POST /v1/chat/completions HTTP/1.1", *headers: str) -> bytes:
        lines = [line, f"Host: 127.0.0.1:{self.port}", f"Authorization: Bearer {self.secret}", *headers]
        return "\r\n".join(lines).encode() + b"\r\n\r\n"

    def say(self, data: bytes) -> bytes:
        """All that comes back until the server closes."""
        sock = self.connect()
        try:
            sock.sendall(data)
        except OSError:
            pass  # it has heard enough; what it says is still there
        return heard(sock)

    def serves(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {self.secret}"})
        status = connection.getresponse().status
        connection.close()
        return status == 200

    def serves_now(self) -> bool:
        """Without a wait: who is refused may find its connection reset before it has read why."""
        try:
            return status_of(self.say(self.head("GET /v1/models HTTP/1.1", "Connection: close"))) == 200
        except ConnectionError:
            return False

    def close(self) -> None:
        for sock in self._sockets:
            sock.close()


def heard(sock: socket.socket) -> bytes:
    data = b""
    while piece := sock.recv(65536):
        data += piece
    return data


def answered(sock: socket.socket, request: bytes, status: int = 200) -> bool:
    """Ask on a connection that stays open; its whole answer is read."""
    sock.sendall(request)
    response = http.client.HTTPResponse(sock)
    response.begin()
    response.read()
    return response.status == status


def status_of(data: bytes) -> int:
    assert data.startswith(b"HTTP/1.1 "), data[:100]
    return int(data[9:12])


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel(["yes"] * 20)


@pytest.fixture
def rig(model: ScriptedModel) -> Iterator[Rig]:
    yield from rig_with(model, USUAL)


@pytest.fixture
def quick(model: ScriptedModel) -> Iterator[Rig]:
    """One that waits for nobody."""
    yield from rig_with(model, QUICK)


def rig_with(model: ScriptedModel, limits: Limits) -> Iterator[Rig]:
    with endpoint_of(model, limits) as endpoint:
        rig = Rig(endpoint)
        yield rig
        wait_for(rig.serves_now, what="the next client to be served, whatever came")
        rig.close()


# ------------------------------------------------------------ heads


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET /v1/models HTTP/9.9.9\r\n\r\n", 400),
        (b"GET /v1/models HTTP/2.0\r\n\r\n", 505),
        (b"GET /v1/models HTTP/1.1\r\n\r\n", 403),
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\nConnection: close\r\n\r\n", 403),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", 431),
    ],
)
def test_a_head_that_is_none_is_refused(rig: Rig, data: bytes, status: int) -> None:
    answer = rig.say(data.replace(b"HTTP/1.1\r\n\r\n", b"HTTP/1.1\r\nConnection: close\r\n\r\n"))
    assert status_of(answer) == status
    assert "error" in json.loads(answer.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "BREW"])
def test_a_wrong_method_is_named(rig: Rig, method: str) -> None:
    answer = rig.say(rig.head(f"{method} /v1/chat/completions HTTP/1.1", "Connection: close"))
    assert status_of(answer) == 405
    assert b"takes POST" in answer


@pytest.mark.parametrize("path", ["/v1/audio", "/", "/v1", "/v1/../etc/passwd", "//v1/models", "/%2e%2e"])
def test_a_path_that_is_not_there_is_404(rig: Rig, path: str) -> None:
    assert status_of(rig.say(rig.head(f"GET {path} HTTP/1.1", "Connection: close"))) in (404, 200)
    assert (b"HTTP/1.1 200" in rig.say(rig.head(f"GET {path} HTTP/1.1", "Connection: close"))) == (
        path == "//v1/models"
    )


# ------------------------------------------------------------ bodies


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ([], b"", 411),
        (["Content-Length: -5"], b"", 400),
        (["Content-Length: 5x"], b"", 400),
        (["Content-Length: 0x10"], b"", 400),
        (["Content-Length: 3", "Content-Length: 4"], b"abcd", 400),
        (["Content-Length: 10000000"], b"x" * 10_000_000, 413),
        (["Content-Length: 99999999999999999999"], b"", 400),
        (["Content-Length: 5", "Transfer-Encoding: chunked"], b"0\r\n\r\n", 400),
        (["Transfer-Encoding: gzip"], b"x", 400),
        (["Transfer-Encoding: chunked"], b"zz\r\n", 400),
        (["Transfer-Encoding: chunked"], b"-5\r\n", 400),
        (["Transfer-Encoding: chunked"], b"2\r\nabcdef\r\n0\r\n\r\n", 400),
        (["Transfer-Encoding: chunked"], b"fffffff\r\n", 413),
        (["Transfer-Encoding: chunked"], b"1\r\nx\r\n" * 20_001 + b"0\r\n\r\n", 413),
        (["Transfer-Encoding: chunked"], b"0\r\n" + b"X: y\r\n" * 100, 400),
        (["Content-Length: 7"], b"{broken", 400),
        (["Content-Length: 15000"], b"[" * 15_000, 400),
        (["Content-Length: 2"], b"{}", 400),
    ],
)
def test_a_body_that_is_none_is_refused(rig: Rig, headers: list[str], body: bytes, status: int) -> None:
    answer = rig.say(rig.head("POST /v1/chat/completions HTTP/1.1", "Connection: close", *headers) + body)
    assert status_of(answer) == status
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["type"] == "invalid_request_error"


def test_nobody_without_a_secret_can_make_us_read_a_body(rig: Rig) -> None:
    rig.secret, secret = "wrong", rig.secret
    answer = rig.say(rig.head("POST /v1/chat/completions HTTP/1.1", "Content-Length: 90000") + b"x" * 90_000)
    assert status_of(answer) == 401
    assert b"Connection: close" in answer
    rig.secret = secret


def test_a_body_may_come_in_chunks(rig: Rig, model: ScriptedModel) -> None:
    chunks = b"".join(b"%x;ext=1\r\n%b\r\n" % (len(c), c) for c in (CHAT[:5], CHAT[5:6], CHAT[6:]))
    head = rig.head("POST /v1/chat/completions HTTP/1.1", "Connection: close", "Transfer-Encoding: Chunked")
    answer = rig.say(head + chunks + b"0\r\nTrailer: x\r\n\r\n")
    assert status_of(answer) == 200
    assert model.asked[0].messages == [{"role": "user", "content": "hi"}]


def test_a_client_that_asks_first_is_told_to_go_on(rig: Rig) -> None:
    sock = rig.connect()
    sock.sendall(
        rig.head(
            "POST /v1/chat/completions HTTP/1.1",
            "Connection: close",
            f"Content-Length: {len(CHAT)}",
            "Expect: 100-continue",
        )
    )
    assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    sock.sendall(CHAT)
    assert status_of(heard(sock)) == 200


def ends_its_side(rig: Rig, *, stream: bool) -> socket.socket:
    """A client that has said all and reads on, as ``nc -N`` does."""
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}], "stream": stream}).encode()
    sock = rig.connect()
    sock.sendall(rig.head("POST /v1/chat/completions HTTP/1.1", f"Content-Length: {len(body)}") + body)
    sock.shutdown(socket.SHUT_WR)
    return sock


@linux
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_ends_its_side_and_reads_on_is_answered(rig: Rig, stream: bool) -> None:
    data = heard(ends_its_side(rig, stream=stream))
    assert status_of(data) == 200
    assert b"yes" in data


@linux
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_ends_its_side_is_waited_with_until_it_has_gone(stream: bool) -> None:
    held = HeldModel()
    with endpoint_of(held, QUICK) as endpoint:
        rig = Rig(endpoint)
        sock = ends_its_side(rig, stream=stream)
        assert held.asked_one.wait(5)
        assert not held.cancels[0].wait(0.5), "longer than two looks at it"
        sock.close()
        assert held.cancels[0].wait(5)


@linux
def test_a_client_that_ends_its_side_does_not_outlive_its_grant() -> None:
    held = HeldModel()
    with endpoint_of(held, QUICK) as endpoint:
        rig = Rig(endpoint)
        sock = ends_its_side(rig, stream=False)
        assert held.asked_one.wait(5)
        endpoint.revoke(rig.secret)
        assert held.cancels[0].wait(5)
        sock.close()


def test_an_old_client_gets_a_stream_without_chunks(rig: Rig) -> None:
    body = CHAT[:-1] + b', "stream": true}'
    answer = rig.say(rig.head("POST /v1/chat/completions HTTP/1.0", f"Content-Length: {len(body)}") + body)
    head, _, said = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head
    assert said.startswith(b"data: {")
    assert said.endswith(b"data: [DONE]\n\n")


# ------------------------------------------------------------ slow ones


def test_a_head_that_drips_ends_at_its_time(quick: Rig) -> None:
    sock = quick.connect()
    began = monotonic()
    stopped = threading.Event()

    def drip() -> None:
        for byte in quick.head()[:-2] * 100:
            try:
                sock.sendall(bytes([byte]))
            except OSError:
                return
            if stopped.wait(0.02):
                return

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        assert heard(sock) == b""
    except ConnectionResetError:
        pass  # it had not read our last bytes
    assert monotonic() - began < 30, "each byte is in time, the whole is not"
    stopped.set()
    thread.join(5)


def test_a_body_that_stops_is_refused_at_its_time(quick: Rig) -> None:
    answer = quick.say(quick.head("POST /v1/chat/completions HTTP/1.1", "Content-Length: 500") + b"{")
    assert status_of(answer) == 408


def test_an_idle_connection_is_closed(quick: Rig) -> None:
    sock = quick.connect()
    sock.sendall(quick.head("GET /v1/models HTTP/1.1"))
    assert b"keep-alive" in heard(sock)


def test_too_many_connections_are_refused_at_once_and_the_next_is_served_when_one_goes(
    model: ScriptedModel,
) -> None:
    with endpoint_of(model, Limits(connections=6)) as endpoint:
        rig = Rig(endpoint)
        held = [rig.connect() for _ in range(6)]
        for sock in held:
            assert answered(sock, rig.head("GET /v1/models HTTP/1.1"))
        refused = heard(rig.connect())
        assert status_of(refused) == 503
        assert b"Retry-After: 1" in refused
        held[0].close()
        wait_for(rig.serves_now)
        for sock in held[1:]:
            assert answered(sock, rig.head("GET /v1/models HTTP/1.1")), "it is known, nobody takes its place"
        rig.close()


def test_connections_that_say_nothing_keep_nobody_out() -> None:
    with endpoint_of(ScriptedModel(["yes"] * 200)) as endpoint:
        rig = Rig(endpoint)
        idle = [rig.connect() for _ in range(100)]
        began = monotonic()
        for _ in range(20):
            assert rig.serves()
        assert monotonic() - began < 8, "no call waits until a silent one has had its 10 s"
        assert heard(idle[0]) == b"", "who has said nothing for the longest has gone"
        idle[-1].sendall(rig.head("GET /v1/models HTTP/1.1", "Connection: close"))
        assert status_of(heard(idle[-1])) == 200, "the youngest has its place and may still speak"
        rig.close()


def test_a_stranger_that_comes_again_and_again_keeps_nobody_out() -> None:
    with endpoint_of(ScriptedModel(["yes"] * 20)) as endpoint:
        rig = Rig(endpoint)
        held: deque[socket.socket] = deque(maxlen=200)
        for _ in range(20):
            for _ in range(Limits().connections):  # a full house, each time of others
                if len(held) == held.maxlen:
                    held.popleft().close()
                held.append(socket.create_connection(("127.0.0.1", rig.port), timeout=10))
                held[-1].sendall(b"GET /v1/models HTTP/1.1\r\n")
            assert rig.serves()
        for sock in held:
            sock.close()
        rig.close()


def test_while_the_threads_of_strangers_have_yet_to_end_who_comes_waits_and_is_not_refused(
    model: ScriptedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with endpoint_of(model, Limits(connections=2)) as endpoint:
        rig = Rig(endpoint)
        real, shut = loopback._shut, []
        monkeypatch.setattr(loopback, "_shut", shut.append)  # they do not hear of it yet
        for _ in range(4):
            rig.connect()
        wait_for(lambda: len(shut) == 2, what="two of four strangers to be shut")
        sock = rig.connect()
        sock.sendall(rig.head("GET /v1/models HTTP/1.1"))
        assert not select.select([sock], [], [], 0.2)[0], "refused"
        monkeypatch.undo()
        for other in shut:
            real(other)
        response = http.client.HTTPResponse(sock)
        response.begin()
        assert response.status == 200
        rig.close()


def test_whose_secret_is_void_is_a_stranger_again(model: ScriptedModel) -> None:
    with endpoint_of(model, Limits(connections=6)) as endpoint:
        rig = Rig(endpoint)
        held = [rig.connect() for _ in range(6)]
        for sock in held:
            assert answered(sock, rig.head("GET /v1/models HTTP/1.1"))
        assert status_of(heard(rig.connect())) == 503
        endpoint.revoke(rig.secret)
        caught, _, _ = select.select(
            held, [], [], 0
        )  # their server's thread was still at the end of its answer
        stranger = next(sock for sock in held if sock not in caught)
        assert answered(stranger, rig.head("GET /v1/models HTTP/1.1"), status=401)
        rig.secret = endpoint.grant("next")
        assert rig.serves()
        ended, _, _ = select.select(held, [], [], 10)
        assert ended and not any(map(heard, ended)), (
            "this one made room, or one that was caught in its answer"
        )
        rig.close()


def test_a_client_that_does_not_read_is_let_go() -> None:
    model = ScriptedModel([" ".join(["word" * 200] * 30_000)])
    with endpoint_of(model, QUICK) as endpoint:
        rig = Rig(endpoint)
        sock = rig.connect()
        body = CHAT[:-1] + b', "stream": true, "max_tokens": 100000}'
        sock.sendall(rig.head("POST /v1/chat/completions HTTP/1.1", f"Content-Length: {len(body)}") + body)
        wait_for(
            lambda: not [t for t in threading.enumerate() if t.name == "loopback-client"],
            what="its thread's end",
        )
        rig.close()


# ------------------------------------------------------------ those that go


@pytest.mark.parametrize("stream", [b"true", b"false"])
@pytest.mark.parametrize("first", ["well", ""], ids=["in the middle", "before the first token"])
def test_a_client_that_goes_cancels_its_generation_at_once(stream: bytes, first: str) -> None:
    model = HeldModel(first)
    with endpoint_of(model) as endpoint:
        rig = Rig(endpoint)
        sock = rig.connect()
        body = CHAT[:-1] + b', "stream": ' + stream + b"}"
        sock.sendall(rig.head("POST /v1/chat/completions HTTP/1.1", f"Content-Length: {len(body)}") + body)
        assert model.asked_one.wait(5)
        if stream == b"true" and first:
            sock.recv(100)
        sock.close()
        assert model.cancels[0].wait(5), "it was seen only when the stream had been silent for its 10 s"
        rig.close()


def test_a_client_that_sends_more_and_then_goes_is_noticed_too() -> None:
    model = HeldModel()
    with endpoint_of(model) as endpoint:
        rig = Rig(endpoint)
        sock = rig.connect()
        request = rig.head("POST /v1/chat/completions HTTP/1.1", f"Content-Length: {len(CHAT)}") + CHAT
        sock.sendall(request)
        assert model.asked_one.wait(5)
        sock.sendall(request)  # the next request, before the answer to the first
        assert rig.serves()
        assert not model.cancels[0].is_set()
        sock.close()
        assert model.cancels[0].wait(10)
        rig.close()


def test_a_client_that_goes_in_the_middle_of_its_body_asks_nothing(rig: Rig, model: ScriptedModel) -> None:
    sock = rig.connect()
    sock.sendall(rig.head("POST /v1/chat/completions HTTP/1.1", "Content-Length: 500") + b"{")
    sock.shutdown(socket.SHUT_WR)
    assert heard(sock) == b""
    assert model.asked == []


def test_the_end_of_the_endpoint_ends_everything_and_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    model = HeldModel()
    with endpoint_of(model) as endpoint:
        rig = Rig(endpoint)
        idle, waiting = rig.connect(), rig.connect()
        waiting.sendall(rig.head("POST /v1/chat/completions HTTP/1.1", f"Content-Length: {len(CHAT)}") + CHAT)
        assert model.asked_one.wait(5)
    assert model.cancels[0].is_set()
    wait_for(lambda: set(threading.enumerate()) <= before, what="the end of every thread")
    assert heard(idle) == b""
    rig.close()
    with pytest.raises(ConnectionRefusedError):
        rig.connect()
