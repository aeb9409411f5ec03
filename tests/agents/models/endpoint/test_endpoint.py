"""The loopback endpoint of a worker's model: what commands get from it, and who gets nothing."""

from __future__ import annotations

import http.client
import json
import re
import runpy
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from helpers import ROOT, wait_for
from served import HeldModel, endpoint_of

from rigbus.agents.models.endpoint.server import Endpoint, environment
from rigbus.agents.models.host import ModelHost
from rigbus.agents.models.protocol import (
    EmbedRequest,
    GenerateRequest,
    Generation,
    ModelClosed,
    ModelCrashed,
    Usage,
    Vector,
)
from rigbus.agents.models.scripted import ScriptedModel
from rigbus.bus.errors import DefinitionError
from rigbus.bus.openai.sse import EventReader

HI = [{"role": "user", "content": "hi"}]


class Asker:
    """A connection of one attempt."""

    def __init__(self, endpoint: Endpoint, secret: str) -> None:
        self.secret = secret
        self.connection = http.client.HTTPConnection(
            "127.0.0.1", urlsplit(endpoint.url).port or 0, timeout=10
        )

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> http.client.HTTPResponse:
        data = None if body is None else json.dumps(body).encode()
        self.connection.request(method, path, data, {"Authorization": f"Bearer {self.secret}", **headers})
        return self.connection.getresponse()

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        response = self.send(method, path, body, **headers)
        return response.status, json.loads(response.read())

    def events(self, path: str, body: Any) -> list[str]:
        response = self.send("POST", path, body)
        assert response.status == 200
        return EventReader().feed(response.read())


@pytest.fixture
def model() -> ScriptedModel:
    return ScriptedModel(["one two three"] * 5)


@pytest.fixture
def endpoint(model: ScriptedModel) -> Iterator[Endpoint]:
    with endpoint_of(model) as endpoint:
        yield endpoint


@pytest.fixture
def asker(endpoint: Endpoint) -> Asker:
    return Asker(endpoint, endpoint.grant("task-1.1"))


def texts_of(events: Sequence[str]) -> list[str]:
    assert events[-1] == "[DONE]"
    choices = [c for e in events[:-1] for c in json.loads(e)["choices"]]
    return [c["delta"]["content"] for c in choices if "content" in c["delta"]]


# ------------------------------------------------------------ the API


def test_a_chat_is_answered_by_the_model(asker: Asker, model: ScriptedModel) -> None:
    status, value = asker.ask(
        "POST", "/v1/chat/completions", {"model": "scripted", "messages": HI, "stop": "x"}
    )
    assert status == 200
    assert value["choices"][0]["message"]["content"] == "one two three"
    assert value["choices"][0]["finish_reason"] == "stop"
    assert value["usage"]["completion_tokens"] == 3
    assert (model.asked[0].messages, list(model.asked[0].stop)) == (HI, ["x"])


def test_a_connection_serves_many_requests(asker: Asker) -> None:
    numbers = {asker.ask("POST", "/v1/chat/completions", {"messages": HI})[1]["id"] for _ in range(2)}
    assert len(texts_of(asker.events("/v1/chat/completions", {"messages": HI, "stream": True}))) == 4
    assert asker.ask("GET", "/v1/models")[0] == 200
    assert len(numbers) == 2


def test_a_stream_comes_as_the_model_speaks(asker: Asker) -> None:
    body = {"messages": HI, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 2}
    events = asker.events("/v1/chat/completions", body)
    assert texts_of(events) == ["", "one", " two"]
    assert json.loads(events[-3])["choices"][0]["finish_reason"] == "length"
    assert json.loads(events[-2])["usage"]["completion_tokens"] == 2


