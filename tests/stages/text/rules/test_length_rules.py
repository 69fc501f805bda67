"""Rules of length, of paragraphs' languages, of the user's lists; and the edit of boilerplate."""

import pytest

from pipeline.errors import InputError
from stages.text.rules.document_view import DocumentView
from stages.text.rules.length_rules import Lists, languages, read_list, remove_foreign_paragraphs
from stages.text.text_edits import edits as build_edits
from stages.text.text_edits import remove_boilerplate
from stages.text.words.word_table import WordTable

ENGLISH = "This is a plain sentence about nothing at all, written in English."
GERMAN = "Dies ist ein einfacher Satz über gar nichts, geschrieben auf Deutsch."


def view(text, lang="en", **meta):
    return DocumentView(text, lang, WordTable(), meta)


def test_the_share_of_paragraphs_in_the_texts_language():
    found = languages(view(f"{ENGLISH}\n\n{GERMAN}\n\nOK"))
    assert found["paragraphs"] == pytest.approx(len(ENGLISH) / len(ENGLISH + GERMAN))
    assert languages(view("OK\nno"))["paragraphs"] != 0  # NaN: too short to tell


def test_paragraphs_in_other_languages_can_be_taken_out():
    text = f"{ENGLISH}\nOK\n{GERMAN}"
    assert remove_foreign_paragraphs(text, ["en"]) == f"{ENGLISH}\nOK"
    assert remove_foreign_paragraphs(text, []) == text
    assert build_edits(("languages",), ["de"])[0][1](text, "en") == f"OK\n{GERMAN}"


def test_listed_words_are_whole_words_and_phrases_in_any_case():
    lists = Lists(words=("cat", "bad phrase", "赌博"))
    assert lists(view("Cat, concatenate; a BAD PHRASE, 网上赌博"))["words"] == 3
    assert Lists()(view("cat"))["words"] == 0


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
    lists = Lists(urls=("bad.example", "https://fine.example/spam/"))
    assert lists(view("text", url=url))["urls"] == listed


def test_a_document_without_an_address_is_on_no_list():
    assert Lists(urls=("bad.example",))(view("text"))["urls"] != 0  # NaN


def test_a_list_is_a_file_of_lines(tmp_path):
    (tmp_path / "words.txt").write_text("# comment\n\n cat \n赌博\n", encoding="utf-8")
    assert read_list(str(tmp_path / "words.txt")) == ("cat", "赌博")
    with pytest.raises(InputError, match="cannot read the list"):
        read_list(str(tmp_path / "none.txt"))


def test_lines_around_what_a_page_says_are_taken_out():
    kept = f"{ENGLISH}\n\nHome is where the heart is, said the menu."
    page = f"Skip to main content\nHome\n{ENGLISH}\n\nRead more about it\n\n"
    page += "Home is where the heart is, said the menu.\n© 2024 Nobody. All rights reserved."
    assert remove_boilerplate(page) == kept
    assert remove_boilerplate(kept) == kept
