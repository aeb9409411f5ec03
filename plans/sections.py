"""The plan file around its tasks: front matter, sections, inputs and settings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from .errors import FaultList
from .fields import READERS, SETTING_FIELDS, FieldError
from .markdown import Block, Field, Heading, Text, code_span, read_fields
from .model import InputSpec, Settings

_FRONT_KEY: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)\s*:(?:\s+(.*))?$")
#: A key, or what YAML puts between keys; anything else shows that the file only starts with a rule.
_FRONT_LINE: Final = re.compile(r"\s*(?:[#-]|$)|[ \t]|[A-Za-z_][A-Za-z0-9_-]*\s*:(?:\s|$)")
#: Front matter that describes the plan to people or other tools; known, and not ours to read.
_DESCRIPTIVE: Final = frozenset({"name", "title", "description", "author", "date", "tags", "version"})


@dataclass(slots=True)
class Section:
    """A ``##`` section. ``name`` is lower case without numbering or remark; ``end`` the last line."""

    name: str
    line: int
    end: int
    blocks: list[Block] = field(default_factory=list)


@dataclass(slots=True)
class Group:
    """A ``###`` heading (``None`` before the first) and the blocks below it."""

    heading: Heading | None
    blocks: list[Block] = field(default_factory=list)
    #: What stands below a ``####``: for readers, never fields.
    below: list[Block] = field(default_factory=list)


def cut_front_matter(lines: list[str]) -> tuple[list[Field], list[str]]:
    """(its fields, the lines with the front matter blanked): line numbers stay those of the file."""
    if not lines or lines[0].rstrip() != "---":
        return [], lines
    end = next((at for at, line in enumerate(lines[1:200], start=1) if line.rstrip() in ("---", "...")), 0)
    if not end or not all(_FRONT_LINE.match(line) for line in lines[1:end]):
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
            sections.append(Section(_section_name(block.text), block.line, last_line))
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
    return "\n".join(lines[section.line : section.end]).strip()


def _section_name(text: str) -> str:
    name = re.sub(r"\s*\([^()]*\)\s*$", "", text.strip().strip("*`").lower())
    return re.sub(r"^\d+[.)]\s*", "", name).rstrip(": ").replace("-", " ")


def read_settings(fields: Sequence[Field], faults: FaultList) -> Settings:
    """Front matter and ``## Settings`` together; the later line wins."""
    values: dict[str, Any] = {}
    for one in fields:
        if one.name in SETTING_FIELDS:
            try:
                values[one.name] = READERS[one.name](one)
            except FieldError as error:
                faults.error(one.line, error.what, error.fix)
        elif one.name not in _DESCRIPTIVE:
            near = faults.nearest(one.name, sorted(SETTING_FIELDS))
            hint = f"did you mean {near}?" if near else f"known: {', '.join(sorted(SETTING_FIELDS))}"
            faults.warning(one.line, f"unknown setting {one.written!r}, not read", hint)
    return Settings(**values)


def setting_fields(section: Section) -> list[Field]:
    """The fields of a ``## Settings`` list."""
    return read_fields(section.blocks, SETTING_FIELDS)


_INPUT = re.compile(
    r"(?P<mark>\*\*)?`?\{?(?P<name>[A-Za-z_][A-Za-z0-9_]{0,63})\}?`?(?P<inside>\s*:)?(?(mark)\*\*)\s*(?P<rest>.*)",
    re.DOTALL,
)
_SIGN = re.compile(r"[:=–—(-]")
_DEFAULT_CODE = re.compile(r"\bdefaults?(?:\s+to|\s+is)?\s*[:=]?\s*(?=`)", re.IGNORECASE)
_DEFAULT_PLAIN = re.compile(r"[(\[,;]\s*default\s*[:=]\s*([^)\],;`]*)[)\],;]", re.IGNORECASE)


def read_inputs(section: Section, faults: FaultList) -> dict[str, InputSpec]:
    """``- **NAME**: text (default: `x`)``; a default may also be a nested bullet ``default: `x` ``."""
    inputs: dict[str, InputSpec] = {}
    last = ""
    for block in section.blocks:
        if not isinstance(block, Text) or not block.starts_item:
            continue
        text = " ".join(line.strip() for line in block.lines)
        if last and block.depth > 1 and re.match(r"\**default\**\s*[:=]", text, re.IGNORECASE):
            spec = inputs[last]
            default = _default(f"({text.replace('*', '')})")
            inputs[last] = spec.model_copy(update={"default": default})
            continue
        match = _INPUT.match(text)
        if match is None or not (match["mark"] or match["inside"] or _SIGN.match(match["rest"])):
            continue
        last = match["name"]
        if last in inputs:
            faults.error(
                block.line,
                f"input {last} stands twice (first in line {inputs[last].line})",
                "keep one of the lines",
            )
            continue
        words = match["rest"].lstrip(":=–—- ")
        inputs[last] = InputSpec(name=last, text=words, default=_default(words), line=block.line)
    return inputs


def _default(text: str) -> str | None:
    """The default in an input's line; ``None`` where it names none."""
    coded = _DEFAULT_CODE.search(text)
    if coded is not None:
        tail = text[coded.end() :]
        if tail.startswith("``") and not tail.startswith("```") and tail[2:3] in ("", ")", " ", ".", ","):
            return ""
        # Up to the next backtick, not the last of the line: the text may go on with code of its own.
        run = len(tail) - len(tail.lstrip("`"))
        end = tail.find("`" * run, run)
        try:
            span = code_span(tail[: end + run] if end >= 0 else tail)
        except ValueError:
            return None
        return span[1] if span is not None else None
    plain = _DEFAULT_PLAIN.search(text)
    if plain is None:
        return None
    value = plain.group(1).strip().strip("\"'")
    return None if value.lower() == "none" else value
