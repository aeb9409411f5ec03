"""Where boxes and lines of a graph lie: layers by the longest way, few crossings, straight lines. Pure.

The method is that of Sugiyama: (1) each box gets the layer of its longest way from a start; (2) an edge over
several layers gets a bend in each of them, one trunk for all edges of a source; (3) layers are ordered by the medians of
their neighbours, downwards and upwards, and the order with the fewest crossings is kept; (4) each layer is placed
by least squares as near to its neighbours as the order and the sizes allow.

Everything is worked out in two directions, *along* (the way of the arrows) and *aside*; only the last step knows
whether the arrows go to the right or down. The same input gives the same picture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final, NamedTuple

from .graph import longest_paths

GAP_ASIDE: Final = 20.0
GAP_BEND: Final = 12.0
MIN_GAP_ALONG: Final = 46.0
MAX_GAP_ALONG: Final = 150.0
#: More bends than this are not laid out: the longest edges then run straight, behind the boxes.
MAX_BENDS: Final = 6_000
_SWEEPS: Final = 12
#: Above so many boxes, bends and pieces of edges less is tried: nobody follows single lines there.
_MANY: Final = 5_000
_PLACINGS: Final = 11
_BEND_WEIGHT: Final = 6.0


class Link(NamedTuple):
    """An edge between the boxes ``source`` and ``target`` (their numbers); edges of one ``kind`` share trunks."""

    source: int
    target: int
    kind: str


class Point(NamedTuple):
    x: float
    y: float


class Rect(NamedTuple):
    """A box: its top left corner and its size."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Layout:
    """``boxes`` in the order of the sizes, ``paths`` in that of the links; all within (0, 0, width, height).

    A path goes from the side of its source through its bends to the side of its target. Between two points it
    runs along where both lie in one layer, else through the empty space between two layers.
    """

    boxes: list[Rect]
    paths: list[list[Point]]
    width: float
    height: float
    rightwards: bool


@dataclass(slots=True)
class _Net:
    """Boxes and bends as one numbered set: the bends come behind the boxes."""

    along: list[float]
    aside: list[float]
    ranks: list[int]
    boxes: int
    before: list[list[int]] = field(default_factory=list)
    after: list[list[int]] = field(default_factory=list)
    chains: list[list[int]] = field(default_factory=list)
    #: Links too long to be laid out.
    straight: set[int] = field(default_factory=set)

    @property
    def large(self) -> bool:
        """Whether the graph is too large for many tries."""
        return len(self.ranks) + sum(map(len, self.after)) > _MANY

    def gap(self, one: int, other: int) -> float:
        """The least distance of the middles of two neighbours in a layer."""
        free = GAP_ASIDE if one < self.boxes and other < self.boxes else GAP_BEND
        return (self.aside[one] + self.aside[other]) / 2 + free


def lay_out(sizes: Sequence[tuple[float, float]], links: Sequence[Link], *, rightwards: bool) -> Layout:
    """Place boxes of the given (width, height).

    Raises:
        ValueError: the links make a circle.
    """
    ranks = longest_paths(len(sizes), [(one.source, one.target) for one in links])
    net = _Net(
        along=[width if rightwards else height for width, height in sizes],
        aside=[height if rightwards else width for width, height in sizes],
        ranks=ranks,
        boxes=len(sizes),
    )
    _add_bends(net, links)
    layers = _ordered(net)
    middles = _placed(net, layers)
    starts, depths = _along(net, layers, middles)
    return _drawn(net, links, middles, starts, depths, rightwards)


def best_layout(sizes: Sequence[tuple[float, float]], links: Sequence[Link]) -> Layout:
    """The one of the two directions that needs less shrinking to fit on a screen."""
    if len(sizes) + len(links) > _MANY:
        ranks = longest_paths(len(sizes), [(one.source, one.target) for one in links])
        # Two layouts would cost too much; boxes are about twice as wide as high.
        return lay_out(sizes, links, rightwards=max(Counter(ranks).values()) > 2 * (max(ranks) + 1))
    both = [lay_out(sizes, links, rightwards=way) for way in (True, False)]
    return min(both, key=lambda one: max(one.width / 1280, one.height / 860))


# -- bends -------------------------------------------------------------------------------------------------------