def test_a_completion_and_the_paths_without_v1(asker: Asker) -> None:
    assert asker.ask("POST", "/v1/completions", {"prompt": "a"})[1]["choices"][0]["text"] == "one two three"
    assert asker.ask("POST", "/completions", {"prompt": "a"})[0] == 200
    assert asker.ask("POST", "/chat/completions?x=1", {"messages": HI})[0] == 200


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": HI}),
        ("/v1/completions", {"prompt": "a"}),
        ("/api/chat", {"messages": HI, "stream": False}),
        ("/api/generate", {"prompt": "a", "stream": False}),
    ],
)
def test_an_answer_has_as_many_tokens_as_its_model_may_where_nobody_says(
    endpoint: Endpoint, asker: Asker, model: ScriptedModel, path: str, body: dict[str, Any]
) -> None:
    for most in (None, 2):
        endpoint.max_tokens = most
        assert asker.ask("POST", path, body)[0] == 200
    endpoint.max_tokens = 2
    given = {"options": {"num_predict": 7}} if path.startswith("/api") else {"max_tokens": 7}
    assert asker.ask("POST", path, {**body, **given})[0] == 200
    assert [request.max_tokens for request in model.asked] == [1024, 2, 7]


def test_the_model_is_listed_and_found(asker: Asker) -> None:
    assert [m["id"] for m in asker.ask("GET", "/v1/models")[1]["data"]] == ["scripted"]
    assert asker.ask("GET", "/v1/models/scripted")[1]["id"] == "scripted"
    assert asker.ask("GET", "/v1/models/other")[0] == 404
    assert asker.send("HEAD", "/v1/models").status == 200


def test_another_model_is_not_there(asker: Asker) -> None:
    status, value = asker.ask("POST", "/v1/chat/completions", {"model": "gpt", "messages": HI})
    assert (status, value["error"]["code"], value["error"]["param"]) == (404, "model_not_found", "model")
    assert "'scripted'" in value["error"]["message"]


def test_ollamas_scripts_are_served(asker: Asker) -> None:
    response = asker.send("POST", "/api/generate", {"model": "scripted:latest", "prompt": "a"})
    lines = [json.loads(line) for line in response.read().splitlines()]
    assert response.headers["Content-Type"] == "application/x-ndjson"
    assert "".join(line["response"] for line in lines) == "one two three"
    assert [line["done"] for line in lines] == [False, False, False, True]
    status, value = asker.ask("POST", "/api/chat", {"messages": HI, "stream": False})
    assert (status, value["message"]["content"]) == (200, "one two three")
    assert asker.ask("GET", "/api/tags")[1]["models"][0]["name"] == "scripted"
    assert "version" in asker.ask("GET", "/api/version")[1]
    status, value = asker.ask("POST", "/api/generate", {"prompt": 5})
    assert (status, value) == (400, {"error": 'field "prompt" is 5; give a string'})


class Embedding(ScriptedModel):
    """Gives each text its length as a vector."""

    def embedding(self, request: EmbedRequest) -> Any:
        vectors: list[Vector | Usage] = [Vector(i, [float(len(t)), 0.5]) for i, t in enumerate(request.texts)]
        return Items([*reversed(vectors), Usage(prompt_tokens=9)])


class Items:
    def __init__(self, items: list[Vector | Usage]) -> None:
        self._items = items

    def poll(self, timeout_s: float) -> Vector | Usage:
        return self._items.pop(0)

    def cancel(self) -> None:
        pass


def test_vectors_come_in_the_order_of_the_texts() -> None:
    with endpoint_of(Embedding()) as endpoint:
        asker = Asker(endpoint, endpoint.grant("a"))
        value = asker.ask("POST", "/v1/embeddings", {"input": ["a", "abc"]})[1]
        assert [row["embedding"] for row in value["data"]] == [[1.0, 0.5], [3.0, 0.5]]
        assert value["usage"]["prompt_tokens"] == 9
        assert asker.ask("POST", "/api/embeddings", {"prompt": "ab"})[1] == {"embedding": [2.0, 0.5]}
        assert asker.ask("POST", "/api/embed", {"input": ["ab"]})[1]["embeddings"] == [[2.0, 0.5]]


