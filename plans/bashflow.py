"""What the shell variables of a command hold: which names take a placeholder's value, and which may not.

bash evaluates whatever is assigned to an integer, a reference or an array that is declared with its value; and
``N={X}`` is harmless until ``$((N))``. So this keeps, for each name, a placeholder whose value may reach it: by an
assignment, a loop, ``read``, the output of ``echo``, or as an argument of a function or of ``set``. The order of the
commands does not matter, since a loop or a function may run them in another.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from .bashclients import name_of
from .bashforms import Lexed, Redirect, Simple, Word
from .bashtables import (
    ASSIGNMENT,
    DECLARING,
    EMITTERS,
    EXPORTING,
    IDENTIFIER,
    INTEGERS,
    READ_BY_BASH,
    RUNNERS,
    SETS_ENVIRONMENT,
)
from .placeholders import Hole, ValueFault, is_item, line_of

_READING = frozenset({"read", "mapfile", "readarray"})
#: A value may go from name to name; each pass follows one step.
_PASSES = 3


class Flow:
    """The commands of ``text`` and what their variables hold. ``lists``: number of values of each list-valued name."""

    def __init__(self, text: str, lexed: Lexed, lists: Mapping[str, int]) -> None:
        self.text = text
        self.lexed = lexed
        self.lists = lists
        self.warnings: dict[str, None] = {}
        self._declared: set[str] = set()
        self._declared_any = False
        self._arrays: set[str] = set()
        # Shell variables that hold a value, by name; "1" to "9" and "@" are arguments of functions and of set.
        self._holding: dict[str, Hole] = {}
        self._emitted: set[Hole] = set()

    def follow(self, commands: Sequence[tuple[Simple, list[Word]]]) -> None:
        """Learns what every variable of the commands holds.

        Raises:
            ValueFault: a value is assigned to a name of which bash evaluates what it gets.
        """
        for simple, words in commands:
            self._note_declared(words[self._command_at(words) :])
            self._emitted |= set(emitted_by(simple))
        for _ in range(_PASSES):
            for name, loop in self.lexed.loops:
                for word in loop:
                    self._assign(name.text or "", word)
            for simple, words in commands:
                self._note_assignments(simple, words)

    # -- faults and warnings -----------------------------------------------------------------------

    def _fault(self, hole: Hole, what: str, fix: str) -> ValueFault:
        line = line_of(self.text, hole.start)
        return ValueFault(
            f"{hole.text}: {what}", fix.replace("{NAME}", hole.text), offset=hole.start, line=line
        )

    def _flag(self, holes: Iterable[Hole], what: str, fix: str) -> None:
        """A warning; a fault for the foreach item."""
        for hole in holes:
            fault = self._fault(hole, what, fix)
            if is_item(hole.name):
                raise fault
            warning = f"line {fault.line}: {fault}"
            self.warnings[warning] = None

    def _held(self, words: Iterable[Word | Redirect]) -> list[Hole]:
        """The placeholders whose values stand in shell variables that the words expand."""
        return self._held_in(name for word in words for name in word.expands)

    def _held_in(self, names: Iterable[str]) -> list[Hole]:
        names = ("@" if name == "*" else name for name in names)
        return [self._holding[name] for name in names if name in self._holding]

    # -- names -------------------------------------------------------------------------------------

    def _note_declared(self, words: Sequence[Word]) -> None:
        """Remembers integers, references and arrays: bash evaluates what is assigned to the first two, and what
        a declaration assigns to an array."""
        if not words:
            return
        options = "".join(_options(words))
        if words[0].text in _READING:
            if "a" in options or words[0].text != "read":
                self._arrays |= {word.text for word in words[1:] if word.text}
            return
        if words[0].text not in DECLARING:
            return
        evaluated = bool(set(options) & set("in?")) and words[0].text != "export"
        for word in words[1:]:
            name = IDENTIFIER.match(word.prefix)
            if name:
                self._declared |= {name.group()} if evaluated else set()
                self._arrays |= {name.group()} if set(options) & set("aA?") else set()
            elif evaluated and not word.prefix.startswith(("-", "+")) and not _may_be_options(word):
                self._declared_any = True

    def _is_array(self, name: str) -> bool:
        return name in self._arrays or re.search(rf"\b{name}(?:\+?=\(|\[)", self.text) is not None

    def _assign(self, name: str, word: Word) -> None:
        """Judges and remembers the assignment of ``word`` to the shell variable ``name``."""
        what, fix = self._why_not(name)
        if what and word.covers:
            raise self._fault(word.covers[0], what, fix)
        held = self._held([word])
        if what:
            self._flag(held, f"through a shell variable, {what}", fix)
        self._hold(name, [hole for hole in word.covers if hole in word.holes or hole in self._emitted])
        self._hold(name, held)

    def _hold(self, name: str, holes: Iterable[Hole]) -> None:
        for hole in holes:
            # An item weighs more than a value of the plan, whichever was assigned first.
            if name not in self._holding or is_item(hole.name):
                self._holding[name] = hole

    def _why_not(self, name: str) -> tuple[str, str]:
        """Why no value may be assigned to ``name``, and the fix; empty where it may."""
        if name in READ_BY_BASH or name.startswith("LD_"):
            fix = "keep it fixed: call programs by their full path and pass the value as an argument"
            return f"an assignment to {name}, which the shell itself reads", fix
        if name in INTEGERS or name in self._declared or self._declared_any:
            what = f"an assignment to {name}, which bash evaluates as arithmetic or as a name"
            return what, "use a variable of another name, not declared with -i or -n"
        return "", ""

    def _note_assignments(self, simple: Simple, words: Sequence[Word]) -> None:
        for word in simple.assigns:
            self._assign(word.assigned or "", word)
        self._hold("_", words[-1].holes if words else ())  # the last argument of the command before
        words = words[self._command_at(words) :]
        command = words[0].text if words else None
        if command in DECLARING:
            for word in words[1:]:
                name = ASSIGNMENT.match(word.prefix)
                if name and (command in EXPORTING or not word.holes):
                    self._assign(name.group(1), word)
        if command in _READING:
            self._note_read(simple, words)
        if command == "set":
            self._hold_arguments(words[1:], moved=True)
        elif command and command in self.lexed.functions:
            self._hold_arguments(words[1:], moved=self._shifts())

    def _note_read(self, simple: Simple, words: Sequence[Word]) -> None:
        """``read N <<< {X}``, and what a loop around it, or the pipe into one, may give it."""
        given = [hole for one in simple.redirects if one.op.startswith("<") for hole in one.holes]
        given = [hole for hole in given if hole in self._emitted or simple.redirects[0].op.startswith("<<")]
        loose = [hole for other in self.lexed.simples for hole in _given_on(other, self._emitted)]
        loose += [hole for one in self.lexed.simples for hole in self._held(_passed_on(one))]
        names = [word.text for word in words[1:] if word.text and IDENTIFIER.fullmatch(word.text)]
        for name in [*names, "REPLY"]:
            what, fix = self._why_not(name)
            if what:
                self._flag([*given, *loose], what, fix)
            self._hold(name, [*given, *loose])

    def _hold_arguments(self, words: Sequence[Word], *, moved: bool) -> None:
        """Arguments by number; ``moved``: the numbers are not those of the words (shift, options of set)."""
        for number, word in enumerate(words, start=1):
            holes = [*word.covers, *self._held([word])]
            names = "123456789" if moved else str(number) if number < 10 else ""
            for name in [*names, "@"]:
                self._hold(name, holes)

    def _shifts(self) -> bool:
        return any(word.text == "shift" for one in self.lexed.simples for word in one.words[:1])

    # -- commands ----------------------------------------------------------------------------------

    def _command_at(self, words: Sequence[Word]) -> int:
        """The index of the command that runners such as env and timeout run, or of the command itself."""
        return [0, *self._runs(words)][-1]

    def _runs(self, words: Sequence[Word]) -> Iterator[int]:
        """The indexes of what each runner at the start runs: ``nohup env A=1 x`` gives those of env and x."""
        at = 0
        while at < len(words) and (runner := RUNNERS.get(name_of(words[at]) or "")):
            after = self._after_runner(words, at, runner)
            if after >= len(words):
                return
            yield after
            at = after

    def _after_runner(self, words: Sequence[Word], at: int, runner: tuple[frozenset[str], int]) -> int:
        options, operands = runner
        sets = name_of(words[at]) in SETS_ENVIRONMENT
        at += 1
        while at < len(words):
            word = words[at]
            if word.text == "--":
                at += 1
                while sets and at < len(words) and ASSIGNMENT.match(words[at].prefix):
                    at += 1
                return at + operands
            if word.text in ("-v", "-V") and words[at - 1].text == "command":
                return len(words)
            if word.text in options:
                at += 2
            elif word.prefix.startswith("-") or (sets and ASSIGNMENT.match(word.prefix)):
                at += 1
            else:
                return at + operands
        return at


def _options(words: Sequence[Word]) -> Iterator[str]:
    """The letters of a builtin's options; ``?`` for a word that may be an option or not."""
    for word in words[1:]:
        if word.prefix.startswith("-"):
            yield word.prefix + ("?" if word.dynamic else "")
        elif _may_be_options(word):
            yield "?"


