"""Tasks for log-likelihood evaluation: file formats, items and few-shot prompts.

A task is a JSONL file with one item per line, or a YAML file that configures one:

    name: capitals                   # prefix of the metrics. Default: the name of the file
    items: capitals.jsonl            # path relative to this file
    task_type: multiple_choice       # or cloze. Default: the type of the first item
    template: "Q: {question}\\nA:"    # {key} is replaced by that key of the item
    target_delimiter: " "            # between a context and its continuation
    fewshot_delimiter: "\\n\\n"        # between few-shot examples
    description: ""                  # text before everything else
    num_fewshot: 5                   # few-shot examples, unless the stage sets another number

A multiple-choice item; `answer` is an index, from 0:

    {"question": "Where is the Louvre?", "choices": ["Rome", "Paris"], "answer": 1}

A cloze item, as in LAMBADA; `target` is the end of the text. Default: its last word:

    {"text": "The Louvre is in Paris"}

A template may name any other key. Without a template the context of a multiple-choice item is its
`context` and `question`, those that exist, one per line; the context of a cloze item is its text up
to the target (`{context}` in a template). Items with `"split": "train"` are not scored: few-shot
examples are sampled from them, or from the other items if the split is empty; for each item anew,
by seed and line number, and never an item with the same question.

Key names follow lm-eval.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NoReturn

from pydantic import Field, ValidationError

from pipeline.atomic_io import disk_errors
from pipeline.errors import InputError, SpecError, did_you_mean
from pipeline.spec.yaml_reader import format_key_path, read_yaml
from pipeline.stage import Section
from stages.data.formats.text_encoding import UndecodableText, decode_text

_TEMPLATE_KEY = re.compile(r"\{(\w+)\}")

TaskType = Literal["multiple_choice", "cloze"]


class TaskConfig(Section):
    """Keys of a task's YAML file."""

    renamed: ClassVar[dict[str, str]] = {
        "kind": "task_type",
        "delimiter": "fewshot_delimiter",
        "shots": "num_fewshot",
    }

    items: Annotated[str, Field(min_length=1)]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")]
    task_type: TaskType | None = None
    template: str | None = None
    target_delimiter: str = " "
    fewshot_delimiter: str = "\n\n"
    description: str = ""
    num_fewshot: Annotated[int, Field(ge=0)] = 0


@dataclass(frozen=True)
class Item:
    """A question as text."""

    line: int
    """Line number in the file, from 1."""
    context: str
    choices: tuple[str, ...]
    """Scored continuations; a cloze has one, its target."""
    answer: int
    """Index of the correct choice."""
    target_delimiter: str
    """Text between the context and a choice."""
    in_train_split: bool = False

    @property
    def text_with_answer(self) -> str:
        """The item as a few-shot example."""
        return self.context + self.target_delimiter + self.choices[self.answer]

    @property
    def question(self) -> tuple[str, tuple[str, ...]]:
        """Context and sorted choices: equal for items with the same question."""
        return self.context, tuple(sorted(self.choices))


@dataclass(frozen=True)
class Task:
    """Items of a task and how they are prompted."""

    name: str
    task_type: TaskType
    items: tuple[Item, ...]
    config: TaskConfig
    path: str
    digest: str
    """SHA-256 of the task's files."""
    num_fewshot: int = 0
    """Few-shot examples before each item."""
    limit: int = 0
    """Number of items that are scored; 0 means all."""

    @property
    def scored_items(self) -> list[Item]:
        """The items of the test split, up to the limit."""
        return self._test_items[: self.limit or None]

    def fewshot_examples(self, item: Item, count: int, seed: int) -> list[Item]:
        """Sample the examples before an item; a function of the seed, the task's name and the line.

        Raises:
            InputError: the file has fewer than `count` items with other questions.
        """
        pool, same = self._fewshot_pool, self._question_counts[item.question]
        if len(pool) - same < count:
            raise InputError(
                f"num_fewshot is {count}, but only {len(pool) - same} other items exist",
                where=f"{self.path}:{item.line}",
                remedy='lower `num_fewshot`, or add items with "split": "train"',
            )
        generator = random.Random(f"{seed} {self.name} {item.line}")
        sampled = generator.sample(pool, count + same)
        return [one for one in sampled if one.question != item.question][:count]

    def prompt(self, item: Item, examples: Sequence[Item]) -> str:
        """Return the text before the choices of an item."""
        shots = [one.text_with_answer + self.config.fewshot_delimiter for one in examples]
        return "".join([self.config.description, *shots, item.context])

    @cached_property
    def _test_items(self) -> list[Item]:
        return [item for item in self.items if not item.in_train_split]

    @cached_property
    def _fewshot_pool(self) -> list[Item]:
        return [one for one in self.items if one.in_train_split] or self._test_items

    @cached_property
    def _question_counts(self) -> Counter[tuple[str, tuple[str, ...]]]:
        return Counter(one.question for one in self._fewshot_pool)


