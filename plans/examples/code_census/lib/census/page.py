"""report.html from the report: one file, no script, nothing fetched. Pure, apart from reading page.css.

Every text that comes from the source files goes through ``esc``; the page's own policy forbids scripts and
any request, should one slip through.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .charts import coverage_class, esc, scatter, treemap, wheel

STYLE = Path(__file__).with_name("page.css")
COVERAGE = (
    ("q0", "under 20 %"),
    ("q1", "20–40 %"),
    ("q2", "40–60 %"),
    ("q3", "60–80 %"),
    ("q4", "80 % and more"),
    ("none", "no public names"),
    ("bad", "could not be read as Python"),
)
SHOWN_PROBLEMS = 40
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def page(report: Mapping[str, Any]) -> str:
    """The whole page."""
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
        f"<title>Code census · {report['totals']['files']:,} files</title>",
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>",
        _header(report),
        "<main>",
        _map(report),
        _size(report),
        _wheel(report),
        _lists(report),
        _problems(report),
        _table(report),
        "</main>",
        _footer(report),
        "</body>\n</html>\n",
    ]
    return "\n".join(part for part in parts if part)


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _header(report: Mapping[str, Any]) -> str:
    totals, selection, run = report["totals"], report["selection"], report["run"]
    found, chosen = selection["found"], selection["chosen"]
    share = 100 * chosen["bytes"] / found["bytes"] if found["bytes"] else 100
    which = (
        f"all {_count(found['files'], 'Python file')}"
        if found["files"] == chosen["files"]
        else f"the {chosen['files']:,} largest of {found['files']:,} Python files, {share:.0f} % of the bytes"
    )
    half = totals["half_of_the_code_in"]
    documented = "–" if totals["doc_percent"] is None else f"{totals['doc_percent']:.0f} %"
    headline = f"{_count(totals['code'], 'line')} of code"
    if half < totals["files"]:
        headline += f", half of them in {_count(half, 'file')}"
    figures = [
        ("files", f"{totals['files']:,}"),
        ("lines of code", f"{totals['code']:,}"),
        ("functions", f"{totals['functions']:,}"),
        ("classes", f"{totals['classes']:,}"),
        ("ways through", f"{totals['complexity']:,}"),
        ("documented", documented),
    ]
    quoted = run.get("generated_line")
    quote = (
        f"<blockquote><p>{esc(quoted)}</p><footer>one generated line</footer></blockquote>" if quoted else ""
    )
    return (
        '<header><p class="kicker">Code census</p>'
        f"<h1>{headline}</h1>"
        f'<p class="lead">Seen: {which} of <strong>{esc(run["source"])}</strong>.</p>'
        '<dl class="figures">'
        + "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in figures)
        + f"</dl>{quote}</header>"
    )


def _legend(items: Iterable[tuple[str, str]], shape: str = "") -> str:
    rows = "".join(f'<li><i class="{name} {shape}"></i>{text}</li>' for name, text in items)
    return f'<ul class="legend">{rows}</ul>'


def _map(report: Mapping[str, Any]) -> str:
    used = {coverage_class(module) for module in report["modules"] if module["code"]}
    keys = [row for row in COVERAGE if row[0].startswith("q") or row[0] in used]
    return (
        "<section><h2>Where the code lies, and where it is explained</h2>"
        '<p class="note">A tile is a file, its area the lines of code. Colour is the share of public '
        "modules, classes and functions that have a docstring.</p>"
        + _legend(keys)
        + treemap(report)
        + "</section>"
    )


def _size(report: Mapping[str, Any]) -> str:
    picture = scatter(report)
    if not picture:
        return ""
    return (
        "<section><h2>Size and complexity</h2>"
        '<p class="note">To the right more code, upwards more ways through the heaviest function of the '
        "file. A larger dot has more functions; the colour is as above.</p>" + picture + "</section>"
    )


def _wheel(report: Mapping[str, Any]) -> str:
    picture, stars = wheel(report)
    if not stars:
        return ""
    rows = [(name, "", count) for name, count in _most_imported(report)]
    outside = [(row["name"], "", row["files"]) for row in report["imports"]["outside"][:8]]
    lists = (
        f"<div>{_top('Most imported', rows[:10])}</div><div>{_top('From outside the picture', outside)}</div>"
    )
    if not picture:
        return f'<section><h2>Who imports whom</h2><div class="columns">{lists}</div></section>'
    return (
        "<section><h2>Who imports whom</h2>"
        '<p class="note">A line is an import between two of the files; the most imported files have a '
        'colour of their own.</p><div class="split"><div>'
        + _legend(((f"h{n}", f"{esc(name)} ({count})") for n, (name, count) in enumerate(stars)), "ring")
        + f'{picture}</div><div class="stack">{lists}</div></div></section>'
    )


def _most_imported(report: Mapping[str, Any]) -> list[tuple[str, int]]:
    modules = [m for m in report["modules"] if m["imported_by"]]
    modules.sort(key=lambda m: (-m["imported_by"], m["name"]))
    return [(m["module"], m["imported_by"]) for m in modules]


def _top(title: str, rows: Sequence[tuple[str, str, int]]) -> str:
    """A ranked list with bars; a row is (name, smaller second line, number)."""
    if not rows:
        return ""
    largest = max((number for _, _, number in rows), default=1)
    items = "".join(
        f"<li><span>{esc(name)}{f'<br><small>{esc(where)}</small>' if where else ''}</span>"
        f"<b>{number:,}</b>"
        f'<u aria-hidden="true"><i style="width:{100 * number / largest:.1f}%"></i></u></li>'
        for name, where, number in rows
    )
    return f'<h3>{title}</h3><ol class="top">{items}</ol>'


def _lists(report: Mapping[str, Any]) -> str:
    longest = [(f["name"], f"{f['module']}:{f['line']}", f["lines"]) for f in report["longest_functions"]]
    heavy = [
        (f["name"], f"{f['module']}:{f['line']}", f["complexity"]) for f in report["most_complex_functions"]
    ]
    if not longest:
        return ""
    return (
        "<section><h2>The functions to read twice</h2>"
        '<p class="note">The longest function of each file in lines, and the one with the most ways '
        "through: 1, and 1 for every branch, loop, handler and further operand of and/or.</p>"
        '<div class="columns">'
        f"<div>{_top('Longest', longest[:8])}</div><div>{_top('Most ways through', heavy[:8])}</div>"
        "</div></section>"
    )


def _problems(report: Mapping[str, Any]) -> str:
    problems = report["problems"]
    if not problems:
        return ""
    rows = "".join(
        f"<li><code>{esc(p['name'])}</code> – {esc(p['problem'])}</li>" for p in problems[:SHOWN_PROBLEMS]
    )
    more = len(problems) - SHOWN_PROBLEMS
    rest = f"<p>and {more:,} more, in report.json</p>" if more > 0 else ""
    return (
        f"<section><h2>{_count(len(problems), 'file')} could not be read as Python</h2>"
        '<p class="note">Their lines are counted, the rest is left out.</p>'
        f'<ul class="problems">{rows}</ul>{rest}</section>'
    )


def _table(report: Mapping[str, Any]) -> str:
    heads = ("code", "comment", "docstring", "functions", "classes", "heaviest", "documented", "imported by")
    rows = []
    for m in report["modules"]:
        cells = (
            f"{m['code']:,}",
            f"{m['comment']:,}",
            f"{m['doc']:,}",
            f"{m['functions']:,}",
            f"{m['classes']:,}",
            str(m["heaviest"]["complexity"]) if m["heaviest"] else "–",
            "–" if m["doc_percent"] is None else f"{m['doc_percent']:.0f} %",
            str(m["imported_by"]),
        )
        cell_text = "".join(f"<td>{cell}</td>" for cell in cells)
        rows.append(f'<tr><th scope="row">{esc(m["name"])}</th>{cell_text}</tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in ("file", *heads))
    return (
        f"<section><details><summary>All {_count(len(rows), 'file')} as a table</summary>"
        f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></details></section>"
    )


def _footer(report: Mapping[str, Any]) -> str:
    run, totals = report["run"], report["totals"]
    return (
        '<footer class="page">'
        f"Lines: {totals['code']:,} code, {totals['doc']:,} docstring, {totals['comment']:,} comment, "
        f"{totals['blank']:,} blank. Measured by Python {esc(run['python'])} with ast and tokenize, "
        f"batch {esc(run['batch'])}. The same numbers lie beside this page in report.json.</footer>"
    )
