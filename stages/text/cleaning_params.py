"""What a pipeline file may say of rules, of deduplication and of documented objects; imports
nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from pipeline.errors import Problem, did_you_mean
from pipeline.stage import Params, Section
from stages.text.rules import catalogue
from stages.text.rules.catalogue import RULE_SETS, Limit

Open = float | None
Range = float | tuple[Open, Open] | None
RuleSetName = Literal[
    "length",
    "ccnet",
    "gopher_quality",
    "gopher_quality:datatrove",
    "gopher_quality:dolma",
    "gopher_repetition",
    "gopher_repetition:datatrove",
    "c4",
    "c4:datatrove",
    "mc4",
    "fineweb",
    "fineweb:datatrove",
    "codex",
    "starcoder",
    "chinese",
    "chinese:characters",
    "lists",
    "languages",
]
EditName = Literal[
    "c4",
    "c4:datatrove",
    "boilerplate",
    "languages",
    "simplified_chinese",
    "chinese_paragraphs",
    "whole_sentences",
]
Share = Annotated[float, Field(ge=0, le=1)]
PLAIN_PREFERENCES = ("source", "length", "language")
Region = Annotated[str, Field(pattern=r"^[A-Z]{2}$")]
PiiKind = Literal["secret", "email", "cn_id", "card", "us_ssn", "ip", "phone"]
OBJECTS_PER_SECOND = 600  # found on one busy core


def merge_limits(
    names: Sequence[RuleSetName], changes: Mapping[str, Mapping[str, Range]]
) -> dict[str, Limit]:
    """The range of each rule of the sets, by `set.measure`, with the changes; a rule that is
    switched off has none."""
    ranges = catalogue.default_limits(names)
    for name, rules in changes.items():
        for measure, change in rules.items():
            rule = f"{name}.{measure}"
            if change is None:
                del ranges[rule]
            else:
                ranges[rule] = _changed(ranges[rule], change)
    return ranges


def limit_problems(
    names: Sequence[RuleSetName], changes: Mapping[str, Mapping[str, Range]]
) -> Iterator[Problem]:
    """What is wrong with changed limits: rules that are not there, ranges that hold nothing."""
    for name, rules in changes.items():
        if name not in names:
            remedy = "add it there" if name in RULE_SETS else did_you_mean(name, names)
            yield Problem("limits", f"the rule set {name!r} is not in `rules`", remedy)
            continue
        known = RULE_SETS[name].rules
        for measure, change in rules.items():
            if measure not in known:
                yield Problem(
                    f"limits.{name}",
                    f"{name} has no rule {measure!r}",
                    did_you_mean(measure, known),
                )
            elif isinstance(change, tuple) and None not in change and change[0] > change[1]:  # type: ignore[operator]
                yield Problem(
                    f"limits.{name}.{measure}", "nothing lies in this range", "swap its ends"
                )
            elif isinstance(change, float) and _two_sided(known[measure].limit):
                yield Problem(
                    f"limits.{name}.{measure}",
                    "this rule has two ends",
                    f"write [{change:g}, null] or [null, {change:g}]",
                )


def preference_problems(
    preferences: Sequence[str], names: Sequence[str], meta_columns: Sequence[str]
) -> Iterator[Problem]:
    """What is wrong with wishes for scores and fields: none is there by that name."""
    for preference in preferences:
        group, dot, name = preference.removeprefix("-").partition(".")
        if not dot:
            if preference in PLAIN_PREFERENCES:
                continue
            message = (
                f"{preference!r} is no wish: {', '.join(PLAIN_PREFERENCES)}, a score or a field is"
            )
            remedy = did_you_mean(preference, PLAIN_PREFERENCES)
        elif group == "meta" and name not in meta_columns:
            message, remedy = f"{name!r} is not in `meta_columns`", "add it there"
        elif group != "meta" and group not in names:
            remedy = "add it there" if group in RULE_SETS else did_you_mean(group, names)
            message = f"the rule set {group!r} is not in `rules`"
        elif group != "meta" and name not in RULE_SETS[group].rules:
            message = f"{group} has no rule {name!r}"
            remedy = did_you_mean(name, RULE_SETS[group].rules)
        else:
            continue
        yield Problem("dedup.prefer", message, remedy)


def _two_sided(limit: Limit) -> bool:
    return math.isfinite(limit.low) and math.isfinite(limit.high)


def _changed(limit: Limit, change: float | tuple[Open, Open]) -> Limit:
    if isinstance(change, tuple):
        low, high = change
        return Limit(-math.inf if low is None else low, math.inf if high is None else high)
    return Limit(low=change) if math.isfinite(limit.low) else Limit(high=change)


class Lists(Section):
    """Files with one entry a line, for the rule set `lists`; `#` begins a comment line."""

    words: str | None = None
    """Words and phrases that a text must not hold."""
    urls: str | None = None
    """Hosts (with all below them) and beginnings of addresses that a document must not be from."""


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
    prefer: tuple[str, ...] = ("length",)
    """Which copy stays, the first wish first: that of the earlier source in `sources`, the longest,
    the one whose language is surest, the one with the highest score of a rule
    (`gopher_quality.stop_words`) or with the highest number in a field of `meta_columns`
    (`meta.quality`); `-` before a score or field wishes for the lowest. Then the first read."""
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
        from stages.text.dedup.banding import best_shape

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
            f"{self.ngram}-grams of words and {self.character_ngram}-grams of (simplified) "
            f"characters, {bands} bands of {rows}{verified}"
        )


class Pii(Section):
    """What is masked by typed placeholders such as `[EMAIL]`, in kept and in dropped text."""

    kinds: tuple[PiiKind, ...] = ()
    """Keys and tokens, e-mail, Chinese resident ids, payment cards, US social security numbers,
    public IP addresses, phone numbers; empty masks nothing."""
    regions: tuple[Region, ...] = ("US", "CN")
    """ISO 3166 codes of the countries whose phone numbers may stand without a prefix."""


class PythonDocsParams(Params):
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
        from stages.text.sources.source_listing import PYTHON_DOCS, content_digest

        return {PYTHON_DOCS: content_digest(PYTHON_DOCS)}

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """The lengths are in order."""
        if self.min_characters > self.max_characters:
            yield Problem("min_characters", "more than max_characters", "swap them")

    def estimate(self, upstream: Mapping[str, Params]) -> dict[str, float]:
        """Reading takes the time."""
        return {"seconds": 2 + self.max_objects / OBJECTS_PER_SECOND / self.workers.num}
