"""The files that a pipeline file extends, and the overrides on top.

Each is a tree that stores locations, so that a problem names the file and line, or the override,
that the value came from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import Problem, SpecError, did_you_mean
from pipeline.spec.validation_messages import describe_value
from pipeline.spec.yaml_reader import KeyPath, Tree, parse_yaml, read_yaml

FILE_KEYS = ("name", "seed", "extends", "stages", "promote")
"""The keys of a pipeline file."""


def resolve_extends(path: Path, chain: tuple[Path, ...] = ()) -> Tree:
    """Read a file, merged over the one that it extends, and so on.

    Args:
        chain: the files that extend this one.

    Raises:
        SpecError: a file cannot be read, or the files extend each other.
    """
    path = Path(os.path.normpath(path))
    tree = read_yaml(path)
    parent = tree.data.get("extends") if isinstance(tree.data, dict) else None
    if parent is None:
        return tree
    chain = (*chain, path)
    base = Path(os.path.normpath(path.parent / parent)) if isinstance(parent, str) else path
    if not isinstance(parent, str) or Path(parent).is_absolute():
        message = f"expected a path relative to this file, got {describe_value(parent)}"
        remedy = "for example base.yaml"
    elif base in chain:
        ring = " -> ".join(str(file) for file in (*chain[chain.index(base) :], base))
        message, remedy = f"the files extend each other: {ring}", "remove one `extends`"
    elif not base.is_file():
        message, remedy = f"there is no file {base}", "the path is relative to this file"
    else:
        return tree.merge_over(resolve_extends(base, chain))
    raise SpecError([Problem("extends", message, remedy, tree.location(("extends",)))])


def apply_overrides(tree: Tree, overrides: Sequence[str]) -> Tree:
    """Merge overrides (`gpt.train.lr=3e-4`) over a tree, the last on top.

    Their problems are listed in the tree's `problems`.
    """
    for text in overrides:
        place = f"override {text!r}"
        key, equals, value = text.partition("=")
        try:
            if not equals:
                message, remedy = "expected key=value", "as in gpt.train.lr=3e-4"
                raise SpecError([Problem("", message, remedy, place)])
            stages = tree.data.get("stages") if isinstance(tree.data, dict) else None
            path = _key_path(key.strip(), stages if isinstance(stages, dict) else {}, place)
            tree = _parse_value(value, path, place).merge_over(tree)
        except SpecError as error:
            tree.problems += error.problems
    return tree


def _key_path(key: str, stages: Mapping[str, Any], place: str) -> KeyPath:
    """Resolve a dotted key: a key of the file, or the longest stage name that it begins with."""
    if key in ("name", "seed"):
        return (key,)
    root: KeyPath = ("promote",)
    rest = key.removeprefix("promote.")
    if rest == key:
        dotted = key.removeprefix("stages.")
        name = max((n for n in stages if dotted.startswith(f"{n}.")), key=len, default="")
        first = dotted.partition(".")[0]
        if not name and first in stages:
            message, remedy = f"no value of the stage {first!r} is named", f"as in {first}.seed=1"
            raise SpecError([Problem(key, message, remedy, place)])
        if not name:
            known = stages if "." in dotted else [*stages, "name", "seed"]
            message, remedy = f"there is no stage {first!r}", did_you_mean(first, known)
            raise SpecError([Problem(key, message, remedy, place)])
        root, rest = ("stages", name), dotted[len(name) + 1 :]
    if not all(rest.split(".")):
        raise SpecError([Problem(key, "a part of the key is empty", "as in gpt.train.lr", place)])
    return (*root, *rest.split("."))


def _parse_value(value: str, path: KeyPath, place: str) -> Tree:
    tree = parse_yaml(value, lambda line: place, path)
    for part in reversed(path):
        tree.data = {part: tree.data}
    return tree
