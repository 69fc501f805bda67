"""Directed acyclic graphs, as pure functions.

A graph maps each name to the names that it needs: `{"tokens": ["clean", "tokenizer"]}`. Needed
names that are not keys are outside the graph and are ignored.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from graphlib import TopologicalSorter

Graph = Mapping[str, Collection[str]]


def topological_order(graph: Graph) -> list[str]:
    """Return every name after all that it needs; among those that are ready, in the graph's order.

    Raises:
        graphlib.CycleError: `args[1]` is a cycle in the direction of the work, its first name
            repeated at the end.
    """
    known = {name: [need for need in needs if need in graph] for name, needs in graph.items()}
    TopologicalSorter(known).prepare()
    done: list[str] = []
    while len(done) < len(known):
        left = (name for name in known if name not in done)
        done.append(next(name for name in left if all(need in done for need in known[name])))
    return done


def downstream(graph: Graph, name: str) -> frozenset[str]:
    """Return all names that need `name`, directly or not, except itself."""
    found: set[str] = set()
    frontier = {name}
    while frontier:
        found |= frontier
        frontier = {user for user, needs in graph.items() if frontier & set(needs)} - found
    return frozenset(found - {name})
