"""``RemoteModel`` against servers of every temper. What it shares with other models is in the suite of test_host.py."""

from __future__ import annotations

import json
import logging
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from helpers import wait_for
from served import QUICK, HeldModel, RawServer, answer, chunk, endpoint_of, read_request, stream_head

from rigbus.agents.models.endpoint.server import Endpoint, Limits
from rigbus.agents.models.protocol import (
    Chunk,
    EmbedRequest,
    GenerateRequest,
    GenerateResult,
    ModelClosed,
    Usage,
    Vector,
    collect,
)
from rigbus.agents.models.remote import BadServer, RemoteFailed, RemoteModel, RemotePatience, ServerRefused
from rigbus.agents.models.remote.httpcall import retry_after_s
from rigbus.agents.models.scripted import ScriptedModel
from rigbus.bus.errors import DefinitionError, WaitTimeout
from rigbus.bus.openai.answers import embedding_list

Make = Callable[..., RemoteModel]
Script = Callable[[socket.socket, int], None]
LIST = answer("200 OK", b'{"data": [{"id": "m"}]}')
YES = stream_head() + chunk("yes") + chunk("", "stop") + b"data: [DONE]\n\n"


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[RemoteModel] = []

    def remote(url: str, name: str = "m", **options: Any) -> RemoteModel:
        made.append(RemoteModel(url, name, **{"patience": QUICK, **options}))
        return made[-1]

    yield remote
    for each in made:
        each.close()


def patient(**values: Any) -> RemotePatience:
    return RemotePatience(**{"connect_s": 5.0, "silent_s": 10.0, "retries": 3, "backoff_s": 0.01, **values})


def ask(model: RemoteModel, **options: Any) -> GenerateResult:
    return collect(model.generate(GenerateRequest(prompt="hi", **options)), model.name)


def chat(*answers: bytes) -> Script:
    """The list of models to whoever asks for it; else the next of ``answers``, the last one again and again."""
    left = list(answers)
    lock = threading.Lock()

    def play(sock: socket.socket, n: int) -> None:
        with lock:
            data = left.pop(0) if len(left) > 1 else left[0]
        sock.sendall(data)

    return play


def listing(script: Script) -> RawServer:
    """A server that lists the model "m" and plays ``script`` for everything else."""
    server: list[RawServer] = []

    def play(sock: socket.socket, n: int) -> None:
        if b"GET /v1/models" in server[0].asked_by[n]:  # the newest may be another connection's
            sock.sendall(LIST)
        else:
            script(sock, n)

    server.append(RawServer(play))
    return server[0]


# ------------------------------------------------------------ readiness


def test_a_server_that_lists_the_model_is_ready_without_a_generation(make: Make) -> None:
    with RawServer(chat(LIST)) as server:
        model = make(server.url)
        info = model.load(5)
        assert (model.ready, info.name, model.state.message) == (True, "m", f"m at {server.url}")
        assert len(server.asked) == 1


def test_a_server_without_a_list_proves_the_model_by_a_token(make: Make) -> None:
    def play(sock: socket.socket, n: int) -> None:
        whole = b'{"choices": [{"message": {"content": "H"}, "finish_reason": "length"}]}'
        sock.sendall(answer("404 Not Found", b"{}") if n == 0 else answer("200 OK", whole))

    with RawServer(play) as server:
        make(server.url).load(5)
        assert b'"max_tokens": 1' in server.asked[1]


def test_a_model_that_the_server_has_not_is_a_definition_error_with_those_it_has(make: Make) -> None:
    with endpoint_of(ScriptedModel(name="llama")) as endpoint:
        model = make(f"{endpoint.url}/attempt/{endpoint.grant('x')}/v1", "gpt")
        with pytest.raises(BadServer, match=r"404.*no model 'gpt'.*it lists llama"):
            model.load(5)
        assert model.state.phase == "failed"
        endpoint.model = ScriptedModel(name="gpt")
        assert model.load(5).name == "gpt", "and is asked for anew by whoever wants it"


