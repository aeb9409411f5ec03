"""The seed's form of a plan: ``## Available Scripts`` with run commands, ``## Workflow`` orders them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from .blocks import Block, Fence, Text
from .classes import guess_class
from .errors import FaultList
from .fields import FieldError, read_command
from .keys import is_plain_name, slug
from .markdown import Field, read_fields, unquote
from .model import MAX_VRAM_MB, PlanTask, TaskClass
from .sections import Group, Section, groups

_SCRIPT_FIELDS = frozenset({"purpose", "gpu", "vram_estimate", "run_command", "command", "run", "output"})
_RUN_FIELDS = ("run_command", "command", "run")
_ARROW = re.compile(r"\s*(?:→|⟶|➜|⇒|-{1,2}>|={1,2}>)\s*")
_SPAN = re.compile(r"(`+)(.+?)\1")
_FILE = re.compile(r"[\w./-]*\w\.(?:py|sh|bash|pl|rb|js|R)\b")
_TOGETHER = re.compile(r"\s*(?:[,;&+|]|\band\b|\bund\b)\s*")


@dataclass(slots=True)
class _Script:
    """One entry of ``## Available Scripts``."""

    path: str
    line: int
    command: str | None
    command_line: int
    task_class: TaskClass | None
    vram_mb: int | None

    @property
    def file_name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return self.file_name.rpartition(".")[0] or self.file_name


@dataclass(slots=True)
class _Step:
    """What runs after the step before; several names run side by side."""

    text: str
    line: int
    scripts: list[_Script] = field(default_factory=list)


def read_workflow(sections: Sequence[Section], faults: FaultList) -> list[PlanTask]:
    """The tasks of the seed's form: each step depends on every script of the step before."""
    scripts: list[_Script] = []
    for section in sections:
        if section.name in ("available scripts", "scripts"):
            scripts += _read_scripts(section, faults)
    if not scripts:
        line = next(one.line for one in sections if one.name == "workflow")
        faults.error(
            line,
            "the plan has a workflow but no scripts with a run command",
            "add `## Available Scripts` with `### path` and `**Run command**: …`, or write `## Tasks`",
        )
        return []
    steps = [step for section in sections if section.name == "workflow" for step in _read_steps(section)]
    if not steps:
        faults.error(
            next(one.line for one in sections if one.name == "workflow"),
            "the workflow has no steps",
            "write a list with one script an item, or one line `a → b → c`",
        )
    index = _Index(scripts)
    tasks: list[PlanTask] = []
    before: list[str] = []
    used: dict[str, int] = {}
    for step in steps:
        if faults.full and faults.failed:
            break
        step.scripts = _find_scripts(step, index, faults)
        names = []
        for script in step.scripts:
            task = _task(script, step.line, before, used, faults)
            if task is not None:
                tasks.append(task)
                names.append(task.id)
        before = names or before
    return tasks


def _read_scripts(section: Section, faults: FaultList) -> list[_Script]:
    parts = groups(section)
    found = [
        _script(_path_in(one.heading.text), one.heading.line, [*one.blocks, *one.below], faults)
        for one in parts
        if one.heading is not None
    ]
    for path, line, blocks in _bullets(parts[0]):
        found.append(_script(path, line, blocks, faults))
    return found


def _path_in(text: str) -> str:
    """The script named in a heading or bullet: the code in it, else the first word that looks like a file."""
    span = _SPAN.search(text)
    file = _FILE.search(text)
    if span is not None:
        return span.group(2).strip().removeprefix("./")
    return file.group().removeprefix("./") if file is not None else unquote(re.sub(r"^\d+[.)]\s+", "", text))


def _bullets(group: Group) -> list[tuple[str, int, list[Block]]]:
    """Scripts written as bullets: ``- `x.py`: what it does. Run command: `…` `` or with nested fields."""
    found: list[tuple[str, int, list[Block]]] = []
    for block in group.blocks:
        if isinstance(block, Text) and block.starts_item and block.depth == 1:
            text = " ".join(line.strip() for line in block.lines)
            name = re.match(r"(?:\*\*)?(`+)([^`]+)\1|\*\*([^*]+)\*\*", text)
            if name is None:
                continue
            found.append(((name.group(2) or name.group(3)).strip(": "), block.line, []))
            run = re.search(r"\brun(?: command)?\W*:\W*?(`.*)", text, re.IGNORECASE)
            if run is not None:
                line = f"**run_command**: {run.group(1)}"
                found[-1][2].append(Text((line,), block.line, 1, starts_item=True))
        elif found and isinstance(block, Text | Fence):
            found[-1][2].append(block)
    return found


def _script(path: str, line: int, blocks: Sequence[Block], faults: FaultList) -> _Script:
    fields: dict[str, Field] = {}
    for one in read_fields(blocks, _SCRIPT_FIELDS):
        fields.setdefault(one.name, one)
    run = next((fields[name] for name in _RUN_FIELDS if name in fields), None)
    command = None
    if run is not None:
        try:
            command = read_command(run)
        except FieldError as error:
            faults.error(run.line, error.what, error.fix, mark=run.value[:60] or run.written)
    gpu = fields["gpu"].text.lower() if "gpu" in fields else ""
    task_class: TaskClass | None = None
    if re.match(r"\W*(no|none|false)\b", gpu):
        task_class = "cpu"
    elif re.match(r"\W*(yes|true|required)\b", gpu):
        task_class = "script"
    where = run.text_line if run is not None else line
    megabytes = _megabytes(fields.get("vram_estimate"))
    return _Script(path.strip("`* "), line, command, where, task_class, megabytes)


