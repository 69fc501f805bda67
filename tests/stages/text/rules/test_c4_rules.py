"""C4's lines and pages, mC4's and FineWeb's, against the same rules written out line by line."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.text.rules import c4_rules
from stages.text.rules.catalogue import default_limits
from stages.text.rules.document_view import DocumentView, count_sentences, is_sentence_end
from stages.text.words.word_table import WordTable

LEXICON = WordTable()
POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies")


def view(text, **options):
    return DocumentView(text, "en", LEXICON, **options)


def page_by_definition(text, *, min_words, marks, words_before_citations):
    kept, lorem, curly = [], 0, 0
    for line in text.splitlines():
        line = line.strip()
        words = line.split()
        if any(len(word) > 1_000 for word in words):
            continue
        line = re.sub(r"\[\d*\]|\[edit\]|\[citation needed\]", "", line)
        if not words_before_citations:
            words = line.split()
        if not line.endswith(marks) or line.endswith("...") or len(words) < min_words:
            continue
        if "lorem ipsum" in line.lower():
            lorem += 1
        elif "javascript" in line.lower():
            continue
        elif "{" in line:
            curly += 1
        elif any(phrase in line.lower() for phrase in (*POLICY, "use cookies")):
            continue
        else:
            kept.append(line)
    return kept, lorem, curly


PIECE = st.sampled_from(
    [
        *(
            "The cat sat",
            "on a mat.",
            "Really?",
            '"Yes!"',
            "wait...",
            "it's his'",
            "one two three.",
        ),
        *("[1]", "[edit]", "see [12].", "Lorem ipsum dolor.", "enable JavaScript.", "a { b }."),
        *(
            "We use cookies here.",
            "Our Privacy Policy is here.",
            "x" * 1_001 + ".",
            "four words here now",
        ),
    ]
)
LINES = st.lists(st.lists(PIECE, max_size=4).map(" ".join), max_size=9)
TEXT = LINES.map("\n".join)
BREAK = st.sampled_from(
    ["\n", "\r\n", "\x0b", "\x1e", "\x85", "\u2028", " \n\xa0", "\x1f", "\ud800\n"]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(LINES.map(" ".join) | st.text(max_size=9), BREAK), max_size=9))
def test_the_page_is_its_definition_in_both_variants(lines):
    text = "".join(map("".join, lines))
    for name, min_words, marks, before in (
        ("c4", 5, (".", "?", "!", '"'), False),
        ("c4:datatrove", 3, (".", "?", "!", '"', "'"), True),
    ):
        page = c4_rules.c4_page(text, c4_rules.VARIANTS[name])
        assert (page.lines, page.lorem_ipsum, page.curly_brackets) == page_by_definition(
            text, min_words=min_words, marks=marks, words_before_citations=before
        )
        assert page.text == "\n".join(page.lines).strip()


def test_the_variants_differ_where_their_codes_do():
    line = "Only four words stand."
    assert c4_rules.c4_page(line, c4_rules.VARIANTS["c4"]).lines == []
    assert c4_rules.c4_page(line, c4_rules.VARIANTS["c4:datatrove"]).lines == [line]
    limits = default_limits(("c4", "c4:datatrove"))
    assert (limits["c4.sentences"].low, limits["c4:datatrove.sentences"].low) == (3, 5)


@pytest.mark.parametrize(
    ("line", "sentences"),
    [
        ("", 0),
        ("no end", 1),
        ("One. Two! Three?", 3),
        ('He said "no." Then he left.', 2),
        ("Version 3.14 is out.", 1),
        ("Wait... what? Yes", 3),
    ],
)
def test_sentences_end_at_end_marks_before_white_space(line, sentences):
    assert count_sentences(line) == sentences


def test_the_sentences_of_the_lines_that_stay_are_counted():
    text = "One short line here now. And another one.\nNo mark at the end\nWhat is this fine thing?"
    assert c4_rules.c4(view(text))["sentences"] == 3
    assert c4_rules.c4(view(text, sentences=lambda line: 7))["sentences"] == 14


def test_mc4_needs_three_long_lines():
    lines = ["a" * 250, "b" * 10, "c" * 200, "d" * 199]
    assert c4_rules.mc4(view("\n".join(lines))) == {"third_longest_line": 199}
    assert c4_rules.mc4(view("a" * 900)) == {"third_longest_line": 0}


@settings(max_examples=100, deadline=None)
@given(TEXT)
def test_finewebs_measures_are_their_definitions(text):
    lines = [line for line in text.split("\n") if line.strip()]
    total = max(1, len(lines))
    seen, repeated = set(), 0
    for line in lines:
        repeated += len(line) * (line in seen)
        seen.add(line)
    assert c4_rules.fineweb(view(text)) == pytest.approx(
        {
            "punctuated_lines": sum(line[-1] in ".?!" for line in lines) / total,
            "short_lines": sum(len(line) <= 30 for line in lines) / total,
            "duplicate_line_characters": repeated / max(1, len(text.replace("\n", ""))),
            "newlines": text.count("\n") / max(1, len(text.split())),
        }
    )


def test_end_marks_are_unicodes():
    assert all(map(is_sentence_end, ".!?。！？؟।…"[:8]))
    assert not any(map(is_sentence_end, ",;:a)\"'，"))
