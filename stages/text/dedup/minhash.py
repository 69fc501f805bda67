"""MinHash with banding: near-duplicates found by equal bands of their signatures.

Word 5-grams, 14 bands of 8 rows (FineWeb's setting; Broder 1997; Leskovec et al., ch. 3): two
texts of Jaccard similarity s share a band with probability 1 - (1 - s^8)^14, that is 0.92 at 0.8
and 0.05 at 0.5. In a script without spaces a shingle is a run of characters, of a length of its
own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from stages.data.hashing import GOLDEN_GAMMA, mix64
from stages.text.dedup.banding import found_at
from stages.text.words.word_table import Hashes, WordArrays, ngram_hashes

Signature = npt.NDArray[np.uint32]
_BLOCK = 1_024  # shingles: a block of 112 hashes of each stays in the second-level cache


@dataclass(frozen=True)
class MinHash:
    """The signature's shape: shingle length in words, bands, rows a band, and the length of a
    shingle in characters where words are not spaced."""

    ngram: int = 5
    bands: int = 14
    rows: int = 8
    character_ngram: int = 8

    @cached_property
    def _permutations(self) -> tuple[Hashes, Hashes]:
        """Multiply-shift hashing (Dietzfelbinger 1997): odd factors and offsets, from a counter."""
        counter = np.arange(1, 2 * self.bands * self.rows + 1, dtype=np.uint64)
        constants = mix64(counter * np.uint64(GOLDEN_GAMMA))
        half = self.bands * self.rows
        return constants[:half] | np.uint64(1), constants[half:]

    def shingles(self, words: WordArrays) -> Hashes:
        """The distinct hashes of the text's n-grams; of all its words if they are fewer."""
        return np.unique(self._ngrams(words))

    def _ngrams(self, words: WordArrays) -> Hashes:
        """The hashes in the text's order.

        Each begins at a word and is as long as that word's script asks for, so that texts of
        mixed scripts have both kinds.
        """
        searched = words.folded != 0
        folded, unspaced = words.folded[searched], words.unspaced[searched]
        found = ngram_hashes(folded, self.ngram)
        if unspaced.any() and self.character_ngram != self.ngram:
            characters = ngram_hashes(folded, self.character_ngram)
            found = np.concatenate(
                [
                    found[~unspaced[: len(found)]],
                    characters[unspaced[: len(characters)]],
                ]
            )
        if not len(found) and len(folded):
            found = ngram_hashes(folded, len(folded))
        return found

    def signature(self, shingles: Hashes) -> Signature:
        """The least hash of any shingle under each permutation, shape (bands * rows,)."""
        factors, offsets = self._permutations
        least = np.full(len(factors), np.iinfo(np.uint64).max, np.uint64)
        hashed = np.empty((len(factors), min(_BLOCK, len(shingles))), np.uint64)
        for start in range(0, len(shingles), _BLOCK):
            block = shingles[start : start + _BLOCK]
            part = hashed[:, : len(block)]
            np.multiply(factors[:, None], block, out=part)
            part += offsets[:, None]
            np.minimum(least, part.min(axis=1), out=least)
        return (least >> np.uint64(32)).astype(np.uint32)

    def of(self, words: WordArrays) -> Signature | None:
        """The signature of a text; None for one without words."""
        shingles = self._ngrams(words)
        return self.signature(shingles) if len(shingles) else None

    def bands_of(self, signature: Signature) -> Hashes:
        """One hash a band, shape (bands,)."""
        rows = signature.astype(np.uint64).reshape(self.bands, self.rows)
        hashes = np.zeros(self.bands, np.uint64)
        for row in rows.T:
            hashes = hashes * np.uint64(GOLDEN_GAMMA) + row
        return mix64(hashes)

    def band_hashes(self, words: WordArrays) -> Hashes | None:
        """One hash a band, shape (bands,), or None for a text without words."""
        signature = self.of(words)
        return None if signature is None else self.bands_of(signature)

    def probability(self, similarity: float) -> float:
        """How likely texts of that Jaccard similarity are found."""
        return found_at(similarity, self.bands, self.rows)
