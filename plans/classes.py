"""The class of a command whose plan names none, by its words alone, and how sure that is. Pure.

Three kinds of commands:
- all that it starts are well-known tools of files and text: ``cpu``, and sure of it;
- it holds a word of the earlier system's rule: that word's class. Sure where the word names a tool, a library, a variable or a
  file of models (``nvidia-smi``, ``import torch``, ``$OPENAI_BASE_URL``, ``x.gguf``), and none of another class stands beside it.
  As a part of a file's name (``generate_report.py``) it may mean anything;
- it starts a program that nobody here knows: ``cpu``, and not sure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from .bashforms import Word
from .bashlex import lex
from .bashtables import FIND_RUNS
from .placeholders import ValueFault, find_holes

if TYPE_CHECKING:  # the bridge asks for classes from its start on, and needs pydantic only for a plan
    from .model import TaskClass

#: The earlier system's words, and further ones; the first that occurs anywhere decides.
_WORDS: Final[tuple[tuple[TaskClass, tuple[str, ...]], ...]] = (
    ("script", ("whisper", "transcrib", "embed", "cuda", "gpu", "nvidia-smi", "nvcc", "torch")),
    ("llm", ("ollama", "llama", "generate", "prompt", "llm", "openai_", "rigbus_model", ".gguf")),
)
_WHOLE: Final = r"(?:^|(?<=[\s;|&(\"'=/])){0}(?=$|[\s;|&)\"':,])"
#: What leaves no doubt of a class. A word stands alone here: no part of a longer name.
_CERTAIN: Final[dict[TaskClass, re.Pattern[str]]] = {
    "script": re.compile(
        _WHOLE.format(r"(?:whisper|whisper-cli|cuda|nvidia-smi|nvcc|torch|torchrun)") + r"|\bCUDA_[A-Z]+"
    ),
    "llm": re.compile(
        _WHOLE.format(r"(?:ollama|llama-[a-z-]+|llama\.cpp|llama_cpp(?:\.\w+)*|vllm|llm)")
        + r"|\bOPENAI_[A-Z]+|\bRIGBUS_MODEL\b|\.gguf\b"
    ),
}
#: Tools of files and text, and builtins: what they do needs no card and no model, whatever their arguments are called.
_TOOL_NAMES: Final = """
    : [ awk b2sum base32 base64 basename break bunzip2 bzip2 cat cd chgrp chmod chown cksum cmp column comm
    continue cp csplit cut date dd df diff dirname du echo egrep exit expand export expr false fgrep file find
    fmt fold gawk grep gunzip gzip head hostname id install join jq link ln local ls md5sum mkdir mkfifo mktemp
    mv nl nproc numfmt od paste patch pathchk popd pr printenv printf pushd pwd read readlink readonly realpath
    return rev rm rmdir rsync sed seq set sha1sum sha224sum sha256sum sha384sum sha512sum shift shopt shuf sleep
    sort split stat strings sum sync tac tail tar tee test touch tr true truncate tsort umask uname unexpand
    uniq unlink unset unxz unzip wait wc which whoami xxd xz yes zcat zip zstd
"""
_PLAIN_TOOLS: Final = frozenset(_TOOL_NAMES.split())
_TOOL_FOLDERS: Final = ("/bin/", "/usr/bin/")
_SHOWN: Final = 4
#: A longer command is a program; reading it takes its time, and the bridge and the brain have one thread.
_READ_CHARS: Final = 8192
UNSURE: Final = "unsure: a model of the rig is asked, where there is one"


@dataclass(frozen=True, slots=True)
class Guess:
    """``reason`` is for people; not ``sure`` means that who can read what the command starts may know better."""

    task_class: TaskClass
    reason: str
    sure: bool

    @property
    def words(self) -> str:
        """The class and the reason, and who else is asked."""
        return f"{self.task_class} ({self.reason})" + ("" if self.sure else f", {UNSURE}")


def guess_class(command: str | None, argv: Sequence[str] | None = None) -> Guess:
    """The class of a ``shell`` task, from its command as the plan has it, or its argv."""
    text = " ".join(argv) if argv is not None else command or ""
    tools = _of_argv(argv) if argv is not None else _of_command(text)
    if tools is not None:
        more = f" and {len(tools) - _SHOWN} more" if len(tools) > _SHOWN else ""
        return Guess(
            "cpu", f"it starts only {', '.join(tools[:_SHOWN])}{more}" if tools else "it starts nothing", True
        )
    certain = {name for name, pattern in _CERTAIN.items() if pattern.search(text)}
    lowered = text.lower()
    for name, words in _WORDS:
        for word in words:
            if word in lowered:
                return Guess(name, f"its command holds {word!r}", certain == {name})
    return Guess("cpu", "the default", False)


def _of_argv(argv: Sequence[str]) -> list[str] | None:
    name = _plain_tool(argv[0], argv[1:]) if argv else None
    return [name] if name else None


def _of_command(text: str) -> list[str] | None:
    """The tools that a command starts, each once; None as soon as it starts anything else, or may do so."""
    if "`" in text or len(text) > _READ_CHARS:
        return None  # what stands in backticks is not lexed
    try:
        lexed = lex(text, find_holes(text, str.isupper))
    except ValueFault:
        return None
    found: list[str] = []
    for simple in lexed.simples:
        if not simple.words:
            continue
        name = _text(simple.words[0])
        if name in lexed.functions:
            continue
        tool = _plain_tool(name, [_text(word) for word in simple.words[1:]])
        if tool is None:
            return None
        found.append(tool)
    return list(dict.fromkeys(found))


def _text(word: Word) -> str:
    """The word, or nothing where an expansion decides about it."""
    return word.text or ""


def _plain_tool(name: str, arguments: Sequence[str]) -> str | None:
    folder = next((one for one in _TOOL_FOLDERS if name.startswith(one)), "")
    tool = name.removeprefix(folder)
    if tool not in _PLAIN_TOOLS or (tool == "find" and not FIND_RUNS.isdisjoint(arguments)):
        return None
    return tool
