"""`parse`, `decide` and `embed` with a scripted model: what is asked, how an answer is checked, repaired and refused."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from modelparts import write_tiny_gguf

from rigbus.agents.attempts.threads import run_handler
from rigbus.agents.context import TaskContext
from rigbus.agents.llm import ModelAgent
from rigbus.agents.models.host import ModelHost
from rigbus.agents.models.protocol import GenerateRequest, Model
from rigbus.agents.models.scripted import ScriptedGeneration, ScriptedModel
from rigbus.agents.worker.events import Lease, Outcome
from rigbus.bus.errors import DefinitionError
from rigbus.bus.tags import MODEL_TYPES
from rigbus.bus.wire import Token, pack, unpack

SCORE = {"type": "object", "properties": {"score": {"type": "integer", "maximum": 5}}, "required": ["score"]}


class Listener:
    """The worker's side of a handler: it keeps what was told."""

    def __init__(self) -> None:
        self.chunks: list[Any] = []
        self.notes: list[str] = []
        self.shares: list[float] = []

    def progress(self, token: Token, pct: float | None, note: str | None, data: bytes | None) -> None:
        self.chunks += [] if data is None else [unpack(data)]
        self.notes += [] if note is None else [note]
        self.shares += [] if pct is None else [pct]

    def waiting(self, token: Token, waits: bool) -> None:
        raise AssertionError("a model's task never waits for the bus")


class Rig:
    """An agent with one model, without a bus."""

    def __init__(self, model: Model, logs: Path | None = None) -> None:
        self.model: Any = model
        self.listener = Listener()
        self.agent = ModelAgent()
        self.agent.model = model
        self._logs = logs

    def run(self, kind: str, **payload: object) -> Outcome:
        lease = Lease((1, 1), "id", "batch", "key", kind)
        lease.payload = pack(payload)
        self.task = TaskContext(lease, self.listener, self._logs)
        return run_handler(self.agent, ModelAgent.specs()[kind], lease, self.task, None)

    def value(self, kind: str, **payload: object) -> Any:
        outcome = self.run(kind, **payload)
        assert outcome.ok, outcome.error
        return unpack(outcome.body)


def rig(*answers: str | Exception) -> Rig:
    return Rig(ScriptedModel(answers))


def test_an_agent_of_a_model_offers_its_types_and_what_plans_may_need() -> None:
    agent = rig().agent
    assert set(ModelAgent.specs()) == set(MODEL_TYPES)
    assert set(agent.offers()) == {"model:scripted", "tier:1", "placement:single_gpu", "role:worker"}


# -- parse


def test_parse_asks_with_the_text_and_the_schema_and_returns_the_value() -> None:
    r = rig('{"score": 4}')
    value = r.value("parse", text="four of five", json_schema=SCORE)
    asked = r.model.asked[0]
    assert (asked.prompt or "").startswith("Give what the following text says as JSON.\n\nfour of five\n\n")
    assert json.dumps(SCORE, separators=(",", ":")) in (asked.prompt or "")
    assert (asked.json_schema, asked.temperature) == (SCORE, 0.0)
    assert (value["json"], value["text"], value["repaired"]) == ({"score": 4}, '{"score": 4}', False)
    assert (value["model"], value["finish"], r.listener.chunks) == ("scripted", "stop", [])
    assert r.listener.shares == []  # two words of 512


def test_parse_puts_the_text_behind_the_last_message_of_the_user() -> None:
    r = rig('{"score": 1}', '{"score": 1}')
    system, user = {"role": "system", "content": "be strict"}, {"role": "user", "content": "rate this"}
    r.value("parse", messages=[system, user], text="it is bad", json_schema=SCORE)
    first, last = r.model.asked[0].messages or ()
    assert first == system
    assert last["content"].startswith("rate this\n\nit is bad\n\nAnswer with JSON")
    r.value("parse", messages=[system], text="it is bad", json_schema=SCORE)
    assert [m["role"] for m in r.model.asked[1].messages or ()] == ["system", "user"]


