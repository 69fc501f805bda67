"""The stage graph and the timeline of a run, as SVG.

The graph layout is the layered one of Sugiyama, Tagawa and Toda (1981): layers by longest path,
long edges split by invisible nodes, crossings reduced by sorting each layer by the mean position
of its neighbours, then positions that pull neighbours below each other. It is written by hand
because Graphviz is a system program and the JavaScript libraries do not run under the page's
content security policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from launch.report.svg import escape_html, rect, segment, shorten, svg, text
from launch.ui.formatting import duration

NODE_WIDTH, NODE_HEIGHT = 188.0, 48.0
BEND_WIDTH = 16.0  # of an edge that passes a layer
GAP, LAYER_HEIGHT = 20.0, 92.0  # between boxes; from layer to layer
SWEEPS = 12
TIMELINE_WIDTH, NAME_WIDTH, ROW_HEIGHT = 1000.0, 175.0, 26.0

Layers = list[list[str]]
Span = tuple[float, float, str]
"""Start and end (Unix time in seconds), state."""


@dataclass(frozen=True)
class StageBox:
    """A stage in the graph."""

    name: str
    detail: str
    state: str
    title: str


def draw_graph(boxes: Sequence[StageBox], needs: Mapping[str, Sequence[str]]) -> str:
    """Draw the stages and the edges between them.

    Args:
        boxes: stages in topological order.
        needs: dependencies of each stage.
    """
    if not boxes:
        return ""
    names = [box.name for box in boxes]
    known = {name: [need for need in needs.get(name, ()) if need in names] for name in names}
    layers, chains = _assign_layers(names, known)
    below = _lower_neighbours(chains)
    _reduce_crossings(layers, below)
    positions = _assign_positions(layers, below)
    depth = {name: i for i, layer in enumerate(layers) for name in layer}
    edges = [_edge(chain, positions, depth) for chain in chains]
    nodes = [_node(box, positions[box.name], depth[box.name] * LAYER_HEIGHT + 4) for box in boxes]
    right = max(
        x + (NODE_WIDTH if name in known else BEND_WIDTH) / 2 for name, x in positions.items()
    )
    tall = (len(layers) - 1) * LAYER_HEIGHT + NODE_HEIGHT + 8
    return (
        f'<svg class="chart graph" viewBox="-2 0 {right + 4:.0f} {tall:.0f}" '
        f'style="max-width:{right + 4:.0f}px" role="img">{"".join(edges + nodes)}</svg>'
    )


def _assign_layers(
    names: Sequence[str], needs: Mapping[str, Sequence[str]]
) -> tuple[Layers, list[list[str]]]:
    """Return the layers, including invisible nodes, and each edge as a chain of nodes."""
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


def _lower_neighbours(chains: Iterable[Sequence[str]]) -> dict[str, list[str]]:
    """Return the neighbours of each node in the next layer."""
    tied: dict[str, list[str]] = {}
    for chain in chains:
        for upper, lower in pairwise(chain):
            tied.setdefault(upper, []).append(lower)
    return tied


def _upper_neighbours(below: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    tied: dict[str, list[str]] = {}
    for upper, lowers in below.items():
        for lower in lowers:
            tied.setdefault(lower, []).append(upper)
    return tied


def _reduce_crossings(layers: Layers, below: Mapping[str, Sequence[str]]) -> None:
    """Sort each layer by the mean rank of its neighbours, downwards and upwards; keep the best
    order."""
    above = _upper_neighbours(below)
    best, fewest = [list(layer) for layer in layers], _crossings(layers, below)
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        order = layers if down else layers[::-1]
        for other, layer in pairwise(order):
            rank = {name: i for i, name in enumerate(other)}
            layer.sort(key=_mean_rank(above if down else below, rank, layer))
        if (count := _crossings(layers, below)) < fewest:
            best, fewest = [list(layer) for layer in layers], count
    layers[:] = best


def _mean_rank(
    tied: Mapping[str, Sequence[str]], rank: Mapping[str, int], layer: Sequence[str]
) -> Callable[[str], float]:
    """Return a sort key: the mean rank of a node's neighbours, or its own rank if it has none."""
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


