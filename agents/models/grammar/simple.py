"""Nodes of a schema whose values hold no others, as rules: literals, strings, numbers. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

from .gbnf import MAX_TIMES, Rules, Symbols
from .parts import IMPLIED, Node, fits, json_text, refuse
from .pattern import MAX_WORK, automaton, matching, of_length
from .regex import BadPattern
from .values import LARGEST, formatted, integers, numbers, reals, text

_WHOLE: Final = 10**15  #: bounds of numbers with a fraction up to here are in the grammar


class Simple:
    """Makes rules in ``rules``. ``left`` has the pointers of the keywords that they do not enforce."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._patterns: dict[tuple[str, int, int | None], tuple[str, bool]] = {}
        self._pattern_work = MAX_WORK
        self.left: dict[str, None] = {}

    def leave(self, node: Node, *keywords: str) -> None:
        """The grammar does not enforce these."""
        for keyword in keywords:
            if keyword in node.at:
                self.left[node.at[keyword]] = None

    def literals(self, node: Node) -> list[Symbols]:
        keyword = "enum" if "enum" in node.at else "const"
        values = node.values[keyword]
        if keyword == "enum" and "const" in node.at:
            values = [
                value
                for value in values
                if json_text(node.where, value) == json_text(node.where, node.values["const"][0])
            ]
        if "type" in node.values:
            values = [value for value in values if fits(value, node.values["type"])]
        if not values:
            refuse(node.at[keyword], "has no value that the rest of the schema allows", "allow some value")
        self.leave(node, *IMPLIED)
        return [(self._rules.words("literal", (json_text(node.where, value) for value in values)),)]

    def string(self, node: Node) -> str:
        least, most = self.counts(node, "minLength", "maxLength")
        if "pattern" in node.at:
            self.leave(node, "format")
            rule, exact = self._matching(node.at["pattern"], node.values["pattern"], least, most)
            if not exact:
                self.leave(node, "minLength", "maxLength")
            return rule
        if "format" in node.at:
            made = formatted(self._rules, node.values["format"])
            if made is not None:
                self.leave(node, "minLength", "maxLength")
                return made
            self.leave(node, "format")
        return text(self._rules, least, most)

    def matching(self, where: str, pattern: str) -> str:
        """The rule of the strings that ``pattern`` matches."""
        return self._matching(where, pattern, 0, None)[0]

    def _matching(self, where: str, pattern: str, least: int, most: int | None) -> tuple[str, bool]:
        """The same within these lengths; False: they would make it too large, and are not in the rule."""
        key = pattern, least, most
        if key not in self._patterns:
            try:
                found = automaton(pattern, self._pattern_work)
                within = of_length(found, least, most) if least or most is not None else found
            except BadPattern as e:
                refuse(where, f"is {pattern[:80]!r}: {e}", "write it more simply")
            self._pattern_work -= (within or found).work
            self._patterns[key] = matching(self._rules, within or found), within is not None
        return self._patterns[key]

    def counts(self, node: Node, low: str, high: str) -> tuple[int, int | None]:
        """The bounds that two keywords give; the upper one None where the grammar does not count so far."""
        least, most = node.values.get(low, 0), node.values.get(high)
        if least > MAX_TIMES:
            refuse(node.at[low], f"is {least}; at most {MAX_TIMES}", "ask for less")
        if most is not None and most < least:
            refuse(node.at[high], f"is {most}, but {low} is {least}", "let the larger be the maximum")
        if most is not None and most > MAX_TIMES:
            self.leave(node, high)
            most = None
        return least, most

    def integer(self, node: Node) -> str:
        low, high = -LARGEST, LARGEST
        for keyword, bound in _bounds(node):
            match keyword:
                case "minimum":
                    low = max(low, math.ceil(bound))
                case "exclusiveMinimum":
                    low = max(low, math.floor(bound) + 1)
                case "maximum":
                    high = min(high, math.floor(bound))
                case _:
                    high = min(high, math.ceil(bound) - 1)
        if low > high:
            _no_number(node, f"a whole number of at most {len(str(LARGEST))} digits")
        return self._rules.add("integer", *integers(low, high))

    def number(self, node: Node) -> str:
        low, high, above, below = -LARGEST, LARGEST, False, False
        bounds = [(keyword, bound) for keyword, bound in _bounds(node) if abs(bound) <= _WHOLE]
        for keyword, bound in bounds:
            whole = bound == int(bound)
            if not whole:
                self.leave(node, keyword)
            if keyword in {"minimum", "exclusiveMinimum"} and math.floor(bound) >= low:
                above = whole and (keyword == "exclusiveMinimum" or (above and math.floor(bound) == low))
                low = math.floor(bound)
            elif keyword in {"maximum", "exclusiveMaximum"} and math.ceil(bound) <= high:
                below = whole and (keyword == "exclusiveMaximum" or (below and math.ceil(bound) == high))
                high = math.ceil(bound)
        self.leave(node, *(keyword for keyword, bound in _bounds(node) if abs(bound) > _WHOLE))
        if low > high or (low == high and (above or below)):
            _no_number(node, "a number")
        made = reals(low, high, above=above, below=below) if bounds else numbers()
        return self._rules.add("number", *made)


def _bounds(node: Node) -> Iterator[tuple[str, int | float]]:
    for keyword in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum"):
        if keyword in node.values:
            yield keyword, node.values[keyword]


def _no_number(node: Node, what: str) -> None:
    bounds = ", ".join(f"{keyword} {bound}" for keyword, bound in _bounds(node))
    refuse(node.where, f"allows no number: {bounds}", f"let {what} lie between")
