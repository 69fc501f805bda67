"""Training curves of several runs: a metric over cumulative tokens, FLOPs, seconds or steps.

The series of a training has one point per step: `loss`, `step_seconds`, and the cumulative `tokens`
and `flops`. Where `tokens` is missing, as in older runs, `tokens_per_second * step_seconds` is
accumulated. Seconds are those of training steps, without evaluation, checkpoints and pauses between
attempts.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from launch.report.curve_charts import Point, points_of, smoothed_value_at
from launch.report.run_page import stage_parameters
from launch.ui import formatting
from pipeline.context import read_series
from pipeline.errors import UserError, did_you_mean
from pipeline.execution.run import Run
from pipeline.status import StageStatus
from pipeline.storage.artifact import OBSERVED

AXES = ("tokens", "flops", "seconds", "step")
Series = list[dict[str, Any]]


@dataclass
class TrainingCurve:
    """Metric curve of one training."""

    run: Run
    stage: StageStatus
    metric: str
    series: Series
    name: str = ""
    """Short name that is unique among the compared curves."""
    other_runs: list[str] = field(default_factory=list)
    """Other runs with the same artifact."""

    @cached_property
    def points(self) -> list[Point]:
        """The metric by step."""
        return points_of(self.series, self.metric)

    @cached_property
    def prefix(self) -> str:
        """Prefix of the metric's keys where a stage trains several models."""
        keys = {key for point in self.series for key in point}
        named = {key.removesuffix("step_seconds") for key in keys if key.endswith("step_seconds")}
        return max((name for name in named if self.metric.startswith(name)), key=len, default="")

    def cumulative(self, axis: str) -> dict[float, float]:
        """Return the cumulative cost after each step; empty if the series does not record it."""
        if axis == "step":
            return {step: step for step, _ in self.points}
        if known := dict(self._points_of(axis)):
            return known
        seconds = self._points_of("step_seconds")
        if axis == "seconds":
            return _accumulate(seconds)
        if axis == "tokens":
            speeds = dict(self._points_of("tokens_per_second"))
            return _accumulate([(step, took * speeds.get(step, 0.0)) for step, took in seconds])
        return {}

    def _points_of(self, name: str) -> list[Point]:
        return points_of(self.series, self.prefix + name)

    def points_over(self, axis: str) -> list[Point]:
        """Return the metric over the cumulative cost, where both are known."""
        cumulative = self.cumulative(axis)
        return [(cumulative[step], value) for step, value in self.points if step in cumulative]

    def last_value(self, name: str) -> float | None:
        """Return the last value of a key of the series."""
        points = self._points_of(name)
        return points[-1][1] if points else None

    def summary(self) -> dict[str, float | None]:
        """Return final values and total costs; None where unknown."""
        cumulative = {axis: max(self.cumulative(axis).values(), default=None) for axis in AXES}
        tokens, seconds = cumulative["tokens"], cumulative["seconds"]
        return {
            "final": self.points[-1][1],
            "eval_loss": self.last_value("eval_loss"),
            "bits_per_byte": self.last_value("eval_bits_per_byte"),
            **{("steps" if axis == "step" else axis): value for axis, value in cumulative.items()},
            "tokens_per_second": tokens / seconds if tokens and seconds else None,
        }


def load_training_curves(
    targets: Sequence[tuple[Run, str]], metric: str
) -> list[list[TrainingCurve]]:
    """Load the curves of runs: of the named stage, or of each stage that counts tokens.

    Returns:
        Groups of comparable curves: one group if all stages are named; else one per kind of stage,
        because losses of different kinds are not comparable.

    Raises:
        UserError: no such stage or metric, or a run has no such training.
    """
    curves: dict[tuple[str, str], TrainingCurve] = {}
    for run, wanted in targets:
        loaded = list(_load_run(run, wanted, metric))
        if not loaded:
            raise UserError(
                f"no stage of run {run.id} has a series of {metric!r} and of tokens",
                remedy=f"name a stage: {run.id}:STAGE; `headwater status {run.id}` lists them",
            )
        for curve in loaded:
            first = curves.setdefault((curve.stage.uses, curve.stage.fingerprint), curve)
            if run.id not in (first.run.id, *first.other_runs):
                first.other_runs.append(run.id)
    named = all(wanted for _, wanted in targets)
    groups: dict[str, list[TrainingCurve]] = {}
    for curve in curves.values():
        groups.setdefault("" if named else curve.stage.uses, []).append(curve)
    for group in groups.values():
        _assign_names(group)
    return list(groups.values())


