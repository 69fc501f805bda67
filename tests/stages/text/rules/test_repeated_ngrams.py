"""The compiled loops against the same things said with dictionaries and strings."""

from collections import Counter

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.text.rules.repeated_ngrams import repeated_characters
from stages.text.words.word_table import WordTable

LEXICON = WordTable()
TOP, LONGEST = 4, 10


def top(words, n, single):
    ngrams = Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))
    if not ngrams:
        return 0
    (best, times), *_ = ngrams.most_common(1)
    return len(" ".join(best)) * (times if times > 1 else single)


def copied(words, n, skip_overlaps):
    seen, covered, at = set(), set(), 0
    while at <= len(words) - n:
        ngram = tuple(words[at : at + n])
        if ngram in seen:
            covered.update(range(at, at + n))
        at += n if skip_overlaps and ngram in seen else 1
        seen.add(ngram)
    return sum(len(words[at]) for at in covered)


def found(words, single, skip_overlaps):
    known = LEXICON.look_up(words)
    return repeated_characters(
        known.hashes, known.lengths, TOP, LONGEST, single, skip_overlaps
    ).tolist()


RUN = st.lists(st.sampled_from(["a", "bb", "ccc", "é", "𐐷"]), min_size=1, max_size=12)
RUNS = st.lists(st.tuples(RUN, st.integers(1, 4)), max_size=12).map(
    lambda runs: [word for words, times in runs for word in words * times]
)


@settings(max_examples=300, deadline=None)
@given(RUNS | st.lists(st.text(max_size=2), max_size=40), st.integers(0, 1), st.booleans())
@example([], 1, False)
@example(["alone"], 1, True)
@example(["x" * 1_000_000] * 30, 0, True)
@example(["\ud800", "\0"] * 9, 1, False)
def test_repeated_ngrams_are_those_that_a_dictionary_counts(words, single, skip_overlaps):
    expected = [top(words, n, single) for n in range(2, TOP + 1)]
    expected += [copied(words, n, skip_overlaps) for n in range(TOP + 1, LONGEST + 1)]
    assert found(words, single, skip_overlaps) == expected


def test_many_equal_and_many_different_words_take_time_in_proportion():
    words = [f"{at % 1_000 if at < 500_000 else at}" for at in range(1_000_000)]
    once = LEXICON.look_up(words)
    characters = repeated_characters(once.hashes, once.lengths, TOP, LONGEST, 0, False)
    assert characters[-1] == sum(map(len, words[1_000:500_000]))
    same = np.zeros(1_000_000, np.uint64), np.ones(1_000_000, np.int64)
    assert repeated_characters(*same, TOP, LONGEST, 1, True)[-1] == 1_000_000 - LONGEST
