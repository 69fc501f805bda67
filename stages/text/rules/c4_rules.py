"""C4's lines and pages (Raffel et al. 2020, section 2.2), mC4's paragraphs, FineWeb's lines.

C4 removes lines and evaluates the rest, so that it is an edit and a rule set: the rules measure
what the edit would leave, whether or not it is applied.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from stages.text.rules.document_view import DocumentView, Scores, is_sentence_end
from stages.text.words.utf8_kernels import as_array, c4_lines, utf8

_CITATION = re.compile(r"\[\d*\]|\[edit\]|\[citation needed\]")
_POLICY = re.compile(
    "terms of use|privacy policy|cookie policy|uses cookies|use of cookies|use cookies"
)
_MAX_WORD = 1_000  # characters
SHORT_LINE = 30  # characters


@dataclass(frozen=True, slots=True)
class C4Variant:
    """Parameters of one implementation of C4's line filter."""

    min_words: int
    """Minimum length of a line, words."""
    end_marks: tuple[str, ...]
    citations_are_words: bool
    """True if words are counted before citations are removed."""


VARIANTS = {
    "c4": C4Variant(5, (".", "?", "!", '"'), False),
    "c4:datatrove": C4Variant(3, (".", "?", "!", '"', "'"), True),
}


@dataclass(slots=True)
class C4Page:
    """The lines that C4 keeps of a text, and counts of the others."""

    lines: list[str]
    lorem_ipsum: int = 0
    curly_brackets: int = 0

    @property
    def text(self) -> str:
        """The kept lines."""
        return "\n".join(self.lines).strip()


def c4_page(text: str, rules: C4Variant) -> C4Page:
    """Keep the lines with an end mark, enough words, no extremely long word, and no mention of
    JavaScript or cookies. Lines for which the page is dropped are counted and left out."""
    page = C4Page([])
    data = utf8(text)
    marks = as_array(utf8("".join(rules.end_marks)))
    starts, stops = c4_lines(as_array(data), marks, rules.min_words, _MAX_WORD)
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        line = data[start:stop].decode("utf-8", "surrogatepass")
        if "[" in line:
            original, line = line, _CITATION.sub("", line)
            words = len((original if rules.citations_are_words else line).split())
            ends = line.endswith(rules.end_marks) and not line.endswith("...")
            if words < rules.min_words or not ends:
                continue
        lowered = line.lower()
        if "lorem ipsum" in lowered:
            page.lorem_ipsum += 1
        elif "javascript" in lowered:
            continue
        elif "{" in line:
            page.curly_brackets += 1
        elif not _POLICY.search(lowered):
            page.lines.append(line)
    return page


def c4(view: DocumentView) -> Scores:
    """Score with the values of tensorflow_datasets."""
    return _c4(view, VARIANTS["c4"])


def c4_datatrove(view: DocumentView) -> Scores:
    """Score with the values of datatrove."""
    return _c4(view, VARIANTS["c4:datatrove"])


def _c4(view: DocumentView, rules: C4Variant) -> Scores:
    page = c4_page(view.text, rules)
    return {
        "lorem_ipsum": float(page.lorem_ipsum),
        "curly_brackets": float(page.curly_brackets),
        "sentences": float(sum(map(view.sentences, page.lines))),
    }


def mc4(view: DocumentView) -> Scores:
    """Score mC4's rule, three lines of 200 characters."""
    longest = sorted(map(len, view.lines), reverse=True)
    return {"third_longest_line": float(longest[2] if len(longest) > 2 else 0)}


def fineweb(view: DocumentView) -> Scores:
    """Score FineWeb's line rules, over words between white space."""
    return _fineweb(view, len(view.words))


def fineweb_datatrove(view: DocumentView) -> Scores:
    """Score FineWeb's line rules, over tokens."""
    return _fineweb(view, len(view.tokens))


def _fineweb(view: DocumentView, words: int) -> Scores:
    lines = view.filled_lines
    total = max(1, len(lines))
    first = set(lines)
    repeated = sum(map(len, lines)) - sum(map(len, first)) if len(first) < len(lines) else 0
    breaks = view.text.count("\n")
    return {
        "punctuated_lines": sum(is_sentence_end(line[-1]) for line in lines) / total,
        "short_lines": sum(len(line) <= SHORT_LINE for line in lines) / total,
        "duplicate_line_characters": repeated / max(1, len(view.text) - breaks),
        "newlines": breaks / max(1, words),
    }
