"""Orders and reaches of graphs."""

from __future__ import annotations

from graphlib import CycleError
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from orchard import steady

from pipeline.graph import downstream, topological_order

DIAMOND = {"d": ["b", "c"], "c": ["a"], "b": ["a"], "a": []}


@st.composite
def graphs(draw: st.DrawFn) -> dict[str, list[str]]:
    """Acyclic: a name needs only names with a smaller number; given in any order."""
    size = draw(st.integers(0, 8))
    needs = {
        str(i): [str(j) for j in range(i) if draw(st.booleans(), label=f"{i}->{j}")]
        for i in range(size)
    }
    return {name: needs[name] for name in draw(st.permutations(list(needs)))}


def test_needs_come_first_and_the_file_decides_among_the_ready() -> None:
    assert topological_order(DIAMOND) == ["a", "c", "b", "d"]
    assert topological_order({"z": [], "a": [], "m": []}) == ["z", "a", "m"]


def test_names_outside_the_graph_are_left_out() -> None:
    graph = {"a": ["x"], "b": ["a", "x"]}
    assert topological_order(graph) == ["a", "b"]
    assert downstream(graph, "a") == {"b"}


def test_reach() -> None:
    assert downstream(DIAMOND, "a") == {"b", "c", "d"}
    assert downstream(DIAMOND, "b") == {"d"}


def test_a_cycle_is_named_as_the_work_flows() -> None:
    with pytest.raises(CycleError) as caught:
        topological_order({"a": [], "z": ["b"], "b": ["a", "d"], "c": ["b"], "d": ["c"]})
    assert caught.value.args[1] == ["b", "c", "d", "b"]
    with pytest.raises(CycleError) as caught:
        topological_order({"a": ["a"]})
    assert caught.value.args[1] == ["a", "a"]


@steady
@given(graphs())
def test_an_order_respects_every_edge(graph: dict[str, list[str]]) -> None:
    found = topological_order(graph)
    assert sorted(found) == sorted(graph)
    assert all(found.index(need) < found.index(name) for name in graph for need in graph[name])


@steady
@given(graphs())
def test_downstream_is_the_transitive_closure(graph: dict[str, list[str]]) -> None:
    for name in graph:
        direct = {user for user in graph if name in graph[user]}
        assert downstream(graph, name) == direct.union(*(downstream(graph, d) for d in direct))


@steady
@given(graphs(), st.data())
def test_a_ring_is_found_wherever_it_is(graph: dict[str, list[str]], data: st.DataObject) -> None:
    edges = [(name, need) for name, needs in graph.items() for need in needs]
    if not edges:
        return
    name, need = data.draw(st.sampled_from(edges))
    graph[need] = [*graph[need], name]
    with pytest.raises(CycleError) as caught:
        topological_order(graph)
    ring = caught.value.args[1]
    assert ring[0] == ring[-1]
    assert all(giver in graph[taker] for giver, taker in pairwise(ring))
