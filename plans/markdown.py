"""A plan file as CommonMark blocks with their lines, and the ``**field**: value`` bullets in them.

Blocks come from the token stream of markdown-it, so a ``###`` inside a fence is never a task. Inside a
paragraph only the raw text counts: emphasis and entities are for readers, and a command must arrive as it
was written.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import lru_cache

from markdown_it import MarkdownIt
from markdown_it.token import Token


@dataclass(frozen=True, slots=True)
class Heading:
    """``#`` to ``######``; ``line`` is 1-based, here as in all blocks."""

    level: int
    text: str
    line: int


@dataclass(frozen=True, slots=True)
class Text:
    """One paragraph. ``depth`` counts the lists around it; ``starts_item`` where it opens a list item."""

    lines: tuple[str, ...]
    line: int
    depth: int
    starts_item: bool


@dataclass(frozen=True, slots=True)
class Fence:
    """A fenced block. ``closed`` is false where the file ends inside it."""

    content: str
    line: int
    depth: int
    closed: bool


Block = Heading | Text | Fence
_BULLET = re.compile(r"[-*+][ \t]+")


def split_lines(text: str) -> list[str]:
    """The lines as CommonMark counts them (U+2028 and form feeds are no line ends)."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def read_blocks(lines: Sequence[str]) -> list[Block]:
    """The headings, paragraphs and fences of a file in order; quotes and HTML are left out."""
    # Indented code is off: people indent their bullets under a heading, by tabs too. Underlined headings are
    # off: a ``---`` below a line of prose would end the section there.
    reader = MarkdownIt("commonmark").disable(["code", "lheading", "inline"])
    return list(_blocks(reader.parse("\n".join(lines)), lines))


def _blocks(tokens: list[Token], lines: Sequence[str]) -> Iterator[Block]:
    depth = quotes = 0
    item_opened = False
    for position, token in enumerate(tokens):
        start = token.map[0] if token.map else 0
        if token.type in ("bullet_list_open", "ordered_list_open"):
            depth += 1
        elif token.type in ("bullet_list_close", "ordered_list_close"):
            depth -= 1
        elif token.type in ("blockquote_open", "blockquote_close"):
            quotes += 1 if token.nesting == 1 else -1
        elif token.type == "list_item_open":
            item_opened = True
        elif quotes:
            continue
        elif token.type == "heading_open":
            # A heading inside a list item is a line of that item, not a section.
            text = tokens[position + 1].content.strip()
            if depth == 0:
                yield Heading(int(token.tag[1:]), text, start + 1)
        elif token.type == "paragraph_open":
            yield from _paragraph(tokens[position + 1].content.split("\n"), start + 1, depth, item_opened)
            item_opened = False
        elif token.type == "fence":
            yield Fence(token.content, start + 1, depth, _is_closed(token, lines))
            item_opened = False


def _paragraph(lines: list[str], line: int, depth: int, opens_item: bool) -> Iterator[Text]:
    """One paragraph, or several: of bullets indented by four or more, markdown-it takes all but the first for
    lines of its text, since only indented code could stand there."""
    starts = [0, *(at for at, text in enumerate(lines) if at and depth and _BULLET.match(text))]
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        part = [_BULLET.sub("", lines[start], count=1) if start else lines[start], *lines[start + 1 : end]]
        yield Text(tuple(part), line + start, depth, opens_item or start > 0)


def _is_closed(token: Token, lines: Sequence[str]) -> bool:
    """Whether the block's last line is its closing fence."""
    if token.map is None:
        return True
    first, end = token.map
    last = lines[min(end, len(lines)) - 1].lstrip(" \t>").rstrip()
    return end - first >= 2 and last.startswith(token.markup) and not last.strip(token.markup[0])


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


def read_fields(blocks: Sequence[Block], known: frozenset[str]) -> list[Field]:
    """The fields in ``blocks``, in order; prose between them is left out.

    ``- **name**: value`` counts with any name, ``- name: value`` only with one near a known name: a bullet
    such as ``- Note: …`` is prose.
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


def _read_paragraph(block: Text, known: frozenset[str], fields: list[Field]) -> None:
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


def _match(line: str, block: Text, offset: int, known: frozenset[str]) -> Field | None:
    bold = _BOLD.match(line)
    if bold is not None and (bold.group(3) or bold.group(4)):
        return _field(bold.group(2), bold.group(5), block, offset)
    if offset == 0 and block.starts_item and (plain := _PLAIN.match(line)) is not None:
        found = _field(plain.group(2), plain.group(3) or "", block, offset)
        return found if _is_near(found.name, known) else None
    return None


@lru_cache(maxsize=1000)
def _is_near(name: str, known: frozenset[str]) -> bool:
    return bool(get_close_matches(name, known, 1, 0.8))


def _field(written: str, value: str, block: Text, offset: int) -> Field:
    name = re.sub(r"[ -]+", "_", written.strip().lower())
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
        text = re.sub(r"\s+\([^()]*\)$", "", text)
    if len(text) >= 2 and text[0] == text[-1] and text[0] in "\"'":
        text = text[1:-1]
    return re.sub(r"\\([_*\[\]`])", r"\1", text).strip()
