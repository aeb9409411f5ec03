"""GBNF, llama.cpp's notation of grammars: rules, literals, character classes, repetitions. Pure.

A rule is some alternatives, an alternative some symbols, and a symbol a string of GBNF: a literal, a class, or a rule's
name, perhaps with how often it stands there. Names are a word and a number, never a word of whoever asked for the rule,
so no two rules can be taken for each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Final

from ....bus.errors import DefinitionError

Symbols = tuple[str, ...]
#: Code points, sorted, without overlaps: ((first, last), …), both included.
Ranges = tuple[tuple[int, int], ...]

#: No surrogates: UTF-8 has none, and JSON's escapes of half a pair make text that cannot be sent on.
CHARACTERS: Final[Ranges] = ((0, 0xD7FF), (0xE000, 0x10FFFF))
#: What stands for itself in a JSON string: all but control characters, the quote and the backslash.
PLAIN: Final[Ranges] = ((0x20, 0x21), (0x23, 0x5B), (0x5D, 0xD7FF), (0xE000, 0x10FFFF))

MAX_BYTES: Final = 512 * 1024  #: of a grammar's text; llama.cpp reads as much in some 20 ms
MAX_PARTS: Final = 50_000  #: rules that llama.cpp makes of the repetitions
MAX_TIMES: Final = 65_536  #: of one repetition
# llama.cpp makes a rule for each optional repetition and refuses 2,000 of them. Above this many we count by blocks.
_BLOCK: Final = 256
_SAFE: Final = re.compile(r"[^ !#-\[\]-~]")
_ESCAPES: Final = {'"': r"\"", "\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"}
_NAME: Final = re.compile("[a-z]+-[0-9]+")


class Rules:
    """The rules of one grammar.

    Raises:
        DefinitionError: it grows past :data:`MAX_BYTES` or :data:`MAX_PARTS`.
    """

    def __init__(self) -> None:
        self._rules: dict[str, tuple[Symbols, ...]] = {}
        self._known: dict[tuple[Symbols, ...], str] = {}
        self._words: dict[tuple[tuple[str, ...], Symbols], str] = {}
        self._named = 0
        self._bytes = 0
        self._parts = 0

    def name(self, word: str) -> str:
        """A name for a rule that comes later."""
        self._named += 1
        return f"{word}-{self._named}"

    def define(self, name: str, *alternatives: Symbols) -> str:
        """The rule of this name."""
        self._bytes += len(name) + 6 + sum(len(s) + 1 for symbols in alternatives for s in (*symbols, "|"))
        if self._bytes > MAX_BYTES:
            raise DefinitionError(
                f"json_schema: its grammar has more than {MAX_BYTES} bytes; name fewer properties and values"
            )
        self._rules[name] = alternatives
        return name

    def add(self, word: str, *alternatives: Symbols) -> str:
        """A rule; the same one where there is one like it."""
        known = self._known.get(alternatives)
        if known is None:
            known = self._known[alternatives] = self.define(self.name(word), *alternatives)
        return known

    def text(self, root: str) -> str:
        """The grammar, with ``root`` as its start."""
        lines = [f"root ::= {root}\n"]
        for name, alternatives in self._rules.items():
            body = " | ".join(" ".join(symbols) or '""' for symbols in alternatives)
            lines.append(f"{name} ::= {body}\n")
        return "".join(lines)

    def endless(self) -> list[str]:
        """The rules of which no text comes to an end, the first made first."""
        waits: dict[str, list[tuple[str, int]]] = {}
        missing: dict[tuple[str, int], int] = {}
        ended: list[str] = []
        for name, alternatives in self._rules.items():
            for number, symbols in enumerate(alternatives):
                needed = {other for symbol in symbols if (other := _needed(symbol))}
                missing[name, number] = len(needed)
                for other in needed:
                    waits.setdefault(other, []).append((name, number))
                if not needed:
                    ended.append(name)
        finite: set[str] = set()
        while ended:
            name = ended.pop()
            if name in finite:
                continue
            finite.add(name)
            for alternative in waits.get(name, ()):
                missing[alternative] -= 1
                if not missing[alternative]:
                    ended.append(alternative[0])
        return [name for name in self._rules if name not in finite]

    # ------------------------------------------------------------ parts that several rules need

    def times(self, name: str, least: int, most: int | None) -> Symbols:
        """The rule ``name``, ``least`` to ``most`` times (None: any number), at most :data:`MAX_TIMES`."""
        blocks, rest = divmod(least, _BLOCK)
        symbols: list[str] = []
        if blocks:
            symbols.append(f"{self._block(name)}{{{blocks}}}")
        if rest:
            symbols.append(f"{name}{{{rest}}}")
        self._count(blocks + rest)
        if most is None:
            symbols.append(f"{name}*")
        elif most > least:
            symbols.append(self._up_to(name, most - least))
        return tuple(symbols)

    def _block(self, name: str) -> str:
        return self.add("block", (f"{name}{{{_BLOCK}}}",))

    def _up_to(self, name: str, most: int) -> str:
        blocks, rest = divmod(most, _BLOCK)
        self._count(blocks + rest + _BLOCK)
        if not blocks:
            return f"{name}{{0,{most}}}"
        # Whole blocks, then less than one: two ways are open at each place, not as many as there are blocks.
        tail = self.add("tail", (f"{name}{{0,{_BLOCK - 1}}}",))
        rule = self.add("count", (f"{name}{{0,{rest}}}",) if rest else ())
        for _ in range(blocks):
            rule = self.add("count", (self._block(name), rule), (tail,))
        return rule

    def _count(self, parts: int) -> None:
        self._parts += parts
        if self._parts > MAX_PARTS:
            raise DefinitionError(
                f"json_schema: its lengths make more than {MAX_PARTS} parts of a grammar; give smaller or fewer bounds"
            )

    def words(self, word: str, texts: Iterable[str], end: Symbols = ()) -> str:
        """One of the texts, then ``end``. What they begin with in common is one path: llama.cpp follows few at once."""
        each = sorted(set(texts))
        if (tuple(each), end) in self._words:
            return self._words[tuple(each), end]
        root = self._words[tuple(each), end] = self.name(word)
        todo = [(root, 0, len(each), 0)]
        while todo:
            name, low, high, at = todo.pop()
            alternatives: list[Symbols] = []
            if len(each[low]) == at:
                alternatives.append(end)
                low += 1
            while low < high:
                first, start = each[low][at], low
                while low < high and each[low][at] == first:
                    low += 1
                if low - start == 1:
                    alternatives.append((literal(each[start][at:]), *end))
                    continue
                common = shared(each[start], each[low - 1])
                branch = self.name(word)
                alternatives.append((literal(each[start][at:common]), branch))
                todo.append((branch, start, low, common))
            self.define(name, *alternatives)
        return root

    def other_words(self, texts: Iterable[str]) -> str:
        """A JSON string of plain characters that is none of the texts, with its closing quote."""
        plain = char_class(PLAIN)
        rest = self.add("rest", (self.add("plain", (plain,)) + "*", literal('"')))
        each = sorted({text for text in texts if all(_in(ord(c), PLAIN) for c in text)})
        root = self.name("other")
        todo = [(root, 0, len(each), 0)]
        while todo:
            name, low, high, at = todo.pop()
            alternatives: list[Symbols] = []
            if low < high and len(each[low]) == at:
                low += 1
            else:
                alternatives.append((literal('"'),))
            taken: list[tuple[int, int]] = []
            while low < high:
                first, start = each[low][at], low
                while low < high and each[low][at] == first:
                    low += 1
                branch = self.name("other")
                alternatives.append((literal(first), branch))
                taken.append((ord(first), ord(first)))
                todo.append((branch, start, low, at + 1))
            alternatives.append((char_class(common_to(PLAIN, all_but(taken))), rest))
            self.define(name, *alternatives)
        return root

    def character(self) -> str:
        """One character of a JSON string, as it is or escaped."""
        return self.add("char", (char_class(PLAIN),), (literal("\\"), self.escape()))

    def escape(self) -> str:
        """What may follow a backslash in a JSON string."""
        digit = "[0-9a-fA-F]"
        return self.add(
            "escape",
            (r'["\\/bfnrt]',),
            ('"u"', "[0-9a-cA-CefEF]", digit, digit, digit),
            ('"u"', "[dD]", "[0-7]", digit, digit),
        )


def _needed(symbol: str) -> str | None:
    """The rule without which the symbol has no text."""
    match = _NAME.match(symbol)
    if match is None or symbol[match.end() :].startswith(("*", "{0,")):
        return None
    return match[0]


# ------------------------------------------------------------ literals and classes


def literal(text: str) -> str:
    """GBNF for exactly this text, in ASCII."""
    return f'"{_SAFE.sub(_escaped, text)}"'


def _escaped(match: re.Match[str]) -> str:
    return _ESCAPES.get(match[0]) or _code(ord(match[0]))


def _code(point: int) -> str:
    if point <= 0xFF:
        return f"\\x{point:02X}"
    return f"\\u{point:04X}" if point <= 0xFFFF else f"\\U{point:08X}"


def char_class(ranges: Ranges) -> str:
    """GBNF for one character of the ranges."""
    parts = []
    for first, last in ranges:
        parts.append(_class_char(first))
        if last > first:
            parts.append(("-" if last > first + 1 else "") + _class_char(last))
    return f"[{''.join(parts)}]"


def _class_char(point: int) -> str:
    char = chr(point)
    return char if char.isascii() and char.isalnum() else _code(point)


def shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


# ------------------------------------------------------------ ranges


def ranges(parts: Iterable[tuple[int, int]]) -> Ranges:
    """The parts sorted, and joined where they touch."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(parts):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    return tuple(joined)


def all_but(parts: Iterable[tuple[int, int]]) -> Ranges:
    """Every character that is in none of the parts."""
    return common_to(CHARACTERS, tuple(_gaps(ranges(parts))))


def _gaps(parts: Ranges) -> Iterator[tuple[int, int]]:
    start = 0
    for first, last in parts:
        if first > start:
            yield start, first - 1
        start = last + 1
    if start <= 0x10FFFF:
        yield start, 0x10FFFF


def common_to(one: Ranges, other: Ranges) -> Ranges:
    """What is in both."""
    found, i, k = [], 0, 0
    while i < len(one) and k < len(other):
        first, last = max(one[i][0], other[k][0]), min(one[i][1], other[k][1])
        if first <= last:
            found.append((first, last))
        if one[i][1] < other[k][1]:
            i += 1
        else:
            k += 1
    return tuple(found)


def _in(point: int, parts: Ranges) -> bool:
    return any(first <= point <= last for first, last in parts)
