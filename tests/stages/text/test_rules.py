"""The array rules against the same rules written out word by word."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.text.rules import (
    Limit,
    first_failure,
    length_measures,
    quality_measures,
    repetition_measures,
)
from stages.text.settings import Rules
from stages.text.words import Lexicon

LEXICON = Lexicon()


def measured(text, lang="en"):
    words = LEXICON.words(text)
    return {
        **dict(length_measures(text)),
        **dict(quality_measures(text, words, lang)),
        **dict(repetition_measures(text, words)),
    }


def top_ngram(words, n):
    """The most frequent n-gram's copies times its length with spaces; the first of equals."""
    ngrams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
    if not ngrams:
        return 0
    (best, count), *_ = Counter(ngrams).most_common(1)
    return len(best) * count if count > 1 else 0


def duplicate_ngrams(words, n):
    """Characters of words in any n-gram that occurred before, each word once."""
    seen, covered = set(), set()
    for i in range(len(words) - n + 1):
        ngram = tuple(words[i : i + n])
        if ngram in seen:
            covered.update(range(i, i + n))
        seen.add(ngram)
    return sum(len(words[i]) for i in covered)


def duplicates(pieces):
    seen, count, characters = set(), 0, 0
    pieces = [piece.strip() for piece in pieces if piece.strip()]
    for piece in pieces:
        if piece in seen:
            count, characters = count + 1, characters + len(piece)
        seen.add(piece)
    return count / max(1, len(pieces)), characters


def by_definition(text):
    words, lines, size = text.split(), text.split("\n"), max(1, len(text))
    spoken = [word for word in words if any(c.isalnum() for c in word)]
    total = max(1, len(words))
    stop = {"the", "be", "to", "of", "and", "that", "have", "with"}
    expected = {
        "characters": len(text),
        "words": len(spoken),
        "symbols.hash": text.count("#") / total,
        "symbols.ellipsis": (text.count("...") + text.count("…")) / total,
        "lines.bullet": sum(line.strip().startswith(("-", "•")) for line in lines) / len(lines),
        "lines.ellipsis": sum(line.strip().endswith(("...", "…")) for line in lines) / len(lines),
        "words.alphabetic": sum(any(c.isalpha() for c in word) for word in words) / total,
        "words.mean_length": sum(map(len, spoken)) / max(1, len(spoken)),
        "words.stop": len(stop & {word.lower() for word in words}),
    }
    for unit, pieces in (("lines", lines), ("paragraphs", text.split("\n\n"))):
        share, characters = duplicates(pieces)
        expected[f"{unit}.duplicate"] = share
        expected[f"{unit}.duplicate_characters"] = characters / size
    for n in (2, 3, 4):
        expected[f"ngrams.top_{n}"] = top_ngram(words, n) / size
    for n in range(5, 11):
        expected[f"ngrams.duplicate_{n}"] = duplicate_ngrams(words, n) / size
    return expected


WORD = st.sampled_from(
    ["the", "cat", "sat", "of", "...", "#", "-", "a1", "42", "and", "--", "x" * 9]
)
LINE = st.lists(WORD, min_size=1, max_size=9).map(" ".join)
BREAK = st.sampled_from(["\n", "\n\n"])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(LINE, BREAK), max_size=14))
def test_every_measure_is_its_definition(pieces):
    text = "".join(line + gap for line, gap in pieces)
    assert measured(text) == pytest.approx(by_definition(text))


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300))
def test_no_text_breaks_a_rule_or_leaves_the_range(text):
    for name, value in measured(text, "und").items():
        counts = name in {"characters", "words", "words.mean_length", "words.stop"}
        symbols = name.startswith("symbols")
        tops = name.startswith("ngrams.top")  # overlapping copies can count characters twice
        assert value >= 0 and (value <= 1 or counts or symbols or tops), name


def test_rules_of_words_leave_other_writing_alone():
    english, chinese = measured("the cat", "en"), measured("猫坐在垫子上", "zh")
    assert "words.mean_length" in english and "words.stop" in english
    assert "words.mean_length" not in chinese and "words.stop" not in chinese
    assert chinese["words"] == 6
    assert "words.stop" not in measured("die Katze", "de")


def test_the_first_failure_is_named_with_its_score():
    limits = {"a": Limit(high=1), "b": Limit(low=2)}
    assert first_failure(iter([("a", 1.0), ("x", 9.0), ("b", 1.5), ("a", 7)]), limits) == ("b", 1.5)
    assert first_failure(iter([("a", 0.0), ("b", 2.0)]), limits) is None


def test_the_default_limits_are_gophers():
    limits = Rules().limits()
    assert (limits["words"].low, limits["words"].high) == (50, 100_000)
    assert (limits["words.mean_length"].low, limits["words.mean_length"].high) == (3, 10)
    assert limits["words.alphabetic"].low == 0.8 and limits["lines.bullet"].high == 0.9
    assert [limits[f"ngrams.top_{n}"].high for n in (2, 3, 4)] == [0.20, 0.18, 0.16]
    tail = [limits[f"ngrams.duplicate_{n}"].high for n in range(5, 11)]
    assert tail == [0.15, 0.14, 0.13, 0.12, 0.11, 0.10]


def test_null_switches_a_rule_off():
    rules = Rules(min_words=None, max_words=None, max_top_ngrams=None, max_duplicate_ngrams=None)
    assert not {"words", "ngrams.top_2", "ngrams.duplicate_5"} & set(rules.limits())
    assert "characters" in rules.limits()
