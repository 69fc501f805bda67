"""Names in error messages, as a check: a key, a command or an option that a message names exists.

All is read from the source, without imports: the messages are the strings in calls that build an
error or a problem, and in assignments to a remedy; the keys are the fields of the classes that
describe pipeline and cluster files, and the inputs of stages.
"""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

GAP = "\x00"
"""Stands for a value that is filled in at run time."""
_SNAKE = re.compile(r"(?<![\w./{-])[a-z][a-z0-9]*(?:_[a-z0-9]+)+(?![\w/({=-])")
_DOTTED = re.compile(r"(?<![\w./-])[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)+(?![\w/(-])")
_FILE = re.compile(r"[\w*-]+\.(?:json|jsonl|yaml|model|py|txt|tar)\b")
_QUOTED = re.compile(r"`([a-z][a-z0-9_.]*)`")
_COMMAND = re.compile(r"headwater ([a-z]\w*)")
_OPTION = re.compile(r"(?<![\w-])--([a-z][a-z-]*)")
_ERROR_CALL = re.compile(r"(Error|Problem|Failure|NotFound|NotCanonical|CorruptArtifact|Refused)$")


@dataclass
class KnownNames:
    """Keys, commands and options of the product."""

    keys: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Field of a parameter class -> names of the classes in its annotation."""
    fields: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Class -> its fields, inherited ones included."""
    stages: set[str] = field(default_factory=set)
    commands: set[str] = field(default_factory=set)
    options: set[str] = field(default_factory=set)

    def has_path(self, path: str) -> bool:
        """Return whether a dotted path (`dedup.near`) leads to a field of a section."""
        first, *rest = path.split(".")
        if first not in self.keys:
            return False
        classes = self.keys[first]
        for name in rest:
            if not any(name in self.fields[section] for section in classes):
                return False
            classes = self.keys[name]
        return True


@cache
def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text())


def messages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and text of each string in a message; `GAP` stands for its values."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and _ERROR_CALL.search(_name(node.func)):
            roots: list[ast.expr] = [*node.args, *(k.value for k in node.keywords)]
            if _name(node.func) == "RowError":  # reason, field, detail
                roots = roots[2:]
        elif isinstance(node, ast.Call):
            roots = [k.value for k in node.keywords if k.arg in ("remedy", "hint")]
        elif isinstance(node, ast.Assign) and any(
            re.search("remed|hint", ast.unparse(target), re.I) for target in node.targets
        ):
            roots = [node.value]
        else:
            continue
        for root in roots:
            yield from _strings(root)


def _name(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def _strings(root: ast.expr) -> Iterator[tuple[int, str]]:
    if isinstance(root, ast.JoinedStr):
        parts = (p.value if isinstance(p, ast.Constant) else GAP for p in root.values)
        yield root.lineno, "".join(map(str, parts))
    elif isinstance(root, ast.Constant) and isinstance(root.value, str):
        yield root.lineno, root.value
    elif not isinstance(root, ast.Call):
        children = root.values if isinstance(root, ast.Dict) else ast.iter_child_nodes(root)
        for child in children:
            if isinstance(child, ast.expr):
                yield from _strings(child)


def unknown_names(text: str, known: KnownNames, others: frozenset[str]) -> list[str]:
    """Return the names in a message that do not exist.

    Args:
        text: the message.
        known: names of the product.
        others: names of other programs and of their files.
    """
    found = []
    text = _FILE.sub(" ", text)
    for path in _DOTTED.findall(text):
        if not (known.has_path(path) or path in known.stages or path in others):
            found.append(path)
    plain = _DOTTED.sub(" ", text)
    for name in (*_SNAKE.findall(plain), *_QUOTED.findall(plain)):
        if name not in known.keys.keys() | known.stages | known.commands | others:
            found.append(name)
    found += [f"headwater {name}" for name in _COMMAND.findall(text) if name not in known.commands]
    found += [f"--{name}" for name in _OPTION.findall(text) if name not in known.options | others]
    return sorted(set(found))


def known_names(root: Path) -> KnownNames:
    """Return the names that the source of the product defines."""
    known = KnownNames()
    classes: dict[str, ast.ClassDef] = {}
    aliases: dict[str, str] = {}
    for path in (p for d in ("pipeline", "stages", "launch") for p in (root / d).rglob("*.py")):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ClassDef):
                classes[node.name] = node
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Name):
                aliases |= {ast.unparse(target): node.value.id for target in node.targets}
            elif isinstance(node, ast.Call):
                _add_call(node, known)
    bases = {name: [_name(base) for base in node.bases] for name, node in classes.items()}
    for name, node in classes.items():
        ancestors = set(_ancestors(name, bases))
        if ancestors.isdisjoint(_DESCRIBES_FILES):
            continue
        for item in node.body:
            if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
                key, annotation = item.target.id, ast.unparse(item.annotation)
                named = set(re.findall(r"[A-Z]\w+", annotation))
                known.keys[key] |= named | {aliases[alias] for alias in named & aliases.keys()}
                # A base may stand for any of its subclasses, as the section of a model family.
                for section in (name, *ancestors, *_descendants(name, bases)):
                    known.fields[section].add(key)
    entries = parse(root / "launch/cli.py")
    known.commands = {
        key.value
        for node in ast.walk(entries)
        if isinstance(node, ast.Dict)
        for key in node.keys
        if isinstance(key, ast.Constant) and isinstance(key.value, str)
    }
    return known


_DESCRIBES_FILES = frozenset({"Params", "Section", "BaseModel"})


def _ancestors(name: str, bases: dict[str, list[str]]) -> Iterator[str]:
    for base in bases.get(name, []):
        if base != name:
            yield base
            yield from _ancestors(base, bases)


def _descendants(name: str, bases: dict[str, list[str]]) -> list[str]:
    return [other for other in bases if name in _ancestors(other, bases)]


def _add_call(node: ast.Call, known: KnownNames) -> None:
    """Add the inputs of a stage, and the options of a command."""
    function = _name(node.func)
    if function not in ("stage", "option", "Option"):
        return
    strings = [
        a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
    ]
    if function == "stage":
        known.stages |= set(strings)
        for keyword in node.keywords:
            if keyword.arg == "inputs" and isinstance(keyword.value, ast.Dict):
                for key in keyword.value.keys:
                    if isinstance(key, ast.Constant):
                        known.keys[str(key.value)] |= set()
    else:
        for string in strings:
            known.options |= set(re.findall(r"--([a-z][a-z-]*)", string))
