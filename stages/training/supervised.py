"""One step, and one evaluation, of a data set and a loss.

The loss of a step is sum over the global batch of unit losses / sum of units, whatever the ranks,
micro-batches and padding: the number of units is added up over the ranks before the first
backward pass, and every gradient is divided by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.errors import InputError, Interrupted
from stages.training.data_order import micro_batches
from stages.training.step_result import StepResult

if TYPE_CHECKING:
    from stages.training.engine import Engine
    from stages.training.objective import Batch, Loss, SupervisedObjective
    from stages.training.ranks.rank import Rank


def train_step(objective: SupervisedObjective, engine: Engine, step: int) -> StepResult:
    """Forward and backward over this rank's micro-batches, then one update.

    Raises:
        InputError: nothing in the whole global batch is to be learned.
    """
    rank = objective.rank
    batches = [objective.collate(samples) for samples in micro_batches(objective, step)]
    units = rank.total([sum(map(objective.weight, batches)), sum(map(objective.tokens, batches))])
    sums = Sums(rank)
    for last, batch in _marked(batches):
        loss = objective.loss(engine, on(batch, rank.device))
        engine.backward(loss.total / units[0], last=last)
        sums.add({"loss": _shown(loss), **loss.sums})
    weight, tokens = units.tolist()
    if not weight:
        raise InputError(f"step {step} holds nothing to learn: every target is masked")
    means = sums.means(weight)
    return StepResult(means, [engine.step(means["loss"])], tokens)


def evaluate(objective: SupervisedObjective, engine: Engine) -> dict[str, float]:
    """Means over the first held-out samples, each read by one rank: `eval_loss`, `eval_…`.

    Raises:
        Interrupted: the run is to stop.
    """
    rank, sums, weight = objective.rank, Sums(objective.rank), 0.0
    engine.eval()
    with torch.no_grad():
        for batch, real in _held_out(objective):
            loss = objective.loss(engine, on(batch, rank.device))
            sums.add({"loss": _shown(loss) * real, **{k: v * real for k, v in loss.sums.items()}})
            weight += objective.weight(batch) * real
            rank.beat()
            if rank.stopping():
                raise Interrupted("stopped while evaluating", where=rank.stage)
    engine.train()
    means = sums.means(rank.sum(weight))
    return {f"eval_{name}": value for name, value in means.items()}


def _held_out(objective: SupervisedObjective) -> Iterator[tuple[Batch, int]]:
    """This rank's evaluation batches. All ranks get equally many, for sharded weights are gathered
    by all together; a rank that runs out gets one again, which counts 0."""
    data, rank = objective.held_out, objective.rank
    assert data is not None
    count = min(len(data), objective.settings.eval_samples or len(data))
    micro = objective.settings.rank_micro_batch_size(rank.world)
    for start in range(0, count, micro * rank.world):
        mine = range(start + rank.index, min(count, start + micro * rank.world), rank.world)
        yield objective.collate([data[i] for i in mine] or [data[0]]), int(bool(mine))


class Sums:
    """Adds up figures over micro-batches on the device, and over ranks once."""

    def __init__(self, rank: Rank) -> None:
        self._rank = rank
        self._sums: dict[str, Tensor] = {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add one micro-batch's sums."""
        for name, value in values.items():
            value = value.detach().double()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def means(self, weight: float) -> dict[str, Any]:
        """Over all ranks, divided by `weight`: a number each, or a list of a vector's."""
        flat = torch.cat([value.reshape(-1) for value in self._sums.values()])
        totals = self._rank.total(flat)
        means = totals / weight if weight else torch.full_like(totals, math.nan)
        parts = torch.split(means, [value.numel() for value in self._sums.values()])
        found = zip(self._sums.items(), parts, strict=True)
        return {name: part.view(value.shape).tolist() for (name, value), part in found}


def on(batch: Batch, device: torch.device) -> dict[str, Any]:
    """The batch with its tensors on the device."""
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _shown(loss: Loss) -> Tensor:
    return loss.total if loss.shown is None else loss.shown


def _marked(batches: list[Batch]) -> Iterator[tuple[bool, Batch]]:
    for i, batch in enumerate(batches):
        yield i == len(batches) - 1, batch
