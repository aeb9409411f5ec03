"""Which quotes, commands and words of a bash command the placeholders stand in.

A lexer, not a parser: it follows bash closely enough to know, for each placeholder, what bash will do with
the text at that place. Three laws:
- Where it is not sure it raises ``NotUnderstood``; a guess about quotes would be a hole for injection.
- It changes nothing: it returns places (``Placement``) and simple commands (``Simple``) for others to judge.
- Places where bash itself would parse a value (arithmetic, ``[[ … ]]``, subscripts, ``${…}`` operators,
  backticks, ``$'…'``, here-documents with a quoted delimiter) are listed in ``refusals``.

The grammar is that of bash(1); what its manual leaves open was tried on bash 5.2 (tests/plans).
"""

import re
from collections.abc import Sequence

from .bashforms import Lexed, Simple, Word
from .bashlines import LineLexer
from .bashwords import META
from .placeholders import Hole

_DESCRIPTOR = re.compile(r"[0-9]+\Z|\{[A-Za-z_][A-Za-z0-9_]*\}\Z")
# After these words another command follows, or a compound command has ended and only an operator can follow.
_STEPS = frozenset({"if", "then", "elif", "else", "fi", "while", "until", "do", "done", "{", "}", "!"})
_CLAUSE = "esac"


def lex(text: str, holes: Sequence[Hole], into: Lexed | None = None) -> Lexed:
    """Places every hole of a bash command.

    Raises:
        NotUnderstood: the command has a form that this lexer does not follow; ``into`` then holds what came
            before that place.
    """
    lexer = _CommandLexer(text, holes, Lexed() if into is None else into)
    lexer.run()
    return lexer.found


