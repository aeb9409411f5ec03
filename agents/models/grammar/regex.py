r"""Regular expressions of JSON schemas, read into a tree. Pure.

The language is that of ECMA 262 without look-around, back-references, word boundaries, flags and Unicode properties;
`^` and `$` stand at the ends of the pattern or of its alternatives. `\d \w \s` and their opposites mean ASCII.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NoReturn

from .gbnf import Ranges, all_but, common_to, ranges

MAX_CHARS: Final = 4096  #: of a pattern
MAX_GROUPS: Final = 32  #: one in the other
MAX_DIGITS: Final = 6  #: of a repetition's bounds; the automaton's limits are far below

DIGIT: Final[Ranges] = ((0x30, 0x39),)
WORD: Final[Ranges] = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
SPACE: Final[Ranges] = ((0x09, 0x0D), (0x20, 0x20))
ASCII: Final[Ranges] = ((0x21, 0x7E),)
CLASSES: Final[dict[str, Ranges]] = {
    "d": DIGIT,
    "w": WORD,
    "s": SPACE,
    "D": common_to(((0x20, 0x7E),), all_but(DIGIT)),
    "W": common_to(((0x20, 0x7E),), all_but(WORD)),
    "S": ASCII,
}
CONTROLS: Final = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C, "v": 0x0B, "0": 0x00}
NOT_A_LINE_END: Final = all_but(((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029)))
HEX_ESCAPES: Final = {"x": 2, "u": 4}


class BadPattern(ValueError):
    """The pattern is none, or not one of those that become rules. The message says why."""


@dataclass(frozen=True, slots=True)
class Chars:
    """One character of these."""

    of: Ranges


@dataclass(frozen=True, slots=True)
class Then:
    """One after the other."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Times:
    """``most`` None: any number of times."""

    part: Node
    least: int
    most: int | None


Node = Chars | Then | Either | Times


@dataclass(frozen=True, slots=True)
class Branch:
    """One alternative of the whole pattern; between its ends and those of the text may be anything if not anchored."""

    node: Node
    from_start: bool
    to_end: bool


def read(pattern: str) -> list[Branch]:
    """The alternatives of a pattern.

    Raises:
        BadPattern: it is none, or has what this language lacks.
    """
    if len(pattern) > MAX_CHARS:
        raise BadPattern(f"{len(pattern)} characters; at most {MAX_CHARS}")
    return _Reader(pattern).read()


