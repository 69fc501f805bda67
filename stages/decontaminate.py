"""Remove evaluation items from a corpus: Documents -> Documents.

    decontaminate: {uses: decontaminate, documents: ${clean}, eval_sets: ["evals/*.jsonl"]}

A document that contains n-grams of an evaluation item is dropped, or the n-grams are removed from
it with the text around them. `matches/` lists which document contained which item, and where. With
`tokenizer: ${tokenizer}` its tokens are counted, else words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from pipeline import panels
from pipeline.errors import InputError, Problem
from pipeline.stage import EXECUTION, Inputs, Params, Section, stage
from stages.curation.left_out import LEFT_OUT_METRICS, UNREAD_METRICS
from stages.text.sources import fsspec_files

if TYPE_CHECKING:
    from pipeline.context import Context
    from stages.text.decontamination.contamination_detector import ContaminationDetector
    from stages.text.decontamination.decontamination_stats import DecontaminationStats
    from stages.text.decontamination.ngram_index import EvaluationIndex
    from stages.text.token_counter import TokenCounter


class CutSection(Section):
    """Removal of matches from contaminated documents by `action: cut` (GPT-3's values)."""

    margin: Annotated[int, Field(ge=0)] = 200
    """Text removed on each side of a matched n-gram, characters. Default: 200."""
    min_piece: PositiveInt = 200
    """Minimum length of a remaining piece, characters. Default: 200."""
    max_cuts: PositiveInt = 10
    """Maximum number of removed spans; a document with more is dropped. Default: 10."""


class DecontaminateParams(Params):
    """Evaluation sets, and how much of an item contaminates a document."""

    renamed: ClassVar[Mapping[str, str]] = {
        "sets": "eval_sets",
        "text_fields": "text_columns",
        "ngram": "ngram_size",
        "max_occurrences": "max_document_frequency",
    }

    eval_sets: Annotated[tuple[str, ...], Field(min_length=1), EXECUTION]
    """Evaluation sets: files, folders, globs, URLs and datasets, as `clean` reads them. The content
    determines the artifact, not its location."""
    text_columns: Annotated[tuple[str, ...], Field(min_length=1)] = ("text",)
    """Fields of json, csv and parquet files that contain texts; each text is an item of its own,
    also in lists and objects, such as the choices of a question. Default: [text]."""
    ngram_size: Annotated[int, Field(ge=8, le=13)] = 13
    """Length of an n-gram, words; characters in scripts that are written without spaces. Shorter
    items, down to 8 words, are searched for as a whole. Default: 13."""
    max_overlap: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Maximum share of an item's n-grams in a clean document. Default: 0, a single n-gram
    contaminates."""
    max_document_frequency: PositiveInt | None = 10
    """Maximum number of documents that contain an n-gram; more frequent ones are ignored as common
    speech, except in documents that contain the whole item. `items_common` counts the items without
    any other n-gram. Null ignores none. Default: 10."""
    action: Literal["drop", "cut"] = "drop"
    """Treatment of a contaminated document: `drop`, or `cut`, which removes the matches and keeps
    the rest as one document. Default: drop."""
    cut: CutSection = CutSection()
    """Sizes of the cuts of `action: cut`. Default: as GPT-3."""

    def externals(self) -> dict[str, str]:
        """Return the digest of each evaluation set."""
        from stages.text.sources.source_listing import content_digest

        return {f"eval_sets.{at}": content_digest(name) for at, name in enumerate(self.eval_sets)}

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Check that sets and fields are named once, and that no URL contains a secret."""
        for name in self.eval_sets:
            if fsspec_files.contains_secret(name):
                yield Problem("eval_sets", *fsspec_files.SECRET_IN_URL)
        for key in ("eval_sets", "text_columns"):
            names = getattr(self, key)
            if len(set(names)) < len(names):
                yield Problem(key, "a name is repeated", "name each once")


@stage(
    "decontaminate",
    inputs={"documents": "Documents", "tokenizer": "Tokenizer?"},
    output="Documents",
    version=5,
    metrics={
        "documents_read": "documents of the input",
        "documents": "documents that are kept",
        "characters_read": "characters of the input",
        "characters": "characters that are kept",
        "words_read": "words of the input, without a tokenizer",
        "words": "words that are kept, without a tokenizer",
        "tokens_read": "tokens of the input, with a tokenizer",
        "tokens": "tokens that are kept, with a tokenizer",
        "contaminated": "documents that hold an evaluation item",
        "cut": "items that were cut out of documents",
        "items": "evaluation items that are searched",
        "items_too_short": "evaluation items without an n-gram",
        "items_found": "evaluation items that occur in a document",
        "items_common": "evaluation items whose n-grams are all common",
        "common_ngrams": "n-grams that are ignored because many documents hold them",
        **LEFT_OUT_METRICS,
        **UNREAD_METRICS,
    },
)
def decontaminate(params: DecontaminateParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Drop documents that contain evaluation items, or cut the items out."""
    from stages.text.decontamination.contamination_detector import (
        ContaminationDetector,
        SpanRemoval,
    )
    from stages.text.decontamination.decontamination_writer import write_decontaminated
    from stages.text.decontamination.ngram_index import read_evaluation_sets
    from stages.text.decontamination.ngram_search import document_frequencies
    from stages.text.token_counter import TokenCounter

    index = read_evaluation_sets(params.eval_sets, params.text_columns, params.ngram_size)
    counter = TokenCounter.from_artifact(inputs.get_path("tokenizer"))
    searched = _search(params, index, counter, inputs, ctx)
    frequencies = document_frequencies(searched, len(index.ngrams))
    detector = ContaminationDetector(
        index, frequencies, params.max_document_frequency, params.max_overlap
    )
    ctx.check_cancelled()
    removal = None
    if params.action == "cut":
        removal = SpanRemoval(params.cut.margin, params.cut.min_piece, params.cut.max_cuts)
    folder = inputs.path("documents")
    stats = write_decontaminated(folder, searched, detector, removal, out, counter)
    if not stats.records_kept:
        raise InputError(
            f"all {stats.records_read} documents are contaminated",
            where="eval_sets",
            remedy="raise max_overlap, or check whether the sets are copies of the documents",
        )
    _report(params, stats, detector, ctx)


def _search(
    params: DecontaminateParams,
    index: EvaluationIndex,
    counter: TokenCounter,
    inputs: Inputs,
    ctx: Context,
) -> list[Path]:
    """Search the documents for n-grams of the items, one part per task."""
    from stages.data.documents import Documents
    from stages.distributed.shard_tasks import run_shards
    from stages.text.decontamination.ngram_index import save_ngrams
    from stages.text.decontamination.ngram_search import search_part

    folder = inputs.path("documents")
    parts = len(Documents(folder).require_nonempty().files)
    ngrams = ctx.scratch / "ngrams.npy"
    save_ngrams(index, ngrams)
    done = 0

    def on_commit(part: int) -> None:
        nonlocal done
        done += 1
        ctx.progress(done, parts, "parts")

    return run_shards(
        search_part,
        [(folder, part, ngrams, index.lengths, counter) for part in range(parts)],
        ctx.scratch / "searched",
        workers=params.workers,
        ctx=ctx,
        on_commit=on_commit,
    )


def _report(
    params: DecontaminateParams,
    stats: DecontaminationStats,
    detector: ContaminationDetector,
    ctx: Context,
) -> None:
    from stages.curation.folder_listing import LeftOut
    from stages.curation.left_out import report_left_out, report_unread
    from stages.text.sources.source_listing import list_files

    for unit in stats.units:
        steps = stats.waterfall_steps(unit, "cut out")
        ctx.panel(panels.waterfall(f"Decontamination: {unit}", unit, steps))
    columns = ("items", "searched", "found", "documents")
    by_set = stats.by_set(detector.index)
    rows: list[tuple[str | int, ...]] = [
        (name, *(counts[column] for column in columns)) for name, counts in by_set.items()
    ]
    titles = ("set", "items", "long enough", "items found", "documents with one")
    ctx.panel(panels.table("Evaluation sets", titles, rows))
    if stats.overlaps:
        edges = [at / 20 for at in range(21)]
        counts = [0] * 20
        for overlap in stats.overlaps:
            counts[min(19, int(overlap * 20))] += 1
        title = "Share of an evaluation item in a contaminated document"
        ctx.panel(panels.histogram(title, edges, counts, thresholds=[params.max_overlap]))
        ctx.panel(panels.samples("Matches", stats.examples))
    unit, index = stats.counter.unit, detector.index
    ctx.result(
        documents_read=stats.records_read,
        documents=stats.records_kept,
        characters_read=stats.read["characters"],
        characters=stats.kept["characters"],
        **{f"{unit}_read": stats.read[unit], unit: stats.kept[unit]},
        contaminated=len(stats.overlaps),
        cut=stats.cut,
        items=len(index.items),
        items_too_short=len(index.too_short),
        items_found=len(stats.found),
        items_common=detector.common_items,
        common_ngrams=int(detector.ignored.sum()),
    )
    reasons = {rule: counts["documents"] for rule, counts in stats.by_rule.items()}
    keys = dict.fromkeys(reasons, "max_overlap")
    report_left_out(ctx, "documents", stats.records_read, reasons, keys)
    unread = LeftOut()
    report_unread(ctx, len(list_files(params.eval_sets, unread)), unread)
