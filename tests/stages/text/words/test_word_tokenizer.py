"""Words and marks apart: examples of each law, and nothing lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.text.words.word_tokenizer import split_word


@pytest.mark.parametrize(
    ("word", "tokens"),
    [
        ("plain", ["plain"]),
        ('("word,")', ["(", '"', "word", ",", '"', ")"]),
        ("don't", ["do", "n't"]),
        ("they're", ["they", "'re"]),
        ("cat's,", ["cat", "'s", ","]),
        ("e.g.", ["e.g."]),
        ("(e.g.", ["(", "e.g."]),
        ("end.", ["end", "."]),
        ("U.S.", ["U.S."]),
        ("3.14", ["3.14"]),
        ("10km", ["10", "km"]),
        ("50%.", ["50", "%", "."]),
        ("$5", ["$", "5"]),
        ("well-known", ["well", "-", "known"]),
        ("and/or", ["and", "/", "or"]),
        ("one,two", ["one", ",", "two"]),
        ("end.Next", ["end", ".", "Next"]),
        ("wait...what", ["wait", "...", "what"]),
        ("https://a.org/b-c?d=e.", ["https://a.org/b-c?d=e", "."]),
        ("me@example.org", ["me@example.org"]),
        ("f(x)", ["f(x", ")"]),
        ("###", ["#", "#", "#"]),
        ("C++", ["C++"]),
    ],
)
def test_words_are_split_as_linguists_split_them(word, tokens):
    assert split_word(word) == tokens


@pytest.mark.parametrize("part", ["#", "a", "a.", "a@", "'", ".", "-", "a-", "://", "1.", "ü,"])
def test_long_words_take_time_in_proportion(part):
    word = part * (200_000 // len(part))
    assert "".join(split_word(word)) == word


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=30))
def test_nothing_is_lost_or_changed(text):
    for word in text.split():
        tokens = split_word(word)
        assert "".join(tokens) == word and all(tokens)
