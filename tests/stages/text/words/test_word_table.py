"""Words and folding of any text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.text.words import word_table as words_module
from stages.text.words.word_table import WordTable, fold_word


@settings(max_examples=80, deadline=None)
@given(st.lists(st.text(max_size=60), max_size=6))
def test_words_are_the_split_whatever_was_met_before(texts):
    warm = WordTable()
    for text in texts:
        one, two = warm.words(text), WordTable().words(text)
        for name in ("hashes", "lengths", "symbol", "letter", "folded"):
            assert (getattr(one, name) == getattr(two, name)).all()
        assert one.lengths.sum() == sum(not c.isspace() for c in text)
        if text.isascii():
            split = text.split()
            assert one.lengths.tolist() == [len(word) for word in split]
            assert one.letter.tolist() == [any(map(str.isalpha, word)) for word in split]
            assert one.symbol.tolist() == [not any(map(str.isalnum, word)) for word in split]
            assert (one.folded == 0).tolist() == one.symbol.tolist()


def test_the_lexicon_forgets_and_goes_on(monkeypatch):
    monkeypatch.setattr(words_module, "_CACHED_WORDS", 3)
    shared_word_table = WordTable()
    first = shared_word_table.words("one two three four")
    shared_word_table.words("five six seven eight")
    assert (shared_word_table.words("one two three four").hashes == first.hashes).all()
    monkeypatch.setattr(words_module, "_CACHED_BYTES", 10)
    assert len(WordTable().words("x" * 100)) == 1


def test_scripts_without_spaces_are_cut_into_characters():
    assert len(WordTable().words("我爱北京 hello")) == 5
    assert len(WordTable().words("ひらがな")) == 4
    assert len(WordTable().words("한국어 단어")) == 2


def test_what_cannot_be_written_as_utf8_is_folded_as_it_is():
    assert fold_word("É\ud800 x") == "e\ud800 x"
    assert WordTable().words("漢é\ud800 ok").folded.all(), "é\ud800 is a word with a letter"


@pytest.mark.parametrize(
    ("word", "folded"),
    [("Hello,", "hello"), ("(2021)", "0"), ("Café", "cafe"), ("v1.22", "v0.0"), ("...", "")],
)
def test_folding(word, folded):
    assert fold_word(word) == folded


def test_numbers_are_folded_only_where_they_are_equal():
    for word in ("v1.22", "(2021)", "É٣٤"):
        other = word.translate(str.maketrans("12٣", "34٥"))
        assert fold_word(word) == fold_word(other)
        assert fold_word(word, equal_digits=False) != fold_word(other, equal_digits=False)
        exact = WordTable(equal_digits=False)
        assert exact.words(word).folded != exact.words(other).folded
