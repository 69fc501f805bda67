"""Documented objects of the Python installation as questions and answers with fixed splits.

Every public object with a fit summary belongs to one split by the hash of that sentence, so that
what is held out is held out wherever it is said of an object. The shares are constants on purpose:
stages that build questions, stages that build preferences and the reader of `python:docs` must
agree on them, or what one evaluates on would be what the other trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.context import Context
from pipeline.errors import InputError
from stages.data.conversation_dataset import Message
from stages.data.hashing import hash64, hash_fraction
from stages.distributed.shard_tasks import run_shards
from stages.text.cleaning_params import PythonDocsParams
from stages.text.python_docs.docstrings import MAX_SOURCE, documented_objects, first_sentence
from stages.text.python_docs.installed_files import module_name
from stages.text.sources import source_listing
from stages.text.unicode_repair import repair

EVAL_SHARE = 0.1
UNLABELLED_SHARE = 0.3
LONGEST_NAME = 64  # characters: a question stays a short prompt
TEMPLATES = (
    "What does `{}` do?",
    "What is `{}` for?",
    "Explain `{}` in one sentence.",
    "Describe what `{}` does.",
)
_PUBLIC = re.compile(r"[A-Za-z]\w*(?:\.[A-Za-z]\w*)*")


@dataclass(frozen=True, slots=True)
class ObjectSummary:
    """An object and the sentence that says what it does."""

    name: str
    """Dotted: `pathlib.Path.glob`."""
    kind: str
    """`module`, `class`, `function` or `method`."""
    sentence: str

    @property
    def top(self) -> str:
        """The top-level module."""
        return self.name.partition(".")[0]

    @property
    def parent(self) -> str:
        """The module or class that holds it; its siblings have the same."""
        return self.name.rpartition(".")[0]

    @property
    def split(self) -> str:
        """`train`, `eval` or `unlabelled`: see `split_of`."""
        return split_of(self.sentence)

    @property
    def question(self) -> tuple[Message, ...]:
        """The prompt about it, in one of a few wordings chosen by its name."""
        template = TEMPLATES[hash64(f"template {self.name}") % len(TEMPLATES)]
        return (Message("user", template.format(self.name)),)


def split_of(sentence: str) -> str:
    """`train`, `eval` or `unlabelled`, by the hash of the sentence in lower case."""
    place = hash_fraction(f"summary {sentence.lower()}")
    if place < EVAL_SHARE:
        return "eval"
    return "unlabelled" if place >= 1 - UNLABELLED_SHARE else "train"


def is_held_out(doc: str) -> bool:
    """Whether an object of that docstring is in the `eval` split, however long its summary is."""
    sentence = first_sentence(repair(doc), shortest=1, longest=MAX_SOURCE)
    return sentence is not None and split_of(sentence) == "eval"


@dataclass(frozen=True, slots=True)
class SummaryTask:
    """One task: files to read, and how long an answer may be, in characters."""

    files: tuple[source_listing.SourceFile, ...]
    shortest: int
    longest: int


def read_summaries(work: SummaryTask, commit: Path) -> None:
    """Read the facts of a shard's modules and commit them as JSON."""
    from pipeline.atomic_io import write_atomic

    summaries = [
        entry for file in work.files for entry in _summaries(file, work.shortest, work.longest)
    ]
    write_atomic(commit, json.dumps([asdict(entry) for entry in summaries]), durable=False)


def collect_summaries(params: PythonDocsParams, ctx: Context) -> list[ObjectSummary]:
    """The first facts of the installation whose names and summaries are unique.

    Raises:
        InputError: the installation documents nothing.
        Interrupted: the run was cancelled.
    """
    most, lengths = params.max_objects, (params.min_characters, params.max_characters)
    files = [
        f
        for f in source_listing.list_files([source_listing.PYTHON_DOCS])
        if f.place.endswith(".py")
    ]
    works = [SummaryTask(tuple(cut), *lengths) for cut in source_listing.make_shards(files)]
    folder = ctx.scratch / "summaries"
    unique = _UniqueSummaries(folder)

    def enough(leading: int) -> bool:
        unique.take(leading)
        ctx.progress(min(len(unique.summaries), most), most, "objects")
        return len(unique.summaries) >= most

    commits = run_shards(
        read_summaries, works, folder, workers=params.workers, ctx=ctx, enough=enough
    )
    unique.take(len(commits))
    if not unique.summaries:
        raise InputError(
            "the Python installation has no documented objects",
            remedy="install the standard library's sources, or widen the answers' length",
        )
    return unique.summaries[:most]


class _UniqueSummaries:
    """Unique facts of the leading shards, in order."""

    def __init__(self, folder: Path) -> None:
        self.summaries: list[ObjectSummary] = []
        self._folder = folder
        self._shards = 0
        self._seen: set[str] = set()

    def take(self, leading: int) -> None:
        """Take in the shards up to `leading` that were not taken yet."""
        for shard in range(self._shards, leading):
            for row in json.loads((self._folder / f"{shard:06d}").read_text()):
                entry = ObjectSummary(**row)
                keys = {f"name {entry.name}", f"summary {entry.sentence.lower()}"}
                if self._seen.isdisjoint(keys):
                    self._seen |= keys
                    self.summaries.append(entry)
        self._shards = max(self._shards, leading)


def _summaries(file: source_listing.SourceFile, shortest: int, longest: int) -> list[ObjectSummary]:
    module = module_name(file.place.partition("/")[2])
    if not _PUBLIC.fullmatch(module):
        return []
    found = []
    for item in documented_objects(Path(file.path).read_bytes(), module):
        if len(item.name) <= LONGEST_NAME and _PUBLIC.fullmatch(item.name):
            sentence = first_sentence(repair(item.doc), shortest, longest)
            if sentence:
                found.append(ObjectSummary(item.name, item.kind, sentence))
    return found


def pick_by_key(choices: Sequence[ObjectSummary], key: str) -> ObjectSummary:
    """One of the choices, decided by the key."""
    return choices[hash64(key) % len(choices)]
