"""Prepare images with captions for training: sources -> ImageText.

Reads folders of images, manifests and WebDataset tars, drops broken records, records outside the
filters and duplicates, resizes the rest, and writes WebDataset tars with random access to samples
in O(1). Rows of a manifest that name one image are one sample with the captions of all. Dropped
records are listed in `dropped/` with the rule and score, merged rows by the rule `merged`; the
counts always add up. Files of other endings are counted in the report.

    pairs:
      uses: image_text
      sources: ["photos/", "pairs.csv", "shards/train-*.tar"]
      eval_fraction: 0.01
      filters: {width: [64, null], max_aspect_ratio: 3, caption_words: [2, null]}
      dedup: {max_hamming_distance: 4}
      resize: {shortest_edge: 256, encode_format: jpeg}

The eval split is a fraction by hash of the key (or of a metadata field, whose records stay
together: `eval_group_field: concept`), whole sources (`eval_sources`), or given by a metadata
field (`split_field`).

    annotate   pieces of sources -> annotation tables: filters, measurements, hashes, stored images
    select     drop duplicates, score by CLIP, hold out the eval split, plan the shards
    write      annotation tables -> shards, dropped/, stats.json
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import Field, PositiveInt

from pipeline import panels
from pipeline.errors import HeadwaterError, InputError, Problem
from pipeline.stage import EXECUTION, Inputs, Params, stage
from stages.curation.left_out import LEFT_OUT_METRICS, UNREAD_METRICS
from stages.curation.param_checks import repeated_values
from stages.images.image_params import ImageDedup, ImageFilters, ImageResize

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pipeline.context import Context
    from stages.curation.decisions import Decisions
    from stages.images.columns import ImageColumns
    from stages.images.image_sources import ImagePiece
    from stages.images.image_stats import ImageStats
    from stages.images.selection import RecordTable
    from stages.images.shard_writer import ShardTask

BYTES_PER_SECOND = 4e6  # of small images on one busy core: read, decoded, hashed and written


class ImageTextParams(Params):
    """Parameters of `image_text`."""

    renamed: ClassVar[dict[str, str]] = {
        "max_bad": "max_broken",
        "eval_by": "eval_group_field",
    }

    sources: Annotated[tuple[str, ...], Field(min_length=1), EXECUTION]
    """Folders of jpg, png and webp images (captions in `NAME.txt` next to `NAME.jpg`, one per line;
    metadata in `NAME.json`), manifests (csv, tsv, jsonl, parquet: one image per row, by its path
    from the manifest's folder; in parquet also by its bytes) and WebDataset tars; globs. The
    content decides the artifact, not its location; text may be in any encoding."""
    eval_sources: Annotated[tuple[str, ...], EXECUTION] = ()
    """Sources whose records all go to the eval split. Default: none."""
    image_column: str | None = None
    """Manifest field that holds the image's path. Default: the first that exists of image,
    image_path, filepath, file_name, path and file."""
    caption_columns: tuple[str, ...] = ()
    """Fields that hold captions, the main one first: texts, or lists of texts. Default: in
    manifests the first that exists of caption, captions, text and title; in `NAME.json` captions.
    """
    meta_columns: tuple[str, ...] = ()
    """Other manifest fields to keep as a sample's metadata; `NAME.json` keeps all fields. Default:
    none."""
    image_root: Annotated[str | None, EXECUTION] = None
    """Folder that paths in manifests are relative to; a path that leaves it is an error of its
    record. Default: the manifest's own folder."""
    filters: ImageFilters = ImageFilters()
    """Limits on images and captions. Default: none."""
    dedup: ImageDedup = ImageDedup()
    """Duplicates to drop. Default: equal files."""
    resize: ImageResize = ImageResize()
    """Size and encoding of stored images. Default: as in the source."""
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Fraction of the records in the eval split, by a hash of key and seed. Default: 0."""
    eval_group_field: str | None = None
    """Metadata field whose value is hashed instead of the key, so that its records stay together.
    Default: the key."""
    split_field: str | None = None
    """Metadata field that names a record's split: eval, val, valid, validation, test and heldout
    go to the eval split, any other value to the train split. Default: split by `eval_fraction`."""
    seed: int = 0
    """Seed of the split by hash. Default: the pipeline's."""
    max_broken: Annotated[int, Field(ge=0)] | None = None
    """Largest number of broken records and files; more stop the stage. They are counted and listed
    with their places. Default: unlimited."""
    shard_samples: PositiveInt = 10_000
    """Largest number of samples per tar. Default: 10000."""
    shard_bytes: Annotated[int, Field(ge=1 << 16, le=1 << 30)] = 128 << 20
    """Largest size of a tar, bytes, except for a single larger sample; a worker holds one tar in
    memory. Default: 128 MiB."""

    @property
    def columns(self) -> ImageColumns:
        """The columns to read."""
        from stages.images.columns import ImageColumns

        return ImageColumns(
            self.image_column, self.caption_columns, self.meta_columns, self.image_root
        )

    def externals(self) -> dict[str, str]:
        """Return the content digest of each source, including the images that manifests name."""
        from stages.images.records import content_digest

        named = {f"sources.{at}": name for at, name in enumerate(self.sources)}
        named |= {f"eval_sources.{at}": name for at, name in enumerate(self.eval_sources)}
        return {key: content_digest(name, self.columns) for key, name in named.items()}

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield repeated names, empty ranges, and contradictory ways to hold out records."""
        together = (*self.sources, *self.eval_sources)
        if len(set(together)) < len(together):
            yield Problem("sources", "lists a source twice", "list each source once")
        if self.split_field and (self.eval_fraction or self.eval_sources):
            yield Problem(
                "split_field",
                "excludes other ways to hold out records",
                "remove eval_fraction and eval_sources",
            )
        if self.eval_group_field and not self.eval_fraction:
            yield Problem("eval_group_field", "has no effect alone", "set eval_fraction")
        yield from repeated_values(self, "caption_columns", "meta_columns")
        yield from self.filters.problems()
        yield from self.resize.problems()

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        """Estimate time and disk from the bytes of folders and tars; manifests name no sizes."""
        from stages.images.image_sources import list_files

        try:
            files = list_files((*self.sources, *self.eval_sources))
        except (HeadwaterError, OSError):
            return {}  # `externals` reports the error
        size = float(sum(piece.size for piece in files if piece.kind in ("folder", "tar")))
        if not size:
            return {}
        disk = {} if self.resize.edge else {"disk_bytes": size}
        return {"seconds": size / BYTES_PER_SECOND / self.workers.num, **disk}


@stage(
    "image_text",
    inputs={"model": "Model?"},
    output="ImageText",
    version=4,
    metrics={
        "images_read": "images of the sources",
        "images": "images that are kept",
        "captions": "captions of the kept images",
        "train_images": "images of the training split",
        "eval_images": "held-out images",
        "duplicates": "images that are copies of kept ones",
        "resized": "images that were made smaller",
        "broken": "images that cannot be read",
        "stored_bytes": "size of the kept images",
        **LEFT_OUT_METRICS,
        **UNREAD_METRICS,
    },
)
def image_text(params: ImageTextParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Filter, deduplicate, resize and shard images with captions."""
    from stages.curation.folder_listing import LeftOut
    from stages.curation.left_out import report_left_out, report_unread
    from stages.data.image_text_dataset import write_index
    from stages.images.caption_merging import merge_captions
    from stages.images.image_sources import list_files
    from stages.images.image_stats import write_dropped, write_stats
    from stages.images.selection import (
        MERGED,
        RecordTable,
        drop_duplicates,
        eval_mask,
        filter_by_score,
        plan_shards,
    )
    from stages.images.shard_writer import shard_tasks

    _check_model(params, inputs)
    unread = LeftOut()
    files = list_files((*params.sources, *params.eval_sources), unread)
    records = RecordTable.read(_annotate(params, files, ctx))
    decisions = drop_duplicates(records, params.dedup)
    ctx.check_cancelled()
    if params.filters.min_clip_score is not None:
        scores = _clip_scores(records, decisions, inputs.path("model"), params, ctx)
        filter_by_score(decisions, scores, params.filters.min_clip_score)
    merged = merge_captions(records, decisions)
    stats = write_dropped(records, decisions, merged, out)
    stats.report_broken(params.max_broken, ctx)
    held_out = eval_mask(records, decisions.kept, params.eval_fraction, len(params.sources))
    if held_out.all():
        raise _no_training_data(stats)
    limits = params.shard_samples, params.shard_bytes
    plans = list(plan_shards(records, decisions.kept, held_out, *limits, merged.extra_bytes))
    tasks = shard_tasks(plans, records, merged.added, out)
    splits = _write_shards(tasks, params, ctx)
    counts = {split: sum(s["samples"] for s in shards) for split, shards in splits.items()}
    totals = {**stats.stats(), "splits": counts}
    write_stats(out, totals)
    samples = {name: totals[name]["samples"] for name in ("read", "kept", "dropped")}
    write_index(out, splits, image_size=params.resize.edge, counts=samples)
    _report(stats, counts, ctx)
    rules = {rule: n["samples"] for rule, n in stats.by_rule.items() if rule != MERGED}
    report_left_out(ctx, "images", stats.records_read, rules, _PARAMETERS)
    report_unread(ctx, sum(len(file.names) or 1 for file in files), unread)


_PARAMETERS = {
    "width": "filters.width",
    "height": "filters.height",
    "aspect": "filters.max_aspect_ratio",
    "caption_characters": "filters.caption_characters",
    "caption_words": "filters.caption_words",
    "clip_score": "filters.min_clip_score",
    "exact_duplicate": "dedup.exact",
    "near_duplicate": "dedup.max_hamming_distance",
    "caption_duplicate": "dedup.captions",
}
"""The parameter behind each reason to leave an image out."""


def _check_model(params: ImageTextParams, inputs: Inputs) -> None:
    needed, given = params.filters.min_clip_score is not None, "model" in inputs
    if needed != given:
        raise InputError(
            "filters.min_clip_score and the input `model` need each other",
            where="filters.min_clip_score" if needed else "model",
            remedy="give both, or neither",
        )


def _annotate(params: ImageTextParams, files: list[ImagePiece], ctx: Context) -> list[Path]:
    """Annotate the records of the sources, one piece per task."""
    from stages.curation.annotation import run_annotation
    from stages.images.image_annotator import ImageAnnotator
    from stages.images.image_sources import split_files

    annotator = ImageAnnotator(
        columns=params.columns,
        filters=params.filters,
        resize=params.resize,
        seed=params.seed,
        group_field=params.eval_group_field,
        split_field=params.split_field,
    )
    tasks = [[piece] for piece in split_files(files)]
    return run_annotation(annotator, tasks, ctx, params.workers)


def _clip_scores(
    records: RecordTable, decisions: Decisions, model: Path, params: ImageTextParams, ctx: Context
) -> npt.NDArray[np.float64]:
    """Return the CLIP score of each kept record, computed one annotation table per task."""
    import numpy as np

    from stages.contrastive.pair_scoring import score_pairs, scoring_tasks
    from stages.distributed.shard_tasks import run_shards

    tasks = scoring_tasks(model, records, decisions.kept)
    commits = run_shards(
        score_pairs,
        tasks,
        ctx.scratch / "scored",
        workers=params.workers,
        ctx=ctx,
        on_commit=_progress(ctx, [len(task.rows) for task in tasks], "images scored"),
    )
    scores = np.concatenate([np.empty(0), *map(np.load, commits)])
    counts, edges = np.histogram(scores, bins=24)
    thresholds = [params.filters.min_clip_score or 0.0]
    title = "Cosine similarity of image and caption"
    ctx.panel(panels.histogram(title, edges.tolist(), counts.tolist(), thresholds=thresholds))
    return scores


def _write_shards(
    tasks: list[ShardTask], params: ImageTextParams, ctx: Context
) -> dict[str, list[dict[str, Any]]]:
    """Write the shards, one per task; return their index entries by split."""
    from stages.data.image_text_dataset import SPLITS
    from stages.distributed.shard_tasks import run_shards
    from stages.images.shard_writer import write_planned_shard

    commits = run_shards(
        write_planned_shard,
        tasks,
        ctx.scratch / "written",
        workers=params.workers,
        ctx=ctx,
        on_commit=_progress(ctx, [len(task.keys) for task in tasks], "images written"),
    )
    shards = [json.loads(commit.read_text()) for commit in commits]
    return {
        split: [shard for shard in shards if shard["name"].startswith(f"{split}-")]
        for split in SPLITS
    }


def _progress(ctx: Context, sizes: list[int], unit: str) -> Callable[[int], None]:
    """Return a callback that reports the images of every task that is done."""
    started, done = time.monotonic(), 0

    def report(index: int) -> None:
        nonlocal done
        done += sizes[index]
        rate = done / max(1e-3, time.monotonic() - started)
        ctx.progress(done, sum(sizes), unit, images_per_second=rate)

    return report


def _report(stats: ImageStats, splits: Mapping[str, int], ctx: Context) -> None:
    for panel in stats.report_panels():
        ctx.panel(panel)
    ctx.result(
        images_read=stats.records_read,
        images=stats.records_kept,
        captions=stats.kept["captions"],
        **{f"{split}_images": count for split, count in splits.items()},
        duplicates=stats.duplicates,
        resized=stats.resized,
        broken=stats.broken,
        stored_bytes=stats.stored,
    )


def _no_training_data(stats: ImageStats) -> InputError:
    """Return the error of an empty train split."""
    if stats.records_kept:
        message = f"all {stats.records_kept} images are held out: the train split is empty"
        remedy = "hold out fewer records, or add sources"
    else:
        message = stats.no_records_message()
        remedy = "loosen `filters`, or add sources"
        if stats.broken:
            remedy = "the stage's log lists what is broken; check caption_columns and image_column"
    return InputError(message, where="sources", remedy=remedy)
