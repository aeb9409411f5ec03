"""Rules for the values that hold no others: any JSON, strings of a length or format, numbers within bounds. Pure.

What the rules allow is always JSON of the type, and often less: whole numbers of at most 16 digits, at most one space
where JSON has any, dates that exist. A model that may write on for ever sometimes does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from .gbnf import Rules, Symbols, literal, shared

LARGEST: Final = 10**16 - 1  #: the largest whole number without bounds; doubles hold nearly all of them
ANY_DEPTH: Final = 6  #: of a value of which the schema says nothing


def space(rules: Rules) -> str:
    """After a colon or a comma."""
    return rules.add("space", (literal(" "),), ())


def comma(rules: Rules) -> Symbols:
    return literal(","), space(rules)


def listed(
    rules: Rules, opening: str, item: str, closing: str, least: int = 0, most: int | None = None
) -> list[Symbols]:
    """``item``, from ``least`` to ``most`` times with commas between, in brackets."""
    found: list[Symbols] = [] if least else [(literal(opening + closing),)]
    if most != 0:
        more = rules.add("more", (*comma(rules), item))
        rest = rules.times(more, max(least - 1, 0), None if most is None else most - 1)
        found.append((literal(opening), item, *rest, literal(closing)))
    return found


def anything(rules: Rules, depth: int = ANY_DEPTH) -> str:
    """Any JSON value, objects and arrays at most ``depth`` deep."""
    words = ((literal(word),) for word in ("true", "false", "null"))
    scalar = name = rules.add("scalar", (text(rules),), *numbers(), *words)
    for _ in range(depth):
        name = rules.add("any", (scalar,), (any_object(rules, name),), (any_array(rules, name),))
    return name


def any_object(rules: Rules, value: str) -> str:
    pair = rules.add("pair", (text(rules), literal(":"), space(rules), value))
    return rules.add("object", *listed(rules, "{", pair, "}"))


def any_array(rules: Rules, value: str) -> str:
    return rules.add("array", *listed(rules, "[", value, "]"))


# ------------------------------------------------------------ strings


def text(rules: Rules, least: int = 0, most: int | None = None) -> str:
    """A string of ``least`` to ``most`` characters."""
    return rules.add("string", (literal('"'), *rules.times(rules.character(), least, most), literal('"')))


def formatted(rules: Rules, name: str) -> str | None:
    """A string of a format of RFC 3339 or RFC 4122; None for other formats."""
    make = _FORMATS.get(name)
    return None if make is None else rules.add("string", (literal('"'), *make(rules), literal('"')))


def _date(rules: Rules) -> Symbols:
    fours = [f"{n:02}" for n in range(4, 100, 4)]
    days = [31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    dates = [f"-{month:02}-{day:02}" for month, last in enumerate(days, 1) for day in range(1, last + 1)]
    leap = rules.add(
        "leap",
        ("[1-9]", "[0-9]", rules.words("leap", fours)),
        (rules.words("leap", (n for n in fours if n >= "10")), literal("00")),
    )
    return (rules.add("date", ("[1-9]", "[0-9]{3}", rules.words("date", dates)), (leap, literal("-02-29"))),)


def _time(rules: Rules) -> Symbols:
    hour = rules.add("hour", ("[01]", "[0-9]"), (literal("2"), "[0-3]"))
    minute = rules.add("minute", (literal(":"), "[0-5]", "[0-9]"))
    fraction = rules.add("fraction", (literal("."), "[0-9]{1,6}"), ())
    zone = rules.add("zone", (literal("Z"),), ("[+\\x2D]", hour, minute))
    return hour, minute, minute, fraction, zone


def _date_time(rules: Rules) -> Symbols:
    return *_date(rules), literal("T"), *_time(rules)


def _uuid(rules: Rules) -> Symbols:
    digit, dash = "[0-9a-f]", literal("-")
    return f"{digit}{{8}}", *((dash, f"{digit}{{4}}") * 3), dash, f"{digit}{{12}}"


_FORMATS: Final[dict[str, Callable[[Rules], Symbols]]] = {
    "date": _date,
    "time": _time,
    "date-time": _date_time,
    "uuid": _uuid,
}

# ------------------------------------------------------------ numbers


def numbers() -> list[Symbols]:
    """Any number."""
    minus, fraction, power = '"-"?', '("." [0-9]{1,15})?', "([eE] [+\\x2D]? [0-9]{1,2})?"
    return [(minus, '"0"', fraction, power), (minus, "[1-9]", "[0-9]{0,15}", fraction, power)]


def integers(low: int, high: int) -> list[Symbols]:
    """The whole numbers from ``low`` to ``high``."""
    found: list[Symbols] = []
    if low < 0:
        found += [(literal("-"), *part) for part in naturals(max(1, -high), -low)]
    if high >= 0:
        found += naturals(max(low, 0), high)
    return found


def reals(low: int, high: int, *, above: bool, below: bool) -> list[Symbols]:
    """The numbers from ``low`` to ``high``; ``above``, ``below``: without these themselves."""
    found: list[Symbols] = []
    if low < 0:
        top, open_top = (-high, below) if high < 0 else (0, high == 0 and below)
        found += [(literal("-"), *part) for part in _sizes(top, -low, above=open_top, below=above)]
    if high > 0 or (high == 0 and not below):
        bottom, open_bottom = (low, above) if low >= 0 else (0, False)
        found += _sizes(bottom, high, above=open_bottom, below=below)
    return found


def naturals(low: int, high: int) -> list[Symbols]:
    """The whole numbers from ``low`` to ``high`` (0 <= low <= high), without leading zeros."""
    found: list[Symbols] = []
    shortest, longest = len(str(low)), len(str(high))
    while shortest <= longest:
        first = max(low, 10 ** (shortest - 1) if shortest > 1 else 0)
        # All numbers of these lengths: one alternative, for llama.cpp follows each of them at once.
        last = longest if high == 10**longest - 1 else longest - 1
        if first in {0, 1} or first == 10 ** (shortest - 1):
            if first == 0:
                found.append((literal("0"),))
            if last >= shortest:
                found.append(("[1-9]", f"[0-9]{{{shortest - 1},{last - 1}}}"))
                shortest = last + 1
                continue
            first = max(first, 1)
        if first <= high:
            found += _digits(str(first), str(min(high, 10**shortest - 1)))
        shortest += 1
    return found


def _digits(low: str, high: str) -> list[Symbols]:
    """The strings of digits between two of the same length."""
    common = shared(low, high)
    start: Symbols = (literal(low[:common]),) if common else ()
    low, high = low[common:], high[common:]
    if not low:
        return [start]
    rest = len(low) - 1
    any_rest: Symbols = (f"[0-9]{{{rest}}}",) if rest else ()
    first, last = int(low[0]), int(high[0])
    found: list[Symbols] = []
    if low[1:] != "0" * rest:
        found += [(*start, literal(low[0]), *more) for more in _digits(low[1:], "9" * rest)]
        first += 1
    ends: list[Symbols] = []
    if high[1:] != "9" * rest:
        ends = [(*start, literal(high[0]), *more) for more in _digits("0" * rest, high[1:])]
        last -= 1
    if first <= last:
        found.append((*start, f"[{first}-{last}]" if first < last else f"[{first}]", *any_rest))
    return found + ends


def _sizes(low: int, high: int, *, above: bool, below: bool) -> list[Symbols]:
    """The numbers from ``low`` to ``high`` (0 <= low <= high), with or without a fraction.

    ``above``, ``below``: without ``low`` and ``high`` themselves.
    """
    found: list[Symbols] = []
    if low < high:
        whole = low + 1 if above else low
        if above:
            found.append((literal(f"{low}."), "[0-9]{0,14}", "[1-9]"))
        if whole < high:
            found += [
                more for part in naturals(whole, high - 1) for more in (part, (*part, '"."', "[0-9]{1,15}"))
            ]
    if not below and not (above and low == high):
        found += [(literal(str(high)),), (literal(f"{high}."), "[0]{1,15}")]
    return found
