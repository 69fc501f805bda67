"""Rules of length, of language by paragraph, and of the user's own lists."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from urllib.parse import urlsplit

from stages.text.language_id import detect_language
from stages.text.rules.document_view import DocumentView

_MIN_PARAGRAPH = 20  # characters: of a shorter paragraph no language can be told
NOT_APPLICABLE = float("nan")
Scores = dict[str, float]


def length(view: DocumentView) -> Scores:
    """How long the text is."""
    return {"characters": float(len(view.text))}


def languages(view: DocumentView) -> Scores:
    """How much of the text is in paragraphs of its own language."""
    told = same = 0
    for paragraph in view.filled_lines:
        if len(paragraph) >= _MIN_PARAGRAPH:
            told += len(paragraph)
            same += len(paragraph) * (detect_language(paragraph)[0] == view.lang)
    return {"paragraphs": same / told if told else NOT_APPLICABLE}


def remove_foreign_paragraphs(text: str, wanted: Sequence[str]) -> str:
    """Without the paragraphs in other languages than these."""
    return "\n".join(
        line
        for line in text.split("\n")
        if len(line) < _MIN_PARAGRAPH or not wanted or detect_language(line)[0] in wanted
    )


@dataclass(frozen=True)
class Lists:
    """What the user does not want to read: words and phrases, and addresses."""

    words: tuple[str, ...] = ()
    """Words and phrases, in any case; whole words in scripts that have spaces."""
    urls: tuple[str, ...] = field(default=(), repr=False)
    """Hosts (with all below them) and beginnings of addresses."""

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        if not self.words:
            return None
        ordered = sorted(self.words, key=lambda word: (-len(word), word))
        bounded = (
            rf"\b{re.escape(word)}\b" if word.isascii() else re.escape(word) for word in ordered
        )
        return re.compile("|".join(bounded), re.I)

    @cached_property
    def _addresses(self) -> frozenset[str]:
        return frozenset(url.split("://")[-1].rstrip("/").lower() for url in self.urls)

    def __call__(self, view: DocumentView) -> Scores:
        """How many listed words a text holds; whether its address is listed."""
        address = view.meta.get("url")
        return {
            "words": float(len(self._pattern.findall(view.text))) if self._pattern else 0.0,
            "urls": float(self._listed(address)) if isinstance(address, str) else NOT_APPLICABLE,
        }

    def _listed(self, address: str) -> bool:
        """Whether the host, a domain above it, or a beginning of the path is listed."""
        parts = urlsplit(address if "://" in address else f"//{address}")
        host = (parts.hostname or "").lower()
        labels = host.split(".")
        hosts = (".".join(labels[at:]) for at in range(len(labels)))
        steps = [step for step in parts.path.lower().split("/") if step]
        paths = ("/".join([host, *steps[:end]]) for end in range(1, len(steps) + 1))
        return not self._addresses.isdisjoint([*hosts, *paths])


def read_list(path: str) -> tuple[str, ...]:
    """One entry a line; empty lines and those that begin with `#` are passed over.

    Raises:
        InputError: the file cannot be read.
    """
    from pathlib import Path

    from pipeline.errors import InputError

    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"cannot read the list: {error}", where=path, remedy="name a text file, UTF-8"
        ) from error
    return tuple(line for raw in lines if (line := raw.strip()) and not line.startswith("#"))
