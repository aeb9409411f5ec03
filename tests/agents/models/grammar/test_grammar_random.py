"""Schemas by chance: what llama.cpp writes by their grammars is a value of them, and their values are allowed."""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from random import Random
from typing import Any

import pytest
from helpers import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from recogniser import Recogniser

from rigbus.agents.models.grammar.parts import pointer
from rigbus.agents.models.grammar.schema import to_gbnf, unchecked
from rigbus.agents.models.host import ModelHost
from rigbus.agents.models.protocol import GenerateRequest, collect

write_tiny_gguf = runpy.run_path(str(ROOT / "tests/agents/tiny_gguf.py"))["write_tiny_gguf"]
pytestmark = pytest.mark.llm
quick = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf")
    return path


@pytest.fixture(scope="module")
def llama(tiny: Path) -> Iterator[Recogniser]:
    recogniser = Recogniser(tiny)
    yield recogniser
    recogniser.close()


@pytest.fixture(scope="module")
def host(tiny: Path) -> Iterator[ModelHost]:
    host = ModelHost(tiny, ctx=8192, parallel=1)
    yield host
    host.close()


# ------------------------------------------------------------ schemas, each with the values that it allows

Case = tuple[dict[str, Any] | bool, st.SearchStrategy[Any]]
characters = st.characters(exclude_categories=["Cs"])
names = st.text(characters, max_size=6)
scalars = (
    st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.sampled_from([0.5, -2.25, 1e-7]) | names
)
PATTERNS = {
    "^[a-z]+-[0-9]{2,4}$": r"[a-z]+-[0-9]{2,4}",
    '^("|\\\\|\\n|é)*$': '("|\\\\|\n|é)*',
    "^(?:ab|a)?b*$": "(ab|a)?b*",
    "x.y": ".*x.y.*",
}
FORMATS = {
    "date": st.dates(min_value=date(1000, 1, 1)).map(str),
    "uuid": st.uuids().map(str),
}


@st.composite
def leaves(draw: st.DrawFn) -> Case:
    match draw(st.sampled_from(["text", "integer", "number", "enum", "pattern", "format", "types", "any"])):
        case "text":
            low, more = draw(st.integers(0, 4)), draw(st.integers(0, 300) | st.none())
            high = None if more is None else low + more
            bounds = {"minLength": low} | ({} if high is None else {"maxLength": high})
            size = low + 5 if high is None else high
            return {"type": "string", **bounds}, st.text(characters, min_size=low, max_size=size)
        case "integer":
            low, more = draw(st.integers(-(10**6), 10**6)), draw(st.integers(0, 10**6))
            return {"type": "integer", "minimum": low, "maximum": low + more}, st.integers(low, low + more)
        case "number":
            low, more = draw(st.integers(-200, 200)), draw(st.integers(1, 300))
            inside = st.integers(low * 4 + 1, (low + more) * 4 - 1).map(lambda n: n / 4)
            kind = draw(st.sampled_from([("minimum", "maximum"), ("exclusiveMinimum", "exclusiveMaximum")]))
            return {"type": "number", kind[0]: low, kind[1]: low + more}, inside
        case "enum":
            values = draw(st.lists(scalars | st.lists(scalars, max_size=2) | st.dictionaries(names, scalars, max_size=2),
                                   min_size=1, max_size=8))  # fmt: skip
            return {"enum": values}, st.sampled_from(values)
        case "pattern":
            pattern = draw(st.sampled_from(sorted(PATTERNS)))
            values = st.from_regex(
                re.compile(PATTERNS[pattern], re.ASCII), fullmatch=True, alphabet=st.characters(codec="utf-8")
            )
            return {"type": "string", "pattern": pattern}, values.filter(
                lambda v: re.search("[\r\u2028\u2029]", v) is None
            )
        case "format":
            name = draw(st.sampled_from(sorted(FORMATS)))
            return {"type": "string", "format": name}, FORMATS[name]
        case "types":
            return {"type": ["boolean", "null"]}, st.none() | st.booleans()
        case _:
            return draw(st.sampled_from([{}, True])), scalars | st.lists(scalars, max_size=2)


@st.composite
def containers(draw: st.DrawFn, parts: st.SearchStrategy[Case]) -> Case:
    match draw(st.sampled_from(["object", "array", "tuple", "union", "map"])):
        case "object":
            cases = draw(st.dictionaries(names, parts, max_size=5))
            required = draw(st.sets(st.sampled_from(sorted(cases)))) if cases else set()
            needed = {name: values for name, (_, values) in cases.items() if name in required}
            free = {name: values for name, (_, values) in cases.items() if name not in required}
            schema = {
                "type": "object",
                "properties": {n: s for n, (s, _) in cases.items()},
                "required": sorted(required),
            }
            values = st.fixed_dictionaries(needed, optional=free)
            return schema | {"additionalProperties": False}, values.map(
                lambda v: {n: v[n] for n in cases if n in v}
            )
        case "array":
            (schema, values), low, more = draw(parts), draw(st.integers(0, 2)), draw(st.integers(0, 3))
            bounds = {"minItems": low, "maxItems": low + more}
            return {"type": "array", "items": schema, **bounds}, st.lists(
                values, min_size=low, max_size=low + more
            )
        case "tuple":
            cases = draw(st.lists(parts, min_size=1, max_size=3))
            schema = {"prefixItems": [s for s, _ in cases], "items": False, "minItems": len(cases)}
            return schema, st.tuples(*(values for _, values in cases)).map(list)
        case "union":
            cases = draw(st.lists(parts, min_size=1, max_size=3))
            return {"anyOf": [s for s, _ in cases]}, st.one_of(*(values for _, values in cases))
        case _:
            schema, values = draw(parts)
            return {"type": "object", "additionalProperties": schema}, st.dictionaries(
                names, values, max_size=3
            )


