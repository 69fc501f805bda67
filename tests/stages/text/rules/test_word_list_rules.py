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
