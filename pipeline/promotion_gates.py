"""The syntax of promotion gates: conditions on metrics that a model must meet to be promoted.

evaluate.perplexity<20            a metric of a stage against a number
reward.accuracy>=champion+0.01    against the same metric of the model that has the alias now

`promote` evaluates them (`launch.tracking.gate_evaluation`).
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from pipeline.errors import UserError

_GATE = re.compile(
    r"\s*(?P<metric>[^\s<>=!]+)\s*(?P<compare><=|>=|==|<|>)\s*"
    r"(?:(?P<champion>champion)\s*(?P<margin>[+-]\s*[^\s+-]\S*)?|(?P<number>\S+))\s*"
)
_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")


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
