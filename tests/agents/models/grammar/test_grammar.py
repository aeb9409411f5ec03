"""JSON schemas as grammars: which texts llama.cpp then allows."""

from __future__ import annotations

import json
import runpy
from collections.abc import Iterator
from datetime import date, datetime
from enum import Enum
from random import Random
from typing import Any, Literal
from uuid import UUID

import pytest
from helpers import ROOT
from pydantic import BaseModel, Field
from recogniser import Recogniser

from rigbus.agents.models.grammar.schema import to_gbnf, unchecked

write_tiny_gguf = runpy.run_path(str(ROOT / "tests/agents/tiny_gguf.py"))["write_tiny_gguf"]


pytestmark = pytest.mark.llm


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recogniser]:
    recogniser = Recogniser(write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf"))
    yield recogniser
    recogniser.close()


def written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def objects(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), **more}


INT, TEXT, BOOL = {"type": "integer"}, {"type": "string"}, {"type": "boolean"}
EVIL = 'q"\\\n\t\x01\x7f😀é[^-]'
TREE = {"$defs": {"N": objects({"v": INT, "kids": {"type": "array", "items": {"$ref": "#/$defs/N"}}})}}
LIST = {"anyOf": [{"type": "null"}, objects({"next": {"$ref": "#"}})]}

