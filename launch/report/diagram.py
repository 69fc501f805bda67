"""Draws a run: its graph of stages, flowing downwards, and its timeline. SVG, as in `charts`.

The graph's layout is the classical layered one (Sugiyama, Tagawa and Toda 1981): layers by
longest path, long edges split by invisible nodes, few crossings by sorting each layer by the
mean place of its neighbours, then places that pull neighbours under each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from launch.report.charts import safe, short, text
from launch.ui.formatting import duration

NODE, TALL = 188.0, 48.0  # a stage's box
BEND = 16.0  # room of an edge that passes a layer
GAP, PITCH = 20.0, 92.0  # between boxes; from layer to layer
SWEEPS = 12
TIMELINE, NAMES, STRIP = 1000.0, 130.0, 26.0  # width, room for names, height of a row

Layers = list[list[str]]
Span = tuple[float, float, str]
"""first and last second, state."""


@dataclass(frozen=True)
class Box:
    """A stage as it is drawn."""

    name: str
    detail: str
    state: str
    title: str


def graph(boxes: Sequence[Box], needs: Mapping[str, Sequence[str]]) -> str:
    """The stages and what flows between them.

    Args:
        boxes: the stages, each after those that it needs.
        needs: the stages that each one needs.
    """
    if not boxes:
        return ""
    names = [box.name for box in boxes]
    known = {name: [need for need in needs.get(name, ()) if need in names] for name in names}
    layers, chains = _layered(names, known)
    below = _below(chains)
    _untangle(layers, below)
    places = _place(layers, below)
    depth = {name: i for i, layer in enumerate(layers) for name in layer}
    edges = [_edge(chain, places, depth) for chain in chains]
    nodes = [_node(box, places[box.name], depth[box.name] * PITCH + 4) for box in boxes]
    right = max(x + (NODE if name in known else BEND) / 2 for name, x in places.items())
    tall = (len(layers) - 1) * PITCH + TALL + 8
    return (
        f'<svg class="chart graph" viewBox="-2 0 {right + 4:.0f} {tall:.0f}" '
        f'style="max-width:{right + 4:.0f}px" role="img">{"".join(edges + nodes)}</svg>'
    )


def _layered(
    names: Sequence[str], needs: Mapping[str, Sequence[str]]
) -> tuple[Layers, list[list[str]]]:
    """The layers, invisible nodes among them, and each edge as the chain of nodes it passes."""
    depth: dict[str, int] = {}
    for name in names:
        depth[name] = 1 + max((depth[need] for need in needs[name]), default=-1)
    layers: Layers = [[] for _ in range(max(depth.values()) + 1)]
    for name in names:
        layers[depth[name]].append(name)
    chains = []
    for name in names:
        for need in needs[name]:
            between = range(depth[need] + 1, depth[name])
            bends = [f"{need}\0{name}\0{level}" for level in between]
            for level, bend in zip(between, bends, strict=True):
                layers[level].append(bend)
            chains.append([need, *bends, name])
    return layers, chains


def _below(chains: Iterable[Sequence[str]]) -> dict[str, list[str]]:
    """What each node is tied to in the next layer."""
    tied: dict[str, list[str]] = {}
    for chain in chains:
        for upper, lower in pairwise(chain):
            tied.setdefault(upper, []).append(lower)
    return tied


def _above(below: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    tied: dict[str, list[str]] = {}
    for upper, lowers in below.items():
        for lower in lowers:
            tied.setdefault(lower, []).append(upper)
    return tied


def _untangle(layers: Layers, below: Mapping[str, Sequence[str]]) -> None:
    """Sort each layer by the mean place of its neighbours, down and up again; keep the best."""
    above = _above(below)
    best, fewest = [list(layer) for layer in layers], _crossings(layers, below)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for layer, other in _pairs(layers, down):
            rank = {name: i for i, name in enumerate(other)}
            layer.sort(key=_mean_of(above if down else below, rank, layer))
        if (count := _crossings(layers, below)) < fewest:
            best, fewest = [list(layer) for layer in layers], count
    layers[:] = best


def _pairs(layers: Layers, down: bool) -> list[tuple[list[str], list[str]]]:
    """(layer to sort, layer that decides)."""
    pairs = list(zip(layers[1:], layers, strict=False))
    return pairs if down else [(upper, lower) for lower, upper in reversed(pairs)]


def _mean_of(
    tied: Mapping[str, Sequence[str]], rank: Mapping[str, int], layer: Sequence[str]
) -> Callable[[str], float]:
    """The mean rank of a node's neighbours; its own place if it has none."""
    own = {name: i for i, name in enumerate(layer)}

    def key(name: str) -> float:
        found = [rank[other] for other in tied.get(name, ())]
        return sum(found) / len(found) if found else own[name]

    return key


def _crossings(layers: Layers, below: Mapping[str, Sequence[str]]) -> int:
    count = 0
    for upper, lower in pairwise(layers):
        rank = {name: i for i, name in enumerate(lower)}
        ends = [(i, rank[o]) for i, name in enumerate(upper) for o in below.get(name, ())]
        count += sum((a < c and b > d) or (a > c and b < d) for a, b in ends for c, d in ends)
    return count // 2


