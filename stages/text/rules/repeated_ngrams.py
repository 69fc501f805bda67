"""Repeated n-grams, compiled: each length is searched only where the previous one repeats."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.data.hashing import GOLDEN_GAMMA
from stages.text.numba_kernels import inline_kernel, kernel

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
_GOLDEN = np.uint64(GOLDEN_GAMMA)


@inline_kernel
def _table_size(count: int) -> int:
    """Return a power of two that is at least twice `count`."""
    size = 2
    while size < 2 * count:
        size *= 2
    return size


@inline_kernel
def _group(grams: Hashes, groups: Places, copies: Places, table: Places) -> int:
    """Assign equal n-grams one number, in order of first occurrence; count the `copies` of each.

    `table` is addressed by the high bits of a hash and holds the place of its first n-gram.
    """
    table[:] = -1
    shift = np.uint64(64 - np.log2(len(table)))
    distinct = 0
    for k in range(len(grams)):
        slot = np.int64(grams[k] * _GOLDEN >> shift)
        while table[slot] >= 0 and grams[table[slot]] != grams[k]:
            slot = (slot + 1) & (len(table) - 1)
        if table[slot] < 0:
            table[slot] = k
            groups[k] = distinct
            copies[distinct] = 0
            distinct += 1
        else:
            groups[k] = groups[table[slot]]
        copies[groups[k]] += 1
    return distinct


@inline_kernel
def _narrow(places: Places, grams: Hashes, groups: Places, copies: Places, count: int) -> int:
    """Move the n-grams that have copies to the front; return their number."""
    kept = 0
    for k in range(count):
        if copies[groups[k]] > 1:
            places[kept], grams[kept], groups[kept] = places[k], grams[k], groups[k]
            kept += 1
    return kept


@inline_kernel
def _most_frequent(
    places: Places, groups: Places, copies: Places, unique_count: int
) -> tuple[int, int]:
    """Return the first place of the most frequent n-gram and how often it counts; of equally
    frequent n-grams the first."""
    best = first = 0
    for group in range(len(copies)):
        if copies[group] > copies[best]:
            best = group
    if not len(copies) or copies[best] == 1:
        return 0, unique_count
    while groups[first] != best:
        first += 1
    return places[first], copies[best]


@inline_kernel
def _count_copied(
    places: Places, groups: Places, seen: Flags, ends: Places, n: int, skip_overlaps: bool
) -> int:
    """Return the characters in n-grams that were `seen` before, each word counted once. Skipped
    n-grams do not count as seen."""
    characters = behind = 0
    for k in range(len(places)):
        if skip_overlaps and places[k] < behind:
            continue
        if seen[groups[k]]:
            characters += ends[places[k] + n] - ends[max(places[k], behind)]
            behind = places[k] + n
        seen[groups[k]] = True
    return characters


@kernel("int64[::1](uint64[::1], int64[::1], int64, int64, int64, boolean)")
def repeated_characters(
    hashes: Hashes,
    lengths: Places,
    max_top: int,
    max_n: int,
    unique_count: int,
    skip_overlaps: bool,
) -> Places:
    """Count the characters in repeated 2- to `max_n`-grams, shape (max_n - 1,): up to `max_top`
    words, in all copies of the most frequent n-gram, joined by spaces; of more, in copies.

    Where an n-gram is repeated, its shorter prefix is too, so each length is searched only where
    the previous one found something.

    Args:
        hashes: hashes of the text's words, shape (N,).
        lengths: their lengths in characters, shape (N,).
        max_top: words of the max_n n-gram whose most frequent one is counted.
        max_n: words of the max_n n-gram.
        unique_count: how often a most frequent n-gram counts that occurs once.
        skip_overlaps: whether the search continues after each copy, instead of at the next word,
            where a word in several copies counts once.
    """
    ends = np.zeros(len(hashes) + 1, np.int64)
    for k in range(len(lengths)):
        ends[k + 1] = ends[k] + lengths[k]
    places, grams = np.arange(len(hashes)), hashes.copy()
    groups, copies = np.empty_like(places), np.empty_like(places)
    table = np.empty(_table_size(len(hashes)), np.int64)
    characters = np.zeros(max_n - 1, np.int64)
    count = len(hashes)
    for n in range(2, max_n + 1):
        while count and places[count - 1] + n > len(hashes):
            count -= 1
        for k in range(count):
            grams[k] = grams[k] * _GOLDEN + hashes[places[k] + n - 1]
        distinct = _group(grams[:count], groups, copies, table[: _table_size(count)])
        if n <= max_top and n <= len(hashes):
            first, times = _most_frequent(places[:count], groups, copies[:distinct], unique_count)
            characters[n - 2] = times * (ends[first + n] - ends[first] + n - 1)
        count = _narrow(places, grams, groups, copies, count)
        if n > max_top:
            seen = np.zeros(distinct, np.bool_)
            characters[n - 2] = _count_copied(places[:count], groups, seen, ends, n, skip_overlaps)
    return characters