def load_tasks(
    paths: Sequence[str], *, num_fewshot: int | None = None, limit: int = 0, seed: int = 0
) -> list[Task]:
    """Read tasks and check that each has enough few-shot examples.

    Args:
        paths: YAML or JSONL files.
        num_fewshot: few-shot examples before each item. Default: the value of each task file.
        limit: number of items per task that are scored; 0 means all.
        seed: random seed of few-shot examples.

    Raises:
        InputError: a file is missing or invalid, has too few examples, or two tasks have the same
            name.
    """
    loaded = [load_task(path) for path in paths]
    names = [task.name for task in loaded]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise InputError(
            f"two tasks are named {twice!r}",
            where=loaded[names.index(twice)].path,
            remedy="give one of them another `name`",
        )
    tasks = []
    for task in loaded:
        count = task.config.num_fewshot if num_fewshot is None else num_fewshot
        tasks.append(replace(task, num_fewshot=count, limit=limit))
        for item in tasks[-1].scored_items:
            task.fewshot_examples(item, count, seed)
    return tasks


def load_task(path: str) -> Task:
    """Read a task.

    Raises:
        InputError: a file is missing or invalid; the message names line and key.
    """
    config, items_path = _read_config(Path(path))
    files = dict.fromkeys((Path(path), items_path))
    digest = sha256(b"".join(sha256(_read_bytes(file)).digest() for file in files)).hexdigest()
    rows = list(_read_rows(items_path))
    if not rows:
        raise InputError("the task has no items", where=str(items_path))
    first_type: TaskType = "multiple_choice" if "choices" in rows[0][1] else "cloze"
    task_type = config.task_type or first_type
    parse = _parse_choice if task_type == "multiple_choice" else _parse_cloze
    items = tuple(parse(_Row(items_path, line, row, config)) for line, row in rows)
    task = Task(config.name, task_type, items, config, str(items_path), digest)
    if not task.scored_items:
        raise InputError("no item to score: all have the split `train`", where=str(items_path))
    return task


def _read_config(path: Path) -> tuple[TaskConfig, Path]:
    """Return the configuration of a task and the path of its items."""
    _read_bytes(path)
    if path.suffix not in (".yaml", ".yml"):
        data = {"name": path.stem, "items": path.name}
        return _validate_config(data, lambda _: str(path)), path
    try:
        tree = read_yaml(path)
    except SpecError as error:
        _raise_invalid(error.problems[0].message, error.problems[0].where)
    for problem in tree.problems:
        _raise_invalid(str(problem), "", problem.remedy)
    if not isinstance(tree.data, dict):
        _raise_invalid("a task file must be a mapping", str(path), "see `headwater stages`")
    config = _validate_config(
        {"name": path.stem, **tree.data}, lambda key: tree.location(key) or str(path)
    )
    return config, path.parent / config.items


def _validate_config(data: Mapping[str, Any], location: Callable[[Any], str]) -> TaskConfig:
    try:
        return TaskConfig(**data)
    except ValidationError as error:
        first = error.errors()[0]
        key = first["loc"]
        if first["type"] == "extra_forbidden":
            name = str(key[0])
            if name in TaskConfig.renamed:
                _raise_invalid(f"{name}: renamed to {TaskConfig.renamed[name]!r}", location(key))
            remedy = did_you_mean(name, TaskConfig.model_fields)
            _raise_invalid(f"{format_key_path(key)}: unknown key", location(key), remedy)
        _raise_invalid(f"{format_key_path(key)}: {first['msg']}", location(key))


