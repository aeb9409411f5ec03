"""Reading a JSON schema: references followed, `allOf` merged, each keyword with the JSON pointer of where it stands. Pure.

A subschema is a :class:`Part`. What must hold at one place of a value may be several parts: an `allOf`, a `$ref` with
keywords beside it, a property that two parts declare. :meth:`Document.merged` makes one :class:`Node` of them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn
from urllib.parse import unquote

from ....bus.errors import DefinitionError

MAX_DEPTH: Final = 64  #: of schemas in schemas, and of references one after the other
TYPES: Final = ("object", "array", "string", "number", "integer", "boolean", "null")

#: Keywords that restrict and are left to whoever validates the value: a grammar cannot say them, or not cheaply. The
#: value with which each says nothing, None if there is none.
LEFT: Final[Mapping[str, bool | None]] = {
    **dict.fromkeys(("not", "uniqueItems"), False),
    **dict.fromkeys(("if", "unevaluatedItems", "unevaluatedProperties"), True),
    **dict.fromkeys(
        ("contains", "dependencies", "dependentRequired", "dependentSchemas", "multipleOf"), None
    ),
}
#: Keywords that mean a different schema, so that going on without them would be wrong.
REFUSED: Final[Mapping[str, str]] = {
    "$dynamicRef": "write $ref",
    "$recursiveRef": "write $ref",
    "extends": "write allOf",
    "disallow": "write type",
    "divisibleBy": "write multipleOf",
}
#: The types that a schema without a type must mean, by its keywords.
IMPLIED: Final[Mapping[str, str]] = {
    **dict.fromkeys(("properties", "required", "additionalProperties", "patternProperties"), "object"),
    **dict.fromkeys(("propertyNames", "minProperties", "maxProperties"), "object"),
    **dict.fromkeys(("items", "prefixItems", "minItems", "maxItems"), "array"),
    **dict.fromkeys(("minLength", "maxLength", "pattern", "format"), "string"),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), "number"),
}
_UNIONS: Final = ("anyOf", "oneOf")
_JSON: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def refuse(where: str, what: str, fix: str) -> NoReturn:
    """Raise the DefinitionError of a keyword."""
    raise DefinitionError(f"json_schema: {where} {what}; {fix}")


@dataclass(frozen=True, slots=True)
class Part:
    """A subschema at a JSON pointer, ``without`` some of its keywords. ``schema`` False: no value is allowed."""

    where: str
    schema: Mapping[str, Any] | bool
    without: frozenset[str] = frozenset()

    @property
    def key(self) -> tuple[str, frozenset[str]]:
        return self.where, self.without

    def items(self) -> Iterator[tuple[str, Any]]:
        if isinstance(self.schema, Mapping):
            yield from ((k, v) for k, v in self.schema.items() if k not in self.without)

    def child(self, *tokens: str | int) -> Part:
        """The subschema below; a pointer names it. (``items`` of one list is that of the older drafts.)"""
        value: Any = self.schema
        for token in tokens:
            value = value[token]
        return part_of(pointer(self.where, *tokens), value)


def pointer(where: str, *tokens: str | int) -> str:
    """The JSON pointer of what is below ``where``."""
    return "/".join((where, *(str(t).replace("~", "~0").replace("/", "~1") for t in tokens)))


def part_of(where: str, value: Any) -> Part:
    if not isinstance(value, (Mapping, bool)):
        refuse(where, f"is {_kind(value)}", "a schema is an object, true or false")
    return Part(where, value)


def _kind(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


@dataclass(slots=True)
class Node:
    """What must hold at one place, merged. ``at`` has the pointer of each keyword that is there."""

    where: str
    at: dict[str, str] = field(default_factory=dict)
    values: dict[str, Any] = field(default_factory=dict)
    properties: dict[str, list[Part]] = field(default_factory=dict)
    patterns: dict[str, list[Part]] = field(default_factory=dict)
    required: dict[str, str] = field(default_factory=dict)  #: name -> pointer
    prefix: list[list[Part]] = field(default_factory=list)
    below: dict[str, list[Part]] = field(default_factory=dict)  #: items, additionalProperties, propertyNames
    left: list[str] = field(default_factory=list)  #: pointers of keywords of :data:`LEFT`

    def types(self) -> list[str]:
        """The types of its values, in JSON Schema's order."""
        types = self.values.get("type")
        if types is None:
            types = {implied for keyword, implied in IMPLIED.items() if keyword in self.at} or set(TYPES)
        if "number" in types:
            types = types - {"integer"}
        return [name for name in TYPES if name in types]


