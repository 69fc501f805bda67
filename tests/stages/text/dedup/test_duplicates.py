"""Near-duplicate search against brute force: Jaccard by sets, components by union-find."""

import re
from itertools import combinations
from unicodedata import category, normalize

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data.hashing import hash64
from stages.text.chinese_variants import to_simplified
from stages.text.dedup.components import components, survivors
from stages.text.dedup.dedup_params import DedupParams
from stages.text.dedup.hash_join import JaccardAtLeast, RowFiles, write_array
from stages.text.dedup.minhash import (
    MinHash,
    band_error,
    best_band_shape,
    match_probability,
)
from stages.text.words.word_table import WordTable, fold_word, ngram_hashes


def shingles(text):
    words = [folded for word in text.split() if (folded := fold_word(word))]
    n = min(5, len(words))
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)} if n else set()


def text_bands(minhash, words):
    signature = minhash.text_signature(words)
    return None if signature is None else minhash.band_hashes(signature)


def jaccard(a, b):
    return len(a & b) / len(a | b)


def variants(seed, bases=60):
    """Texts of every similarity: each a base with some of its words replaced."""
    chance = np.random.default_rng(seed)
    vocabulary = [f"w{i}x" for i in range(3000)]
    vocabulary = ["".join(chr(97 + int(d)) for d in word if d.isdigit()) for word in vocabulary]
    texts = []
    for _ in range(bases):
        base = chance.choice(vocabulary, 120)
        for share in (0.0, 0.01, 0.02, 0.04, 0.08, 0.15):
            words = np.where(chance.random(120) < share, chance.choice(vocabulary, 120), base)
            texts.append(" ".join(words))
    return texts


def test_recall_and_precision_are_what_the_formula_promises():
    texts, minhash, shared_word_table = variants(0), MinHash(), WordTable()
    sets = [shingles(text) for text in texts]
    bands = np.array([text_bands(minhash, shared_word_table.words(text)) for text in texts])
    groups = [range(start, start + 6) for start in range(0, len(texts), 6)]
    inside = [pair for group in groups for pair in combinations(group, 2)]
    similar = np.array([jaccard(sets[a], sets[b]) for a, b in inside])
    found = np.array([(bands[a] == bands[b]).any() for a, b in inside])
    expected = np.array([minhash.match_probability(s) for s in similar])
    for low, high in ((0.0, 0.4), (0.4, 0.6), (0.6, 0.75), (0.75, 0.9), (0.9, 1.01)):
        chosen = (similar >= low) & (similar < high)
        assert chosen.sum() > 30
        deviation = np.sqrt((expected[chosen] * (1 - expected[chosen])).sum()) / chosen.sum()
        assert abs(found[chosen].mean() - expected[chosen].mean()) < 4 * deviation + 0.01
    outside = equal_links(bands) - {pair for pair, hit in zip(inside, found, strict=True) if hit}
    assert outside == set()  # texts that share nothing never meet


def test_verification_makes_candidates_precise(tmp_path):
    """Bands that find nearly everything; whole signatures tell what is as similar as asked."""
    texts, minhash, shared_word_table = variants(2, 30), MinHash(bands=28, rows=4), WordTable()
    sets = [shingles(text) for text in texts]
    words = [shared_word_table.words(text) for text in texts]
    signatures = np.array([minhash.text_signature(word) for word in words])
    write_array(tmp_path / "signatures", signatures)
    found = sorted(equal_links(np.array([minhash.band_hashes(s) for s in signatures])))
    left, right = np.array(found).T
    confirmed = JaccardAtLeast(RowFiles([tmp_path / "signatures"], [0]), 0.8)(left, right)
    similar = np.array([jaccard(sets[a], sets[b]) for a, b in found])
    everything = sum(jaccard(sets[a], sets[b]) >= 0.85 for a, b in combinations(range(180), 2))
    assert (similar >= 0.85).sum() == everything > 30  # nothing that is similar is missed
    assert (similar < 0.6).sum() > 100  # at the price of much that is not
    assert (similar[confirmed] > 0.7).all() and (similar[confirmed] >= 0.8).mean() > 0.85
    assert confirmed[similar >= 0.85].mean() > 0.9


def equal_links(bands):
    """Pairs of rows that share a band."""
    return {
        (a, b)
        for band in bands.T
        for value in np.unique(band)
        for a, b in combinations(np.flatnonzero(band == value).tolist(), 2)
    }


def test_the_signature_estimates_jaccard():
    texts, minhash, shared_word_table = variants(1, 6), MinHash(bands=64, rows=8), WordTable()
    words = [shared_word_table.words(text) for text in texts]
    signatures = [minhash.signature(minhash.shingles(word)) for word in words]
    errors = []
    for a, b in combinations(range(36), 2):
        true = jaccard(shingles(texts[a]), shingles(texts[b]))
        errors.append((signatures[a] == signatures[b]).mean() - true)
    assert abs(np.mean(errors)) < 0.005 and np.std(errors) < 0.02


def test_shingles_see_through_case_digits_accents_and_punctuation():
    minhash, shared_word_table = MinHash(), WordTable()
    one = text_bands(
        minhash, shared_word_table.words("The café, opened in 1998, serves tea; daily.")
    )
    two = text_bands(minhash, shared_word_table.words("the cafe opened in 2021 serves tea daily"))
    assert (one == two).all()
    assert text_bands(minhash, shared_word_table.words("--- !!! ...")) is None
    assert text_bands(minhash, shared_word_table.words("two words")) is not None


