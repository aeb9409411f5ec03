"""How bash reads one word: its quotes, its ``$…``, its backticks, and the placeholders among them.

Where the reading is not certain this raises ``NotUnderstood``: a guess about quotes is a hole for injection.
"""

import re
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from enum import Enum, auto

from .bashforms import Context, Lexed, NotUnderstood, Placement, Region, Word, refusal
from .placeholders import Hole, line_of

MAX_DEPTH = 40
META = frozenset(" \t\n;&|<>()")
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_ASSIGNED = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?:\[\])?\+?\Z")
_COMPOUND = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\+?=\Z")
# Text without a meaning of its own, read in one step.
_BARE_RUN = re.compile(r"[A-Za-z0-9_./:,%@^-]+")
_QUOTED_RUN = re.compile(r"[^\"\\$`{]+")
_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*|[1-9@*]")
_POSITIONAL = frozenset("123456789@*")
_SPECIAL_PARAMETERS = frozenset("0123456789@*#?-$!")
_ACTIVE = frozenset("{}*?[]~")
_USE_SCRIPT = "move that part to a script and call it with the values as arguments"


class Quote(Enum):
    """The text that a ``$`` or a backtick stands in; it decides what a quote character means there."""

    BARE = auto()
    DOUBLE = auto()
    HEREDOC = auto()


_CONTEXT = {Quote.BARE: Context.BARE, Quote.DOUBLE: Context.DOUBLE, Quote.HEREDOC: Context.HEREDOC}


