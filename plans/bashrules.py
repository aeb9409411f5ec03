"""What a simple command may do with a placeholder: the builtins that parse their arguments, and the rest.

The promise is that *no bash expansion parses a value at the place where it is put in*. Quotes alone do not
keep it: ``eval``, ``read``, ``printf -v``, ``[ -v``, an assignment to ``RANDOM`` and others parse an argument
however well it is quoted (each line of the tables was tried on bash). Those are faults.

What a command does with the value later (a shell's ``-c``, SQL, ``N={X}`` and then ``$((N))``) is a warning,
and a fault when the value is the foreach item: items are data that nobody has read.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from .bashclients import SHELLS, Texts, name_of, texts_of
from .bashforms import Lexed, Redirect, Region, Simple, Word
from .bashtables import (
    ARGV,
    ASSIGNMENT,
    DECLARING,
    EMITTERS,
    EXPORTING,
    FIND_RUNS,
    IDENTIFIER,
    INTEGERS,
    PARSING,
    READ_BY_BASH,
    RUNNERS,
    SETS_ENVIRONMENT,
)
from .placeholders import Hole, ValueFault, is_item, line_of


def judge(text: str, lexed: Lexed, lists: Mapping[str, int]) -> tuple[str, ...]:
    """Checks every command of ``text``; ``lists`` has the number of values of each list-valued name.

    Returns:
        Warnings, each with its line and fix.

    Raises:
        ValueFault: the first placeholder that bash, or a program that bash starts, would parse.
    """
    if lexed.refusals:
        raise min(lexed.refusals, key=lambda fault: fault.offset)
    judge = _Judge(text, lexed, lists)
    judge.run()
    return tuple(judge.warnings)


def judge_argv(words: list[Word]) -> tuple[str, ...]:
    """The same judgement of one command that no shell of ours reads: only its program texts matter.

    Raises:
        ValueFault: the foreach item names the program or stands inside a program text.
    """
    judge = _Judge("", Lexed(), {})
    judge.judge_argv(words)
    return tuple(judge.warnings)


class _Judge:
    def __init__(self, text: str, lexed: Lexed, lists: Mapping[str, int]) -> None:
        self.text = text
        self.lexed = lexed
        self.lists = lists
        self.warnings: dict[str, None] = {}
        self._declared: set[str] = set()
        self._declared_any = False
        # Shell variables that hold a value, by name: N={X} and then $((N)) is what the warnings are about.
        self._holding: dict[str, Hole] = {}

    def run(self) -> None:
        commands = [(simple, self._listed(simple.words)) for simple in self.lexed.simples]
        for _, words in commands:
            self._note_declared(words)
        for name, words in self.lexed.loops:
            for word in words:
                self._assign(name.text or "", word)
        for simple, words in commands:
            self._note_assignments(simple, words)
        for simple, words in commands:
            self._judge_command(simple, words)
        for region in self.lexed.regions:
            self._judge_region(region)

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
        return [self._holding[name] for word in words for name in word.expands if name in self._holding]

    # -- names -------------------------------------------------------------------------------------

    def _listed(self, words: Sequence[Word]) -> list[Word]:
        """The words after lists are spread: one of three values is three words, an empty one none."""
        spread: list[Word] = []
        for position, word in enumerate(words):
            count = self.lists.get(word.holes[0].name, 1) if word.whole else 1
            if count == 0 and position == 0:
                raise self._fault(
                    word.holes[0], "an empty list where the command's name is expected", "give it a value"
                )
            spread += [word] * count
        return spread

    def _note_declared(self, words: Sequence[Word]) -> None:
        """Remembers integers and references: bash evaluates whatever is assigned to them."""
        words = words[self._command_at(words) :]
        if not words or words[0].text not in DECLARING:
            return
        options = [word.prefix for word in words[1:] if word.prefix.startswith("-")]
        if not any(set(option) & set("in") for option in options) or words[0].text == "export":
            return
        for word in words[1:]:
            name = IDENTIFIER.match(word.prefix)
            if name:
                self._declared.add(name.group())
            elif not word.prefix.startswith(("-", "+")):
                self._declared_any = True

    def _assign(self, name: str, word: Word) -> None:
        """Judges and remembers the assignment of ``word`` to the shell variable ``name``."""
        what, fix = self._why_not(name)
        if what and word.covers:
            raise self._fault(word.covers[0], what, fix)
        held = self._held([word])
        if what:
            self._flag(held, f"through a shell variable, {what}", fix)
        self._hold(name, [*word.holes, *held])

    def _hold(self, name: str, holes: Sequence[Hole]) -> None:
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
        words = words[self._command_at(words) :]
        command = words[0].text if words else None
        if command in EXPORTING:
            for word in words[1:]:
                if name := ASSIGNMENT.match(word.prefix):
                    self._assign(name.group(1), word)
        if command in ("read", "mapfile", "readarray"):
            given = [hole for one in simple.redirects if one.op.startswith("<<") for hole in one.holes]
            for word in words[1:]:
                name = IDENTIFIER.fullmatch(word.text or "")
                if name and given:
                    what, fix = self._why_not(name.group())
                    self._flag(given if what else [], what, fix)
                    self._hold(name.group(), given)

    # -- commands ----------------------------------------------------------------------------------

    def _command_at(self, words: Sequence[Word], start: int = 0) -> int:
        """The index of the command that runners such as env and timeout run, or of the command itself."""
        at = start
        while at < len(words) and (runner := RUNNERS.get(name_of(words[at]) or "")):
            after = self._after_runner(words, at, runner)
            if after >= len(words):
                return at
            at = after
        return at

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

    def _judge_command(self, simple: Simple, words: list[Word]) -> None:
        at = self._command_at(words)
        for word in words[:at]:
            self._judge_runner_word(word)
        starts = [0, at] + [index + 1 for index, word in enumerate(words[:-1]) if word.text in FIND_RUNS]
        for word in (words[index] for index in starts if index < len(words)):
            self._judge_name(word)
        words = words[at:]
        if not words:
            return
        self._flag(
            self._held(words[:1]),
            "its value names a command through a shell variable",
            "write the command's name",
        )
        holes = [hole for word in words[1:] for hole in word.covers]
        command = words[0].text if not words[0].active or words[0].text == "[" else None
        if command is None:
            self._judge_computed(words[0], holes)
        elif command in PARSING:
            self._judge_parsing(command, words[1:])
        elif command in EXPORTING:
            self._judge_export(command, words[1:])
        elif command == "printf":
            self._judge_printf(words[1:], holes)
        elif command in ("test", "["):
            self._judge_test(words[1:], holes)
        self._judge_texts(simple, words)

    def judge_argv(self, words: list[Word]) -> None:
        at = self._command_at(words)
        for word in [words[index] for index in (0, at) if index < len(words)]:
            self._judge_name(word)
        self._judge_texts(Simple(0), words[at:])

    def _judge_name(self, word: Word) -> None:
        for hole in word.covers:
            if is_item(hole.name):
                what = "the foreach item chooses the command"
                raise self._fault(hole, what, "write the command's name and pass the item as an argument")

    def _judge_runner_word(self, word: Word) -> None:
        for hole in word.holes:
            name = ASSIGNMENT.match(word.prefix)
            if name and (name.group(1) in READ_BY_BASH or name.group(1).startswith("LD_")):
                what, fix = self._why_not(name.group(1))
                raise self._fault(hole, what, fix)
            if word.prefix.startswith(("-S", "--split")):
                raise self._fault(hole, "env -S splits the value into words", "write the words themselves")

    def _judge_computed(self, word: Word, holes: Sequence[Hole]) -> None:
        """The command's name is an expansion: it could be eval."""
        if word.slash or not holes:
            return
        if word.holes and not word.expands and not word.active:
            name = word.holes[0].text
            what = f"{name} names the command, so what that does with its arguments cannot be checked"
            warning = f"line {line_of(self.text, word.start)}: {what}; write the command's name"
            self.warnings[warning] = None
            return
        raise self._fault(
            holes[0], "an argument of a command whose name is computed", "write the command's name, " + ARGV
        )

    def _judge_parsing(self, command: str, words: Sequence[Word]) -> None:
        declares = command in DECLARING
        for word in words:
            # local X=$(command {NAME}) is the output of a command as a plain value; read X $(…) is not.
            plain = declares and ASSIGNMENT.match(word.prefix)
            for hole in word.holes if plain else word.covers:
                raise self._fault(hole, f"an argument of {command}", PARSING[command])
            name = plain.group(1) if plain else ""
            if name:
                self._assign(name, word)
        if not declares:
            self._flag(
                self._held(words), f"its value reaches {command} through a shell variable", PARSING[command]
            )

    def _judge_export(self, command: str, words: Sequence[Word]) -> None:
        for word in words:
            if word.covers and not ASSIGNMENT.match(word.prefix):
                raise self._fault(
                    word.covers[0], f"it chooses the variable of {command}", f"write {command} NAME={{NAME}}"
                )

    def _judge_printf(self, words: Sequence[Word], holes: Sequence[Hole]) -> None:
        if not holes:
            return
        fix = "write the format in single quotes first, as in: printf '%s\\n' {NAME}"
        arguments = words[1:] if words[0].text == "--" else words
        if not arguments:
            return
        form = arguments[0]
        if words[0].prefix.startswith("-v"):
            raise self._fault(
                holes[0], "an argument of printf -v, which evaluates the variable's name", "write X={NAME}"
            )
        if form.covers:
            raise self._fault(form.covers[0], "the value is part of printf's format", fix)
        if (form.dynamic and (not form.prefix or form.prefix.startswith("-"))) or "%n" in form.prefix:
            raise self._fault(holes[0], "printf with a format that could assign to a variable", fix)

    def _judge_test(self, words: Sequence[Word], holes: Sequence[Hole]) -> None:
        """``[ -v X ]`` evaluates a subscript in X, and a value may itself read ``-v``: two values side by side
        are an operator and its operand."""
        fix = "keep an operator such as = between two values, and use -n for one alone: [ -n {NAME} ]"
        evaluating = [word for word in words if word.text in ("-v", "-R")]
        if evaluating:
            for hole in holes:
                raise self._fault(hole, "an argument of [ -v, which evaluates a subscript in it", fix)
            self._flag(self._held(words), "its value reaches [ -v through a shell variable", fix)
        for before, after in pairwise(words):
            side_by_side = [*before.covers, *after.covers]
            if side_by_side and after.dynamic and _may_be_option(before):
                what = "a value beside another in [ … ], where one could act as -v"
                raise self._fault(side_by_side[0], what, fix)

    # -- programs that get a text ------------------------------------------------------------------

    def _judge_texts(self, simple: Simple, words: list[Word]) -> None:
        texts = texts_of(words)
        if texts:
            self._judge_text(texts)
            if texts.reads_stdin:
                self._judge_stdin(texts, simple)
        for index in range(1, len(words) - 1):
            option = words[index + 1].prefix
            if name_of(words[index]) in SHELLS and option.startswith("-") and "c" in option:
                inner = texts_of(words[index:])
                if inner:
                    self._judge_text(inner)

    def _judge_text(self, texts: Texts) -> None:
        for word in texts.words:
            self._flag(
                word.covers, f"{texts.name} would parse the value as part of its program text", texts.fix
            )
            self._flag(self._held([word]), f"its value reaches {texts.name}'s program text", texts.fix)

    def _judge_stdin(self, texts: Texts, simple: Simple) -> None:
        what = f"{texts.name} would parse the value as part of the program on its standard input"
        for redirect in simple.redirects:
            if redirect.op.startswith("<<"):
                self._flag([*redirect.holes, *self._held([redirect])], what, texts.fix)
        source = simple.source
        if source and source.words and (emitter := name_of(source.words[0])) in EMITTERS:
            here: list[Word | Redirect] = [one for one in source.redirects if one.op.startswith("<<")]
            emitted = here if emitter == "cat" else [*source.words[1:], *here]
            for part in emitted:
                self._flag(part.covers if isinstance(part, Word) else part.holes, what, texts.fix)
            self._flag(self._held(emitted), what, texts.fix)

    # -- code of other kinds -----------------------------------------------------------------------

    def _judge_region(self, region: Region) -> None:
        """Arithmetic and subscripts also evaluate the variables that they name: N={X} and then $((N))."""
        if not self._holding:
            return
        code = _code_of(region.kind, self.text[region.start : region.end])
        for match in IDENTIFIER.finditer(code):
            hole = self._holding.get(match.group())
            if hole:
                line = line_of(self.text, region.start)
                what = f"its value reaches {region.kind} in line {line} as {match.group()}"
                fix = "bash evaluates it there: do that step in a program that gets the value as an argument"
                self._flag([hole], what, fix)


def _may_be_option(word: Word) -> bool:
    return (word.dynamic or word.active) and (not word.prefix or word.prefix.startswith("-"))


def _code_of(kind: str, text: str) -> str:
    """The part of a region that bash evaluates, empty where it only looks a variable up."""
    if kind in ("arithmetic", "subscript"):
        return text
    if kind == "test":
        return text if re.search(r"\s-(eq|ne|lt|le|gt|ge|v|R)\s", text) else ""
    if kind != "parameter":
        return ""
    body = text[2:-1]
    named = re.match(r"#?(?:[A-Za-z0-9_]+|[@*])", body)
    if body.startswith("!"):
        return body
    rest = body[named.end() :] if named else ""
    if rest.startswith("["):
        return rest.partition("]")[0]
    if rest.startswith(":") and rest[1:2] not in ("-", "=", "?", "+"):
        return rest
    return body if re.fullmatch(r"@[PE]", rest) else ""
