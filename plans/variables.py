"""Where ``{NAME}`` stands in a text: the one lexer of placeholders.

A placeholder is a name in braces, with fields behind dots for ``{ITEM.field}``. These are *not* one:
``${HOME}`` (the shell's own), ``{a,b}``, ``{print $1}`` (no plain name between the braces), and ``{{NAME}}``,
the escape that stands for the literal text ``{NAME}``. Whether a name is known is for the caller to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

VARIABLE: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)((?:\.[A-Za-z0-9_]+)*)\}")
ESCAPED: Final = re.compile(r"\{\{([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*)\}\}")
NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: A name in capitals is meant as a variable even where nobody knows it; others may be awk's or a template's.
LOUD: Final = re.compile(r"[A-Z][A-Z0-9_]*")

#: Set by rigbus for each batch; a configuration cannot change them.
BUILT_INS: Final = ("PLAN_PATH", "BATCH_ID", "BATCH_PATH")
#: The element of a ``foreach`` list.
ITEM: Final = "ITEM"


def find_variables(text: str) -> list[tuple[str, int]]:
    """Placeholders in ``text`` as (name with its fields, offset of the brace), in order of appearance."""
    found = []
    position = 0
    while (match := VARIABLE.search(text, position)) is not None:
        start, end = match.span()
        if _is_escaped(text, start, end):
            position = end + 1
        elif start > 0 and text[start - 1] == "$":
            position = end
        else:
            found.append((match.group(1) + match.group(2), start))
            position = end
    return found


def split_name(reference: str) -> tuple[str, str]:
    """``"ITEM.a.b"`` → ``("ITEM", "a.b")``; without fields the second part is empty."""
    name, _, fields = reference.partition(".")
    return name, fields


def substitute(text: str, values: Mapping[str, str]) -> str:
    """``text`` with the placeholders named in ``values`` put in as plain text, and ``{{NAME}}`` unescaped
    where ``{NAME}`` would have been taken for a variable.

    For texts that no shell parses (a prompt, a path, one word of argv). Never for a command: see values.py.
    """
    parts = []
    position = 0
    for match in re.finditer(f"{ESCAPED.pattern}|{VARIABLE.pattern}", text):
        if match.group(1) is not None:
            # The {{end}} of a template language is not ours to unescape.
            name = split_name(match.group(1))[0]
            if name not in values and not LOUD.fullmatch(name):
                continue
            replacement = "{" + match.group(1) + "}"
        else:
            reference = match.group(2) + match.group(3)
            if reference not in values or text.startswith("$", max(match.start() - 1, 0), match.start()):
                continue
            replacement = values[reference]
        parts += [text[position : match.start()], replacement]
        position = match.end()
    return "".join([*parts, text[position:]])


def _is_escaped(text: str, start: int, end: int) -> bool:
    return start > 0 and text[start - 1] == "{" and text[end : end + 1] == "}"
