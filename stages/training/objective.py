"""What a training stage supplies to the loop: an objective.

The loop (`stages.training.trainer.fit`) owns engines, schedule, checkpoints, guards and metrics; the
objective owns models, data and loss. Most objectives are a data set and a loss: they subclass
`SupervisedObjective`. Those with an inner loop of their own (PPO: rollouts, several updates) write
`step` themselves.

An objective is made in the stage's process and pickled to every rank, so its constructor takes
paths and parameters only; models and data are opened in `setup`. This module imports no torch,
so that a stage's module may subclass at its top and still be read by `headwater plan`.

    class Copy(SupervisedObjective):
        def open(self, rank):                       # once a rank: self.train, self.held_out
            ...
            return {"model": Trainable(model)}
        def collate(self, samples): ...             # -> {"tokens": …, "targets": …}
        def loss(self, model, batch): ...           # -> Loss(sum over tokens, …)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

    from stages.training.engine import Engine
    from stages.training.ranks.rank import Rank
    from stages.training.step_result import StepResult
    from stages.training.training_params import TrainSection

Metrics = Mapping[str, float]
"""Metrics by name, the same on every rank."""

Batch = Mapping[str, Any]
State = dict[str, Any]
"""Named extra state: str -> number, str, list, dict of such, or Tensor (any depth of dicts)."""


def matrices(name: str, parameter: Tensor) -> bool:
    """The usual rule of weight decay: matrices and embeddings decay, vectors do not."""
    return parameter.ndim >= 2


@dataclass
class Trainable:
    """A module to be trained by an engine of its own."""

    module: nn.Module
    lr: float = 1.0
    """Times the schedule's learning rate."""
    decay: Callable[[str, Tensor], bool] = matrices
    """Which parameters (name, tensor) are decayed."""
    rates: Mapping[str, float] = field(default_factory=dict)
    """Of parameters by name: what multiplies their learning rate, and divides their decay, so that
    a step takes the same off every decayed weight. 1 for those that are not named."""


class Samples(Protocol):
    """Sample i of the run for any i >= 0, the same for ever: epochs and their order are inside.

    `stages.training.data_order.Shuffled` makes one of any sequence.
    """

    def __getitem__(self, index: int) -> Any: ...


class Dataset(Protocol):
    """A function of the index below the length."""

    def __getitem__(self, index: int) -> Any: ...

    def __len__(self) -> int: ...


@dataclass
class Loss:
    """The loss of one micro-batch, as sums; the loop divides by the weight of the global batch."""

    total: Tensor
    """Scalar with a gradient: the sum over this batch's units (target tokens, comparisons…)."""
    sums: Mapping[str, Tensor] = field(default_factory=dict)
    """More sums over the same units (no gradient): reported as their mean over the global batch.
    They may be vectors."""
    shown: Tensor | None = None
    """The sum that is reported as the loss, where the total holds more (no gradient)."""


class Objective(Protocol):
    """Everything that the loop needs to know of a way of training."""

    flops_per_token: float
    """Of a forward and backward pass, for the MFU; 0 where nobody knows. Read after `setup`."""
    facts: Mapping[str, float]
    """Figures known after `setup` (samples, what was left out): part of what `fit` returns."""

    def setup(self, rank: Rank, settings: TrainSection, seed: int) -> dict[str, Trainable]:
        """Open data and build the modules, alike on every rank; on the CPU, in float32.

        The first is the main one, whose learning rate is reported. Frozen modules stay with the
        objective, which moves them to `rank.device` itself.
        """

    def step(self, engines: Mapping[str, Engine], step: int) -> StepResult:
        """One step of the loop, all of it: micro-batches, accumulation, PPO's rollouts.

        `step` says which data to use: it counts from 0, and leaps over data after a rollback.
        The learning rate is set, and torch's generators are seeded from (seed, step, rank), so
        that a step is a function of the weights and `step` alone. Call `engine.step()` for each
        update and return its outcome; it and `engine.backward()` tell the watchdog that all is well. What else takes
        long calls `rank.beat()` now and then.
        """

    def evaluate(self, engines: Mapping[str, Engine], step: int) -> Metrics:
        """Figures on held-out data, the same on every rank; may be empty. Names begin with
        `eval_`.

        Raises:
            Interrupted: the run is to stop (see `rank.stopping`): the loop saves and stops.
        """

    def state_dict(self) -> State:
        """State beyond weights and moments: controllers, averages, cursors. Alike on all ranks."""

    def load_state_dict(self, state: State) -> None:
        """Take up what `state_dict` gave."""

    def export(self, engines: Mapping[str, Engine], out: Path) -> None:
        """Write the model folder. Called on rank 0 alone, with whole weights in the modules: in
        float32, on the host."""


