"""The pictures of report.html as inline SVG: treemap, scatter and import wheel. Pure: report in, text out.

Colours are classes that page.css fills, so the pictures follow the reader's light or dark setting. Each
picture has a title and a description for those who cannot see it; the page's table holds the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from .files import shown
from .treemap import Box, squarify

Module = Mapping[str, Any]

WIDTH = 1120
TREEMAP_HEIGHT = 660
SCATTER_HEIGHT = 470
WHEEL_SIZE = 860
WHEEL_MARGIN = 160  # room for the names around the rim
WHEEL_NAME = 18  # letters of a name; the end says more than the beginning
WHEEL_NODES = 84
WHEEL_LEAST = 6  # fewer files make no picture
HUES = 5  # the most imported modules, each with a colour of its own


def esc(text: str) -> str:
    """Any text as one harmless line of HTML."""
    return escape(shown(text), quote=True)


def coverage_class(module: Module) -> str:
    """The colour: q0 … q4 by docstring coverage, ``bad`` unparsed, ``none`` without public names."""
    if module["problem"]:
        return "bad"
    if module["doc_percent"] is None:
        return "none"
    return f"q{min(int(module['doc_percent'] // 20), 4)}"


def describe(module: Module) -> str:
    """One module in a line, for a tooltip."""
    parts = [shown(module["name"]), f"{module['code']:,} lines of code", f"{module['functions']} functions"]
    if module["heaviest"]:
        parts.append(f"heaviest: {module['heaviest']['name']} ({module['heaviest']['complexity']})")
    if module["doc_percent"] is not None:
        parts.append(f"{module['doc_percent']:.0f} % documented")
    if module["problem"]:
        parts.append(shown(module["problem"]))
    return " · ".join(parts)


def short_name(module: Module) -> str:
    """The name inside its package: ``decoder`` for ``json/decoder.py``."""
    name = module["name"]
    if "/" in name:
        name = name.split("/", 1)[1]
    return shown(name.removesuffix(".py"))


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _text_width(text: str, size: float) -> float:
    """About how wide a sans-serif sets ``text``, a little on the wide side."""
    narrow = sum(c in "ijlt.,:;|!'()[]frI _" for c in text)
    wide = sum(c in "mwMW@%" for c in text)
    return size * (0.6 * len(text) - 0.22 * narrow + 0.3 * wide)


def _fitted(text: str, size: float, width: float) -> str:
    """``text``, cut with an ellipsis where wider than ``width``; empty where fewer than four letters fit."""
    cut = text
    while len(cut) > 3 and _text_width(cut, size) > width:
        cut = cut[:-2].rstrip("…") + "…"
    return cut if cut == text or len(cut) > 4 else ""


def _svg(name: str, size: tuple[int, int], title: str, text: str, body: Sequence[str]) -> str:
    return (
        f'<svg class="{name}" viewBox="0 0 {size[0]} {size[1]}" role="img" '
        f'aria-labelledby="{name}-t {name}-d">'
        f'<title id="{name}-t">{esc(title)}</title><desc id="{name}-d">{esc(text)}</desc>'
        + "".join(body)
        + "</svg>"
    )


def treemap(report: Mapping[str, Any]) -> str:
    """Area is code, colour is docstring coverage, a frame is a package."""
    packages = [row for row in report["packages"] if row["code"]]
    boxes = squarify([row["code"] for row in packages], Box(0, 0, WIDTH, TREEMAP_HEIGHT))
    body = []
    for package, box in zip(packages, boxes, strict=True):
        modules = [m for m in report["modules"] if m["package"] == package["name"] and m["code"]]
        modules.sort(key=lambda m: (-m["code"], m["name"]))
        body.extend(_package(package, modules, box))
    text = (
        f"{len(report['modules'])} files in {len(packages)} groups. The area of a tile is its lines of code, "
        "its colour the share of public names with a docstring. The table of all files has the same numbers."
    )
    return _svg("treemap", (WIDTH, TREEMAP_HEIGHT), "Map of the code", text, body)


def _package(package: Mapping[str, Any], modules: Sequence[Module], box: Box) -> list[str]:
    label = shown(package["name"])
    # A frame around one file would only repeat its name, and a small one has no room for a heading.
    with_heading = len(modules) > 1 and box.h > 52 and box.w > _text_width(label, 12) + 12
    inner = box.inner(1.5, 21 if with_heading else 1.5)
    out = []
    if with_heading:
        out.append(f'<text class="pkg" x="{_n(box.x + 5)}" y="{_n(box.y + 15)}">{esc(label)}</text>')
        count = f"{package['code']:,}"
        if box.w > _text_width(label, 12) + _text_width(count, 11) + 30:
            out.append(
                f'<text class="pkg-n" x="{_n(box.x + box.w - 5)}" y="{_n(box.y + 15)}" text-anchor="end">'
                f"{count}</text>"
            )
    tiles = squarify([module["code"] for module in modules], inner)
    for module, tile in zip(modules, tiles, strict=True):
        name = short_name(module)
        if not with_heading and "/" in module["name"]:
            name = label if name == "__init__" else f"{label}/{name}"
        out.append(_tile(module, tile, name))
    return out


def _tile(module: Module, tile: Box, name: str) -> str:
    colour = coverage_class(module)
    w, h = max(tile.w - 1.5, 0.4), max(tile.h - 1.5, 0.4)
    out = [
        f'<g class="tile {colour}"><title>{esc(describe(module))}</title>',
        f'<rect x="{_n(tile.x)}" y="{_n(tile.y)}" width="{_n(w)}" height="{_n(h)}" rx="2"/>',
    ]
    for size in (15, 13, 11, 9.5):
        if size == 9.5:
            name = _fitted(name, size, w - 10)
        if name and _text_width(name, size) + 10 <= w and size + 7 <= h:
            y = tile.y + size + 4
            out.append(f'<text x="{_n(tile.x + 6)}" y="{_n(y)}" font-size="{size}">{esc(name)}</text>')
            count = f"{module['code']:,}"
            small = max(size * 0.82, 9)
            if 2 * size + 14 <= h and _text_width(count, small) + 10 <= w:
                out.append(
                    f'<text class="n" x="{_n(tile.x + 6)}" y="{_n(y + size * 1.15)}" '
                    f'font-size="{_n(small)}">{count}</text>'
                )
            break
    return "".join(out) + "</g>"


def scatter(report: Mapping[str, Any]) -> str:
    """Lines of code against the heaviest function, both on logarithmic scales.

    A larger dot has more functions. Empty text where no file defines a function.
    """
    dots = [m for m in report["modules"] if m["heaviest"] and m["code"]]
    if not dots:
        return ""
    dots.sort(key=lambda m: (-m["functions"], m["name"]))
    left, right, top, bottom = 54, WIDTH - 18, 16, SCATTER_HEIGHT - 46
    x = _LogScale([m["code"] for m in dots], left + 14, right - 14)
    y = _LogScale([m["heaviest"]["complexity"] for m in dots], bottom - 14, top + 14)
    body = []
    for value in x.ticks:
        at = _n(x(value))
        body.append(f'<line class="grid" x1="{at}" y1="{top}" x2="{at}" y2="{bottom}"/>')
        body.append(f'<text class="tick" x="{at}" y="{bottom + 18}" text-anchor="middle">{value:,}</text>')
    for value in y.ticks:
        at = _n(y(value))
        body.append(f'<line class="grid" x1="{left}" y1="{at}" x2="{right}" y2="{at}"/>')
        body.append(
            f'<text class="tick" x="{left - 8}" y="{_n(y(value) + 4)}" text-anchor="end">{value}</text>'
        )
    body.append(
        f'<text class="axis" x="{right}" y="{SCATTER_HEIGHT - 6}" text-anchor="end">lines of code →</text>'
    )
    body.append(f'<text class="axis" transform="translate(13 {top + 4}) rotate(-90)" text-anchor="end">')
    body.append("ways through the heaviest function →</text>")
    marks = []
    for m in dots:
        at_x, at_y = x(m["code"]), y(m["heaviest"]["complexity"])
        radius = 2.5 + 0.85 * math.sqrt(m["functions"])
        marks.append((m, at_x, at_y, min(radius, 20.0)))
        body.append(
            f'<circle class="dot {coverage_class(m)}" cx="{_n(at_x)}" cy="{_n(at_y)}" '
            f'r="{_n(marks[-1][3])}"><title>{esc(describe(m))}</title></circle>'
        )
    body.extend(_dot_labels(marks, right))
    text = f"{len(dots)} files that define functions, by lines of code and by ways through the heaviest one."
    return _svg("scatter", (WIDTH, SCATTER_HEIGHT), "Size and complexity", text, body)


class _LogScale:
    """Maps a positive number to a coordinate; ``ticks`` are round numbers inside the data's range."""

    def __init__(self, values: Sequence[int], start: float, end: float) -> None:
        self._start, self._end = start, end
        low, high = max(min(values), 1), max(values)
        self._low, self._high = math.log(low), math.log(max(high, low + 1))
        steps = [base * 10**power for power in range(8) for base in (1, 2, 5)]
        self.ticks = [step for step in steps if low <= step <= high]

    def __call__(self, value: float) -> float:
        part = (math.log(max(value, 1)) - self._low) / (self._high - self._low)
        return self._start + part * (self._end - self._start)