def _may_be_options(word: Word) -> bool:
    return word.dynamic and not word.prefix and not word.covers


def emitted_by(simple: Simple) -> list[Hole]:
    """The placeholders whose values are part of what the command writes: echo's and printf's arguments, and the
    here-documents of cat."""
    emitter = name_of(simple.words[0]) if simple.words else ""
    if emitter not in EMITTERS:
        return []
    if emitter == "cat":
        return [hole for one in simple.redirects if one.op.startswith("<<") for hole in one.holes]
    return [hole for word in simple.words[1:] for hole in word.holes]


def _passed_on(simple: Simple) -> list[Word | Redirect]:
    """The parts of a command that a following or surrounding one may read: a pipe's, and those of ``done <<< …``."""
    if simple.piped and simple.words and name_of(simple.words[0]) in EMITTERS:
        return list(simple.words[1:])
    return list(simple.redirects) if not simple.words and not simple.assigns else []


def _given_on(simple: Simple, emitted: set[Hole]) -> list[Hole]:
    """The placeholders that such parts hold."""
    if simple.words:
        return emitted_by(simple) if simple.piped else []
    inputs = [one for one in simple.redirects if one.op.startswith("<")]
    return [hole for one in inputs for hole in one.holes if one.op.startswith("<<") or hole in emitted]