class WordLexer(ABC):
    """Reads words of ``text`` from ``pos`` on; ``end`` is where the text ends for the part being read."""

    def __init__(self, text: str, holes: Sequence[Hole], found: Lexed) -> None:
        self.text = text
        self.pos = 0
        self.end = len(text)
        self.depth = 0
        self.found = found
        self._holes = {hole.start: hole for hole in holes}
        self._starts = sorted(self._holes)

    @abstractmethod
    def command_substitution(self, closer: str) -> None:
        """Reads a command list from ``pos`` to ``closer`` and past it."""

    @abstractmethod
    def array(self, word: Word) -> None:
        """Reads the words of ``NAME=( … )`` from ``pos``, which is at the parenthesis, and past it."""

    # -- the text ----------------------------------------------------------------------------------

    def lost(self, what: str, fix: str = _USE_SCRIPT, *, at: int | None = None) -> NotUnderstood:
        """The fault of a form that is not followed."""
        offset = min(self.pos if at is None else at, len(self.text))
        what = f"placeholders in a command that is not understood here: {what}"
        return NotUnderstood(what, fix, offset=offset, line=line_of(self.text, offset))

    def peek(self, length: int = 1) -> str:
        """The next characters, fewer or none at the end."""
        return self.text[self.pos : min(self.pos + length, self.end)]

    def at(self, start: str) -> bool:
        return self.text.startswith(start, self.pos, self.end)

    def hole(self) -> Hole | None:
        """The placeholder that begins here."""
        return self._holes.get(self.pos)

    def holes_between(self, start: int, end: int) -> list[Hole]:
        """The placeholders that begin at ``start`` or later, before ``end``."""
        return [
            self._holes[at]
            for at in self._starts[bisect_left(self._starts, start) : bisect_left(self._starts, end)]
        ]

    def refuse(self, kind: str, start: int, end: int) -> list[Hole]:
        """Notes that the placeholders between the two offsets stand where bash would parse their values."""
        holes = [hole for hole in self.holes_between(start, end) if hole.filled]
        for hole in holes:
            self.found.placements.append(Placement(hole, Context.REFUSED))
            self.found.refusals.append(refusal(kind, self.text, hole))
        return holes

    def region(self, kind: str, start: int, end: int) -> None:
        """Notes code of another kind and refuses the placeholders in it."""
        self.found.regions.append(Region(kind, start, end))
        self.refuse(kind, start, end)

    def deeper(self) -> None:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self.lost(f"more than {MAX_DEPTH} levels of nesting")

    def close_of(self, quote: str, start: int) -> int:
        """The offset of the next ``quote`` from ``pos`` on."""
        close = self.text.find(quote, self.pos, self.end)
        if close < 0:
            raise self.lost(f"the {quote} has no partner", f"close it with another {quote}", at=start)
        return close

    # -- words -------------------------------------------------------------------------------------

    def word(self, *, listed: bool = False, assigning: bool = False, compound: bool = True) -> Word:
        """The word at ``pos``, which is not a blank or an operator.

        ``listed``: it stands in a list of words, so a list-valued key may become several. ``assigning``: bash
        takes ``NAME[…]`` for an array element here. ``compound``: ``NAME=(`` begins an array.
        """
        word = Word(self.pos)
        while self.pos < self.end:
            char = self.text[self.pos]
            if char in META and not self._meta_in_word(char, word, compound):
                break
            if char not in META:
                self._bare(char, word, assigning)
        word.end = self.pos
        word.covers = [hole for hole in self.holes_between(word.start, word.end) if hole.filled]
        if (
            listed
            and len(word.holes) == 1
            and (word.start, word.end) == (word.holes[0].start, word.holes[0].end)
        ):
            word.whole = True
            self.found.placements[-1].whole = True
        return word

    def _meta_in_word(self, char: str, word: Word, compound: bool) -> bool:
        """Whether an operator's character goes on with the word, and then reads that part."""
        if char in "<>" and self.at(char + "("):
            word.expansion()
            self.pos += 2
            self.command_substitution(")")
            return True
        if char == "(" and compound and _COMPOUND.match(word.plain):
            word.expansion()
            self.array(word)
            return True
        return False

    def _bare(self, char: str, word: Word, assigning: bool) -> None:
        hole = self.hole()
        if hole:
            self._place(hole, word, Quote.BARE)
        elif char == "\\":
            self._backslash(word)
        elif char == "'":
            self._single(word)
        elif char == '"':
            self.pos += 1
            self.double(word)
        elif char == "$":
            self.dollar(word, Quote.BARE)
        elif char == "`":
            self.backticks(word, Quote.BARE)
        elif char == "[" and self._opens_subscript(word, assigning):
            self.subscript(word)
        else:
            self._bare_text(char, word)

    def _bare_text(self, char: str, word: Word) -> None:
        if char == "=" and word.assigned is None:
            # Only the first = can end the name of an assignment.
            name = _ASSIGNED.match(word.plain)
            word.assigned = name.group(1) if name else ""
        word.active = word.active or char in _ACTIVE
        run = _BARE_RUN.match(self.text, self.pos, self.end)
        text = run.group() if run else char
        word.literal(text, quoted=False)
        self.pos += len(text)

    def _opens_subscript(self, word: Word, assigning: bool) -> bool:
        return assigning and not word.active and NAME.fullmatch(word.plain) is not None

    def _place(self, hole: Hole, word: Word, quote: Quote) -> None:
        if hole.filled:
            self.found.placements.append(Placement(hole, _CONTEXT[quote]))
        word.hole(hole, quoted=quote is not Quote.BARE)
        self.pos = hole.end

    def _backslash(self, word: Word) -> None:
        """A backslash outside quotes: it takes the next character, or joins two lines."""
        if self.pos + 1 >= self.end:
            raise self.lost("it ends in a backslash", "remove the backslash")
        if self.text[self.pos + 1] != "\n":
            word.literal(self.text[self.pos + 1], quoted=True)
        self._escape()

    def _escape(self) -> None:
        """Past a backslash and its character; a placeholder there would lose its own quotes."""
        hole = self._holes.get(self.pos + 1)
        if hole is None:
            self.pos += 2
            return
        if hole.filled:
            self.refuse("backslash", hole.start, hole.end)
        self.pos = hole.end

    def _single(self, word: Word) -> None:
        start = self.pos
        self.pos += 1
        close = self.close_of("'", start)
        for hole in self.holes_between(self.pos, close):
            word.literal(self.text[self.pos : hole.start], quoted=True)
            if hole.filled:
                self.found.placements.append(Placement(hole, Context.SINGLE))
            word.hole(hole, quoted=True)
            self.pos = hole.end
        word.literal(self.text[self.pos : close], quoted=True)
        self.pos = close + 1

    def double(self, word: Word) -> None:
        """The rest of a double-quoted string, ``pos`` being after its first quote."""
        start = self.pos - 1
        word.literal("", quoted=True)
        while self.pos < self.end:
            char = self.text[self.pos]
            if char == '"':
                self.pos += 1
                return
            self.inside(char, word, Quote.DOUBLE)
        raise self.lost('the " has no partner', 'close it with another "', at=start)

    def inside(self, char: str, word: Word, quote: Quote) -> None:
        """One step through the text of a double-quoted string or an unquoted here-document."""
        hole = self.hole()
        if hole:
            self._place(hole, word, quote)
        elif char == "\\":
            if self.pos + 1 >= self.end:
                raise self.lost("it ends in a backslash", "remove the backslash")
            escaped = self.text[self.pos + 1]
            if escaped != "\n":
                word.literal(escaped if escaped in '$`"\\' else char + escaped, quoted=True)
            self._escape()
        elif char == "$":
            self.dollar(word, quote)
        elif char == "`":
            self.backticks(word, quote)
        else:
            run = _QUOTED_RUN.match(self.text, self.pos, self.end)
            text = run.group() if run else char
            word.literal(text, quoted=True)
            self.pos += len(text)

    # -- expansions --------------------------------------------------------------------------------

    def dollar(self, word: Word, quote: Quote) -> None:
        """A dollar sign and what belongs to it."""
        start = self.pos
        self.pos += 1
        char = self.peek()
        if char == "\\" and self.peek(2) == "\\\n":
            raise self.lost("a line break directly after $")
        if char == "(":
            self._dollar_parenthesis(word, start)
        elif char == "{":
            self.deeper()
            self._parameter(word, quote)
            self.depth -= 1
        elif char == "[":
            word.expansion()
            self.pos += 1
            self._brackets("arithmetic", start, quote)
        elif char in ("'", '"') and quote is Quote.BARE:
            self._dollar_quote(char, word, start)
        elif name := NAME.match(self.text, self.pos, self.end):
            word.expansion(name.group())
            self.pos = name.end()
        elif char and char in _SPECIAL_PARAMETERS:
            word.expansion(char if char in _POSITIONAL else "")
            self.pos += 1
        else:
            word.literal("$", quoted=quote is not Quote.BARE)

    def _dollar_parenthesis(self, word: Word, start: int) -> None:
        word.expansion()
        self.pos += 1
        if self.at("("):
            self.pos += 1
            self.arithmetic(start)
            return
        if self.at("\\\n"):
            raise self.lost("a line break directly after $(")
        self.command_substitution(")")

    def _dollar_quote(self, char: str, word: Word, start: int) -> None:
        word.expansion()
        self.pos += 1
        if char == '"':
            inner = Word(start)
            self.deeper()
            self.double(inner)
            self.depth -= 1
            self.region("locale", start, self.pos)
            return
        while self.pos < self.end and self.text[self.pos] != "'":
            self.pos += 2 if self.text[self.pos] == "\\" else 1
        if self.pos >= self.end:
            raise self.lost("the $' has no partner", "close it with another '", at=start)
        self.pos += 1
        self.region("ansi", start, self.pos)

    def arithmetic(self, start: int) -> None:
        """The rest of ``((…))``, ``pos`` being after both parentheses."""
        inner = Word(start)
        level = 0
        self.deeper()
        while self.pos < self.end:
            char = self.text[self.pos]
            if char == ")" and level == 0:
                if not self.at("))"):
                    raise self.lost(
                        "(( that does not end in ))", "put a space between the parentheses: ( ( …", at=start
                    )
                self.pos += 2
                self.depth -= 1
                self.region("arithmetic", start, self.pos)
                return
            level += (char == "(") - (char == ")")
            self._code(char, inner, Quote.DOUBLE)
        raise self.lost("(( that does not end in ))", "put a space between the parentheses: ( ( …", at=start)

    def _code(self, char: str, inner: Word, quote: Quote) -> None:
        """One step through arithmetic, a subscript or the inside of ``${…}``."""
        if char == "'" and quote is not Quote.BARE:
            # Whether bash takes this for a quote depends on the operator around it.
            raise self.lost("a single quote inside arithmetic, a subscript or ${…} in double quotes")
        if char == '"' and quote is Quote.HEREDOC:
            raise self.lost("a double quote inside ${…} or arithmetic of a here-document")
        if char == "'":
            self._single(inner)
        elif char == '"':
            self.pos += 1
            self.double(inner)
        elif char == "\\":
            self.pos = min(self.pos + 2, self.end)
        elif char == "$":
            self.dollar(inner, quote)
        elif char == "`":
            self.backticks(inner, quote)
        else:
            self.pos += 1

    def _parameter(self, word: Word, quote: Quote) -> None:
        """``${…}``, ``pos`` being at its brace."""
        start = self.pos - 1
        self.pos += 1
        if self.peek() in ("", " ", "\t", "\n", "|", "\\"):
            raise self.lost("${ that is not followed by a name", at=start)
        name = _PARAMETER.match(self.text, self.pos + (self.peek() in "#!"), self.end)
        word.expansion(name.group() if name else "")
        inner = Word(self.pos)
        while self.pos < self.end:
            char = self.text[self.pos]
            if char == "}":
                self.pos += 1
                word.expands += inner.expands
                self.region("parameter", start, self.pos)
                return
            self._code(char, inner, quote)
        raise self.lost("the ${ has no partner", "close it with }", at=start)

    def subscript(self, word: Word) -> None:
        """``[…]`` of an array element, ``pos`` being at the bracket."""
        start = self.pos
        self.pos += 1
        self._brackets("subscript", start, Quote.BARE)
        word.literal("[]", quoted=False)

    def _brackets(self, kind: str, start: int, quote: Quote) -> None:
        inner = Word(start)
        level = 0
        self.deeper()
        while self.pos < self.end:
            char = self.text[self.pos]
            if char == "]" and level == 0:
                self.pos += 1
                self.depth -= 1
                self.region(kind, start, self.pos)
                return
            level += (char == "[") - (char == "]")
            self._code(char, inner, quote)
        raise self.lost("the [ has no partner", "close it with ]", at=start)

    def backticks(self, word: Word, quote: Quote) -> None:
        """`` `…` ``: bash ends it at the next backtick without a backslash, whatever quotes are inside."""
        start = self.pos
        word.expansion()
        self.pos += 1
        while self.pos < self.end and self.text[self.pos] != "`":
            self.pos += 2 if self.text[self.pos] == "\\" else 1
        if self.pos >= self.end:
            raise self.lost("the ` has no partner", "write $( … ) instead", at=start)
        self.pos += 1
        self.region("backticks", start, self.pos)
