"""What one Python file is made of, from its bytes alone. Pure: no disk, no clock.

Lines are of four kinds that add up to ``lines``: code, docstring, comment, blank. A line with code and a
comment is code; a blank line inside a docstring is docstring.

Complexity counts ways through: a function starts at 1 and every branch, loop, handler, condition of a
comprehension, ``case`` and further operand of ``and``/``or`` adds 1. A function in another counts by itself.
"""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

SCHEMA = "code_census.measure/1"
MAX_PARSED_BYTES = 4 * 1024 * 1024  # the parser needs about a hundred times the file in memory

_Function = ast.FunctionDef | ast.AsyncFunctionDef
_BRANCHES = (ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.match_case)
_SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


@dataclass(slots=True)
class Scope:
    """A function, or the module itself (``name`` empty): what of the complexity belongs to it alone."""

    name: str
    line: int = 1
    lines: int = 0
    complexity: int = 0


@dataclass(slots=True)
class Findings:
    """What the walk over one syntax tree brings home."""

    scopes: list[Scope] = field(default_factory=list)
    classes: int = 0
    documentable: int = 0
    documented: int = 0
    imports: set[str] = field(default_factory=set)
    docstrings: list[tuple[int, int, int]] = field(default_factory=list)  # first line, column, last line


def measure(data: bytes) -> dict[str, Any]:
    """Measure one file.

    Never fails on what the bytes are: a file that cannot be decoded or parsed has its lines counted by their
    first character, zeros for the rest, and ``problem`` says why.

    Returns:
        A JSON-ready dict of numbers, with ``longest`` and ``heaviest`` as {name, line, lines, complexity} or
        None, ``imports`` sorted (a leading dot for each level of a relative one), ``problem`` text or None.
    """
    text, problem = _decode(data)
    tree: ast.Module | None = None
    if problem is None:
        tree, problem = _parse(text, len(data))
    found = _walk(tree) if tree is not None else Findings()
    kinds = _line_kinds(text, found.docstrings) if tree is not None else None
    if kinds is None:
        kinds = _line_kinds_by_prefix(text)
    functions = [scope for scope in found.scopes if scope.name]
    return {
        "schema": SCHEMA,
        "sha256": hashlib.sha256(data).hexdigest(),
        "bytes": len(data),
        **kinds,
        "functions": len(functions),
        "classes": found.classes,
        "complexity": sum(scope.complexity for scope in found.scopes),
        "longest": _as_dict(max(functions, key=lambda f: (f.lines, -f.line), default=None)),
        "heaviest": _as_dict(max(functions, key=lambda f: (f.complexity, -f.line), default=None)),
        "documentable": found.documentable,
        "documented": found.documented,
        "imports": sorted(found.imports),
        "problem": problem,
    }


def unreadable(reason: str) -> dict[str, Any]:
    """The measure of a file that is gone or may not be read: zeros, and the reason."""
    return {**measure(b""), "sha256": None, "problem": reason}


def _as_dict(scope: Scope | None) -> dict[str, Any] | None:
    if scope is None:
        return None
    return {"name": scope.name, "line": scope.line, "lines": scope.lines, "complexity": scope.complexity}


