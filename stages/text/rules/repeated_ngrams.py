"""Repeated n-grams, compiled: a text is narrowed down to what is repeated, length by length."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stages.data.hashing import GOLDEN_GAMMA
from stages.text.numba_kernels import inlined, kernel

Hashes = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
_GOLDEN = np.uint64(GOLDEN_GAMMA)


@inlined
def _table_size(count: int) -> int:
    """A power of two of which `count` entries fill half at most."""
    size = 2
    while size < 2 * count:
        size *= 2
    return size


@inlined
def _group(grams: Hashes, groups: Places, copies: Places, table: Places) -> int:
    """Number equal n-grams alike, in the order of their first; count each number's `copies`.

    `table` is addressed by a hash's high bits and holds where the first n-gram of a hash stands.
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


@inlined
def _narrow(places: Places, grams: Hashes, groups: Places, copies: Places, count: int) -> int:
    """Move those that have copies to the front; how many they are."""
    kept = 0
    for k in range(count):
        if copies[groups[k]] > 1:
            places[kept], grams[kept], groups[kept] = places[k], grams[k], groups[k]
            kept += 1
    return kept


@inlined
def _most_frequent(places: Places, groups: Places, copies: Places, single: int) -> tuple[int, int]:
    """Where the most frequent n-gram is met first, and how often it counts; of equally frequent
    ones the first."""
    best = first = 0
    for group in range(len(copies)):
        if copies[group] > copies[best]:
            best = group
    if not len(copies) or copies[best] == 1:
        return 0, single
    while groups[first] != best:
        first += 1
    return places[first], copies[best]


@inlined
def _copied(
    places: Places, groups: Places, seen: Flags, ends: Places, n: int, skip_overlaps: bool
) -> int:
    """Characters in n-grams that were `seen` before, each word once. What is leapt over was not."""
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
    longest_top: int,
    longest: int,
    single: int,
    skip_overlaps: bool,
) -> Places:
    """Characters in repeated 2- to `longest`-grams, shape (longest - 1,): up to `longest_top`
    words, in all copies of the most frequent n-gram, joined by spaces; of more, in copies.

    Where an n-gram is repeated, the shorter one that it begins with is too, so each length looks
    only where the last one found something.

    Args:
        hashes: of the text's words, shape (N,).
        lengths: their characters, shape (N,).
        longest_top: words of the longest n-gram of which the most frequent one is asked for.
        longest: words of the longest n-gram.
        single: how often a most frequent n-gram counts that occurs once.
        leaping: whether the search goes on behind each copy, or at the next word, where a word
            that lies in several copies counts once.
    """
    ends = np.zeros(len(hashes) + 1, np.int64)
    for k in range(len(lengths)):
        ends[k + 1] = ends[k] + lengths[k]
    places, grams = np.arange(len(hashes)), hashes.copy()
    groups, copies = np.empty_like(places), np.empty_like(places)
    table = np.empty(_table_size(len(hashes)), np.int64)
    characters = np.zeros(longest - 1, np.int64)
    count = len(hashes)
    for n in range(2, longest + 1):
        while count and places[count - 1] + n > len(hashes):
            count -= 1
        for k in range(count):
            grams[k] = grams[k] * _GOLDEN + hashes[places[k] + n - 1]
        distinct = _group(grams[:count], groups, copies, table[: _table_size(count)])
        if n <= longest_top and n <= len(hashes):
            first, times = _most_frequent(places[:count], groups, copies[:distinct], single)
            characters[n - 2] = times * (ends[first + n] - ends[first] + n - 1)
        count = _narrow(places, grams, groups, copies, count)
        if n > longest_top:
            seen = np.zeros(distinct, np.bool_)
            characters[n - 2] = _copied(places[:count], groups, seen, ends, n, skip_overlaps)
    return characters
