"""What the bash lexer finds: words, simple commands, and the places where bash itself would parse a value."""

from dataclasses import dataclass, field
from enum import StrEnum

from .placeholders import Hole, ValueFault, line_of


class Context(StrEnum):
    """How bash reads the text around a placeholder."""

    BARE = "bare"
    SINGLE = "single quotes"
    DOUBLE = "double quotes"
    HEREDOC = "here-document"
    COMMENT = "comment"
    REFUSED = "refused"


class NotUnderstood(ValueFault):
    """The lexer lost its way, so nothing can be promised about any placeholder of the command."""


_REFUSED = {
    "arithmetic": (
        "a placeholder inside arithmetic, where bash would run code hidden in the value",
        "do the sum in a program that gets the value as an argument",
    ),
    "test": (
        "a placeholder inside [[ … ]], which bash parses as patterns and arithmetic",
        "use [ … ] or case instead, as in: if [ {NAME} = yes ]; then …",
    ),
    "subscript": (
        "a placeholder inside an array subscript, which bash evaluates as arithmetic",
        "use a script, or name a file or directory with the value instead of an array element",
    ),
    "parameter": (
        "a placeholder inside ${…}",
        "put the value in a shell variable first, as in: X={NAME}; then use ${X…}",
    ),
    "backticks": ("a placeholder inside backticks", "write $(command {NAME}) instead of `command {NAME}`"),
    "ansi": ("a placeholder inside $'…'", "close the quotes around it, as in: $'a\\t'{NAME}$'\\n'"),
    "locale": ('a placeholder inside $"…"', 'write "…" without the dollar sign'),
    "quoted here-document": (
        "a placeholder in a here-document whose delimiter is quoted, where bash expands nothing",
        "pass it as an argument, as in: python3 - {NAME} <<'EOF', or write the delimiter without quotes",
    ),
    "delimiter": ("a placeholder in the delimiter of a here-document", "write a plain word such as EOF"),
    "descriptor": (
        "a placeholder behind >& or <&, which bash expands twice",
        "write > {NAME} 2>&1 or < {NAME}, for a file of that name",
    ),
    "backslash": (
        "a backslash directly before a placeholder",
        "remove the backslash, or write {{NAME}} for the text {NAME}",
    ),
    "name": (
        "a placeholder as the name of a loop variable or function",
        "write the name itself; a value can only be an argument",
    ),
}


def refusal(kind: str, text: str, hole: Hole) -> ValueFault:
    """The fault of a placeholder in a place of that kind, the fix written with the placeholder's own name."""
    what, fix = _REFUSED[kind]
    fix = fix.replace("{NAME}", hole.text)
    return ValueFault(f"{hole.text}: {what}", fix, offset=hole.start, line=line_of(text, hole.start))


@dataclass(slots=True)
class Placement:
    """A placeholder and the quotes around it; ``whole`` when it is a bare word of its own in a word list."""

    hole: Hole
    context: Context
    whole: bool = False


@dataclass(slots=True)
class Word:
    """One word as bash sees it before expansion.

    ``text`` is the word without its quotes, None where an expansion or a placeholder decides about it;
    ``prefix`` is the text before the first of these. ``assigned`` is NAME where the word reads ``NAME=…``.
    ``holes`` are its own placeholders, ``covers`` also those of the commands inside its ``$(…)``.
    ``expands`` are the shell variables used outside single quotes. ``active`` tells of unquoted glob, brace
    or tilde characters, ``slash`` of a ``/`` in the text.
    """

    start: int
    end: int = 0
    dynamic: bool = False
    quoted: bool = False
    active: bool = False
    slash: bool = False
    whole: bool = False
    assigned: str | None = None
    holes: list[Hole] = field(default_factory=list)
    covers: list[Hole] = field(default_factory=list)
    expands: list[str] = field(default_factory=list)
    _prefix: list[str] = field(default_factory=list)
    _tail: str | None = ""
    _plain: list[str] | None = field(default_factory=list)

    @property
    def prefix(self) -> str:
        return "".join(self._prefix)

    @property
    def text(self) -> str | None:
        return None if self.dynamic else self.prefix

    @property
    def tail(self) -> str:
        """The text after the last ``/``, empty where an expansion decides about it: the name of a program."""
        return self._tail or ""

    @property
    def plain(self) -> str:
        """The word as it is written, empty as soon as a quote or an expansion is part of it."""
        return "".join(self._plain or ())

    def literal(self, text: str, *, quoted: bool) -> None:
        """Adds text that stands for itself."""
        self.slash = self.slash or "/" in text
        if "/" in text:
            self._tail = text.rpartition("/")[2]
        elif self._tail is not None:
            self._tail += text
        if not self.dynamic:
            self._prefix.append(text)
        if quoted:
            self.quoted = True
            self._plain = None
        elif self._plain is not None:
            self._plain.append(text)

    def expansion(self, name: str = "") -> None:
        """Adds something that is known only when the command runs."""
        self.dynamic = True
        self._plain = self._tail = None
        if name:
            self.expands.append(name)

    def hole(self, hole: Hole, *, quoted: bool) -> None:
        """Adds a placeholder, or the text that its escape stands for."""
        if not hole.filled:
            self.literal(hole.text, quoted=quoted)
            return
        self.expansion()
        self.holes.append(hole)


@dataclass(slots=True)
class Redirect:
    """``op`` and its target; for a here-document ``holes`` and ``expands`` are those of its body."""

    op: str
    holes: list[Hole] = field(default_factory=list)
    expands: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Simple:
    """A simple command: assignments before it, its words, its redirections, all in order; ``source`` is the
    simple command that is piped into it, ``fed`` says that something larger is (a loop, a group), ``piped`` that its
    own output goes on into something."""

    start: int
    assigns: list[Word] = field(default_factory=list)
    words: list[Word] = field(default_factory=list)
    redirects: list[Redirect] = field(default_factory=list)
    source: "Simple | None" = None
    fed: bool = False
    piped: bool = False


@dataclass(frozen=True, slots=True)
class Region:
    """Text that bash parses as code of another kind, from ``start`` to ``end``."""

    kind: str
    start: int
    end: int


@dataclass(slots=True)
class Lexed:
    """What the lexer found, in the order of the text; ``functions`` are the names of those defined in it."""

    placements: list[Placement] = field(default_factory=list)
    simples: list[Simple] = field(default_factory=list)
    loops: list[tuple[Word, list[Word]]] = field(default_factory=list)
    regions: list[Region] = field(default_factory=list)
    functions: set[str] = field(default_factory=set)
    refusals: list[ValueFault] = field(default_factory=list)
