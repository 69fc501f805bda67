"""The documented objects of a Python module, with signatures and docstrings, by `ast`.

Nothing is imported or executed. A file that does not parse yields no objects.
"""

from __future__ import annotations

import ast
import gc
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
MAX_SOURCE = 2 << 20  # bytes: longer modules are generated tables
MAX_DEPTH = 5

# The start of the list of arguments in a docstring of one paragraph.
_SECTION = re.compile(r"\s(?:Args|Arguments|Parameters|Returns|Yields|Raises|Examples?|Notes?):")
# Argument lists, code, headings, and sentences that start with a symbol or an identifier.
_UNFIT = re.compile(r"^[^A-Za-z]|^\w*_|^\w+ \(|:$|>>>|:param|---|===|\*\*\*")


@dataclass(frozen=True, slots=True)
class DocumentedObject:
    """A module, class, function or method that has a docstring."""

    name: str
    """Dotted name: `pathlib.Path.glob`."""
    kind: str
    """`module`, `class`, `function` or `method`."""
    signature: str
    """`glob(self, pattern)`, empty for a module."""
    doc: str
    """The docstring without its indentation."""

    @property
    def parent(self) -> str:
        """Dotted name of the module or class that contains it."""
        return self.name.rpartition(".")[0]


def documented_objects(source: bytes, module: str) -> list[DocumentedObject]:
    """Return the documented objects of a module, itself first, in the order of the file."""
    if len(source) > MAX_SOURCE or (b'"""' not in source and b"'''" not in source):
        return []
    tree = parse_module(source)
    return list(_walk(tree, module, 0)) if tree else []


def parse_module(source: bytes) -> ast.Module | None:
    """Return the syntax tree, or None if the source is not valid in this version of Python."""
    with _without_garbage_collection(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def module_documents(objects: list[DocumentedObject], size: int = 6_000) -> Iterator[str]:
    """Yield a module's documentation as texts of about `size` characters, divided between objects:
    the signature of each object, then its docstring."""
    pending: list[str] = []
    for item in objects:
        arguments = item.signature.partition("(")[2]
        title = f"{item.name}({arguments}" if arguments else item.name
        text = f"{title}\n\n{item.doc}"
        if pending and sum(map(len, pending)) + len(text) > size:
            yield "\n\n".join(pending)
            pending = []
        pending.append(text)
    if pending:
        yield "\n\n".join(pending)


def first_sentence(doc: str, min_length: int = 20, max_length: int = 300) -> str | None:
    """Return the first sentence of a docstring on one line, or None if it is unfit as an answer.

    Markup of reST and Markdown is removed (``:class:`Path` `` becomes `Path`).
    """
    paragraph = doc.strip().split("\n\n", 1)[0]
    text = re.sub(r":[\w:+.-]+:`~?([^`<]*?)(?:\s*<[^`]*>)?`", r"\1", " ".join(paragraph.split()))
    text = re.sub(r"``([^`]*)``|\*\*([^*]+)\*\*", lambda m: m[1] or m[2] or "", text)
    text = _SECTION.split(text, maxsplit=1)[0]
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z`\"'(])", text, maxsplit=1)[0].strip()
    if not min_length <= len(sentence) <= max_length or _UNFIT.search(sentence):
        return None
    letters = sum(character.isalpha() or character == " " for character in sentence)
    if letters < 0.75 * len(sentence):
        return None
    sentence = sentence[0].upper() + sentence[1:]
    return sentence if sentence[-1] in ".!?" else sentence + "."


def _walk(
    node: ast.Module | Definition, name: str, depth: int, kind: str = "module"
) -> Iterator[DocumentedObject]:
    doc = ast.get_docstring(node)
    if doc and doc.strip():
        yield DocumentedObject(name, kind, _signature(node), doc.strip())
    if depth == MAX_DEPTH or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for child in node.body:
        if isinstance(child, Definition):
            if isinstance(child, ast.ClassDef):
                inner = "class"
            else:
                inner = "method" if isinstance(node, ast.ClassDef) else "function"
            yield from _walk(child, f"{name}.{child.name}", depth + 1, inner)


def _signature(node: ast.Module | Definition) -> str:
    if isinstance(node, ast.Module):
        return ""
    if isinstance(node, ast.ClassDef):
        return node.name
    arguments = node.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    if arguments.vararg:
        names.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        names.append("*")
    names += [argument.arg for argument in arguments.kwonlyargs]
    if arguments.kwarg:
        names.append(f"**{arguments.kwarg.arg}")
    return f"{node.name}({', '.join(names)})"


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Switch the collector off: a syntax tree has no cycles, and the search costs a third of the
    parse."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
