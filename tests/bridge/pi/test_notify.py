"""`rigbus notify`: sinks over real sockets, one that hangs beside others, restarts, and the secrets that it needs."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from helpers import free_ports, wait_for
from served import RawServer

from rigbus.bridge.pi import sinks
from rigbus.bridge.pi.deadman import Signs
from rigbus.bridge.pi.outbox import Wants
from rigbus.bridge.pi.secrets import secret_of
from rigbus.bridge.pi.service import ACKS, GONE_S, Notices, lock, once, run
from rigbus.bridge.pi.tending import Kept, Messages, Times
from rigbus.bridge.pi.web import MAX_BODY_BYTES, WebError, call
from rigbus.bus.alerting.core import Alert, State
from rigbus.bus.alerting.rules import Policy, Severity
from rigbus.bus.errors import ConfigError, Refused

BAD = Alert(
    "batch-failed.b", "batch-failed", Severity.CRITICAL, State.RAISED, "Überlauf\x1b[31m", "b", "rigbus why",
    {"batch_id": "b"}, raised_at=5.0,
)  # fmt: skip


class Web:
    """A web server that keeps what it is asked, and answers what the test says."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: list[int | str] = []  #: statuses, "hang" or "drip"
        self.reason = ""
        self.released = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                web.got.append((self.path, {k.lower(): v for k, v in self.headers.items()}, body))
                answer = web.answers.pop(0) if web.answers else 200
                if answer == "hang":
                    web.released.wait(30)
                    return
                if answer == "drip":
                    self.send_response(200)
                    self.send_header("Content-Length", "1000")
                    self.end_headers()
                    while not web.released.wait(0.1):
                        self.wfile.write(b"x")
                    return
                assert isinstance(answer, int)
                self.send_response(answer, web.reason or None)
                if answer == 302:
                    self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()
                if answer == 404:  # as many servers do
                    self.wfile.write(f"Cannot POST {self.path}, {self.headers['Authorization']}".encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def web() -> Iterator[Web]:
    made = Web()
    yield made
    made.close()


def messages(
    name: str, settings: dict[str, Any], folder: Path, timeout_s: float = 20.0, **env: str
) -> Messages:
    states = sinks.STATES.get(settings["type"], frozenset(State))
    build = sinks.builder(name, settings, env)
    return Messages(
        name, Wants(states=states), build, lambda r: sinks.send(r, timeout_s), Kept(folder / f"{name}.json")
    )


def hook(web: Web, folder: Path, name: str = "hook", timeout_s: float = 20.0) -> Messages:
    return messages(name, {"type": "webhook", "url": f"{web.url}/x"}, folder, timeout_s)


class TestWhatIsSent:
    def test_ntfy(self, web: Web, tmp_path: Path) -> None:
        given = {
            "type": "ntfy",
            "server": web.url,
            "topic": "rig",
            "token_env": "TOKEN",
            "click": "http://pi/",
        }
        sink = messages("phone", given, tmp_path, TOKEN="tk_1")
        sink.tend([BAD])
        ((path, headers, body),) = web.got
        said = json.loads(body)
        assert (path, headers["authorization"]) == ("/", "Bearer tk_1")
        assert (said["topic"], said["priority"], said["click"]) == ("rig", 5, "http://pi/")
        assert "rotating_light" in said["tags"] and "Überlauf" in said["message"]

    def test_home_assistant(self, web: Web, tmp_path: Path) -> None:
        sink = messages(
            "ha", {"type": "homeassistant", "server": web.url, "webhook_env": "HOOK"}, tmp_path, HOOK="a/b"
        )
        sink.tend([BAD])
        assert web.got[0][0] == "/api/webhook/a%2Fb"
        assert json.loads(web.got[0][2])["severity"] == "critical"

    def test_a_webhook_is_signed_and_a_repeat_bears_the_same_id(self, web: Web, tmp_path: Path) -> None:
        given = {"type": "webhook", "url": f"{web.url}/x?y=1", "secret_env": "S"}
        for _ in range(2):
            messages("hook", given, tmp_path, S="s3cret").tend([BAD])
            (tmp_path / "hook.json").unlink()
        (path, headers, body), again = web.got
        signed = headers["x-rigbus-timestamp"].encode() + b"." + body
        expected = hmac.new(b"s3cret", signed, hashlib.sha256).hexdigest()
        assert (path, headers["x-rigbus-signature"]) == ("/x?y=1", f"sha256={expected}")
        assert headers["x-rigbus-delivery"] == again[1]["x-rigbus-delivery"]

    def test_a_redirect_is_not_followed(self, web: Web) -> None:
        web.answers = [302]
        with pytest.raises(WebError, match="302"):
            call("POST", web.url, b"", timeout_s=20.0)

    @pytest.mark.parametrize("answer", ["hang", "drip"])
    def test_the_whole_of_a_request_has_a_time(self, web: Web, answer: str) -> None:
        web.answers = [answer]
        began = time.monotonic()
        with pytest.raises(WebError):
            call("POST", web.url, b"", timeout_s=0.5)
        assert time.monotonic() - began < 15

    @pytest.mark.parametrize(
        ("head", "more"),
        [
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\n", b"x" * 65536),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n", b"x" * 65536),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nrubbish\r\n", b""),
            (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab", b""),
            (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n", b"x" * 65536),
            (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536),
            (b"HTTP/1.1 200 OK\r\n", b"X-More: y\r\n" * 100),
            (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
            (b"\x00\xff rubbish\r\n\r\n", b""),
        ],
    )
    def test_an_answer_that_is_none_or_never_ends_costs_neither_memory_nor_time(
        self, head: bytes, more: bytes
    ) -> None:
        sent = 0

        def script(sock: socket.socket, _n: int) -> None:
            nonlocal sent
            with sock, contextlib.suppress(OSError):
                sock.sendall(head)
                while more:
                    sock.sendall(more)
                    sent += len(more)

        with RawServer(script) as server, pytest.raises(WebError):
            call("POST", server.url, b"", timeout_s=1.0)
        assert sent < 4 * MAX_BODY_BYTES or more.startswith(b"HTTP")

    def test_a_body_without_a_length_that_is_cut_off_by_the_time_is_not_taken_for_a_whole_one(self) -> None:
        done = threading.Event()

        def script(sock: socket.socket, _n: int) -> None:
            with sock:
                sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 1000)
                done.wait(30)

        with RawServer(script) as server:
            with pytest.raises(WebError, match=r"no whole answer within 0\.5 s"):
                call("POST", server.url, b"", timeout_s=0.5)
            done.set()

    @pytest.mark.parametrize(
        ("status", "refused"), [(400, True), (413, True), (401, False), (429, False), (500, False)]
    )
    def test_what_is_about_the_message_itself(self, web: Web, status: int, refused: bool) -> None:
        web.answers = [status]
        with pytest.raises(WebError) as failed:
            call("POST", web.url, b"", timeout_s=20.0)
        assert (failed.value.status, failed.value.refused) == (status, refused)

    @pytest.mark.parametrize(
        "path", ["/api/webhook/my-hook-id", "/api/webhook/my-hook%2Did", "/x?key=my-hook-id"]
    )
    def test_a_server_that_repeats_what_it_does_not_know_puts_no_secret_into_the_log(
        self, web: Web, path: str
    ) -> None:
        web.answers, web.reason = [404], "no " + "x" * 10_000
        with pytest.raises(WebError, match=r"404 no xxx.*Cannot POST") as failed:
            call("POST", web.url + path, b"", {"Authorization": "Bearer tk_secret"}, timeout_s=20.0)
        assert "hook" not in str(failed.value) and "tk_secret" not in str(failed.value)
        assert len(str(failed.value)) < 1000

    def test_nobody_there_is_an_error_that_says_so(self) -> None:
        (port,) = free_ports(1)
        with pytest.raises(WebError, match=f"127.0.0.1:{port}"):
            call("POST", f"http://127.0.0.1:{port}/", b"", timeout_s=5.0)


class TestDelivery:
    def test_what_failed_is_delivered_by_the_next_process_and_nothing_twice(
        self, web: Web, tmp_path: Path
    ) -> None:
        web.answers = [500]
        hook(web, tmp_path).tend([BAD])
        hook(web, tmp_path).tend([BAD])
        hook(web, tmp_path).tend([BAD])
        assert len(web.got) == 2

    def test_a_damaged_state_costs_a_repeat_and_no_more(self, web: Web, tmp_path: Path) -> None:
        hook(web, tmp_path).tend([BAD])
        (tmp_path / "hook.json").write_text("{")
        sink = hook(web, tmp_path)
        sink.tend([BAD])
        assert len(web.got) == 2 and sink.settled()

    def test_one_that_hangs_holds_up_no_other(self, web: Web, tmp_path: Path) -> None:
        stuck = Web()
        stuck.answers = ["hang"] * 5
        ending = threading.Event()
        both = {"stuck": hook(stuck, tmp_path, "stuck"), "fine": hook(web, tmp_path, "fine")}
        notices = Notices(tmp_path, 60.0, 60.0, Policy())
        alerts = [BAD]
        loop = threading.Thread(
            target=run,
            args=(lambda: (list(alerts), Signs(False, 1.0, 30.0, "m")), notices, both, 0.05, ending),
        )
        loop.start()
        try:
            wait_for(lambda: stuck.got and web.got, timeout_s=30, what="both to be asked")
            alerts.append(
                Alert("disk-full", "disk-full", Severity.CRITICAL, State.RAISED, "full", raised_at=6.0)
            )
            wait_for(lambda: len(web.got) == 2, timeout_s=30, what="the other sink to hear of the next alert")
            assert len(stuck.got) == 1
        finally:
            ending.set()
            stuck.close()
            loop.join(30)
        assert not loop.is_alive()

    def test_a_folder_that_hangs_is_told_as_away_and_stops_nothing(
        self, web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("rigbus.bridge.pi.service.OLD_S", 0.3)
        released, ending = threading.Event(), threading.Event()
        notices = Notices(tmp_path, 60.0, 0.0, Policy())

        def read() -> None:
            released.wait(60)

        fine = {"fine": hook(web, tmp_path, "fine")}
        loop = threading.Thread(target=run, args=(read, notices, fine, 0.05, ending))
        loop.start()
        try:
            wait_for(lambda: web.got, timeout_s=30, what="the alert")
            assert json.loads(web.got[0][2])["key"] == "mount-away"
        finally:
            ending.set()
            released.set()
            loop.join(30)
        assert not loop.is_alive()

    def test_once_delivers_all_and_names_who_did_not_get_it(self, web: Web, tmp_path: Path) -> None:
        (port,) = free_ports(1)
        dead = messages("dead", {"type": "webhook", "url": f"http://127.0.0.1:{port}/"}, tmp_path)
        both = {"dead": dead, "fine": hook(web, tmp_path, "fine")}
        notices = Notices(tmp_path, 60.0, 60.0, Policy())
        left = once(lambda: ([BAD], Signs(False, 1.0, 30.0, "m")), notices, both, limit_s=6.0)
        assert left == ["dead"] and len(web.got) == 1


class TestOwnAlerts:
    def test_a_silent_rig_is_raised_acked_and_over_beside_those_of_the_rig(self, tmp_path: Path) -> None:
        clock = {"at": 1000.0}
        times = Times(lambda: clock["at"], lambda: clock["at"])
        notices = Notices(tmp_path, 60.0, 60.0, Policy(), times)

        def states(mark: str, later_s: float) -> dict[str, str]:
            clock["at"] += later_s
            alerts = notices.judge(([BAD], Signs(False, 1000.0, 30.0, mark)))
            return {a.key: a.state.value for a in alerts}

        assert states("1", 1.0) == {"batch-failed.b": "raised"}
        assert states("1", 91.0)["rig-silent"] == "raised"
        notices = Notices(tmp_path, 60.0, 60.0, Policy(), times)  # another process
        assert states("1", 1.0)["rig-silent"] == "raised"
        (tmp_path / ACKS).mkdir()
        (tmp_path / ACKS / "rig-silent").touch()
        (tmp_path / ACKS / "..x").touch()
        assert states("1", 1.0)["rig-silent"] == "acked"
        assert not list((tmp_path / ACKS).iterdir())
        assert states("2", 1.0)["rig-silent"] == "cleared"

    def test_a_folder_that_is_away_at_the_start_is_not_taken_for_all_is_well(self, tmp_path: Path) -> None:
        signs = Signs(False, 1.0, 30.0, "m")
        Notices(tmp_path, 60.0, 60.0, Policy()).judge(([BAD], signs))
        again = Notices(tmp_path, 60.0, 60.0, Policy())
        assert [(a.key, a.state.value) for a in again.judge(None)] == [("batch-failed.b", "raised")]

    def test_a_live_alert_whose_file_is_missing_stays_for_a_while_and_one_that_is_over_does_not(
        self, tmp_path: Path
    ) -> None:
        clock = {"at": 1000.0}
        notices = Notices(tmp_path, 600.0, 60.0, Policy(), Times(lambda: clock["at"], lambda: clock["at"]))
        signs = Signs(False, 1000.0, 30.0, "m")
        done = replace(BAD, key="batch-failed.c", state=State.CLEARED)
        assert len(notices.judge(([BAD, done], signs))) == 2
        assert [a.key for a in notices.judge(([], signs))] == ["batch-failed.b"]
        clock["at"] += GONE_S - 1
        assert [a.key for a in notices.judge(([], signs))] == ["batch-failed.b"]
        clock["at"] += 1
        assert notices.judge(([], signs)) == []

    def test_two_on_one_state_folder_are_refused(self, tmp_path: Path) -> None:
        import os

        first = lock(tmp_path / "n")
        with pytest.raises(Refused, match="another"):
            lock(tmp_path / "n")
        os.close(first)
        os.close(lock(tmp_path / "n"))


class TestSecrets:
    def test_from_the_environment_and_from_a_private_file(self, tmp_path: Path) -> None:
        file = tmp_path / "key"
        file.write_text("abc\n")
        file.chmod(0o600)
        assert secret_of("s", {"key_file": str(file)}, "key") == "abc"
        assert secret_of("s", {"key_env": "K"}, "key", {"K": " abc "}) == "abc"
        assert secret_of("s", {}, "key") == ""

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
    def test_a_file_that_others_can_read_is_refused_with_the_fix(self, tmp_path: Path, mode: int) -> None:
        file = tmp_path / "key"
        file.write_text("abc")
        file.chmod(mode)
        with pytest.raises(ConfigError, match=r"notify\.sinks\.room.*chmod 600"):
            secret_of("room", {"key_file": str(file)}, "key")

    @pytest.mark.parametrize(
        ("content", "what"),
        [(b"", "empty"), (b"a\nb", "one line"), (b"\xff", "plain text"), (b"x" * 5000, "long")],
    )
    def test_what_is_no_secret(self, tmp_path: Path, content: bytes, what: str) -> None:
        file = tmp_path / "key"
        file.write_bytes(content)
        file.chmod(0o600)
        with pytest.raises(ConfigError, match=what) as refused:
            secret_of("s", {"key_file": str(file)}, "key")
        assert "a\nb" not in str(refused.value)

    @pytest.mark.parametrize(
        "url", ["ftp://x/", "http://", "http://x:99999/", "x", "http://x/a b", "http://[x"]
    )
    def test_an_address_that_is_none_is_refused_without_being_shown(self, url: str) -> None:
        with pytest.raises(ConfigError, match=r"notify\.sinks\.mine") as refused:
            sinks.builder("mine", {"type": "webhook", "url_env": "U"}, {"U": url})
        assert url not in str(refused.value).split()

    def test_a_state_that_cannot_be_kept_stops_nothing(self, tmp_path: Path) -> None:
        notices = Notices(tmp_path / "no" / "such", 60.0, 60.0, Policy())
        assert [a.key for a in notices.judge(([BAD], Signs(False, 1.0, 30.0, "m")))] == ["batch-failed.b"]

    def test_one_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="NO_SUCH"):
            secret_of("s", {"key_env": "NO_SUCH"}, "key", {})
        with pytest.raises(ConfigError, match="No such file"):
            secret_of("s", {"key_file": str(tmp_path / "no")}, "key")
