"""Reads YAML files into plain data with the location of each key.

Only a part of YAML is accepted, because the rest is a risk: no anchors and aliases (442 bytes can
expand to gigabytes), no tags (they name code), no duplicate keys (the last would win silently), no
deep nesting, no huge files. Plain scalars are read by YAML 1.2, not 1.1: `no` is text, `010` is
ten, `12:30:45` is text, and `1e-4` is the number.

    tree = read_yaml("configs/quickstart.yaml")
    path = ("stages", "gpt", "train", "lr")
    tree.data["stages"]["gpt"]["train"]["lr"], tree.location(path)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import yaml

from pipeline.errors import Problem, SpecError

MAX_BYTES = 1_000_000
MAX_NODES = 10_000
MAX_DEPTH = 20

KeyPath = tuple[str | int, ...]

_WORDS = {"": None, "~": None, "null": None, "true": True, "false": False}
_INTEGER = re.compile(r"[-+]?[0-9]{1,30}")
_BASED = re.compile(r"0o[0-7]{1,30}|0x[0-9a-fA-F]{1,30}")
_DECIMAL = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_EDGE = re.compile(r"\$\{([^{}\n]*)\}")
_EXACT = 2**53  # integers up to here have an exact float


@dataclass
class Tree:
    """Plain data, the location ("file:line") of each key in it, and the problems so far."""

    data: Any = None
    locations: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def location(self, path: KeyPath) -> str:
        """Return the location of a key, or else of the nearest key around it."""
        while path not in self.locations and path:
            path = path[:-1]
        return self.locations.get(path, "")

    def merge_over(self, base: Tree) -> Tree:
        """Merge this tree over another: mappings key by key, anything else is replaced."""
        replaced: list[KeyPath] = []
        data = _merge(base.data, self.data, (), replaced)
        kept = {
            path: location
            for path, location in base.locations.items()
            if not any(path[: len(root)] == root for root in replaced)
        }
        return Tree(data, {**kept, **self.locations}, [*base.problems, *self.problems])


def read_yaml(path: Path) -> Tree:
    """Read a file.

    Raises:
        SpecError: it cannot be read, is too large, or is not YAML. What is merely not accepted
            (an alias, a tag, a duplicate key) is listed in the tree's `problems`.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
        if len(raw) > MAX_BYTES:
            _fail(str(path), f"the file is over {MAX_BYTES:,} bytes", "a pipeline file is short")
        text = raw.decode("utf-8")
    except OSError as error:
        _fail(str(path), f"cannot be read: {(error.strerror or str(error)).lower()}")
    except UnicodeDecodeError as error:
        _fail(str(path), f"byte {error.start} is not UTF-8 text", "save the file as UTF-8")
    return parse_yaml(text, lambda line: f"{path}:{line}")


def parse_yaml(text: str, where: Callable[[int], str], root: KeyPath = ()) -> Tree:
    """Parse YAML text.

    Inside `{…}` YAML would end a scalar at the brace of `${clean}`: while parsing, braces are
    replaced by two characters for private use, which occur in the text neither themselves nor as
    escape sequences.

    Args:
        where: the location of a line (from 1).
        root: the path of the data.

    Raises:
        SpecError: as `read_yaml`.
    """
    lower, private = text.lower(), range(0xE000, 0xF900)
    unused = (code for code in private if chr(code) not in text and f"{code:x}" not in lower)
    # A text that has them all is read too, but cannot have an edge: YAML refuses U+0000.
    braces = {next(unused, 0): "{", next(unused, 1): "}"}
    opening, closing = map(chr, braces)
    parser = _Parser(Tree(locations={root: where(1)}), where, braces)
    key, shielded = format_key_path(root), _EDGE.sub(rf"${opening}\1{closing}", text)
    try:
        parser.document(yaml.parse(shielded, Loader=yaml.SafeLoader), root)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        _fail(where(line), f"this is not YAML: {str(error.problem).translate(braces)}", key=key)
    except yaml.reader.ReaderError as error:
        message = f"the character U+{error.character:04X} is not allowed in YAML"
        _fail(where(1), message, key=key)
    return parser.tree


