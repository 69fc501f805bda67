"""Images with captions: sources -> ImageText.

Reads folders of images, manifests and WebDataset tars, takes out what is broken, too small, too
long or a copy, resizes what stays, and writes it as WebDataset tars of which training reads any
sample in O(1). What is dropped is kept aside with the rule that dropped it and its score; the
counts always add up.

    pairs:
      uses: image_text
      sources: ["photos/", "pairs.csv", "shards/train-*.tar"]
      eval_fraction: 0.01
      filters: {width: [64, null], max_aspect: 3, caption_words: [2, null]}
      dedup: {near: 4}
      resize: {shorter: 256, format: jpeg}

Held-out pairs are a share by hash (of a field, where pairs that belong together must not be
parted: `eval_by: concept`), sources of their own (`eval_sources`), or those that a field names.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, PositiveInt

from pipeline import panels
from pipeline.errors import HeadwaterError, InputError, Problem
from pipeline.stage import EXECUTION, Inputs, Params, stage
from stages.images.image_params import Copies, Filters, Resize

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from pipeline.context import Context
    from stages.images.image_stats import Ledger
    from stages.images.manifests import Columns
    from stages.images.selection import Figures, ShardPlan, Verdicts

BYTES_A_SECOND = 4e6  # of small images on one busy core: read, decoded, hashed and written


class ImageTextParams(Params):
    """Which images are read, and what they must be like."""

    sources: Annotated[tuple[str, ...], Field(min_length=1), EXECUTION]
    """Folders of jpg, png and webp images (captions in `NAME.txt` beside `NAME.jpg`, one a line;
    metadata in `NAME.json`), manifests (csv, tsv, jsonl, parquet: one image a row, by its path from
    the manifest's folder; in parquet also by its bytes) and WebDataset tars; globs. Content decides
    the artifact, not where it lies."""
    eval_sources: Annotated[tuple[str, ...], EXECUTION] = ()
    """Sources that are held out as a whole."""
    image_column: str | None = None
    """The field of manifests that holds the image's path; null takes the first there is of image,
    image_path, filepath, file_name, path and file."""
    caption_columns: tuple[str, ...] = ()
    """The fields that hold captions, the main one first: texts, or lists of texts. Of manifests
    empty takes the first there is of caption, captions, text and title; of `NAME.json` it takes
    captions."""
    meta_columns: tuple[str, ...] = ()
    """Other fields of manifests that a sample's metadata keeps; of `NAME.json` all are kept."""
    image_root: Annotated[str | None, EXECUTION] = None
    """The folder that paths in manifests are relative to; null is each manifest's own. No path
    leads out of it."""
    filters: Filters = Filters()
    """What images and captions must be like."""
    dedup: Copies = Copies()
    """Which copies are dropped."""
    resize: Resize = Resize()
    """How images are stored."""
    eval_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The share that is held out, chosen by the hash of the key and of the seed."""
    eval_by: str | None = None
    """The field of the metadata whose values are held out together, instead of the key."""
    split_field: str | None = None
    """The field of the metadata that names a sample's split, instead: eval, val, valid, validation,
    test or heldout is held out, all else is trained on."""
    seed: int = 0
    """Chooses what is held out."""
    max_bad: Annotated[int, Field(ge=0)] | None = None
    """Broken records and files, at most; null takes any number. They are counted and kept aside
    with their places, and stop nothing by themselves."""
    shard_samples: PositiveInt = 10_000
    """Samples of a tar, at most."""
    shard_bytes: Annotated[int, Field(ge=1 << 16, le=1 << 30)] = 128 << 20
    """Bytes of a tar, at most (but for a sample that is larger): what a worker holds."""

    @property
    def columns(self) -> Columns:
        """The same for the workshop."""
        from stages.images.manifests import Columns

        return Columns(self.image_column, self.caption_columns, self.meta_columns, self.image_root)

    def externals(self) -> dict[str, str]:
        """The content of each source, of manifests that of the images that they name."""
        from stages.images.records import content_digest

        named = {f"sources.{at}": name for at, name in enumerate(self.sources)}
        named |= {f"eval_sources.{at}": name for at, name in enumerate(self.eval_sources)}
        return {key: content_digest(name, self.columns) for key, name in named.items()}

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Sources are named once, bounds hold something, one way to hold out is chosen."""
        together = (*self.sources, *self.eval_sources)
        if len(set(together)) < len(together):
            yield Problem("sources", "a source is named twice", "name each once")
        if self.split_field and (self.eval_fraction or self.eval_sources):
            yield Problem("split_field", "decides alone", "leave out eval_fraction, eval_sources")
        if self.eval_by and not self.eval_fraction:
            yield Problem("eval_by", "holds nothing out alone", "set eval_fraction")
        for name in ("caption_columns", "meta_columns"):
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                yield Problem(name, "a column is named twice", "name each once")
        yield from self.filters.problems()
        yield from self.resize.problems()

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        """Time and disk by the bytes of folders and tars; a manifest does not say what it names."""
        from stages.images.image_sources import whole_files

        try:
            files = whole_files((*self.sources, *self.eval_sources))
        except (HeadwaterError, OSError):
            return {}  # `externals` says what is wrong
        size = float(sum(piece.size for piece in files if piece.kind in ("folder", "tar")))
        if not size:
            return {}
        disk = {} if self.resize.side else {"disk_bytes": size}
        return {"seconds": size / BYTES_A_SECOND / self.workers.num, **disk}


@stage("image_text", inputs={"model": "Model?"}, output="ImageText", version=2)
def image_text(params: ImageTextParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Read, filter, deduplicate, resize and shard images with captions."""
    from stages.data.image_text_dataset import write_index
    from stages.images.image_stats import write_dropped, write_stats
    from stages.images.selection import Figures, decide, drop_below, held_out, plan_shards

    _check_model(params, inputs)
    figures = Figures.of(_judge(params, ctx))
    verdicts = decide(figures, params.dedup)
    ctx.check_cancelled()
    if params.filters.min_clip_score is not None:
        scores = _score(figures, verdicts, inputs.path("model"), params, ctx)
        drop_below(verdicts, scores, params.filters.min_clip_score)
    ledger = write_dropped(figures, verdicts, out)
    _tell_broken(ledger, params.max_bad, ctx)
    outside = held_out(figures, verdicts.kept, params.eval_fraction, len(params.sources))
    if outside.all():
        raise InputError(_nothing_left(ledger), where="sources", remedy=_remedy(ledger))
    plans = list(
        plan_shards(figures, verdicts.kept, outside, params.shard_samples, params.shard_bytes)
    )
    splits = _write(plans, figures, params, out, ctx)
    counts = {split: sum(s["samples"] for s in shards) for split, shards in splits.items()}
    stats = {**ledger.stats(), "splits": counts}
    write_stats(out, stats)
    told = {name: stats[name]["samples"] for name in ("read", "kept", "dropped")}
    write_index(out, splits, image_size=params.resize.side, counts=told)
    _report(ledger, counts, ctx)


def _check_model(params: ImageTextParams, inputs: Inputs) -> None:
    wanted, given = params.filters.min_clip_score is not None, "model" in inputs
    if wanted != given:
        raise InputError(
            "a CLIP model and the least score by it go together",
            where="filters.min_clip_score" if wanted else "model",
            remedy="name both `model` and `filters.min_clip_score`, or neither",
        )


def _judge(params: ImageTextParams, ctx: Context) -> list[Path]:
    """Judge the sources a piece a task."""
    import pyarrow.parquet as pq

    from stages.distributed.shard_tasks import run_shards
    from stages.images.image_annotator import Judge, judge_piece
    from stages.images.image_sources import pieces

    cut = pieces((*params.sources, *params.eval_sources))
    judge = Judge(
        columns=params.columns,
        filters=params.filters,
        resize=params.resize,
        seed=params.seed,
        group=params.eval_by,
        split=params.split_field,
    )
    folder = ctx.scratch / "judged"
    started, size, images = time.monotonic(), 0, 0

    def on_commit(index: int) -> None:
        nonlocal size, images
        size += cut[index].size
        images += pq.read_metadata(folder / f"{index:06d}").num_rows
        rate = images / max(1e-3, time.monotonic() - started)
        total = sum(piece.size for piece in cut)
        ctx.progress(size / 1e6, total / 1e6, "MB", images_per_second=rate)

    commits = run_shards(
        judge_piece,
        [(judge, piece) for piece in cut],
        folder,
        workers=params.workers,
        ctx=ctx,
        on_commit=on_commit,
    )
    ctx.log(f"{images:,} records read in {time.monotonic() - started:.1f} s")
    return commits


def _score(
    figures: Figures, verdicts: Verdicts, model: Path, params: ImageTextParams, ctx: Context
) -> npt.NDArray[np.float64]:
    """What the model says of each kept pair, a scratch table a task."""
    import numpy as np

    from stages.contrastive.pair_scoring import score_table, score_works
    from stages.distributed.shard_tasks import run_shards

    works = score_works(model, figures, verdicts.kept)
    started, done = time.monotonic(), 0

    def on_commit(index: int) -> None:
        nonlocal done
        done += len(works[index].rows)
        rate = done / max(1e-3, time.monotonic() - started)
        ctx.progress(done, len(verdicts.kept), "images scored", images_per_second=rate)

    commits = run_shards(
        score_table,
        works,
        ctx.scratch / "scored",
        workers=params.workers,
        ctx=ctx,
        on_commit=on_commit,
    )
    scores = np.concatenate([np.empty(0), *map(np.load, commits)])
    counts, edges = np.histogram(scores, bins=24)
    least = [params.filters.min_clip_score or 0.0]
    title = "Cosine of image and caption"
    ctx.panel(panels.histogram(title, edges.tolist(), counts.tolist(), thresholds=least))
    return scores


def _write(
    plans: list[ShardPlan], figures: Figures, params: ImageTextParams, out: Path, ctx: Context
) -> dict[str, list[dict[str, Any]]]:
    """Write the shards a shard a task; what the index says of each, by split."""
    from stages.data.image_text_dataset import SPLITS
    from stages.distributed.shard_tasks import run_shards
    from stages.images.shard_writer import shard_works, write_planned

    started, done = time.monotonic(), 0

    def on_commit(index: int) -> None:
        nonlocal done
        done += len(plans[index].keys)
        rate = done / max(1e-3, time.monotonic() - started)
        total = sum(len(plan.keys) for plan in plans)
        ctx.progress(done, total, "images written", images_per_second=rate)

    commits = run_shards(
        write_planned,
        shard_works(plans, figures, out),
        ctx.scratch / "written",
        workers=params.workers,
        ctx=ctx,
        on_commit=on_commit,
    )
    shards = [json.loads(commit.read_text()) for commit in commits]
    return {
        split: [shard for shard in shards if shard["name"].startswith(f"{split}-")]
        for split in SPLITS
    }


def _tell_broken(ledger: Ledger, most: int | None, ctx: Context) -> None:
    for place in ledger.broken_places:
        ctx.log(f"broken: {place}")
    if ledger.broken > len(ledger.broken_places):
        ctx.log(f"broken: {ledger.broken - len(ledger.broken_places)} more, in dropped/")
    if most is not None and ledger.broken > most:
        raise InputError(
            f"{ledger.broken} records or files are broken, more than max_bad allows ({most})",
            where="; ".join(ledger.broken_places[:3]),
            remedy="mend or leave out the files that the stage's log names, or raise max_bad",
        )


def _report(ledger: Ledger, splits: Mapping[str, int], ctx: Context) -> None:
    for panel in ledger.panels():
        ctx.panel(panel)
    ctx.result(
        images_read=ledger.read["samples"],
        images=ledger.kept["samples"],
        captions=ledger.kept["captions"],
        **{f"{split}_images": count for split, count in splits.items()},
        duplicates=sum(
            counts["samples"] for rule, counts in ledger.rules.items() if "_duplicate" in rule
        ),
        resized=ledger.resized,
        broken=ledger.broken,
        stored_bytes=ledger.stored,
    )


def _nothing_left(ledger: Ledger) -> str:
    if ledger.kept["samples"]:
        return f"all of {ledger.kept['samples']} images are held out: none is left to train on"
    worst = sorted(ledger.rules.items(), key=lambda item: -item[1]["samples"])[:3]
    causes = ", ".join(f"{counts['samples']} by {rule}" for rule, counts in worst)
    return f"nothing is left of {ledger.read['samples']} images: dropped {causes or 'none'}"


def _remedy(ledger: Ledger) -> str:
    if ledger.kept["samples"]:
        return "hold out less, or name other sources"
    if ledger.broken:
        return "see the stage's log for what is broken: captions or columns may be elsewhere"
    return "loosen the filters, or name other sources"
