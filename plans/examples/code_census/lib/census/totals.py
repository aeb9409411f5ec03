"""From the manifest and the measures to the numbers of report.json. Pure, and the same for the same input.

Everything is sorted and nothing depends on the clock, the machine or the order of the runs; what does (the
Python, the place of the source, the batch) stands under the one key ``run``, which ``aggregate.py`` adds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from .files import module_name

SCHEMA = "code_census.report/1"
SINGLE = "single files"
SUMMED = (
    "bytes",
    "lines",
    "code",
    "doc",
    "comment",
    "blank",
    "functions",
    "classes",
    "complexity",
    "documentable",
    "documented",
)
TOP = 12


def build_report(manifest: Mapping[str, Any], measures: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The report over ``manifest["items"]``; ``measures`` maps each id to what ``metrics.measure`` said."""
    modules = [_module(item, measures[item["id"]]) for item in manifest["items"]]
    modules.sort(key=lambda module: module["name"])
    edges, outside = _imports(modules, measures)
    imported_by = Counter(target for _, target in edges)
    for module in modules:
        module["imported_by"] = imported_by[module["id"]]
    return {
        "schema": SCHEMA,
        "totals": _totals(modules),
        "selection": {
            "found": manifest["found"],
            "chosen": {"files": len(modules), "bytes": sum(item["bytes"] for item in manifest["items"])},
            "skipped": manifest["skipped"],
        },
        "modules": modules,
        "packages": _packages(modules),
        "imports": {"edges": [list(edge) for edge in edges], "outside": _ranked(outside)},
        "longest_functions": _functions(modules, "longest", "lines"),
        "most_complex_functions": _functions(modules, "heaviest", "complexity"),
        "problems": [{"name": m["name"], "problem": m["problem"]} for m in modules if m["problem"]],
    }


def percent(part: int, whole: int) -> float | None:
    """``part`` of ``whole`` in per cent with one decimal, None where there is no whole."""
    return round(100 * part / whole, 1) if whole else None


def _module(item: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    name = item["name"]
    return {
        "id": item["id"],
        "name": name,
        "module": module_name(name),
        "package": name.split("/")[0] if "/" in name else SINGLE,
        **{key: measured[key] for key in SUMMED},
        "longest": measured["longest"],
        "heaviest": measured["heaviest"],
        "doc_percent": percent(measured["documented"], measured["documentable"]),
        "problem": measured["problem"],
    }


def _totals(modules: list[dict[str, Any]]) -> dict[str, Any]:
    sums = {key: sum(module[key] for module in modules) for key in SUMMED}
    half, files = 0, 0
    for code in sorted((module["code"] for module in modules), reverse=True):
        if 2 * half >= sums["code"]:
            break
        half, files = half + code, files + 1
    return {
        "files": len(modules),
        "unparsed": sum(module["problem"] is not None for module in modules),
        **sums,
        "doc_percent": percent(sums["documented"], sums["documentable"]),
        "half_of_the_code_in": files,
    }


def _packages(modules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    names = sorted({module["package"] for module in modules})
    rows = []
    for name in names:
        own = [module for module in modules if module["package"] == name]
        rows.append({"name": name, "files": len(own), **{key: sum(m[key] for m in own) for key in SUMMED}})
    return sorted(rows, key=lambda row: (-row["code"], row["name"]))


def _functions(modules: list[dict[str, Any]], which: str, number: str) -> list[dict[str, Any]]:
    rows = [{"module": module["name"], **module[which]} for module in modules if module[which]]
    return sorted(rows, key=lambda row: (-row[number], row["module"]))[:TOP]


def _ranked(counts: Counter[str]) -> list[dict[str, Any]]:
    ranked = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    return [{"name": name, "files": count} for name, count in ranked[:TOP]]


def _imports(
    modules: list[dict[str, Any]], measures: Mapping[str, Mapping[str, Any]]
) -> tuple[list[tuple[str, str]], Counter[str]]:
    """(importing id, imported id) between the chosen files, sorted; and how many files import each stranger.

    ``from a import b`` may mean a module or a name in one: the longest known prefix decides.
    """
    known: dict[str, str] = {}
    for module in modules:
        known.setdefault(module["module"], module["id"])
    edges: set[tuple[str, str]] = set()
    outside: Counter[str] = Counter()
    for module in modules:
        strangers = set()
        for text in measures[module["id"]]["imports"]:
            name = _absolute(text, module)
            prefix = name
            while prefix and prefix not in known:
                prefix = prefix.rpartition(".")[0]
            if not prefix:
                strangers.add(name.split(".")[0])
            elif known[prefix] != module["id"]:
                edges.add((module["id"], known[prefix]))
        outside.update(strangers - {""})
    return sorted(edges), outside


def _absolute(text: str, module: Mapping[str, Any]) -> str:
    name = text.lstrip(".")
    level = len(text) - len(name)
    if level == 0:
        return name
    parts = module["module"].split(".")
    if not module["name"].endswith("__init__.py"):
        parts = parts[:-1]
    base = parts[: len(parts) - (level - 1)]
    return ".".join([*base, name])
