"""Directed acyclic graphs, as pure functions.

A graph maps each name to the names that it needs: `{"tokens": ["clean", "tokenizer"]}`. Names
that are needed but are no keys are not of the graph and are left out.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

Graph = Mapping[str, Collection[str]]


class CycleError(ValueError):
    """Names that need each other in a ring; `ring` begins and ends with the same one."""

    def __init__(self, ring: list[str]) -> None:
        super().__init__(" -> ".join(ring))
        self.ring = ring


def topological_order(graph: Graph) -> list[str]:
    """Every name after all that it needs; among those that are ready, in the graph's order.

    Raises:
        Cycle: there is no such order.
    """
    left = dict(graph)
    done: list[str] = []
    while left:
        ready = (name for name, needs in left.items() if not any(need in left for need in needs))
        name = next(ready, None)
        if name is None:
            raise CycleError(_ring(left))
        del left[name]
        done.append(name)
    return done


def upstream(graph: Graph, name: str) -> frozenset[str]:
    """All that `name` needs, directly or not, itself left out."""
    return _reach(graph, name)


def downstream(graph: Graph, name: str) -> frozenset[str]:
    """All that need `name`, directly or not, itself left out."""
    needed_by: dict[str, list[str]] = {key: [] for key in graph}
    for user, needs in graph.items():
        for need in needs:
            if need in needed_by:
                needed_by[need].append(user)
    return _reach(needed_by, name)


def _reach(graph: Graph, start: str) -> frozenset[str]:
    found: set[str] = set()
    ahead = [start]
    while ahead:
        fresh = [n for n in graph[ahead.pop()] if n in graph and n not in found]
        found.update(fresh)
        ahead.extend(fresh)
    return frozenset(found - {start})


def _ring(stuck: Graph) -> list[str]:
    """A cycle, in the direction in which the work flows. Each stuck name needs another one."""
    walk = [next(iter(stuck))]
    while walk[-1] not in walk[:-1]:
        walk.append(next(need for need in stuck[walk[-1]] if need in stuck))
    return walk[walk.index(walk[-1]) :][::-1]
