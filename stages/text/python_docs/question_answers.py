"""Documented objects of the Python installation, each with a question and its answer."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.context import Context
from pipeline.errors import InputError
from stages.data.conversation_dataset import Message
from stages.data.hashing import hash64
from stages.distributed.shard_tasks import group_by_size, run_shards
from stages.text.python_docs.docstrings import documented_objects, first_sentence
from stages.text.python_docs.holdout import split_of
from stages.text.python_docs.installed_files import InstalledFile, installed_files
from stages.text.python_docs.python_docs_params import PythonDocsParams
from stages.text.unicode_repair import repair

SHARD_BYTES = 4 << 20  # of modules per task
MAX_NAME = 64  # characters: a question stays a short prompt
TEMPLATES = (
    "What does `{}` do?",
    "What is `{}` for?",
    "Explain `{}` in one sentence.",
    "Describe what `{}` does.",
)
_PUBLIC = re.compile(r"[A-Za-z]\w*(?:\.[A-Za-z]\w*)*")


@dataclass(frozen=True, slots=True)
class ObjectSummary:
    """A documented object and the first sentence of its docstring."""

    name: str
    """Dotted name: `pathlib.Path.glob`."""
    kind: str
    """`module`, `class`, `function` or `method`."""
    sentence: str

    @property
    def top(self) -> str:
        """The top-level module."""
        return self.name.partition(".")[0]

    @property
    def parent(self) -> str:
        """The module or class that contains it; its siblings have the same."""
        return self.name.rpartition(".")[0]

    @property
    def split(self) -> str:
        """`train`, `eval` or `unlabelled`: see `split_of`."""
        return split_of(self.sentence)

    @property
    def question(self) -> tuple[Message, ...]:
        """The prompt about it, in one of several wordings chosen by the hash of its name."""
        template = TEMPLATES[hash64(f"template {self.name}") % len(TEMPLATES)]
        return (Message("user", template.format(self.name)),)


@dataclass(frozen=True, slots=True)
class SummaryTask:
    """Files to read, and the length of an answer in characters."""

    files: tuple[InstalledFile, ...]
    min_length: int
    max_length: int


def read_summaries(task: SummaryTask, commit: Path) -> None:
    """Read the summaries of a shard's modules and commit them as JSON."""
    from pipeline.atomic_io import write_atomic

    found = [
        asdict(summary)
        for file in task.files
        for summary in module_summaries(file, task.min_length, task.max_length)
    ]
    write_atomic(commit, json.dumps(found), durable=False)


def module_summaries(file: InstalledFile, min_length: int, max_length: int) -> list[ObjectSummary]:
    """Return the public objects of a module whose first sentence has a fitting length."""
    if not _PUBLIC.fullmatch(file.module):
        return []
    found = []
    for item in documented_objects(Path(file.path).read_bytes(), file.module):
        if len(item.name) <= MAX_NAME and _PUBLIC.fullmatch(item.name):
            sentence = first_sentence(repair(item.doc), min_length, max_length)
            if sentence:
                found.append(ObjectSummary(item.name, item.kind, sentence))
    return found


def collect_summaries(params: PythonDocsParams, ctx: Context) -> list[ObjectSummary]:
    """Collect the first objects of the installation whose names and summaries are unique.

    Raises:
        InputError: the installation has no documented objects.
        Interrupted: the run was cancelled.
    """
    most, lengths = params.max_objects, (params.min_answer_characters, params.max_answer_characters)
    modules = [file for file in installed_files() if file.place.endswith(".py")]
    tasks = [SummaryTask(tuple(files), *lengths) for files in group_by_size(modules, SHARD_BYTES)]
    folder = ctx.scratch / "summaries"
    unique = _UniqueSummaries(folder)

    def enough(leading: int) -> bool:
        unique.extend_to(leading)
        ctx.progress(min(len(unique.summaries), most), most, "objects")
        return len(unique.summaries) >= most

    commits = run_shards(
        read_summaries, tasks, folder, workers=params.workers, ctx=ctx, enough=enough
    )
    unique.extend_to(len(commits))
    if not unique.summaries:
        raise InputError(
            "the Python installation has no documented objects",
            remedy="install the sources of the standard library, or widen the range of lengths",
        )
    return unique.summaries[:most]


class _UniqueSummaries:
    """Summaries of the leading shards in order, without repeated names and sentences."""

    def __init__(self, folder: Path) -> None:
        self.summaries: list[ObjectSummary] = []
        self._folder = folder
        self._shards = 0
        self._keys: set[str] = set()

    def extend_to(self, leading: int) -> None:
        """Add the shards up to `leading` that are not included yet."""
        for shard in range(self._shards, leading):
            for row in json.loads((self._folder / f"{shard:06d}").read_text()):
                summary = ObjectSummary(**row)
                keys = {f"name {summary.name}", f"summary {summary.sentence.lower()}"}
                if self._keys.isdisjoint(keys):
                    self._keys |= keys
                    self.summaries.append(summary)
        self._shards = max(self._shards, leading)


def pick_by_key(choices: Sequence[ObjectSummary], key: str) -> ObjectSummary:
    """Return one of the choices, determined by the hash of the key."""
    return choices[hash64(key) % len(choices)]
