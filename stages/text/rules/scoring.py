"""From a text to one figure a rule, and from figures to a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from stages.text.rules import c4, chinese, code, gopher, shape
from stages.text.rules.catalogue import RULE_SETS, Limit
from stages.text.rules.view import View

Measure = Callable[[View], dict[str, float]]

MEASURES: dict[str, Measure] = {
    "length": shape.length,
    "ccnet": shape.length,
    "gopher_quality": gopher.quality,
    "gopher_quality:datatrove": gopher.quality_datatrove,
    "gopher_quality:dolma": gopher.quality_dolma,
    "gopher_repetition": gopher.repetition,
    "gopher_repetition:datatrove": gopher.repetition_datatrove,
    "c4": c4.c4,
    "c4:datatrove": c4.c4_datatrove,
    "mc4": c4.mc4,
    "fineweb": c4.fineweb,
    "fineweb:datatrove": c4.fineweb_datatrove,
    "codex": code.codex,
    "starcoder": code.starcoder,
    "chinese": chinese.chinese,
    "chinese:characters": chinese.chinese_characters,
    "languages": shape.languages,
}


class Scorer:
    """Scores texts by every rule of some sets."""

    def __init__(self, names: Sequence[str], lists: shape.Lists | None = None) -> None:
        measures: dict[str, Measure] = {**MEASURES, "lists": lists or shape.Lists()}
        self._measures = [(measures[name], tuple(RULE_SETS[name].rules)) for name in names]
        self.rules = [f"{name}.{rule}" for name in names for rule in RULE_SETS[name].rules]
        """The rules in order, by `set.measure`."""

    def scores(self, view: View) -> list[float]:
        """One figure for each of `rules`; NaN where the measure means nothing for the text."""
        figures: list[float] = []
        for measure, rules in self._measures:
            measured = measure(view)
            figures += [measured[rule] for rule in rules]
        return figures


def first_failures(
    scores: npt.NDArray[np.float64], rules: Sequence[str], limits: Mapping[str, Limit]
) -> npt.NDArray[np.int64]:
    """For each row of `scores`, shape (N, R), the first rule out of its range; -1 for none."""
    failed = np.full(len(scores), -1, np.int64)
    for at, rule in reversed(list(enumerate(rules))):
        if rule in limits:
            limit = limits[rule]
            out = (scores[:, at] < limit.low) | (scores[:, at] > limit.high)
            failed[out] = at
    return failed
