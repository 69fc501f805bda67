"""The array rules against the same rules written out word by word, paper's and variants'."""

import re
import statistics
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.text.rules import gopher_rules
from stages.text.rules.catalogue import default_limits
from stages.text.rules.document_view import DocumentView
from stages.text.words.word_table import WordTable

LEXICON = WordTable()
STOP = {"the", "be", "to", "of", "and", "that", "have", "with"}


def view(text, lang="en", **options):
    return DocumentView(text, lang, LEXICON, **options)


def top_ngram(words, n, single):
    """The most frequent n-gram's copies times its length with spaces; the first of equals."""
    ngrams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
    if not ngrams:
        return 0
    (best, count), *_ = Counter(ngrams).most_common(1)
    return len(best) * (count if count > 1 else single)


def covered_ngrams(words, n):
    """Characters of words in any n-gram that occurred before, each word once."""
    seen, covered = set(), set()
    for i in range(len(words) - n + 1):
        ngram = tuple(words[i : i + n])
        if ngram in seen:
            covered.update(range(i, i + n))
        seen.add(ngram)
    return sum(len(words[i]) for i in covered)


def leapt_ngrams(words, n):
    """Characters of n-grams that were met before, going on behind each."""
    seen, characters, at = set(), 0, 0
    while at <= len(words) - n:
        ngram = tuple(words[at : at + n])
        if ngram in seen:
            characters += sum(map(len, ngram))
            at += n
        else:
            seen.add(ngram)
            at += 1
    return characters


def duplicates(pieces):
    seen, count, characters = set(), 0, 0
    for piece in pieces:
        if piece in seen:
            count, characters = count + 1, characters + len(piece)
        seen.add(piece)
    return count / max(1, len(pieces)), characters


def filled(pieces):
    return [piece.strip() for piece in pieces if piece.strip()]


def quality_by_definition(text, words, spoken):
    lines, total = text.split("\n"), max(1, len(words))
    return {
        "words": len(spoken),
        "word_length": sum(map(len, spoken)) / max(1, len(spoken)),
        "hash_marks": text.count("#") / total,
        "ellipses": (text.count("...") + text.count("…")) / total,
        "bullet_lines": sum(line.strip().startswith(("-", "•")) for line in lines) / len(lines),
        "ellipsis_lines": sum(line.strip().endswith(("...", "…")) for line in lines) / len(lines),
        "alphabetic_words": sum(any(c.isalpha() for c in word) for word in words) / total,
    }


def repetition_by_definition(text, words, lines, paragraphs, *, single, repeated):
    size, expected = max(1, len(text)), {}
    for unit, pieces in (("line", lines), ("paragraph", paragraphs)):
        share, characters = duplicates(pieces)
        expected[f"duplicate_{unit}s"] = share
        expected[f"duplicate_{unit}_characters"] = characters / size
    for n in (2, 3, 4):
        expected[f"top_{n}_gram"] = top_ngram(words, n, single) / size
    for n in range(5, 11):
        expected[f"duplicate_{n}_grams"] = repeated(words, n) / size
    return expected


WORD = st.sampled_from(
    ["the", "cat", "The", "of", "...", "#", "-", "a1", "42", "end…", "*", "x" * 9, "(see", "it's"]
)
LINE = st.lists(WORD, min_size=1, max_size=9).map(" ".join)
BREAK = st.sampled_from(["\n", "\n\n", "\n \n"])
TEXT = st.lists(st.tuples(LINE, BREAK), max_size=14).map(
    lambda pieces: "".join(line + gap for line, gap in pieces)
)


@settings(max_examples=80, deadline=None)
@given(TEXT)
def test_the_papers_rules_are_their_definition(text):
    words = text.split()
    spoken = [word for word in words if any(c.isalnum() for c in word)]
    stop = {"stop_words": len(STOP & {word.lower().strip("(….") for word in words})}
    assert gopher_rules.quality(view(text)) == pytest.approx(
        quality_by_definition(text, words, spoken) | stop
    )
    assert gopher_rules.repetition(view(text)) == pytest.approx(
        repetition_by_definition(
            text,
            words,
            filled(text.split("\n")),
            filled(re.split("\n{2,}", text)),
            single=0,
            repeated=covered_ngrams,
        )
    )


