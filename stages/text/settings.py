"""What a pipeline file may say of rules, of deduplication and of documented objects; imports
nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from pipeline.errors import Problem
from pipeline.stage import Params, Section

if TYPE_CHECKING:
    from stages.text.rules import Limit

Share = Annotated[float, Field(ge=0, le=1)]
Preference = Literal["source", "length", "language"]
Region = Annotated[str, Field(pattern=r"^[A-Z]{2}$")]
PiiKind = Literal["secret", "email", "cn_id", "card", "us_ssn", "ip", "phone"]
OBJECTS_A_SECOND = 600  # found on one busy core


class Rules(Section):
    """Limits of the rules; null switches a rule off.

    Gopher's values (Rae et al. 2021) but for the lengths, which are ours.
    """

    min_characters: Annotated[int, Field(ge=0)] | None = 200
    """Characters of a document, at least."""
    max_characters: PositiveInt | None = 1_000_000
    """Characters of a document, at most."""
    min_words: Annotated[int, Field(ge=0)] | None = 50
    """Words that are not mere symbols, at least."""
    max_words: PositiveInt | None = 100_000
    """Words that are not mere symbols, at most."""
    min_mean_word_length: Annotated[float, Field(ge=0)] | None = 3.0
    """Mean characters of a word that is no symbol, at least."""
    max_mean_word_length: Annotated[float, Field(gt=0)] | None = 10.0
    """Mean characters of a word that is no symbol, at most."""
    max_hash_marks: Annotated[float, Field(ge=0)] | None = 0.1
    """`#` marks a word."""
    max_ellipses: Annotated[float, Field(ge=0)] | None = 0.1
    """Ellipses a word."""
    max_bullet_lines: Share | None = 0.9
    """Share of lines that begin with a bullet."""
    max_ellipsis_lines: Share | None = 0.3
    """Share of lines that end in an ellipsis."""
    min_alphabetic_words: Share | None = 0.8
    """Share of words with a letter in them."""
    min_stop_words: Annotated[int, Field(ge=0, le=8)] | None = 2
    """How many of the, be, to, of, and, that, have, with an English text holds."""
    max_duplicate_lines: Share | None = 0.3
    """Share of lines that repeat an earlier one."""
    max_duplicate_line_characters: Share | None = 0.2
    """Share of characters in lines that repeat an earlier one."""
    max_duplicate_paragraphs: Share | None = 0.3
    """Share of paragraphs that repeat an earlier one."""
    max_duplicate_paragraph_characters: Share | None = 0.2
    """Share of characters in paragraphs that repeat an earlier one."""
    max_top_ngrams: tuple[float, float, float] | None = (0.20, 0.18, 0.16)
    """Share of characters in the most frequent 2-, 3- and 4-gram."""
    max_duplicate_ngrams: tuple[float, float, float, float, float, float] | None = (
        *(0.15, 0.14, 0.13),
        *(0.12, 0.11, 0.10),
    )
    """Share of characters in repeated 5- to 10-grams."""

    def limits(self) -> dict[str, Limit]:
        """The limit of each measure of `stages.text.rules`."""
        from stages.text.rules import DUPLICATE_NGRAMS, TOP_NGRAMS, Limit

        ranges: dict[str, tuple[float | None, float | None]] = {
            "characters": (self.min_characters, self.max_characters),
            "words": (self.min_words, self.max_words),
            "words.mean_length": (self.min_mean_word_length, self.max_mean_word_length),
            "symbols.hash": (None, self.max_hash_marks),
            "symbols.ellipsis": (None, self.max_ellipses),
            "lines.bullet": (None, self.max_bullet_lines),
            "lines.ellipsis": (None, self.max_ellipsis_lines),
            "words.alphabetic": (self.min_alphabetic_words, None),
            "words.stop": (self.min_stop_words, None),
            "lines.duplicate": (None, self.max_duplicate_lines),
            "lines.duplicate_characters": (None, self.max_duplicate_line_characters),
            "paragraphs.duplicate": (None, self.max_duplicate_paragraphs),
            "paragraphs.duplicate_characters": (None, self.max_duplicate_paragraph_characters),
        }
        for n, top in zip(TOP_NGRAMS, self.max_top_ngrams or (), strict=False):
            ranges[f"ngrams.top_{n}"] = (None, top)
        for n, share in zip(DUPLICATE_NGRAMS, self.max_duplicate_ngrams or (), strict=False):
            ranges[f"ngrams.duplicate_{n}"] = (None, share)
        return {
            name: Limit(
                float("-inf") if low is None else low, float("inf") if high is None else high
            )
            for name, (low, high) in ranges.items()
            if (low, high) != (None, None)
        }


class Dedup(Section):
    """Which copies are dropped, and which one stays."""

    exact: bool = True
    """Drop documents whose text is equal to another's."""
    near: bool = True
    """Drop documents that MinHash finds similar to another."""
    ngram: PositiveInt = 5
    """Words in a shingle."""
    character_ngram: PositiveInt = 8
    """Characters in a shingle, in scripts that are written without spaces."""
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """The Jaccard similarity from which texts count as near copies: chooses bands and rows; null
    takes them as they stand."""
    permutations: Annotated[int, Field(ge=1, le=1024)] = 112
    """Hashes of a signature, at most, where `threshold` chooses."""
    miss_weight: Share = 0.5
    """What a missed copy weighs against a text that is wrongly taken for one, where `threshold`
    chooses."""
    bands: PositiveInt | None = None
    """Bands of the signature: more find less similar texts. 14, if there is no threshold."""
    rows: PositiveInt | None = None
    """Rows of a band: more find only more similar texts. 8, if there is no threshold."""

    verify: bool = False
    """Take documents for near copies only if the Jaccard similarity that their whole signatures
    estimate reaches `threshold` too (without one: the similarity at which the bands tip over).
    Then `bands` and `rows` may stand beside `threshold`."""
    prefer: tuple[Preference, ...] = ("length",)
    """Which copy stays, the first wish first: that of the earlier source in `sources`, the longest,
    the one whose language is surest; then the first read."""
    index: bool = True
    """Keep the hashes of what stays, so that later cleaning can name these documents in
    `against`."""

    lines: PositiveInt | None = None
    """Cut out lines of at least so many characters that were read before; null cuts none."""
    paragraphs: PositiveInt | None = None
    """Cut out paragraphs of at least so many characters that were read before; null cuts none."""
    substrings: Annotated[int, Field(ge=20)] | None = None
    """Cut out all text that lies in a run of so many characters that was read before; null cuts
    none."""
    min_remaining: Annotated[int, Field(ge=1)] = 200
    """Characters that must be left of a document of which something was cut out; else it is
    dropped as it was."""

    @model_validator(mode="after")
    def _one_shape(self) -> Dedup:
        if self.threshold is not None and not self.verify:
            chosen = self.shape
            written = (self.bands or chosen[0], self.rows or chosen[1])
            if written != chosen:
                raise ValueError(
                    f"threshold {self.threshold} chooses {chosen[0]} bands and {chosen[1]} rows, "
                    f"not {written[0]} and {written[1]}: leave out bands and rows, or threshold"
                )
        return self

    @property
    def shape(self) -> tuple[int, int]:
        """Bands and rows."""
        written = self.verify and (self.bands or self.rows)  # they only nominate
        if self.threshold is None or written:
            return self.bands or 14, self.rows or 8
        from stages.text.banding import best_shape

        return best_shape(self.threshold, self.permutations, self.miss_weight)

    @property
    def cuts(self) -> bool:
        """Whether anything is cut out of documents that stay."""
        return bool(self.lines or self.paragraphs or self.substrings)

    @property
    def described(self) -> str:
        """All that decides whether two documents' hashes can be compared, in words."""
        if not self.near:
            return "exact hashes only"
        bands, rows = self.shape
        verified = ", verified" if self.verify else ""
        return (
            f"{self.ngram}-grams of words and {self.character_ngram}-grams of characters, "
            f"{bands} bands of {rows}{verified}"
        )


