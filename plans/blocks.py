"""A plan file as CommonMark blocks with their lines.

Laws of this file
- Blocks come from the token stream of markdown-it, so a ``###`` inside a fence is never a task.
- Inside a paragraph only the raw text counts: emphasis and entities are for readers, and a command must
  arrive as it was written.
- A heading at the start of a line ends every list, quote and paragraph before it. So the file is read in
  parts from heading to heading; a part of nothing but plain bullets and prose, as most are, needs no
  CommonMark parser, which makes a plan of thousands of tasks several times faster. Both ways give the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from markdown_it import MarkdownIt
from markdown_it.token import Token


@dataclass(frozen=True, slots=True)
class Heading:
    """``#`` to ``######``; ``line`` is 1-based, here as in all blocks.

    ``underlined`` marks one line of prose above ``===`` (level 1) or ``---`` (level 2), which is a heading only
    where it names a section: a ``---`` below prose is more often meant as a rule.
    """

    level: int
    text: str
    line: int
    underlined: bool = False


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

_BULLET: Final = re.compile(r"[-*+][ \t]+")
_HEADING: Final = re.compile(r"#{1,6}(?:[ \t]|$)")
_PLAIN_HEADING: Final = re.compile(r"(#{1,6})[ \t]+([^#\s](?:.*[^#\s])?)[ \t]*")
_PLAIN_ITEM: Final = re.compile(r"- ((?:(?:\*\*|__)?[A-Za-z({\"]|`[^`\s]).*)")
#: What Python strips and CommonMark keeps, or the other way round.
_ODD_SPACE: Final = re.compile(r"[^\S \t]")
_PROSE: Final = re.compile(r"(?:\*\*|__)?[A-Za-z(]|`[^`\s]")
_UNDERLINE: Final = re.compile(r" {0,3}(=+|--+)[ \t]*")


def split_lines(text: str) -> list[str]:
    """The lines as CommonMark counts them (U+2028 and form feeds are no line ends)."""
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def read_blocks(lines: Sequence[str]) -> list[Block]:
    """The headings, paragraphs and fences of a file in order; quotes and HTML are left out."""
    starts = [0, *(at for at, line in enumerate(lines) if at and line[:1] == "#" and _HEADING.match(line))]
    starts.append(len(lines))
    blocks: list[Block] = []
    part = 0
    while part < len(starts) - 1:
        first = starts[part]
        plain = _plain_blocks(lines, first, starts[part + 1])
        if plain is not None:
            blocks += plain
            part += 1
            continue
        # A fence or HTML that goes on behind the heading takes it along: then twice as many parts at once,
        # so that a fence over thousands of headings is not read thousands of times.
        parts = 1
        while True:
            part_end = min(part + parts, len(starts) - 1)
            own = lines[first : starts[part_end]]
            tokens = _tokens(own)
            if part_end == len(starts) - 1 or not _goes_on(tokens, own):
                break
            parts *= 2
        blocks += _blocks(tokens, own, first)
        part = part_end
    return blocks


def _tokens(lines: Sequence[str]) -> list[Token]:
    # Blank lines behind the end tell a fence that is closed there from one that the end cuts off.
    return _reader().parse("\n".join(lines) + "\n\n")


@lru_cache(maxsize=1)
def _reader() -> MarkdownIt:
    # Indented code is off: people indent their bullets under a heading, by tabs too. Underlined headings are
    # off: a ``---`` below a line of prose would end the section there.
    return MarkdownIt("commonmark").disable(["code", "lheading", "inline"])


def _goes_on(tokens: Sequence[Token], lines: Sequence[str]) -> bool:
    """Whether the last block may not end with these lines."""
    last = tokens[-1] if tokens else None
    if last is None or last.map is None or last.level:
        return False
    if last.type == "fence":
        return not _is_closed(last, lines)
    if last.type != "html_block":
        return False
    filled = next((at for at in range(len(lines), 0, -1) if lines[at - 1].strip(" \t")), 0)
    return last.map[1] > filled or filled == len(lines)


def _plain_blocks(lines: Sequence[str], first: int, end: int) -> list[Block] | None:
    """The blocks of a part that holds only a heading, bullets without indentation and prose; else ``None``."""
    blocks: list[Block] = []
    open_lines: list[str] = []
    start, depth = 0, 0

    def close() -> None:
        if open_lines:
            own = "\n".join(open_lines).strip().split("\n")
            blocks.append(Text(tuple(own), start, depth, starts_item=depth > 0))
            open_lines.clear()

    for at in range(first, end):
        line = lines[at]
        if _ODD_SPACE.search(line) is not None:
            return None
        if (item := _PLAIN_ITEM.match(line)) is not None:
            close()
            start, depth = at + 1, 1
            open_lines.append(item.group(1))
        elif not line.strip(" \t"):
            close()
        elif at == first and (heading := _PLAIN_HEADING.fullmatch(line)) is not None:
            blocks.append(Heading(len(heading.group(1)), heading.group(2).strip(), at + 1))
        elif _PROSE.match(line) is not None:
            if not open_lines:
                start, depth = at + 1, 0
            open_lines.append(line)
        else:
            return None
    close()
    return blocks


def _blocks(tokens: Sequence[Token], lines: Sequence[str], offset: int) -> Iterator[Block]:
    depth = quotes = 0
    item_opened = False
    for position, token in enumerate(tokens):
        start = offset + (token.map[0] if token.map else 0)
        if token.type in ("bullet_list_open", "ordered_list_open"):
            depth += 1
        elif token.type in ("bullet_list_close", "ordered_list_close"):
            depth -= 1
        elif token.type in ("blockquote_open", "blockquote_close"):
            quotes += 1 if token.nesting == 1 else -1
        elif token.type in ("list_item_open", "list_item_close"):
            item_opened = token.nesting == 1
        elif quotes:
            continue
        elif token.type == "heading_open":
            # A heading inside a list item is a line of that item, not a section.
            text = tokens[position + 1].content.strip()
            if depth == 0:
                yield Heading(int(token.tag[1:]), text, start + 1)
        elif token.type == "paragraph_open":
            own = tokens[position + 1].content.split("\n")
            level = _underlined(tokens, position, own, lines) if depth == 0 else 0
            if level:
                yield Heading(level, own[0].strip(), start + 1, underlined=True)
            else:
                yield from _paragraph(own, start + 1, depth, item_opened)
            item_opened = False
        elif token.type == "fence":
            closed = _is_closed(token, lines)
            content = token.content if closed else token.content.rstrip("\n")
            yield Fence(content, start + 1, depth, closed)
            item_opened = False


def _underlined(tokens: Sequence[Token], position: int, own: Sequence[str], lines: Sequence[str]) -> int:
    """1 or 2 where the paragraph is one line above a row of ``=`` or ``-``, else 0."""
    below = tokens[position + 3] if position + 3 < len(tokens) else None
    here = tokens[position].map
    if len(own) == 2:
        match = _UNDERLINE.fullmatch(own[1])
    elif len(own) == 1 and below is not None and below.type == "hr" and below.map and here:
        match = _UNDERLINE.fullmatch(lines[here[1]]) if below.map[0] == here[1] else None
    else:
        return 0
    return 0 if match is None else 1 if match.group(1)[0] == "=" else 2


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
    if end > len(lines):
        return False
    last = lines[end - 1].lstrip(" \t>").rstrip()
    return end - first >= 2 and last.startswith(token.markup) and not last.strip(token.markup[0])
