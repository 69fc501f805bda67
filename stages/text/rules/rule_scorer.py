"""Scores of a text by rules, and the first rule whose limit a score violates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from stages.text.rules import c4_rules, chinese_rules, code_rules, gopher_rules
from stages.text.rules.catalogue import RULE_SETS, Limit
from stages.text.rules.document_view import DocumentView, Scores
from stages.text.rules.language_rules import languages
from stages.text.rules.word_list_rules import Blocklists

Measure = Callable[[DocumentView], Scores]


def length(view: DocumentView) -> Scores:
    """Return the length of the text, characters."""
    return {"characters": float(len(view.text))}


MEASURES: dict[str, Measure] = {
    "length": length,
    "ccnet": length,
    "gopher_quality": gopher_rules.quality,
    "gopher_quality:datatrove": gopher_rules.quality_datatrove,
    "gopher_quality:dolma": gopher_rules.quality_dolma,
    "gopher_repetition": gopher_rules.repetition,
    "gopher_repetition:datatrove": gopher_rules.repetition_datatrove,
    "c4": c4_rules.c4,
    "c4:datatrove": c4_rules.c4_datatrove,
    "mc4": c4_rules.mc4,
    "fineweb": c4_rules.fineweb,
    "fineweb:datatrove": c4_rules.fineweb_datatrove,
    "codex": code_rules.codex,
    "starcoder": code_rules.starcoder,
    "chinese": chinese_rules.chinese,
    "chinese:characters": chinese_rules.chinese_characters,
    "languages": languages,
}


class RuleScorer:
    """Scorer of texts by every rule of some rule sets."""

    def __init__(self, names: Sequence[str], lists: Blocklists | None = None) -> None:
        measures: dict[str, Measure] = {**MEASURES, "lists": lists or Blocklists()}
        self._measures = [(measures[name], tuple(RULE_SETS[name].rules)) for name in names]
        self.rules = [f"{name}.{rule}" for name in names for rule in RULE_SETS[name].rules]
        """The rules in order, by `set.measure`."""

    def scores(self, view: DocumentView) -> list[float]:
        """Return one score for each of `rules`; NaN where a measure does not apply to the text."""
        scores: list[float] = []
        for measure, rules in self._measures:
            measured = measure(view)
            scores += [measured[rule] for rule in rules]
        return scores


def first_failures(
    scores: npt.NDArray[np.float64], rules: Sequence[str], limits: Mapping[str, Limit]
) -> npt.NDArray[np.int64]:
    """Return the first violated rule of each row of `scores`, shape (N, R); -1 for none."""
    failed = np.full(len(scores), -1, np.int64)
    for at, rule in reversed(list(enumerate(rules))):
        if rule in limits:
            limit = limits[rule]
            out = (scores[:, at] < limit.low) | (scores[:, at] > limit.high)
            failed[out] = at
    return failed