# name: schema, texts that it allows, texts that it does not
TABLE: dict[str, tuple[dict[str, Any], list[str], list[str]]] = {
    "anything": (
        {},
        ["1", "-0.5e+3", "null", '"é\\u00e9"', "[1, 2]", '{"a":[{"b": {}}]}', '"😀"'],
        ["", "01", "1.", "nul", "[1,  2]", "[ 1]", '{"a" :1}', '"a\nb"', '"\\x41"', "NaN", '"\\ud800"', "1 "],
    ),
    "title only": ({"title": "x", "description": "y", "default": 1, "examples": [1]}, ["1", "{}"], ["x"]),
    "boolean": (BOOL, ["true", "false"], ["null", "1"]),
    "types": ({"type": ["string", "null"], "maxLength": 2}, ["null", '"ab"'], ["1", '"abc"']),
    "implied type": ({"minLength": 1}, ['"a"'], ['""', "1"]),
    "integer": (INT, ["0", "-7", "9999999999999999"], ["1.0", "1e3", "-0.1", "00", "99999999999999999"]),
    "bounds": (
        {"type": "integer", "minimum": -5, "exclusiveMaximum": 124},
        ["-5", "-1", "0", "9", "99", "100", "123"],
        ["-6", "-0", "124", "200", "1000"],
    ),
    "lower bound": (
        {"type": "integer", "minimum": 17},
        ["17", "20", "99", "100", "123456"],
        ["16", "9", "-17"],
    ),
    "real lower bound": ({"type": "integer", "minimum": 0.5, "maximum": 3.5}, ["1", "3"], ["0", "4"]),
    "number": ({"type": "number"}, ["1", "1.0", "-2.5e-7"], ["1e999", ".5", '"1"']),
    "share": (
        {"type": "number", "minimum": 0, "maximum": 1},
        ["0", "0.0", "0.75", "1", "1.0"],
        ["1.1", "-0.1", "2", "1.01"],
    ),
    "open bounds": (
        {"type": "number", "exclusiveMinimum": -2, "exclusiveMaximum": 3},
        ["-1.99", "-1", "-0.5", "0", "2.99"],
        ["-2", "-2.0", "3", "3.0", "3.1"],
    ),
    "negative": (
        {"type": "number", "minimum": -3, "maximum": -1},
        ["-3", "-2.5", "-1.0"],
        ["-0.9", "0", "-3.1"],
    ),
    "length": (
        {**TEXT, "minLength": 2, "maxLength": 3},
        ['"ab"', '"a\\n😀"', '"\\u00e9ab"'],
        ['"a"', '"abcd"'],
    ),
    "empty text": ({**TEXT, "maxLength": 0}, ['""'], ['"a"']),
    "enum": (
        {"enum": [EVIL, 1, True, None, {"a": [1, "x"]}]},
        [written(EVIL), "1", "true", '{"a":[1,"x"]}'],
        ["2"],
    ),
    "enum that begin alike": (
        {"enum": ["a", "ab", "abc", ""]},
        ['""', '"a"', '"ab"', '"abc"'],
        ['"abcd"', '"b"'],
    ),
    "enum of a type": ({"type": "string", "enum": ["a", 1]}, ['"a"'], ["1"]),
    "const": ({"const": {EVIL: None}}, [written({EVIL: None})], ["{}"]),
    "evil names": (objects({EVIL: INT, "$ref": INT}), [written({EVIL: 1, "$ref": 2})], ['{"$ref":1}']),
    "optional": (
        {"properties": {"a": INT, "b": INT, "c": INT}, "required": ["b"]},
        ['{"a":1,"b":2,"c":3}', '{"b": 2}', '{"a":1, "b":2}', '{"b":2,"c":3}'],
        ["{}", '{"a":1}', '{"b":2,"a":1}', '{"b":1,"b":2}', '{"b":2,}', '{"b":2,"d":1}'],
    ),
    "all optional": (
        {"properties": {"a": INT, "b": INT}},
        ["{}", '{"a":1}', '{"b":1}'],
        ['{"b":1,"a":1}', '{"x":1}'],
    ),
    "others": (
        {"properties": {"ab": INT, "a": INT}, "additionalProperties": TEXT},
        ["{}", '{"ab":1,"x":"y","abc":"z","":""}', '{"x":"y"}', '{"é":"y"}'],
        ['{"a":"x"}', '{"ab":"x"}', '{"x":1}', '{"\\u0061":"x"}', '{"x":"y","ab":1}'],
    ),
    "map": (
        {"type": "object", "additionalProperties": INT, "maxProperties": 2},
        ["{}", '{"a":1,"b":2}'],
        ['{"a":""}'],
    ),
    "any object": ({"type": "object"}, ["{}", '{"a":[1]}'], ["[]"]),
    "no object": ({"type": "object", "additionalProperties": False}, ["{}"], ['{"a":1}']),
    "named": (
        {"type": "object", "propertyNames": {"enum": ["a", 'b"']}, "additionalProperties": INT},
        ['{"a":1}', '{"b\\"":2}'],
        ['{"c":1}'],
    ),
    "name pattern": ({"patternProperties": {"^x": INT}}, ['{"x1":1}'], ['{"y":1}', '{"x":""}']),
    "undeclared": ({"type": "object", "required": ["a"]}, ['{"a":[1]}'], ["{}", '{"b":1}']),
    "never": ({"properties": {"a": False, "b": INT}, "required": ["b"]}, ['{"b":1}'], ['{"a":1,"b":1}']),
    "array": ({"items": INT, "minItems": 1, "maxItems": 3}, ["[1]", "[1, 2,3]"], ["[]", "[1,2,3,4]", "[1,]"]),
    "array of any": ({"type": "array", "items": {}}, ["[]", '[1,"a",[]]'], ["1"]),
    "array of nothing": ({"type": "array", "items": False}, ["[]"], ["[1]"]),
    "tuple": (
        {"prefixItems": [INT, TEXT], "items": BOOL, "minItems": 1, "maxItems": 3},
        ["[1]", '[1,"a"]', '[1,"a",true]'],
        ["[]", "[1,2]", '[1,"a",1]', '[1,"a",true,true]'],
    ),
    "older tuple": (
        {"items": [INT, TEXT], "additionalItems": False},
        ["[]", "[1]", '[1,"a"]'],
        ['[1,"a",1]'],
    ),
    "union": (
        {"anyOf": [INT, objects({"a": TEXT}), objects({"a": INT})]},
        ["1", '{"a":"x"}', '{"a":1}'],
        ['{"a":null}'],
    ),
    "union with more": (
        {
            "type": "object",
            "properties": {"a": INT, "b": INT},
            "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
        },
        ['{"a":1}', '{"b":1}', '{"a":1,"b":2}'],
        ["{}"],
    ),
    "discriminator": (
        {
            "oneOf": [{"properties": {"k": {"const": n}}} for n in "ab"],
            "discriminator": {"propertyName": "k"},
        },
        ['{"k":"a"}', '{"k":"b"}'],
        ["{}"],
    ),
    "all": (
        {
            "allOf": [
                objects({"a": INT}),
                {**objects({"b": TEXT}), "properties": {"a": {"minimum": 5}, "b": TEXT}},
            ]
        },
        ['{"a":5,"b":""}'],
        ['{"a":4,"b":""}', '{"a":5}'],
    ),
    "ref with more": ({"$defs": {"n": INT}, "$ref": "#/$defs/n", "minimum": 3}, ["3"], ["2"]),
    "escaped ref": ({"$defs": {"a/b~ é": INT}, "$ref": "#/$defs/a~1b~0%20%C3%A9"}, ["3"], ['"a"']),
    "tree": (
        {**TREE, "$ref": "#/$defs/N"},
        ['{"v":1,"kids":[{"v":2, "kids":[]}]}'],
        ['{"v":1}', '{"v":1,"kids":[1]}'],
    ),
    "list": (LIST, ["null", '{"next":{"next":null}}'], ['{"next":1}']),
    "date": (
        {**TEXT, "format": "date"},
        ['"2024-02-29"', '"2000-02-29"', '"2023-12-31"'],
        ['"2023-02-29"', '"1900-02-29"', '"2023-04-31"', '"2023-13-01"', '"0000-01-01"'],
    ),
    "time": (
        {"format": "time"},
        ['"23:59:59.5Z"', '"00:00:00+02:00"'],
        ['"24:00:00Z"', '"12:00Z"', '"12:00:00"'],
    ),
    "moment": (
        {"format": "date-time"},
        ['"2024-02-29T23:59:59Z"'],
        ['"2024-02-29"', '"2024-02-29 23:59:59Z"'],
    ),
    "uuid": (
        {"format": "uuid"},
        ['"123e4567-e89b-12d3-a456-426614174000"'],
        ['"123e4567e89b12d3a456426614174000"'],
    ),
    "pattern and length": (
        {"pattern": "^(ab)*$|c", "minLength": 3, "maxLength": 4},
        ['"abab"', '"xcx"', '"ccc"'],
        ['"ab"', '"ababab"', '"xxx"', '"aba"', '"cc"', '"ccccc"'],
    ),
    # What the converter of llama-cpp-python gets wrong.
    "backslash": (
        {"enum": ["a\\d", 'say "x"', "a\x00b"]},
        ['"a\\\\d"', '"say \\"x\\""', '"a\\u0000b"'],
        ['"a\\d"'],
    ),
    "a name like a rule's": (
        {"$defs": {"a": TEXT}, **objects({"a": INT, "b": {"$ref": "#/$defs/a"}})},
        ['{"a":1,"b":"x"}'],
        ['{"a":1,"b":1}', '{"a":"x","b":"x"}'],
    ),
    "root is a reference": ({"$defs": {"a": INT}, "$ref": "#/$defs/a"}, ["1"], ['"a"']),
    "true": (objects({"a": True}), ['{"a":[null]}'], ["{}"]),
    "control characters": (TEXT, ['"\\n"'], ['"\n"', '"\x00"', '"\x1f"', '"\t"']),
    "text of a pattern": ({"pattern": '^["\\\\\\n]{3}$'}, ['"\\"\\\\\\n"'], ['"""""', '"\\""', '"\\"\n\\n"']),
}