def _megabytes(estimate: Field | None) -> int | None:
    match = (
        re.search(r"(\d{1,6}(?:\.\d{1,3})?)\s*(gb|gib|mb|mib)", estimate.text.lower()) if estimate else None
    )
    if match is None:
        return None
    megabytes = float(match.group(1)) * (1024 if match.group(2).startswith("g") else 1)
    return int(megabytes) or None if megabytes <= MAX_VRAM_MB else None


def _read_steps(section: Section) -> list[_Step]:
    """The items of the list; without a list, the lines that hold an arrow (in a fence too)."""
    items: list[tuple[str, int]] = []
    arrows: list[tuple[str, int]] = []
    for block in section.blocks:
        if isinstance(block, Text):
            if block.starts_item and block.depth == 1:
                items.append((" ".join(line.strip() for line in block.lines), block.line))
            elif block.depth == 0:
                arrows += [
                    (text, block.line + at) for at, text in enumerate(block.lines) if _ARROW.search(text)
                ]
        elif isinstance(block, Fence):
            lines = block.content.split("\n")
            arrows += [(text, block.line + 1 + at) for at, text in enumerate(lines) if _ARROW.search(text)]
    return [
        _Step(part, line) for text, line in items or arrows for part in _ARROW.split(text) if part.strip()
    ]


def _find_scripts(step: _Step, index: _Index, faults: FaultList) -> list[_Script]:
    """The scripts that a step names: by code, else by path or file name, else by stem."""
    spans = [match.group(2).strip() for match in _SPAN.finditer(step.text)]
    named = [one for one in spans if index.lookup(one) or _FILE.fullmatch(one)]
    if not named:
        named = [match.group() for match in _FILE.finditer(step.text)]
    if not named:
        named = _stems(step.text, index)
    found: list[_Script] = []
    for name in named or [unquote(step.text.strip("*. "))]:
        matches = index.lookup(name)
        if len(matches) == 1:
            if matches[0] not in found:
                found.append(matches[0])
        elif matches:
            paths = ", ".join(one.path for one in matches)
            faults.error(
                step.line,
                f"{name[:60]!r} is the name of several scripts",
                f"write the path: {paths[:200]}",
                mark=name,
            )
        else:
            known = [one.path for one in index.scripts]
            near = faults.nearest(name, index.names, 0.5)
            hint = f"did you mean {near!r}?" if near else f"the scripts are: {', '.join(known)[:200]}"
            what = f"the workflow names {name[:60]!r}, which is no available script"
            faults.error(step.line, what, hint, mark=name)
    return found


def _stems(text: str, index: _Index) -> list[str]:
    """Names without an ending: a part that is one, else its first known word; prose around them is fine."""
    parts = [part.strip(" *_.:") for part in _TOGETHER.split(text) if part.strip(" *_.:")]
    found, unknown = [], []
    for part in parts:
        words = re.findall(r"[\w./-]+", part)
        known = part if index.lookup(part) else next((one for one in words if index.lookup(one)), None)
        if known is not None:
            found.append(known)
        elif len(words) == 1:
            unknown.append(part)
    return [*found, *unknown]


class _Index:
    """The scripts by everything they may be called."""

    def __init__(self, scripts: Sequence[_Script]) -> None:
        self.scripts = scripts
        self._by: dict[tuple[str, str], list[_Script]] = {}
        for one in scripts:
            parts = one.path.split("/")
            ends = {"/".join(parts[at:]) for at in range(max(len(parts) - 8, 1), len(parts) - 1)}
            keys = [("path", one.path), ("file", one.file_name), ("stem", one.stem.lower())]
            for key in [*keys, *(("end", end) for end in sorted(ends))]:
                self._by.setdefault(key, []).append(one)

    @property
    def names(self) -> list[str]:
        """Every path, stem and file name, for "did you mean"."""
        return [name for one in self.scripts for name in (one.path, one.stem, one.file_name)]

    def lookup(self, name: str) -> list[_Script]:
        """The scripts called ``name``: an exact path wins over a path's end or a file name, that over a stem."""
        name = name.removeprefix("./").removeprefix("{PLAN_PATH}/")
        exact = self._by.get(("path", name), [])
        for kind in ("end", "file"):
            if not exact:
                exact = self._by.get((kind, name), [])
        return (
            exact[:1]
            if exact and exact[0].path == name
            else exact or self._by.get(("stem", name.lower()), [])
        )


def _task(
    script: _Script, line: int, before: Sequence[str], used: dict[str, int], faults: FaultList
) -> PlanTask | None:
    if script.command is None:
        faults.error(
            script.line,
            f"the script {script.path[:60]!r} has no run command",
            "add `**Run command**: …` below it",
        )
        return None
    base = script.stem if is_plain_name(script.stem) else slug(script.stem)
    used[base] = used.get(base, 0) + 1
    name = base if used[base] == 1 else f"{base}-{used[base]}"
    task_class, inferred, unsure = script.task_class, False, False
    if task_class is None:
        guess = guess_class(script.command)
        task_class, inferred, unsure = guess.task_class, True, not guess.sure
        faults.warning(
            script.line,
            f"the script {script.path!r} does not say GPU yes or no: taken as {guess.words}",
            "add `**GPU**: no` or `**GPU**: yes` below it",
        )
    values: dict[str, Any] = {}
    if task_class == "script" and script.vram_mb is not None:
        values |= {"vram_estimate_mb": script.vram_mb, "vram_policy": "fixed"}
    return PlanTask(
        id=name,
        line=line,
        lines={"command": script.command_line},
        task_class=task_class,
        task_class_inferred=inferred,
        task_class_unsure=unsure,
        command=script.command,
        depends_on=list(before),
        **values,
    )