def test_an_answer_that_the_grammar_let_through_is_repaired_once_and_counted_whole() -> None:
    r = rig('{"score": 9}', '{"score": 5}')
    value = r.value("parse", text="great", json_schema=SCORE)
    assert (value["json"], value["repaired"]) == ({"score": 5}, True)
    told = r.model.asked[1].prompt or ""
    assert told.startswith(r.model.asked[0].prompt or "-")
    assert 'An earlier answer was:\n{"score": 9}' in told
    assert "/score: 9 is above 5" in told
    first, second = (len((one.prompt or "").split()) for one in r.model.asked)
    assert value["usage"]["prompt_tokens"] >= first + second - 2
    assert value["usage"]["completion_tokens"] == 4
    assert "/score: 9 is above 5" in r.listener.notes[0]


def test_a_second_bad_answer_fails_as_class_task_with_the_place_and_what_was_wrong(tmp_path: Path) -> None:
    r = Rig(ScriptedModel(['{"score": 9}', '{"score": 8}']), logs=tmp_path)
    outcome = r.run("parse", text="great", json_schema=SCORE)
    assert (outcome.ok, outcome.cls) == (False, "task")
    assert outcome.error == (
        "parse: the answer is not valid: /score: 8 is above 5 (the first one: /score: 9 is above 5)"
    )
    (log,) = tmp_path.rglob("*.log")
    assert '{"score": 8}' in log.read_text()


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ("no json", "the whole answer"),
        ('{"score": NaN}', "NaN is no JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"score": true}', "/score: true is no integer"),
        ('{"other": 1}', 'the property "score" is missing'),
    ],
)
def test_whatever_is_wrong_is_named_in_the_second_question(first: str, words: str) -> None:
    r = rig(first, '{"score": 2}')
    assert r.value("parse", text="x", json_schema=SCORE)["json"] == {"score": 2}
    told = r.model.asked[1].prompt or ""
    assert words.replace("the whole answer", "it is no JSON") in told


def test_an_answer_that_is_cut_off_says_so() -> None:
    r = rig('{"score": 1 }', "{ x y")
    outcome = r.run("parse", text="x", json_schema=SCORE, max_tokens=2)
    assert "cut off at max_tokens" in (outcome.error or "")
    assert outcome.cls == "task"


def test_a_repair_that_cannot_be_asked_names_the_first_fault() -> None:
    r = rig('{"score": 9}', DefinitionError("the prompt is longer than the context"))
    outcome = r.run("parse", text="x", json_schema=SCORE)
    assert outcome.cls == "task"
    assert "/score: 9 is above 5; it could not be asked for once more: the prompt is longer" in (
        outcome.error or ""
    )


class CancelledModel(ScriptedModel):
    """Its task is cancelled before it has said a word."""

    agent_task: TaskContext | None = None

    def generate(self, request: GenerateRequest) -> ScriptedGeneration:
        generation = super().generate(request)
        generation.cancel()
        return generation


def test_a_cancelled_parse_asks_nothing_more_and_writes_nothing(tmp_path: Path) -> None:
    r = Rig(CancelledModel(["{"]))
    value = r.value("parse", text="x", json_schema=SCORE, output=str(tmp_path / "x.json"))
    assert (value["finish"], value["json"], len(r.model.asked)) == ("cancelled", None, 1)
    assert not (tmp_path / "x.json").exists()


def test_parse_writes_its_json(tmp_path: Path) -> None:
    rig('{"score":   3}').value("parse", text="x", json_schema=SCORE, output=str(tmp_path / "o" / "x.json"))
    assert json.loads((tmp_path / "o" / "x.json").read_text()) == {"score": 3}


def test_a_schema_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(SCORE))
    assert rig('{"score": 3}').value("parse", text="x", json_schema=str(tmp_path / "s.json"))["json"] == {
        "score": 3
    }


# -- decide


