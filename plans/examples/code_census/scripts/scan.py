#!/usr/bin/env python3
"""Choose the files of the census and write them to <out>/manifest.json.

    scan.py --source stdlib|FOLDER --limit N --out FOLDER

The N largest Python files under the source; equal sizes go by name. The same folder gives the same list.
A relative source is looked up in the plan's folder.
"""

from __future__ import annotations

import argparse
import os
import stat
import sys
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.dont_write_bytecode = True  # lib/ is a read-only copy on a rig
sys.path.insert(0, str(HERE.parent.parent / "lib"))

from census.files import CensusError, fail, item_id, shown, write_json  # noqa: E402

SCHEMA = "code_census.manifest/1"
SKIPPED_FOLDERS = {"__pycache__", "site-packages", "dist-packages", "node_modules", "venv"}
TEST_FOLDERS = {"test", "tests", "idle_test"}
MAX_FILES = 200_000
MAX_LIMIT = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description="Choose the files of the census.")
    parser.add_argument("--source", required=True, help="a folder, or 'stdlib'")
    parser.add_argument("--limit", required=True, help="how many files at most")
    parser.add_argument("--out", required=True, type=Path, help="the folder of this run")
    given = parser.parse_args()
    try:
        manifest = scan(find_source(given.source), read_limit(given.limit))
        write_json(given.out / "manifest.json", manifest)
    except (CensusError, OSError) as error:
        fail("scan", error)
    found, chosen = manifest["found"], len(manifest["items"])
    print(f"scan: {chosen} of {found['files']} files chosen from {shown(manifest['source'])}")


def find_source(text: str) -> Path:
    """The folder that SOURCE means; empty and ``stdlib`` are the library of the Python that runs this."""
    if text.strip() in {"", "stdlib"}:
        return Path(sysconfig.get_paths()["stdlib"])
    # Not resolve(): on a rig the plan's folder holds links to the data that lies beside plan.md.
    folder = Path(__file__).absolute().parent.parent / os.path.expanduser(text)
    if not folder.is_dir():
        raise CensusError(
            f"SOURCE {shown(text)}: no such folder; set SOURCE to a folder that this machine sees"
        )
    return folder


def read_limit(text: str) -> int:
    """LIMIT as a number of files, 1 to MAX_LIMIT."""
    limit = int(text) if text.isascii() and text.strip().isdigit() and len(text) < 9 else 0
    if not 1 <= limit <= MAX_LIMIT:
        raise CensusError(f"LIMIT {shown(text[:40])}: not a number of files; use 1 to {MAX_LIMIT}")
    return limit


def scan(source: Path, limit: int) -> dict[str, Any]:
    """The manifest: items sorted by name, and what was found and skipped in all."""
    skipped: Counter[str] = Counter()
    found = sorted(python_files(source, skipped), key=lambda entry: (-entry[1], entry[0]))
    if not found:
        raise CensusError(
            f"{shown(str(source))}: no Python file there; set SOURCE to a folder of Python code"
        )
    chosen = sorted(found[:limit])
    taken: set[str] = set()
    return {
        "schema": SCHEMA,
        "source": str(source),
        "found": {"files": len(found), "bytes": sum(size for _, size in found)},
        "skipped": dict(skipped),
        "items": [
            {"id": item_id(name, taken), "name": name, "path": str(source / name), "bytes": size}
            for name, size in chosen
        ],
    }


def python_files(source: Path, skipped: Counter[str]) -> Iterator[tuple[str, int]]:
    """(name relative to the source with ``/``, bytes) of every real Python file that has a writable name."""
    seen = 0
    for folder, folders, files in os.walk(source):
        tests = [name for name in folders if name in TEST_FOLDERS]
        skipped["test folders"] += len(tests)
        folders[:] = sorted(
            name
            for name in folders
            if name not in SKIPPED_FOLDERS and name not in TEST_FOLDERS and not name.startswith(".")
        )
        for file in files:
            seen += 1
            if seen > MAX_FILES:
                raise CensusError(
                    f"{shown(str(source))}: more than {MAX_FILES} files; set SOURCE to a smaller folder"
                )
            if not file.endswith(".py"):
                continue
            path = os.path.join(folder, file)
            try:
                path.encode()
                entry = os.lstat(path)
            except UnicodeEncodeError:  # such a name cannot travel as text
                skipped["names that are not UTF-8"] += 1
            except OSError:
                skipped["files that vanished"] += 1
            else:
                if stat.S_ISREG(entry.st_mode):
                    yield Path(os.path.relpath(path, source)).as_posix(), entry.st_size
                else:
                    skipped["links and special files"] += 1


if __name__ == "__main__":
    main()