def test_a_model_may_be_exchanged_or_gone(endpoint: Endpoint, asker: Asker) -> None:
    endpoint.model = None
    response = asker.send("POST", "/v1/chat/completions", {"messages": HI})
    assert (response.status, response.headers["Retry-After"]) == (503, "1")
    assert json.loads(response.read())["error"]["code"] == "no_model"
    assert asker.ask("GET", "/v1/models")[1]["data"] == []
    endpoint.model = ScriptedModel(["new"], name="next")
    assert asker.ask("POST", "/v1/chat/completions", {"messages": HI})[1]["model"] == "next"


# ------------------------------------------------------------ errors of the model


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (DefinitionError("the prompt has 9 tokens, the context holds 8"), 400),
        (ModelClosed("unloaded"), 503),
        (ModelCrashed("in company", alone=False), 503),
        (ModelCrashed("alone"), 500),
        (KeyError("a fault"), 500),
    ],
)
def test_an_error_before_the_first_token_has_its_status(stream: bool, error: Exception, status: int) -> None:
    with endpoint_of(ScriptedModel([error])) as endpoint:
        response = Asker(endpoint, endpoint.grant("a")).send(
            "POST", "/v1/chat/completions", {"messages": HI, "stream": stream}
        )
        assert response.status == status
        assert response.headers.get("Retry-After") == ("1" if status == 503 else None)
        said = json.loads(response.read())["error"]["message"]
        assert (str(error) in said) != isinstance(error, KeyError), (
            "a fault of ours shows nothing of its inside"
        )


class Failing:
    """Speaks, then fails."""

    def __init__(self) -> None:
        self._items = iter(ScriptedModel(["one two"]).generate(GenerateRequest(prompt="x")))
        self._said = False

    def poll(self, timeout_s: float) -> Any:
        if self._said:
            raise ModelCrashed("ended by signal 9")
        self._said = True
        return next(self._items)

    def cancel(self) -> None:
        pass


def test_an_error_in_the_middle_of_a_stream_is_said_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScriptedModel()
    monkeypatch.setattr(model, "generate", lambda request: Failing())
    with endpoint_of(model) as endpoint:
        events = Asker(endpoint, endpoint.grant("a")).events(
            "/v1/chat/completions", {"messages": HI, "stream": True}
        )
    assert json.loads(events[-1])["error"]["message"] == "ended by signal 9"
    assert "[DONE]" not in events


def test_a_silent_stream_shows_signs_of_life() -> None:
    with endpoint_of(HeldModel(first=""), idle_s=0.01) as endpoint:
        response = Asker(endpoint, endpoint.grant("a")).send(
            "POST", "/v1/chat/completions", {"messages": HI, "stream": True}
        )
        assert response.status == 200
        response.readline()  # the event of the role
        response.readline()
        assert [response.readline()[:1] for _ in range(4)] == [b":", b"\n", b":", b"\n"]


