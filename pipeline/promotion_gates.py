"""Promotion gates: conditions on a run's metrics that a model must meet to be promoted.

evaluate.perplexity<20            a metric of a stage against a number
reward.accuracy>=champion+0.01    against the same metric of the model that has the alias now
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from operator import eq, ge, gt, le, lt
from typing import Any

from pipeline.errors import GateRefused, UserError, did_you_mean

_GATE = re.compile(
    r"\s*(?P<metric>[^\s<>=!]+)\s*(?P<compare><=|>=|==|<|>)\s*"
    r"(?:(?P<champion>champion)\s*(?P<margin>[+-]\s*[^\s+-]\S*)?|(?P<number>\S+))\s*"
)
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_COMPARE = {"<=": le, ">=": ge, "==": eq, "<": lt, ">": gt}


@dataclass(frozen=True)
class Gate:
    """A condition on a metric: `evaluate.perplexity<20`, `reward.accuracy>=champion+0.01`."""

    text: str
    metric: str
    compare: str
    number: Decimal
    """The threshold, or the margin over the champion's value."""
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Parse the text of a gate.

        Raises:
            UserError: it is not `STAGE.METRIC (< <= > >= ==) NUMBER|champion[+NUMBER]`.
        """
        number, found = Decimal("nan"), _GATE.fullmatch(text)
        if found:
            written = (found["margin"] or "0") if found["champion"] else found["number"]
            with suppress(InvalidOperation):
                number = Decimal(written.replace(" ", ""))
        if not found or not number.is_finite():
            remedy = "write 'evaluate.perplexity<20' or 'reward.accuracy>=champion+0.01'"
            raise UserError(f"{text!r} is not a gate", remedy=remedy)
        relative = found["champion"] is not None
        return cls(text.strip(), found["metric"], found["compare"], number, relative)

    def evaluate(
        self, metrics: Mapping[str, float], champion: Mapping[str, float] | None
    ) -> dict[str, Any]:
        """Return the gate's row of the table: value, threshold, passed, and a note.

        The arithmetic is decimal: 0.75 passes `>=champion+0.01` over 0.74 exactly, as written.

        Args:
            metrics: "stage.metric" to value; holds this gate's metric.
            champion: the metrics of the model that has the alias now; None if there is none.
        """
        value = metrics[self.metric]
        row = {"gate": self.text, "metric": self.metric, "value": value, "note": ""}
        base = champion.get(self.metric) if champion is not None else None
        if self.relative and base is None:
            note = "the champion's value was not recorded"
            note = note if champion is not None else "there is no champion yet"
            passed = champion is None
            return {**row, "threshold": None, "champion": None, "passed": passed, "note": note}
        threshold = float(self.number)
        if self.relative:
            threshold = float(Decimal(repr(float(base or 0.0))) + self.number)
        passed = bool(_COMPARE[self.compare](value, threshold))
        return {**row, "threshold": threshold, "champion": base, "passed": passed}


def flat_metrics(stages: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return {stage: {metric: value}} as {"stage.metric": value}, sorted."""
    return {
        f"{stage}.{name}": float(value)
        for stage, found in sorted(stages.items())
        for name, value in sorted(found.items())
    }


def format_gate_table(gates: Sequence[Mapping[str, Any]]) -> str:
    """Format the rows of gates as lines of text."""
    lines = []
    for row in gates:
        mark = "pass" if row["passed"] else "FAIL"
        bound = "" if row["threshold"] is None else f" against {row['threshold']:g}"
        note = f" ({row['note']})" if row["note"] else ""
        lines.append(f"  {mark}  {row['gate']}: {row['value']:g}{bound}{note}")
    return "\n".join(lines)


def check_metrics_exist(gates: Sequence[Gate], metrics: Mapping[str, float]) -> None:
    """Check that every gate's metric was recorded.

    Raises:
        UserError: a metric is missing; the remedy names the nearest one.
    """
    for gate in gates:
        if gate.metric not in metrics:
            message = (
                f"the gate {gate.text!r} needs the metric {gate.metric!r}, which no stage gave"
            )
            raise UserError(message, remedy=did_you_mean(gate.metric, metrics))


def require_passed(rows: list[dict[str, Any]], model: str, alias: str) -> None:
    """Check that every gate passed.

    Raises:
        GateRefused: `.gates` holds the whole table.
    """
    if failed := sum(not row["passed"] for row in rows):
        error = GateRefused(
            f"{failed} of {len(rows)} gates failed\n{format_gate_table(rows)}",
            where=f"{model}@{alias}",
            remedy="the alias stays where it was; improve the model or change the gate",
        )
        error.gates = rows  # type: ignore[attr-defined]
        raise error


def check_alias(alias: str) -> None:
    """Check that MLflow accepts an alias, before anything happens.

    Raises:
        UserError: it is reserved or contains other characters than allowed.
    """
    remedy = "use letters, digits, '_' and '-', beginning with a letter: champion, candidate"
    if alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise UserError(f"the alias {alias!r} is reserved", remedy=remedy)
    if not _ALIAS.fullmatch(alias):
        raise UserError(f"{alias!r} is not a valid alias", remedy=remedy)