def _assign_positions(layers: Layers, below: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return the centre of each node: near its neighbours, in the order of its layer, without
    overlap."""
    above = _upper_neighbours(below)
    positions: dict[str, float] = {}
    for layer in layers:
        _pack_layer(layer, dict.fromkeys(layer, 0.0), positions)
    for _ in range(4 * SWEEPS):
        for layer in layers:
            wanted = {}
            for name in layer:
                tied = [*above.get(name, ()), *below.get(name, ())]
                wanted[name] = _mean_position(name, tied, positions)
            _pack_layer(layer, wanted, positions)
    left = min(x - _node_width(name) / 2 for name, x in positions.items())
    return {name: x - left for name, x in positions.items()}


def _mean_position(name: str, tied: Sequence[str], positions: Mapping[str, float]) -> float:
    """Return the weighted mean position of a node's neighbours; long edges weigh more, so that they
    become straight."""
    pulls = [(1 + 3 * ("\0" in name) + 3 * ("\0" in other), other) for other in tied]
    total = sum(pull for pull, _ in pulls)
    return sum(pull * positions[o] for pull, o in pulls) / total if total else positions[name]


def _pack_layer(
    layer: Sequence[str], wanted: Mapping[str, float], positions: dict[str, float]
) -> None:
    """Place the nodes of a layer near the wanted positions without overlap: the mean of packing
    from the left and from the right."""
    lefts, rights = [], []
    edge = -math.inf
    for name in layer:
        lefts.append(max(wanted[name], edge + _node_width(name) / 2))
        edge = lefts[-1] + _node_width(name) / 2 + GAP
    edge = math.inf
    for name in reversed(layer):
        rights.append(min(wanted[name], edge - _node_width(name) / 2))
        edge = rights[-1] - _node_width(name) / 2 - GAP
    for name, left, right in zip(layer, lefts, reversed(rights), strict=True):
        positions[name] = (left + right) / 2


def _node_width(name: str) -> float:
    return BEND_WIDTH if "\0" in name else NODE_WIDTH


def _edge(chain: Sequence[str], positions: Mapping[str, float], depth: Mapping[str, int]) -> str:
    top = depth[chain[0]] * LAYER_HEIGHT + 4 + NODE_HEIGHT
    x = positions[chain[0]]
    path = [f"M{x:.1f},{top:.1f}"]
    for name in chain[1:]:
        last, x = x, positions[name]
        low = depth[name] * LAYER_HEIGHT + 4
        half = (low - top) / 2
        path.append(f"C{last:.1f},{top + half:.1f} {x:.1f},{low - half:.1f} {x:.1f},{low:.1f}")
        if name != chain[-1]:
            path.append(f"L{x:.1f},{low + NODE_HEIGHT:.1f}")
        top = low + NODE_HEIGHT
    title = f"{chain[0]} → {chain[-1]}"
    return f'<path d="{" ".join(path)}" class="edge"><title>{escape_html(title)}</title></path>'


def _node(box: StageBox, x: float, y: float) -> str:
    left = x - NODE_WIDTH / 2
    return (
        f'<a href="#{escape_html(box.name)}" class="node {box.state}">'
        f"<title>{escape_html(box.title)}</title>"
        f'<rect x="{left:.1f}" y="{y:.1f}" width="{NODE_WIDTH:g}" '
        f'height="{NODE_HEIGHT:g}" rx="9"/>'
        f'<circle cx="{left + 15:.1f}" cy="{y + 17:.1f}" r="4.5"/>'
        + text(left + 27, y + 21, shorten(box.name, 20), "strong")
        + text(left + 27, y + 37, shorten(box.detail, 26))
        + "</a>"
    )


def draw_timeline(rows: Mapping[str, Sequence[Span]]) -> str:
    """Draw one row per stage with one bar per attempt, over the seconds since the first."""
    spans = [span for row in rows.values() for span in row]
    if not spans:
        return ""
    start, end = min(span[0] for span in spans), max(span[1] for span in spans)
    scale = (TIMELINE_WIDTH - NAME_WIDTH - 60) / max(end - start, 1e-3)
    height = len(rows) * ROW_HEIGHT + 24
    elements = []
    for mark in _time_ticks(end - start):
        x = NAME_WIDTH + mark * scale
        elements.append(segment(x, 0, x, height - 20, "rule"))
        elements.append(text(x, height - 5, duration(mark), "mid"))
    for i, (name, row) in enumerate(rows.items()):
        y = i * ROW_HEIGHT + 4
        elements.append(text(NAME_WIDTH - 10, y + 13, shorten(name, 20), "end strong"))
        for first, last, state in row:
            x, width = NAME_WIDTH + (first - start) * scale, max((last - first) * scale, 2.5)
            label = "cached" if state == "cached" else duration(last - first)
            elements.append(
                rect(x, y, width, ROW_HEIGHT - 8, f"span {state}", f"{name}: {label}, {state}")
            )
        if row:
            elements.append(text(NAME_WIDTH + (row[-1][1] - start) * scale + 7, y + 13, label))
    return svg(elements, height, TIMELINE_WIDTH)


def _time_ticks(seconds: float) -> list[float]:
    """Return at most eight round times."""
    steps = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)
    step = next((step for step in steps if seconds / step <= 8), 86400.0)
    while seconds / step > 8:
        step *= 2
    return [i * step for i in range(int(seconds / step) + 1)]