def _decode(data: bytes) -> tuple[str, str | None]:
    """The text with ``\\n`` line ends, and why the declared encoding could not be used, if so."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text, problem = data.decode(encoding), None
    except UnicodeDecodeError as error:
        text = data.decode("latin-1")
        problem = f"not {error.encoding} text: byte 0x{data[error.start]:02x} at offset {error.start}"
    except (SyntaxError, LookupError):
        # No UTF-8 in the first two lines, a name that no codec has, or a codec that gives no text.
        text, problem = data.decode("latin-1"), "not UTF-8, and no usable encoding declared"
    return text.replace("\r\n", "\n").replace("\r", "\n"), problem


def _parse(text: str, size: int) -> tuple[ast.Module | None, str | None]:
    if size > MAX_PARSED_BYTES:
        return None, f"not parsed: {size} bytes are more than {MAX_PARSED_BYTES}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a stray escape in somebody's string is not our news
            return ast.parse(text), None
    except SyntaxError as error:
        return None, f"does not parse: line {error.lineno or 0}: {error.msg}"
    except (RecursionError, MemoryError):
        # The parser's own words for its stack limit; they differ between versions of Python.
        return None, "does not parse: nested too deeply"
    except ValueError as error:
        return None, f"does not parse: {error}"


def _walk(tree: ast.Module) -> Findings:
    """One pass over the tree, with a stack of our own: generated code can nest deeper than Python calls."""
    module = Scope("")
    found = Findings(scopes=[module])
    stack: list[tuple[ast.AST, str, Scope, bool]] = [(tree, "", module, True)]
    while stack:
        node, name, scope, public = stack.pop()
        for child in ast.iter_child_nodes(node):
            if isinstance(child, _Function | ast.ClassDef):
                child_name = f"{name}.{child.name}" if name else child.name
                child_public = public and not child.name.startswith("_")
                _note_docstring(found, child, child_public)
                if isinstance(child, ast.ClassDef):
                    found.classes += 1
                    stack.append((child, child_name, scope, child_public))
                else:
                    inner = Scope(
                        child_name, child.lineno, (child.end_lineno or child.lineno) - child.lineno + 1, 1
                    )
                    found.scopes.append(inner)
                    # What is defined inside a function is nobody's public name.
                    stack.append((child, child_name, inner, False))
                continue
            scope.complexity += _ways(child)
            found.imports.update(_imported(child))
            stack.append((child, name, scope, public))
    if tree.body:
        _note_docstring(found, tree, True)
    return found


def _ways(node: ast.AST) -> int:
    if isinstance(node, _BRANCHES):
        return 1
    if isinstance(node, ast.BoolOp):
        return len(node.values) - 1
    if isinstance(node, ast.comprehension):
        return 1 + len(node.ifs)
    return 0


def _imported(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield alias.name
    elif isinstance(node, ast.ImportFrom):
        base = "." * node.level + (node.module or "")
        for alias in node.names:
            yield base + alias.name if base.endswith(".") or not base else f"{base}.{alias.name}"


def _note_docstring(found: Findings, node: ast.Module | ast.ClassDef | _Function, public: bool) -> None:
    first = node.body[0] if node.body else None
    has_one = (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
    if public:
        found.documentable += 1
        found.documented += has_one
    if has_one and first is not None:
        found.docstrings.append((first.lineno, first.col_offset, first.end_lineno or first.lineno))


def _line_kinds(text: str, docstrings: list[tuple[int, int, int]]) -> dict[str, int] | None:
    """The four kinds by token, or None when the tokenizer stumbles over what the parser took."""
    starts = {(line, column) for line, column, _ in docstrings}
    code: set[int] = set()
    comment: set[int] = set()
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                comment.add(token.start[0])
            elif token.type not in _SILENT and token.start not in starts:
                code.update(range(token.start[0], token.end[0] + 1))
    except (tokenize.TokenError, SyntaxError):
        return None
    doc = {n for first, _, last in docstrings for n in range(first, last + 1)} - code
    comment -= code | doc
    lines = _count_lines(text)
    used = len(code) + len(doc) + len(comment)
    return {
        "lines": lines,
        "code": len(code),
        "doc": len(doc),
        "comment": len(comment),
        "blank": lines - used,
    }


def _line_kinds_by_prefix(text: str) -> dict[str, int]:
    lines = [line.strip() for line in text.split("\n")[: _count_lines(text)]]
    blank = lines.count("")
    comment = sum(line.startswith("#") for line in lines)
    code = len(lines) - blank - comment
    return {"lines": len(lines), "code": code, "doc": 0, "comment": comment, "blank": blank}


def _count_lines(text: str) -> int:
    return text.count("\n") + (not text.endswith("\n") and text != "")
