"""JSON schemas that become no grammar, each refused with its place; and what a grammar leaves to validation."""

from __future__ import annotations

import re
from time import process_time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rigbus.agents.models.grammar import parts
from rigbus.agents.models.grammar.schema import to_gbnf, unchecked
from rigbus.bus.errors import DefinitionError


def objects(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), **more}


INT, TEXT = {"type": "integer"}, {"type": "string"}

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "type": ({"type": "nonsense"}, "#/type is 'nonsense'; one or a list of object, array"),
    "schema": ({"items": 5}, "#/items is 5; a schema is an object, true or false"),
    "properties": ({"properties": ["a"]}, "#/properties is ['a']; give an object"),
    "required": ({"required": "a"}, "#/required is 'a'; give a list of names"),
    "no enum": (objects({"a/b": {"enum": []}}), "#/properties/a~1b/enum is []; give a list"),
    "no union": ({"anyOf": []}, "#/anyOf is []; give a list of at least one schema"),
    "count": ({"minItems": -1}, "#/minItems is -1; give a whole number"),
    "bound": ({"exclusiveMinimum": True}, "#/exclusiveMinimum is True; give the bound itself"),
    "reference": ({"$ref": "#/nowhere"}, "#/$ref is '#/nowhere', which is not in the document"),
    "other document": (
        {"$ref": "other.json#/a"},
        "#/$ref is 'other.json#/a'; give a JSON pointer in this document",
    ),
    "dynamic": ({"$dynamicRef": "#a"}, "#/$dynamicRef is not understood; write $ref"),
    "itself": ({"$ref": "#"}, "# refers to itself"),
    "itself by two": (
        {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"},
        "refers",
    ),
    "itself in a union": (
        {"anyOf": [{"type": "null"}, {"$ref": "#"}]},
        "# refers to itself without a value between",
    ),
    "itself in a union with more": ({"minimum": 1, "anyOf": [{"$ref": "#"}]}, "# refers to itself"),
    "without end": (objects({"a": {"$ref": "#"}}), "# has no finite value"),
    "too long": ({"minLength": 65_537}, "#/minLength is 65537; at most 65536"),
    "crossed": ({"minItems": 3, "maxItems": 2}, "#/maxItems is 2, but minItems is 3"),
    "no number": (
        {"type": "integer", "minimum": 3, "exclusiveMaximum": 4.0, "maximum": 2},
        "# allows no number: minimum 3",
    ),
    "too large a number": ({"type": "integer", "minimum": 10**30}, "# allows no number: minimum 1000"),
    "no value": ({"type": "string", "enum": [1]}, "#/enum has no value that the rest of the schema allows"),
    "contradiction": ({"allOf": [INT, TEXT]}, "#/allOf/1/type allows string"),
    "nothing": ({"items": {"allOf": [False]}, "minItems": 1}, "#/items/allOf/0 is false"),
    "not declared": ({"required": ["a"], "additionalProperties": False}, "#/required names 'a'"),
    "optional": (
        {"properties": {str(n): {} for n in range(257)}},
        "#/properties has 257 properties that are not required",
    ),
    "union": (
        {"anyOf": [{"const": n} for n in range(513)]},
        "#/anyOf has 513 values and properties to choose from",
    ),
    "union that refers to itself": (
        {"anyOf": [{"const": 0}, *(objects({"a": {"$ref": "#"}, f"p{n}": INT}) for n in range(192))]},
        "#/anyOf has 193 values and properties to choose from at one place of a schema that refers to itself; at most 192",
    ),
    "value": ({"const": float("nan")}, "# holds a value that is no JSON"),
    "look-behind": ({"pattern": "(?<=a)b"}, "#/pattern is '(?<=a)b': look-around"),
    "back-reference": ({"pattern": r"(a)\1"}, r"`\1`: no back-references"),
    "slow": ({"pattern": "^(a?){1900}a{1900}$"}, "an automaton of more than 4096 states"),
    "exponential": ({"pattern": "(a|b)*a(a|b){20}"}, "its automaton has more than 1024 states"),
    "no such length": (
        {"pattern": "^(ab)*$", "minLength": 3, "maxLength": 3},
        "matches no text of 3 to 3 characters",
    ),
    "half a pattern": ({"pattern": "[a"}, "it ends in the middle"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_schema_without_a_grammar_is_refused_with_its_place(name: str) -> None:
    schema, message = REFUSED[name]
    with pytest.raises(DefinitionError) as caught:
        to_gbnf(schema)
    assert str(caught.value).startswith("json_schema: #")
    assert message in str(caught.value)


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = INT
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


def test_schemas_nest_to_a_bound() -> None:
    assert to_gbnf(nested(60))
    with pytest.raises(DefinitionError, match="more than 64 schemas deep"):
        to_gbnf(nested(900))
    chain = {"$defs": {str(n): {"$ref": f"#/$defs/{n + 1}"} for n in range(900)}, "$ref": "#/$defs/0"}
    with pytest.raises(DefinitionError, match="more than 64 references"):
        to_gbnf(chain)


@pytest.mark.parametrize(
    "schema",
    [
        objects({f"name {n}": {"type": "string", "maxLength": n} for n in range(10_000)}),
        {"enum": [f"{n} {'x' * 100}" for n in range(10_000)]},
        {"allOf": [{"anyOf": [{"properties": {f"{i} {k}": INT}} for k in range(9)]} for i in range(9)]},
        {"anyOf": [{"pattern": f"^(a?){{100}}a{{{n}}}$"} for n in range(100)]},
        {
            "$defs": {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(60)},
            "$ref": "#/$defs/0",
        },
    ],
    ids=["properties", "values", "product", "patterns", "doubling"],
)
def test_what_would_take_long_is_refused_soon(schema: dict[str, Any]) -> None:
    begun_at = process_time()
    with pytest.raises(DefinitionError, match="json_schema: "):
        to_gbnf(schema)
    assert process_time() - begun_at < 2.0  # a guard against blow-up, not a measure


KEYWORDS = sorted({*parts.IMPLIED, *parts.LEFT, *parts.REFUSED, "type", "enum", "const", "anyOf",
                   "oneOf", "allOf", "$ref", "$defs", "additionalItems", "discriminator", "if", "a"})  # fmt: skip
atoms = st.none() | st.booleans() | st.integers(-3, 70_000) | st.floats() | st.sampled_from(
    ["", "#", "#/$defs/a", "#/anyOf/0", "#/items", "^a{2}$", "(", "object", "string", "array", "integer", "date", "a"]
)  # fmt: skip
garbage = st.recursive(
    atoms,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYWORDS), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=400)
@given(st.dictionaries(st.sampled_from(KEYWORDS), garbage, max_size=5))
def test_whatever_it_is_given_it_makes_a_grammar_or_says_what_is_wrong(schema: dict[str, Any]) -> None:
    try:
        gbnf = to_gbnf(schema)
    except DefinitionError as error:
        gbnf, said = "root", str(error)
    else:
        said = "json_schema: #"
    assert said.startswith("json_schema: #")
    made = {line.partition(" ")[0] for line in gbnf.splitlines()}
    asked = re.findall("[a-z]+-[0-9]+", re.sub(r'"(\\.|[^"\\])*"|\[[^]]*\]', "", gbnf))
    assert "root" in made and set(asked) <= made


# ------------------------------------------------------------ what is left to validation


@pytest.mark.parametrize(
    ("schema", "left"),
    [
        (objects({"a": {"type": "string", "maxLength": 65_536}}), []),
        (objects({"a": {"type": "string", "maxLength": 65_537}}), ["#/properties/a/maxLength"]),
        ({"items": INT, "maxItems": 10**9, "uniqueItems": True}, ["#/uniqueItems", "#/maxItems"]),
        ({"items": INT, "uniqueItems": False, "$schema": "x", "x-mine": 1}, []),
        ({"type": "number", "minimum": 0.5, "maximum": 2}, ["#/minimum"]),
        ({"type": "integer", "minimum": 0.5, "multipleOf": 5}, ["#/multipleOf"]),
        ({"not": {"const": 1}}, ["#/not"]),
        ({"$defs": {"a": {"format": "email"}}, "items": {"$ref": "#/$defs/a"}}, ["#/$defs/a/format"]),
        ({"enum": ["a", "bb"], "maxLength": 1}, ["#/maxLength"]),
        ({"pattern": "^a", "maxLength": 1}, []),
        ({"pattern": "^a", "minLength": 3, "maxLength": 5000}, ["#/minLength", "#/maxLength"]),
        ({"oneOf": [INT, {"type": "number"}]}, ["#/oneOf"]),
        ({"allOf": [{"not": {}}, {"not": {}}]}, ["#/allOf/0/not", "#/allOf/1/not"]),
    ],
)
def test_what_the_grammar_does_not_enforce_is_listed(schema: dict[str, Any], left: list[str]) -> None:
    assert unchecked(schema) == left
