"""Words, repair, language: what they promise on any text."""

import socket
import unicodedata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.text.language_id import language
from stages.text.unicode_repair import repair
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


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ("schÃ¶n", "schön"),
        ("e\u0301", "é"),
        ("a\r\nb\rc\x0cd\u2028e", "a\nb\nc\nd\ne"),
        ("a\0b\x07\x1b[31mred\x1b[0m", "abred"),
        ("\ufeffx\u202ey\u2066z\u200b", "xyz"),
        ("a  \n\n \n\n\nb\t\n", "a\n\nb"),
        ("    indented\n  stays", "    indented\n  stays"),
        ("x" + " " * 100 + "y", "x y"),
        ("“quoted” &lt;tag&gt;", "“quoted” &lt;tag&gt;"),
        ("a\ud800b", "a\ufffdb"),
        ("👩\u200d👩\u200d👧", "👩\u200d👩\u200d👧"),
    ],
)
def test_repair(broken, mended):
    assert repair(broken) == mended


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=120))
def test_repaired_text_is_whole_and_stays_as_it_is(text):
    mended = repair(text)
    mended.encode()
    assert not any(unicodedata.category(c) == "Cc" and c not in "\n\t" for c in mended)
    assert "\n\n\n" not in mended and not any(c in mended for c in "\u202e\u2066\ufeff\r")
    assert not text.isascii() or repair(mended) == mended


def test_plain_text_is_untouched():
    text = "def f(x):\n    return x  # twice\n\n* a\n* b\n\tTabbed: 100 %, “ok” – naïve."
    assert repair(text) == text


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Return the list of all files that are in the folder, sorted by name.", "en"),
        ("Gibt die Liste aller Dateien zurück, die sich im Ordner befinden.", "de"),
        ("Cette fonction renvoie la liste des fichiers du dossier, triée par nom.", "fr"),
        ("这个函数返回文件夹中的所有文件，并按名称排序。", "zh"),
        ("天晴白雲高，喬木蔭初暑。\n久客倦紅塵，愛此崖寺古。", "zh"),
        ("東京都渋谷区神宮前一丁目二番三号株式会社日本経済新聞社東京本社編集局", "ja"),
        ("この関数はフォルダ内のすべてのファイルを名前順に返します。", "ja"),
        ("Эта функция возвращает список файлов в папке.", "ru"),
    ],
)
def test_languages_are_told_without_a_network(text, code, monkeypatch):
    def refuse(*_):
        raise AssertionError("a network connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    found, confidence = language(text)
    assert found == code and 0.5 < confidence <= 1
    assert language(f"{text} " * 200)[0] == code


@pytest.mark.parametrize("text", ["", " \n ", "123 456", "---", "\0"])
def test_no_words_no_language(text):
    assert language(text) == ("und", 0.0)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200))
def test_any_text_has_some_answer(text):
    code, confidence = language(repair(text))
    assert code and 0 <= confidence <= 1 and not np.isnan(confidence)
