"""What the store holds of trainings, side by side: one line a training, over what it cost.

A training's series has a point a step: `loss`, `step_seconds`, and `tokens` and `flops` of all
steps up to it. Where `tokens` is missing, as in older runs, `tokens_per_second` times
`step_seconds` is added up. Seconds are those of steps: no evaluation, no checkpoint, and no pause
between two attempts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from launch.report.charts import Point, line_of
from launch.report.curve_charts import lately
from launch.report.run_page import parameters
from launch.ui import formatting
from pipeline.context import read_series
from pipeline.errors import UserError, did_you_mean
from pipeline.execution.run import Run
from pipeline.status import StageStatus
from pipeline.storage.artifact import OBSERVED

AXES = ("tokens", "flops", "seconds", "step")
Series = list[dict[str, Any]]


@dataclass
class Training:
    """One training of a run."""

    run: Run
    stage: StageStatus
    metric: str
    series: Series
    name: str = ""
    """What people know it by, among those that it is compared with."""
    same: list[str] = field(default_factory=list)
    """Other runs that use this very artifact."""

    @cached_property
    def line(self) -> list[Point]:
        """The metric by step."""
        return line_of(self.series, self.metric)

    @cached_property
    def prefix(self) -> str:
        """What its figures are called by where a stage trains several models."""
        keys = {key for point in self.series for key in point}
        named = {key.removesuffix("step_seconds") for key in keys if key.endswith("step_seconds")}
        return max((name for name in named if self.metric.startswith(name)), key=len, default="")

    def spent(self, axis: str) -> dict[float, float]:
        """What had been spent after each step; empty if the series does not say."""
        if axis == "step":
            return {step: step for step, _ in self.line}
        if known := dict(self._figure(axis)):
            return known
        seconds = self._figure("step_seconds")
        if axis == "seconds":
            return _added(seconds)
        if axis == "tokens":
            speeds = dict(self._figure("tokens_per_second"))
            return _added([(step, took * speeds.get(step, 0.0)) for step, took in seconds])
        return {}

    def _figure(self, name: str) -> list[Point]:
        return line_of(self.series, self.prefix + name)

    def over(self, axis: str) -> list[Point]:
        """The metric over what was spent, as far as both are known."""
        spent = self.spent(axis)
        return [(spent[step], value) for step, value in self.line if step in spent]

    def last(self, name: str) -> float | None:
        """The last value of a figure of the series."""
        found = self._figure(name)
        return found[-1][1] if found else None

    def summary(self) -> dict[str, float | None]:
        """What it came to; None where nobody knows."""
        spent = {axis: max(self.spent(axis).values(), default=None) for axis in AXES}
        tokens, seconds = spent["tokens"], spent["seconds"]
        return {
            "final": self.line[-1][1],
            "eval_loss": self.last("eval_loss"),
            "bits_per_byte": self.last("eval_bits_per_byte"),
            **{("steps" if axis == "step" else axis): value for axis, value in spent.items()},
            "tokens_per_second": tokens / seconds if tokens and seconds else None,
        }


def trainings(targets: Sequence[tuple[Run, str]], metric: str) -> list[list[Training]]:
    """The trainings of these runs: of the stage that is named, or of each that counts tokens.

    Returns:
        Those that are shown together: all, if their stages were named; else those of one kind of
        stage, for the loss of a reward model is no language model's.

    Raises:
        UserError: a stage is not there or has no such metric, or a run has no such training.
    """
    found: dict[tuple[str, str], Training] = {}
    for run, wanted in targets:
        mine = list(_of_run(run, wanted, metric))
        if not mine:
            raise UserError(
                f"no stage of run {run.id} has a series of {metric!r} and of tokens",
                remedy=f"name one, as {run.id}:STAGE; `headwater status {run.id}` shows them",
            )
        for one in mine:
            first = found.setdefault((one.stage.uses, one.stage.fingerprint), one)
            if run.id not in (first.run.id, *first.same):
                first.same.append(run.id)
    named = all(wanted for _, wanted in targets)
    groups: dict[str, list[Training]] = {}
    for one in found.values():
        groups.setdefault("" if named else one.stage.uses, []).append(one)
    for group in groups.values():
        _name(group)
    return list(groups.values())


def _of_run(run: Run, wanted: str, metric: str) -> Iterator[Training]:
    stages = {stage.name: stage for stage in run.status().stages}
    if wanted and wanted not in stages:
        remedy = did_you_mean(wanted, stages)
        raise UserError(f"run {run.id} has no stage {wanted!r}", remedy=remedy)
    for name in [wanted] if wanted else stages:
        one = Training(run, stages[name], metric, _series(run, stages[name]))
        if one.line and (wanted or one.spent("tokens")):
            yield one
        elif wanted:
            keys = {key for point in one.series for key in point} - {"step", "time"}
            what = f"has no series of {metric!r}" if keys else "has no series"
            where = f"{run.id}:{name}"
            raise UserError(f"it {what}", where=where, remedy=did_you_mean(metric, keys))


def _series(run: Run, stage: StageStatus) -> Series:
    """What the stage reported, wherever it lies by now."""
    if not stage.fingerprint:
        return []
    found = run.store.latest_readable(stage.uses, stage.fingerprint) if stage.path else None
    place = found.path if found else run.store.work(stage.uses, stage.fingerprint)
    return read_series(place / OBSERVED / "metrics.jsonl")


def _added(line: Iterable[Point]) -> dict[float, float]:
    """Sums up to each step; empty if nothing adds up."""
    pairs = list(line)
    sums = itertools.accumulate(value for _, value in pairs)
    made = {step: total for (step, _), total in zip(pairs, sums, strict=True)}
    return made if any(made.values()) else {}


def _name(found: Sequence[Training]) -> None:
    """As short as tells them apart: a run's two words, and the stage if there are several."""
    short = {one.run.id: one.run.id.split("-", 2)[-1] for one in found}
    clear = len(set(short.values())) == len(short)
    stages = {one.stage.name for one in found}
    for one in found:
        run = short[one.run.id] if clear else one.run.id
        one.name = run if len(stages) == 1 else f"{run}:{one.stage.name}"