class Pii(Section):
    """What is masked by typed placeholders such as `[EMAIL]`, in kept and in dropped text."""

    kinds: tuple[PiiKind, ...] = ()
    """Keys and tokens, e-mail, Chinese resident ids, payment cards, US social security numbers,
    public IP addresses, phone numbers; empty masks nothing."""
    regions: tuple[Region, ...] = ("US", "CN")
    """ISO 3166 codes of the countries whose phone numbers may stand without a prefix."""


class ObjectsParams(Params):
    """Which documented objects there are questions or preferences about. Stages that are told the
    same find the same objects, in the same splits."""

    sources: tuple[Literal["python:docs"], ...] = ("python:docs",)
    """Where objects come from: the running Python installation."""
    max_objects: PositiveInt = 8_000
    """Objects in all splits together, at most; the standard library's come first."""
    min_characters: Annotated[int, Field(ge=1)] = 20
    """Characters of an answer, at least."""
    max_characters: PositiveInt = 300
    """Characters of an answer, at most."""

    def externals(self) -> dict[str, str]:
        """The documentation of the installation."""
        from stages.text.sources import PYTHON_DOCS, content_digest

        return {PYTHON_DOCS: content_digest(PYTHON_DOCS)}

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """The lengths are in order."""
        if self.min_characters > self.max_characters:
            yield Problem("min_characters", "more than max_characters", "swap them")

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        """Reading takes the time."""
        return {"seconds": 2 + self.max_objects / OBJECTS_A_SECOND / self.workers.num}
