"""Rules and edits on the language of paragraphs."""

from __future__ import annotations

from collections.abc import Sequence

from stages.text.language_id import detect_language
from stages.text.rules.document_view import DocumentView, Scores

MIN_PARAGRAPH = 20  # characters: the language of a shorter paragraph cannot be detected


def languages(view: DocumentView) -> Scores:
    """Return the share of the text in paragraphs of its own language."""
    total = same = 0
    for paragraph in view.filled_lines:
        if len(paragraph) >= MIN_PARAGRAPH:
            total += len(paragraph)
            same += len(paragraph) * (detect_language(paragraph)[0] == view.lang)
    return {"paragraphs": same / total if total else float("nan")}


def remove_foreign_paragraphs(text: str, wanted: Sequence[str]) -> str:
    """Return the text without the paragraphs in other languages than these."""
    return "\n".join(
        line
        for line in text.split("\n")
        if len(line) < MIN_PARAGRAPH or not wanted or detect_language(line)[0] in wanted
    )
