#!/usr/bin/env python3
"""Choose documented functions and classes of the standard library: <out>/texts/<id>.txt and <out>/manifest.json.

    choose.py --count N --out FOLDER

One of each module, in an order that looks random and is the same on every run. The source is read, nothing imported.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import sys
import sysconfig
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True  # scripts/ is a read-only copy on a rig
sys.path.insert(0, str(Path(__file__).resolve().parent))

from files import DigestError, write_json, write_text  # noqa: E402

MAX_COUNT = 500
LEAST_CHARS, MOST_CHARS = 160, 900  # a sentence or two at least; what a small context holds at most
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)


def main() -> None:
    parser = argparse.ArgumentParser(description="Choose docstrings of the standard library.")
    parser.add_argument("--count", required=True, help=f"how many, 1 to {MAX_COUNT}")
    parser.add_argument("--out", required=True, type=Path, help="the folder of this run")
    given = parser.parse_args()
    try:
        items = choose(Path(sysconfig.get_paths()["stdlib"]), read_count(given.count), given.out)
        write_json(given.out / "manifest.json", {"items": items, "python": sys.version.split()[0]})
    except (DigestError, OSError) as error:
        raise SystemExit(f"choose: {error}") from None
    print(f"choose: {', '.join(item['name'] for item in items)}")


def read_count(text: str) -> int:
    """COUNT as a number."""
    if not text.isdecimal() or not 1 <= int(text) <= MAX_COUNT:
        raise DigestError(f"COUNT is {text[:20]!r}; set a whole number from 1 to {MAX_COUNT}")
    return int(text)


def choose(library: Path, count: int, out: Path) -> list[dict[str, Any]]:
    """Write the texts; the list of them."""
    modules = [path for path in library.glob("*.py") if not path.name.startswith(("_", "test"))]
    modules.sort(key=lambda path: hashlib.sha256(path.stem.encode()).digest())
    items = []
    for path in modules:
        found = best_docstring(path)
        if found is not None:
            name, text = found
            write_text(out / "texts" / f"{name}.txt", text + "\n")
            items.append({"id": name, "name": name, "module": path.stem, "chars": len(text)})
        if len(items) == count:
            return items
    if not items:
        raise DigestError(f"{library}: no documented modules; this Python has no library in source form")
    return items


def best_docstring(path: Path) -> tuple[str, str] | None:
    """(dotted name, docstring) of the public definition that is explained at most length, within the bounds."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    found = []
    for node in tree.body:
        if isinstance(node, DEFINITIONS) and not node.name.startswith("_") and len(node.name) < 40:
            text = ast.get_docstring(node) or ""
            if LEAST_CHARS <= len(text) <= MOST_CHARS:
                found.append((len(text), f"{path.stem}.{node.name}", text))
    return max(found)[1:] if found else None


if __name__ == "__main__":
    main()
