"""Links over shards against union-find, however the hashes, the files and the merges are cut."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.context import Context
from pipeline.stage import Workers
from stages.text.dedup import hash_join, survivor_ranking
from stages.text.dedup.dedup_params import DedupParams
from stages.text.dedup.hash_join import (
    RECORD,
    JaccardAtLeast,
    RowFiles,
    TaskScope,
    candidate_pairs,
    hash_ranges,
    sort_records,
)


def union_find(size, pairs):
    """The least member of each one's component."""
    parent = list(range(size))

    def root(x):
        while parent[x] != x:
            x = parent[x]
        return x

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return [root(x) for x in range(size)]


def scope(folder):
    return TaskScope(folder, Workers(), Context.local(folder / "ctx"))


def records(keys, first=0):
    """A record for each key, rows counted from `first`; keys are spread over all ranges."""
    found = np.zeros(len(keys), RECORD)
    found["key"] = np.array(keys, np.uint64) * np.uint64(0x1F3D5B79A1C3E5F7)
    found["row"] = np.arange(first, first + len(keys))
    return found


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=30),
    st.integers(1, 9),
    st.integers(1, 60),
)
def test_components_are_those_of_union_find(tmp_path_factory, keys, files, task):
    """Documents of three bands each, in any number of files, ranges and merges."""
    bands, folder = np.array(keys), tmp_path_factory.mktemp("links")
    spread = []
    for number, rows in enumerate(np.array_split(np.arange(len(keys)), files)):
        first = int(rows[0]) if len(rows) else 0
        found = np.concatenate([records(band, first) for band in bands[rows].T])
        found["check"] = np.repeat(np.arange(3), len(rows))
        spread.append(folder / f"{number}")
        hash_join.write_records(spread[-1], found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hash_join, "RECORDS_PER_TASK", task)
        patch.setattr(hash_join, "FORESTS_PER_MERGE", 2)
        assert len(hash_ranges(spread)) == -(-3 * len(keys) // task)
        spanning_forest = hash_join.join_equal_hashes(spread, None, scope(folder))
    roots = np.arange(len(keys))
    roots[spanning_forest[:, 0]] = spanning_forest[:, 1]
    pairs = [(a, b) for a, b in combinations(range(len(keys)), 2) if (bands[a] == bands[b]).any()]
    assert roots.tolist() == union_find(len(keys), pairs)


def test_every_record_is_in_one_range(tmp_path, monkeypatch):
    edges = np.array([0, 1, 2**62, 2**63 - 1, 2**63, 2**64 - 1], np.uint64)
    found = np.zeros(len(edges), RECORD)
    found["key"] = edges
    hash_join.write_records(tmp_path / "a", found[::2])
    hash_join.write_records(tmp_path / "b", found[1::2])
    monkeypatch.setattr(hash_join, "RECORDS_PER_TASK", 2)
    cut = hash_ranges([tmp_path / "a", tmp_path / "b"])
    assert [len(part.records()) for part in cut] == [3, 2, 1]
    assert np.concatenate([part.records()["key"] for part in cut]).tolist() == edges.tolist()


def test_a_frequent_hash_gives_few_candidates():
    left, right = candidate_pairs(sort_records(records([1] * 100 + [2] * 8)))
    pairs = set(zip(left.tolist(), right.tolist(), strict=True))
    near = {(a, b) for a, b in combinations(range(100), 2) if b - a <= 8 or a == 0}
    assert pairs == near | set(combinations(range(100, 108), 2))


def test_only_similar_signatures_are_linked(tmp_path):
    """All four share a band; only the last two are alike in the rest."""
    signatures = np.arange(40, dtype=np.uint32).reshape(4, 10)
    signatures[3, :8] = signatures[2, :8]
    hash_join.write_array(tmp_path / "low", signatures[:3])
    hash_join.write_array(tmp_path / "high", signatures[3:])
    hash_join.write_records(tmp_path / "spread", records([5] * 4))
    files = RowFiles([tmp_path / "low", tmp_path / "high"], [0, 3])
    for least, expected in ((0.8, [[3, 2]]), (0.81, []), (0.0, [[1, 0], [2, 0], [3, 0]])):
        pair_filter = JaccardAtLeast(files, least)
        found = hash_join.join_equal_hashes(
            [tmp_path / "spread"], pair_filter, scope(tmp_path / str(least))
        )
        assert found.tolist() == expected


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=20))
def test_ranks_follow_the_preferences_in_order(keys):
    first, second = np.array(keys).T
    rank = survivor_ranking.rank_rows([first, -second], len(keys))
    expected = sorted(range(len(keys)), key=lambda row: (keys[row][0], -keys[row][1], row))
    assert np.argsort(rank).tolist() == expected


def test_hash_descriptions_differ_by_every_deciding_field():
    described = {
        DedupParams(**options).hash_description
        for options in (
            {},
            {"near": False},
            {"ngram_size": 4},
            {"character_ngram_size": 4},
            {"num_bands": 15},
            {"rows_per_band": 7},
            {"verify": True},
        )
    }
    assert len(described) == 7