class _Reader:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0

    def read(self) -> list[Branch]:
        branches: list[Branch] = []
        while True:
            from_start = self._take("^")
            node = Then(self._sequence(0))
            branches.append(Branch(node, from_start, self._take("$")))
            if not self._take("|"):
                break
        if self._at < len(self._text):
            self._fail("a `)` that closes nothing" if self._peek() == ")" else "`$` that is not at the end")
        return branches

    def _fail(self, what: str) -> NoReturn:
        raise BadPattern(f"{what} (character {self._at + 1})")

    def _peek(self, count: int = 1) -> str:
        return self._text[self._at : self._at + count]

    def _take(self, word: str) -> bool:
        taken = self._text.startswith(word, self._at)
        self._at += len(word) if taken else 0
        return taken

    def _next(self) -> str:
        if self._at == len(self._text):
            self._fail("it ends in the middle")
        self._at += 1
        return self._text[self._at - 1]

    def _sequence(self, depth: int) -> tuple[Node, ...]:
        parts: list[Node] = []
        while self._peek() not in {"", "|", ")", "$"}:
            parts.append(self._repeated(self._atom(depth)))
        return tuple(parts)

    def _atom(self, depth: int) -> Node:
        char = self._next()
        if char == "(":
            return self._group(depth + 1)
        if char == "[":
            return Chars(self._members())
        if char == ".":
            return Chars(NOT_A_LINE_END)
        if char == "\\":
            return Chars(self._escape(within=False))
        if char == "^":
            self._fail("`^` that is not at the start")
        if char in "*+?" or (char == "{" and self._counts_ahead()):
            self._fail(f"`{char}` after nothing")
        return Chars(((ord(char), ord(char)),))

    def _group(self, depth: int) -> Node:
        if depth > MAX_GROUPS:
            self._fail(f"groups more than {MAX_GROUPS} deep")
        if self._take("?") and not self._take(":"):
            self._take("P")
            if self._peek() != "<" or self._peek(2) in {"<=", "<!"}:
                self._fail("look-around or flags: `(?…` other than `(?:` and `(?<name>`")
            while self._next() != ">":
                pass
        branches: list[Node] = [Then(self._sequence(depth))]
        while self._take("|"):
            branches.append(Then(self._sequence(depth)))
        if not self._take(")"):
            self._fail("`$` that is not at the end" if self._peek() == "$" else "a `(` that is not closed")
        return Either(tuple(branches))

    def _repeated(self, part: Node) -> Node:
        least, most = 1, None
        if self._take("*"):
            least = 0
        elif self._take("?"):
            least, most = 0, 1
        elif self._peek() == "{" and self._counts_ahead():
            least, most = self._counts()
        elif not self._take("+"):
            return part
        self._take("?")  # it says which match is taken, not which texts match
        if self._peek() in {"*", "+", "?"} or (self._peek() == "{" and self._counts_ahead()):
            self._fail("a repetition of a repetition without a group")
        return Times(part, least, most)

    def _counts_ahead(self) -> bool:
        end = self._text.find("}", self._at)
        inner = self._text[self._at + 1 : end] if end >= 0 else ""
        if inner[:1] == "," and inner[1:].isdigit():
            self._fail(f"`{{{inner}}}`, which means two things; write {{0{inner}}}")
        return inner[:1].isdigit() and all(c in "0123456789," for c in inner) and inner.count(",") <= 1

    def _counts(self) -> tuple[int, int | None]:
        end = self._text.index("}", self._at)
        low, comma, high = self._text[self._at + 1 : end].partition(",")
        if len(low) > MAX_DIGITS or len(high) > MAX_DIGITS:
            self._fail(f"a repetition {{{low}{comma}{high}}} of more than {MAX_DIGITS} digits")
        self._at = end + 1
        least = int(low)
        most = (int(high) if high else None) if comma else least
        if most is not None and most < least:
            self._fail(f"a repetition {{{low},{high}}} whose bounds are the wrong way round")
        return least, most

    def _escape(self, *, within: bool) -> Ranges:
        char = self._next()
        if char in CLASSES:
            return CLASSES[char]
        point = self._escaped_point(char, within=within)
        return ((point, point),)

    def _escaped_point(self, char: str, *, within: bool) -> int:
        if char == "b" and within:
            return 0x08
        if char in CONTROLS and not (char == "0" and self._peek().isdigit()):
            return CONTROLS[char]
        if char in HEX_ESCAPES:
            return self._hex(HEX_ESCAPES[char])
        if char.isascii() and char.isalnum():
            self._fail(f"`\\{char}`: no back-references, boundaries, properties or control letters")
        return ord(char)

    def _hex(self, size: int) -> int:
        if size == 4 and self._take("{"):
            end = self._text.find("}", self._at)
            size = end - self._at if end >= 0 else 0
        digits = self._peek(size)
        if len(digits) != size or not 0 < size <= 6 or not all(c in "0123456789abcdefABCDEF" for c in digits):
            self._fail("an escape that lacks hexadecimal digits")
        self._at += size
        self._take("}")
        return min(int(digits, 16), 0x110000)

    def _members(self) -> Ranges:
        negated = self._take("^")
        parts: list[tuple[int, int]] = []
        while not self._take("]"):
            first = self._member()
            if self._peek() != "-" or self._peek(2) == "-]":
                parts += first
                continue
            self._next()
            last = self._member()
            if len(first) != 1 or len(last) != 1 or first[0][0] != first[0][1] or last[0][0] != last[0][1]:
                self._fail("a range of characters from or to a class")
            if last[0][0] < first[0][0]:
                self._fail("a range of characters whose ends are the wrong way round")
            parts.append((first[0][0], last[0][0]))
        return all_but(parts) if negated else ranges(parts)

    def _member(self) -> Ranges:
        char = self._next()
        return self._escape(within=True) if char == "\\" else ((ord(char), ord(char)),)