def test_ollamas_tag_may_be_left_out(make: Make) -> None:
    with RawServer(chat(answer("200 OK", b'{"data": [{"id": "m:latest"}]}'))) as server:
        make(server.url).load(5)


def test_a_server_that_is_away_is_asked_for_until_it_comes(make: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    model = make(f"http://127.0.0.1:{port}")
    with pytest.raises(RemoteFailed, match=r"cannot be reached.*is the server running"):
        model.load(5)
    assert model.state.phase == "restarting"
    with socket.create_server(("127.0.0.1", port)) as listener:
        listener.settimeout(10)
        sock, _ = listener.accept()
        with sock:
            sock.recv(65536)
            sock.sendall(LIST)
        wait_for(lambda: model.ready, what="the server to be noticed")


def test_load_waits_no_longer_than_it_was_told(make: Make) -> None:
    with RawServer(lambda sock, n: server.ended.wait(20) and None) as server, pytest.raises(WaitTimeout):
        make(server.url).load(0.05)


# ------------------------------------------------------------ keys and URLs


def test_the_key_comes_from_a_variable_or_a_file(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("SOME_KEY", " sk-by-variable\n")
    (tmp_path / "key").write_text("sk-by-file\nmore\n")
    with RawServer(chat(LIST)) as server:
        make(server.url, key_env="SOME_KEY").load(5)
        make(server.url, key_file=tmp_path / "key").load(5)
        make(server.url).load(5)
        assert [b"Bearer sk-by-variable\r\n" in a for a in server.asked] == [True, False, False]
        assert [b"Bearer sk-by-file\r\n" in a for a in server.asked] == [False, True, False]
        assert b"Authorization" not in server.asked[2]
    assert "sk-by" not in caplog.text


@pytest.mark.parametrize("words", [None, "", "  ", "two words", "line\rbreak", "ключ"])
def test_a_key_that_is_none_is_a_definition_error(
    make: Make, monkeypatch: pytest.MonkeyPatch, words: str | None
) -> None:
    monkeypatch.delenv("SOME_KEY", raising=False)
    if words is not None:
        monkeypatch.setenv("SOME_KEY", words)
    with RawServer(chat(LIST)) as server, pytest.raises(BadServer, match="SOME_KEY") as bad:
        make(server.url, key_env="SOME_KEY").load(5)
    assert not words or words not in str(bad.value)


def test_a_key_file_that_is_not_there_is_named(make: Make, tmp_path: Path) -> None:
    with RawServer(chat(LIST)) as server, pytest.raises(BadServer, match=r"no-key: .*No such file"):
        make(server.url, key_file=tmp_path / "no-key").load(5)


def test_a_key_that_is_refused_says_where_to_correct_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-wrong")
    with RawServer(chat(answer("401 Unauthorized", b'{"error": {"message": "bad key"}}'))) as server:
        model = make(server.url, key_env="SOME_KEY")
        with pytest.raises(BadServer, match="401: bad key; correct the key in SOME_KEY"):
            model.load(5)
        with pytest.raises(BadServer, match="401"):
            ask(model)
        assert model.state.phase == "failed"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://host/v1",
        "http://",
        "http://user:pw@host/v1",
        "http://h/v1?k=1",
        "http://h:99999/",
        "http://h:99999/?k=pw",
        "http://user:pw",
        "http://[h/v1?k=pw",
        "user:pw@h/v1",
        "ftp://user:p/pw@h/v1",
        "http://h\r\nx",
    ],
)
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(BadServer, match="url") as bad:
        RemoteModel(url, "m")
    assert "pw" not in str(bad.value)


