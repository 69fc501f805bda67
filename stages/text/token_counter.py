"""The size of a text in the unit of budgets: a tokenizer's tokens, or words without a tokenizer."""

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
    """Counter of the tokens of a tokenizer, or else of words between white space (and characters of
    scripts without spaces)."""

    tokenizer: Tokenizer | None = None

    @classmethod
    def from_artifact(cls, path: Path | None) -> TokenCounter:
        """Return the counter for a Tokenizer artifact; of words for None.

        Raises:
            InputError: the folder has no tokenizer.
            CorruptArtifact: the tokenizer cannot be read.
        """
        from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer

        return cls(Tokenizer(path) if path else None)

    @property
    def unit(self) -> str:
        """Name of the unit: `tokens` or `words`."""
        return "tokens" if self.tokenizer else "words"

    def count(self, view: DocumentView) -> int:
        """Return the size of a document."""
        if self.tokenizer:
            return len(self.tokenizer.encode(view.text))
        return len(view.words)

    def count_text(self, text: str) -> int:
        """Return the size of a text outside rule scoring."""
        return self.count(DocumentView(text, "", shared_word_table()))


WORDS = TokenCounter()