class Document:
    """A whole schema."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = schema

    def root(self) -> Part:
        return part_of("#", self._schema)

    # ------------------------------------------------------------ references and allOf

    def flat(self, parts: Iterable[Part]) -> tuple[Part, ...]:
        """The parts, those that they refer to and those of their ``allOf``, without the ones that say nothing.

        Raises:
            DefinitionError: a reference leads nowhere or back to itself.
        """
        found: dict[tuple[str, frozenset[str]], Part | None] = {}
        for part in parts:
            self._open(part, found, ())
        return tuple(part for part in found.values() if part is not None)

    def _open(
        self, part: Part, found: dict[tuple[str, frozenset[str]], Part | None], path: tuple[str, ...]
    ) -> None:
        if part.where in path:
            refuse(part.where, "refers to itself without a value between", "give it properties or items")
        if len(path) > MAX_DEPTH:
            refuse(part.where, f"is behind more than {MAX_DEPTH} references", "refer to the schema itself")
        if part.key in found:
            return
        says = part.schema is False or any(k in _SAYS for k, _ in part.items())
        found[part.key] = part if says else None
        path = (*path, part.where)
        for keyword, value in part.items():
            if keyword in REFUSED:
                refuse(pointer(part.where, keyword), "is not understood", REFUSED[keyword])
            if keyword == "$ref":
                self._open(self._target(pointer(part.where, keyword), value), found, path)
            elif keyword == "allOf":
                for number in range(len(_schemas(pointer(part.where, keyword), value))):
                    self._open(part.child(keyword, number), found, path)

    def _target(self, where: str, ref: Any) -> Part:
        if not isinstance(ref, str) or not (ref == "#" or ref.startswith("#/")):
            refuse(where, f"is {_kind(ref)}", "give a JSON pointer in this document: #/$defs/NAME")
        value: Any = self._schema
        tokens: list[str | int] = []
        for raw in unquote(ref).split("/")[1:]:
            token: str | int = raw.replace("~1", "/").replace("~0", "~")
            if isinstance(value, list) and raw.isdecimal():
                token = int(raw)
            try:
                value = value[token]
            except (KeyError, IndexError, TypeError):
                refuse(where, f"is {_kind(ref)}, which is not in the document", "add it to #/$defs")
            tokens.append(token)
        return part_of(pointer("#", *tokens), value)

    # ------------------------------------------------------------ merging

    def union(self, parts: Sequence[Part]) -> tuple[str, list[Part], Part] | None:
        """The first ``anyOf`` or ``oneOf``: its keyword, the parts without it, and the part that it is in."""
        for number, part in enumerate(parts):
            for keyword, value in part.items():
                if keyword in _UNIONS:
                    _schemas(pointer(part.where, keyword), value)
                    less = Part(part.where, part.schema, part.without | {keyword})
                    return keyword, [*parts[:number], less, *parts[number + 1 :]], part
        return None

    def merged(self, parts: Sequence[Part]) -> Node:
        """One node of flat parts that have no union.

        Raises:
            DefinitionError: a keyword has a value that it cannot have, or the parts contradict one another.
        """
        node = Node(parts[0].where)
        for part in parts:
            if part.schema is False:
                refuse(part.where, "is false", "allow some value")
            for keyword, value in part.items():
                self._merge(node, part, keyword, value)
        for part in parts:
            self._close(node, part)
        return node

    def _merge(self, node: Node, part: Part, keyword: str, value: Any) -> None:
        where = pointer(part.where, keyword)
        match keyword:
            case "properties" | "patternProperties":
                if not isinstance(value, Mapping):
                    refuse(where, f"is {_kind(value)}", "give an object of schemas by name")
                into = node.properties if keyword == "properties" else node.patterns
                for name in value:
                    if not isinstance(name, str):
                        refuse(where, f"has the name {_kind(name)}", "a property's name is a string")
                    into.setdefault(name, []).append(part.child(keyword, name))
            case "required":
                for name in _names(where, value):
                    node.required.setdefault(name, where)
            case "prefixItems" | "items" if isinstance(value, list):
                if node.prefix:
                    refuse(where, "is beside other prefixItems", "merge them into one list")
                node.prefix = [[part.child(keyword, n)] for n in range(len(_schemas(where, value)))]
                keyword = "prefixItems"
            case "items" | "additionalProperties" | "propertyNames" | "additionalItems":
                keyword = "items" if keyword == "additionalItems" else keyword
                node.below.setdefault(keyword, []).append(part_of(where, value))
            case _ if keyword in LEFT:
                if value is not LEFT[keyword]:
                    node.left.append(where)
                return
            case _ if keyword in _SCALARS:
                read, join = _SCALARS[keyword]
                value = read(where, value)
                if keyword in node.values:
                    value = join(where, node.values[keyword], value)
                node.values[keyword] = value
            case _:
                return
        node.at.setdefault(keyword, where)

    def _close(self, node: Node, part: Part) -> None:
        """A part's ``additionalProperties`` are about what the other parts declare, too."""
        if not isinstance(part.schema, Mapping) or "additionalProperties" not in dict(part.items()):
            return
        own = part.schema.get("properties", {})
        patterns = "patternProperties" in part.schema
        for name, declared in list(node.properties.items()):
            if name in own or patterns:
                continue
            other = part.child("additionalProperties")
            if other.schema is not False:
                declared.append(other)
                continue
            if name in node.required:
                refuse(other.where, f"is false, but {name!r} is required", "declare it beside")
            del node.properties[name]