def _read_bytes(path: Path) -> bytes:
    if not path.is_file():
        _raise_invalid("no such task file", str(path), "name a .yaml or .jsonl file")
    with disk_errors(path, to="read"):
        return path.read_bytes()


def _read_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the objects of a JSONL file with their line numbers; blank lines are skipped."""
    try:
        text = decode_text(_read_bytes(path))
    except UndecodableText as error:
        _raise_invalid(str(error), f"{path}:{error.line}", "save the file as UTF-8")
    for line, raw in enumerate(text.split("\n"), 1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw)
        except (ValueError, RecursionError) as error:
            _raise_invalid(f"invalid JSON: {error}", f"{path}:{line}", "write one object per line")
        if not isinstance(row, dict):
            remedy = 'write {"question": ..., "choices": [...], ...}'
            _raise_invalid("an item must be an object", f"{path}:{line}", remedy)
        yield line, row


@dataclass(frozen=True)
class _Row:
    """One line of the items file."""

    path: Path
    line: int
    values: dict[str, Any]
    config: TaskConfig

    def text(self, key: str) -> str:
        """Return a key that must be text.

        Raises:
            InputError: it is missing, empty or not text.
        """
        value = self.values.get(key)
        if not isinstance(value, str) or not value.strip():
            self.raise_invalid(key, "is missing" if value is None else "is not text, or empty")
        return value

    def fill(self, template: str, more: Mapping[str, Any]) -> str:
        """Insert the item's values into a template.

        Raises:
            InputError: the template names a key that is missing or not a scalar.
        """
        values = {**self.values, **more}

        def value(match: re.Match[str]) -> str:
            found = values.get(match[1])
            if isinstance(found, bool) or not isinstance(found, str | int | float):
                self.raise_invalid(match[1], "is used by the template, but is not text or a number")
            return str(found)

        return _TEMPLATE_KEY.sub(value, template)

    @property
    def in_train_split(self) -> bool:
        """True for few-shot examples.

        Raises:
            InputError: the split is neither `train` nor `test`.
        """
        split = self.values.get("split", "test")
        if split not in ("train", "test"):
            self.raise_invalid("split", f"is {split!r}", "write `train` (few-shot) or `test`")
        return bool(split == "train")

    def raise_invalid(self, key: str, reason: str, remedy: str = "") -> NoReturn:
        """Raise an InputError for a key of this line."""
        _raise_invalid(f"`{key}` {reason}", f"{self.path}:{self.line}", remedy)


def _parse_choice(row: _Row) -> Item:
    choices, answer = row.values.get("choices"), row.values.get("answer")
    if not isinstance(choices, list) or len(choices) < 2:
        row.raise_invalid("choices", "must be a list of two or more", "list all choices")
    if not all(isinstance(choice, str) and choice.strip() for choice in choices):
        row.raise_invalid("choices", "has an element that is not text, or empty")
    if not isinstance(answer, int) or isinstance(answer, bool):
        row.raise_invalid("answer", "must be an integer", "give an index, from 0")
    if not 0 <= answer < len(choices):
        row.raise_invalid("answer", f"is {answer}, with {len(choices)} choices", "count from 0")
    keys = [key for key in ("context", "question") if key in row.values]
    if row.config.template is None and not keys:
        row.raise_invalid("question", "is missing", "add it, or set a `template` of other keys")
    template = row.config.template or "\n".join(f"{{{key}}}" for key in keys)
    context, delimiter = row.fill(template, {}), row.config.target_delimiter
    return Item(row.line, context, tuple(choices), answer, delimiter, row.in_train_split)


def _parse_cloze(row: _Row) -> Item:
    """Parse a cloze; the space before the target is part of the text, not `target_delimiter`."""
    text = row.text("text").rstrip()
    target = row.text("target") if "target" in row.values else text.split()[-1]
    if not text.endswith(target):
        row.raise_invalid("target", f"is {target!r}, but the text does not end with it")
    before = text[: -len(target)]
    stripped = before.rstrip()
    if not stripped:
        row.raise_invalid("text", "has nothing before the target")
    context = row.fill(row.config.template or "{context}", {"context": stripped})
    return Item(row.line, context, (target,), 0, before[len(stripped) :], row.in_train_split)


def _raise_invalid(reason: str, where: str, remedy: str = "") -> NoReturn:
    raise InputError(reason, where=where, remedy=remedy)