def _dot_labels(marks: Sequence[tuple[Module, float, float, float]], right: float) -> list[str]:
    """Names for the dots that stand out, the heaviest and largest first, where none covers another."""
    wanted = sorted(marks, key=lambda k: (-k[0]["heaviest"]["complexity"] * k[0]["code"], k[0]["name"]))[:40]
    taken: list[Box] = []
    out: list[str] = []
    for module, x, y, radius in wanted:
        name = shown(module["module"])
        width = _text_width(name, 12)
        at_left = x + radius + width + 6 > right
        box = Box(x - radius - width - 4 if at_left else x + radius + 4, y - 8, width, 15)
        clear = all(
            box.x > t.x + t.w or t.x > box.x + box.w or box.y > t.y + t.h or t.y > box.y + box.h
            for t in taken
        )
        hidden = any(
            other is not module
            and box.x - r < cx < box.x + box.w + r
            and box.y - r + 3 < cy < box.y + box.h + r - 3
            for other, cx, cy, r in marks
        )
        if clear and not hidden and len(out) < 18:
            taken.append(box)
            out.append(f'<text class="name" x="{_n(box.x)}" y="{_n(y + 4)}">{esc(name)}</text>')
    return out


def wheel(report: Mapping[str, Any]) -> tuple[str, list[tuple[str, int]]]:
    """The imports between files as chords of a circle, and the most imported files in hue order.

    The picture is empty text where hardly any files are connected.
    """
    by_id = {m["id"]: m for m in report["modules"]}
    edges = [(a, b) for a, b in report["imports"]["edges"]]
    degree = dict.fromkeys(by_id, 0)
    for a, b in edges:
        degree[a] += 1
        degree[b] += 3  # being imported says more than importing
    linked = [key for key in sorted(by_id, key=lambda k: (-degree[k], k)) if degree[key]][:WHEEL_NODES]
    ring = sorted(linked, key=lambda k: (by_id[k]["package"] == "single files", by_id[k]["name"]))
    stars = sorted(linked, key=lambda k: (-by_id[k]["imported_by"], k))[:HUES]
    hue = {key: f"h{n}" for n, key in enumerate(stars) if by_id[key]["imported_by"]}
    angle = {key: 2 * math.pi * (n + 0.5) / len(ring) - math.pi / 2 for n, key in enumerate(ring)}
    drawn = [(a, b) for a, b in edges if a in angle and b in angle]
    drawn.sort(key=lambda edge: (edge[1] in hue, edge))  # coloured chords lie on top
    body = [f'<g transform="translate({WHEEL_SIZE // 2} {WHEEL_SIZE // 2})">']
    body.extend(_chord(angle[a], angle[b], hue.get(b, "h")) for a, b in drawn)
    body.extend(_rim(by_id[key], angle[key], hue.get(key, "h")) for key in ring)
    body.append("</g>")
    text = (
        f"{len(drawn)} imports between the {len(ring)} most connected files; the most imported are coloured."
    )
    picture = _svg("wheel", (WHEEL_SIZE, WHEEL_SIZE), "Who imports whom", text, body)
    if len(ring) < WHEEL_LEAST:
        picture = ""
    return picture, [(shown(by_id[key]["module"]), by_id[key]["imported_by"]) for key in hue]


