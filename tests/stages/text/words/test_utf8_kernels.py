"""The compiled scans against Python's own split, hash and methods of strings."""

import re

from hypothesis import example, given, settings
from hypothesis import strategies as st

from stages.data.hashing import hash64
from stages.text.words.utf8_kernels import (
    MAX_HASHED,
    UNSPACED_RANGES,
    as_array,
    bullet_lines,
    utf8,
    word_bounds,
)
from stages.text.words.word_table import WordTable, fold_word
from stages.text.words.word_tokenizer import split_word

WARM = WordTable()
EXACT = WordTable(equal_digits=False)
ALONE = "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED_RANGES)
WORD = re.compile(rf"[{ALONE}]|[^\s{ALONE}]+")

MARK = st.sampled_from([*"([{\"'.,;:!?)]}-/#%", "...", "'s", "n't", "”", "…"])
CORE = st.sampled_from(["a", "Mr", "No", "USA", "word", "Sentences", "1", "1998", "a1", "don", "s"])
SHAPED = st.tuples(st.lists(MARK, max_size=2), CORE, st.lists(MARK, max_size=3)).map(
    lambda parts: "".join([*parts[0], parts[1], *parts[2]])
)
GAP = st.sampled_from([" ", "\n", "\x1c", "\x85", "\xa0", "\u2003", "\u3000", "\u200b", "我", "ก"])
ANY = st.text(max_size=40) | st.text(st.characters(max_codepoint=127), max_size=150)
TEXT = st.lists(st.tuples(SHAPED | ANY | st.sampled_from(["\ud800", "\0", "𐐷", "𠀀"]), GAP)).map(
    lambda parts: "".join(map("".join, parts))
)


def check(found, words):
    letter = [any(map(str.isalpha, word)) for word in words]
    symbol = [not any(map(str.isalnum, word)) for word in words]
    assert found.lengths.tolist() == list(map(len, words))
    assert found.hashes.tolist() == [hash64(word) for word in words]
    assert found.letter.tolist() == letter and found.symbol.tolist() == symbol
    assert found.folded.tolist() == [
        0 if mere else hash64(fold_word(word)) for word, mere in zip(words, symbol, strict=True)
    ]
    assert found.unspaced.tolist() == [bool(re.match(f"[{ALONE}]", word)) for word in words]


@settings(max_examples=300, deadline=None)
@given(TEXT)
@example("")
@example("word")
@example("\ud800")
@example("x" * 1_000_000 + " 1" + "é" * 1_000_000)
@example("\0" * 1_000_000 + "a")
def test_words_and_tokens_are_those_of_python(text):
    words = WORD.findall(text)
    check(WARM.words(text), words)
    assert EXACT.words(text).folded.tolist() == [
        hash64(fold_word(word, equal_digits=False)) if any(map(str.isalnum, word)) else 0
        for word in words
    ]
    check(WARM.tokens(text), [token for word in words for token in split_word(word)])


@given(st.lists(ANY, max_size=9))
def test_any_list_of_words_can_be_looked_up(words):
    check(WARM.look_up(words), words)


def test_words_of_every_length_have_their_hash():
    words = ["".join(chr(33 + 7 * at % 94) for at in range(n)) for n in range(MAX_HASHED + 9)]
    check(WARM.look_up(words), words)


def test_white_space_and_scripts_of_every_character():
    text = "a".join(map(chr, range(0x110000)))
    starts, stops = word_bounds(as_array(utf8(text)))
    sizes = [len(utf8(word)) for word in WORD.findall(text)]
    assert (stops - starts).tolist() == sizes


@given(st.text(st.sampled_from(" \n\r\t\x85\u3000-•a—")) | st.text())
def test_bullets_begin_lines(text):
    expected = sum(line.lstrip().startswith(("-", "•")) for line in text.split("\n"))
    assert bullet_lines(as_array(utf8(text))) == expected
