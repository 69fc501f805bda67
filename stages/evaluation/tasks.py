"""Tasks that a model is scored on by log-likelihood: their files, and items as text.

A task is a jsonl file, one item a line, or a YAML file that says how such a file is read:

    name: capitals                   # of its figures; the file's name, if left out
    items: capitals.jsonl            # beside this file
    kind: choice                     # or cloze; found out from the first item, if left out
    template: "Q: {question}\\nA:"    # {key} is that key of the item
    target_delimiter: " "            # between a context and what is scored after it
    delimiter: "\\n\\n"                # between shots
    description: ""                  # before everything
    shots: 5                         # solved items in front, where the stage does not say

Items of multiple choice, `answer` counted from 0:

    {"question": "Where is the Louvre?", "choices": ["Rome", "Paris"], "answer": 1}

Items of cloze, as in LAMBADA; `target` is the end of the text, its last word if left out:

    {"text": "The Louvre is in Paris"}

Any other key may stand in a template. Without one, a choice's context is its `context` and its
`question`, those that are there, on a line each; a cloze's is its text up to the target (as
`{context}`). Items with `"split": "train"` are not scored: shots are drawn from them, or from
the other items where there are none; for each item anew, by the seed and its line, and never one
that says the same.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from pydantic import Field, ValidationError

from pipeline.atomic_io import disk_errors
from pipeline.errors import InputError, SpecError, did_you_mean
from pipeline.spec.yaml_reader import format_key_path, read_yaml
from pipeline.stage import Section

KEY = re.compile(r"\{(\w+)\}")
SCALAR = (str, int, float)


class TaskSection(Section):
    """What a task's YAML file may say."""

    items: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    kind: Literal["choice", "cloze"] | None = None
    template: str | None = None
    target_delimiter: str = " "
    delimiter: str = "\n\n"
    description: str = ""
    shots: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True)
class Item:
    """A question as text."""

    line: int
    """Of the file, from 1."""
    context: str
    choices: tuple[str, ...]
    """What is scored; the target of a cloze is the only one."""
    answer: int
    joint: str
    """Between the context and a choice."""
    train: bool = False

    @property
    def solved(self) -> str:
        """The item as a shot shows it."""
        return self.context + self.joint + self.choices[self.answer]

    @property
    def question(self) -> tuple[str, tuple[str, ...]]:
        """What makes it the same as another, in whatever order the choices stand."""
        return self.context, tuple(sorted(self.choices))


@dataclass(frozen=True)
class Task:
    """A task that was read: plain data."""

    name: str
    kind: str
    items: tuple[Item, ...]
    section: TaskSection
    path: str
    digest: str
    """The sha256 of everything that decides the items."""

    @property
    def scored(self) -> list[Item]:
        """The items that are not there for shots only."""
        return [item for item in self.items if not item.train]

    def shots_of(self, item: Item, count: int, seed: int) -> list[Item]:
        """The solved items before an item: the same for the same seed, task and line.

        Raises:
            InputError: the file does not hold that many others.
        """
        pool, alike = self._pool, self._questions[item.question]
        if len(pool) - alike < count:
            raise InputError(
                f"{count} shots are asked for, {len(pool) - alike} items are there to draw from",
                where=f"{self.path}:{item.line}",
                remedy='lower `shots`, or add items with "split": "train"',
            )
        chance = random.Random(f"{seed} {self.name} {item.line}")
        drawn = chance.sample(pool, count + alike)
        return [one for one in drawn if one.question != item.question][:count]

    @cached_property
    def _pool(self) -> list[Item]:
        return [one for one in self.items if one.train] or self.scored

    @cached_property
    def _questions(self) -> Counter[tuple[str, tuple[str, ...]]]:
        return Counter(one.question for one in self._pool)

    def prompt(self, item: Item, shots: Sequence[Item]) -> str:
        """Everything before an item's choices."""
        solved = [shot.solved + self.section.delimiter for shot in shots]
        return "".join([self.section.description, *solved, item.context])


def load_task(path: str) -> Task:
    """Read a task.

    Raises:
        InputError: a file is missing or broken; the message says the line and the key.
    """
    section, items = _header(Path(path))
    files = dict.fromkeys((Path(path), items))
    digest = sha256(b"".join(sha256(_bytes(file)).digest() for file in files)).hexdigest()
    rows = list(_rows(items))
    if not rows:
        raise InputError("the task has no items", where=str(items))
    kind = section.kind or ("choice" if "choices" in rows[0][1] else "cloze")
    reading = _choice if kind == "choice" else _cloze
    found = tuple(reading(_Row(items, line, row, section)) for line, row in rows)
    task = Task(section.name, kind, found, section, str(items), digest)
    if not task.scored:
        raise InputError("every item is of the split `train`: none is left", where=str(items))
    return task


