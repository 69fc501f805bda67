"""Clean text: sources -> Documents.

Reads files and the documentation of the Python installation, repairs Unicode, masks what identifies
people (if asked to), tells the language, applies length, quality and repetition rules, and drops
exact and near copies; repeated text is cut out (if asked to). What is dropped is kept aside with
the rule that dropped it and its score; the counts always add up.

    clean: {uses: clean, sources: ["python:docs", "notes/"], languages: [en]}
    more:  {uses: clean, sources: ["new/"], against: ["${clean}"]}

Documents of `against` are earlier ones, of which nothing is read but hashes: their copies go.
Beside documents and characters words are counted, or tokens where a `tokenizer` is given.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt

from pipeline.errors import InputError, Problem
from pipeline.stage import EXECUTION, Inputs, Params, stage
from stages.text.cleaning_params import (
    Dedup,
    EditName,
    Lists,
    Pii,
    Range,
    RuleSetName,
    Share,
    limit_problems,
    merge_limits,
    preference_problems,
)
from stages.text.sources import fsspec_files

if TYPE_CHECKING:
    from pipeline.context import Context
    from stages.text.annotate import ReadLimits
    from stages.text.cleaning_stats import CleaningStats
    from stages.text.filter_decisions import FilterLimits
    from stages.text.filter_report import FilterReport
    from stages.text.rules import length_rules
    from stages.text.sources.source_listing import SourceFile
    from stages.text.token_counter import TokenCounter

VERSION = 5
PLACES = ("place", "line", "row", "error")  # what `meta` says of where a record was
SHOWN = 20  # broken records that the log names
CHARACTERS_PER_SECOND = 0.5e6  # of kept text on one busy core, parsing of sources included


class CleanParams(Params):
    """Which text is read, and what it must be like."""

    sources: Annotated[tuple[str, ...], Field(min_length=1), EXECUTION]
    """`python:docs` (less the objects that evaluation asks about), files, folders or globs of txt,
    md, rst, html, jsonl and csv (.gz, .zst), parquet, and warc and wet (.gz); the same by any URL
    of fsspec (`s3://bucket/folder`, `https://host/*.jsonl.gz`), of which logs and documents hold
    neither user nor query; and `hf:NAME[@REVISION][?split=train&config=NAME]`, a Hugging Face
    dataset: a folder (saved, or of parquet, arrow or json files) or one of the hub, streamed at
    the commit that the revision is. Content decides the artifact, not where it lies: a storage's
    MD5, or a hash of the bytes."""
    text_column: str = "text"
    """The field of jsonl, csv and parquet files and of datasets that holds the text."""
    meta_columns: tuple[str, ...] = ()
    """Other fields of theirs that a document's `meta` keeps, where they are (`url`, `title`)."""
    languages: tuple[str, ...] = ()
    """ISO 639 codes to keep; empty keeps all."""
    language_score: Share = 0.5
    """The least probability of the language, where `languages` is given."""
    max_bad: Annotated[int, Field(ge=0)] | None = None
    """Broken records and files, at most; null takes any number. They are counted and kept aside
    with their places, and stop nothing by themselves."""
    max_documents: PositiveInt | None = None
    """Read no more than the first so many documents."""
    max_characters: PositiveInt | None = None
    """Read no more than the first so many characters."""
    rules: tuple[RuleSetName, ...] = ("length", "gopher_quality", "gopher_repetition")
    """The rule sets that documents must pass, in the order in which they are asked; every score of
    each is recorded with the document. See docs/rules.md."""
    limits: dict[str, dict[str, Range]] = Field(default={})
    """Other ranges than the sets' own: `{gopher_quality: {words: [20, null], hash_marks: 0.2}}`;
    null switches a rule off. What is measured stays, so that nothing is read again."""
    lists: Lists = Lists()
    """The user's own lists, for the rule set `lists`."""
    edits: tuple[EditName, ...] = ()
    """What is taken out before rules measure, in order: lines (`c4`, `boilerplate`), paragraphs
    (`languages`, `chinese_paragraphs`), a last sentence cut short (`whole_sentences`); and
    `simplified_chinese`."""
    pii: Pii = Pii()
    """What identifies people or opens doors, and is masked."""
    dedup: Dedup = Dedup()
    """Which copies are dropped."""

    def externals(self) -> dict[str, str]:
        """The content of each source."""
        from stages.text.sources.source_listing import content_digest

        lists = {f"lists.{name}": path for name, path in self.lists if path is not None}
        named = {f"sources.{at}": name for at, name in enumerate(self.sources)} | lists
        return {key: content_digest(name) for key, name in named.items()}

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Languages are codes, sources are named once, earlier hashes can be compared."""
        for code in self.languages:
            if not (code.isascii() and code.isalpha() and code.islower() and len(code) <= 3):
                yield Problem("languages", f"{code!r} is no ISO 639 code", "write en, zh, de…")
        if len(set(self.sources)) < len(self.sources):
            yield Problem("sources", "a source is named twice", "name each once")
        for name in sorted({self.text_column, *PLACES} & set(self.meta_columns)):
            yield Problem("meta_columns", f"{name!r} is taken", "leave it out")
        for source in self.sources:
            if fsspec_files.contains_secret(source):
                yield Problem("sources", *fsspec_files.SECRET_IN_URL)
        for key in ("rules", "edits"):
            if len(set(getattr(self, key))) < len(getattr(self, key)):
                yield Problem(key, "a name is there twice", "name each once")
        if ("lists" in self.rules) != (self.lists != Lists()):
            yield Problem("lists", "the rule set and its files go together", "name both")
        if "languages" in self.edits and not self.languages:
            yield Problem("edits", "`languages` needs to know which to keep", "set `languages`")
        yield from limit_problems(self.rules, self.limits)
        yield from preference_problems(self.dedup.prefer, self.rules, self.meta_columns)

        for name, earlier in upstream.items():
            if isinstance(earlier, CleanParams) and name.startswith("against"):
                yield from self._compare(name, earlier)

    def _compare(self, name: str, earlier: CleanParams) -> Iterator[Problem]:
        ours, theirs = self.dedup.described, earlier.dedup.described
        if not earlier.dedup.index:
            yield Problem(name, "keeps no index", "set dedup.index there")
        elif self.dedup.near and ours != theirs:
            remedy = "deduplicate both alike, or switch off dedup.near"
            yield Problem(name, f"has hashes of {theirs}, not of {ours}", remedy)

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        """Time and disk, where a cap bounds the text."""
        if self.max_characters is None:
            return {}
        seconds = self.max_characters / CHARACTERS_PER_SECOND / self.workers.num
        return {"seconds": seconds, "disk_bytes": self.max_characters / 2.0}


@stage(
    "clean",
    inputs={"against": "Documents*?", "tokenizer": "Tokenizer?"},
    output="Documents",
    version=VERSION,
)
def clean(params: CleanParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Read, repair, judge and deduplicate text."""
    from stages.text.annotate import ReadLimits, annotated_rows
    from stages.text.cleaning_stats import write
    from stages.text.dedup.duplicates import find_duplicates
    from stages.text.dedup.exact_substrings import remove_repeated_text, rows_after_removal
    from stages.text.dedup.hash_index import index_files, write_index
    from stages.text.dedup.hash_join import TaskScope
    from stages.text.dedup.survivor_ranking import rank_by_preference
    from stages.text.filter_decisions import apply_filters
    from stages.text.filter_report import FilterReport
    from stages.text.rules.rule_scorer import RuleScorer
    from stages.text.token_counter import TokenCounter

    earlier = index_files(inputs.paths("against"), params.dedup)
    read_limits = ReadLimits(params.max_documents, params.max_characters)
    counter = TokenCounter.of(inputs.get_path("tokenizer"))
    commits = _annotate(params, read_limits, counter, ctx)
    documents = read_limits.within(len(commits))
    if not documents:
        raise InputError(
            "the sources hold no documents within the caps",
            where="sources",
            remedy="name other sources, or raise max_documents and max_characters",
        )
    filters, scope = _filter_limits(params), TaskScope(ctx.scratch, params.workers, ctx)
    decisions = apply_filters(commits, documents, RuleScorer(params.rules).rules, filters)
    rank = rank_by_preference(params.dedup.prefer, commits, decisions)
    duplicates = find_duplicates(commits, decisions.passed, params.dedup, rank, scope, earlier)
    ctx.check_cancelled()
    removals: list[Path] = []
    if params.dedup.cuts:
        duplicates, removals = remove_repeated_text(
            commits, duplicates, params.dedup, scope, counter
        )
    report = FilterReport(decisions, filters.limits)
    rows = rows_after_removal(annotated_rows(commits), removals)
    stats = write(rows, counter.unit, decisions, duplicates, report, out)
    shutil.rmtree(out / "index", ignore_errors=True)
    if params.dedup.index:
        write_index(commits, duplicates, params.dedup, out)
    _tell_broken(stats, params.max_bad, ctx)
    if not stats.kept["documents"]:
        raise InputError(_nothing_left(stats), where="rules", remedy=_remedy(stats))
    _report(stats, report, ctx)


