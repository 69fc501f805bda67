"""Evaluation of promotion gates against the metrics of a run and of the current model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from operator import eq, ge, gt, le, lt
from typing import Any

from launch.ui import formatting
from pipeline.errors import GateRefused, UserError, did_you_mean
from pipeline.plain_data import read_number
from pipeline.promotion_gates import Gate

_COMPARE = {"<=": le, ">=": ge, "==": eq, "<": lt, ">": gt}


def evaluate_gate(
    gate: Gate, metrics: Mapping[str, float | None], champion: Mapping[str, float | None] | None
) -> dict[str, Any]:
    """Evaluate a gate and return its row: value, threshold, passed, note.

    The arithmetic is decimal: 0.75 passes `>=champion+0.01` against 0.74. A metric without a finite
    value passes no gate.

    Args:
        metrics: "stage.metric" to value; holds the gate's metric.
        champion: metrics of the model that holds the alias; None without such a model.
    """
    value = read_number(metrics[gate.metric])
    row = {"gate": gate.text, "metric": gate.metric, "value": value, "note": ""}
    base = read_number(champion.get(gate.metric)) if champion is not None else None
    if value is None:
        stage, _, name = gate.metric.partition(".")
        note = f"{stage} recorded no number as {name}: nothing was measured, or it was not finite"
        return {**row, "threshold": None, "champion": base, "passed": False, "note": note}
    if gate.relative and base is None:
        note = "the champion's value was not recorded"
        note = note if champion is not None else "there is no champion yet"
        passed = champion is None
        return {**row, "threshold": None, "champion": None, "passed": passed, "note": note}
    threshold = float(gate.number)
    if gate.relative:
        threshold = float(Decimal(repr(float(base or 0.0))) + gate.number)
    passed = bool(_COMPARE[gate.compare](value, threshold))
    return {**row, "threshold": threshold, "champion": base, "passed": passed}


def flat_metrics(
    stages: Mapping[str, Mapping[str, float | None]],
) -> dict[str, float | None]:
    """Return {stage: {metric: value}} as {"stage.metric": value}, sorted."""
    return {
        f"{stage}.{name}": read_number(value)
        for stage, found in sorted(stages.items())
        for name, value in sorted(found.items())
    }


def format_gate_table(gates: Sequence[Mapping[str, Any]]) -> str:
    """Format the rows of gates as lines of text."""
    lines = []
    for row in gates:
        mark = "pass" if row["passed"] else "FAIL"
        known = row["threshold"] is not None
        bound = f" against {formatting.metric(row['threshold'])}" if known else ""
        note = f" ({row['note']})" if row["note"] else ""
        lines.append(f"  {mark}  {row['gate']}: {formatting.metric(row['value'])}{bound}{note}")
    return "\n".join(lines)


def check_metrics_exist(
    gates: Sequence[Gate], stages: Mapping[str, Mapping[str, float | None]]
) -> None:
    """Check that every gate's metric was recorded.

    Args:
        gates: the gates.
        stages: {stage: {metric: value}} of the run, a stage without metrics too.

    Raises:
        UserError: a metric is missing; the message names the cause and the remedy the nearest one.
    """
    known = flat_metrics(stages)
    for gate in gates:
        if gate.metric not in known:
            stage = gate.metric.partition(".")[0]
            cause = f"the run has no stage {stage!r}"
            if stage in stages:
                cause = f"{stage} recorded " + (", ".join(stages[stage]) or "no metrics")
            message = f"the gate {gate.text!r} needs the metric {gate.metric!r}, but {cause}"
            raise UserError(message, remedy=did_you_mean(gate.metric, known))


def require_passed(rows: list[dict[str, Any]], model: str, alias: str) -> None:
    """Check that every gate passed.

    Raises:
        GateRefused: `.gates` holds the whole table.
    """
    if failed := sum(not row["passed"] for row in rows):
        error = GateRefused(
            f"{failed} of {len(rows)} gates failed\n{format_gate_table(rows)}",
            where=f"{model}@{alias}",
            remedy="the alias was not moved; improve the model or change the gate",
        )
        error.gates = rows  # type: ignore[attr-defined]
        raise error
