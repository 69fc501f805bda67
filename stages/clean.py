"""Clean text: sources -> Documents.

    sources --annotate--> annotation tables: text, language, score of every rule, hashes
               |  repairs Unicode, masks personal data, removes boilerplate (both on request)
            --filter----> the rule that each document fails: broken, language, then the limits
            --dedup-----> the survivor of each group of exact and near copies; text that occurred
               |          earlier is removed (on request)
            --write-----> documents/, dropped/ with rule and score, stats.json, index/

    clean: {uses: clean, sources: ["python:docs", "notes/"], languages: [en]}
    more:  {uses: clean, sources: ["new/"], dedup_against: ["${clean}"]}

Each phase is the module of its name in `stages/text/`: `annotate`, `filter_decisions`, `dedup/`,
`document_writer`. The counts of read, kept and dropped text always add up. Of the documents of
`dedup_against` only hashes are read: copies of them are dropped. Besides documents and characters,
words are counted, or tokens where a `tokenizer` is given.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, PositiveInt

from pipeline.errors import InputError, Problem
from pipeline.stage import EXECUTION, Inputs, Params, stage
from stages.curation.left_out import LEFT_OUT_METRICS, UNREAD_METRICS
from stages.curation.param_checks import repeated_values
from stages.text.dedup.dedup_params import DedupParams, preference_problems
from stages.text.pii import PiiParams
from stages.text.rules.rule_params import (
    EditName,
    LimitChange,
    ListFiles,
    RuleSetName,
    limit_problems,
    merge_limits,
)
from stages.text.sources import fsspec_files

if TYPE_CHECKING:
    from pipeline.context import Context
    from stages.text.cleaning_stats import CleaningStats
    from stages.text.filter_report import FilterReport
    from stages.text.read_limits import ReadLimits
    from stages.text.sources.source_file import SourceFile
    from stages.text.token_counter import TokenCounter

VERSION = 7
META_FIELDS = ("place", "line", "row", "error")  # set by readers in the metadata
CHARACTERS_PER_SECOND = 0.5e6  # of kept text on one busy core, parsing of sources included


class CleanParams(Params):
    """Sources, filters and deduplication of a corpus."""

    renamed: ClassVar[Mapping[str, str]] = {
        "against": "dedup_against",
        "language_score": "language_threshold",
        "max_bad": "max_broken",
    }

    sources: Annotated[tuple[str, ...], Field(min_length=1), EXECUTION]
    """Sources of text: `python:docs` (without the objects held out for evaluation); files,
    folders or globs of txt, md, rst, html, jsonl, ndjson, json (lines, an array or one record),
    csv, tsv, parquet, warc and wet, and all but parquet compressed (.gz, .zst, .bz2, .xz); the
    same by any URL of fsspec (`s3://bucket/folder`, `https://host/*.jsonl.gz`), whose user and
    query appear neither in logs nor in documents; and
    `hf:NAME[@REVISION][?split=train&config=NAME]`, a Hugging Face dataset: a folder (saved, or of
    parquet, arrow or json files) or one of the hub, streamed at the commit of the revision. The
    content determines the artifact, not its location: a storage's MD5, or a hash of the bytes."""
    text_column: str = "text"
    """Field of json, csv and parquet files and of datasets that contains the text, or a list of
    texts, which are joined by line breaks. Default: text."""
    meta_columns: tuple[str, ...] = ()
    """Other fields to keep in a document's `meta` where present (`url`, `title`). Default: none."""
    languages: tuple[str, ...] = ()
    """ISO 639 codes of the languages to keep. Default: all."""
    language_threshold: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Minimum probability of the language, where `languages` is given. Default: 0.5."""
    max_broken: Annotated[int, Field(ge=0)] | None = None
    """Maximum number of broken records and files, which are counted and stored with the dropped
    documents. Default: any number."""
    max_documents: PositiveInt | None = None
    """Maximum number of documents to read, the first ones. Default: all."""
    max_characters: PositiveInt | None = None
    """Maximum number of characters to read, the first ones. Default: all."""
    rules: tuple[RuleSetName, ...] = ("length", "gopher_quality", "gopher_repetition")
    """Rule sets that documents must pass, in the order of evaluation; every score is recorded with
    the document. See docs/rules.md. Default: [length, gopher_quality, gopher_repetition]."""
    limits: dict[str, dict[str, LimitChange]] = Field(default={})
    """Limits that differ from those of the sets: `{gopher_quality: {words: [20, null], hash_marks:
    0.2}}`; null switches a rule off. Measurements are cached, so that a change of limits does not
    read the sources again. Default: none."""
    lists: ListFiles = ListFiles()
    """Blocklists for the rule set `lists`. Default: none."""
    edits: tuple[EditName, ...] = ()
    """Edits before rules measure the text, in order: removal of lines (`c4`, `boilerplate`), of
    paragraphs (`languages`, `chinese_paragraphs`), of a truncated last sentence
    (`whole_sentences`); and conversion to `simplified_chinese`. Default: none."""
    pii: PiiParams = PiiParams()
    """Personal data and secrets to mask. Default: none."""
    dedup: DedupParams = DedupParams()
    """Duplicates to drop."""

    def externals(self) -> dict[str, str]:
        """Return the digest of each source and list."""
        from stages.text.sources.source_listing import content_digest

        lists = {f"lists.{name}": path for name, path in self.lists if path is not None}
        named = {f"sources.{at}": name for at, name in enumerate(self.sources)} | lists
        return {key: content_digest(name) for key, name in named.items()}

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Check codes, repeated names, and that earlier hashes are comparable."""
        for code in self.languages:
            if not (code.isascii() and code.isalpha() and code.islower() and len(code) <= 3):
                yield Problem("languages", f"{code!r} is not an ISO 639 code", "write en, zh, de…")
        yield from repeated_values(self, "sources", "rules", "edits")
        for name in sorted({self.text_column, *META_FIELDS} & set(self.meta_columns)):
            yield Problem("meta_columns", f"{name!r} is reserved", "remove it")
        for source in self.sources:
            if fsspec_files.contains_secret(source):
                yield Problem("sources", *fsspec_files.SECRET_IN_URL)
        if ("lists" in self.rules) != (self.lists != ListFiles()):
            yield Problem("lists", "the rule set and its files go together", "name both")
        if "languages" in self.edits and not self.languages:
            yield Problem("edits", "`languages` needs the languages to keep", "set `languages`")
        yield from limit_problems(self.rules, self.limits)
        yield from preference_problems(self.dedup.prefer, self.rules, self.meta_columns)

        for name, earlier in upstream.items():
            if isinstance(earlier, CleanParams) and name.startswith("dedup_against"):
                own, other = self.dedup.hash_description, earlier.dedup.hash_description
                if not earlier.dedup.save_index:
                    yield Problem(name, "has no index", "set dedup.save_index there")
                elif self.dedup.near and own != other:
                    remedy = "use the same dedup settings, or switch off dedup.near"
                    yield Problem(name, f"has hashes of {other}, not of {own}", remedy)

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        """Estimate seconds and disk bytes, where `max_characters` bounds the text."""
        if self.max_characters is None:
            return {}
        seconds = self.max_characters / CHARACTERS_PER_SECOND / self.workers.num
        return {"seconds": seconds, "disk_bytes": self.max_characters / 2.0}


