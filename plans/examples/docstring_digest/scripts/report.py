#!/usr/bin/env python3
"""Put the descriptions and labels of a run together: <batch>/report.json and <batch>/report.md.

    report.py --batch FOLDER

What a model has written is data: nothing in it can become a heading, a link or a line of the page's own.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.dont_write_bytecode = True  # scripts/ is a read-only copy on a rig
sys.path.insert(0, str(Path(__file__).resolve().parent))

from files import DigestError, write_json, write_text  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description="Put a run's descriptions together.")
    parser.add_argument("--batch", required=True, type=Path, help="the folder of this run")
    batch: Path = parser.parse_args().batch
    try:
        report = gather(batch)
        write_json(batch / "report.json", report)
        write_text(batch / "report.md", page(report))
    except (DigestError, OSError) as error:
        raise SystemExit(f"report: {error}") from None
    print(
        f"report: {len(report['entries'])} described, {len(report['missing'])} missing → {batch / 'report.md'}"
    )


def gather(batch: Path) -> dict[str, Any]:
    """The report over every item of the manifest; one without a whole answer is named as missing."""
    try:
        manifest = json.loads((batch / "manifest.json").read_bytes())
    except (OSError, ValueError) as error:
        raise DigestError(f"manifest.json: {error}; run the task choose again") from None
    entries, missing = [], []
    for item in manifest["items"]:
        summary = read_summary(batch / "summaries" / f"{item['id']}.txt")
        label = read_label(batch / "labels" / f"{item['id']}.json")
        if summary is None or label is None:
            missing.append({"name": item["name"], "lacks": "a description" if summary is None else "a class"})
        else:
            entries.append({**item, "summary": summary, **label})
    return {
        "schema": "docstring_digest.report/1",
        "python": manifest["python"],
        "entries": entries,
        "missing": missing,
        "topics": dict(Counter(entry["topic"] for entry in entries).most_common()),
        "levels": dict(Counter(entry["level"] for entry in entries).most_common()),
        "mean_clear": round(sum(e["clear"] for e in entries) / len(entries), 2) if entries else None,
        "words": sum(len(entry["summary"].split()) for entry in entries),
    }


def read_summary(path: Path) -> str | None:
    """What the model wrote, as one paragraph; None where it wrote nothing."""
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeError):
        return None
    return " ".join(text.split()) or None


def read_label(path: Path) -> dict[str, Any] | None:
    """The classes of one text; None where there are none."""
    try:
        label = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    wanted = ("topic", "level", "traits", "clear")
    return (
        {key: label[key] for key in wanted} if isinstance(label, dict) and set(wanted) <= set(label) else None
    )


def page(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    entries = report["entries"]
    lines = [
        "# What the standard library says about itself",
        "",
        f"{len(entries)} docstrings of Python {report['python']}, described and classified by a model"
        + (f"; it finds them {report['mean_clear']} of 5 clear." if entries else "."),
        "",
        "| Topic | Texts |",
        "|---|---|",
        *(f"| {plain(topic)} | {count} |" for topic, count in report["topics"].items()),
        "",
    ]
    for entry in sorted(entries, key=lambda one: one["name"]):
        words = ", ".join(plain(word) for word in dict.fromkeys(entry["traits"]))
        lines += [f"## {plain(entry['name'])}", "", plain(entry["summary"]), ""]
        lines += [f"*{plain(entry['topic'])}, {plain(entry['level'])}: {words}*", ""]
    if report["missing"]:
        lines += ["## Missing", ""]
        lines += [f"- {plain(one['name'])}: {one['lacks']}" for one in report["missing"]]
    return "\n".join(lines).rstrip() + "\n"


def plain(text: str) -> str:
    """One line of text in which Markdown sees no mark of its own."""
    text = "".join(sign if sign.isprintable() else " " for sign in text)
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&-])", r"\\\1", " ".join(text.split()))


if __name__ == "__main__":
    main()
