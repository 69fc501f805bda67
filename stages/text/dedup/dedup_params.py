"""Parameters of deduplication in a pipeline file; imports nothing heavy before they are used."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt, model_validator

from pipeline.errors import Problem, did_you_mean
from pipeline.stage import Section
from stages.text.rules.catalogue import RULE_SETS

PLAIN_PREFERENCES = ("source", "length", "language")


class DedupParams(Section):
    """Duplicates to drop, and the copy that survives."""

    renamed: ClassVar[Mapping[str, str]] = {
        "ngram": "ngram_size",
        "character_ngram": "character_ngram_size",
        "permutations": "num_permutations",
        "miss_weight": "false_negative_weight",
        "bands": "num_bands",
        "rows": "rows_per_band",
        "index": "save_index",
        "lines": "min_repeated_line",
        "paragraphs": "min_repeated_paragraph",
        "substrings": "min_repeated_substring",
    }

    exact: bool = True
    """Removal of documents whose text equals the text of another. Default: true."""
    near: bool = True
    """Removal of documents that are similar to another by MinHash. Default: true."""
    ngram_size: PositiveInt = 5
    """Length of a shingle, words. Default: 5."""
    character_ngram_size: PositiveInt = 8
    """Length of a shingle in scripts that are written without spaces, characters. Default: 8."""
    normalize_digits: bool = True
    """Equality of all numbers in shingles, as in FineWeb: pages that differ in dates and counts
    alone are near duplicates. False compares the numbers, for exercises and tables. Default:
    true."""
    threshold: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Jaccard similarity from which texts count as near duplicates; chooses `num_bands` and
    `rows_per_band`. Default: `num_bands` and `rows_per_band` as given."""
    num_permutations: Annotated[int, Field(ge=1, le=1024)] = 112
    """Maximum number of hashes in a signature, where `threshold` chooses. Default: 112."""
    false_negative_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of missed duplicates against false positives, where `threshold` chooses. Default:
    0.5."""
    num_bands: PositiveInt | None = None
    """Number of bands in a signature: more bands find less similar texts. Default: 14 without a
    threshold."""
    rows_per_band: PositiveInt | None = None
    """Number of rows in a band: more rows find only more similar texts. Default: 8 without a
    threshold."""

    verify: bool = False
    """Verification that near duplicates reach `threshold` in the Jaccard similarity estimated from
    their whole signatures; without `threshold`, the similarity at which the match probability is
    1/2. Permits `num_bands` and `rows_per_band` together with `threshold`. Default: false."""
    prefer: tuple[str, ...] = ("length",)
    """Preferences that choose the surviving copy, the first one first: `source` (the earliest in
    `sources`), `length` (the longest), `language` (the most confident language), a rule
    (`gopher_quality.stop_words`) or a numeric field of `meta_columns` (`meta.quality`), the highest
    first or, with `-` in front, the lowest. Ties go to the document read first. Default:
    [length]."""
    save_index: bool = True
    """Storage of the hashes of the kept documents, so that a later `clean` can name this artifact
    in `dedup_against`. Default: true."""

    min_repeated_line: PositiveInt | None = None
    """Minimum length of a repeated line to remove, characters. Default: no line is removed."""
    min_repeated_paragraph: PositiveInt | None = None
    """Minimum length of a repeated paragraph to remove, characters. Default: no paragraph is
    removed."""
    min_repeated_substring: Annotated[int, Field(ge=20)] | None = None
    """Minimum length of a repeated substring to remove, characters. Default: no substring is
    removed."""
    min_remaining: Annotated[int, Field(ge=1)] = 200
    """Minimum length of a document after removal of repeated text, characters; a shorter one is
    dropped as it was. Default: 200."""

    @model_validator(mode="after")
    def _one_shape(self) -> DedupParams:
        if self.threshold is not None and not self.verify:
            chosen = self.band_shape
            given = (self.num_bands or chosen[0], self.rows_per_band or chosen[1])
            if given != chosen:
                raise ValueError(
                    f"threshold {self.threshold} chooses {chosen[0]} bands and {chosen[1]} rows, "
                    f"not {given[0]} and {given[1]}: omit num_bands and rows_per_band, or threshold"
                )
        return self

    @property
    def band_shape(self) -> tuple[int, int]:
        """Bands, and rows per band."""
        given = self.verify and (self.num_bands or self.rows_per_band)  # they only nominate
        if self.threshold is None or given:
            return self.num_bands or 14, self.rows_per_band or 8
        from stages.text.dedup.minhash import best_band_shape

        return best_band_shape(self.threshold, self.num_permutations, self.false_negative_weight)

    @property
    def removes_text(self) -> bool:
        """True if repeated text is removed from kept documents."""
        return bool(
            self.min_repeated_line or self.min_repeated_paragraph or self.min_repeated_substring
        )

    @property
    def hash_description(self) -> str:
        """All that determines whether hashes of two documents are comparable."""
        if not self.near:
            return "exact hashes only"
        bands, rows = self.band_shape
        verified = ", verified" if self.verify else ""
        numbers = "" if self.normalize_digits else ", numbers compared"
        return (
            f"{self.ngram_size}-grams of words and {self.character_ngram_size}-grams of "
            f"(simplified) characters, {bands} bands of {rows}{verified}{numbers}"
        )


def preference_problems(
    preferences: Sequence[str], rule_sets: Sequence[str], meta_columns: Sequence[str]
) -> Iterator[Problem]:
    """Yield the preferences for scores and fields that do not exist."""
    for preference in preferences:
        group, dot, name = preference.removeprefix("-").partition(".")
        if not dot:
            if preference in PLAIN_PREFERENCES:
                continue
            known = ", ".join(PLAIN_PREFERENCES)
            message = f"{preference!r} is not one of {known}, a score or a field"
            remedy = did_you_mean(preference, PLAIN_PREFERENCES)
        elif group == "meta" and name not in meta_columns:
            message, remedy = f"{name!r} is not in `meta_columns`", "add it there"
        elif group != "meta" and group not in rule_sets:
            remedy = "add it there" if group in RULE_SETS else did_you_mean(group, rule_sets)
            message = f"the rule set {group!r} is not in `rules`"
        elif group != "meta" and name not in RULE_SETS[group].rules:
            message = f"{group} has no rule {name!r}"
            remedy = did_you_mean(name, RULE_SETS[group].rules)
        else:
            continue
        yield Problem("dedup.prefer", message, remedy)