# ------------------------------------------------------------ the values of keywords


def _schemas(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        refuse(where, f"is {_kind(value)}", "give a list of at least one schema")
    return value


def _names(where: str, value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        refuse(where, f"is {_kind(value)}", "give a list of names")
    return value


def _count(where: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 0 or value % 1 != 0:
        refuse(where, f"is {_kind(value)}", "give a whole number, 0 or more")
    return int(value)


def _bound(where: str, value: Any) -> int | float:
    if isinstance(value, bool):
        refuse(where, f"is {_kind(value)}", "give the bound itself, as drafts since 6 do")
    if not isinstance(value, (int, float)) or not math.isfinite(value):
        refuse(where, f"is {_kind(value)}", "give a number")
    return value


def _string(where: str, value: Any) -> str:
    if not isinstance(value, str):
        refuse(where, f"is {_kind(value)}", "give a string")
    return value


def _types(where: str, value: Any) -> set[str]:
    names = value if isinstance(value, list) else [value]
    if not names or not all(isinstance(name, str) and name in TYPES for name in names):
        refuse(where, f"is {_kind(value)}", f"one or a list of {', '.join(TYPES)}")
    return {*names, "integer"} if "number" in names else set(names)


def _common_types(where: str, one: set[str], other: set[str]) -> set[str]:
    if not one & other:
        refuse(
            where,
            f"allows {', '.join(sorted(other))}, what it is merged with does not",
            "allow one type in both",
        )
    return one & other


def _literals(where: str, value: Any) -> list[Any]:
    if not isinstance(value, list) or not value:
        refuse(where, f"is {_kind(value)}", "give a list of at least one value")
    return value


def _same(where: str, one: Any, other: Any) -> Any:
    if one != other:
        refuse(where, f"is {_kind(other)}, but also {_kind(one)}", "one of them in one schema")
    return one


def _both(where: str, one: list[Any], other: list[Any]) -> list[Any]:
    found = [a for a in one if any(same_value(a, b) for b in other)]
    if not found:
        refuse(where, "shares no value with what it is merged with", "allow some value")
    return found


def same_value(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal: 1 is 1.0, but not true."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same_value, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(same_value(v, other[k]) for k, v in one.items())
    return bool(one == other)


def json_text(where: str, value: Any) -> str:
    """The value as JSON, compact; what UTF-8 cannot hold is escaped."""
    try:
        written = _JSON.encode(value)
    except (TypeError, ValueError, RecursionError) as e:
        refuse(where, f"holds a value that is no JSON ({e})", "write it as JSON")
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", written)


def fits(value: Any, types: set[str]) -> bool:
    """Whether a JSON value is of one of the types."""
    match value:
        case None:
            return "null" in types
        case bool():
            return "boolean" in types
        case int():
            return "integer" in types
        case float():
            return "number" in types or ("integer" in types and value.is_integer())
        case str():
            return "string" in types
        case list():
            return "array" in types
        case _:
            return "object" in types


def _most(_where: str, one: Any, other: Any) -> Any:
    return max(one, other)


def _least(_where: str, one: Any, other: Any) -> Any:
    return min(one, other)


_SCALARS: Final[Mapping[str, tuple[Callable[[str, Any], Any], Callable[[str, Any, Any], Any]]]] = {
    "type": (_types, _common_types),
    "enum": (_literals, _both),
    "const": (lambda _where, value: [value], _both),
    "pattern": (_string, _same),
    "format": (_string, _same),
    **dict.fromkeys(("minLength", "minItems", "minProperties"), (_count, _most)),
    **dict.fromkeys(("maxLength", "maxItems", "maxProperties"), (_count, _least)),
    **dict.fromkeys(("minimum", "exclusiveMinimum"), (_bound, _most)),
    **dict.fromkeys(("maximum", "exclusiveMaximum"), (_bound, _least)),
}
_SAYS: Final = frozenset({*IMPLIED, *_UNIONS, *_SCALARS, *LEFT, "additionalItems"})
