"""The import graph of the packages: its cycles between files and between folders' children."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path

Graph = dict[str, set[str]]


def import_graph(root: Path, packages: Sequence[str]) -> Graph:
    """Return module -> imported modules of our own; late and typing imports count."""
    files = {}
    for package in packages:
        for path in (root / package).rglob("*.py"):
            dotted = ".".join(path.relative_to(root).with_suffix("").parts)
            files[dotted.removesuffix(".__init__")] = path
    return {module: _imports(path, set(files)) - {module} for module, path in files.items()}


def _imports(path: Path, known: set[str]) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & known) or {node.module}
    return found & known


def cycles(graph: Mapping[str, set[str]]) -> list[tuple[str, ...]]:
    """Return the strongly connected components of more than one node, sorted."""
    reach = {node: _reachable(graph, node) for node in graph}
    components = {
        tuple(sorted(other for other in reach[node] if node in reach[other]))
        for node in graph
        if node in reach[node]
    }
    return sorted(component for component in components if len(component) > 1)


def _reachable(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        node = waiting.pop()
        if node not in found and node in graph:
            found.add(node)
            waiting += graph[node]
    return found


def folder_cycles(graph: Mapping[str, set[str]]) -> list[tuple[str, ...]]:
    """Return the cycles between the children of each folder, subfolders taken as one node."""
    folders = {module.rsplit(".", depth)[0] for module in graph for depth in range(1, 6)} | {""}
    found = set()
    for folder in folders:
        children: Graph = {}
        prefix = f"{folder}." if folder else ""
        for module, imported in graph.items():
            if not module.startswith(prefix) or module == folder:
                continue
            child = module[len(prefix) :].split(".")[0]
            into = {
                other[len(prefix) :].split(".")[0]
                for other in imported
                if other.startswith(prefix) and other != folder
            }
            children.setdefault(child, set()).update(into - {child})
        found |= {tuple(prefix + child for child in cycle) for cycle in cycles(children)}
    files = set(cycles(graph))
    return sorted(cycle for cycle in found if cycle not in files)