def test_decide_chooses_one_of_the_choices_and_says_why() -> None:
    r = rig('{"reason": "it rains", "decision": "stay"}')
    value = r.value("decide", prompt="go out?", choices=["go", "stay"])
    assert (value["decision"], value["reason"]) == ("stay", "it rains")
    asked = r.model.asked[0]
    assert (
        asked.prompt == "go out?\n\nChoose one of:\n- go\n- stay\nGive the reason first, then the decision."
    )
    schema: Any = asked.json_schema
    assert list(schema["properties"]) == ["reason", "decision"]
    assert schema["properties"]["decision"] == {"enum": ["go", "stay"]}


def test_decide_without_choices_takes_any_short_text() -> None:
    assert rig('{"reason": "", "decision": "x"}').value("decide", prompt="?")["decision"] == "x"


def test_a_reason_that_is_long_is_no_fault() -> None:
    answer = json.dumps({"reason": "because " * 100, "decision": "go"})
    r = rig(answer)
    assert r.value("decide", prompt="?", choices=["go"])["repaired"] is False
    schema: Any = r.model.asked[0].json_schema
    assert schema["properties"]["reason"]["maxLength"] == 180


def test_a_decision_outside_of_the_choices_is_repaired_or_fails() -> None:
    bad = '{"reason": "", "decision": "swim"}'
    r = rig(bad, '{"reason": "", "decision": "go"}')
    assert r.value("decide", prompt="?", choices=["go"])["repaired"] is True
    outcome = rig(bad, bad).run("decide", prompt="?", choices=["go"])
    assert (outcome.cls, '/decision: "swim" is none of ["go"]' in (outcome.error or "")) == ("task", True)


def test_decide_by_a_schema_of_ones_own() -> None:
    assert rig('{"score": 2}').value("decide", prompt="?", json_schema=SCORE)["json"] == {"score": 2}
    assert rig("3").value("decide", prompt="?", json_schema={"type": "integer"})["decision"] == 3


# -- embed


def test_embed_gives_a_vector_a_text_in_their_order(tmp_path: Path) -> None:
    r = Rig(ScriptedModel([]))
    value = r.value("embed", texts=["a", "bcd", "a"], output=str(tmp_path / "v.json"))
    first, other, again = value["vectors"]
    assert first == again != other
    assert math.hypot(*first) == pytest.approx(1.0, abs=1e-6)
    assert sorted(value) == ["model", "timings", "usage", "vectors"]
    assert value["usage"]["prompt_tokens"] >= 3
    assert json.loads((tmp_path / "v.json").read_text()) == value
    assert r.value("embed", text="bcd")["vectors"] == [other]


# -- wrong payloads


@pytest.mark.parametrize(
    ("kind", "payload", "words"),
    [
        ("parse", {"text": "x"}, 'parse: field "json_schema"'),
        ("parse", {"json_schema": SCORE}, 'parse: there is nothing to read; give "text"'),
        ("parse", {"text": " ", "json_schema": SCORE}, 'parse: field "text" is empty'),
        ("parse", {"text": "x", "input": "/y", "json_schema": SCORE}, 'both "text" and "input"'),
        ("parse", {"text": "x", "json_schema": {"type": "text"}}, 'json_schema: /type: "text" is no type'),
        ("parse", {"text": "x", "json_schema": {"$ref": "#/no"}}, "leads nowhere"),
        ("parse", {"text": "x", "json_schema": SCORE, "max_tokens": 0}, 'parse: field "max_tokens" is 0'),
        ("parse", {"prompt": "a", "messages": [], "json_schema": SCORE}, "parse: both"),
        ("parse", {"messages": [], "text": "x", "json_schema": SCORE}, 'parse: field "messages" is empty'),
        ("parse", {"text": "x", "json_schema": SCORE, "model": "gpt"}, 'parse: field "model": there is no'),
        ("parse", {"text": "x", "json_schema": SCORE, "input": "/etc/passwd"}, "both"),
        ("generate", {"prompt": "x", "input": "/etc/passwd"}, 'field "input" is for tasks of plans'),
        ("decide", {}, 'decide: neither "prompt" nor "messages"'),
        ("decide", {"prompt": "x", "choices": []}, 'decide: field "choices" has 0 texts'),
        ("decide", {"prompt": "x", "choices": ["a", "a"]}, "'a' twice"),
        ("decide", {"prompt": "x", "choices": [""]}, "number 1 has 0 characters"),
        ("decide", {"prompt": "x", "choices": ["a"], "json_schema": {}}, 'both "choices" and "json_schema"'),
        ("embed", {}, "embed: 0 texts; give 1 to 1024"),
        ("embed", {"texts": ["a", " "]}, 'embed: field "texts": number 2 is empty'),
        ("embed", {"texts": ["a"], "text": "b"}, 'embed: "texts" is given beside'),
        ("embed", {"texts": "a"}, 'embed: field "texts"'),
    ],
)
def test_a_wrong_payload_is_a_definition_error_that_names_the_field(
    kind: str, payload: dict[str, object], words: str
) -> None:
    outcome = rig("1").run(kind, **payload)
    assert outcome.cls == "definition", outcome.error
    assert words in (outcome.error or "")


