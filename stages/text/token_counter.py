"""How much text there is, in the unit that budgets are made of: a tokenizer's tokens, or words
where there is no tokenizer yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.text.rules.document_view import DocumentView
from stages.text.words.word_table import shared_word_table

if TYPE_CHECKING:
    from pathlib import Path

    from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenCounter:
    """Counts tokens of this tokenizer; runs between white space (and characters of scripts without
    spaces) if there is none."""

    tokenizer: Tokenizer | None = None

    @classmethod
    def of(cls, path: Path | None) -> TokenCounter:
        """The counter by a Tokenizer artifact.

        Raises:
            InputError: the folder holds no tokenizer.
            CorruptArtifact: it cannot be read.
        """
        from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer

        return cls(Tokenizer(path) if path else None)

    @property
    def unit(self) -> str:
        """What is counted, as people call it."""
        return "tokens" if self.tokenizer else "words"

    def count(self, view: DocumentView) -> int:
        """The size of a document."""
        if self.tokenizer:
            return len(self.tokenizer.encode(view.text))
        return len(view.words)

    def count_text(self, text: str) -> int:
        """The size of a text that no rule looks at."""
        return self.count(DocumentView(text, "", shared_word_table()))


WORDS = TokenCounter()
