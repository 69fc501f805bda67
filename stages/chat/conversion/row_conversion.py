"""The run of `conversations` and `rankings`: sources -> annotation tables -> the artifact."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from pipeline.errors import InputError
from stages.chat.conversion.chat_stats import ChatStats
from stages.chat.conversion.chat_writer import REPEATED, ChatWriter
from stages.chat.conversion.prompt_split import IN_EVAL, SPLIT_VALUE
from stages.chat.conversion.row_annotator import UNREADABLE, RowAnnotator, annotated_rows
from stages.chat.conversion.row_reader import RowReader
from stages.chat.conversion.source_params import RowSourceParams
from stages.chat.turn_checks import EXCLUSIONS, SHORTENINGS
from stages.curation.annotation import run_annotation
from stages.curation.folder_listing import LeftOut
from stages.curation.left_out import WARNING_SHARE, report_left_out, report_unread, warn
from stages.data.hashing import hash128_hex
from stages.distributed.shard_tasks import share_commits
from stages.text.sources.file_formats import RECORD_FORMATS
from stages.text.sources.source_file import SourceFile
from stages.text.sources.source_listing import list_files, make_shards

if TYPE_CHECKING:
    from pipeline.context import Context

VERSION = 4  # of the annotation tables
_DESCRIPTIONS = {
    UNREADABLE: "the row or file cannot be read",
    REPEATED: "equals an earlier one in all texts",
    IN_EVAL: "train row whose first prompt is in the eval split",
    SPLIT_VALUE: "the split that the row names is unknown",
    "no_ranking": "the row holds no two ranked responses",
}
_KEYS = {
    REPEATED: "repeated",
    IN_EVAL: "split_field",
    SPLIT_VALUE: "split_field",
    "repeated_roles": "repeated_roles",
    "unknown_role": "roles",
    "nothing_learned": "replies",
    UNREADABLE: "format",
}
"""The parameter that changes how many are left out by a reason."""


def convert_rows(
    params: RowSourceParams, reader: RowReader[Any], out: Path, ctx: Context
) -> ChatStats:
    """Read the rows of the sources and write what they hold.

    Raises:
        InputError: nothing is kept, or too many rows cannot be read.
    """
    unread = LeftOut()
    files = list_files(params.all_sources, unread, RECORD_FORMATS)
    limit = _RowLimit(params.max_rows)
    tables = _annotate(params, reader, files, limit, ctx)
    rows = partial(_leading_rows, tables, params.max_rows, ctx)
    writer = ChatWriter(reader, params.prompt_split, params.repeated == "drop")
    stats = writer.write(rows, out)
    stats.report_broken(params.max_broken, ctx)
    _report(stats, ctx)
    _check_kept(stats, params)
    reasons = {rule: counts[stats.noun] for rule, counts in stats.by_rule.items()}
    report_left_out(ctx, stats.noun, stats.records_read, reasons, _KEYS)
    _warn_of_broken(stats, ctx)
    _report_kept(stats, params, ctx)
    report_unread(ctx, len(files), unread)
    return stats


class _RowLimit:
    """Maximum number of rows to read, over committed annotation tables."""

    def __init__(self, max_rows: int | None) -> None:
        self._max_rows = max_rows
        self._rows: dict[int, int] = {}

    def add(self, shard: int, table: Path) -> None:
        """Add the rows of a committed shard."""
        self._rows[shard] = pq.read_metadata(table).num_rows

    def reached(self, shards: int) -> bool:
        """Return whether the first `shards` shards contain all that may be read."""
        read = sum(self._rows[shard] for shard in range(shards))
        return self._max_rows is not None and read >= self._max_rows


def _leading_rows(
    tables: Sequence[Path], max_rows: int | None, ctx: Context
) -> Iterator[dict[str, Any]]:
    """Yield the rows to read; a request to stop is met after a row."""
    for row in islice(annotated_rows(tables), max_rows):
        ctx.check_cancelled()
        yield row


def _annotate(
    params: RowSourceParams,
    reader: RowReader[Any],
    files: Sequence[SourceFile],
    limit: _RowLimit,
    ctx: Context,
) -> list[Path]:
    """Annotate the sources' files, one shard per task, until the limit is reached."""
    shards = make_shards(files)
    annotator = RowAnnotator(
        reader=reader,
        options=params.row_options,
        format_name=params.format,
        meta_columns=params.meta_columns,
        split_field=params.split_field,
    )
    planned = ctx.externals or params.externals()
    shared = ctx.cache / "annotated" / _annotation_key(params, reader, planned, shards)
    commits = run_annotation(
        annotator,
        shards,
        ctx,
        params.workers,
        on_commit=limit.add,
        enough=limit.reached,
        shared=shared,
    )
    if not params.changed_externals(planned):  # else the commits may hold other content
        share_commits(commits, shared)
    return commits