@stage(
    "clean",
    inputs={"dedup_against": "Documents*?", "tokenizer": "Tokenizer?"},
    output="Documents",
    version=VERSION,
    metrics={
        "documents_read": "documents of the sources",
        "documents": "documents that are kept",
        "characters_read": "characters of the sources",
        "characters": "characters that are kept",
        "words": "words that are kept, without a tokenizer",
        "tokens": "tokens that are kept, with a tokenizer",
        "duplicates": "documents that are copies of kept ones",
        "characters_removed": "characters cut from kept documents",
        "masked": "personal data that were masked",
        "broken": "records that cannot be read",
        **LEFT_OUT_METRICS,
        **UNREAD_METRICS,
    },
)
def clean(params: CleanParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Read, repair, filter and deduplicate text."""
    from stages.curation.folder_listing import LeftOut
    from stages.curation.left_out import report_left_out, report_unread
    from stages.text.annotate import annotated_rows
    from stages.text.dedup.duplicates import find_duplicates
    from stages.text.dedup.exact_substrings import remove_repeated_text, rows_after_removal
    from stages.text.dedup.hash_index import index_files, write_index
    from stages.text.dedup.hash_join import TaskScope
    from stages.text.dedup.survivor_ranking import rank_by_preference
    from stages.text.document_writer import write_documents
    from stages.text.filter_decisions import FilterLimits, apply_filters
    from stages.text.filter_report import FilterReport
    from stages.text.read_limits import ReadLimits
    from stages.text.rules.rule_scorer import RuleScorer
    from stages.text.sources.source_listing import list_files
    from stages.text.token_counter import TokenCounter

    earlier = index_files(inputs.paths("dedup_against"), params.dedup)
    counter = TokenCounter.from_artifact(inputs.get_path("tokenizer"))
    read_limits = ReadLimits(params.max_documents, params.max_characters)
    unread = LeftOut()
    files = list_files(params.sources, unread)
    annotations = _annotate(params, files, read_limits, counter, ctx)
    documents = read_limits.documents_within(len(annotations))
    if not documents:
        raise InputError(
            "the sources contain no documents within the limits",
            where="sources",
            remedy="name other sources, or raise max_documents and max_characters",
        )

    limits = merge_limits(params.rules, params.limits)
    filters = FilterLimits(params.languages, params.language_threshold, limits)
    rules = RuleScorer(params.rules).rules
    decisions = apply_filters(annotations, documents, rules, filters)

    scope = TaskScope(ctx.scratch, params.workers, ctx)
    rank = rank_by_preference(params.dedup.prefer, annotations, rules, decisions.scores)
    duplicates = find_duplicates(annotations, decisions.passed, params.dedup, rank, scope, earlier)
    ctx.check_cancelled()
    changes: list[Path] = []
    if params.dedup.removes_text:
        duplicates, changes = remove_repeated_text(
            annotations, duplicates, params.dedup, scope, counter
        )

    report = FilterReport(decisions, limits, duplicates)
    rows = rows_after_removal(annotated_rows(annotations), changes)
    stats = write_documents(rows, counter.unit, decisions, duplicates, report, out)
    shutil.rmtree(out / "index", ignore_errors=True)
    if params.dedup.save_index:
        write_index(annotations, duplicates, params.dedup, out)
    stats.report_broken(params.max_broken, ctx)
    _check_kept(stats)
    _report(stats, report, ctx)
    reasons = {rule: counts["documents"] for rule, counts in stats.by_rule.items()}
    keys = {rule: f"limits.{rule}" for rule in rules} | _PARAMETERS
    report_left_out(ctx, "documents", stats.records_read, reasons, keys)
    report_unread(ctx, len(files), unread)


_PARAMETERS = {
    "broken.text_column": "text_column",
    "language": "languages",
    "repeated_text": "dedup.min_remaining",
    **{f"exact_duplicate{end}": "dedup.exact" for end in ("", "_earlier")},
    **{f"near_duplicate{end}": "dedup.near" for end in ("", "_earlier")},
}
"""The parameter that changes how many documents a rule drops."""


def _annotate(
    params: CleanParams,
    files: Sequence[SourceFile],
    read_limits: ReadLimits,
    counter: TokenCounter,
    ctx: Context,
) -> list[Path]:
    """Annotate the sources' files, one shard per task, until the read limits are reached."""
    from stages.curation.annotation import run_annotation
    from stages.distributed.shard_tasks import share_commits
    from stages.text.annotate import DocumentAnnotator
    from stages.text.rules.word_list_rules import Blocklists
    from stages.text.sources.source_listing import make_shards

    shards = make_shards(files)
    annotator = DocumentAnnotator(
        rules=params.rules,
        lists=Blocklists.read(params.lists),
        edits=params.edits,
        languages=params.languages if "languages" in params.edits else (),
        pii=params.pii,
        dedup=params.dedup,
        text_column=params.text_column,
        meta_columns=params.meta_columns,
        counter=counter,
    )
    planned = ctx.externals or params.externals()
    shared = ctx.cache / "annotated" / _annotation_key(params, planned, shards, counter)
    commits = run_annotation(
        annotator,
        shards,
        ctx,
        params.workers,
        on_commit=read_limits.add,
        enough=read_limits.reached,
        shared=shared,
    )
    if not params.changed_externals(planned):  # else the commits may hold other content
        share_commits(commits, shared)
    return commits


def _annotation_key(
    params: CleanParams,
    contents: Mapping[str, str],
    shards: list[list[SourceFile]],
    counter: TokenCounter,
) -> str:
    """Return a hash of all that determines the annotations and their shards; no limit is in it."""
    from stages.data.hashing import hash128_hex

    fields = {"text_column", "meta_columns", "rules", "edits", "pii"}
    if "languages" in params.edits:
        fields.add("languages")
    measured = params.model_dump(mode="json", include=fields)
    tasks = [[(file.place, file.part and file.part.start) for file in files] for files in shards]
    decisive = [measured, params.dedup.hash_description, sorted(contents.items()), tasks, VERSION]
    if counter.tokenizer:
        decisive.append(counter.tokenizer.digest)
    return hash128_hex(json.dumps(decisive, sort_keys=True))


def _check_kept(stats: CleaningStats) -> None:
    if stats.records_kept:
        return
    where = "; ".join(stats.broken_places[:3]) or "sources"
    raise InputError(stats.no_records_message(), where=where, remedy=stats.empty_remedy())


def _report(stats: CleaningStats, report: FilterReport, ctx: Context) -> None:
    for panel in chain(stats.report_panels(), report.panels()):
        ctx.panel(panel)
    ctx.result(
        documents_read=stats.records_read,
        documents=stats.records_kept,
        characters_read=stats.read["characters"],
        characters=stats.kept["characters"],
        **{stats.unit: stats.kept[stats.unit]},
        duplicates=stats.duplicates,
        characters_removed=stats.removed["characters"],
        masked=stats.masked.total(),
        broken=stats.broken,
    )
