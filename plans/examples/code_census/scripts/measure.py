#!/usr/bin/env python3
"""Measure one Python file and write <out>/<id>.json.

    measure.py --out FOLDER --file PATH --id ID

A file that does not parse is a finding and not a failure. Done work is kept: when <out>/<id>.json already
holds the measure of exactly these bytes, nothing is done, so a run that was killed is quick to repeat.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import stat
import sys
from pathlib import Path

HERE = Path(__file__).resolve()
sys.dont_write_bytecode = True  # lib/ is a read-only copy on a rig
sys.path.insert(0, str(HERE.parent.parent / "lib"))

from census.files import PLAIN_ID, CensusError, fail, read_json, shown, write_json  # noqa: E402
from census.metrics import SCHEMA, measure, unreadable  # noqa: E402

MAX_BYTES = 64 * 1024 * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure one Python file.")
    parser.add_argument("--out", required=True, type=Path, help="the folder of the measures")
    parser.add_argument("--file", required=True, help="the file to measure")
    parser.add_argument("--id", required=True, help="its id in the manifest")
    given = parser.parse_args()
    try:
        if not PLAIN_ID.fullmatch(given.id):
            raise CensusError(f"--id {shown(given.id)}: not a plain name; use an id from manifest.json")
        print(f"measure: {measure_file(given.file, given.out / f'{given.id}.json')}")
    except (CensusError, OSError) as error:
        fail("measure", error)


def measure_file(file: str, target: Path) -> str:
    """Write the measure of ``file`` to ``target``; returns one line that says what was seen."""
    try:
        data = read_source(file)
    except OSError as error:
        result = unreadable(f"cannot be read: {error.strerror or error}")
    else:
        if is_done(target, data):
            return f"{shown(file)}: measured before"
        result = measure(data)
    write_json(target, result)
    if result["problem"]:
        return f"{shown(file)}: {shown(result['problem'])}"
    return f"{shown(file)}: {result['code']} lines of code, {result['functions']} functions"


def read_source(file: str) -> bytes:
    """The bytes of a regular file.

    Raises:
        OSError: missing, not allowed, a link, a special file, or more than MAX_BYTES.
    """
    # O_NONBLOCK: the file may have become a FIFO since the scan, and open() would wait for a writer for ever.
    handle = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        data = stream.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise OSError(errno.EFBIG, f"more than {MAX_BYTES} bytes")
    return data


def is_done(target: Path, data: bytes) -> bool:
    """Whether ``target`` already holds the measure of exactly these bytes."""
    try:
        before = read_json(target)
    except CensusError:
        return False
    return before.get("schema") == SCHEMA and before.get("sha256") == hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    main()
