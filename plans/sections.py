"""The plan file around its tasks: front matter, sections and settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .blocks import Block, Heading, Text
from .errors import FaultList
from .fields import READERS, SETTING_FIELDS, FieldError
from .markdown import Field, read_fields
from .model import Settings

_FRONT_KEY: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)\s*:(?:\s+(.*))?$")
#: A key, or what YAML puts between keys; anything else shows that the file only starts with a rule.
_FRONT_LINE: Final = re.compile(r"\s*(?:[#-]|$)|[ \t]|[A-Za-z_][A-Za-z0-9_-]*\s*:(?:\s|$)")
#: Front matter that describes the plan to people or other tools; known, and not ours to read.
_DESCRIPTIVE: Final = frozenset({"name", "title", "description", "author", "date", "tags", "version"})
#: The sections that a plan may have; an underlined line that says one of these words is a heading.
SECTIONS: Final = frozenset(
    {"goal", "objective", "inputs", "input", "outputs", "output", "available scripts", "scripts"}
    | {"workflow", "tasks", "settings", "notes"}
)


@dataclass(slots=True)
class Section:
    """A ``##`` section. ``name`` is lower case without numbering or remark; ``end`` the last line; the heading
    takes ``head_lines``, two where it is underlined."""

    name: str
    line: int
    end: int
    head_lines: int = 1
    blocks: list[Block] = field(default_factory=list)


@dataclass(slots=True)
class Group:
    """A ``###`` heading (``None`` before the first) and the blocks below it."""

    heading: Heading | None
    blocks: list[Block] = field(default_factory=list)
    #: What stands below a ``####``: for readers, never fields.
    below: list[Block] = field(default_factory=list)


def cut_front_matter(lines: list[str], faults: FaultList) -> tuple[list[Field], list[str]]:
    """(its fields, the lines with the front matter blanked): line numbers stay those of the file.

    Front matter stands between ``---`` in the first line and the next ``---`` or ``...``, one ``key: value`` a
    line, ``#`` for remarks. Where it is not closed, or holds other text, it is prose; a warning says so where
    a setting stands in it.
    """
    if not lines or lines[0].rstrip() != "---":
        return [], lines
    end = next((at for at, line in enumerate(lines[1:200], start=1) if line.rstrip() in ("---", "...")), 0)
    if not end or not all(_FRONT_LINE.match(line) for line in lines[1:end]):
        for number, line in enumerate(lines[1 : end or 20], start=2):
            match = _FRONT_KEY.match(line.rstrip())
            if match is not None and match.group(1).lower().replace("-", "_") in SETTING_FIELDS:
                faults.warning(
                    number,
                    f"the setting {match.group(1)!r} is not read: this is no front matter",
                    "write only `key: value` lines and close them with --- on a line of its own",
                    mark=match.group(1),
                )
        return [], lines
    fields = []
    for number, line in enumerate(lines[1:end], start=2):
        match = _FRONT_KEY.match(line.rstrip())
        if match is not None:
            value = re.sub(r"(^|\s)#.*$", "", match.group(2) or "").strip()
            name = match.group(1)
            fields.append(Field(name.lower().replace("-", "_"), name, value, number, 0))
    return fields, [""] * (end + 1) + lines[end + 1 :]


def read_sections(blocks: Iterable[Block], last_line: int) -> tuple[str, list[Section]]:
    """(the title, the sections); the first ``#`` heading is the title, a later one a section like ``##``."""
    title = ""
    sections = [Section("", 1, last_line)]
    for block in blocks:
        if isinstance(block, Heading) and block.level <= 2:
            if block.level == 1 and not title and len(sections) == 1:
                title = (
                    re.sub(r"^plan\s*:\s*", "", block.text, flags=re.IGNORECASE).strip("`* ") or block.text
                )
                continue
            sections[-1].end = block.line - 1
            sections.append(Section(section_name(block.text), block.line, last_line, 1 + block.underlined))
        else:
            sections[-1].blocks.append(block)
    return title, sections


def groups(section: Section) -> list[Group]:
    """The ``###`` parts of a section; the first holds what stands before them."""
    found = [Group(None)]
    below = False
    for block in section.blocks:
        if isinstance(block, Heading):
            below = block.level > 3
            if not below:
                found.append(Group(block))
        elif below:
            found[-1].below.append(block)
        else:
            found[-1].blocks.append(block)
    return found


def section_text(section: Section, lines: Sequence[str]) -> str:
    """The section as it stands in the file, without its heading."""
    return "\n".join(lines[section.line + section.head_lines - 1 : section.end]).strip()


def settle_underlines(blocks: Sequence[Block]) -> list[Block]:
    """The blocks with each underlined line either a heading or a line of prose.

    A heading is: every line above ``===``; a line above ``---`` that names a section (``SECTIONS``); and where
    the file writes a section so, every line above ``---``.
    """
    marked = [one for one in blocks if isinstance(one, Heading) and one.underlined]
    if not marked:
        return list(blocks)
    sections = {one.line for one in marked if section_name(one.text) in SECTIONS}
    all_dashed = any(one.level == 2 and one.line in sections for one in marked)
    settled: list[Block] = []
    for block in blocks:
        if not isinstance(block, Heading) or not block.underlined:
            settled.append(block)
        elif block.line in sections:
            settled.append(Heading(2, block.text, block.line, underlined=True))
        elif block.level == 1 or all_dashed:
            settled.append(block)
        else:
            settled.append(Text((block.text,), block.line, 0, starts_item=False))
    return settled


def section_name(text: str) -> str:
    name = re.sub(r"\s*\([^()]*\)\s*$", "", text.strip().strip("*`").lower())
    return re.sub(r"^\d+[.)]\s*", "", name).rstrip(": ").replace("-", " ")


def read_settings(fields: Sequence[Field], faults: FaultList) -> Settings:
    """Front matter and ``## Settings`` together; the later line wins, and a warning says so.

    Known are ``on_failure`` (abort, continue), ``priority`` (low, normal, high, urgent, or 1 to 10),
    ``timeout_s`` (a time) and ``max_attempts`` (from 1). A bad value is an error, an unknown key a warning with
    the nearest name; keys that only describe the plan (title, author, tags, …) are passed over.
    """
    values: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for one in fields:
        if one.name in SETTING_FIELDS:
            if one.name in lines:
                faults.warning(
                    one.line,
                    f"the setting {one.name} stands twice (first in line {lines[one.name]}): this line counts",
                    "keep one of them",
                    mark=one.written,
                )
            lines[one.name] = one.line
            try:
                values[one.name] = READERS[one.name](one)
            except FieldError as error:
                faults.error(one.line, error.what, error.fix, mark=one.value[:60] or one.written)
        elif one.name not in _DESCRIPTIVE:
            near = faults.nearest(one.name, sorted(SETTING_FIELDS))
            hint = f"did you mean {near}?" if near else f"known: {', '.join(sorted(SETTING_FIELDS))}"
            faults.warning(one.line, f"unknown setting {one.written!r}, not read", hint, mark=one.written)
    return Settings(**values)


def setting_fields(section: Section) -> list[Field]:
    """The fields of a ``## Settings`` list; here every ``- key: value`` is one, so that none is lost unsaid."""
    return read_fields(section.blocks, None)