def _annotation_key(
    params: RowSourceParams,
    reader: RowReader[Any],
    contents: Mapping[str, str],
    shards: list[list[SourceFile]],
) -> str:
    """Return a hash of all that determines the annotation tables and their shards."""
    fields = {"format", "fields", "roles", "repeated_roles", "meta_columns", "split_field"}
    options = params.model_dump(mode="json", include=fields)
    tasks = [
        [(file.source, file.place, file.part and file.part.start) for file in files]
        for files in shards
    ]
    decisive = [reader.wanted, options, params.all_or_once, sorted(contents.items()), tasks]
    return hash128_hex(json.dumps([*decisive, VERSION], sort_keys=True))


def _report(stats: ChatStats, ctx: Context) -> None:
    """Write metrics and panels."""
    for panel in stats.report_panels({**_DESCRIPTIONS, **EXCLUSIONS, **SHORTENINGS}):
        ctx.panel(panel)
    ctx.result(**stats.results())


def _warn_of_broken(stats: ChatStats, ctx: Context) -> None:
    """Warn of any broken row or file: one truncated file may cost most of the rows."""
    if stats.broken:
        message = f"{stats.broken:,} rows or files cannot be read: {stats.broken_places[0]}"
        warn(ctx, message, "repair the files; max_broken: 0 makes it an error")


def _report_kept(stats: ChatStats, params: RowSourceParams, ctx: Context) -> None:
    """Log what is shortened, repeated or spells a control token; warn of an empty split."""
    read, named = stats.records_read, stats.shortenings.most_common()
    if stats.shortened:
        reasons = ", ".join(f"{name} {count:,}" for name, count in named)
        message = f"{stats.shortened:,} of {read:,} {stats.noun} are shortened: {reasons}"
        if stats.shortened > WARNING_SHARE * read:
            warn(ctx, message, "the report shows examples and the meaning of each reason")
        else:
            ctx.log(message)
    if stats.control:
        ctx.log(f"{stats.control:,} {stats.noun} spell a control token, which stays text")
    if stats.repeated and params.repeated == "keep":
        ctx.log(f"{stats.repeated:,} {stats.noun} equal an earlier one, and are kept")
    for split in ("train", "eval"):
        if not stats.splits[split] and (split == "train" or params.prompt_split.eval_share):
            remedy = "add rows, or change eval_share or split_field"
            warn(ctx, f"the {split} split has no {stats.noun}", remedy)


def _check_kept(stats: ChatStats, params: RowSourceParams) -> None:
    if stats.records_kept:
        return
    where = "; ".join(stats.broken_places[:3] or stats.dropped_places[:3]) or "sources"
    if not stats.records_read:
        raise InputError("the files have no rows", where=where, remedy="name other sources")
    remedy = "name other sources, or set `format` and `fields`"
    if "unknown_role" in stats.by_rule:
        remedy = "map the words for roles with `roles`, or name other sources"
    raise InputError(stats.no_records_message(), where=where, remedy=remedy)
