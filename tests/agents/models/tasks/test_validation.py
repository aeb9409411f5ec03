"""A value against its schema: what is good, what is not and where; and schemas that are refused before any value."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from rigbus.agents.models.tasks.validation import Schema
from rigbus.bus.errors import DefinitionError

REF = {"$defs": {"name": {"type": "string", "minLength": 2}}, "items": {"$ref": "#/$defs/name"}}
TREE = {
    "$defs": {"t": {"type": "object", "properties": {"kids": {"items": {"$ref": "#/$defs/t"}}}}},
    "$ref": "#/$defs/t",
}
EITHER = {
    "anyOf": [{"type": "null"}, {"type": "object", "properties": {"n": {"type": "integer", "minimum": 3}}}]
}
PAIR = {"prefixItems": [{"type": "string"}, {"type": "integer"}], "items": False}
KIND = {
    "if": {"properties": {"kind": {"const": "a"}}},
    "then": {"required": ["x"]},
    "else": {"required": ["y"]},
}


@pytest.mark.parametrize(
    ("schema", "good", "bad", "pointer", "word"),
    [
        ({"type": "string"}, "a", 1, "", "1 is no string"),
        ({"type": "integer"}, 2.0, 2.5, "", "2.5 is no integer"),
        ({"type": "integer"}, 2, True, "", "true is no integer"),
        ({"type": ["string", "null"]}, None, [], "", "[] is no string or null"),
        ({"enum": ["a", 1]}, 1.0, True, "", "is none of"),
        ({"const": {"a": [1]}}, {"a": [1]}, {"a": [2]}, "", "is not"),
        ({"minimum": 1}, 1, 0.5, "", "is below 1"),
        ({"maximum": 5}, 5, 6, "", "is above 5"),
        ({"exclusiveMinimum": 0}, 0.1, 0, "", "is not above 0"),
        ({"exclusiveMaximum": 9}, 8, 9, "", "is not below 9"),
        ({"multipleOf": 0.1}, 0.3, 0.35, "", "no multiple of 0.1"),
        ({"multipleOf": 3}, 9**40, 10**40, "", "no multiple of 3"),
        ({"minLength": 2}, "äö", "ä", "", "1 characters, at least 2"),
        ({"maxLength": 2}, "äö", "abc", "", "3 characters, at most 2"),
        ({"pattern": "b+"}, "abc", "ac", "", 'does not match "b+"'),
        ({"format": "date"}, "2026-02-28", "2026-02-30", "", "is no date"),
        ({"format": "date-time"}, "2026-02-28T10:00:00Z", "1700000000", "", "is no date-time"),
        ({"format": "uuid"}, "0" * 32, "x", "", "is no uuid"),
        ({"format": "ipv4"}, "10.0.0.1", "10.0.0.256", "", "is no ipv4"),
        ({"format": "uri"}, "https://a.b/c", "c", "", "is no uri"),
        ({"items": {"type": "integer"}}, [1], [1, "x"], "/1", '"x" is no integer'),
        (PAIR, ["a", 1], ["a", 1, 2], "/2", "nothing may stand here"),
        ({"maxItems": 1}, [1], [1, 2], "", "2 items, at most 1"),
        ({"uniqueItems": True}, [1, "1", True], [1, 2, 1.0], "/2", "stands at 0, too"),
        ({"properties": {"a/b": {"type": "null"}}}, {"a/b": None}, {"a/b": 1}, "/a~1b", "no null"),
        ({"required": ["a"]}, {"a": 1}, {"b": 1}, "", '"a" is missing'),
        ({"additionalProperties": False, "properties": {"a": True}}, {"a": 1}, {"c": 1}, "/c", "no such property"),
        ({"additionalProperties": {"type": "string"}}, {"a": "x"}, {"a": 1}, "/a", "no string"),
        ({"patternProperties": {"^n_": {"type": "number"}}}, {"x": "y", "n_a": 1}, {"n_a": "y"}, "/n_a", "no number"),
        ({"propertyNames": {"maxLength": 1}}, {"a": 1}, {"ab": 1}, "/ab", "at most 1"),
        ({"minProperties": 1}, {"a": 1}, {}, "", "0 properties, at least 1"),
        ({"dependentRequired": {"a": ["b"]}}, {"b": 1}, {"a": 1}, "", '"b" is missing beside "a"'),
        ({"allOf": [{"minimum": 1}, {"maximum": 3}]}, 2, 4, "", "above 3"),
        (EITHER, {"n": 3}, {"n": 2}, "/n", "2 is below 3"),
        ({"oneOf": [{"minimum": 1}, {"maximum": 3}]}, 0, 2, "", "of 2 of the schemas of oneOf"),
        ({"not": {"type": "null"}}, 1, None, "", "rules out"),
        (KIND, {"kind": "a", "x": 1}, {"kind": "b", "x": 1}, "", '"y" is missing'),
        (REF, ["ab"], ["ab", "c"], "/1", "at least 2"),
        (TREE, {"kids": [{"kids": []}]}, {"kids": [{"kids": [3]}]}, "/kids/0/kids/0", "3 is no object"),
        ({"type": "object", "unknown-word": 1}, {}, 1, "", "no object"),
    ],
)  # fmt: skip
def test_a_good_value_passes_and_a_bad_one_is_said_with_its_place(
    schema: dict[str, Any], good: object, bad: object, pointer: str, word: str
) -> None:
    checked = Schema(schema)
    assert checked.faults(good) == []
    fault = checked.faults(bad)[0]
    assert (fault.pointer, word in fault.what) == (pointer, True), fault
    assert checked.faults(good) == []


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "text"}, '/type: "text" is no type; one of null, boolean'),
        ({"properties": {"a": {"type": "int"}}}, "/properties/a/type"),
        ({"items": {"pattern": "(?=x)"}}, "/items/pattern"),
        ({"pattern": "("}, "cannot be read"),
        ({"patternProperties": {"[": {}}}, "cannot be read"),
        ({"$ref": "#/$defs/gone"}, "leads nowhere"),
        ({"$ref": "https://example.org/x.json"}, "leads out of the schema"),
        ({"anyOf": {"type": "null"}}, "/anyOf"),
        ({"anyOf": [3]}, "/anyOf/0: 3 is no schema"),
        ({"properties": []}, "/properties"),
        ({"required": "a"}, '/required: "a" is no list'),
        ({"required": [["a"]]}, "no list of names"),
        ({"dependentRequired": {"a": "b"}}, "/dependentRequired/a"),
        ({"minLength": -1}, "/minLength: -1 is no count"),
        ({"maximum": "9"}, '/maximum: "9" is no number'),
        ({"multipleOf": 0}, "/multipleOf"),
        ({"patternProperties": 5}, "/patternProperties"),
        ({"items": {"unevaluatedProperties": False}}, "/items/unevaluatedProperties: this keyword is not checked"),
        ({"contains": {"type": "null"}}, "/contains"),
    ],
)  # fmt: skip
def test_a_wrong_schema_is_refused_with_its_place(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(DefinitionError) as caught:
        Schema(schema)
    assert words in str(caught.value)
    assert str(caught.value).startswith("json_schema: ")


@pytest.mark.parametrize(
    "schema", [{"$ref": "#"}, {"allOf": [{"$ref": "#"}]}, {"anyOf": [{"$ref": "#"}, {}]}]
)
def test_a_schema_that_leads_back_to_itself_is_refused_and_does_not_run_for_ever(
    schema: dict[str, Any],
) -> None:
    with pytest.raises(DefinitionError, match="leads back to itself"):
        Schema(schema).faults({})


def test_what_would_take_exponential_time_is_refused() -> None:
    lists = [{"type": "array", "items": {"$ref": "#/$defs/t"}}] * 4
    value: Any = 1
    for _ in range(12):
        value = [value]
    with pytest.raises(DefinitionError, match="steps"):
        Schema({"$defs": {"t": {"anyOf": lists}}, "$ref": "#/$defs/t"}).faults(value)


def test_a_pattern_that_would_take_for_ever_elsewhere_is_quick() -> None:
    assert Schema({"pattern": "^(a+)+$"}).faults("a" * 10_000 + "!")


def test_deep_nesting_is_a_clear_error() -> None:
    value: Any = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(DefinitionError, match="nested too deeply"):
        Schema({"$ref": "#/$defs/t", "$defs": {"t": {"items": {"$ref": "#/$defs/t"}}}}).faults(value)


def test_so_many_faults_as_are_wanted() -> None:
    assert len(Schema({"items": {"type": "null"}}).faults([1] * 50, most=3)) == 3


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Inner(BaseModel):
    score: Annotated[int, Field(ge=1, le=5)]
    note: str | None = None


class Whole(BaseModel):
    colour: Colour
    kind: Literal["a", "b"]
    inner: list[Inner] = Field(min_length=1)
    by_name: dict[str, float] = {}


def test_the_schemas_of_pydantic_models_are_understood() -> None:
    schema = Schema(Whole.model_json_schema())
    good = {"colour": "red", "kind": "a", "inner": [{"score": 5, "note": None}], "by_name": {"x": 1}}
    assert schema.faults(good) == []
    Whole.model_validate(good)
    bad = {"colour": "green", "kind": "a", "inner": [{"score": 6}], "by_name": {"x": "y"}}
    assert {fault.pointer for fault in schema.faults(bad)} == {"/colour", "/inner/0/score", "/by_name/x"}
