"""Whether a JSON value is of a schema, and where it is not: what a grammar does not enforce is checked here. Pure.

Laws of this file
- What can be said of the schema alone is said by ``schemas``, before there is an answer.
- Patterns and formats are pydantic's; all else is compared here, with the JSON pointer of the place.
- Checking takes a bounded number of steps, so a schema that refers to itself cannot keep a worker busy.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache, partial
from itertools import islice
from typing import Any, Final

from ....bus.errors import DefinitionError
from .schemas import SchemaDocument, short, types_of

MAX_STEPS: Final = 200_000


@dataclass(frozen=True, slots=True)
class Fault:
    """One place where a value is not of its schema: ``pointer`` is the place's JSON pointer, empty for the whole."""

    pointer: str
    what: str

    def __str__(self) -> str:
        return f"{self.pointer or 'the whole answer'}: {self.what}"


Found = Iterator[Fault]


class Schema:
    """A JSON schema (the subset of 2020-12 that restricts single values; ``format``: those of pydantic below).

    Raises:
        DefinitionError: the schema itself is wrong; the message has the JSON pointer of the place and the fix.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._document = SchemaDocument(schema)
        self._steps = 0
        self._open: set[tuple[int, str]] = set()

    def faults(self, value: Any, most: int = 5) -> list[Fault]:
        """The first ``most`` places where ``value`` is not of the schema; none for a good one.

        Raises:
            DefinitionError: the schema refers to itself without end, or needs too many steps for this value.
        """
        self._steps = 0
        self._open.clear()
        try:
            return list(islice(self._check(self._document.root, value, ""), most))
        except RecursionError:
            raise DefinitionError("json_schema: its answer is nested too deeply; limit its depth") from None

    # -- a value

    def _check(self, schema: Any, value: Any, at: str) -> Found:
        self._steps += 1
        if self._steps > MAX_STEPS:
            raise DefinitionError(
                f"json_schema: checking an answer takes over {MAX_STEPS} steps; make it simpler"
            )
        if schema is True:
            return
        if schema is False:
            yield Fault(at, "nothing may stand here")
            return
        key = (id(schema), at)
        if key in self._open:
            raise DefinitionError(
                "json_schema: a $ref leads back to itself; let it pass through a property or an item"
            )
        self._open.add(key)
        try:
            yield from self._check_one(schema, value, at)
        finally:
            self._open.discard(key)

    def _check_one(self, schema: Mapping[str, Any], value: Any, at: str) -> Found:
        types = types_of(schema)
        if types and not any(_is(name, value) for name in types):
            yield Fault(at, f"{short(value)} is no {' or '.join(types)}")
            return
        if "enum" in schema and not any(_same(value, one) for one in schema["enum"]):
            yield Fault(at, f"{short(value)} is none of {short(schema['enum'], 200)}")
        if "const" in schema and not _same(value, schema["const"]):
            yield Fault(at, f"{short(value)} is not {short(schema['const'])}")
        if isinstance(value, str):
            yield from self._check_text(schema, value, at)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield from _check_number(schema, value, at)
        elif isinstance(value, list):
            yield from self._check_array(schema, value, at)
        elif isinstance(value, dict):
            yield from self._check_object(schema, value, at)
        yield from self._check_others(schema, value, at)

    def _check_text(self, schema: Mapping[str, Any], value: str, at: str) -> Found:
        yield from _check_count(schema, "Length", "characters", len(value), at)
        pattern = schema.get("pattern")
        if pattern is not None and not self._document.patterns[pattern](value):
            yield Fault(at, f"{short(value)} does not match {short(pattern, 120)}")
        name = schema.get("format")
        if isinstance(name, str) and not _has_format(name, value):
            yield Fault(at, f"{short(value)} is no {name}")

    def _check_array(self, schema: Mapping[str, Any], value: list[Any], at: str) -> Found:
        yield from _check_count(schema, "Items", "items", len(value), at)
        first = schema.get("prefixItems", ())
        for i, (inner, item) in enumerate(zip(first, value, strict=False)):
            yield from self._check(inner, item, f"{at}/{i}")
        if "items" in schema:
            for i, item in enumerate(value[len(first) :], start=len(first)):
                yield from self._check(schema["items"], item, f"{at}/{i}")
        if schema.get("uniqueItems") is True:
            seen: dict[str, int] = {}
            for i, item in enumerate(value):
                if (before := seen.setdefault(_canonical(item), i)) != i:
                    yield Fault(f"{at}/{i}", f"{short(item)} stands at {before}, too; items must differ")

    def _check_object(self, schema: Mapping[str, Any], value: dict[str, Any], at: str) -> Found:
        yield from _check_count(schema, "Properties", "properties", len(value), at)
        for name in schema.get("required", ()):
            if name not in value:
                yield Fault(at, f"the property {short(name)} is missing")
        for name, needed in schema.get("dependentRequired", {}).items():
            for other in needed if name in value else ():
                if other not in value:
                    yield Fault(at, f"the property {short(other)} is missing beside {short(name)}")
        known = schema.get("properties", {})
        patterns = schema.get("patternProperties", {})
        for name, inner in value.items():
            here = f"{at}/{name.replace('~', '~0').replace('/', '~1')}"
            if "propertyNames" in schema:
                yield from self._check(schema["propertyNames"], name, here)
            matching = [one for pattern, one in patterns.items() if self._document.patterns[pattern](name)]
            if name in known:
                matching.append(known[name])
            if not matching and "additionalProperties" in schema:
                if schema["additionalProperties"] is False:
                    yield Fault(here, "the schema knows no such property")
                    continue
                matching.append(schema["additionalProperties"])
            for one in matching:
                yield from self._check(one, inner, here)

    def _check_others(self, schema: Mapping[str, Any], value: Any, at: str) -> Found:
        """References and combinations of schemas."""
        if "$ref" in schema:
            yield from self._check(self._document.target(schema["$ref"], ""), value, at)
        for one in schema.get("allOf", ()):
            yield from self._check(one, value, at)
        if "anyOf" in schema:
            tried = [self._first(one, value, at) for one in schema["anyOf"]]
            if None not in tried:
                yield _closest(tried, at)
        if "oneOf" in schema:
            tried = [self._first(one, value, at) for one in schema["oneOf"]]
            if tried.count(None) > 1:
                yield Fault(
                    at, f"{short(value)} is of {tried.count(None)} of the schemas of oneOf, not of one"
                )
            elif None not in tried:
                yield _closest(tried, at)
        if "not" in schema and self._first(schema["not"], value, at) is None:
            yield Fault(at, f"{short(value)} is what the schema rules out with not")
        if "if" in schema:
            branch = "else" if self._first(schema["if"], value, at) else "then"
            yield from self._check(schema.get(branch, True), value, at)

    def _first(self, schema: Any, value: Any, at: str) -> Fault | None:
        return next(self._check(schema, value, at), None)


_COMPARED: Final[tuple[tuple[str, Callable[[Any, Any], bool], str], ...]] = (
    ("minimum", operator.lt, "is below"),
    ("maximum", operator.gt, "is above"),
    ("exclusiveMinimum", operator.le, "is not above"),
    ("exclusiveMaximum", operator.ge, "is not below"),
)


def _check_number(schema: Mapping[str, Any], value: float, at: str) -> Found:
    for key, wrong, words in _COMPARED:
        if key in schema and wrong(value, schema[key]):
            yield Fault(at, f"{short(value)} {words} {short(schema[key])}")
    if "multipleOf" in schema and not _is_multiple(value, schema["multipleOf"]):
        yield Fault(at, f"{short(value)} is no multiple of {short(schema['multipleOf'])}")


def _is_multiple(value: float, step: float) -> bool:
    # As decimals: 0.3 is a multiple of 0.1, whatever their binary neighbours are.
    try:
        return Decimal(str(value)) % Decimal(str(step)) == 0
    except InvalidOperation:  # too many digits for an exact remainder
        return value % step == 0


def _check_count(schema: Mapping[str, Any], suffix: str, unit: str, count: int, at: str) -> Found:
    least, most = schema.get(f"min{suffix}", 0), schema.get(f"max{suffix}")
    if count < least:
        yield Fault(at, f"it has {count} {unit}, at least {least} are wanted")
    if most is not None and count > most:
        yield Fault(at, f"it has {count} {unit}, at most {most} are allowed")


def _closest(tried: Sequence[Fault | None], at: str) -> Fault:
    """Of the faults of several schemas the one that lies deepest: that schema was meant, most likely."""
    faults = [one for one in tried if one is not None]
    if not faults:
        return Fault(at, "no schema is left that it could be of")
    best = max(faults, key=lambda one: one.pointer.count("/"))
    return Fault(best.pointer, f"{best.what} (and it is of no other of the {len(faults)} schemas)")


def _is(name: str, value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    match name:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return number and (isinstance(value, int) or value.is_integer())
        case "number":
            return number
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case _:
            return isinstance(value, dict)


def _same(one: Any, other: Any) -> bool:
    return _canonical(one) == _canonical(other)


def _canonical(value: Any) -> str:
    """Equal for equal JSON values: 1 and 1.0 are one number, true is none."""

    def plain(part: Any) -> Any:
        if isinstance(part, float) and part.is_integer():
            return int(part)
        if isinstance(part, list):
            return [plain(one) for one in part]
        return {key: plain(one) for key, one in part.items()} if isinstance(part, dict) else part

    return json.dumps(plain(value), sort_keys=True)


_DATED: Final = re.compile(r"[0-9]{4}-")  # pydantic takes seconds since 1970 for a date as well


@lru_cache(maxsize=1)
def _formats() -> dict[str, Callable[[str], object]]:
    """The formats that pydantic knows: each takes the text as JSON, and raises ValueError where it is none."""
    import datetime
    import ipaddress
    import uuid

    from pydantic import AnyUrl, TypeAdapter

    known: dict[str, Any] = {
        "date": datetime.date,
        "date-time": datetime.datetime,
        "time": datetime.time,
        "duration": datetime.timedelta,
        "uuid": uuid.UUID,
        "uri": AnyUrl,
        "ipv4": ipaddress.IPv4Address,
        "ipv6": ipaddress.IPv6Address,
    }
    return {name: partial(TypeAdapter(kind).validate_json, strict=True) for name, kind in known.items()}


def _has_format(name: str, text: str) -> bool:
    """Whether a text has this format; one that pydantic does not know says nothing, as the standard wants it."""
    reader = _formats().get(name)
    if reader is None:
        return True
    if name.startswith("date") and not _DATED.match(text):
        return False
    try:
        reader(json.dumps(text))
    except ValueError:
        return False
    return True