def _filter_limits(params: CleanParams) -> FilterLimits:
    from stages.text.filter_decisions import FilterLimits

    limits = merge_limits(params.rules, params.limits)
    return FilterLimits(params.languages, params.language_score, limits)


def _annotate(
    params: CleanParams, read_limits: ReadLimits, counter: TokenCounter, ctx: Context
) -> list[Path]:
    """Judge the sources' files a shard a task, until the caps are reached."""
    from stages.distributed.shard_tasks import run_shards
    from stages.text.annotate import DocumentAnnotator, annotate_shard
    from stages.text.sources.source_listing import list_files, make_shards

    cut = make_shards(list_files(params.sources))
    annotator = DocumentAnnotator(
        rules=params.rules,
        lists=_lists(params.lists),
        edits=params.edits,
        languages=params.languages if "languages" in params.edits else (),
        pii=params.pii,
        dedup=params.dedup,
        text_column=params.text_column,
        meta_columns=params.meta_columns,
        counter=counter,
    )
    folder = ctx.scratch / "judged"
    shared = ctx.cache / "judged" / _identity(params, cut, counter)
    read = 0

    def on_commit(shard: int) -> None:
        nonlocal read
        read_limits.add(shard, folder / f"{shard:06d}")
        read += sum(file.size for file in cut[shard])
        ctx.progress(read / 1e6, sum(file.size for files in cut for file in files) / 1e6, "MB")

    return run_shards(
        annotate_shard,
        [(annotator, files) for files in cut],
        folder,
        workers=params.workers,
        ctx=ctx,
        on_commit=on_commit,
        enough=read_limits.reached,
        shared=shared,
    )