def parse_scalar(text: str) -> Any:
    """Parse a plain YAML scalar by the core schema of YAML 1.2 (section 10.3.2).

    A whole number with an exponent (`1e3`) is an integer; `.inf` and `.nan` are kept as text,
    because no parameter accepts them.
    """
    if (word := text.lower()) in _WORDS and text in (word, word.title(), word.upper()):
        return _WORDS[word]
    if _INTEGER.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if not _DECIMAL.fullmatch(text) or not math.isfinite(number := float(text)):
        return text
    if "e" in text.lower() and number.is_integer() and abs(number) <= _EXACT:
        return int(number)
    return number


class _Parser:
    """Builder of the tree from YAML's events, which are flat: no input can overflow the stack."""

    def __init__(self, tree: Tree, where: Callable[[int], str], braces: Mapping[int, str]) -> None:
        self.tree = tree
        self._where = where
        self._braces = braces
        self._nodes = 0

    def document(self, events: Iterator[Any], root: KeyPath) -> None:
        self._events = events
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                if self._nodes:
                    self._reject(root, event, "a second document begins here", "keep one `---`")
                    return
                self.tree.data = self._node(next(events), root)

    def _node(self, event: Any, path: KeyPath) -> Any:
        self._nodes += 1
        location = self._location(event)
        if self._nodes > MAX_NODES:
            _fail(location, f"more than {MAX_NODES:,} values", "a pipeline file is short")
        if len(path) > MAX_DEPTH:
            _fail(location, f"nested deeper than {MAX_DEPTH}", "a pipeline file is flat")
        if isinstance(event, yaml.AliasEvent):
            self._reject(path, event, "YAML aliases are not accepted", "write the value out")
            return None
        self._reject_marks(event, path)
        if isinstance(event, yaml.MappingStartEvent):
            return self._mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
                self.tree.locations[*path, len(items)] = self._location(event)
                items.append(self._node(event, (*path, len(items))))
            return items
        text = event.value.translate(self._braces)
        if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in text):
            self._reject(path, event, "the text holds a character that is not text")
        return parse_scalar(text) if event.implicit[0] else text

    def _mapping(self, path: KeyPath) -> dict[str, Any]:
        data: dict[str, Any] = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                self._reject(path, event, "a key must be one plain word")
                self._node(event, path)
                self._node(next(self._events), path)
                continue
            self._reject_marks(event, path)
            key = event.value.translate(self._braces)
            if key in data:
                self._reject((*path, key), event, f"the key {key!r} is a duplicate", "remove one")
            self.tree.locations[*path, key] = self._location(event)
            data[key] = self._node(next(self._events), (*path, key))
        return data

    def _reject_marks(self, event: Any, path: KeyPath) -> None:
        for mark, noun, sign in ((event.anchor, "anchors", "&"), (event.tag, "tags", "")):
            if mark:
                self._reject(
                    path, event, f"YAML {noun} ({sign}{mark}) are not accepted", "remove it"
                )

    def _location(self, event: Any) -> str:
        return self._where(event.start_mark.line + 1)

    def _reject(self, path: KeyPath, event: Any, message: str, remedy: str = "") -> None:
        problem = Problem(format_key_path(path), message, remedy, self._location(event))
        self.tree.problems.append(problem)


def format_key_path(path: KeyPath) -> str:
    """Format a path as an override: `gpt.train.lr`, `clean.sources[0]`."""
    words = path[1:] if path[:1] == ("stages",) and len(path) > 1 else path
    return "".join(f"[{w}]" if isinstance(w, int) else f".{w}" for w in words).lstrip(".")


def _merge(base: Any, over: Any, path: KeyPath, replaced: list[KeyPath]) -> Any:
    if not (isinstance(base, Mapping) and isinstance(over, Mapping)):
        replaced.append(path)
        return over
    merged = dict(base)
    for key, value in over.items():
        merged[key] = _merge(base[key], value, (*path, key), replaced) if key in base else value
    return merged


def _fail(location: str, message: str, remedy: str = "", key: str = "") -> NoReturn:
    raise SpecError([Problem(key, message, remedy, location)])
