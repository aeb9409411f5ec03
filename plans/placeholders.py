"""Which braces of a command are placeholders with a value, and which are only text.

Laws of this file
- It looks at text only; what bash makes of the place is ``bashlex``, what may stand there ``bashrules``.
- Braces that belong to something else stay: after a ``$`` they are the shell's (``${HOME}``), and a name
  that nobody knows is text (``awk '{print}'``).
- ``{{NAME}}`` is the text ``{NAME}`` wherever ``{NAME}`` would have been taken for a variable: a known name,
  ITEM, or one in capitals. So the ``{{end}}`` of a template language stays what it is.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

_BRACED = re.compile(r"(?<!\{)(\{++)([A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)*)(\}+)")


class ValueFault(Exception):
    """A value or a placeholder that cannot be put where the plan wants it.

    ``what`` says what is wrong and ``fix`` what to write instead; ``offset`` counts characters from the start
    of the command and ``line`` its lines from 1.
    """

    def __init__(self, what: str, fix: str, *, offset: int = 0, line: int = 1) -> None:
        super().__init__(what, fix)
        self.what = what
        self.fix = fix
        self.offset = offset
        self.line = line

    def __str__(self) -> str:
        return f"{self.what}; {self.fix}"


@dataclass(frozen=True, slots=True)
class Hole:
    """The text from ``start`` to ``end``: a placeholder for ``name``, or its escape where not ``filled``."""

    start: int
    end: int
    name: str
    filled: bool = True

    @property
    def text(self) -> str:
        """The placeholder as a single pair of braces: how errors name it, and what its escape stands for."""
        return "{" + self.name + "}"


def is_item(name: str) -> bool:
    """Whether the name is the foreach item or a part of it."""
    return name == "ITEM" or name.startswith("ITEM.")


def line_of(text: str, offset: int) -> int:
    """The line of ``offset`` in ``text``, from 1."""
    return text.count("\n", 0, offset) + 1


def find_holes(text: str, known: Callable[[str], bool]) -> list[Hole]:
    """The placeholders of ``text`` in order: every ``{ITEM…}``, each name that ``known`` accepts, escapes.

    ``known`` is asked for the name with its fields (``"ITEM.id"``).
    """
    holes: list[Hole] = []
    for match in _BRACED.finditer(text):
        opened, name, closed = match.groups()
        if text[match.start() - 1 : match.start()] == "$":
            continue
        depth = min(len(opened), len(closed), 2)
        resolved = is_item(name) or known(name)
        if resolved or (depth == 2 and name == name.upper()):
            holes.append(Hole(match.start(2) - depth, match.end(2) + depth, name, filled=depth == 1))
    return holes
