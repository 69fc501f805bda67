"""The token store against the plain array that it stands for."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import CorruptArtifact, InputError
from stages.data.token_store import TokenStore, token_dtype, write_index, write_shard


def store(folder, lengths, per_shard=3, vocab_size=1000):
    """Documents of the given lengths, every token its own number; and the flat array."""
    flat = np.arange(sum(lengths)) % vocab_size
    shards, start = [], 0
    for number in range(0, len(lengths), per_shard):
        chunk = lengths[number : number + per_shard]
        ids = flat[start : start + sum(chunk)].astype(token_dtype(vocab_size))
        name = f"train-{number:05d}"
        shards.append(write_shard(folder, name, ids, np.cumsum(chunk).astype(np.uint64)))
        start += sum(chunk)
    write_index(folder, vocab_size=vocab_size, eos_id=3, splits={"train": shards, "eval": []})
    return TokenStore(folder), flat


def test_the_store_equals_the_flat_array(tmp_path):
    tokens, flat = store(tmp_path, [5, 1, 7, 3, 9, 2, 4], vocab_size=70_000)
    assert tokens.dtype == np.dtype("<u4") and tokens.vocab_size == 70_000 and tokens.eos_id == 3
    assert tokens.tokens == 31 and tokens.documents == 7
    for start in range(31):
        for length in (1, 4, 31, 70):
            expected = np.resize(np.roll(flat, -start), length)
            assert tokens.window(start, length).tolist() == expected.tolist()
    assert [len(tokens.document(i)) for i in range(7)] == [5, 1, 7, 3, 9, 2, 4]
    assert np.concatenate([tokens.document(i) for i in range(7)]).tolist() == flat.tolist()
    with pytest.raises(IndexError):
        tokens.document(7)


@pytest.mark.parametrize(("vocab", "dtype"), [(272, "<u2"), (1 << 16, "<u2"), (65_537, "<u4")])
def test_the_dtype_fits_the_vocabulary(vocab, dtype):
    assert token_dtype(vocab) == np.dtype(dtype)


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    length=st.integers(1, 12),
    seed=st.integers(0, 2**40),
    epoch=st.integers(0, 5),
)
def test_an_epoch_reads_every_token_at_most_once(tmp_path_factory, lengths, length, seed, epoch):
    tokens, flat = store(tmp_path_factory.mktemp("store"), lengths)
    if tokens.tokens < length + 1:
        with pytest.raises(InputError, match="fewer than one sample"):
            tokens.samples(length, seed)
        return
    samples = tokens.samples(length, seed)
    assert len(samples) == tokens.tokens // length
    starts = [samples.start(i, epoch) for i in range(len(samples))]
    inputs = Counter((s + k) % tokens.tokens for s in starts for k in range(length))
    assert max(inputs.values()) == 1 and len(inputs) == len(samples) * length
    for i, start in enumerate(starts):
        expected = flat[(start + np.arange(length + 1)) % len(flat)]
        assert samples.sample(i, epoch).tolist() == expected.tolist()
        assert samples[epoch * len(samples) + i].tolist() == expected.tolist()


def test_without_a_seed_there_is_one_epoch_in_stored_order(tmp_path):
    tokens, flat = store(tmp_path, [9, 8])
    samples = tokens.samples(4)
    expected = [flat[i : i + 5].tolist() for i in (0, 4, 8, 12)]
    assert [s.tolist() for s in samples] == [samples[i].tolist() for i in range(4)] == expected
    for beyond in (4, 5, -1):
        with pytest.raises(IndexError):
            samples[beyond]


def test_with_a_seed_indices_continue_with_further_epochs(tmp_path):
    tokens, _ = store(tmp_path, [9, 8])
    samples = tokens.samples(4, seed=1)
    assert len(list(samples)) == len(samples) == 4
    assert samples[1001].tolist() == samples.sample(1, epoch=250).tolist()
    with pytest.raises(IndexError):
        samples[-1]


def test_epochs_differ_and_are_reproducible(tmp_path):
    tokens, _ = store(tmp_path, [400, 300])
    order = [[tokens.samples(8, 5).start(i, e) for i in range(87)] for e in (0, 1, 0)]
    assert order[0] == order[2] and set(order[0]) != set(order[1])
    assert order[0] != [tokens.samples(8, 6).start(i) for i in range(87)]


def test_a_damaged_store_is_reported(tmp_path):
    with pytest.raises(InputError, match="no token store"):
        TokenStore(tmp_path)
    store(tmp_path, [5, 5])
    assert TokenStore(tmp_path, "eval").tokens == 0
    with pytest.raises(InputError, match="no split 'test'"):
        TokenStore(tmp_path, "test")
    (tmp_path / "train-00000.bin").write_bytes(b"123")
    with pytest.raises(CorruptArtifact, match="expected 10 tokens of uint16, found 3 bytes"):
        TokenStore(tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    (tmp_path / "index.json").write_text(json.dumps(index | {"schema": 9}))
    with pytest.raises(CorruptArtifact, match="schema 9"):
        TokenStore(tmp_path)