# -- how long an answer may be


@pytest.mark.parametrize(
    ("kind", "payload", "usual"),
    [
        ("generate", {"prompt": "a"}, 256),
        ("parse", {"text": "a", "json_schema": SCORE}, 512),
        ("decide", {"prompt": "a", "choices": ["yes", "no"]}, 1024),
    ],
)
def test_a_request_says_how_long_else_its_model_does_else_its_type(
    kind: str, payload: dict[str, Any], usual: int
) -> None:
    asked = []
    for of_model, given in ((None, {}), (77, {}), (77, {"max_tokens": 5})):
        r = rig("no JSON", "no JSON")
        r.agent.max_tokens = of_model
        r.run(kind, **payload, **given)
        asked.append(r.model.asked[0].max_tokens)
    assert asked == [usual, 77, 5]


def test_a_wrong_number_is_named() -> None:
    outcome = rig().run("generate", prompt="a", max_tokens=0)
    assert not outcome.ok and 'field "max_tokens" is 0; give 1 to' in (outcome.error or "")


# -- a small context


@pytest.mark.llm
def test_what_a_small_context_has_shortened_is_said(tmp_path: Path) -> None:
    host = ModelHost(write_tiny_gguf(tmp_path / "tiny.gguf"), ctx=512, log_path=tmp_path / "model.log")
    try:
        host.load(30)
        r = Rig(host, tmp_path)
        value = r.value("generate", prompt="x" * 450, max_tokens=80, temperature=0.3)
        made, read = value["usage"]["completion_tokens"], value["usage"]["prompt_tokens"]
        assert (value["finish"], made + read) == ("length", 512)
        said = (
            f"it was cut off after {made} of 80 tokens: the context of model tiny was full (its prompt has {read} tokens); "
            "shorten the prompt, or give the model a larger ctx"
        )
        assert r.listener.notes[-1].endswith(said)
        assert said in "".join(file.read_text() for file in tmp_path.rglob("key*"))
        long = {"type": "string", "minLength": 400}
        outcome = r.run("parse", text="x" * 200, json_schema=long, max_tokens=600)
        assert not outcome.ok
        assert re.search(
            r"cut off after \d+ of 600 tokens: the context of model tiny was full", outcome.error or ""
        )
        outcome = r.run("parse", text="x" * 600, json_schema=long, max_tokens=600)
        assert (outcome.cls, "tokens, the context of model tiny holds 512" in (outcome.error or "")) == (
            "definition",
            True,
        )
        enough = r.value("generate", prompt="x", max_tokens=20)
        assert (enough["finish"], enough["usage"]["completion_tokens"]) == ("length", 20)
        assert sum("shorter than it might be" in note for note in r.listener.notes) == 2, (
            "max_tokens is no news"
        )
    finally:
        host.close()


def test_another_name_of_the_model_will_do() -> None:
    served = rig("hello")
    served.agent.also = ("qwen-7b",)
    assert served.value("generate", prompt="x", model="qwen-7b")["model"] == "scripted"
    assert served.run("generate", prompt="x", model="qwen-8b").cls == "definition"