@pytest.mark.parametrize(
    "head", ["401 Unauthorized", "400 Bad Request", "503 Service Unavailable", "302 Found"]
)
@pytest.mark.parametrize(
    "body", ['{"error": {"message": "no user has %s"}}', "%s is no key", "x" * 190 + "%s"]
)
def test_a_key_that_the_server_repeats_is_in_no_message(
    make: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, head: str, body: str
) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-repeated")
    place = "Location: https://me:sk-repeated@elsewhere/v1?key=sk-repeated"
    said = answer(head, (body % "sk-repeated").encode(), place, "Retry-After: 0")
    with RawServer(chat(said)) as server:
        model = make(server.url, key_env="SOME_KEY", patience=patient(retries=0))
        with pytest.raises((BadServer, RemoteFailed, ServerRefused), match=head[:3]) as bad:
            model.load(5)
        assert "sk-rep" not in str(bad.value)
        assert "sk-rep" not in model.state.message + caplog.text


def test_the_path_of_a_url_is_kept_and_v1_is_meant_where_there_is_none(make: Make) -> None:
    with RawServer(chat(LIST)) as server:
        base = server.url.removesuffix("/v1")
        for path in ("", "/", "/v1/", "/openai/deployments/x"):
            make(base + path).load(5)
        lines = [a.split(b" ")[1] for a in server.asked]
        assert lines == [b"/v1/models", b"/v1/models", b"/v1/models", b"/openai/deployments/x/models"]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of 127.0.0.1, signed by nobody; with its key."""
    path = tmp_path / "server.pem"
    words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    words += f" -addext subjectAltName=IP:127.0.0.1 -keyout {path} -out {tmp_path}/cert.pem"
    try:
        subprocess.run(["openssl", *words.split()], check=True, capture_output=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("no openssl command to make a certificate with")
    path.write_text(path.read_text() + (tmp_path / "cert.pem").read_text())
    return path


def over_tls(certificate: Path, script: Script) -> RawServer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def play(sock: socket.socket, n: int) -> None:
        with context.wrap_socket(sock, server_side=True) as tls:
            asked = read_request(tls)
            if b"GET /v1/models" in asked:
                tls.sendall(LIST)
            else:
                script(tls, n)

    return RawServer(play, reads=False)


def test_a_certificate_that_nobody_trusts_is_a_definition_error(make: Make, certificate: Path) -> None:
    with over_tls(certificate, chat(YES)) as server, pytest.raises(BadServer, match="SSL_CERT_FILE"):
        make(server.url.replace("http:", "https:")).load(5)


def test_a_trusted_server_is_spoken_to_over_tls_and_cancelled(
    make: Make, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.with_name("cert.pem")))
    gone = threading.Event()

    def play(sock: socket.socket, n: int) -> None:
        sock.sendall(stream_head() + chunk("well"))
        try:
            sock.recv(1)
        finally:
            gone.set()

    with over_tls(certificate, play) as server:
        generation = make(server.url.replace("http:", "https:")).generate(GenerateRequest(prompt="x"))
        assert next(generation) == Chunk("well")
        generation.cancel()
        assert gone.wait(10), "the server sees the end at once"


def test_a_server_without_tls_is_not_reached_by_https(make: Make) -> None:
    with (
        RawServer(lambda sock, n: None, reads=False) as server,
        pytest.raises(RemoteFailed, match="cannot be reached"),
    ):
        make(server.url.replace("http:", "https:")).load(5)


# ------------------------------------------------------------ answers


def test_a_text_streams_with_the_servers_count(make: Make) -> None:
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}\n\n'
    with listing(
        lambda sock, n: sock.sendall(YES.replace(b"data: [DONE]", usage + b"data: [DONE]"))
    ) as server:
        items = list(make(server.url).generate(GenerateRequest(prompt="hi", seed=3, stop=["x"])))
        assert items[:-1] == [Chunk("yes")]
        assert isinstance(items[-1], Usage)
        assert (items[-1].prompt_tokens, items[-1].completion_tokens, items[-1].finish) == (9, 4, "stop")
        body = json.loads(next(a for a in server.asked if b"POST" in a).partition(b"\r\n\r\n")[2])
        assert (body["seed"], body["stop"], body["model"]) == (3, ["x"], "m")


def test_without_a_count_the_pieces_are_counted(make: Make) -> None:
    with listing(lambda sock, n: sock.sendall(YES.replace(b"data: [DONE]\n\n", b""))) as server:
        assert ask(make(server.url)).usage.completion_tokens == 1


def test_a_server_that_does_not_stream_is_understood(make: Make) -> None:
    whole = b'{"choices": [{"message": {"content": "yes"}, "finish_reason": "stop"}]}'
    with listing(lambda sock, n: sock.sendall(answer("200 OK", whole))) as server:
        assert ask(make(server.url)).text == "yes"


# ------------------------------------------------------------ servers that fail


@pytest.mark.parametrize(
    "first",
    [
        answer("503 Service Unavailable", b"loading", "Retry-After: 0"),
        answer("429 Too Many Requests", b"{}"),
        b"",
    ],
    ids=["503", "429", "closed"],
)
def test_what_may_pass_is_tried_again_before_the_first_token(make: Make, first: bytes) -> None:
    tries: list[int] = []

    def play(sock: socket.socket, n: int) -> None:
        tries.append(n)
        sock.sendall(first if len(tries) < 3 else YES)

    with listing(play) as server:
        assert ask(make(server.url)).text == "yes"
    assert len(tries) == 3


def test_it_is_not_tried_for_ever(make: Make) -> None:
    tries: list[int] = []

    def play(sock: socket.socket, n: int) -> None:
        tries.append(n)
        sock.sendall(answer("503 Service Unavailable", b'{"error": "overloaded"}'))

    with listing(play) as server:
        with pytest.raises(RemoteFailed, match="answers 503: overloaded") as failed:
            ask(make(server.url))
        assert failed.value.error_class == "infra"
    assert len(tries) == 1 + QUICK.retries


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"garbage\r\n\r\n", "no HTTP answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "no HTTP answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", "no HTTP answer"),
        (answer("500 Internal Server Error", b"boom"), "answers 500: boom"),
        (answer("502 Bad Gateway", b""), r"answers 502 \(Bad Gateway\)"),
        (answer("204 No Content", b""), "answers 204"),
        (answer("200 OK", b"<html>"), "not JSON"),
        (answer("200 OK", b"{}"), "ended in the middle"),
        (stream_head(), "ended in the middle, after 0"),
        (stream_head() + chunk("half"), "ended in the middle, after 1"),
        (stream_head() + chunk("half") + b"data: {", "ended in the middle"),
        (stream_head() + chunk("half") + b"data: nonsense\n\n", "not JSON"),
        (stream_head() + b"data: " + b"x" * (2 << 20), "1048576 characters"),
        (stream_head() + b'data: {"error": {"message": "CUDA out of memory"}}\n\n', "CUDA out of memory"),
        (
            stream_head().replace(b"Connection", b"Transfer-Encoding: chunked\r\nConnection") + b"5\r\nda",
            "broke off",
        ),
        (
            stream_head().replace(b"Connection", b"Transfer-Encoding: chunked\r\nConnection") + b"zz\r\n",
            "broke off",
        ),
    ],
)
def test_a_broken_answer_is_infra_and_is_not_asked_for_twice(make: Make, data: bytes, word: str) -> None:
    tries: list[int] = []

    def play(sock: socket.socket, n: int) -> None:
        tries.append(n)
        sock.sendall(data)

    with listing(play) as server:
        with pytest.raises(RemoteFailed, match=word) as failed:
            ask(make(server.url))
        assert failed.value.error_class == "infra"
        assert len(str(failed.value)) < 1000
    assert len(tries) == 1


@pytest.mark.parametrize(
    ("data", "word", "state"),
    [
        (
            answer("400 Bad Request", b'{"error": {"message": "context too long"}}'),
            "400: context too long",
            "ready",
        ),
        (answer("413 Payload Too Large", b""), "413", "ready"),
        (answer("422 Unprocessable Entity", b'{"detail": "stop"}'), "422: stop", "ready"),
        (answer("403 Forbidden", b""), "403.*configure its API key", "failed"),
        (answer("404 Not Found", b'{"error": "model m not found"}'), "404: model m not found", "failed"),
        (answer("301 Moved", b"", "Location: https://other/v1"), "moved to: https://other/v1", "failed"),
    ],
)
def test_a_refused_request_is_a_definition_error(make: Make, data: bytes, word: str, state: str) -> None:
    with listing(lambda sock, n: sock.sendall(data)) as server:
        model = make(server.url)
        model.load(5)
        with pytest.raises(DefinitionError, match=word):
            ask(model)
        assert model.state.phase == state


def test_a_server_that_takes_no_such_long_body_is_heard(make: Make) -> None:
    with endpoint_of(ScriptedModel(), Limits(body_bytes=1000)) as endpoint:
        model = served(make, endpoint)
        with pytest.raises(ServerRefused, match="413: the body has over 1000 bytes"):
            collect(model.generate(GenerateRequest(prompt="x" * 5_000_000)), model.name)


def test_a_server_that_never_answers_is_given_up(make: Make) -> None:
    with listing(lambda sock, n: server.ended.wait(20) and None) as server:
        model = make(server.url, patience=patient(silent_s=0.2))
        with pytest.raises(RemoteFailed, match=r"not a byte for 0\.2 s"):
            ask(model)


def test_a_server_that_stops_in_the_middle_is_given_up_and_its_text_so_far_was_seen(make: Make) -> None:
    def play(sock: socket.socket, n: int) -> None:
        sock.sendall(stream_head() + chunk("half"))
        server.ended.wait(20)

    with listing(play) as server:
        generation = make(server.url, patience=patient(silent_s=0.2)).generate(GenerateRequest(prompt="x"))
        assert next(generation) == Chunk("half")
        with pytest.raises(RemoteFailed, match="not a byte"):
            next(generation)
        assert list(generation) == []


def test_a_server_that_shows_signs_of_life_is_waited_for(make: Make) -> None:
    def play(sock: socket.socket, n: int) -> None:
        sock.sendall(stream_head())
        for _ in range(6):
            sock.sendall(b": ping\n\n")
            server.ended.wait(0.1)
        sock.sendall(YES.removeprefix(stream_head()))

    with listing(play) as server:
        assert ask(make(server.url, patience=patient(silent_s=0.4))).text == "yes"


def test_a_model_whose_server_goes_away_says_so_and_comes_back(make: Make) -> None:
    with RawServer(chat(LIST)) as server:
        model = make(server.url, patience=patient(retries=0, backoff_s=0.05))
        model.load(5)
    with pytest.raises(RemoteFailed, match="cannot be reached"):
        ask(model)
    assert model.state.phase == "restarting"


# ------------------------------------------------------------ cancel, close, bounds


@pytest.mark.parametrize("first", ["well", ""], ids=["in the middle", "before the first token"])
def test_a_cancel_closes_the_connection_and_frees_the_server_at_once(make: Make, first: str) -> None:
    held = HeldModel(first)
    with endpoint_of(held) as endpoint:
        generation = served(make, endpoint).generate(GenerateRequest(prompt="x"))
        assert held.asked_one.wait(5)
        if first:
            assert next(generation) == Chunk("well")
        began = monotonic()
        generation.cancel()
        usage = generation.poll(0)
        assert isinstance(usage, Usage)
        assert usage.finish == "cancelled"
        assert held.cancels[0].wait(5)
        assert monotonic() - began < 5, "the model or the server was waited for"


def served(make: Make, endpoint: Endpoint, **options: Any) -> RemoteModel:
    name = endpoint.model.name if endpoint.model is not None else ""
    return make(f"{endpoint.url}/attempt/{endpoint.grant('x')}/v1", name, **options)


def test_a_cancel_ends_the_wait_for_another_try(make: Make) -> None:
    with listing(lambda sock, n: sock.sendall(answer("429 Slow down", b"", "Retry-After: 50"))) as server:
        model = make(server.url)
        generation = model.generate(GenerateRequest(prompt="x"))
        wait_for(lambda: any(b"POST" in a for a in server.asked), what="the first try")
        generation.cancel()
        assert isinstance(generation.poll(1), Usage)
        began = monotonic()
        model.close()
        assert monotonic() - began < 20, "the try was waited for"


def test_more_requests_than_may_run_wait_here(make: Make) -> None:
    held = HeldModel()
    with endpoint_of(held) as endpoint:
        model = served(make, endpoint, parallel=2)
        running = [model.generate(GenerateRequest(prompt="x")) for _ in range(2)]
        wait_for(lambda: len(held.cancels) == 2, what="two requests at the server")
        waiting = [model.generate(GenerateRequest(prompt="x")) for _ in range(2)]
        assert waiting[0].poll(0.05) is None
        assert len(held.cancels) == 2
        waiting[1].cancel()
        assert isinstance(waiting[1].poll(0), Usage)
        running[0].cancel()
        assert waiting[0].poll(5) == Chunk("well")
        assert len(held.cancels) == 3


def test_the_end_of_the_model_ends_what_runs_and_what_waits_and_leaves_no_thread(make: Make) -> None:
    before = set(threading.enumerate())
    held = HeldModel()
    with endpoint_of(held) as endpoint:
        model = served(make, endpoint, parallel=1)
        generations = [model.generate(GenerateRequest(prompt="x")) for _ in range(3)]
        assert held.asked_one.wait(5)
        model.close()
        for generation in generations:
            with pytest.raises(ModelClosed):
                collect(generation, model.name)
        assert held.cancels[0].wait(10)
        with pytest.raises(ModelClosed):
            model.embed(["a"])
    wait_for(lambda: set(threading.enumerate()) <= before, what="the end of every thread")


# ------------------------------------------------------------ vectors


def test_vectors_are_fetched(make: Make) -> None:
    body = json.dumps(embedding_list([[0.5], [1.5]], "m", 3, base64=False)).encode()
    with listing(lambda sock, n: sock.sendall(answer("200 OK", body))) as server:
        model = make(server.url)
        result = model.embed(["a", "b"])
        assert (result.vectors, result.model, result.usage.prompt_tokens) == ([[0.5], [1.5]], "m", 3)
        items = list(model.embedding(EmbedRequest(texts=["a", "b"])))
        assert items[:-1] == [Vector(0, [0.5]), Vector(1, [1.5])]


def test_a_server_without_embeddings_may_still_generate(make: Make) -> None:
    def play(sock: socket.socket, n: int) -> None:
        sock.sendall(answer("404 Not Found", b"no route") if b"/embeddings" in server.asked_by[n] else YES)

    with listing(play) as server:
        model = make(server.url)
        with pytest.raises(ServerRefused, match="does this server make embeddings"):
            model.embed(["a"])
        assert ask(model).text == "yes"
        assert model.ready


def test_vectors_of_other_texts_are_infra(make: Make) -> None:
    body = json.dumps(embedding_list([[0.5]], "m", 3, base64=False)).encode()
    with (
        listing(lambda sock, n: sock.sendall(answer("200 OK", body))) as server,
        pytest.raises(RemoteFailed, match="one vector for each of 2 texts"),
    ):
        make(server.url).embed(["a", "b"])


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("999999", 60.0),
        ("inf", 60.0),
        ("nan", None),
        ("", None),
        ("soon", None),
        ("Sat, 21 Nov 2026 12:00:10 GMT", 10.0),
        ("Sat, 21 Nov 2026 11:00:00 GMT", 0.0),
    ],
)
def test_when_a_server_wants_to_be_asked_again(text: str, seconds: float | None) -> None:
    assert retry_after_s(text, datetime(2026, 11, 21, 12, 0, 0, tzinfo=UTC)) == seconds