# ------------------------------------------------------------ who may ask


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer no"}, {"Authorization": "Basic eDp5"}, {"Authorization": ""}]
)
def test_without_a_secret_there_is_nothing(endpoint: Endpoint, headers: dict[str, str]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", urlsplit(endpoint.url).port or 0, timeout=5)
    for path in ("/v1/models", "/api/tags", "/", "/attempt//v1/models", "/attempt/no/v1/models"):
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        response.read()


def test_the_secret_of_an_ended_attempt_opens_nothing(endpoint: Endpoint) -> None:
    one, two = endpoint.grant("a"), endpoint.grant("b")
    assert one != two
    endpoint.revoke(one)
    endpoint.revoke(one)
    endpoint.revoke("never given")
    assert Asker(endpoint, one).ask("GET", "/v1/models")[0] == 401
    assert Asker(endpoint, two).ask("GET", "/v1/models")[0] == 200


@pytest.mark.parametrize("stream", [False, True])
def test_the_end_of_an_attempt_ends_its_requests_and_no_others(stream: bool) -> None:
    model = HeldModel()
    with endpoint_of(model) as endpoint:
        one, two = endpoint.grant("a"), endpoint.grant("b")
        ended: list[object] = []

        def ask(secret: str) -> None:
            try:
                ended.append(
                    Asker(endpoint, secret)
                    .send("POST", "/v1/chat/completions", {"messages": HI, "stream": stream})
                    .read()
                )
            except (http.client.HTTPException, OSError) as e:
                ended.append(e)

        threads = [threading.Thread(target=ask, args=(secret,)) for secret in (one, two)]
        for n, thread in enumerate(threads, 1):
            thread.start()
            wait_for(lambda n=n: len(model.cancels) == n, what="the request")
        endpoint.revoke(one)
        assert model.cancels[0].wait(10)
        threads[0].join(5)
        assert isinstance(ended[0], Exception), "a text that was cut off never looks whole"
        assert not model.cancels[1].is_set()
    threads[1].join(5)
    assert model.cancels[1].is_set(), "the end of the endpoint ends the rest"
    assert isinstance(ended[1], Exception)


def test_one_attempt_cannot_take_all_the_connections() -> None:
    model = HeldModel()
    with endpoint_of(model) as endpoint:
        greedy, other = endpoint.grant("a"), endpoint.grant("b")
        held = [Asker(endpoint, greedy) for _ in range(32)]
        for asker in held:
            asker.send("POST", "/v1/chat/completions", {"messages": HI, "stream": True})
        status, value = Asker(endpoint, greedy).ask("GET", "/v1/models")
        assert (status, value["error"]["code"]) == (429, "rate_limit_exceeded")
        assert Asker(endpoint, other).ask("GET", "/v1/models")[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"Host": "127.0.0.1.evil.example:80"},
        {"Host": ""},
        {"Host": "[::1"},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
    ],
)
def test_a_page_in_a_browser_gets_nothing(asker: Asker, headers: dict[str, str]) -> None:
    assert asker.ask("GET", "/v1/models", **headers)[0] == 403


@pytest.mark.parametrize(
    "headers", [{"Host": "localhost:80"}, {"Host": "LOCALHOST"}, {"Origin": "http://127.0.0.1:3000"}]
)
def test_this_machine_by_any_of_its_names_is_served(asker: Asker, headers: dict[str, str]) -> None:
    assert asker.ask("GET", "/v1/models", **headers)[0] == 200


# ------------------------------------------------------------ a command's environment


def test_the_environment_names_the_endpoint_in_every_way() -> None:
    model = ScriptedModel(["yes"] * 9)
    with endpoint_of(model) as endpoint:
        secret = endpoint.grant("task-1.1")
        names = environment(endpoint, secret, model.name)
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/v1", names["OPENAI_BASE_URL"])
        assert names["OPENAI_API_BASE"] == names["OPENAI_BASE_URL"]
        assert (names["OPENAI_API_KEY"], names["RIGBUS_MODEL"]) == (secret, "scripted")
        assert {names[n] for n in ("WORKER_MODEL", "BRAIN_MODEL")} == {"scripted"}
        assert secret not in names["OPENAI_BASE_URL"]
        assert re.fullmatch(r"[\w-]+", secret), "needs no quoting anywhere"


SCRIPT = """
import json, os, urllib.request
def ask(url, body, **headers):
    request = urllib.request.Request(url, json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)
chat = {"model": os.environ["WORKER_MODEL"], "messages": [{"role": "user", "content": "x"}]}
old = {"model": os.environ["WORKER_MODEL"], "prompt": "x", "stream": False}
key = "Bearer " + os.environ["OPENAI_API_KEY"]
texts = [
    ask(os.environ["OPENAI_BASE_URL"] + "/chat/completions", chat, Authorization=key)["choices"][0]["message"]["content"],
    ask(os.environ["WORKER_API_BASE"] + "/v1/chat/completions", chat)["choices"][0]["message"]["content"],
    ask(os.environ["BRAIN_API_BASE"] + "/chat/completions", chat)["choices"][0]["message"]["content"],
    ask(os.environ["WORKER_OLLAMA_URL"] + "/api/generate", old)["response"],
]
print(" ".join(texts))
"""


