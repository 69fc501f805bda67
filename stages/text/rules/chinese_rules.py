"""Rules and edits for Chinese text, after the practice of MNBVC and C4-zh; they do not apply to
text in another language."""

from __future__ import annotations

import re

from stages.text.rules.document_view import DocumentView, Scores

CHINESE = frozenset({"zh", "wuu", "yue"})
SHORT_PARAGRAPH = 10  # Chinese characters
_HANZI = "\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HAN = re.compile(f"[{_HANZI}]")
_WORD = re.compile(rf"[{_HANZI}]|[^\W_{_HANZI}]+")
_LATIN = re.compile("[A-Za-z]")
_LETTER_OR_DIGIT = re.compile(r"[^\W_]")
_END = re.compile(r"[。！？…；!?.」』”’)）】》]")
NOT_APPLICABLE = float("nan")


def chinese(view: DocumentView) -> Scores:
    """Score how Chinese the text is. A Chinese character counts as much as a word of another
    script, so that a manual full of commands is Chinese if its sentences are."""
    return _chinese(view, _WORD)


def chinese_characters(view: DocumentView) -> Scores:
    """Score the same, where every letter counts as much as a Chinese character."""
    return _chinese(view, _LETTER_OR_DIGIT)


def _chinese(view: DocumentView, unit: re.Pattern[str]) -> Scores:
    if view.lang not in CHINESE:
        return dict.fromkeys(("share", "latin", "paragraph"), NOT_APPLICABLE)
    units = unit.findall(view.text)
    latin = sum(_LATIN.search(found) is not None for found in units)
    written = max(1, len(units))
    return {
        "share": count(_HAN, view.text) / written,
        "latin": latin / written,
        "paragraph": float(max(count(_HAN, line) for line in view.lines)),
    }


def remove_short_paragraphs(text: str) -> str:
    """Remove the paragraphs of fewer than ten Chinese characters."""
    return "\n".join(line for line in text.split("\n") if count(_HAN, line) >= SHORT_PARAGRAPH)


def remove_partial_sentence(text: str) -> str:
    """Remove a last sentence that lacks its end mark, if a whole one comes before it."""
    ends = [match.end() for match in _END.finditer(text)]
    return text[: ends[-1]] if ends else text


def count(pattern: re.Pattern[str], text: str) -> int:
    """Count the matches of a pattern."""
    return len(pattern.findall(text))
