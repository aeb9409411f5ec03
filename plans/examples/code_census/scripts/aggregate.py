#!/usr/bin/env python3
"""Add up the measures of a run: <batch>/report.json and the self-contained <batch>/report.html.

    aggregate.py --batch FOLDER

Where <batch>/generated.txt exists, its first line is quoted on the page.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
sys.dont_write_bytecode = True  # lib/ is a read-only copy on a rig
sys.path.insert(0, str(HERE.parent.parent / "lib"))

from census.files import CensusError, fail, read_json, shown, write_atomic, write_json  # noqa: E402
from census.metrics import SCHEMA  # noqa: E402
from census.page import page  # noqa: E402
from census.totals import build_report  # noqa: E402

MAX_QUOTE = 400


def main() -> None:
    parser = argparse.ArgumentParser(description="Add up the measures of a run.")
    parser.add_argument("--batch", required=True, type=Path, help="the folder of this run")
    batch: Path = parser.parse_args().batch
    try:
        report = aggregate(batch)
        write_json(batch / "report.json", report)
        write_atomic(batch / "report.html", page(report))
        sweep(batch / "measures")
    except (CensusError, OSError) as error:
        fail("aggregate", error)
    totals = report["totals"]
    print(f"aggregate: {totals['files']} files, {totals['code']} lines of code → {batch / 'report.html'}")


def aggregate(batch: Path) -> dict[str, Any]:
    """The report over everything in the manifest.

    Raises:
        CensusError: the manifest or a measure is missing or damaged; a report over a part would look whole.
    """
    manifest = read_json(batch / "manifest.json")
    measures: dict[str, Mapping[str, Any]] = {}
    for item in manifest["items"]:
        path = batch / "measures" / f"{item['id']}.json"
        measures[item["id"]] = read_json(path)
        if measures[item["id"]].get("schema") != SCHEMA:
            raise CensusError(f"{path}: not a {SCHEMA}; remove it and run the task measure again")
    report = build_report(manifest, measures)
    report["run"] = {
        "source": shown(manifest["source"]),
        "python": platform.python_version(),
        "batch": batch.resolve().name,
        "generated_line": generated_line(batch / "generated.txt"),
    }
    return report


def generated_line(path: Path) -> str | None:
    """The first line of text in ``path``, cut to MAX_QUOTE characters; None where there is none."""
    try:
        with path.open("rb") as stream:
            text = stream.read(64 * 1024).decode("utf-8", "replace")
    except FileNotFoundError:
        return None
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return shown(line if len(line) <= MAX_QUOTE else line[: MAX_QUOTE - 1] + "…") or None


def sweep(folder: Path) -> None:
    """Remove what killed runs left half-written."""
    for leftover in folder.glob(".*.json.*.tmp"):
        with suppress(FileNotFoundError):
            leftover.unlink()


if __name__ == "__main__":
    main()