class SupervisedObjective(ABC):
    """A data set and a loss: token-weighted mean over the global batch, at any world size."""

    rank: Rank
    settings: TrainSection
    seed: int
    train: Samples
    held_out: Dataset | None = None
    flops_per_token: float = 0.0
    """Of a forward and backward pass; set it in `open` to have an MFU reported."""
    facts: Mapping[str, float] = {}
    """Figures known after `open`: part of what `fit` returns."""
    ragged: bool = False
    """Samples differ in `length`: those of a step are dealt so that micro-batches are alike."""

    @abstractmethod
    def open(self, rank: Rank) -> dict[str, Trainable]:
        """Set `self.train` and `self.held_out`, and build the one module to train."""

    @abstractmethod
    def collate(self, samples: Sequence[Any]) -> Batch:
        """Samples -> tensors on the CPU. `targets` with -100 where there is nothing to learn."""

    @abstractmethod
    def loss(self, model: Callable[..., Any], batch: Batch) -> Loss:
        """The summed loss of a batch (on the rank's device)."""

    @abstractmethod
    def export(self, engines: Mapping[str, Engine], out: Path) -> None:
        """Write the model folder. Called on rank 0 alone, with whole weights in the modules."""

    def weight(self, batch: Batch) -> float:
        """How many units the batch's loss sums over; by default its targets other than -100."""
        return float((batch["targets"] != -100).sum())

    def tokens(self, batch: Batch) -> float:
        """Positions that the batch computes, for the rate and the MFU."""
        return float(batch["targets"].numel())

    def length(self, sample: Any) -> int:
        """A sample's length; asked for if the objective is `ragged`."""
        return len(sample)

    def setup(self, rank: Rank, settings: TrainSection, seed: int) -> dict[str, Trainable]:
        """Open data and model, and fix the order of the samples."""
        self.rank, self.settings, self.seed = rank, settings, seed
        return self.open(rank)

    def step(self, engines: Mapping[str, Engine], step: int) -> StepResult:
        """Forward and backward over this rank's share, then one optimizer step."""
        from stages.training.supervised import train_step

        (engine,) = engines.values()
        return train_step(self, engine, step)

    def evaluate(self, engines: Mapping[str, Engine], step: int) -> Metrics:
        """`eval_loss` and the means of `Loss.sums` on the held-out samples."""
        from stages.training.supervised import evaluate

        (engine,) = engines.values()
        return evaluate(self, engine) if self.held_out else {}

    def state_dict(self) -> State:
        """Nothing: the data position is the step."""
        return {}

    def load_state_dict(self, state: State) -> None:
        """Nothing to take up.

        Raises:
            ValueError: the checkpoint holds state that this objective does not know.
        """
        if state:
            raise ValueError(f"{type(self).__name__} has no place for {sorted(state)}")


class LanguageObjective(SupervisedObjective):
    """A supervised objective whose loss is the cross-entropy of text, in nats a token."""

    def evaluate(self, engines: Mapping[str, Engine], step: int) -> Metrics:
        """What every objective measures, and `eval_perplexity`, e to the loss."""
        found = super().evaluate(engines, step)
        if "eval_loss" not in found:
            return found
        return {**found, "eval_perplexity": math.exp(min(found["eval_loss"], 700.0))}


__all__ = [
    "Batch",
    "Dataset",
    "LanguageObjective",
    "Loss",
    "Metrics",
    "Objective",
    "Samples",
    "State",
    "SupervisedObjective",
    "Trainable",
    "matrices",
]
