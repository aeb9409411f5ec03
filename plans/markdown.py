"""The ``**field**: value`` bullets in the blocks of a plan, and how a short value is unwrapped."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache

from .blocks import Block, Fence, Text


@dataclass(slots=True)
class Field:
    """One ``**name**: value`` with what follows it.

    ``name`` is lower case with ``_``; ``written`` as it stands in the file; ``value`` the rest of its line;
    ``more`` the further lines of the same paragraph; ``items`` nested bullets; ``fence`` a fence below, whose
    text starts in ``fence_line``.
    """

    name: str
    written: str
    value: str
    line: int
    depth: int
    more: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    fence: str | None = None
    fence_line: int = 0

    @property
    def open(self) -> bool:
        """Whether the value is still to come, in a fence or as nested bullets."""
        return not self.value and not self.more and self.fence is None

    @property
    def text_line(self) -> int:
        """Where the text of the value starts: the first line in the fence, else the field's own."""
        return self.line if self.fence is None else self.fence_line

    @property
    def text(self) -> str:
        """The value in one line; a backslash at a line's end joins as the shell would."""
        if self.fence is not None:
            return self.fence.strip()
        parts = [self.value, *self.more]
        joined = " ".join(part.removesuffix("\\") if part.endswith("\\") else part for part in parts)
        return joined.strip()


_BOLD = re.compile(r"(\*\*|__)\s*([A-Za-z][A-Za-z0-9_ -]{0,40})(:?)\s*\1\s*(:?)\s*(.*)")
_PLAIN = re.compile(r"(`?)([A-Za-z][A-Za-z0-9_ -]{0,30}?)\1\s*:(?:\s+(.*)|$)")


def read_fields(blocks: Sequence[Block], known: frozenset[str] | None) -> list[Field]:
    """The fields in ``blocks``, in order; prose between them is left out.

    ``- **name**: value`` counts with any name, ``- name: value`` only with one near a ``known`` name: a bullet
    such as ``- Note: …`` is prose. With ``None`` every name counts.
    """
    fields: list[Field] = []
    for block in blocks:
        last = fields[-1] if fields else None
        if isinstance(block, Fence):
            if last is not None and last.open and not last.items:
                last.fence = block.content
                last.fence_line = block.line + 1
        elif isinstance(block, Text):
            _read_paragraph(block, known, fields)
    return fields


def _read_paragraph(block: Text, known: frozenset[str] | None, fields: list[Field]) -> None:
    here: Field | None = None
    for offset, line in enumerate(block.lines):
        found = _match(line, block, offset, known)
        if found is not None:
            here = found
            fields.append(found)
        elif here is not None:
            here.more.append(line.strip())
        elif (
            offset == 0
            and block.starts_item
            and fields
            and fields[-1].open
            and block.depth > fields[-1].depth
        ):
            fields[-1].items.append(" ".join(part.strip() for part in block.lines))
            return


def _match(line: str, block: Text, offset: int, known: frozenset[str] | None) -> Field | None:
    bold = _BOLD.match(line)
    if bold is not None and (bold.group(3) or bold.group(4)):
        return _field(bold.group(2), bold.group(5), block, offset)
    if offset == 0 and block.starts_item and (plain := _PLAIN.match(line)) is not None:
        found = _field(plain.group(2), plain.group(3) or "", block, offset)
        return found if known is None or _is_near(found.name, known) else None
    return None


@lru_cache(maxsize=4096)
def _is_near(name: str, known: frozenset[str]) -> bool:
    if name in known:
        return True
    # A likeness of 0.8 means 0.4 of both lengths in common: what cannot reach it is not compared, for speed.
    size = len(name)
    alike = (one for one in known if 2 * size <= 3 * len(one) <= 4.5 * size)
    near = [one for one in alike if sum(map(one.__contains__, name)) >= 0.4 * (len(one) + size)]
    return bool(get_close_matches(name, near, 1, 0.8))


def _field(written: str, value: str, block: Text, offset: int) -> Field:
    name = written.strip().lower()
    if " " in name or "-" in name:
        name = re.sub(r"[ -]+", "_", name)
    return Field(name, written.strip(), value.strip(), block.line + offset, block.depth)


def code_span(text: str) -> tuple[str, str, str] | None:
    """(before, inside, after) of the code in ``text``: from the first backtick to the last.

    A value that holds backticks of its own may stand between longer runs, as in CommonMark. ``None`` where
    the text has no backtick.

    Raises:
        ValueError: an opening backtick without a closing one.
    """
    opening = re.search(r"`+", text)
    if opening is None:
        return None
    run = opening.group()
    start = opening.end()
    if len(run) == 1:
        end = text.rfind("`")
    else:
        ends = [match.start() for match in re.finditer(r"`+", text) if match.group() == run]
        end = ends[-1]
    if end < start:
        raise ValueError("a backtick is never closed")
    return text[: opening.start()].strip(), text[start:end].strip(), text[end + len(run) :].strip()


def unquote(text: str) -> str:
    """A short value without its decoration: `` `cpu` ``, ``"cpu"``, ``cpu (a remark)`` → ``cpu``."""
    text = text.strip()
    if text.startswith("`"):
        try:
            span = code_span(text)
        except ValueError:
            span = None
        text = span[1] if span is not None else text.strip("`")
    else:
        text = without_remark(text)
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    return re.sub(r"\\([_*\[\]`])", r"\1", text).strip()


def without_remark(text: str) -> str:
    """``text`` without a remark in round brackets at its end: ``cpu (fast)`` → ``cpu``."""
    if not text.endswith(")"):
        return text
    start = text.rfind("(")
    inside = text[start + 1 : -1]
    if start < 1 or ")" in inside or not text[start - 1].isspace():
        return text
    return text[:start].rstrip()


def in_backticks(text: str) -> str:
    """``text`` in backticks, more of them than it holds in a row."""
    if not text:
        return "``"
    if "`" not in text:
        return f"`{text}`"
    fence = "`" * (1 + max(len(run) for run in re.findall(r"`+", text)))
    return f"{fence} {text} {fence}"
