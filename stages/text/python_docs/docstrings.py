"""What a Python module says of itself: its objects with signatures and docstrings, by `ast`.

Nothing is imported or run. A file that does not parse yields nothing.
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

# Where a one-paragraph docstring turns into a list of arguments.
_SECTION = re.compile(r"\s(?:Args|Arguments|Parameters|Returns|Yields|Raises|Examples?|Notes?):")
# Argument lists, code, headings, and what starts with a mark or an identifier.
_UNFIT = re.compile(r"^[^A-Za-z]|^\w*_|^\w+ \(|:$|>>>|:param|---|===|\*\*\*")


@dataclass(frozen=True, slots=True)
class DocumentedObject:
    """A module, class, function or method that has a docstring."""

    name: str
    """Dotted: `pathlib.Path.glob`."""
    kind: str
    """`module`, `class`, `function` or `method`."""
    signature: str
    """`glob(self, pattern)`, empty for a module."""
    doc: str
    """The docstring without its indentation."""

    @property
    def parent(self) -> str:
        """The dotted name of what holds it."""
        return self.name.rpartition(".")[0]


def documented_objects(source: bytes, module: str) -> list[DocumentedObject]:
    """The documented objects of a module in the order of the file, the module itself first."""
    if len(source) > MAX_SOURCE or (b'"""' not in source and b"'''" not in source):
        return []
    tree = parse(source)
    return list(_walk(tree, module, 0)) if tree else []


def parse(source: bytes) -> ast.Module | None:
    """The syntax tree, or None for what is not a Python module of this version."""
    with _no_collection(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None


def module_documents(objects: list[DocumentedObject], size: int = 6_000) -> Iterator[str]:
    """A module's documentation as texts of about `size` characters, cut between objects: each
    object's signature, then its docstring."""
    pending: list[str] = []
    for item in objects:
        text = f"{_title(item)}\n\n{item.doc}"
        if pending and sum(map(len, pending)) + len(text) > size:
            yield "\n\n".join(pending)
            pending = []
        pending.append(text)
    if pending:
        yield "\n\n".join(pending)


def first_sentence(doc: str, shortest: int = 20, longest: int = 300) -> str | None:
    """The first sentence of a docstring on one line, or None if it is not fit to be an answer.

    Marks of reST and Markdown are taken off (``:class:`Path` `` reads `Path`).
    """
    paragraph = doc.strip().split("\n\n", 1)[0]
    text = re.sub(r":[\w:+.-]+:`~?([^`<]*?)(?:\s*<[^`]*>)?`", r"\1", " ".join(paragraph.split()))
    text = re.sub(r"``([^`]*)``|\*\*([^*]+)\*\*", lambda m: m[1] or m[2] or "", text)
    text = _SECTION.split(text, maxsplit=1)[0]
    sentence = re.split(r"(?<=[.!?])\s+(?=[A-Z`\"'(])", text, maxsplit=1)[0].strip()
    if not shortest <= len(sentence) <= longest or _UNFIT.search(sentence):
        return None
    letters = sum(character.isalpha() or character == " " for character in sentence)
    if letters < 0.75 * len(sentence):
        return None
    sentence = sentence[0].upper() + sentence[1:]
    return sentence if sentence[-1] in ".!?" else sentence + "."


def _title(item: DocumentedObject) -> str:
    arguments = item.signature.partition("(")[2]
    return f"{item.name}({arguments}" if arguments else item.name


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
            inner = _kind(child, isinstance(node, ast.ClassDef))
            yield from _walk(child, f"{name}.{child.name}", depth + 1, inner)


def _kind(node: Definition, in_class: bool) -> str:
    if isinstance(node, ast.ClassDef):
        return "class"
    return "method" if in_class else "function"


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
def _no_collection() -> Iterator[None]:
    """A syntax tree has no garbage; looking for it costs a third of the parse."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