def _add_bends(net: _Net, links: Sequence[Link]) -> None:
    """Cut each long link into pieces of one layer."""
    net.before = [[] for _ in range(net.boxes)]
    net.after = [[] for _ in range(net.boxes)]
    net.chains = [[] for _ in links]
    trunks: dict[tuple[int, str, int], int] = {}
    shortest_first = sorted(range(len(links)), key=lambda at: (_span(net, links[at]), at))
    joined: set[tuple[int, int]] = set()
    for at in shortest_first:
        source, target, kind = links[at]
        if len(trunks) + _span(net, links[at]) > MAX_BENDS:
            net.straight.add(at)
            net.chains[at] = [source, target]
            continue
        chain = [source]
        for rank in range(net.ranks[source] + 1, net.ranks[target]):
            bend = trunks.get((source, kind, rank))
            if bend is None:
                bend = trunks[source, kind, rank] = len(net.ranks)
                net.ranks.append(rank)
                net.along.append(0.0)
                net.aside.append(2.0)
                net.before.append([])
                net.after.append([])
            chain.append(bend)
        chain.append(target)
        net.chains[at] = chain
        for one, other in pairwise(chain):
            if (one, other) not in joined:
                joined.add((one, other))
                net.after[one].append(other)
                net.before[other].append(one)


def _span(net: _Net, link: Link) -> int:
    return net.ranks[link.target] - net.ranks[link.source]


# -- order -------------------------------------------------------------------------------------------------------


def _ordered(net: _Net) -> list[list[int]]:
    """The layers, each in the order with the fewest crossings that was found."""
    layers: list[list[int]] = [[] for _ in range(max(net.ranks, default=-1) + 1)]
    for node in _walk(net):
        layers[net.ranks[node]].append(node)
    best, fewest = [list(layer) for layer in layers], _crossings(net, layers)
    for sweep in range(2 if net.large else _SWEEPS):
        if not fewest:
            break
        downwards = sweep % 2 == 0
        neighbours = net.before if downwards else net.after
        for layer in layers[1:] if downwards else reversed(layers[:-1]):
            _sort_layer(layer, layers, neighbours, net)
        crossings = _crossings(net, layers)
        if crossings < fewest:
            best, fewest = [list(layer) for layer in layers], crossings
    return best


def _walk(net: _Net) -> list[int]:
    """All nodes, each right after the first that leads to it: neighbours start side by side."""
    seen: set[int] = set()
    order = []
    for root in range(net.boxes):
        if net.before[root] or root in seen:
            continue
        stack = [root]
        while stack:
            node = stack.pop()
            if node not in seen:
                seen.add(node)
                order.append(node)
                stack += reversed(net.after[node])
    return order


def _sort_layer(layer: list[int], layers: list[list[int]], neighbours: list[list[int]], net: _Net) -> None:
    """Order a layer by the medians of the neighbours' places; a node without any keeps its own."""
    places: dict[int, int] = {}
    for other in {net.ranks[one] for node in layer for one in neighbours[node]}:
        places.update((node, at) for at, node in enumerate(layers[other]))
    medians = [_median(sorted(places[one] for one in neighbours[node])) for node in layer]
    movable = [at for at, median in enumerate(medians) if median >= 0]
    ordered = sorted(movable, key=lambda at: (medians[at], at))
    nodes = [layer[at] for at in ordered]
    for at, node in zip(movable, nodes, strict=True):
        layer[at] = node


def _median(places: Sequence[int]) -> float:
    """The weighted median of Gansner and others, which leans to the side where the neighbours are dense; -1: none."""
    count = len(places)
    if not count:
        return -1.0
    middle = count // 2
    if count % 2:
        return float(places[middle])
    if count == 2:
        return (places[0] + places[1]) / 2
    left, right = places[middle - 1] - places[0], places[-1] - places[middle]
    if not left + right:
        return float(places[middle])
    return (places[middle - 1] * right + places[middle] * left) / (left + right)


def _crossings(net: _Net, layers: list[list[int]]) -> int:
    """How many pairs of pieces between neighbouring layers cross."""
    total = 0
    for upper, lower in pairwise(layers):
        place = {node: at for at, node in enumerate(lower)}
        ends = [place[one] for node in upper for one in sorted(net.after[node], key=place.__getitem__)]
        seen = [0] * (len(lower) + 1)  # a Fenwick tree of the ends so far
        for count, end in enumerate(ends):
            total += count - _sum_to(seen, end + 1)
            at = end + 1
            while at < len(seen):
                seen[at] += 1
                at += at & -at
    return total


def _sum_to(tree: list[int], at: int) -> int:
    total = 0
    while at > 0:
        total += tree[at]
        at -= at & -at
    return total


# -- places ------------------------------------------------------------------------------------------------------