def test_scripts_old_and_new_find_the_model_by_their_environment() -> None:
    model = ScriptedModel(["a", "b", "c", "d"])
    with endpoint_of(model) as endpoint:
        names = environment(endpoint, endpoint.grant("task-1.1"), model.name)
        done = subprocess.run(
            [sys.executable, "-I", "-c", SCRIPT],
            env=names,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert (done.stdout.strip(), done.stderr) == ("a b c d", "")


# ------------------------------------------------------------ llama.cpp


class Recorded:
    """A model that keeps its generations, and what was read of them."""

    def __init__(self, host: ModelHost) -> None:
        self.name = host.name
        self.generations: list[Generation] = []
        self.read: list[object] = []
        self._host = host

    def generate(self, request: GenerateRequest) -> Any:
        self.generations.append(self._host.generate(request))
        return RecordedGeneration(self.generations[-1], self.read)


class RecordedGeneration:
    def __init__(self, generation: Generation, read: list[object]) -> None:
        self._generation = generation
        self._read = read
        self.cancel = generation.cancel

    def poll(self, timeout_s: float) -> Any:
        self._read.append(self._generation.poll(timeout_s))
        return self._read[-1]


@pytest.mark.llm
@pytest.mark.parametrize("prompt", ["hi", "hi " * 2000], ids=["while it speaks", "while it reads"])
def test_a_client_that_goes_frees_its_place_in_llama_cpp(prompt: str, tmp_path: Path) -> None:
    write = runpy.run_path(str(ROOT / "tests/agents/tiny_gguf.py"))["write_tiny_gguf"]
    host = ModelHost(write(tmp_path / "tiny.gguf"), ctx=8192, parallel=1)
    model: Any = Recorded(host)
    try:
        host.load(30)
        with endpoint_of(model) as endpoint:
            secret = endpoint.grant("a")
            body = {"messages": [{"role": "user", "content": prompt}], "max_tokens": 7000, "stream": True}
            goes = Asker(endpoint, secret).connection
            goes.connect()
            sock = goes.sock
            goes.request(
                "POST", "/v1/chat/completions", json.dumps(body), {"Authorization": f"Bearer {secret}"}
            )
            if prompt == "hi":
                assert sock.recv(10)
            else:
                wait_for(lambda: model.generations, what="the request")
            sock.close()
            wait_for(lambda: "loopback-client" not in {t.name for t in threading.enumerate()})
            usage = [*model.read, *model.generations[0]][-1]
            assert (usage.finish, usage.completion_tokens < 7000) == ("cancelled", True)
            body |= {"messages": HI, "max_tokens": 3, "stream": False}
            endpoint.model = host
            assert Asker(endpoint, secret).ask("POST", "/v1/chat/completions", body)[0] == 200
    finally:
        host.close()


@pytest.mark.llm
def test_a_schema_holds_through_http(tmp_path: Path) -> None:
    write = runpy.run_path(str(ROOT / "tests/agents/tiny_gguf.py"))["write_tiny_gguf"]
    host = ModelHost(write(tmp_path / "tiny.gguf"))
    schema = {"type": "object", "properties": {"grade": {"enum": [1, 2]}}, "required": ["grade"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    try:
        host.load(30)
        with endpoint_of(host) as endpoint:
            asker = Asker(endpoint, endpoint.grant("a"))
            value = asker.ask("POST", "/v1/chat/completions", {"messages": HI, "response_format": form})[1]
    finally:
        host.close()
    assert json.loads(value["choices"][0]["message"]["content"])["grade"] in (1, 2)
    assert value["choices"][0]["finish_reason"] == "stop"
