"""Merges the captions of manifest rows that name one image, as Flickr30k and COCO are handed on."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from stages.curation.decisions import Decisions, Rows
from stages.images.selection import MERGED, RecordTable
from stages.images.shard_writer import read_rows_of


@dataclass(frozen=True)
class MergedCaptions:
    """The captions that kept rows get from rows of the same image."""

    added: dict[int, list[str]] = field(default_factory=dict)
    """Captions that are added to a kept row."""
    given: dict[int, int] = field(default_factory=dict)
    """Number of captions that a merged row gives to a kept one."""

    @property
    def extra_bytes(self) -> dict[int, int]:
        """Size of the captions that are added to a kept row, bytes."""
        return {
            row: sum(len(caption.encode()) + 1 for caption in captions)
            for row, captions in self.added.items()
        }


def merge_captions(records: RecordTable, decisions: Decisions) -> MergedCaptions:
    """Return the captions of merged rows for the rows that are kept, each caption once."""
    rows = np.flatnonzero(decisions.rule == MERGED)
    rows = rows[decisions.rule[decisions.survivor[rows]] == ""]
    merged = MergedCaptions()
    own = _captions_of(records, np.unique(decisions.survivor[rows]))
    for row, captions in _captions_of(records, rows).items():
        survivor = int(decisions.survivor[row])
        known = own[survivor]
        new = [caption for caption in captions if caption not in known]
        known += new
        merged.added.setdefault(survivor, []).extend(new)
        merged.given[row] = len(new)
    return merged


def _captions_of(records: RecordTable, rows: Rows) -> dict[int, list[str]]:
    """Return the captions of some rows, in order."""
    found = (
        list(row["captions"])
        for table, numbers in records.by_commit(rows)
        for row in read_rows_of(table, numbers, ["captions"])
    )
    return dict(zip(rows.tolist(), found, strict=True))
