"""Counts of images and captions, their report panels, and the table of dropped records."""

from __future__ import annotations

import shutil
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import panels
from pipeline.plain_data import to_json
from stages.curation.curation_stats import CurationStats
from stages.curation.decisions import Decisions
from stages.data import parquet_parts
from stages.data.image_text_dataset import KIND, VERSION
from stages.images.caption_merging import MergedCaptions
from stages.images.selection import MERGED, RecordTable
from stages.text.words.word_borders import word_spans

SHOWN = 20  # kept captions, and dropped duplicates
UNITS = ("samples", "captions")
DROPPED = parquet_parts.versioned_schema(
    pa.schema(
        [
            *((name, pa.string()) for name in ("key", "source", "place", "rule")),
            ("score", pa.float64()),
            ("reason", pa.string()),
            ("captions", pa.list_(pa.string())),
            *((name, pa.int64()) for name in ("width", "height")),
        ]
    ),
    KIND,
    VERSION,
)
"""Schema of `dropped/`; the annotation tables have all of its columns."""


@dataclass
class ImageStats(CurationStats):
    """Counts of samples and captions."""

    record_noun: ClassVar[str] = "images"
    resized: int = 0
    """Kept images that were resized or re-encoded."""
    stored: int = 0
    """Bytes of kept samples."""
    shorter: array[int] = field(default_factory=lambda: array("I"))
    """Shorter side of each kept image, pixels."""
    longer: array[int] = field(default_factory=lambda: array("I"))
    """Longer side of each kept image, pixels."""
    words: array[int] = field(default_factory=lambda: array("I"))
    """Length of each main caption, words."""
    shown: list[dict[str, str]] = field(default_factory=list)
    """Captions of some kept images."""
    copies: list[dict[str, str]] = field(default_factory=list)
    """Some dropped duplicates with their survivors."""

    @property
    def units(self) -> tuple[str, ...]:
        """Units that are counted; the first one counts records."""
        return UNITS

    def record(self, row: dict[str, Any], rule: str, moved: int = 0) -> None:
        """Count one record: dropped by `rule`, or kept if it is empty.

        Args:
            row: its annotations.
            rule: name of the rule.
            moved: number of captions that a dropped record gives to a kept one, or that a kept
                record gets.
        """
        if rule:
            dropped = row["captions_read"] - moved
            self.count(row["source"], rule, {"samples": 1, "captions": dropped})
            if rule.startswith("broken."):
                reason = row["reason"] or rule.removeprefix("broken.")
                self.count_broken(f"{row['source']}/{row['place']}", reason)
            return
        kept = len(row["captions"])
        self.count(row["source"], "", {"samples": 1, "captions": kept + moved})
        self.count_removed({"captions": row["captions_read"] - kept})
        self.resized += row["resized"]
        self.stored += row["stored"]
        self.shorter.append(min(row["width"], row["height"]))
        self.longer.append(max(row["width"], row["height"]))
        self.words.append(len(word_spans(row["captions"][0])))
        if self.records_kept & (self.records_kept - 1) == 0 and len(self.shown) < SHOWN:
            self.shown.append({"place": row["place"], "captions": " | ".join(row["captions"])})

    def stats(self) -> dict[str, Any]:
        """Return the content of `stats.json`; captions removed from kept images count as dropped.

        Raises:
            CorruptArtifact: the counts do not add up.
        """
        dropped = self.dropped()
        return {
            "read": {unit: self.read[unit] for unit in UNITS},
            "kept": {unit: self.kept[unit] for unit in UNITS},
            "dropped": {unit: dropped[unit] + self.removed[unit] for unit in UNITS},
            "by_rule": {rule: dict(counts) for rule, counts in sorted(self.by_rule.items())},
            "by_source": {name: dict(counts) for name, counts in sorted(self.by_source.items())},
            "resized": self.resized,
            "stored_bytes": self.stored,
        }

    def report_panels(self) -> Iterator[panels.Panel]:
        """Yield the panels of the report."""
        for unit in UNITS:
            steps = self.waterfall_steps(unit, "removed from kept images")
            yield panels.waterfall(f"Images: {unit}", unit, steps)
        rows = [(name, counts["read"], counts["kept"]) for name, counts in self.by_source.items()]
        yield panels.table("Sources", ("source", "read", "kept"), sorted(rows))
        yield from self.broken_panels()
        shorter, longer = np.array(self.shorter, np.float64), np.array(self.longer, np.float64)
        yield _log_histogram("Shorter side of kept images, pixels", shorter, 2)
        yield _log_histogram("Aspect ratio (longer over shorter side)", longer / shorter, 1.1)
        yield _log_histogram("Words of the main caption", np.array(self.words), 1.5)
        yield panels.samples("Captions", self.shown)
        if self.copies:
            yield panels.samples("Dropped duplicates", self.copies)


def _log_histogram(title: str, values: npt.NDArray[Any], factor: float) -> panels.Panel:
    """Return a histogram with bins from 1 on, each wider than the one before by a factor."""
    edges = [1.0]
    while edges[-1] <= values.max(initial=1):
        edges.append(edges[-1] * factor)
    counts, _ = np.histogram(values, edges)
    return panels.histogram(title, edges, counts.tolist())


def write_dropped(
    records: RecordTable, decisions: Decisions, merged: MergedCaptions, out: Path
) -> ImageStats:
    """Write the table of dropped records; return the counts of all records."""
    shutil.rmtree(out / "dropped", ignore_errors=True)
    stats, shown = ImageStats(), _shown_copies(decisions)
    places: dict[int, str] = {}
    outcomes = zip(decisions.rule.tolist(), decisions.score.tolist(), strict=True)
    with parquet_parts.PartWriter(out / "dropped", DROPPED) as writer:
        for number, (row, (rule, score)) in enumerate(
            zip(_annotations(records.commits), outcomes, strict=True)
        ):
            moved = merged.given.get(number, 0) or len(merged.added.get(number, ()))
            stats.record(row, rule, moved)
            if number in shown:
                places[number] = f"{row['place']}: {(row['captions'] or ['-'])[0]}"
            if rule:
                described = {name: row[name] for name in DROPPED.names}
                writer.write({**described, "rule": rule, "score": score})
    for copy, survivor in shown.items():
        if survivor in places and copy != survivor:
            stats.copies.append({"kept": places[survivor], "dropped": places[copy]})
    return stats


def _annotations(commits: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Yield the rows of annotation tables in order, without images and hashes."""
    columns = [*DROPPED.names, "captions_read", "resized", "stored"]
    for commit in commits:
        for batch in pq.ParquetFile(commit).iter_batches(1024, columns=columns):
            yield from batch.to_pylist()


def _shown_copies(decisions: Decisions) -> dict[int, int]:
    """Return the survivor of some duplicates and of each of these survivors: itself."""
    others = decisions.survivor != np.arange(len(decisions.rule))
    copies = np.flatnonzero(others & (decisions.rule != MERGED))
    some = copies[:: max(1, len(copies) // SHOWN)].tolist()
    survivor = {row: int(decisions.survivor[row]) for row in some}
    return {**{kept: kept for kept in survivor.values()}, **survivor}


def write_stats(out: Path, stats: dict[str, Any]) -> None:
    """Write `stats.json`."""
    from pipeline.atomic_io import write_atomic

    write_atomic(out / "stats.json", to_json(stats, indent=1, sort_keys=True))
