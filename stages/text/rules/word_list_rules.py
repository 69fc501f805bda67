"""The rule set `lists`: words, phrases and URLs that a document must not contain or come from."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.errors import InputError
from stages.data.formats.text_encoding import UndecodableText, decode_text
from stages.text.rules.document_view import DocumentView, Scores
from stages.text.rules.rule_params import ListFiles
from stages.text.words.word_borders import whole_word


@dataclass(frozen=True)
class Blocklists:
    """Blocked words and phrases, and blocked URLs."""

    words: tuple[str, ...] = ()
    """Words and phrases, in any case; whole words in scripts that separate words."""
    urls: tuple[str, ...] = field(default=(), repr=False)
    """Hosts (including their subdomains) and URL prefixes."""

    @classmethod
    def read(cls, files: ListFiles) -> Blocklists:
        """Read the lists of a pipeline file.

        Raises:
            InputError: a file cannot be read.
        """
        return cls(*(read_list(path) if path else () for path in (files.words, files.urls)))

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        if not self.words:
            return None
        ordered = sorted(self.words, key=lambda word: (-len(word), word))
        return re.compile("|".join(map(whole_word, ordered)), re.I)

    @cached_property
    def _addresses(self) -> frozenset[str]:
        return frozenset(url.split("://")[-1].rstrip("/").lower() for url in self.urls)

    def __call__(self, view: DocumentView) -> Scores:
        """Return the number of blocked words in a text, and whether its URL is blocked."""
        url = view.meta.get("url")
        return {
            "words": float(len(self._pattern.findall(view.text))) if self._pattern else 0.0,
            "urls": float(self._is_blocked(url)) if isinstance(url, str) else float("nan"),
        }

    def _is_blocked(self, url: str) -> bool:
        """Return whether the host, a domain above it, or a prefix of the path is blocked."""
        parts = urlsplit(url if "://" in url else f"//{url}")
        host = (parts.hostname or "").lower()
        labels = host.split(".")
        hosts = (".".join(labels[at:]) for at in range(len(labels)))
        steps = [step for step in parts.path.lower().split("/") if step]
        paths = ("/".join([host, *steps[:end]]) for end in range(1, len(steps) + 1))
        return not self._addresses.isdisjoint([*hosts, *paths])


def read_list(path: str) -> tuple[str, ...]:
    """Read a file of one entry per line, without empty lines and lines that begin with `#`.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        lines = decode_text(Path(path).expanduser().read_bytes()).splitlines()
    except (OSError, UndecodableText) as error:
        where = f"{path}:{error.line}" if isinstance(error, UndecodableText) else path
        raise InputError(
            f"cannot read the list: {error}", where=where, remedy="name a text file in UTF-8"
        ) from error
    return tuple(line for raw in lines if (line := raw.strip()) and not line.startswith("#"))
