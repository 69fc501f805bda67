"""Counts of what was read, kept and dropped, and what people are shown of it."""

from __future__ import annotations

import json
import shutil
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline import panels as draw
from pipeline.errors import CorruptArtifact
from stages.images.selection import Figures, Verdicts
from stages.images.shard_writer import COLUMNS, described, dropped_writer

SHOWN = 20  # broken records, and kept captions
UNITS = ("samples", "captions")


@dataclass
class Ledger:
    """Counts, entered one record at a time."""

    read: Counter[str] = field(default_factory=Counter)
    kept: Counter[str] = field(default_factory=Counter)
    rules: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    sources: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    left_out: int = 0
    """Captions of kept images that were left out."""
    resized: int = 0
    stored: int = 0
    broken: int = 0
    broken_places: list[str] = field(default_factory=list)
    """Those of the first `SHOWN`."""
    short: array[int] = field(default_factory=lambda: array("I"))
    """The shorter side of each kept image, pixels."""
    long: array[int] = field(default_factory=lambda: array("I"))
    words: array[int] = field(default_factory=lambda: array("I"))
    """Of the main caption of each."""
    shown: list[dict[str, str]] = field(default_factory=list)
    copies: list[dict[str, str]] = field(default_factory=list)

    def enter(self, row: dict[str, Any], rule: str) -> None:
        """Count one record: kept if `rule` is empty, else dropped by it."""
        size = {"samples": 1, "captions": row["captions_read"]}
        self.read.update(size)
        self.sources[row["source"]]["read"] += 1
        if rule:
            self.rules[rule].update(size)
            self._note_broken(row, rule)
            return
        held = len(row["captions"])
        self.kept.update({"samples": 1, "captions": held})
        self.left_out += row["captions_read"] - held
        self.sources[row["source"]]["kept"] += 1
        self.resized += row["resized"]
        self.stored += row["stored"]
        self.short.append(min(row["width"], row["height"]))
        self.long.append(max(row["width"], row["height"]))
        self.words.append(len(row["captions"][0].split()))
        if self.kept["samples"] & (self.kept["samples"] - 1) == 0 and len(self.shown) < SHOWN:
            self.shown.append({"place": row["place"], "captions": " | ".join(row["captions"])})

    def _note_broken(self, row: dict[str, Any], rule: str) -> None:
        if not rule.startswith("broken."):
            return
        self.broken += 1
        if len(self.broken_places) < SHOWN:
            why = row["reason"] or rule.removeprefix("broken.")
            self.broken_places.append(f"{row['source']}/{row['place']}: {why}")

    def stats(self) -> dict[str, Any]:
        """The counts as `stats.json` holds them.

        Raises:
            CorruptArtifact: kept and dropped do not add up to read.
        """
        dropped = {unit: sum(counts[unit] for counts in self.rules.values()) for unit in UNITS}
        dropped["captions"] += self.left_out
        for unit in UNITS:
            if self.read[unit] != self.kept[unit] + dropped[unit]:
                raise CorruptArtifact(
                    f"{self.kept[unit]} kept and {dropped[unit]} dropped of {self.read[unit]} "
                    f"{unit} read"
                )
        return {
            "read": {unit: self.read[unit] for unit in UNITS},
            "kept": {unit: self.kept[unit] for unit in UNITS},
            "dropped": dropped,
            "by_rule": {rule: dict(counts) for rule, counts in sorted(self.rules.items())},
            "by_source": {name: dict(counts) for name, counts in sorted(self.sources.items())},
            "resized": self.resized,
            "stored_bytes": self.stored,
        }

    def panels(self) -> Iterator[draw.Panel]:
        """What the report shows."""
        for unit in UNITS:
            losses = sorted(self.rules.items(), key=lambda item: -item[1][unit])
            steps = [("read", self.read[unit]), *((r, -counts[unit]) for r, counts in losses)]
            if unit == "captions" and self.left_out:
                steps.append(("left out of kept images", -self.left_out))
            yield draw.waterfall(f"Images: {unit}", unit, [*steps, ("kept", self.kept[unit])])
        rows = [(name, counts["read"], counts["kept"]) for name, counts in self.sources.items()]
        yield draw.table("Sources", ("source", "read", "kept"), sorted(rows))
        if self.broken:
            places = [(place,) for place in self.broken_places]
            yield draw.table(f"Broken records: {self.broken}", ("where and why",), places)
        short, long = np.array(self.short, np.float64), np.array(self.long, np.float64)
        yield _spread("Shorter side of kept images, pixels", short, 2)
        yield _spread("Longer side over the shorter", long / short, 1.1)
        yield _spread("Words of the main caption", np.array(self.words), 1.5)
        yield draw.samples("Captions", self.shown)
        if self.copies:
            yield draw.samples("Copies that were dropped", self.copies)


def _spread(title: str, values: npt.NDArray[Any], factor: float) -> draw.Panel:
    """Counts in bins that each are a factor wider than the last."""
    edges = [1.0]
    while edges[-1] <= values.max(initial=1):
        edges.append(edges[-1] * factor)
    counts, _ = np.histogram(values, edges)
    return draw.histogram(title, edges, counts.tolist())


def write_dropped(figures: Figures, verdicts: Verdicts, out: Path) -> Ledger:
    """Write the table of dropped records and count all."""
    shutil.rmtree(out / "dropped", ignore_errors=True)
    ledger, first = Ledger(), _shown_copies(verdicts)
    places: dict[int, str] = {}
    rows = zip(verdicts.rule.tolist(), verdicts.score.tolist(), strict=True)
    with dropped_writer(out) as writer:
        for number, (row, (rule, score)) in enumerate(
            zip(described(figures.commits), rows, strict=True)
        ):
            ledger.enter(row, rule)
            if number in first:
                places[number] = f"{row['place']}: {(row['captions'] or ['-'])[0]}"
            if rule:
                named = {name: row[name] for name in COLUMNS}
                writer.write({**named, "rule": rule, "score": score})
    for copy, stands in first.items():
        if stands in places and copy != stands:
            ledger.copies.append({"stays": places[stands], "goes": places[copy]})
    return ledger


def _shown_copies(verdicts: Verdicts) -> dict[int, int]:
    """Some copies and what they are copies of."""
    copies = np.flatnonzero(verdicts.stands_for != np.arange(len(verdicts.rule)))
    some = copies[:: max(1, len(copies) // SHOWN)].tolist()
    pairs = {row: int(verdicts.stands_for[row]) for row in some}
    return {**{stands: stands for stands in pairs.values()}, **pairs}


def write_stats(out: Path, stats: dict[str, Any]) -> None:
    """Write the counts."""
    from pipeline.storage.atomic_io import write_atomic

    write_atomic(out / "stats.json", json.dumps(stats, indent=1, sort_keys=True))