def _header(path: Path) -> tuple[TaskSection, Path]:
    """How the items are read, and where they are."""
    _bytes(path)
    if path.suffix not in (".yaml", ".yml"):
        return _section({"name": path.stem, "items": path.name}, lambda _: str(path)), path
    try:
        tree = read_yaml(path)
    except SpecError as error:
        _refuse(error.problems[0].message, error.problems[0].where)
    for problem in tree.problems:
        _refuse(str(problem), "", problem.remedy)
    if not isinstance(tree.data, dict):
        _refuse("a task file is a mapping of keys", str(path), "see `headwater stages`")
    section = _section(
        {"name": path.stem, **tree.data}, lambda key: tree.location(key) or str(path)
    )
    return section, path.parent / section.items


def _section(data: Mapping[str, Any], place: Any) -> TaskSection:
    try:
        return TaskSection(**data)
    except ValidationError as error:
        first = error.errors()[0]
        key = first["loc"]
        if first["type"] == "extra_forbidden":
            near = did_you_mean(str(key[0]), TaskSection.model_fields)
            _refuse(f"{format_key_path(key)}: there is no such key", place(key), near)
        _refuse(f"{format_key_path(key)}: {first['msg']}", place(key))


def _bytes(path: Path) -> bytes:
    if not path.is_file():
        _refuse("there is no such task file", str(path), "name a .yaml or a .jsonl file")
    with disk_errors(path, to="read"):
        return path.read_bytes()


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a jsonl file with their lines; blank lines are nothing."""
    for line, raw in enumerate(_bytes(path).split(b"\n"), 1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw)
        except (ValueError, RecursionError) as error:
            _refuse(f"this is not JSON: {error}", f"{path}:{line}", "one object a line")
        if not isinstance(row, dict):
            _refuse("an item is an object", f"{path}:{line}", '{"question": …, "choices": […], …}')
        yield line, row


@dataclass(frozen=True)
class _Row:
    """An item as its file has it."""

    path: Path
    line: int
    values: dict[str, Any]
    section: TaskSection

    def text(self, key: str) -> str:
        """A key that must be text.

        Raises:
            InputError: it is missing, empty or not text.
        """
        value = self.values.get(key)
        if not isinstance(value, str) or not value.strip():
            self.refuse(key, "is missing" if value is None else "is no text, or empty")
        return value

    def filled(self, template: str, more: Mapping[str, Any]) -> str:
        """A template with the item's values.

        Raises:
            InputError: it names a key that is not there, or that is not one value.
        """
        values = {**self.values, **more}

        def value(match: re.Match[str]) -> str:
            found = values.get(match[1])
            if isinstance(found, bool) or not isinstance(found, SCALAR):
                self.refuse(match[1], "is named by the template, and is no text or number here")
            return str(found)

        return KEY.sub(value, template)

    @property
    def train(self) -> bool:
        """Whether it is there for shots.

        Raises:
            InputError: its split is no split.
        """
        split = self.values.get("split", "test")
        if split not in ("train", "test"):
            self.refuse("split", f"is {split!r}", "`train` (for shots) or `test`")
        return bool(split == "train")

    def refuse(self, key: str, why: str, remedy: str = "") -> NoReturn:
        """Say what is wrong with a key."""
        _refuse(f"`{key}` {why}", f"{self.path}:{self.line}", remedy)


def _choice(row: _Row) -> Item:
    choices, answer = row.values.get("choices"), row.values.get("answer")
    if not isinstance(choices, list) or len(choices) < 2:
        row.refuse("choices", "is no list of two or more", "list what is to choose from")
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        row.refuse("choices", "holds what is no text, or empty")
    if not isinstance(answer, int) or isinstance(answer, bool):
        row.refuse("answer", "is no whole number", "count the choices from 0")
    if not 0 <= answer < len(choices):
        row.refuse("answer", f"is {answer}, of {len(choices)} choices", "count them from 0")
    keys = [key for key in ("context", "question") if key in row.values]
    if row.section.template is None and not keys:
        row.refuse("question", "is missing", "or give a `template` that names other keys")
    template = row.section.template or "\n".join(f"{{{key}}}" for key in keys)
    context = row.filled(template, {})
    joint = row.section.target_delimiter
    return Item(row.line, context, tuple(choices), answer, joint, row.train)


def _cloze(row: _Row) -> Item:
    """The space before the target is part of the text, whatever `target_delimiter` says."""
    text = row.text("text").rstrip()
    target = row.text("target") if "target" in row.values else text.split()[-1]
    if not text.endswith(target):
        row.refuse("target", f"is {target!r}, and the text does not end with it")
    before = text[: -len(target)]
    told = before.rstrip()
    if not told:
        row.refuse("text", "has nothing before the target")
    context = row.filled(row.section.template or "{context}", {"context": told})
    return Item(row.line, context, (target,), 0, before[len(told) :], row.train)


def _refuse(why: str, where: str, remedy: str = "") -> NoReturn:
    raise InputError(why, where=where, remedy=remedy)
