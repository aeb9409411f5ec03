"""Several requests on one llama.cpp at once, schemas, and prompts that begin alike: through the host, in a real child."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from helpers import wait_for
from modelparts import first_text, usage_of

from rigbus.agents.models.host import ModelHost, Patience
from rigbus.agents.models.protocol import (
    GenerateRequest,
    GenerateResult,
    ModelCrashed,
    Queued,
    collect,
)
from rigbus.bus.errors import DefinitionError

pytestmark = pytest.mark.llm


@pytest.fixture(scope="module")
def host(tiny: Path) -> Iterator[ModelHost]:
    host = ModelHost(tiny, ctx=8192, parallel=4)
    yield host
    host.close()


def ask(host: ModelHost, prompt: str = "hello", **options: Any) -> GenerateResult:
    return collect(
        host.generate(GenerateRequest(prompt=prompt, **options)), host.name, as_json="json_schema" in options
    )


# ------------------------------------------------------------ together


def test_a_request_is_answered_while_a_long_one_goes_on(host: ModelHost) -> None:
    long = host.generate(GenerateRequest(prompt="long", max_tokens=7000))
    first_text(long)
    assert ask(host, max_tokens=10).usage.completion_tokens == 10
    long.cancel()
    usage = usage_of(long)
    assert (usage.finish, usage.completion_tokens < 7000) == ("cancelled", True)


def test_each_text_in_company_is_its_own(host: ModelHost) -> None:
    prompts = [f"tell me about the number {n} and nothing else" for n in range(4)]
    alone = [ask(host, p, max_tokens=40, seed=n).text for n, p in enumerate(prompts)]
    assert len(set(alone)) == 4
    company = [host.generate(GenerateRequest(prompt=p, max_tokens=40, seed=n)) for n, p in enumerate(prompts)]
    texts = [collect(generation, host.name).text for generation in company]
    # Larger batches round differently, which may turn a text at some point; a mix-up would differ from the start.
    assert [t[:12] for t in texts] == [t[:12] for t in alone]


def test_more_requests_than_sequences_wait_their_turn(host: ModelHost) -> None:
    generations = [host.generate(GenerateRequest(prompt=f"p{n}", max_tokens=60)) for n in range(9)]
    usages = [usage_of(generation) for generation in generations]
    assert [usage.completion_tokens for usage in usages] == [60] * 9
    assert max(u.queued_s for u in usages[4:]) > max(u.queued_s for u in usages[:4])


def test_requests_that_need_the_whole_context_run_one_after_the_other(host: ModelHost) -> None:
    generations = [host.generate(GenerateRequest(prompt="x", max_tokens=100_000)) for _ in range(2)]
    first_text(generations[0])
    assert generations[1].poll(5) == Queued(0)
    assert generations[1].poll(0.05) is None
    for generation in generations:
        generation.cancel()
    assert [usage_of(g).finish for g in generations] == ["cancelled", "cancelled"]


def test_a_cancel_while_it_waits_or_reads_frees_the_place(host: ModelHost) -> None:
    for _ in range(20):
        generation = host.generate(GenerateRequest(prompt="word " * 1500, max_tokens=2000))
        generation.cancel()
        assert usage_of(generation).finish == "cancelled"
    assert ask(host, max_tokens=3).usage.completion_tokens == 3


def test_a_wrong_request_disturbs_nobody(host: ModelHost) -> None:
    running = host.generate(GenerateRequest(prompt="go on", max_tokens=300))
    first_text(running)
    with pytest.raises(DefinitionError, match="the context of model"):
        ask(host, "word " * 9000)
    assert usage_of(running).completion_tokens == 300


def test_who_waited_is_answered_by_the_next_child_and_who_ran_is_told(tiny: Path, tmp_path: Path) -> None:
    host = ModelHost(tiny, ctx=8192, parallel=2, patience=Patience(backoff_s=0.05), log_path=tmp_path / "log")
    try:
        running = [host.generate(GenerateRequest(prompt=f"r{n}", max_tokens=3000)) for n in range(2)]
        for generation in running:
            first_text(generation)
        waiting = host.generate(GenerateRequest(prompt="w", max_tokens=5))
        pid = host.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        for generation in running:
            with pytest.raises(ModelCrashed, match="signal 9") as caught:
                usage_of(generation)
            # Two ran: nobody knows whose fault it was, so no attempt of class crash is counted.
            assert caught.value.error_class == "infra"
        assert usage_of(waiting).completion_tokens == 5
        alone = host.generate(GenerateRequest(prompt="alone", max_tokens=3000))
        first_text(alone)
        os.kill(wait_for(lambda: host.pid, what="the next child"), signal.SIGKILL)
        with pytest.raises(ModelCrashed) as caught:
            usage_of(alone)
        assert caught.value.error_class == "crash"
    finally:
        host.close()


# ------------------------------------------------------------ prompts that begin alike


def test_a_prompt_that_begins_like_the_last_one_is_not_read_again(host: ModelHost) -> None:
    text = "a long story about a fox and a dog. " * 20
    first = ask(host, text + "one", max_tokens=2).usage
    again = ask(host, text + "two", max_tokens=2).usage
    assert again.cached_tokens >= len(text) // 2
    assert again.prompt_tokens == first.prompt_tokens


def test_a_seed_means_that_the_prompt_is_computed_anew(host: ModelHost) -> None:
    texts = set()
    for _ in range(3):
        result = ask(host, "the same again", max_tokens=60, seed=11)
        assert result.usage.cached_tokens == 0
        texts.add(result.text)
    assert len(texts) == 1


# ------------------------------------------------------------ schemas

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("temperature", [0.0, 0.8, 5.0])
def test_a_schema_makes_json_that_it_allows(host: ModelHost, temperature: float) -> None:
    result = ask(host, "who?", json_schema=PERSON, max_tokens=400, temperature=temperature)
    assert result.usage.finish == "stop"
    value = result.json
    assert json.loads(result.text) == value
    assert sorted(value) == ["age", "name", "tags"]
    assert isinstance(value["age"], int)
    assert set(value["tags"]) <= {"a", "b"}
    assert 1 <= len(value["tags"]) <= 3


def test_schemas_and_plain_texts_run_side_by_side(host: ModelHost) -> None:
    plain = host.generate(GenerateRequest(prompt="plain", max_tokens=200))
    grades = [ask(host, json_schema={"enum": [1, 2, 3, 4, 5]}, max_tokens=10).json for _ in range(4)]
    assert all(grade in range(1, 6) for grade in grades)
    assert usage_of(plain).completion_tokens == 200


def test_a_text_that_is_cut_off_has_no_json(host: ModelHost) -> None:
    result = ask(host, json_schema=PERSON, max_tokens=4)
    assert (result.usage.finish, result.json) == ("length", None)


@pytest.mark.parametrize(
    "schema",
    [{"type": "nonsense"}, {"$ref": "#/nowhere"}, {"type": "string", "pattern": "(?<=a)b"}],
    ids=["type", "ref", "pattern"],
)
def test_a_schema_without_a_grammar_is_a_definition_error(host: ModelHost, schema: dict[str, Any]) -> None:
    with pytest.raises(DefinitionError, match="json_schema: "):
        ask(host, json_schema=schema)
    assert ask(host, max_tokens=2).usage.completion_tokens == 2


# ------------------------------------------------------------ schemas that refer to themselves

ARRAYS = {"type": "array", "items": {"$ref": "#"}}
TREE = {
    "type": "object",
    "properties": {"v": {"enum": [1, 2]}, "kids": {"type": "array", "items": {"$ref": "#"}, "minItems": 1}},
    "required": ["v"],
}
KINDS = {
    "anyOf": [
        {
            "type": "object",
            "properties": {"kind": {"const": f"k{n}"}, "a": {"$ref": "#"}},
            "required": ["kind"],
        }
        for n in range(60)
    ]
}


@pytest.mark.parametrize(
    ("schema", "temperature", "tokens"),
    [(ARRAYS, 1, 2000), (ARRAYS, 0, 600), (TREE, 1, 600), (KINDS, 1, 600)],
    ids=["arrays", "arrays only opened", "tree", "sixty kinds told apart"],
)
def test_a_schema_that_refers_to_itself_ends_at_max_tokens_or_before(
    host: ModelHost, schema: dict[str, Any], temperature: float, tokens: int
) -> None:
    """However deep it gets: no crash, no other end, and its text is as long as any other's."""
    result = ask(host, json_schema=schema, temperature=temperature, max_tokens=tokens, seed=3)
    assert result.usage.finish == ("length" if result.usage.completion_tokens == tokens else "stop")
    if result.usage.finish == "stop":
        json.loads(result.text)
    else:
        assert result.json is None, "a text that was cut off has no value"
    assert host.state.phase == "ready"


@pytest.mark.parametrize("count", [2, 30, 150])
def test_a_schema_whose_ways_multiply_is_refused_before_it_takes_long(host: ModelHost, count: int) -> None:
    """Kinds that hold one another and begin alike: nobody can tell which one is meant, at any depth."""
    end = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}
    kinds = [
        {"type": "object", "properties": {"g": {"$ref": "#"}, f"p{n}": {"type": "null"}}, "required": ["g"]}
        for n in range(count)
    ]
    beside = host.generate(GenerateRequest(prompt="go on", max_tokens=5000))
    first_text(beside)
    began = monotonic()
    with pytest.raises(
        DefinitionError, match=r"too many ways to go on \(.* ms for one token\): .*begin alike"
    ):
        ask(host, json_schema={"anyOf": [end, *kinds]}, temperature=0, max_tokens=400)
    assert monotonic() - began < 15, "the next level would take minutes"
    beside.cancel()
    assert usage_of(beside).finish == "cancelled", "whoever ran beside it goes on"