def _place(layers: Layers, below: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """The centre of each node: near its neighbours, in the layer's order, not overlapping."""
    above = _above(below)
    places: dict[str, float] = {}
    for layer in layers:
        _settle(layer, dict.fromkeys(layer, 0.0), places)
    for _ in range(4 * SWEEPS):
        for layer in layers:
            wanted = {}
            for name in layer:
                tied = [*above.get(name, ()), *below.get(name, ())]
                wanted[name] = _pulled(name, tied, places)
            _settle(layer, wanted, places)
    left = min(x - _width(name) / 2 for name, x in places.items())
    return {name: x - left for name, x in places.items()}


def _pulled(name: str, tied: Sequence[str], places: Mapping[str, float]) -> float:
    """The mean of the neighbours' places; long edges pull harder, so that they run straight."""
    pulls = [(1 + 3 * ("\0" in name) + 3 * ("\0" in other), other) for other in tied]
    total = sum(pull for pull, _ in pulls)
    return sum(pull * places[o] for pull, o in pulls) / total if total else places[name]


def _settle(layer: Sequence[str], wanted: Mapping[str, float], places: dict[str, float]) -> None:
    """As near to the wanted places as the order and the boxes allow: the mean of packing from
    the left and packing from the right."""
    lefts, rights = [], []
    edge = -math.inf
    for name in layer:
        lefts.append(max(wanted[name], edge + _width(name) / 2))
        edge = lefts[-1] + _width(name) / 2 + GAP
    edge = math.inf
    for name in reversed(layer):
        rights.append(min(wanted[name], edge - _width(name) / 2))
        edge = rights[-1] - _width(name) / 2 - GAP
    for name, left, right in zip(layer, lefts, reversed(rights), strict=True):
        places[name] = (left + right) / 2


def _width(name: str) -> float:
    return BEND if "\0" in name else NODE


def _edge(chain: Sequence[str], places: Mapping[str, float], depth: Mapping[str, int]) -> str:
    top = depth[chain[0]] * PITCH + 4 + TALL
    x = places[chain[0]]
    path = [f"M{x:.1f},{top:.1f}"]
    for name in chain[1:]:
        last, x = x, places[name]
        low = depth[name] * PITCH + 4
        half = (low - top) / 2
        path.append(f"C{last:.1f},{top + half:.1f} {x:.1f},{low - half:.1f} {x:.1f},{low:.1f}")
        if name != chain[-1]:
            path.append(f"L{x:.1f},{low + TALL:.1f}")
        top = low + TALL
    title = f"{chain[0]} → {chain[-1]}"
    return f'<path d="{" ".join(path)}" class="edge"><title>{safe(title)}</title></path>'


def _node(box: Box, x: float, y: float) -> str:
    left = x - NODE / 2
    return (
        f'<a href="#{safe(box.name)}" class="node {box.state}"><title>{safe(box.title)}</title>'
        f'<rect x="{left:.1f}" y="{y:.1f}" width="{NODE:g}" height="{TALL:g}" rx="9"/>'
        f'<circle cx="{left + 15:.1f}" cy="{y + 17:.1f}" r="4.5"/>'
        + text(left + 27, y + 21, short(box.name, 20), "strong")
        + text(left + 27, y + 37, short(box.detail, 26))
        + "</a>"
    )


# --- timeline ----------------------------------------------------------------------------------


def timeline(rows: Mapping[str, Sequence[Span]]) -> str:
    """When each stage worked: one row a stage, one bar an attempt, seconds from the first."""
    spans = [span for row in rows.values() for span in row]
    if not spans:
        return ""
    start, end = min(span[0] for span in spans), max(span[1] for span in spans)
    scale = (TIMELINE - NAMES - 60) / max(end - start, 1e-3)
    tall = len(rows) * STRIP + 24
    body = []
    for mark in _marks(end - start):
        x = NAMES + mark * scale
        body.append(
            f'<line x1="{x:.1f}" y1="0" x2="{x:.1f}" y2="{tall - 20:g}" class="rule"/>'
            + text(x, tall - 5, duration(mark), "mid")
        )
    for i, (name, row) in enumerate(rows.items()):
        y = i * STRIP + 4
        body.append(text(NAMES - 10, y + 13, short(name, 20), "end strong"))
        for first, last, state in row:
            x, width = NAMES + (first - start) * scale, max((last - first) * scale, 2.5)
            said = "cached" if state == "cached" else duration(last - first)
            body.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{STRIP - 8:g}" rx="3" '
                f'class="span {state}"><title>{safe(f"{name}: {said}, {state}")}</title></rect>'
            )
        if row:
            body.append(text(NAMES + (row[-1][1] - start) * scale + 7, y + 13, said))
    return (
        f'<svg class="chart" viewBox="0 0 {TIMELINE:g} {tall:g}" role="img">{"".join(body)}</svg>'
    )


def _marks(seconds: float) -> list[float]:
    """Round times: at most eight of them."""
    steps = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)
    step = next((step for step in steps if seconds / step <= 8), 86400.0)
    while seconds / step > 8:
        step *= 2
    return [i * step for i in range(int(seconds / step) + 1)]
