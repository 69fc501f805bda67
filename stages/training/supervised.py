"""Objectives that are a data set and a loss: one step, and one evaluation.

A loss of a step is the sum over the global batch / the number of its units, whatever the ranks,
micro-batches and padding: the units are summed over all ranks before the first backward pass, and
every gradient is divided by them. Named losses have units of their own:

    gradient = sum over names of coefficient(step) * gradient of total / units

This module imports no torch at its top, so that one file can hold an objective and its parameters:

    class Copy(SupervisedObjective):
        def open(self, rank):                       # once per rank: train_samples, eval_dataset
            ...
            return {"model": Trainable(model)}
        def collate(self, samples): ...             # -> {"tokens": ..., "targets": ...}
        def loss(self, model, batch): ...           # -> Loss(sum over tokens), or {name: Loss}
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError, Interrupted
from stages.training.objective import (
    Batch,
    Coefficient,
    Dataset,
    Loss,
    Losses,
    Metrics,
    MetricSum,
    Samples,
    State,
    Trainable,
)
from stages.training.step_result import StepResult

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from stages.training.engine import Engine
    from stages.training.ranks.rank import Rank
    from stages.training.training_params import TrainSection

UNNAMED = ""
"""Name of the loss of an objective that has only one."""


class SupervisedObjective(ABC):
    """A data set and a loss, or several named losses, at any number of ranks."""

    rank: Rank
    settings: TrainSection
    seed: int
    train_samples: Samples
    eval_dataset: Dataset | None = None
    flops_per_token: float = 0.0
    """FLOPs per token of a forward and backward pass; set in `open` to have the MFU reported."""
    setup_metrics: Mapping[str, float] = {}
    """Metrics that are known after `open`; `fit` returns them."""
    length_grouped: bool = False
    """True if samples differ in `length`: those of a step are grouped by length, so that
    micro-batches need little padding."""
    coefficients: Mapping[str, Coefficient] = {}
    """Coefficients of named losses. Functions of the step are set in `open`, because an objective
    is pickled. Default: 1 for each."""

    @abstractmethod
    def open(self, rank: Rank) -> dict[str, Trainable]:
        """Set `train_samples` and `eval_dataset`, and build the one module to train."""

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> Batch:
        """Convert samples to tensors on the CPU. `targets` hold -100 where nothing is predicted."""

    @abstractmethod
    def loss(self, model: Callable[..., Any], batch: Batch) -> Losses:
        """Return the summed loss, or losses by name, of a batch on the device of the rank."""

    @abstractmethod
    def export(self, engines: Mapping[str, Engine], out: Path) -> None:
        """Write the model folder. Called on rank 0 only, with whole weights in the modules."""

    def units(self, batch: Batch) -> float | Mapping[str, float]:
        """Return the number of units that the loss of a batch sums over, by name if losses are
        named. Default: the number of targets other than -100."""
        return num_targets(batch)

    def further_batches(self, step: int) -> Sequence[Batch]:
        """Return micro-batches of other data in a step, equally many on every rank. Default:
        none."""
        return []

    def num_tokens(self, batch: Batch) -> float:
        """Return the number of positions that the batch computes, for throughput and MFU."""
        return float(batch["targets"].numel())

    def length(self, sample: Any) -> int:
        """Return the length of a sample, by which `length_grouped` groups."""
        return len(sample)

    def setup(self, rank: Rank, settings: TrainSection, seed: int) -> dict[str, Trainable]:
        """Open data and model, and fix the order of the samples."""
        self.rank, self.settings, self.seed = rank, settings, seed
        return self.open(rank)

    def step(self, engines: Mapping[str, Engine], step: int) -> StepResult:
        """Run forward and backward passes over the micro-batches of this rank, then one update.

        Raises:
            InputError: the global batch holds no units.
        """
        from stages.training.data_order import micro_batches

        (engine,) = engines.values()
        rank, length = self.rank, self.length if self.length_grouped else None
        parts = micro_batches(self.train_samples, self.settings, rank, step, length=length)
        batches = [self.collate(samples) for samples in parts]
        batches += self.further_batches(step)
        local = [by_name(self.units(batch)) for batch in batches]
        names = list(local[0])
        counts = [sum(units[name] for units in local) for name in names]
        summed = rank.all_reduce_sum([*counts, sum(map(self.num_tokens, batches))])
        units = dict(zip(names, summed[:-1], strict=True))
        coefficients = self._coefficients(names, step)
        accumulator = MetricAccumulator(rank)
        for number, batch in enumerate(batches, start=1):
            losses = by_name(self.loss(engine, to_device(batch, rank.device)))
            engine.backward(_weighted_sum(losses, units, coefficients), last=number == len(batches))
            accumulator.add(losses)
        *counts, tokens = summed.tolist()
        if not any(counts):
            raise InputError(f"step {step} has no targets to train on: every target is masked")
        metrics = accumulator.means(dict(zip(names, counts, strict=True)), coefficients)
        return StepResult(metrics, [engine.step(metrics["loss"])], tokens)

    def evaluate(self, engines: Mapping[str, Engine], step: int) -> Metrics:
        """Return `eval_loss` and the metrics of the losses, means over the held-out samples.

        Raises:
            Interrupted: the run is to stop.
        """
        import torch

        if not self.eval_dataset:
            return {}
        (engine,) = engines.values()
        rank, accumulator = self.rank, MetricAccumulator(self.rank)
        units: dict[str, float] = {}
        engine.eval()
        with torch.no_grad():
            for batch, weight in self._eval_batches(self.eval_dataset):
                accumulator.add(by_name(self.loss(engine, to_device(batch, rank.device))), weight)
                for name, count in by_name(self.units(batch)).items():
                    units[name] = units.get(name, 0.0) + count * weight
                rank.heartbeat()
                if rank.stop_requested():
                    raise Interrupted("stopped while evaluating", where=rank.stage)
        engine.train()
        counts = dict(zip(units, rank.all_reduce_sum(units.values()).tolist(), strict=True))
        means = accumulator.means(counts, self._coefficients(list(units), step))
        return {f"eval_{name}": value for name, value in means.items()}

    def _eval_batches(self, data: Dataset) -> Iterator[tuple[Batch, int]]:
        """Yield the evaluation batches of this rank with their weights. All ranks get equally many,
        because sharded weights are gathered collectively: a rank that runs out repeats a sample
        with weight 0."""
        rank = self.rank
        count = min(len(data), self.settings.eval_samples or len(data))
        micro = self.settings.rank_micro_batch_size(rank.world)
        for start in range(0, count, micro * rank.world):
            mine = range(start + rank.index, min(count, start + micro * rank.world), rank.world)
            yield self.collate([data[i] for i in mine] or [data[0]]), int(bool(mine))

    def _coefficients(self, names: Sequence[str], step: int) -> dict[str, float]:
        if unknown := sorted(self.coefficients.keys() - names):
            raise ValueError(f"coefficients of losses that do not exist: {', '.join(unknown)}")
        found = {name: self.coefficients.get(name, 1.0) for name in names}
        return {name: float(c(step)) if callable(c) else float(c) for name, c in found.items()}

    def state_dict(self) -> State:
        """Return no state: the position in the data is the step."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Accept an empty state.

        Raises:
            ValueError: the checkpoint holds state.
        """
        if state:
            raise ValueError(f"{type(self).__name__} has no state named {', '.join(sorted(state))}")


class LanguageObjective(SupervisedObjective):
    """A supervised objective whose loss is the cross-entropy of text, in nats per token."""

    def evaluate(self, engines: Mapping[str, Engine], step: int) -> Metrics:
        """Return the metrics of the base class, and `eval_perplexity`, the exponential of the
        loss."""
        found = super().evaluate(engines, step)
        if "eval_loss" not in found:
            return found
        return {**found, "eval_perplexity": math.exp(min(found["eval_loss"], 700.0))}


class MetricAccumulator:
    """Sums of metrics over micro-batches on the device in float64, reduced over ranks once."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._sums: dict[tuple[str, str], Tensor] = {}
        self._reductions: dict[tuple[str, str], Callable[[list[float]], float]] = {}

    def add(self, losses: Mapping[str, Loss], weight: int = 1) -> None:
        """Add the losses and the metrics of one micro-batch."""
        for name, loss in losses.items():
            reported = loss.total if loss.reported is None else loss.reported
            self._add((name, "loss"), reported * weight)
            for metric, value in loss.metrics.items():
                if not isinstance(value, MetricSum):
                    value = MetricSum(value)
                self._add((name, metric), value.total * weight)
                if value.units is not None:
                    self._add((name, f"{metric}/units"), value.units * weight)
                if value.reduce is not None:
                    self._reductions[name, metric] = value.reduce

    def means(
        self, units: Mapping[str, float], coefficients: Mapping[str, float]
    ) -> dict[str, Any]:
        """Return the means over all ranks: `loss`, the sum of the weighted losses; `loss_<name>` of
        each named loss; and the metrics of each, a number or a list. What has no units is left
        out."""
        import torch

        flat = torch.cat([value.reshape(-1) for value in self._sums.values()])
        parts = torch.split(
            self._rank.all_reduce_sum(flat), [v.numel() for v in self._sums.values()]
        )
        sums = {
            key: part.view(value.shape)
            for (key, value), part in zip(self._sums.items(), parts, strict=True)
        }
        means: dict[str, Any] = {"loss": 0.0 if any(units.values()) else math.nan}
        for (name, metric), total in sums.items():
            own = sums.get((name, f"{metric}/units"))
            count = units[name] if own is None else float(own)
            if metric.endswith("/units") or not count:
                continue
            mean: Any = (total / count).tolist()
            reduce = self._reductions.get((name, metric))
            if metric != "loss":
                means[metric] = reduce(mean) if reduce else mean
            elif name == UNNAMED:
                means["loss"] = mean
            else:
                means[f"loss_{name}"] = mean
                means["loss"] += coefficients[name] * mean
        return means

    def _add(self, key: tuple[str, str], value: Tensor) -> None:
        value = value.detach().double()
        self._sums[key] = self._sums[key] + value if key in self._sums else value


def num_targets(batch: Batch) -> float:
    """Return the number of targets other than -100."""
    return float((batch["targets"] != -100).sum())


def by_name(value: Any) -> dict[str, Any]:
    """Return losses or units by name; a single one is unnamed."""
    return dict(value) if isinstance(value, Mapping) else {UNNAMED: value}


def to_device(batch: Batch, device: torch.device) -> dict[str, Any]:
    """Return the batch with its tensors on the device."""
    import torch

    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def _weighted_sum(
    losses: Mapping[str, Loss], units: Mapping[str, Tensor], coefficients: Mapping[str, float]
) -> Tensor:
    """Return the part of the loss of the step that a micro-batch has.

    Raises:
        ValueError: the names of the losses are not those of the units.
    """
    if losses.keys() != units.keys():
        raise ValueError(f"losses {sorted(losses)} with units {sorted(units)}")
    parts = []
    for name, loss in losses.items():
        part = loss.total / units[name].where(units[name] != 0, 1)
        parts.append(part if name == UNNAMED else coefficients[name] * part)
    total: Tensor = sum(parts[1:], parts[0])
    return total
