"""What a simple command may do with a placeholder: the builtins that parse their arguments, and the rest.

The promise is that *no bash expansion parses a value at the place where it is put in*. Quotes alone do not
keep it: ``eval``, ``read``, ``printf -v``, ``[ -v``, an assignment to ``RANDOM`` and others parse an argument
however well it is quoted (each line of the tables was tried on bash). Those are faults.

What a command does with the value later (a shell's ``-c``, SQL, ``N={X}`` and then ``$((N))``) is a warning,
and a fault when the value is the foreach item: items are data that nobody has read.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

from .bashclients import Texts, is_interpreter, is_shell, name_of, texts_of
from .bashflow import Flow, emitted_by
from .bashforms import Lexed, Redirect, Region, Simple, Word
from .bashtables import (
    ARGV,
    ASSIGNMENT,
    DECLARING,
    EMITTERS,
    EXPORTING,
    FIND_RUNS,
    IDENTIFIER,
    NAMING,
    PARSING,
    PASSING,
    READ_BY_BASH,
    SETS_ENVIRONMENT,
    SPLITS,
    STREAMS,
)
from .placeholders import Hole, is_item, line_of


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


class _Judge(Flow):
    def run(self) -> None:
        self._refuse_readers()
        commands = [(simple, self._listed(simple.words)) for simple in self.lexed.simples]
        self.follow(commands)
        for simple, words in commands:
            self._judge_command(simple, words)
        for region in self.lexed.regions:
            self._judge_region(region)

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

    def _refuse_readers(self) -> None:
        """An alias changes how bash reads all that follows; `source /dev/stdin` reads as code what it is given."""
        if not self.lexed.placements:
            return
        hole = self.lexed.placements[0].hole
        for simple in self.lexed.simples:
            if any(word.assigned == "BASH_ALIASES" for word in simple.assigns):
                raise self._fault(hole, "a placeholder in a command that sets aliases", PARSING["alias"])
            words = simple.words[self._command_at(simple.words) :]
            command = words[0].text if words else None
            if command == "alias" and len(words) > 1:
                covered = [found for word in words for found in word.covers]
                what = "an argument of alias" if covered else "a placeholder in a command that sets aliases"
                raise self._fault(covered[0] if covered else hole, what, PARSING["alias"])
            if command in (".", "source") and len(words) > 1 and STREAMS.match(words[1].prefix):
                fix = "name a file, and pass the value as a variable"
                raise self._fault(hole, f"a placeholder beside {command} {words[1].prefix}", fix)

    def _judge_redirects(self, simple: Simple) -> None:
        for redirect in simple.redirects:
            if redirect.op == ">&":
                what = "its value reaches >& through a shell variable, and bash expands it a second time"
                self._flag(self._held([redirect]), what, "write > FILE 2>&1")

    def _judge_command(self, simple: Simple, words: list[Word]) -> None:
        self._judge_redirects(simple)
        at = self._command_at(words)
        self._judge_runners(words)
        starts = [0, at] + [index + 1 for index, word in enumerate(words[:-1]) if word.text in FIND_RUNS]
        for word in (words[index] for index in starts if index < len(words)):
            self._judge_name(word)
        words = words[at:]
        if not words:
            return
        self._flag(
            self._held_in("1" if name in ("@", "*") else name for name in words[0].expands),
            "its value names a command through a shell variable",
            "write the command's name",
        )
        holes = [hole for word in words[1:] for hole in word.covers]
        command = words[0].text if not words[0].active or words[0].text == "[" else None
        if command is None:
            self._judge_computed(words[0], holes)
            if not words[0].slash and not words[0].holes:  # $SHELL <<< {NAME}
                self._judge_stdin(
                    Texts("a command whose name is computed", "write the command's name"), simple
                )
        elif command in PARSING:
            self._judge_parsing(command, words[1:])
        elif command in EXPORTING:
            self._judge_export(command, words[1:])
        elif command == "printf":
            self._judge_printf(words[1:], holes)
        elif command in ("test", "["):
            self._judge_test(words[1:], holes)
        self._judge_texts(simple, words)
        self._judge_replaced(simple, at)

    def judge_argv(self, words: list[Word]) -> None:
        at = self._command_at(words)
        self._judge_runners(words)
        for word in [words[index] for index in (0, at) if index < len(words)]:
            self._judge_name(word)
        self._judge_texts(Simple(0), words[at:])

    def _judge_name(self, word: Word) -> None:
        for hole in word.covers:
            if is_item(hole.name):
                what = "the foreach item chooses the command"
                raise self._fault(hole, what, "write the command's name and pass the item as an argument")

    def _judge_runners(self, words: Sequence[Word]) -> None:
        """The words between a runner and its command; env, sudo and doas take one for an option or assignment."""
        at = 0
        for after in [*self._runs(words), len(words)]:
            sets = name_of(words[at]) in SETS_ENVIRONMENT if words else False
            for before, word in pairwise(words[at : after + 1]):
                self._judge_runner_word(before, word, sets=sets)
            bare = sets and after < len(words) and not words[after].prefix and not words[after].slash
            for hole in words[after].holes if bare else ():
                if not is_item(hole.name):  # an item as the command has a fault of its own
                    what = f"{words[at].text} would take the value for an option or an assignment"
                    raise self._fault(hole, what, "write the command's name")
            at = after

    def _judge_runner_word(self, before: Word, word: Word, *, sets: bool) -> None:
        for hole in word.holes:
            name = ASSIGNMENT.match(word.prefix)
            if name and (name.group(1) in READ_BY_BASH or name.group(1).startswith("LD_")):
                what, fix = self._why_not(name.group(1))
                raise self._fault(hole, what, fix)
            if sets and word.prefix.startswith("BASH_FUNC_"):
                raise self._fault(hole, "a function that the next bash would parse", "write it in a script")
            if sets and (SPLITS.match(word.prefix) or SPLITS.fullmatch(before.text or "")):
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
            if plain and self._is_array(plain.group(1)):
                plain = None  # what a declaration assigns to an array is parsed once more
            for hole in word.holes if plain else word.covers:
                raise self._fault(hole, f"an argument of {command}", PARSING[command])
            if not plain:
                what = f"its value reaches {command} through a shell variable"
                self._flag(self._held([word]), what, PARSING[command])

    def _judge_export(self, command: str, words: Sequence[Word]) -> None:
        options = {letter for word in words if word.prefix.startswith("-") for letter in word.prefix}
        if command == "readonly" and options & set("aA"):
            self._judge_parsing("declare", words)
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
            shell = is_shell(words[index]) and option.startswith("-") and "c" in option
            other = is_interpreter(words[index], words[index + 1]) and name_of(words[0]) not in NAMING
            if shell or other:
                inner = texts_of(words[index:])
                if inner:
                    self._judge_text(inner)

    def _judge_replaced(self, simple: Simple, at: int) -> None:
        """``echo {X} | xargs -I% sh -c '… % …'``: xargs puts the value into the text."""
        source, words = simple.source, simple.words
        if not source or not source.words or "xargs" not in map(name_of, words[:at]):
            return
        marks = [mark for before, word in pairwise(words[: at + 1]) for mark in _replaced(before, word)]
        texts = texts_of(words[at:])
        replaced = [
            word
            for word in (texts.words if texts else ())
            if any(mark and mark in self.text[word.start : word.end] for mark in marks)
        ]
        if texts and replaced:
            holes = [hole for word in source.words[1:] for hole in word.covers]
            holes += [hole for redirect in source.redirects for hole in redirect.holes]
            held = [*self._held(source.words[1:]), *self._held(source.redirects)]
            fix = "let xargs append it, as in: xargs -n 1 sh -c 'use \"$1\"' _"
            self._flag([*holes, *held], f"xargs puts the value into {texts.name}'s program text", fix)

    def _judge_text(self, texts: Texts) -> None:
        for word in texts.words:
            self._flag(
                word.covers, f"{texts.name} would parse the value as part of its program text", texts.fix
            )
            self._flag(self._held([word]), f"its value reaches {texts.name}'s program text", texts.fix)

    def _judge_stdin(self, texts: Texts, simple: Simple) -> None:
        what = f"{texts.name} would parse the value as part of the program on its standard input"
        for redirect in simple.redirects:
            if redirect.op.startswith("<"):
                self._flag([*redirect.holes, *self._held([redirect])], what, texts.fix)
        if simple.fed:
            before = [one for one in self.lexed.simples if one.words and one.start < simple.start]
            emitters = [one for one in before if name_of(one.words[0]) in EMITTERS]
            self._flag([hole for one in emitters for hole in emitted_by(one)], what, texts.fix)
            self._flag(self._held(word for one in emitters for word in one.words[1:]), what, texts.fix)
        source = simple.source
        while source and source.words:
            emitter = name_of(source.words[0])
            if emitter in EMITTERS:
                here: list[Word | Redirect] = [one for one in source.redirects if one.op.startswith("<<")]
                emitted = here if emitter == "cat" else [*source.words[1:], *here]
                for part in emitted:
                    self._flag(part.covers if isinstance(part, Word) else part.holes, what, texts.fix)
                self._flag(self._held(emitted), what, texts.fix)
            source = source.source if emitter in PASSING else None

    # -- code of other kinds -----------------------------------------------------------------------

    def _judge_region(self, region: Region) -> None:
        """Arithmetic and subscripts also evaluate the variables that they name: N={X} and then $((N))."""
        if not self._holding:
            return
        code = _code_of(region.kind, self.text[region.start : region.end])
        for match in _NAMED.finditer(code):
            hole = self._holding.get(match.group(1) or match.group())
            if hole:
                line = line_of(self.text, region.start)
                what = f"its value reaches {region.kind} in line {line} as {match.group()}"
                fix = "bash evaluates it there: do that step in a program that gets the value as an argument"
                self._flag([hole], what, fix)


def _replaced(option: Word, after: Word) -> list[str]:
    """What xargs replaces by its input, where ``option`` says so."""
    given = option.prefix
    if given in ("-i", "--replace"):
        return ["{}"]
    if given.startswith(("-i", "--replace=")):
        return [given.removeprefix("--replace=").removeprefix("-i")]
    return ([given[2:]] if given[2:] else [after.text or ""]) if given.startswith("-I") else []


# A variable, or the number of an argument after a dollar sign or in ${!1}.
_NAMED = re.compile(IDENTIFIER.pattern + r"|(?:\$\{?!?|^!)([1-9@])")


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