def _identity(params: CleanParams, cut: list[list[SourceFile]], counter: TokenCounter) -> str:
    """What decides the figures of every document, and in which task they are taken; the limits are
    not in it."""
    from stages.data.hashing import hash128_hex

    fields = {"text_column", "meta_columns", "rules", "edits", "pii"}
    if "languages" in params.edits:
        fields.add("languages")
    measured = params.model_dump(mode="json", include=fields)
    contents = sorted(params.externals().items())
    tasks = [[(file.place, file.cut and file.cut.start) for file in files] for files in cut]
    decisive = [measured, params.dedup.described, contents, tasks, VERSION]
    if counter.tokenizer:
        decisive.append(counter.tokenizer.digest)
    return hash128_hex(json.dumps(decisive, sort_keys=True))


def _lists(settings: Lists) -> length_rules.Lists:
    from stages.text.rules.length_rules import Lists as Loaded
    from stages.text.rules.length_rules import read_list

    return Loaded(*(read_list(path) if path else () for path in (settings.words, settings.urls)))


def _tell_broken(stats: CleaningStats, most: int | None, ctx: Context) -> None:
    for place in stats.broken_places[:SHOWN]:
        ctx.log(f"broken: {place}")
    if stats.broken > SHOWN:
        ctx.log(f"broken: {stats.broken - SHOWN} more, in dropped/")
    if most is not None and stats.broken > most:
        raise InputError(
            f"{stats.broken} records or files are broken, more than max_bad allows ({most})",
            where="; ".join(stats.broken_places[:3]),
            remedy="mend or leave out the files that the stage's log names, or raise max_bad",
        )


def _report(stats: CleaningStats, report: FilterReport, ctx: Context) -> None:
    for panel in chain(stats.panels(), report.panels()):
        ctx.panel(panel)
    ctx.result(
        documents_read=stats.read["documents"],
        documents=stats.kept["documents"],
        characters_read=stats.read["characters"],
        characters=stats.kept["characters"],
        **{stats.unit: stats.kept[stats.unit]},
        duplicates=sum(
            counts["documents"] for rule, counts in stats.rules.items() if "_duplicate" in rule
        ),
        characters_removed=stats.removed["characters"],
        masked=stats.masked.total(),
        broken=stats.broken,
    )


def _nothing_left(stats: CleaningStats) -> str:
    worst = sorted(stats.rules.items(), key=lambda item: -item[1]["documents"])[:3]
    causes = ", ".join(f"{counts['documents']} by {rule}" for rule, counts in worst)
    return f"nothing is left of {stats.read['documents']} documents: dropped {causes}"


def _remedy(stats: CleaningStats) -> str:
    worst = max(stats.rules, key=lambda rule: stats.rules[rule]["documents"])
    if worst == "language":
        return "set `languages` to those of the text, or lower `language_score`"
    return f"loosen the limit of {worst} under `limits`, or name other sources"
