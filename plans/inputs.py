"""``## Inputs``: the variables that a plan declares, and their defaults."""

from __future__ import annotations

import re
from typing import Final

from .blocks import Text
from .errors import FaultList
from .markdown import code_span, in_backticks
from .model import InputSpec
from .sections import Section

_INPUT: Final = re.compile(
    r"(?P<mark>\*\*)?`?\{?(?P<name>[A-Za-z_][A-Za-z0-9_]{0,63})\}?`?(?P<inside>\s*:)?(?(mark)\*\*)\s*(?P<rest>.*)",
    re.DOTALL,
)
_SIGN: Final = re.compile(r"[:=–—(\[-]")
#: The word, and whatever may stand between it and the value.
_WORD: Final = re.compile(r"\bdefaults?\b(?:\s+(?:value|to|is)\b){0,2}\s*(?P<sign>[:=]?)\s*", re.IGNORECASE)
_OPENED: Final = re.compile(r"[(\[][^()\[\]`]*$")
_PLAIN_STOP: Final = re.compile(r"[)\],;]")
#: Characters of a default without backticks, and how far back its bracket may have opened.
_MAX_PLAIN: Final = 200
_NO_DEFAULT: Final = ("none", "no", "nothing", "-", "–", "—", "n/a")


def read_inputs(section: Section, faults: FaultList) -> dict[str, InputSpec]:
    """The inputs of the section by name, one a bullet.

    ``- **NAME**: text (default: `x`)`` is the standard form; the stars, the backticks and the braces of the
    name may be missing. A default is *used* where the configuration says nothing. These are defaults, in any
    case of the word:

    - with the value in backticks, anywhere in the line: ``(default: `x`)``, ``default `x` ``,
      ``default=`x` ``, ``defaults to `x` ``, ``default is `x` ``, ``default value `x` ``;
    - at the start of a bracket or of the text, or behind a ``,`` ``;`` or ``.``, up to the next of ``) ] , ;``
      or the end: ``(default: x)``, ``[default = x]``, ``(optional, default: x y)``, ``…; default: x``,
      ``…. Default: x``; one word needs no colon: ``(default x)``, ``(optional, defaults to x)``;
    - ``- **NAME** = x`` with one word or code, and nothing else;
    - a nested bullet ``- default: x``.

    An empty default is written as an empty pair of backticks. ``(default: none)`` says that there is no
    default, and so does a bare ``[x]`` or ``e.g. x``: what only looks like one is never used. ``default`` in
    running prose ("the default is in the other file") names none either.
    """
    inputs: dict[str, InputSpec] = {}
    last = ""
    for block in section.blocks:
        if not isinstance(block, Text) or not block.starts_item:
            continue
        text = " ".join(line.strip() for line in block.lines)
        if last and block.depth > 1 and re.match(r"\**default\**\s*[:=]", text, re.IGNORECASE):
            value = find_default(f"({text.replace('*', '')})")
            inputs[last] = inputs[last].model_copy(update={"default": value})
            continue
        match = _INPUT.match(text)
        if match is None or not (match["mark"] or match["inside"] or _SIGN.match(match["rest"])):
            continue
        if match["name"] in inputs:
            faults.error(
                block.line,
                f"input {match['name']} stands twice (first in line {inputs[match['name']].line})",
                "keep one of the lines",
                mark=match["name"],
            )
            continue
        last = match["name"]
        inputs[last] = _read_one(last, match["rest"], bool(match["inside"]), block.line)
    return inputs


def _read_one(name: str, rest: str, colon: bool, line: int) -> InputSpec:
    assigned = None if colon else re.fullmatch(r"=\s*(`+[^`]*`+|[^\s`]+)", rest.strip())
    if assigned is not None:
        value = assigned.group(1)
        return InputSpec(name=name, default=_code(value) if "`" in value else value.strip("\"'"), line=line)
    words = rest.lstrip(":=–—- ")
    default = find_default(words)
    if default is not None:
        # The standard form is no part of the text, so that text and default can be told apart again.
        standard = f"(default: {in_backticks(default)})"
        before = words.removesuffix(standard).rstrip()
        if words.endswith(standard) and find_default(before) is None:
            words = before
    return InputSpec(name=name, text=words.strip(), default=default, line=line)


def find_default(text: str) -> str | None:
    """The default that the words of an input name; ``None`` where they name none."""
    for word in _WORD.finditer(text):
        if text.startswith("`", word.end()):
            return _code(text[word.end() :])
        # Parts of a bounded length: a line of a megabyte may hold the word a hundred thousand times.
        tail = text[word.end() : word.end() + _MAX_PLAIN]
        before = text[max(word.start() - _MAX_PLAIN, 0) : word.start()].rstrip()
        opened = _OPENED.search(before) is not None
        if not before or before.endswith((",", ";", ".", "(", "[")):
            stop = _PLAIN_STOP.search(tail) if before else None
            value = (tail if stop is None else tail[: stop.start()]).strip()
            if (opened and stop is None) or len(value) == _MAX_PLAIN:
                continue
            value = value if opened else value.removesuffix(".")
            if not word["sign"] and (not value or " " in value):
                continue  # "default to all of them" is prose: a guess here would be used unseen
            return None if value.lower() in _NO_DEFAULT else value.strip("\"'")
    return None


def _code(tail: str) -> str | None:
    """What stands in the code at the start of ``tail``; an empty pair of backticks is the empty text."""
    run = len(tail) - len(tail.lstrip("`"))
    if run == 2 and (tail[2:3] in ("", ")", "]", ".", ",", ";") or (tail[2] == " " and "``" not in tail[2:])):
        return ""
    # Up to the next backtick, not the last of the line: the text may go on with code of its own.
    end = tail.find("`" * run, run)
    if end < 0:
        return None
    try:
        span = code_span(tail[: end + run])
    except ValueError:
        return None
    return span[1] if span is not None else None
