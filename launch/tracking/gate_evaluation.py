"""Evaluation of promotion gates against the metrics of a run and of the current model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from operator import eq, ge, gt, le, lt
from typing import Any

from pipeline.errors import GateRefused, UserError, did_you_mean
from pipeline.promotion_gates import Gate

_COMPARE = {"<=": le, ">=": ge, "==": eq, "<": lt, ">": gt}


def evaluate_gate(
    gate: Gate, metrics: Mapping[str, float], champion: Mapping[str, float] | None
) -> dict[str, Any]:
    """Evaluate a gate and return its row: value, threshold, passed, note.

    The arithmetic is decimal: 0.75 passes `>=champion+0.01` against 0.74.

    Args:
        metrics: "stage.metric" to value; holds the gate's metric.
        champion: metrics of the model that holds the alias; None without such a model.
    """
    value = metrics[gate.metric]
    row = {"gate": gate.text, "metric": gate.metric, "value": value, "note": ""}
    base = champion.get(gate.metric) if champion is not None else None
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
                f"the gate {gate.text!r} needs the metric {gate.metric!r}, which no stage recorded"
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
            remedy="the alias was not moved; improve the model or change the gate",
        )
        error.gates = rows  # type: ignore[attr-defined]
        raise error