@pytest.mark.parametrize("name", TABLE)
def test_llama_cpp_allows_the_texts_of_a_schema_and_no_others(llama: Recogniser, name: str) -> None:
    schema, right, wrong = TABLE[name]
    gbnf = to_gbnf(schema)
    assert [text for text, ok in zip(right, llama.accepts(gbnf, *right), strict=True) if not ok] == []
    assert [text for text, ok in zip(wrong, llama.accepts(gbnf, *wrong), strict=True) if ok] == []


@pytest.mark.parametrize("most", [1, 255, 256, 257, 1999, 2000, 20_000, 65_536])
def test_a_length_is_exact_however_large(llama: Recogniser, most: int) -> None:
    for least in (0, most - 1) if most < 60_000 else (most - 1,):
        grammar = llama.grammar(to_gbnf({"type": "string", "minLength": least, "maxLength": most}))
        assert grammar.lengths() == list(range(least, most + 1))
        grammar.close()


# ------------------------------------------------------------ schemas that people have


class Mood(Enum):
    GOOD = 'go"od'
    BAD = "bad\\"


class Child(BaseModel):
    kind: Literal["child"] = "child"
    born: date
    parent: Child | None = None


class Thing(BaseModel):
    kind: Literal["thing"] = "thing"
    size: float = Field(ge=0, le=1)


class Report(BaseModel):
    title: str = Field(max_length=20, pattern=r"^[A-Z][a-z ]*$")
    mood: Mood
    at: datetime
    id: UUID
    grade: int = Field(ge=1, le=5)
    pair: tuple[int, str]
    tags: set[str] = Field(min_length=1, max_length=3)
    counts: dict[str, int]
    about: Child | Thing = Field(discriminator="kind")
    note: str | None = None


def test_what_is_written_by_the_schema_of_a_pydantic_model_is_that_model(llama: Recogniser) -> None:
    schema = Report.model_json_schema()
    assert unchecked(schema) == ["#/properties/tags/uniqueItems"]
    grammar = llama.grammar(to_gbnf(schema))
    texts = [text for seed in range(8) if (text := grammar.write(Random(seed))) is not None]
    grammar.close()
    assert len(texts) > 4
    for text in texts:
        report = Report.model_validate_json(text)
        assert 1 <= report.grade <= 5


def test_what_a_pydantic_model_writes_is_allowed(llama: Recogniser) -> None:
    about = {
        "kind": "child",
        "born": "2024-02-29",
        "parent": {"kind": "child", "born": "1999-01-01", "parent": None},
    }
    report = Report(
        title="All is well", mood=Mood.BAD, at="2024-05-06T07:08:09Z", id=UUID(int=7), grade=5, pair=(1, 'a"'),
        tags={"é"}, counts={"a": 1}, about=about,
    )  # fmt: skip
    assert llama.accepts(to_gbnf(Report.model_json_schema()), report.model_dump_json()) == [True]