def _chord(start: float, end: float, colour: str) -> str:
    """A curve from rim to rim, pulled to the centre the more the ends lie apart."""
    radius = WHEEL_SIZE / 2 - WHEEL_MARGIN
    x1, y1 = radius * math.cos(start), radius * math.sin(start)
    x2, y2 = radius * math.cos(end), radius * math.sin(end)
    pull = 0.12 + 0.5 * (1 - abs(math.sin((start - end) / 2)))
    return (
        f'<path class="chord {colour}" d="M{_n(x1)} {_n(y1)}C{_n(x1 * pull)} {_n(y1 * pull)} '
        f'{_n(x2 * pull)} {_n(y2 * pull)} {_n(x2)} {_n(y2)}"/>'
    )


def _rim(module: Module, angle: float, colour: str) -> str:
    radius = WHEEL_SIZE / 2 - WHEEL_MARGIN + 6
    dot = min(2.2 + 0.9 * math.sqrt(module["imported_by"]), 8)
    name = shown(module["module"])
    name = name if len(name) <= WHEEL_NAME else f"…{name[1 - WHEEL_NAME :]}"
    degrees = math.degrees(angle)
    flip = math.cos(angle) < 0
    turn = f"rotate({_n(degrees)}) translate({_n(radius + 12)} 0)" + (" rotate(180)" if flip else "")
    return (
        f'<g class="rim {colour}"><title>{esc(module["name"])} · imported by {module["imported_by"]}</title>'
        f'<circle cx="{_n(radius * math.cos(angle))}" cy="{_n(radius * math.sin(angle))}" r="{_n(dot)}"/>'
        f'<text transform="{turn}" y="4" text-anchor="{"end" if flip else "start"}">{esc(name)}</text></g>'
    )