def _placed(net: _Net, layers: list[list[int]]) -> list[float]:
    """The middle of each node aside."""
    middles = [0.0] * len(net.ranks)
    for layer in layers:
        here = 0.0
        for before, node in zip([None, *layer], layer, strict=False):
            here += net.gap(before, node) if before is not None else 0.0
            middles[node] = here
        shift = here / 2
        for node in layer:
            middles[node] -= shift
    # The last sweep goes downwards: what has one thing before it then stands straight below it.
    for turn in range(3 if net.large else _PLACINGS):
        downwards = turn % 2 == 0
        for layer in layers if downwards else reversed(layers):
            wishes, weights = [], []
            for node in layer:
                near = net.before[node] if downwards else net.after[node]
                wishes.append(_wish(net, node, near, middles))
                weights.append(_BEND_WEIGHT if node >= net.boxes else 1.0 if near else 0.1)
            for node, place in zip(layer, _nearest(net, layer, wishes, weights), strict=True):
                middles[node] = place
    return middles


def _wish(net: _Net, node: int, near: Sequence[int], middles: Sequence[float]) -> float:
    """Where a node would stand straight with those it leads to or comes from; a trunk pulls harder than a box."""
    if not near:
        return middles[node]
    pulls = [2.0 if one >= net.boxes else 1.0 for one in near]
    return sum(pull * middles[one] for pull, one in zip(pulls, near, strict=True)) / sum(pulls)


def _nearest(net: _Net, layer: list[int], wishes: list[float], weights: list[float]) -> list[float]:
    """The places nearest to the wishes, by weighted squares, that keep order and distances (pooled neighbours)."""
    offsets = [0.0]
    for one, other in pairwise(layer):
        offsets.append(offsets[-1] + net.gap(one, other))
    pools: list[tuple[float, float, int]] = []  # place, weight, how many
    for wish, weight, offset in zip(wishes, weights, offsets, strict=True):
        place, heavy, count = wish - offset, weight, 1
        while pools and pools[-1][0] > place:
            before, weight_before, count_before = pools.pop()
            place = (place * heavy + before * weight_before) / (heavy + weight_before)
            heavy, count = heavy + weight_before, count + count_before
        pools.append((place, heavy, count))
    starts = [place for place, _, count in pools for _ in range(count)]
    return [start + offset for start, offset in zip(starts, offsets, strict=True)]


# -- drawing -----------------------------------------------------------------------------------------------------


def _along(net: _Net, layers: list[list[int]], middles: list[float]) -> tuple[list[float], list[float]]:
    """(where each layer begins, how deep it is) along; the steeper the lines in a gap, the wider it is."""
    starts, depths = [], []
    here = 0.0
    for layer in layers:
        depth = max(net.along[node] for node in layer)
        starts.append(here)
        depths.append(depth)
        steps = [abs(middles[node] - middles[one]) for node in layer for one in net.after[node]]
        here += depth + min(max(MIN_GAP_ALONG, 0.22 * max(steps, default=0.0)), MAX_GAP_ALONG)
    return starts, depths


def _drawn(
    net: _Net,
    links: Sequence[Link],
    middles: list[float],
    starts: list[float],
    depths: list[float],
    rightwards: bool,
) -> Layout:
    least = min((middles[node] - net.aside[node] / 2 for node in range(len(net.ranks))), default=0.0)
    most = max((middles[node] + net.aside[node] / 2 for node in range(len(net.ranks))), default=0.0)

    def point(along: float, aside: float) -> Point:
        return Point(along, aside - least) if rightwards else Point(aside - least, along)

    boxes = []
    for node in range(net.boxes):
        # Boxes of a column share its width; in rows each keeps its own height, from the top.
        depth = depths[net.ranks[node]] if rightwards else net.along[node]
        corner = point(starts[net.ranks[node]], middles[node] - net.aside[node] / 2)
        size = (depth, net.aside[node]) if rightwards else (net.aside[node], depth)
        boxes.append(Rect(*corner, *size))
    paths = []
    for at, link in enumerate(links):
        chain = net.chains[at]
        start, depth = starts[net.ranks[link.source]], depths[net.ranks[link.source]]
        own = depth if rightwards else net.along[link.source]
        points = [point(start + own, middles[link.source])]
        if own < depth:  # past its taller neighbours first
            points.append(point(start + depth, middles[link.source]))
        for bend in chain[1:-1]:
            start = starts[net.ranks[bend]]
            points += [point(start, middles[bend]), point(start + depths[net.ranks[bend]], middles[bend])]
        points.append(point(starts[net.ranks[link.target]], middles[link.target]))
        paths.append(points)
    length = max((start + depth for start, depth in zip(starts, depths, strict=True)), default=0.0)
    width, height = (length, most - least) if rightwards else (most - least, length)
    return Layout(boxes, paths, width, height, rightwards)
