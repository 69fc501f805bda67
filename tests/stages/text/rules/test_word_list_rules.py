"""Blocked words, phrases and URLs."""

import pytest

from pipeline.errors import InputError
from stages.text.rules.document_view import DocumentView
from stages.text.rules.word_list_rules import Blocklists, read_list
from stages.text.words.word_table import WordTable


def view(text, lang="en", **meta):
    return DocumentView(text, lang, WordTable(), meta)


def test_listed_words_are_whole_words_and_phrases_in_any_case():
    lists = Blocklists(words=("cat", "bad phrase", "赌博"))
    assert lists(view("Cat, concatenate; a BAD PHRASE, 网上赌博"))["words"] == 3
    assert Blocklists()(view("cat"))["words"] == 0


@pytest.mark.parametrize(
    ("word", "found", "within"),
    [
        ("poker", "玩poker吧 pokerゲーム poker를 الpoker", "pokers xpoker poker_2 poker9"),
        ("rød", "på rød: Rød文", "brød rødt"),
        ("рак", "рак, Рак文", "дурак раки"),
        ("c++", "c++ 学c++吧 c++20", "cc++"),
        ("$$$", "$$$ a$$$b", "$$"),
        ("ставки на спорт", "СТАВКИ НА СПОРТ!", "ставки на спорты"),
        ("賭場", "網上賭場歡迎", "賭"),
        ("도박", "온라인도박을 도박", "도"),
        ("قمار", "القمار قمار", "قم"),
        ("พนัน", "เว็บพนันออนไลน์", "พน"),
    ],
)
def test_borders_of_listed_words_are_those_of_their_script(word, found, within):
    lists = Blocklists(words=(word,))
    assert lists(view(found))["words"] == found.lower().count(word)
    assert lists(view(within))["words"] == 0


@pytest.mark.parametrize(
    ("url", "listed"),
    [
        ("https://bad.example/x", True),
        ("http://www.BAD.example:8080/", True),
        ("https://notbad.example/", False),
        ("https://fine.example/spam/page", True),
        ("https://fine.example/spammer", False),
        ("bad.example", True),
    ],
)
def test_listed_addresses_cover_what_lies_below_them(url, listed):
    lists = Blocklists(urls=("bad.example", "https://fine.example/spam/"))
    assert lists(view("text", url=url))["urls"] == listed


def test_a_document_without_an_address_is_on_no_list():
    assert Blocklists(urls=("bad.example",))(view("text"))["urls"] != 0  # NaN


def test_a_list_is_a_file_of_lines(tmp_path):
    (tmp_path / "words.txt").write_text("# comment\n\n cat \n赌博\n", encoding="utf-8")
    assert read_list(str(tmp_path / "words.txt")) == ("cat", "赌博")
    with pytest.raises(InputError, match="cannot read the list"):
        read_list(str(tmp_path / "none.txt"))


def test_a_list_may_be_in_any_encoding(tmp_path):
    path = tmp_path / "words.txt"
    words = ("赌场里的老虎机", "地下钱庄的广告", "猫")
    for encoding in ("utf-8-sig", "utf-16", "gb18030"):
        path.write_text("\n".join(words), encoding=encoding)
        assert read_list(str(path)) == words
    path.write_bytes("\n".join([*words, "caf"]).encode() + b"\xe9\n")
    with pytest.raises(InputError, match=r"byte 0xe9 at \d+ is not UTF-8") as caught:
        read_list(str(path))
    assert caught.value.where == f"{path}:4"