def differences(found: Sequence[Training]) -> dict[str, list[str | None]]:
    """The parameters and inputs in which trainings of one kind differ: the value of each training,
    None where its file does not say."""
    known = [_identity(one) for one in found]
    kinds = [one.stage.uses for one in found]
    if len(set(kinds)) == len(kinds):
        kinds = [""] * len(kinds)
    table = {
        key: [values.get(key) for values in known]
        for key in dict.fromkeys(key for values in known for key in values)
    }
    return {
        key: values
        for key, values in table.items()
        if len(set(zip(kinds, values, strict=True))) > len(set(kinds))
    }


def _identity(one: Training) -> dict[str, str]:
    """Parameters, and what each edge is fed with, by the beginning of its fingerprint."""
    payload = one.run.payload(one.stage.name)
    made_of = payload.get("inputs", {})
    own = parameters(one.run, one.stage.name, payload.get("params", {}))
    values = {key: value for key, value in own.items() if key not in made_of}
    return values | {
        f"input {edge}": " ".join(print_[:8] for print_ in prints)
        for edge, prints in made_of.items()
    }


def meeting(found: Sequence[Training], axis: str) -> tuple[float, list[float | None]] | None:
    """As far along an axis as all of those come that have it, and their values there (means of
    the last twentieth of the way); None if less than two have it."""
    lines = [one.over(axis) for one in found]
    ends = [line[-1][0] for line in lines if line]
    if len(ends) < 2:
        return None
    at = min(ends)
    return at, [lately(line, at) for line in lines]


def figures(found: Sequence[Training]) -> dict[str, list[str]]:
    """What trainings came to as people read it: title -> a cell a training; none that is empty."""
    titles = [found[0].metric, "eval loss", "bits a byte", "tokens", "FLOPs", "time", "tokens/s"]
    columns = zip(*[_cells(one.summary()) for one in found], strict=True)
    return {title: list(cells) for title, cells in zip(titles, columns, strict=True) if any(cells)}


def _cells(summary: Mapping[str, float | None]) -> list[str]:
    return [
        *(formatting.number(summary[key]) for key in ("final", "eval_loss", "bits_per_byte")),
        formatting.number(summary["tokens"]),
        formatting.scientific(summary["flops"]),
        formatting.duration(summary["seconds"]),
        formatting.number(summary["tokens_per_second"]),
    ]


def spell(axis: str, value: float) -> str:
    """So many tokens, FLOPs or steps, or so long."""
    if axis == "seconds":
        return formatting.duration(value)
    if axis == "flops":
        return f"{formatting.scientific(value)} FLOPs"
    return f"{formatting.number(value)} {'steps' if axis == 'step' else axis}"