@settings(max_examples=80, deadline=None)
@given(TEXT)
def test_datatroves_variant_is_its_definition_over_the_words_that_it_is_given(text):
    """Punctuation is a set of marks there, no letters or digits here: equal for these."""
    words = re.findall(r"\w+|[^\w\s]", text)
    spoken = [word for word in words if any(c.isalnum() for c in word)]
    given_words = view(text, split=lambda text: re.findall(r"\w+|[^\w\s]", text))
    stop = {"stop_words": len(STOP & set(words))}
    assert gopher_rules.quality_datatrove(given_words) == pytest.approx(
        quality_by_definition(text, words, spoken) | stop
    )
    assert gopher_rules.repetition_datatrove(given_words) == pytest.approx(
        repetition_by_definition(
            text,
            words,
            re.split("\n+", text),
            re.split("\n{2,}", text.strip()),
            single=1,
            repeated=leapt_ngrams,
        )
    )


@settings(max_examples=60, deadline=None)
@given(TEXT)
def test_dolmas_variant_is_its_definition(text):
    words, lines = text.split(), text.split("\n")
    total = max(1, len(words))
    assert gopher_rules.quality_dolma(view(text)) == pytest.approx(
        {
            "words": len(words),
            "word_length": statistics.median(map(len, words)) if words else 0,
            "symbols": sum("#" in word or "…" in word for word in words) / total,
            "bullet_lines": sum(line.startswith(("*", "-")) for line in lines) / len(lines),
            "ellipsis_lines": sum(line.endswith("…") for line in lines) / len(lines),
            "alphabetic_words": sum(any(c.isalpha() for c in word) for word in words) / total,
            "stop_words": sum(word in STOP for word in words),
        }
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from("abc"), max_size=70))
def test_leaping_over_copies_finds_what_a_walk_finds(letters):
    text = " ".join(letters)
    found = gopher_rules.repetition_datatrove(view(text))
    for n in range(5, 11):
        assert found[f"duplicate_{n}_grams"] == leapt_ngrams(letters, n) / max(1, len(text))


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300))
def test_no_text_breaks_a_rule_or_leaves_the_range(text):
    for measure in (
        gopher_rules.quality,
        gopher_rules.quality_datatrove,
        gopher_rules.quality_dolma,
    ):
        assert all(value >= 0 or value != value for value in measure(view(text, "und")).values())
    for measure in (gopher_rules.repetition, gopher_rules.repetition_datatrove):
        for name, value in measure(view(text, "und")).items():
            assert 0 <= value <= 1 or name.startswith("top"), name  # copies may overlap


def test_rules_of_words_leave_other_writing_alone():
    english, chinese = (
        gopher_rules.quality(view("the cat")),
        gopher_rules.quality(view("猫坐在垫子上", "zh")),
    )
    assert english["word_length"] == 3 and english["stop_words"] == 1
    assert chinese["word_length"] != chinese["word_length"]  # NaN: it means nothing
    assert chinese["stop_words"] != chinese["stop_words"]
    assert chinese["words"] == 6
    german = gopher_rules.quality(view("die Katze", "de"))
    assert german["stop_words"] != german["stop_words"]


def test_tokens_are_the_words_with_their_marks_apart():
    text = "He said: \"don't, it's 3.14 at e.g. foo@bar.org...\"\n我有"
    words = ["He", "said", ":", '"', "do", "n't", ",", "it", "'s", "3.14", "at"]
    words += ["e.g.", "foo@bar.org", "...", '"', "我", "有"]
    found = LEXICON.tokens(text)
    assert found.hashes.tolist() == LEXICON.look_up(words).hashes.tolist()


def test_the_limits_are_gophers():
    limits = default_limits(("gopher_quality", "gopher_repetition"))
    quality = {name: (limit.low, limit.high) for name, limit in limits.items()}
    assert quality["gopher_quality.words"] == (50, 100_000)
    assert quality["gopher_quality.word_length"] == (3, 10)
    assert quality["gopher_quality.alphabetic_words"][0] == 0.8
    assert quality["gopher_quality.bullet_lines"][1] == 0.9
    assert quality["gopher_quality.ellipsis_lines"][1] == 0.3
    assert quality["gopher_quality.hash_marks"][1] == quality["gopher_quality.ellipses"][1] == 0.1
    assert quality["gopher_quality.stop_words"][0] == 2
    tops = [limits[f"gopher_repetition.top_{n}_gram"].high for n in (2, 3, 4)]
    assert tops == [0.20, 0.18, 0.16]
    tail = [limits[f"gopher_repetition.duplicate_{n}_grams"].high for n in range(5, 11)]
    assert tail == [0.15, 0.14, 0.13, 0.12, 0.11, 0.10]
    pieces = ("lines", "paragraphs", "line_characters", "paragraph_characters")
    found = [limits[f"gopher_repetition.duplicate_{piece}"].high for piece in pieces]
    assert found == [0.3, 0.3, 0.2, 0.2]
