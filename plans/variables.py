"""Where ``{NAME}`` stands in a text that no shell reads, and what is put there.

A placeholder is a name in braces, with fields behind dots for ``{ITEM.field}``. These are *not* one:
``${HOME}`` (the shell's own), ``{a,b}``, ``{print $1}`` (no plain name between the braces), and ``{{NAME}}``,
the escape that stands for the literal text ``{NAME}``. The rules are those of commands: both ask
``placeholders``. Whether a name is known is for the caller to say.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from .placeholders import find_holes

VARIABLE: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)((?:\.[A-Za-z0-9_]+)*)\}")
NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: A name in capitals is meant as a variable even where nobody knows it; others may be awk's or a template's.
LOUD: Final = re.compile(r"[A-Z][A-Z0-9_]*")

#: Set by rigbus for each batch; a configuration cannot change them.
BUILT_INS: Final = ("PLAN_PATH", "BATCH_ID", "BATCH_PATH")
#: The element of a ``foreach`` list.
ITEM: Final = "ITEM"


def find_variables(text: str) -> list[tuple[str, int]]:
    """Placeholders in ``text`` as (name with its fields, offset of the brace), in order of appearance."""
    return [(hole.name, hole.start) for hole in find_holes(text, lambda _: True) if hole.filled]


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
    for hole in find_holes(text, values.__contains__):
        if hole.filled and hole.name not in values:
            continue
        parts += [text[position : hole.start], values[hole.name] if hole.filled else hole.text]
        position = hole.end
    return "".join([*parts, text[position:]])
