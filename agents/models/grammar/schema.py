"""A JSON schema as a grammar of llama.cpp, which lets a model write no other tokens than those of an allowed value. Pure.

What is understood is the part of JSON Schema (draft 2020-12, with the older names) that models are asked for: types,
objects, arrays, enums, unions, references, lengths, patterns, formats, bounds. What the grammar cannot say is left to
whoever validates the value; :func:`unchecked` lists it. What would mean another schema is refused, with its pointer.

The grammar may be narrower than the schema, never wider in what it enforces:

- Objects have the declared properties in the order of their declaration, those not required or not; others only where
  ``additionalProperties`` is given, or where nothing is declared. Values without a schema are at most 6 deep.
- At most one space after a colon and a comma, and no other: white space without end is a way to write for ever.
- Whole numbers have at most 16 digits, fractions 15, exponents 2.
- Strings hold no halves of surrogate pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

from .gbnf import Rules, Symbols, literal
from .parts import MAX_DEPTH, Document, Node, Part, json_text, pointer, refuse
from .simple import Simple
from .values import anything, comma, listed, space, text

#: Properties one after the other that are not required: llama.cpp weighs them all at once.
MAX_OPTIONAL: Final = 256
MAX_WAYS: Final = 512  #: of a union; llama.cpp compares each with each
#: The same where a schema refers to itself: if they begin alike, the second level has the square of them to compare (1.8 s).
MAX_RECURSIVE_WAYS: Final = 192


def to_gbnf(schema: Mapping[str, Any]) -> str:
    """The grammar of the JSON texts that ``schema`` allows; its start is the rule ``root``.

    ``maxLength``, ``maxItems`` and ``maxProperties`` above 65,536 are not in the grammar, nor are bounds of numbers with
    a fraction that are no whole numbers below 10^15: see :func:`unchecked`.

    Raises:
        DefinitionError: a keyword has a value that it cannot have, is not understood or too large for llama.cpp, or no
            value is allowed; the message has its JSON pointer, the value and the limit.
    """
    return _Converter(schema).text


def unchecked(schema: Mapping[str, Any]) -> list[str]:
    """The JSON pointers of keywords that restrict the value and that the grammar does not enforce, or not wholly.

    Raises:
        DefinitionError: as :func:`to_gbnf`.
    """
    return list(_Converter(schema).left)


class _Converter:
    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._document = Document(schema)
        self._rules = Rules()
        self._made: dict[tuple[tuple[str, frozenset[str]], ...], str] = {}
        self._where: dict[str, str] = {}
        self._recursive = False
        self._widest = (0, "")  # the most ways of a union, and where
        # Of a value's rule, once it is made: how many beginnings of the value there are to tell apart.
        self._ways: dict[str, int] = {}
        self._any: str | None = None
        self._simple = Simple(self._rules)
        self.left = self._simple.left
        root = self._value([self._document.root()], 0)
        endless = self._rules.endless() if self._recursive else []
        for name in endless:
            if name in self._where:
                refuse(
                    self._where[name],
                    "has no finite value: each holds another one",
                    "let it end: a property that is not required, an array that may be empty, or null",
                )
        if self._recursive and self._widest[0] > MAX_RECURSIVE_WAYS:
            _refuse_ways(
                self._widest[1], self._widest[0], MAX_RECURSIVE_WAYS, " of a schema that refers to itself"
            )
        self.text = self._rules.text(root)

    def _value(self, parts: list[Part], depth: int, within: frozenset[str] = frozenset()) -> str:
        """The rule of what all parts allow. ``within``: the unions that it is in, with nothing between."""
        flat = self._document.flat(parts)
        if not flat:
            return self._anything()
        key = tuple(part.key for part in flat)
        known = self._made.get(key)
        if known is not None:
            if known in within:
                refuse(
                    flat[0].where, "refers to itself without a value between", "give it properties or items"
                )
            self._recursive = self._recursive or known not in self._ways
            return known
        if depth > MAX_DEPTH:
            refuse(flat[0].where, f"is more than {MAX_DEPTH} schemas deep", "put parts of it side by side")
        name = self._made[key] = self._rules.name("value")
        self._where[name] = flat[0].where
        union = self._document.union(flat)
        if union is None:
            node = self._document.merged(flat)
            made = self._rules.define(name, *self._node(node, depth))
            self._ways[name] = max(1, _first_choice(node))
            return made
        keyword, others, owner = union
        branches = [owner.child(keyword, n) for n in range(len(dict(owner.items())[keyword]))]
        told_apart = _discriminator(owner)
        if told_apart is not None:
            others.append(told_apart)
        elif keyword == "oneOf" and len(branches) > 1:
            self.left[pointer(owner.where, keyword)] = None  # a value of two branches is not kept out
        allowed = [branch for branch in branches if branch.schema is not False]
        if not allowed:
            refuse(pointer(owner.where, keyword), "allows no value", "allow some value")
        rules = dict.fromkeys(
            self._value([*others, branch], depth + 1, within | {name}) for branch in allowed
        )
        ways = self._ways[name] = sum(self._ways.get(rule, 1) for rule in rules)
        if ways > MAX_WAYS:
            _refuse_ways(pointer(owner.where, keyword), ways, MAX_WAYS)
        self._widest = max(self._widest, (ways, pointer(owner.where, keyword)))
        return self._rules.define(name, *((rule,) for rule in rules))

    def _anything(self) -> str:
        self._any = self._any or anything(self._rules)
        return self._any

    def _node(self, node: Node, depth: int) -> list[Symbols]:
        self.left.update(dict.fromkeys(node.left))
        if "enum" in node.at or "const" in node.at:
            return self._simple.literals(node)
        found: list[Symbols] = []
        for kind in node.types():
            match kind:
                case "object":
                    found += self._object(node, depth)
                case "array":
                    found += self._array(node, depth)
                case "string":
                    found.append((self._simple.string(node),))
                case "number":
                    found.append((self._simple.number(node),))
                case "integer":
                    found.append((self._simple.integer(node),))
                case "boolean":
                    found += [(literal("true"),), (literal("false"),)]
                case "null":
                    found.append((literal("null"),))
        return found

    # ------------------------------------------------------------ arrays

    def _array(self, node: Node, depth: int) -> list[Symbols]:
        least, most = self._simple.counts(node, "minItems", "maxItems")
        prefix = node.prefix
        closed = next((n for n, parts in enumerate(prefix) if _never(parts)), len(prefix))
        prefix = prefix[:closed]
        items: list[Part] | None = node.below.get("items")
        if closed < len(node.prefix) or (items is not None and _never(items)):
            items = None
        elif items is None and (not prefix or least > len(prefix)):
            items = []
        if items is None:
            most = len(prefix) if most is None else min(most, len(prefix))
            if least > most:
                refuse(
                    node.at["minItems"],
                    f"is {least}, but there are at most {most} items",
                    "allow more of them",
                )
        if not prefix:
            item = self._anything() if not items else self._value(items, depth + 1)
            return listed(self._rules, "[", item, "]", least, most)
        return self._tuple(prefix[:most], items, least, most, depth)

    def _tuple(
        self, prefix: list[list[Part]], items: list[Part] | None, least: int, most: int | None, depth: int
    ) -> list[Symbols]:
        rules, count = self._rules, len(prefix)
        rest: str = rules.add("rest", (literal("]"),))
        if items is not None and (most is None or most > count):
            item = self._anything() if not items else self._value(items, depth + 1)
            more = rules.add("more", (*comma(rules), item))
            room = None if most is None else most - count
            rest = rules.add("rest", (*rules.times(more, max(least - count, 0), room), literal("]")))
        values = [self._value(parts, depth + 1) for parts in prefix]
        for number in range(count - 1, 0, -1):
            more_symbols = (*comma(rules), values[number], rest)
            rest = rules.add("rest", more_symbols, *([(literal("]"),)] if number >= least else []))
        found: list[Symbols] = [(literal("[]"),)] if not least else []
        return [*found, (literal("["), values[0], rest)] if values else found

    # ------------------------------------------------------------ objects

    def _object(self, node: Node, depth: int) -> list[Symbols]:
        extra = node.below.get("additionalProperties")
        for name, where in node.required.items():
            if name in node.properties:
                continue
            if extra is not None and _never(extra) and not node.patterns:
                refuse(where, f"names {name!r}, which no property may be", "declare it")
            node.properties[name] = list(extra or ())
        for name, where in node.required.items():
            if _never(node.properties[name]):
                refuse(where, f"names {name!r}, whose schema is false", "require only what may be")
        declared = {name: parts for name, parts in node.properties.items() if not _never(parts)}
        if not declared:
            return self._map(node, extra, depth)
        self._simple.leave(node, "patternProperties", "propertyNames", "minProperties", "maxProperties")
        self._few(node, declared)
        rules = self._rules
        close: Symbols = (literal("}"),)
        keys: list[Symbols] = []
        rest = rules.add("rest", close)
        if extra is not None and not _never(extra):
            value = self._value(extra, depth + 1)
            rest = rules.name("rest")
            keys = [(rules.other_words(node.properties), literal(":"), space(rules), value, rest)]
            rules.define(rest, close, (*comma(rules), literal('"'), *keys[0]))
        ends, following = True, close
        for name in reversed(declared):
            value = self._value(declared[name], depth + 1)
            needed = name in node.required
            pair = (literal(f"{json_text(node.where, name)[1:]}:"), space(rules), value, rest)
            # A chain of the properties that may come next: those before the first required one may all be left out.
            keys = [pair] if needed or not keys else [pair, (rules.add("keys", *keys),)]
            ends = ends and not needed
            following = keys[0] if len(keys) == 1 else (rules.add("keys", *keys),)
            rest = rules.add("rest", (*comma(rules), literal('"'), *following), *([close] if ends else []))
        first: Symbols = (literal('{"'), *following)
        return [first, (literal("{}"),)] if ends else [first]

    def _few(self, node: Node, declared: Mapping[str, Any]) -> None:
        run = 0
        for name in declared:
            run = 0 if name in node.required else run + 1
            if run > MAX_OPTIONAL:
                refuse(
                    node.at.get("properties", node.where),
                    f"has {sum(name not in node.required for name in declared)} properties that are not required; "
                    f"at most {MAX_OPTIONAL} one after the other",
                    "require some of them",
                )

    def _map(self, node: Node, extra: list[Part] | None, depth: int) -> list[Symbols]:
        """An object of which no property is declared by name."""
        rules = self._rules
        least, most = self._simple.counts(node, "minProperties", "maxProperties")
        if least > 1:
            self._simple.leave(node, "minProperties")  # the same name twice is one property
        pairs: list[tuple[str, str]] = []
        if node.patterns:
            self._simple.leave(
                node, "propertyNames", *(["patternProperties"] if len(node.patterns) > 1 else [])
            )
            for pattern, parts in node.patterns.items():
                if not _never(parts):
                    where = pointer(node.at["patternProperties"], pattern)
                    pairs.append((self._simple.matching(where, pattern), self._value(parts, depth + 1)))
        elif extra is None or not _never(extra):
            names = node.below.get("propertyNames")
            key = text(rules) if names is None else self._names(names)
            pairs.append((key, self._anything() if not extra else self._value(extra, depth + 1)))
        if not pairs:
            if least:
                refuse(node.at["minProperties"], f"is {least}, but no property is allowed", "declare some")
            return [(literal("{}"),)]
        pair = rules.add("pair", *((key, literal(":"), space(rules), value) for key, value in pairs))
        return listed(rules, "{", pair, "}", least, most)

    def _names(self, parts: list[Part]) -> str:
        """The rule of a property's name."""
        flat = self._document.flat(parts)
        if not flat:
            return text(self._rules)
        if self._document.union(flat) is not None:
            refuse(flat[0].where, "is a union", "write one pattern or enum")
        node = self._document.merged(flat)
        if "enum" in node.at or "const" in node.at:
            node.values["type"] = {"string"}
            return self._simple.literals(node)[0][0]
        return self._simple.string(node)


def _refuse_ways(where: str, ways: int, most: int, what: str = "") -> NoReturn:
    refuse(
        where,
        f"has {ways} values and properties to choose from at one place{what}; at most {most}",
        "join literals in one enum, require properties",
    )


def _discriminator(part: Part) -> Part | None:
    """That OpenAPI's ``discriminator``, which pydantic writes, is there: without it nobody reads the value."""
    given = dict(part.items()).get("discriminator")
    name = given.get("propertyName") if isinstance(given, Mapping) else None
    if not isinstance(name, str):
        return None
    return Part(pointer(part.where, "discriminator"), {"required": [name]})


def _first_choice(node: Node) -> int:
    """How many properties an object may begin with."""
    return next(
        (n for n, name in enumerate(node.properties, 1) if name in node.required), len(node.properties)
    )


def _never(parts: list[Part]) -> bool:
    return any(part.schema is False for part in parts)
