"""Take evaluation items out of a corpus: Documents -> Documents.

    decontaminate: {uses: decontaminate, documents: ${clean}, sets: ["evals/*.jsonl"]}

A document that holds n-grams of an evaluation item is dropped, or the n-grams are cut out of it
with the text around them. `matches/` lists which document held which item, and where. With
`tokenizer: ${tokenizer}` the counts are of its tokens, else of words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt

from pipeline import panels
from pipeline.errors import InputError, Problem
from pipeline.stage import EXECUTION, Inputs, Params, Section, stage
from stages.text.cleaning_params import Share
from stages.text.sources import fsspec_files

if TYPE_CHECKING:
    from pipeline.context import Context
    from stages.text.decontamination.contamination_detector import (
        ContaminationDetector,
        DecontaminationStats,
    )
    from stages.text.decontamination.ngram_index import EvaluationIndex
    from stages.text.token_counter import TokenCounter


class CutSection(Section):
    """How contaminated documents are cut (GPT-3's values)."""

    margin: Annotated[int, Field(ge=0)] = 200
    """Characters that go on each side of a matched n-gram."""
    min_piece: PositiveInt = 200
    """Characters of a piece that stays, at least."""
    max_cuts: PositiveInt = 10
    """A document with more cuts is dropped whole."""


class DecontaminateParams(Params):
    """Which evaluation sets, and how much of an item is too much."""

    sets: Annotated[tuple[str, ...], Field(min_length=1), EXECUTION]
    """Evaluation sets: files, folders, globs, URLs and datasets, as `clean` reads them. Content
    decides the artifact, not where it lies."""
    text_fields: Annotated[tuple[str, ...], Field(min_length=1)] = ("text",)
    """The fields of jsonl, csv and parquet files that hold texts; each is an item of its own."""
    ngram: Annotated[int, Field(ge=8, le=13)] = 13
    """Words of an n-gram; characters, in scripts that are written without spaces. Items of fewer
    words, down to 8, are searched for as a whole."""
    max_overlap: Share = 0.0
    """The share of an item's n-grams that a document may hold; at 0 a single one is too many."""
    max_occurrences: PositiveInt | None = 10
    """N-grams that more documents hold are common speech and count for nothing; null counts all.
    `items_common` tells of how many items nothing else is left."""
    action: Literal["drop", "cut"] = "drop"
    """Drop a contaminated document, or cut out what matched and keep the rest as one document."""
    cut: CutSection = CutSection()
    """What `action: cut` cuts."""

    def externals(self) -> dict[str, str]:
        """The content of each evaluation set."""
        from stages.text.sources.source_listing import content_digest

        return {f"sets.{at}": content_digest(name) for at, name in enumerate(self.sets)}

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Sets and fields are named once, and no URL spells out a secret."""
        for name in self.sets:
            if fsspec_files.contains_secret(name):
                yield Problem("sets", *fsspec_files.SECRET_IN_URL)
        for key in ("sets", "text_fields"):
            names = getattr(self, key)
            if len(set(names)) < len(names):
                yield Problem(key, "one is named twice", "name each once")


@stage(
    "decontaminate",
    inputs={"documents": "Documents", "tokenizer": "Tokenizer?"},
    output="Documents",
    version=3,
)
def decontaminate(params: DecontaminateParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Drop documents that hold evaluation items, or cut the items out."""
    from stages.text.decontamination.contamination_detector import (
        ContaminationDetector,
        Cut,
        document_frequencies,
        write,
    )
    from stages.text.decontamination.ngram_index import read_evaluation_sets
    from stages.text.token_counter import TokenCounter

    evaluation = read_evaluation_sets(params.sets, params.text_fields, params.ngram)
    counter = TokenCounter.of(inputs.get_path("tokenizer"))
    commits = _search(params, evaluation, counter, inputs, ctx)
    counts = document_frequencies(commits, len(evaluation.ngrams))
    detector = ContaminationDetector(evaluation, counts, params.max_occurrences, params.max_overlap)
    ctx.check_cancelled()
    cut = Cut(params.cut.margin, params.cut.min_piece, params.cut.max_cuts)
    stats = write(
        inputs.path("documents"),
        commits,
        detector,
        cut if params.action == "cut" else None,
        out,
        counter,
    )
    if not stats.kept["documents"]:
        raise InputError(
            f"all {stats.read['documents']} documents are contaminated",
            where="sets",
            remedy="raise max_overlap, or see whether the sets are copies of the documents",
        )
    _report(params, evaluation, stats, detector, ctx)


def _search(
    params: DecontaminateParams,
    evaluation: EvaluationIndex,
    counter: TokenCounter,
    inputs: Inputs,
    ctx: Context,
) -> list[Path]:
    from stages.data.documents import Documents
    from stages.distributed.shard_tasks import run_shards
    from stages.text.decontamination.contamination_detector import search_shard
    from stages.text.decontamination.ngram_index import save_ngrams

    folder = inputs.path("documents")
    parts = len(Documents(folder).require_nonempty().files)
    ngrams = ctx.scratch / "grams.npy"
    save_ngrams(evaluation, ngrams)
    done = 0

    def on_commit(part: int) -> None:
        nonlocal done
        done += 1
        ctx.progress(done, parts, "parts")

    return run_shards(
        search_shard,
        [(folder, part, ngrams, evaluation.lengths, counter) for part in range(parts)],
        ctx.scratch / "searched",
        workers=params.workers,
        ctx=ctx,
        on_commit=on_commit,
    )


def _report(
    params: DecontaminateParams,
    evaluation: EvaluationIndex,
    stats: DecontaminationStats,
    detector: ContaminationDetector,
    ctx: Context,
) -> None:
    ignored, common = int(detector.ignored.sum()), detector.common
    for unit in stats.units:
        losses = {"contaminated": stats.dropped[unit], "cut out": stats.removed[unit]}
        steps = [(name, -lost) for name, lost in losses.items() if lost]
        steps = [("read", stats.read[unit]), *steps, ("kept", stats.kept[unit])]
        ctx.panel(panels.waterfall(f"Decontamination: {unit}", unit, steps))
    ctx.panel(_sets_table(evaluation, stats))
    if stats.overlaps:
        edges = [at / 20 for at in range(21)]
        counts = [0] * 20
        for overlap in stats.overlaps:
            counts[min(19, int(overlap * 20))] += 1
        title = "Share of an evaluation item in a contaminated document"
        ctx.panel(panels.histogram(title, edges, counts, thresholds=[params.max_overlap]))
        ctx.panel(panels.samples("What matched what", stats.shown))
    ctx.result(
        documents_read=stats.read["documents"],
        documents=stats.kept["documents"],
        characters_read=stats.read["characters"],
        characters=stats.kept["characters"],
        **{f"{stats.counter.unit}_read": stats.read[stats.counter.unit]},
        **{stats.counter.unit: stats.kept[stats.counter.unit]},
        contaminated=len(stats.overlaps),
        cut=stats.cut,
        items=len(evaluation.items),
        items_too_short=len(evaluation.too_short),
        items_found=len(stats.found),
        items_common=common,
        common_ngrams=ignored,
    )


def _sets_table(evaluation: EvaluationIndex, stats: DecontaminationStats) -> panels.Panel:
    columns = ("items", "searched", "found", "documents")
    return panels.table(
        "Evaluation sets",
        ("set", "items", "long enough", "items found", "documents with one"),
        [
            (name, *(counts[column] for column in columns))
            for name, counts in stats.by_set(evaluation).items()
        ],
    )