def test_large_texts_are_hashed_in_blocks_alike():
    chance = np.random.default_rng(0)
    many = np.unique(chance.integers(0, 2**63, 5000).astype(np.uint64))
    minhash = MinHash()
    halves = [minhash.signature(many[:2100]), minhash.signature(many[2100:])]
    assert (minhash.signature(many) == np.minimum(*halves)).all()


def test_the_probability_is_the_papers():
    assert MinHash().match_probability(0.8) == pytest.approx(0.924, abs=1e-3)
    assert MinHash().match_probability(0.5) == pytest.approx(0.0533, abs=1e-3)


def test_a_threshold_chooses_the_shape_of_least_error():
    for threshold, weight in ((0.5, 0.5), (0.8, 0.5), (0.8, 0.9), (0.95, 0.5)):
        bands, rows = best_band_shape(threshold, 48, weight)
        below, above = np.linspace(0, threshold, 10_001), np.linspace(threshold, 1, 10_001)
        false = np.trapezoid(1 - (1 - below**rows) ** bands, below)
        missed = np.trapezoid((1 - above**rows) ** bands, above)
        area = (1 - weight) * false + weight * missed
        assert band_error(threshold, bands, rows, weight) == pytest.approx(area, abs=1e-4)
        for other in range(1, 49):
            for length in range(1, 48 // other + 1):
                assert band_error(threshold, other, length, weight) >= area - 1e-4


def test_bands_rows_and_threshold_must_agree():
    assert DedupParams().band_shape == (14, 8) and DedupParams(num_bands=20).band_shape == (20, 8)
    bands, rows = DedupParams(threshold=0.8).band_shape
    assert bands * rows <= 112 and (1 / bands) ** (1 / rows) == pytest.approx(0.8, abs=0.05)
    assert DedupParams(threshold=0.8, num_bands=bands, rows_per_band=rows).band_shape == (
        bands,
        rows,
    )
    with pytest.raises(ValueError, match=r"threshold 0.8 chooses .* not 14 and 8: omit"):
        DedupParams(threshold=0.8, num_bands=14, rows_per_band=8)
    heavy = DedupParams(threshold=0.8, false_negative_weight=0.95).band_shape
    assert match_probability(0.8, *heavy) > match_probability(0.8, bands, rows)


def test_unspaced_scripts_are_shingled_by_characters():
    poem = "床前明月光疑是地上霜举头望明月低头思故乡"
    minhash, shared_word_table = MinHash(character_ngram_size=6), WordTable()

    def characters(text):
        return len(minhash.shingles(shared_word_table.words(text)))

    assert characters(poem) == len(poem) - 5 == characters("，".join(poem))
    english = "one two three four five six seven"
    assert characters(english) == 3
    mixed = set(minhash.shingles(shared_word_table.words(f"{poem} {english}")).tolist())
    for part, count in ((poem, 15), (english, 3)):
        inside = set(minhash.shingles(shared_word_table.words(part)).tolist())
        assert len(inside) == count and inside <= mixed
    assert len(mixed) == 15 + 5 + 3  # and those that begin in one script and end in the other
    assert characters("床前") == characters("床前 tea") == 1


def union_find(size, links):
    parent = list(range(size))

    def root(x):
        while parent[x] != x:
            x = parent[x]
        return x

    for a, b in links:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return [root(x) for x in range(size)]


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 30).flatmap(
        lambda n: st.tuples(
            st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)))
        )
    )
)
def test_components_are_those_of_union_find(case):
    size, links = case
    left = np.array([a for a, _ in links], np.int64)
    right = np.array([b for _, b in links], np.int64)
    assert components(size, left, right).tolist() == union_find(size, links)


def test_a_long_chain_is_one_component():
    order = np.random.default_rng(0).permutation(20_000)
    assert not components(20_000, order[:-1], order[1:]).any()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=30))
def test_the_survivor_is_the_preferred_then_the_first(rows):
    groups, preference = np.array(rows).T
    chosen = survivors(groups, preference)
    for row, (group, _) in enumerate(rows):
        members = [i for i, (g, _) in enumerate(rows) if g == group]
        assert chosen[row] == max(members, key=lambda i: (rows[i][1], -i))


@given(st.lists(st.sampled_from("abc"), max_size=12), st.integers(1, 6))
def test_ngram_hashes_are_equal_where_ngrams_are(letters, n):
    words = np.array([hash(letter) & (2**63 - 1) for letter in letters], np.uint64)
    hashes = ngram_hashes(words, n).tolist()
    ngrams = [tuple(letters[i : i + n]) for i in range(max(0, len(letters) - n + 1))]
    assert len(hashes) == len(ngrams)
    assert [[a == b for b in hashes] for a in hashes] == [[a == b for b in ngrams] for a in ngrams]


@given(st.text(alphabet="aB é1_-.床\u0301", max_size=30) | st.text(max_size=30))
def test_the_fast_way_to_fold_is_the_plain_one(text):
    for word in text.split():
        lower = re.sub(r"\d+", "0", re.sub(r"^[\W_]+|[\W_]+$", "", word.lower()))
        plain = to_simplified("".join(c for c in normalize("NFD", lower) if category(c) != "Mn"))
        assert fold_word(word) == plain
        found = WordTable().words(word).folded.tolist()
        if len(found) == 1:
            assert found == [hash64(plain) if any(map(str.isalnum, word)) else 0]
