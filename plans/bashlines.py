"""Redirections, here-documents, and the line breaks after which the bodies of here-documents begin."""

import re
from dataclasses import dataclass

from .bashforms import Redirect, Region, Simple, Word
from .bashwords import META, Quote, WordLexer

_OPERATOR = re.compile(r"&>>|&>|<<<|<<-|<<|<&|<>|<|>>|>\||>&|>")


@dataclass(slots=True)
class _Heredoc:
    delimiter: str
    quoted: bool
    strip_tabs: bool
    redirect: Redirect


class LineLexer(WordLexer):
    """Reads what stands between words: blanks, comments, line breaks and redirections."""

    # Here-documents whose operator has been read and whose body begins after the next line break.
    pending: list[_Heredoc]

    def blanks(self) -> None:
        while self.pos < self.end:
            if self.text[self.pos] in " \t":
                self.pos += 1
            elif self.at("\\\n"):
                self.pos += 2
            else:
                return

    def comment(self) -> None:
        close = self.text.find("\n", self.pos, self.end)
        start, self.pos = self.pos, self.end if close < 0 else close
        self.found.regions.append(Region("comment", start, self.pos))

    def newline(self) -> None:
        self.pos += 1
        pending, self.pending = self.pending, []
        for heredoc in pending:
            self._body(heredoc)

    def gap(self) -> None:
        """Past blanks, line breaks and comments."""
        while True:
            self.blanks()
            char = self.peek()
            if char == "\n":
                self.newline()
            elif char == "#":
                self.comment()
            else:
                return

    def guarded_word(self, *, listed: bool = False, assigning: bool = False, compound: bool = True) -> Word:
        """A word; a line break inside it may not hide the body of a here-document that waits for its line."""
        word = self.word(listed=listed, assigning=assigning, compound=compound)
        if self.pending and "\n" in self.text[word.start : word.end]:
            raise self.lost(
                "a line break inside a word after <<", "put the here-document last", at=word.start
            )
        return word

    def redirect(self, simple: Simple) -> bool:
        """Past a redirection, when one begins here. ``<(`` and ``>(`` begin a word instead."""
        operator = _OPERATOR.match(self.text, self.pos, self.end)
        if operator is None or (operator.group() in "<>" and self.text.startswith("(", operator.end())):
            return False
        self.pos = operator.end()
        if self.at("\\\n"):
            raise self.lost("a line break directly after " + operator.group())
        self.blanks()
        if self.peek() == "" or (self.peek() in META and not (self.at("<(") or self.at(">("))):
            raise self.lost(f"{operator.group()} without a target", "name a file after it")
        target = self.guarded_word()
        redirect = Redirect(operator.group(), target.covers, target.expands)
        if operator.group() in (">&", "<&"):
            self.refuse("descriptor", target.start, target.end)
        if operator.group() in ("<<", "<<-"):
            self._delimiter(redirect, target)
        simple.redirects.append(redirect)
        return True

    def _delimiter(self, redirect: Redirect, target: Word) -> None:
        holes = self.holes_between(target.start, target.end)
        if holes:
            self.refuse("delimiter", target.start, target.end)
        if holes or not target.text or set(target.text) & set("\n{"):
            raise self.lost(
                "the delimiter of a here-document", "write a plain word such as EOF", at=target.start
            )
        redirect.holes, redirect.expands = [], []
        self.pending.append(_Heredoc(target.text, target.quoted, redirect.op == "<<-", redirect))

    def _body(self, heredoc: _Heredoc) -> None:
        """Reads the lines of a here-document and its delimiter, ``pos`` being at the start of a line."""
        start = at = self.pos
        while at < self.end:
            line_start = at
            at, line = self._line(at, joined=not heredoc.quoted)
            if (line.lstrip("\t") if heredoc.strip_tabs else line) == heredoc.delimiter:
                self._body_text(heredoc, start, line_start)
                self.pos = at
                return
        raise self.lost(
            f"the here-document has no line {heredoc.delimiter}",
            "add its delimiter on a line of its own",
            at=start,
        )

    def _line(self, at: int, *, joined: bool) -> tuple[int, str]:
        """The line at ``at`` and the offset after it; where ``joined``, a backslash at its end adds the next."""
        line = ""
        while True:
            close = self.text.find("\n", at, self.end)
            physical = self.text[at : self.end if close < 0 else close]
            at = self.end if close < 0 else close + 1
            slashes = len(physical) - len(physical.rstrip("\\"))
            if not joined or slashes % 2 == 0 or close < 0:
                return at, line + physical
            line += physical[:-1]

    def _body_text(self, heredoc: _Heredoc, start: int, end: int) -> None:
        if heredoc.quoted:
            self.region("quoted here-document", start, end)
            return
        outer_end, outer_pending = self.end, self.pending
        self.pos, self.end, self.pending = start, end, []
        body = Word(start)
        while self.pos < self.end:
            self.inside(self.text[self.pos], body, Quote.HEREDOC)
        if self.pending:
            raise self.lost("a here-document inside another", at=start)
        self.end, self.pending = outer_end, outer_pending
        heredoc.redirect.holes = [hole for hole in self.holes_between(start, end) if hole.filled]
        heredoc.redirect.expands = body.expands
