"""Rules and edits on the language of paragraphs."""

import pytest

from stages.text.rules.document_view import DocumentView
from stages.text.rules.language_rules import languages, remove_foreign_paragraphs
from stages.text.text_edits import build_edits
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
