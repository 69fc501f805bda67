"""Pages whose content and boilerplate are marked, and how much of either an extractor keeps.

`tests/golden/pages/KIND.html` holds the pages of one kind, each behind a line
`<!-- page: description -->`. Content is marked as `{+content+}` and boilerplate as
`[-boilerplate-]` (the marks of wdiff); text without a mark may stay or go. Extractors see the page
without marks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import unescape
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "golden" / "pages"
_PAGE = re.compile(r"^<!-- page: (.*?) -->\n", re.MULTILINE)
_CONTENT = re.compile(r"\{\+(.*?)\+\}", re.DOTALL)
_BOILERPLATE = re.compile(r"\[-(.*?)-\]", re.DOTALL)


@dataclass(frozen=True)
class MarkedPage:
    """One page, and its marked pieces of text."""

    kind: str
    name: str
    html: str
    content: tuple[str, ...]
    boilerplate: tuple[str, ...]


def squeeze(text: str) -> str:
    """Remove white space, which extractors set as they like between cells, items and lines."""
    return "".join(text.split())


def marked_pages() -> list[MarkedPage]:
    pages = []
    for path in sorted(FOLDER.glob("*.html")):
        _, *parts = _PAGE.split(path.read_text())
        for name, source in zip(parts[::2], parts[1::2], strict=True):
            content, boilerplate = (
                tuple(unescape(re.sub("<[^>]*>", "", text)) for text in pattern.findall(source))
                for pattern in (_CONTENT, _BOILERPLATE)
            )
            html = _BOILERPLATE.sub(r"\1", _CONTENT.sub(r"\1", source)).rstrip("\n")
            pages.append(MarkedPage(path.stem, name, html, content, boilerplate))
    return pages


def missing(page: MarkedPage, text: str) -> list[str]:
    """Return the pieces of content that are not in the text, in the order of the page."""
    rest, lost = squeeze(text), []
    for piece in page.content:
        before, found, after = rest.partition(squeeze(piece))
        if found:
            rest = before + after
        else:
            lost.append(piece)
    return lost


def leaked(page: MarkedPage, text: str) -> list[str]:
    """Return the pieces of boilerplate that are in the text."""
    return [piece for piece in page.boilerplate if squeeze(piece) in squeeze(text)]


def rates(pages: Iterable[MarkedPage], extract: Callable[[str], str]) -> tuple[float, float]:
    """Return the recall of content and the leakage of boilerplate, as fractions of characters."""
    kept = content = leaks = boilerplate = 0
    for page in pages:
        text = extract(page.html)
        size = sum(len(squeeze(piece)) for piece in page.content)
        content += size
        kept += size - sum(len(squeeze(piece)) for piece in missing(page, text))
        boilerplate += sum(len(squeeze(piece)) for piece in page.boilerplate)
        leaks += sum(len(squeeze(piece)) for piece in leaked(page, text))
    return kept / content, leaks / boilerplate
