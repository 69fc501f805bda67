"""Parameters of rules and edits in a pipeline file; imports nothing heavy."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from pipeline.errors import Problem, did_you_mean
from pipeline.stage import Section
from stages.text.rules import catalogue
from stages.text.rules.catalogue import RULE_SETS, Limit

OpenEnd = float | None
LimitChange = float | tuple[OpenEnd, OpenEnd] | None
"""Another limit: the one end of a one-sided rule, both ends, or None for a rule switched off."""
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


class ListFiles(Section):
    """Files with one entry per line, for the rule set `lists`; `#` begins a comment line."""

    words: str | None = None
    """File of words and phrases that a text must not contain. Default: none."""
    urls: str | None = None
    """File of hosts (including their subdomains) and URL prefixes that a document must not come
    from. Default: none."""


def merge_limits(
    names: Sequence[RuleSetName], changes: Mapping[str, Mapping[str, LimitChange]]
) -> dict[str, Limit]:
    """Return the limit of each rule of the sets by `set.measure`, with the changes applied, without
    the rules that are switched off."""
    limits = catalogue.default_limits(names)
    for name, rules in changes.items():
        for measure, change in rules.items():
            rule = f"{name}.{measure}"
            if change is None:
                del limits[rule]
            elif isinstance(change, tuple):
                low, high = change
                limits[rule] = Limit(
                    -math.inf if low is None else low, math.inf if high is None else high
                )
            elif math.isfinite(limits[rule].low):
                limits[rule] = Limit(low=change)
            else:
                limits[rule] = Limit(high=change)
    return limits


def limit_problems(
    names: Sequence[RuleSetName], changes: Mapping[str, Mapping[str, LimitChange]]
) -> Iterator[Problem]:
    """Yield what is wrong with changed limits: unknown rules, and empty or ambiguous ranges."""
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
            elif isinstance(change, tuple) and _is_empty(*change):
                yield Problem(f"limits.{name}.{measure}", "the range is empty", "swap its ends")
            elif isinstance(change, float) and known[measure].limit.is_two_sided:
                yield Problem(
                    f"limits.{name}.{measure}",
                    "this rule has two ends",
                    f"write [{change:g}, null] or [null, {change:g}]",
                )


def _is_empty(low: OpenEnd, high: OpenEnd) -> bool:
    return low is not None and high is not None and low > high
