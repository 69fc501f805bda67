"""Best-fit packing against its definition, item by item, and the samples against the documents."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from stages.data.best_fit_packing import IGNORE_INDEX, BestFitSamples, best_fit, plan_packing
from stages.data.token_store import (
    TokenStore,
    document_boundaries,
    token_dtype,
    write_index,
    write_shard,
)

EOS = 3


def store(folder, lengths, per_shard=3):
    """Documents of the given lengths, every token its own number but for the end tokens."""
    flat, ends = np.arange(10, 10 + sum(lengths)), np.cumsum(lengths)
    flat[ends - 1] = EOS
    shards = []
    for number in range(0, len(lengths), per_shard):
        stop = min(len(lengths), number + per_shard)
        start = int(ends[number - 1]) if number else 0
        ids = flat[start : int(ends[stop - 1])].astype(token_dtype(1 << 17))
        own = (ends[number:stop] - start).astype(np.uint64)
        shards.append(write_shard(folder, f"train-{number:05d}", ids, own))
    write_index(folder, vocab_size=1 << 17, eos_id=EOS, splits={"train": shards, "eval": []})
    return TokenStore(folder), flat


def item_by_item(lengths, capacity):
    """The rooms that best-fit decreasing leaves, as a textbook has it."""
    rooms = []
    for length in sorted(lengths, reverse=True):
        fitting = [i for i, room in enumerate(rooms) if room >= length]
        if not fitting:
            rooms.append(capacity)
            fitting = [len(rooms) - 1]
        rooms[min(fitting, key=lambda i: rooms[i])] -= length
    return sorted(rooms)


@given(st.lists(st.integers(1, 30), max_size=120), st.integers(0, 20))
@settings(max_examples=200, deadline=None)
def test_bins_are_those_of_best_fit_decreasing(lengths, extra):
    capacity = max(lengths, default=1) + extra
    bins = best_fit(np.array(lengths, np.int64), capacity)
    filled = Counter()
    for where, length in zip(bins.tolist(), lengths, strict=True):
        filled[where] += length
    assert sorted(filled) == list(range(len(filled)))
    assert sorted(capacity - size for size in filled.values()) == item_by_item(lengths, capacity)


documents = st.lists(st.integers(1, 40), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(documents, st.integers(1, 24), st.integers(0, 2**40), st.integers(0, 3))
def test_every_token_is_a_target_once_and_no_fitting_document_is_split(
    tmp_path_factory, lengths, length, seed, epoch
):
    tokens, flat = store(tmp_path_factory.mktemp("store"), lengths)
    samples = BestFitSamples(tokens, length, seed)
    found = [samples.sample(i, epoch) for i in range(len(samples))]
    targets = [s.targets[s.targets != IGNORE_INDEX] for s in found]
    assert Counter(np.concatenate(targets).tolist()) == Counter(flat.tolist())
    before = dict(zip(flat.tolist(), np.roll(flat, 1).tolist(), strict=True))
    pieces = []
    for sample in found:
        padding = sample.targets == IGNORE_INDEX
        assert not padding[: length - padding.sum()].any() and not sample.tokens[padding].any()
        for segment in range(sample.segments[-1] + 1):
            here = sample.segments == segment
            assert sample.positions[here].tolist() == list(range(here.sum()))
            if not padding[here].any():
                pieces.append(sample.targets[here].tolist())
                inputs = sample.tokens[here].tolist()
                assert inputs[1:] == pieces[-1][:-1]
                assert pieces[-1][0] == EOS or inputs[0] == before[pieces[-1][0]]
    for number, size in enumerate(lengths):
        document = tokens.document(number).tolist()
        if size <= length and document != [EOS]:
            assert document in pieces
    lost = sum(int((s.targets == IGNORE_INDEX).sum()) for s in found)
    assert samples.padding == pytest.approx(lost / (len(samples) * length))
    assert samples.plan.num_split == sum(size > length for size in lengths)


def test_a_long_document_is_split_into_full_samples_first():
    found = plan_packing(np.array([25, 28]), 10)
    assert found.starts.tolist() == [0, 10, 20, 25] and found.lengths.tolist() == [10, 10, 5, 3]
    assert found.first.tolist() == [0, 1, 2, 4] and found.num_split == 1


def test_best_fit_pads_less_than_first_fit():
    chance = np.random.default_rng(0)
    lengths = np.minimum(chance.lognormal(5, 1, 20_000).astype(np.int64) + 1, 1024)
    bins = best_fit(lengths, 1024)
    assert lengths.sum() / (1024 * (bins.max() + 1)) > 0.999


def test_epochs_visit_the_same_samples_in_other_orders(tmp_path):
    tokens, _ = store(tmp_path, [7, 30, 12, 5, 9, 21, 16, 3, 8, 8, 40])
    samples = BestFitSamples(tokens, 16, seed=5)

    def epoch(number):
        start = number * len(samples)
        return [tuple(samples[start + i].targets.tolist()) for i in range(len(samples))]

    assert epoch(0) == [tuple(s.targets.tolist()) for s in samples]
    assert sorted(epoch(0)) == sorted(epoch(7)) and epoch(0) != epoch(7)
    assert epoch(0) == [
        tuple(BestFitSamples(tokens, 16, 5)[i].targets) for i in range(len(samples))
    ]
    plain = BestFitSamples(tokens, 16)
    for beyond in (len(plain), -1):
        with pytest.raises(IndexError):
            plain[beyond]
    with pytest.raises(InputError, match="no eval tokens"):
        BestFitSamples(TokenStore(tmp_path, "eval"), 16)


def test_the_boundaries_of_a_window_are_its_end_tokens():
    windows = np.array([[9, 8, EOS, 7, EOS, EOS], [EOS, 5, 6, 7, 8, 9]])
    segments, positions = document_boundaries(windows, EOS)
    assert segments.tolist() == [[0, 0, 1, 1, 2, 3], [0] * 6]
    assert positions.tolist() == [[0, 1, 0, 1, 0, 0], [0, 1, 2, 3, 4, 5]]