def _load_run(run: Run, wanted: str, metric: str) -> Iterator[TrainingCurve]:
    stages = {stage.name: stage for stage in run.status().stages}
    if wanted and wanted not in stages:
        remedy = did_you_mean(wanted, stages)
        raise UserError(f"run {run.id} has no stage {wanted!r}", remedy=remedy)
    for name in [wanted] if wanted else stages:
        curve = TrainingCurve(run, stages[name], metric, _read_series(run, stages[name]))
        if curve.points and (wanted or curve.cumulative("tokens")):
            yield curve
        elif wanted:
            keys = {key for point in curve.series for key in point} - {"step", "time"}
            message = f"no series of {metric!r}" if keys else "no series"
            if metric in keys:
                message = f"no value of {metric!r} is a finite number"
            where = f"{run.id}:{name}"
            raise UserError(message, where=where, remedy=did_you_mean(metric, keys))


def _read_series(run: Run, stage: StageStatus) -> Series:
    """Read the series of a stage from its artifact or from its working folder."""
    if not stage.fingerprint:
        return []
    artifact = run.store.latest_readable(stage.uses, stage.fingerprint) if stage.path else None
    folder = artifact.path if artifact else run.store.work(stage.uses, stage.fingerprint)
    return read_series(folder / OBSERVED / "metrics.jsonl")


def _accumulate(points: Iterable[Point]) -> dict[float, float]:
    """Return the sums up to each step; empty if all values are zero."""
    pairs = list(points)
    sums = itertools.accumulate(value for _, value in pairs)
    totals = {step: total for (step, _), total in zip(pairs, sums, strict=True)}
    return totals if any(totals.values()) else {}


def _assign_names(curves: Sequence[TrainingCurve]) -> None:
    """Set the shortest unique names: two words of the run, and the stage if there are several."""
    short = {curve.run.id: curve.run.id.split("-", 2)[-1] for curve in curves}
    unique = len(set(short.values())) == len(short)
    stages = {curve.stage.name for curve in curves}
    for curve in curves:
        run = short[curve.run.id] if unique else curve.run.id
        curve.name = run if len(stages) == 1 else f"{run}:{curve.stage.name}"


def differences(curves: Sequence[TrainingCurve]) -> dict[str, list[str | None]]:
    """Return the parameters and inputs that differ between curves of one kind of stage: the value
    for each curve, None where its pipeline file does not set it."""
    known = [_identity_of(curve) for curve in curves]
    kinds = [curve.stage.uses for curve in curves]
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


def _identity_of(curve: TrainingCurve) -> dict[str, str]:
    """Return the parameters and, per input, the first characters of the fingerprints."""
    payload = curve.run.payload(curve.stage.name)
    inputs = payload.get("inputs", {})
    own = stage_parameters(curve.run, curve.stage.name, payload.get("params", {}))
    values = {key: value for key, value in own.items() if key not in inputs}
    return values | {
        f"input {edge}": " ".join(fingerprint[:8] for fingerprint in fingerprints)
        for edge, fingerprints in inputs.items()
    }


def at_equal_cost(
    curves: Sequence[TrainingCurve], axis: str
) -> tuple[float, list[float | None]] | None:
    """Return the largest cost that all curves reach on an axis, and the value of each there (mean
    over the last twentieth); None if fewer than two curves have the axis."""
    lines = [curve.points_over(axis) for curve in curves]
    ends = [points[-1][0] for points in lines if points]
    if len(ends) < 2:
        return None
    at = min(ends)
    return at, [smoothed_value_at(points, at) for points in lines]


def summary_columns(curves: Sequence[TrainingCurve]) -> dict[str, list[str]]:
    """Return the summaries as table columns, title -> cell per curve, without empty columns."""
    columns = {
        "final": (curves[0].metric, formatting.number),
        "eval_loss": ("eval loss", formatting.number),
        "bits_per_byte": ("bits per byte", formatting.number),
        "tokens": ("tokens", formatting.number),
        "flops": ("FLOPs", formatting.scientific),
        "seconds": ("time", formatting.duration),
        "tokens_per_second": ("tokens/s", formatting.number),
    }
    summaries = [curve.summary() for curve in curves]
    return {
        title: [show(summary[key]) or formatting.DASH for summary in summaries]
        for key, (title, show) in columns.items()
        if any(summary[key] is not None for summary in summaries)
    }


def format_axis_value(axis: str, value: float) -> str:
    """Format a cost: `1.2 M tokens`, `3.1e18 FLOPs`, `600 steps` or a duration."""
    if axis == "seconds":
        return formatting.duration(value)
    if axis == "flops":
        return f"{formatting.scientific(value)} FLOPs"
    return f"{formatting.number(value)} {'steps' if axis == 'step' else axis}"