class _CommandLexer(LineLexer):
    def __init__(self, text: str, holes: Sequence[Hole], found: Lexed) -> None:
        super().__init__(text, holes, found)
        self.pending = []

    def run(self) -> None:
        self._commands("")
        if self.pending:
            raise self.lost("a here-document without a body", "add its lines and its delimiter")

    def arithmetic(self, start: int) -> None:
        super().arithmetic(start)
        if self.pending and "\n" in self.text[start : self.pos]:
            raise self.lost("a line break inside (( … )) after <<", "put the here-document last", at=start)

    # -- lists of commands -------------------------------------------------------------------------

    def command_substitution(self, closer: str) -> None:
        """Reads a command list from ``pos`` to ``closer`` and past it."""
        start = self.pos
        outer = len(self.pending)
        self._nested(closer)
        if len(self.pending) != outer or (outer and "\n" in self.text[start : self.pos]):
            raise self.lost("a here-document that crosses $( … )", at=start)

    def _nested(self, closer: str) -> None:
        self.deeper()
        self._commands(closer)
        if closer and not self.at(closer):
            raise self.lost(f"a {closer} is missing", f"close it with {closer}")
        self.pos += len(closer)
        self.depth -= 1

    def _commands(self, closer: str) -> bool:
        """Reads commands up to ``closer``: nothing for the end of the text, ``)``, or ``esac`` for one clause
        of a case, which also ends at ``;;``. Says whether it ended at the word ``esac`` and is past it."""
        before: Simple | None = None  # the command whose output goes into the next one
        fed = False  # a loop's or a group's does
        while True:
            self.blanks()
            char = self.peek()
            if char == "":
                return False
            if char == "\n":
                self.newline()
            elif char == "#":
                self.comment()
            elif char == ")":
                if closer != ")":
                    raise self.lost("a ) without its partner", "remove it or quote it")
                return False
            elif char == ";":
                if self.peek(2) in (";;", ";&"):
                    if closer != _CLAUSE:
                        raise self.lost(";; outside a case", "write a single ;")
                    return False
                self.pos += 1
                before = None
            elif char == "|" or (char == "&" and self.peek(2) != "&>"):
                fed = char == "|" and self.peek(2) != "||" and before is None
                before = self._operator(before)
            elif char == "(":
                self._parenthesis()
                before = None
            else:
                simple, fed = Simple(self.pos, fed=fed), False
                if self._command(simple, closer):
                    return True
                before = self._record(simple, before)

    def _record(self, simple: Simple, before: Simple | None) -> Simple | None:
        if not (simple.words or simple.assigns or simple.redirects):
            return None
        self.found.simples.append(simple)
        simple.source = before
        return simple

    def _operator(self, before: Simple | None) -> Simple | None:
        """Past ``|``, ``|&``, ``||``, ``&`` or ``&&``; returns what is piped into the next command."""
        two = self.peek(2)
        self.pos += 2 if two in ("||", "|&", "&&") else 1
        if two[0] != "|" or two == "||":
            return None
        if before:
            before.piped = True
        return before

    def _parenthesis(self) -> None:
        start = self.pos
        self.pos += 1
        if self.at("\\\n"):
            raise self.lost("a line break directly after (")
        if self.at("("):
            self.pos += 1
            self.arithmetic(start)
            return
        self._nested(")")

    # -- one command -------------------------------------------------------------------------------

    def _command(self, simple: Simple, closer: str) -> bool:
        """Reads a simple command, or a reserved word and what belongs to it; True at ``esac`` of a clause."""
        while True:
            self.blanks()
            char = self.peek()
            if self.redirect(simple):
                continue
            if char in ("", "\n", ";", "&", "|", ")"):
                return False
            if char == "#":
                self.comment()
                return False
            if char == "(":
                self._function_parentheses(simple)
                return False
            first = not (simple.words or simple.assigns)
            word = self.guarded_word(listed=True, assigning=not simple.words)
            if first and not simple.redirects and word.plain and self._reserved(word.plain):
                return self._reserved_word(word.plain, closer)
            if word.plain and self.peek() in ("<", ">") and _DESCRIPTOR.match(word.plain):
                continue
            if word.assigned and not simple.words:
                simple.assigns.append(word)
            else:
                simple.words.append(word)

    def _function_parentheses(self, simple: Simple) -> None:
        if len(simple.words) != 1 or simple.assigns or simple.redirects:
            raise self.lost("a ( in the middle of a command", "quote it")
        self._empty_parentheses()
        self.refuse("name", simple.words[0].start, simple.words[0].end)
        self.found.functions.add(simple.words[0].text or "")
        simple.words.clear()

    def _empty_parentheses(self) -> None:
        self.pos += 1
        self.blanks()
        if self.peek() != ")":
            raise self.lost("a ( in the middle of a command", "quote it")
        self.pos += 1

    def _reserved(self, word: str) -> bool:
        return word in _STEPS or word in (
            "for",
            "select",
            "case",
            _CLAUSE,
            "function",
            "[[",
            "time",
            "coproc",
        )

    def _reserved_word(self, word: str, closer: str) -> bool:
        if word == _CLAUSE:
            if closer != _CLAUSE:
                raise self.lost("esac outside a case", "remove it or quote it")
            return True
        if word in ("for", "select"):
            self._for()
        elif word == "case":
            self._case()
        elif word == "function":
            self.blanks()
            name = self.guarded_word()
            self.refuse("name", name.start, name.end)
            self.found.functions.add(name.text or "")
            self.blanks()
            if self.peek() == "(":
                self._empty_parentheses()
        elif word == "[[":
            self._condition()
        elif word == "time":
            self._time_options()
        elif word == "coproc":
            raise self.lost("coproc", "use a pipe or a command in the background")
        return False

    def _time_options(self) -> None:
        while True:
            self.blanks()
            option = re.compile(r"(?:-p|--)(?=[ \t\n;&|)]|\Z)").match(self.text, self.pos, self.end)
            if option is None:
                return
            self.pos = option.end()

    def _for(self) -> None:
        self.blanks()
        if self.at("(("):
            start = self.pos
            self.pos += 2
            self.arithmetic(start)
            return
        name = self.guarded_word()
        self.refuse("name", name.start, name.end)
        self.gap()
        if not self._take("in"):
            return
        words: list[Word] = []
        while True:
            self.blanks()
            char = self.peek()
            if char == "#":
                self.comment()
            elif char == "" or char in META:
                break
            else:
                words.append(self.guarded_word(listed=True))
        self.found.loops.append((name, words))

    def _take(self, keyword: str) -> bool:
        """Past the keyword, when it is the next word."""
        after = self.pos + len(keyword)
        if not self.at(keyword) or (after < self.end and self.text[after] not in META):
            return False
        self.pos = after
        return True

    def _case(self) -> None:
        self.deeper()
        self.blanks()
        self.guarded_word()
        self.gap()
        if not self._take("in"):
            raise self.lost("a case without in", "write: case WORD in PATTERN) … ;; esac")
        while True:
            self.gap()
            if self._take(_CLAUSE):
                break
            self._patterns()
            if self._commands(_CLAUSE):
                break
            if self.peek() != ";":
                raise self.lost("a case without esac", "end it with esac")
            self.pos += 3 if self.at(";;&") else 2
        self.depth -= 1

    def _patterns(self) -> None:
        if self.peek() == "(":
            self.pos += 1
        while True:
            self.blanks()
            if self.peek() == "" or self.peek() in META:
                raise self.lost("a case pattern", "write: PATTERN) … ;;")
            self.guarded_word(compound=False)
            self.blanks()
            ending = self.peek()
            self.pos += 1
            if ending == ")":
                return
            if ending != "|":
                raise self.lost("a case pattern that does not end in )", "write: PATTERN) … ;;")

    def _condition(self) -> None:
        """``[[ … ]]``, ``pos`` being after its first brackets."""
        start = self.pos - 2
        while True:
            before = self.pos
            self.blanks()
            char = self.peek()
            if char == "":
                raise self.lost("the [[ has no ]]", "close it with ]]", at=start)
            if char == "#" and self.pos > before:
                raise self.lost("a # inside [[ … ]]", "quote it")
            if self._take("]]"):
                break
            if char in META and not (char in "<>" and self.at(char + "(")):
                self.pos += 1
            else:
                self.word(compound=False)
        if self.pending and "\n" in self.text[start : self.pos]:
            raise self.lost("a line break inside [[ … ]] after <<", "put the here-document last", at=start)
        self.region("test", start, self.pos)

    def array(self, word: Word) -> None:
        """Reads the words of ``NAME=( … )`` from ``pos``, which is at the parenthesis, and past it."""
        start = self.pos
        self.pos += 1
        self.deeper()
        while True:
            self._gap_in_array(start)
            if self.peek() == ")":
                break
            element_start = self.pos
            if self.peek() == "[":
                bracket = Word(self.pos)
                self.subscript(bracket)
            if self.pos == element_start or (self.peek() and self.peek() not in META):
                element = self.word(listed=self.pos == element_start, compound=False)
                if element.end == element_start:
                    raise self.lost("an operator inside ( … )", "quote it")
                word.holes += element.holes
                word.expands += element.expands
        self.pos += 1
        self.depth -= 1

    def _gap_in_array(self, start: int) -> None:
        while True:
            self.blanks()
            if self.peek() == "":
                raise self.lost("the ( has no partner", "close it with )", at=start)
            if self.peek() == "#":
                self.comment()
            elif self.peek() == "\n":
                self.pos += 1
            else:
                return
