"""A squarified treemap: rectangles whose areas are the weights, as near to squares as can be. Pure geometry.

The rule is that of Bruls, Huizing and van Wijk (2000): fill the shorter side with a row as long as one more
rectangle makes the worst shape of that row better, then go on with what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle in the picture's units, its origin at the upper left."""

    x: float
    y: float
    w: float
    h: float

    def inner(self, edge: float, top: float) -> Box:
        """The box without ``edge`` on each side and ``top`` above; never of negative size."""
        return Box(self.x + edge, self.y + top, max(self.w - 2 * edge, 0), max(self.h - top - edge, 0))


def squarify(weights: Sequence[float], box: Box) -> list[Box]:
    """One box for each weight, in the same order. Weights are positive and sorted, the largest first."""
    total = sum(weights)
    if total <= 0 or box.w <= 0 or box.h <= 0:
        return [Box(box.x, box.y, 0, 0) for _ in weights]
    scale = box.w * box.h / total
    areas = [weight * scale for weight in weights]
    placed: list[Box] = []
    start = 0
    while start < len(areas):
        side = min(box.w, box.h)
        end = start + 1
        while end < len(areas) and _worst(areas[start : end + 1], side) <= _worst(areas[start:end], side):
            end += 1
        row = areas[start:end]
        boxes, box = _lay(row, box, last=end == len(areas))
        placed.extend(boxes)
        start = end
    return placed


def _worst(row: Sequence[float], side: float) -> float:
    """The largest ratio of long to short edge when ``row`` fills ``side``."""
    total = sum(row)
    if total <= 0 or side <= 0:
        return float("inf")
    return max(side * side * max(row) / total**2, total**2 / (side * side * max(min(row), 1e-12)))


def _lay(row: Sequence[float], box: Box, *, last: bool) -> tuple[list[Box], Box]:
    """The row along the shorter side of ``box``, and the rest of the box."""
    total = sum(row)
    boxes: list[Box] = []
    if box.w >= box.h:
        # The last row takes all that is left, so that rounding leaves no seam.
        thick = box.w if last else min(total / box.h, box.w) if box.h else 0.0
        at = box.y
        for area in row:
            length = box.h * area / total if total else 0.0
            boxes.append(Box(box.x, at, thick, length))
            at += length
        return boxes, Box(box.x + thick, box.y, max(box.w - thick, 0), box.h)
    thick = box.h if last else min(total / box.w, box.h) if box.w else 0.0
    at = box.x
    for area in row:
        length = box.w * area / total if total else 0.0
        boxes.append(Box(at, box.y, length, thick))
        at += length
    return boxes, Box(box.x, box.y + thick, box.w, max(box.h - thick, 0))
