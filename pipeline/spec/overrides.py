"""The layers of a pipeline: the file, the files that it extends, and overrides on top.

Each layer is a tree that knows its places, so a problem names the file and line, or the
override, that the value came from.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import Problem, SpecError, did_you_mean
from pipeline.spec import validation_messages
from pipeline.spec.yaml_reader import KeyPath, Tree, parse_yaml, read_yaml

FILE_KEYS = ("name", "seed", "extends", "stages", "promote")
"""The words of a pipeline file."""


def resolve_extends(path: Path, chain: tuple[Path, ...] = ()) -> Tree:
    """A file laid over the one that it extends, and so on; `chain` holds the files below it.

    Raises:
        SpecError: a file cannot be read, or the files extend each other.
    """
    path = Path(os.path.normpath(path))
    tree = read_yaml(path)
    parent = tree.data.get("extends") if isinstance(tree.data, dict) else None
    if parent is None:
        return tree
    where = tree.location(("extends",))
    if not isinstance(parent, str) or Path(parent).is_absolute():
        message = f"expected a path relative to this file, got {validation_messages.describe_value(parent)}"
        raise SpecError([Problem("extends", message, "for example base.yaml", where)])
    above = Path(os.path.normpath(path.parent / parent))
    chain = (*chain, path)
    if above in chain:
        ring = " -> ".join(str(file) for file in (*chain[chain.index(above) :], above))
        message = f"the files extend each other: {ring}"
        raise SpecError([Problem("extends", message, "remove one `extends`", where)])
    if not above.is_file():
        message = f"there is no file {above}"
        raise SpecError([Problem("extends", message, "the path is relative to this file", where)])
    return tree.merged_over(resolve_extends(above, chain))


def apply_overrides(tree: Tree, overrides: Sequence[str]) -> Tree:
    """The tree with overrides (`gpt.train.lr=3e-4`) laid over it, the last on top.

    What is wrong with them is listed in the tree's `problems`.
    """
    for text in overrides:
        try:
            tree = _override(text, tree).merged_over(tree)
        except SpecError as error:
            tree.problems += error.problems
    return tree


def _override(text: str, under: Tree) -> Tree:
    """One override as a tree of its own."""
    place = f"override {text!r}"
    key, equals, value = text.partition("=")
    if not equals:
        raise SpecError([Problem("", "expected key=value", "as in gpt.train.lr=3e-4", place)])
    stages = under.data.get("stages") if isinstance(under.data, dict) else None
    path = _target(key.strip(), stages if isinstance(stages, dict) else {}, place)
    tree = parse_yaml(value, lambda line: place, path)
    for part in reversed(path):
        tree.data = {part: tree.data}
    return tree


def _target(key: str, stages: Mapping[str, Any], place: str) -> KeyPath:
    """Where a dotted key points: a word of the file, or the longest stage name it begins with."""
    if key in ("name", "seed"):
        return (key,)
    root: KeyPath = ("promote",)
    rest = key.removeprefix("promote.")
    if rest == key:
        dotted = key.removeprefix("stages.")
        name = max((n for n in stages if dotted.startswith(f"{n}.")), key=len, default="")
        if not name:
            raise SpecError([_no_stage(key, dotted, stages, place)])
        root, rest = ("stages", name), dotted[len(name) + 1 :]
    if not all(rest.split(".")):
        raise SpecError([Problem(key, "a part of the key is empty", "as in gpt.train.lr", place)])
    return (*root, *rest.split("."))


def _no_stage(key: str, dotted: str, stages: Mapping[str, Any], place: str) -> Problem:
    first = dotted.partition(".")[0]
    if first in stages:
        message, remedy = f"no value of the stage {first!r} is named", f"as in {first}.seed=1"
        return Problem(key, message, remedy, place)
    known = stages if "." in dotted else [*stages, "name", "seed"]
    return Problem(key, f"there is no stage {first!r}", did_you_mean(first, known), place)
