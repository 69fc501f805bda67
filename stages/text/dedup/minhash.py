"""MinHash with banding: near duplicates share a band of their signatures.

Word 5-grams, 14 bands of 8 rows (FineWeb's setting; Broder 1997; Leskovec et al., ch. 3): two
texts of Jaccard similarity s share a band with probability 1 - (1 - s^8)^14, that is 0.92 at 0.8
and 0.05 at 0.5. In a script without spaces a shingle is a run of characters, with its own length.

Bands and rows can be chosen from a threshold of similarity: the area under that curve below the
threshold are false positives, the area above the curve beyond it false negatives, and the shape
with the least weighted sum of both is chosen (as datasketch and text-dedup do). These libraries
hash shingles one by one in Python; here a signature is array arithmetic on hashes of words.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from stages.data.hashing import GOLDEN_GAMMA, mix64
from stages.text.words.word_table import Hashes, WordArrays, ngram_hashes

Signature = npt.NDArray[np.uint32]
_BLOCK = 1_024  # shingles: their 112 hashes fit into the second-level cache
_STEPS = 200  # of each integral: the midpoint rule is then exact to 1e-5


@dataclass(frozen=True)
class MinHash:
    """MinHash signatures of one shape.

    Args:
        ngram_size: length of a shingle, words.
        bands: bands in a signature.
        rows: rows per band.
        character_ngram_size: length of a shingle, characters, where words are not spaced.
    """

    ngram_size: int = 5
    bands: int = 14
    rows: int = 8
    character_ngram_size: int = 8

    @cached_property
    def _permutations(self) -> tuple[Hashes, Hashes]:
        """Odd factors and offsets of multiply-shift hashing (Dietzfelbinger 1997)."""
        counter = np.arange(1, 2 * self.bands * self.rows + 1, dtype=np.uint64)
        constants = mix64(counter * np.uint64(GOLDEN_GAMMA))
        half = self.bands * self.rows
        return constants[:half] | np.uint64(1), constants[half:]

    def shingles(self, words: WordArrays) -> Hashes:
        """Return the distinct hashes of the text's n-grams, or of all its words if it has fewer."""
        return np.unique(self._ngrams(words))

    def _ngrams(self, words: WordArrays) -> Hashes:
        """Return the n-gram hashes of the text.

        Each n-gram begins at a word and has the length for that word's script, so that texts of
        mixed scripts have both kinds.
        """
        has_letters = words.folded != 0
        folded, unspaced = words.folded[has_letters], words.unspaced[has_letters]
        found = ngram_hashes(folded, self.ngram_size)
        if unspaced.any() and self.character_ngram_size != self.ngram_size:
            characters = ngram_hashes(folded, self.character_ngram_size)
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
        """Return the least hash of any shingle under each permutation, shape (bands * rows,)."""
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

    def text_signature(self, words: WordArrays) -> Signature | None:
        """Return the signature of a text, or None for a text without words."""
        shingles = self._ngrams(words)
        return self.signature(shingles) if len(shingles) else None

    def band_hashes(self, signature: Signature) -> Hashes:
        """Return one hash per band, shape (bands,)."""
        rows = signature.astype(np.uint64).reshape(self.bands, self.rows)
        hashes = np.zeros(self.bands, np.uint64)
        for row in rows.T:
            hashes = hashes * np.uint64(GOLDEN_GAMMA) + row
        return mix64(hashes)

    def match_probability(self, similarity: float) -> float:
        """Return the probability that texts of this Jaccard similarity share a band."""
        return match_probability(similarity, self.bands, self.rows)


def match_probability(similarity: float, bands: int, rows: int) -> float:
    """Return the probability that texts of this Jaccard similarity share a band."""
    return float(1 - (1 - similarity**rows) ** bands)


@lru_cache(64)
def best_band_shape(
    threshold: float, permutations: int, false_negative_weight: float
) -> tuple[int, int]:
    """Return the bands and rows, at most `permutations` together, with the least weighted error."""
    shapes = (
        (bands, rows)
        for bands in range(1, permutations + 1)
        for rows in range(1, permutations // bands + 1)
    )
    return min(shapes, key=lambda s: band_error(threshold, s[0], s[1], false_negative_weight))


def band_error(threshold: float, bands: int, rows: int, false_negative_weight: float) -> float:
    """Return the weighted area of false positives and false negatives."""
    false = _mean_probability(0, threshold, bands, rows) * threshold
    missed = (1 - _mean_probability(threshold, 1, bands, rows)) * (1 - threshold)
    return (1 - false_negative_weight) * false + false_negative_weight * missed


def _mean_probability(low: float, high: float, bands: int, rows: int) -> float:
    step = (high - low) / _STEPS
    points = (low + (at + 0.5) * step for at in range(_STEPS))
    return sum(match_probability(point, bands, rows) for point in points) / _STEPS