@st.composite
def documents(draw: st.DrawFn) -> tuple[dict[str, Any], Any]:
    """A schema, at times behind a reference, and one of its values."""
    schema, values = draw(st.recursive(leaves(), containers, max_leaves=8))
    if draw(st.booleans()) or not isinstance(schema, dict):
        name = draw(names)
        schema = {"$defs": {name: schema}, "$ref": pointer("#", "$defs", name).replace("%", "%25")}
    return schema, draw(values)


# ------------------------------------------------------------ a validator of just these


def valid(value: Any, schema: Any, root: Any) -> bool:
    if isinstance(schema, bool):
        return schema
    if "$ref" in schema:
        (name,) = root["$defs"]
        return valid(value, root["$defs"][name], root)
    return all(RULES[k](value, rule, schema, root) for k, rule in schema.items() if k in RULES)


def is_type(value: Any, name: str) -> bool:
    kinds = {
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "object": dict,
        "array": list,
    }
    if isinstance(value, bool) or value is None:
        return name == ("null" if value is None else "boolean")
    return name != "null" and isinstance(value, kinds[name])


def properties(value: Any, declared: Any, schema: Any, root: Any) -> bool:
    return all(valid(v, declared[n], root) if n in declared else True for n, v in value.items())


def others(value: Any, rule: Any, schema: Any, root: Any) -> bool:
    return all(valid(v, rule, root) for n, v in value.items() if n not in schema.get("properties", {}))


def same(one: Any, other: Any) -> bool:
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


RULES: Mapping[str, Any] = {
    "type": lambda v, r, s, d: any(is_type(v, name) for name in ([r] if isinstance(r, str) else r)),
    "minLength": lambda v, r, s, d: len(v) >= r,
    "maxLength": lambda v, r, s, d: len(v) <= r,
    "pattern": lambda v, r, s, d: re.search(r.replace("$", r"\Z"), v) is not None,
    "format": lambda v, r, s, d: len(v) == {"date": 10, "uuid": 36}[r],
    "minimum": lambda v, r, s, d: v >= r,
    "maximum": lambda v, r, s, d: v <= r,
    "exclusiveMinimum": lambda v, r, s, d: v > r,
    "exclusiveMaximum": lambda v, r, s, d: v < r,
    "enum": lambda v, r, s, d: any(same(v, each) for each in r),
    "required": lambda v, r, s, d: set(r) <= set(v),
    "properties": properties,
    "additionalProperties": others,
    "items": lambda v, r, s, d: all(valid(each, r, d) for each in v[len(s.get("prefixItems", [])) :]),
    "prefixItems": lambda v, r, s, d: all(valid(each, rule, d) for each, rule in zip(v, r, strict=False)),
    "minItems": lambda v, r, s, d: len(v) >= r,
    "maxItems": lambda v, r, s, d: len(v) <= r,
    "anyOf": lambda v, r, s, d: any(valid_or_other_type(v, each, d) for each in r),
}


def valid_or_other_type(value: Any, schema: Any, root: Any) -> bool:
    try:
        return valid(value, schema, root)
    except (TypeError, AttributeError):  # a rule of another type
        return False


# ------------------------------------------------------------ both ways


@quick
@given(documents())
def test_a_value_of_the_schema_is_allowed(llama: Recogniser, case: tuple[dict[str, Any], Any]) -> None:
    schema, value = case
    assert valid(value, schema, schema)
    assert unchecked(schema) == []
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))  # enums have no spaces
    assert llama.accepts(to_gbnf(schema), text) == [True]


@quick
@given(documents(), st.integers(0, 2**32))
def test_what_is_written_is_a_value_of_the_schema(
    llama: Recogniser, case: tuple[dict[str, Any], Any], seed: int
) -> None:
    schema, _ = case
    grammar = llama.grammar(to_gbnf(schema))
    try:
        for n in range(3):
            text = grammar.write(Random(seed + n), most=3000)
            assert text is None or valid(json.loads(text), schema, schema)
    finally:
        grammar.close()


@settings(quick, max_examples=15)
@given(documents(), st.integers(0, 2**31))
def test_what_a_model_writes_is_a_value_of_the_schema(
    host: ModelHost, case: tuple[dict[str, Any], Any], seed: int
) -> None:
    schema, _ = case
    request = GenerateRequest(prompt="x", json_schema=schema, temperature=1.0, seed=seed, max_tokens=300)
    result = collect(host.generate(request), host.name, as_json=True)
    # Overlong UTF-8, which llama.cpp lets pass, is replaced in the text: lengths are then those of the replacement.
    if result.usage.finish == "stop" and "\N{REPLACEMENT CHARACTER}" not in result.text:
        assert valid(json.loads(result.text), schema, schema)
