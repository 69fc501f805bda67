"""Gates: conditions on a run's figures that a model must meet to be promoted.

evaluate.perplexity<20            a figure of a stage against a number
reward.accuracy>=champion+0.01    against the same figure of the model that it would replace
"""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from pipeline.errors import GateRefused, UserError, did_you_mean

_GATE = re.compile(
    r"\s*(?P<metric>[^\s<>=!]+)\s*(?P<compare><=|>=|==|<|>)\s*"
    r"(?:(?P<champion>champion)\s*(?P<margin>[+-]\s*[^\s+-]\S*)?|(?P<number>\S+))\s*"
)
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_COMPARE = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}


@dataclass(frozen=True)
class Gate:
    """A condition on a metric: `evaluate.perplexity<20`, `reward.accuracy>=champion+0.01`."""

    text: str
    metric: str
    compare: str
    number: Decimal
    """The threshold, or what is added to the champion's value."""
    relative: bool

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Read a gate as people write it.

        Raises:
            UserError: it is not `STAGE.METRIC (< <= > >= ==) NUMBER|champion[+NUMBER]`.
        """
        found = _GATE.fullmatch(text)
        try:
            if not found:
                raise InvalidOperation
            relative = found["champion"] is not None
            written = found["margin"] or "0" if relative else found["number"]
            number = Decimal(written.replace(" ", ""))
            if not number.is_finite():
                raise InvalidOperation
        except InvalidOperation:
            raise UserError(
                f"{text!r} is not a gate",
                remedy="write 'evaluate.perplexity<20' or 'reward.accuracy>=champion+0.01'",
            ) from None
        return cls(text.strip(), found["metric"], found["compare"], number, relative)

    def evaluate(
        self, metrics: Mapping[str, float], champion: Mapping[str, float] | None
    ) -> dict[str, Any]:
        """The gate's line of the table: value, threshold, passed, and a note if it says more.

        Decimal arithmetic: 0.75 is exactly champion+0.01 over 0.74, as it was written.

        Args:
            metrics: "stage.metric" to value; holds this gate's.
            champion: the same of the model that has the alias now; None if none has.
        """
        value = metrics[self.metric]
        line = {"gate": self.text, "metric": self.metric, "value": value, "note": ""}
        base = champion.get(self.metric) if champion is not None else None
        if not self.relative:
            threshold = float(self.number)
        elif champion is None:
            note = "there is no champion yet"
            return {**line, "threshold": None, "champion": None, "passed": True, "note": note}
        elif base is None:
            note = "the champion's value was not recorded"
            return {**line, "threshold": None, "champion": None, "passed": False, "note": note}
        else:
            threshold = float(Decimal(repr(float(base))) + self.number)
        passed = bool(_COMPARE[self.compare](value, threshold))
        return {**line, "threshold": threshold, "champion": base, "passed": passed}


def flat_metrics(stages: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """{stage: {metric: value}} as {"stage.metric": value}, sorted."""
    return {
        f"{stage}.{name}": float(value)
        for stage, found in sorted(stages.items())
        for name, value in sorted(found.items())
    }


def format_gate_table(gates: Sequence[Mapping[str, Any]]) -> str:
    """The gates as lines of text."""
    rows = []
    for line in gates:
        mark = "pass" if line["passed"] else "FAIL"
        bound = "" if line["threshold"] is None else f" against {line['threshold']:g}"
        note = f" ({line['note']})" if line["note"] else ""
        rows.append(f"  {mark}  {line['gate']}: {line['value']:g}{bound}{note}")
    return "\n".join(rows)


def check_metrics_exist(gates: Sequence[Gate], metrics: Mapping[str, float]) -> None:
    """Refuse gates on figures that no stage gave.

    Raises:
        UserError: with the nearest figure that there is.
    """
    for gate in gates:
        if gate.metric not in metrics:
            raise UserError(
                f"the gate {gate.text!r} needs the metric {gate.metric!r}, which no stage gave",
                remedy=did_you_mean(gate.metric, metrics),
            )


def require_passed(lines: list[dict[str, Any]], model: str, alias: str) -> None:
    """Stop if a gate did not pass.

    Raises:
        GateRefused: `.gates` holds the whole table.
    """
    failed = sum(not line["passed"] for line in lines)
    if failed:
        error = GateRefused(
            f"{failed} of {len(lines)} gates refused\n{format_gate_table(lines)}",
            where=f"{model}@{alias}",
            remedy="the alias stays where it was; improve the model or change the gate",
        )
        error.gates = lines  # type: ignore[attr-defined]
        raise error


def check_alias(alias: str) -> None:
    """Refuse what MLflow refuses, before anything happens.

    Raises:
        UserError: it is reserved or has characters that it may not have.
    """
    remedy = "use letters, digits, '_' and '-', beginning with a letter: champion, candidate"
    if alias.lower() == "latest" or re.fullmatch(r"[vV]\d+", alias):
        raise UserError(f"the alias {alias!r} is reserved", remedy=remedy)
    if not _ALIAS.fullmatch(alias):
        raise UserError(f"{alias!r} cannot be an alias", remedy=remedy)
