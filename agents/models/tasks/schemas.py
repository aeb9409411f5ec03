"""A JSON schema as a document: read and refused before anybody is asked for an answer. Pure.

Laws of this file
- A schema is refused when it is read: an unknown type, a pattern that cannot be read, a ``$ref`` to nowhere, and every
  keyword that restricts and is not checked by ``validation``, which would let anything pass.
- Patterns are pydantic's: its regular expressions run in time linear in the text, whatever the pattern.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final
from urllib.parse import unquote

from ....bus.errors import DefinitionError

_TYPES: Final = ("null", "boolean", "integer", "number", "string", "array", "object")
#: Keywords of the standard that restrict a value and are not checked: taken silently they would let anything pass.
_NOT_CHECKED: Final = frozenset(
    {"unevaluatedProperties", "unevaluatedItems", "dependentSchemas", "dependencies", "additionalItems"}
    | {"$dynamicRef", "$recursiveRef", "contains", "minContains", "maxContains"}
)
_ONE: Final = ("not", "if", "then", "else", "items", "additionalProperties", "propertyNames")
_MANY: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_NAMED: Final = ("properties", "patternProperties", "$defs", "definitions")
_COUNTS: Final = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_BOUNDS: Final = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf")


class SchemaDocument:
    """A schema (the subset of JSON Schema 2020-12 that restricts single values) and what it refers to.

    ``patterns``: each regular expression of it as a function that says whether a text matches, anywhere in it.

    Raises:
        DefinitionError: the schema is wrong; the message has the JSON pointer of the place and the fix.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self.root = schema
        self.patterns: dict[str, Callable[[str], bool]] = {}
        self._survey()

    def _survey(self) -> None:
        """Look at every schema inside the schema, and at those that a ``$ref`` names."""
        todo: list[tuple[Any, str]] = [(self.root, "")]
        seen: set[int] = set()
        while todo:
            schema, at = todo.pop()
            if isinstance(schema, bool):
                continue
            if not isinstance(schema, Mapping):
                raise _bad(at, f"{short(schema)} is no schema", "write an object, true or false")
            if id(schema) in seen:
                continue
            seen.add(id(schema))
            self._check_keywords(schema, at)
            todo += ((schema[key], f"{at}/{key}") for key in _ONE if key in schema)
            todo += (
                (one, f"{at}/{key}/{i}")
                for key in _MANY
                if key in schema
                for i, one in enumerate(_list(schema, key, at))
            )
            todo += (
                (one, f"{at}/{key}/{name}")
                for key in _NAMED
                if key in schema
                for name, one in _map(schema, key, at).items()
            )
            if "$ref" in schema:
                todo.append((self.target(schema["$ref"], at), str(schema["$ref"])))

    def _check_keywords(self, schema: Mapping[str, Any], at: str) -> None:
        for key in schema:
            if key in _NOT_CHECKED:
                raise _bad(f"{at}/{key}", "this keyword is not checked here", "leave it out")
        for name in types_of(schema):
            if name not in _TYPES:
                raise _bad(f"{at}/type", f"{short(name)} is no type", f"one of {', '.join(_TYPES)}")
        for key in _COUNTS:
            count = schema.get(key, 0)
            if isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise _bad(f"{at}/{key}", f"{short(count)} is no count", "write a whole number from 0")
        for key in _BOUNDS:
            bound = schema.get(key, 1)
            if isinstance(bound, bool) or not isinstance(bound, int | float):
                raise _bad(f"{at}/{key}", f"{short(bound)} is no number", "write a number")
        if not schema.get("multipleOf", 1) > 0:
            raise _bad(f"{at}/multipleOf", "it is not above 0", "write a number above 0")
        if "enum" in schema:
            _list(schema, "enum", at)
        _names(_list(schema, "required", at), f"{at}/required")
        for name, needed in _map(schema, "dependentRequired", at).items():
            _names(needed, f"{at}/dependentRequired/{name}")
        patterns = list(_map(schema, "patternProperties", at))
        for pattern in [*patterns, schema["pattern"]] if "pattern" in schema else patterns:
            self._pattern(pattern, at)

    def _pattern(self, pattern: Any, at: str) -> None:
        from pydantic import StringConstraints, TypeAdapter, ValidationError
        from pydantic_core import SchemaError

        if not isinstance(pattern, str):
            raise _bad(f"{at}/pattern", f"{short(pattern)} is no text", "write a regular expression")
        try:
            adapter: TypeAdapter[str] = TypeAdapter(Annotated[str, StringConstraints(pattern=pattern)])
        except SchemaError as e:
            why = " ".join(str(e).split())[-120:]
            raise _bad(
                f"{at}/pattern", f"{short(pattern)} cannot be read ({why})", "write it without"
            ) from None

        def fits(text: str) -> bool:
            try:
                adapter.validate_python(text)
            except ValidationError:
                return False
            return True

        self.patterns[pattern] = fits

    def target(self, ref: Any, at: str) -> Any:
        """The schema that a ``$ref`` of this document names.

        Raises:
            DefinitionError: it leads out of the document, or nowhere.
        """
        here: Any = self.root
        if not isinstance(ref, str) or not re.match(r"#(/|$)", ref):
            raise _bad(f"{at}/$ref", f"{short(ref)} leads out of the schema", "write #/$defs/NAME")
        for part in ref.split("/")[1:]:
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(here, Mapping) and name in here:
                here = here[name]
            elif isinstance(here, list) and name.isdecimal() and int(name[:9]) < len(here):
                here = here[int(name)]
            else:
                raise _bad(f"{at}/$ref", f"{short(ref)} leads nowhere", "write the pointer of a schema in it")
        return here


def types_of(schema: Mapping[str, Any]) -> list[Any]:
    """The types that a schema allows; none named is any."""
    found = schema.get("type", [])
    return found if isinstance(found, list) else [found]


def _list(schema: Mapping[str, Any], key: str, at: str) -> list[Any]:
    found = schema.get(key, [])
    if not isinstance(found, list):
        raise _bad(f"{at}/{key}", f"{short(found)} is no list", "write a list")
    return found


def _names(found: Any, at: str) -> None:
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise _bad(at, f"{short(found)} is no list of names", 'write e.g. ["name"]')


def _map(schema: Mapping[str, Any], key: str, at: str) -> Mapping[str, Any]:
    found = schema.get(key, {})
    if not isinstance(found, Mapping):
        raise _bad(f"{at}/{key}", f"{short(found)} is no object", "write an object")
    return found


def short(value: Any, most: int = 60) -> str:
    """A value for a message, at most so many characters of it."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= most else text[: most - 1] + "…"


def _bad(at: str, what: str, fix: str) -> DefinitionError:
    return DefinitionError(f"json_schema: {at or 'the whole schema'}: {what}; {fix}")
