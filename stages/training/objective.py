"""Interface between the trainer and an objective, which defines what is trained.

The trainer (`stages.training.trainer.fit`) owns engines, schedule, checkpoints, guards and metrics;
the objective owns models, data and loss. Most objectives are a data set and a loss: they subclass
`stages.training.supervised.SupervisedObjective`. Those with an inner loop of their own (PPO:
rollouts, several updates) implement `step` themselves.

An objective is made in the process of the stage and pickled to every rank, so its constructor takes
paths and parameters only; `setup` opens models and data. No torch is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from stages.training.trainable import Trainable as Trainable

if TYPE_CHECKING:
    from torch import Tensor

    from stages.training.engine import Engine
    from stages.training.ranks.rank import Rank
    from stages.training.step_result import StepResult
    from stages.training.training_params import TrainSection

Metrics = Mapping[str, float]
"""Metrics by name, the same on every rank."""

Batch = Mapping[str, Any]
State = dict[str, Any]
"""Named extra state: str -> number, str, list, dict of such, or Tensor (any depth of dicts)."""
Coefficient = float | Callable[[int], float]
"""Coefficient of a named loss: constant, or a function of the step."""


class Samples(Protocol):
    """Endless samples: sample i of the run for any i >= 0, with epochs and their order inside.

    `stages.training.data_order.Shuffled` builds one from any sequence.
    """

    def __getitem__(self, index: int) -> Any: ...


class Dataset(Protocol):
    """A finite sequence of samples."""

    def __getitem__(self, index: int) -> Any: ...

    def __len__(self) -> int: ...


@dataclass
class MetricSum:
    """A metric of one micro-batch that is averaged over the global batch: sum / units."""

    total: Tensor
    """Sum over the units of this micro-batch, a scalar or a vector, without a gradient."""
    units: Tensor | None = None
    """Number of units of this micro-batch. Default: the units of the loss that reports it."""
    reduce: Callable[[list[float]], float] | None = None
    """Reduction of the mean vector to one number. Default: the vector itself is reported."""


@dataclass
class Loss:
    """A loss of one micro-batch as a sum over units; the trainer divides by the units of the global
    batch."""

    total: Tensor
    """Scalar with a gradient: the sum over the units of this micro-batch (target tokens, pairs)."""
    metrics: Mapping[str, Tensor | MetricSum] = field(default_factory=dict)
    """Metrics that are reported next to the loss, without a gradient."""
    reported: Tensor | None = None
    """Sum that is reported as the loss if `total` holds more, without a gradient. Default:
    `total`."""


Losses = Loss | Mapping[str, Loss]
"""One loss, or named losses with units of their own."""


class Objective(Protocol):
    """A training task: models, data, and the step that updates the models."""

    flops_per_token: float
    """FLOPs per token of a forward and backward pass, for the MFU; 0 if unknown. Read after
    `setup`."""
    setup_metrics: Mapping[str, float]
    """Metrics that are known after `setup` (samples, dropped documents). `fit` returns them."""

    def setup(self, rank: Rank, settings: TrainSection, seed: int) -> dict[str, Trainable]:
        """Open data and build the modules, identical on every rank, on the CPU and in float32.

        The first module is the main one, whose learning rate is reported. Frozen modules stay with
        the objective, which moves them to `rank.device` itself.
        """

    def step(self, engines: Mapping[str, Engine], step: int) -> StepResult:
        """Run one step of the trainer: micro-batches, accumulation, the rollouts of PPO.

        `step` selects the data: it counts from 0 and skips data after a rollback. The learning rate
        is set, and the generators of torch are seeded from (seed, step, rank), so that a step is a
        function of the weights and `step` alone. Call `engine.step()` for each update and return
        its outcome. `engine.backward()` and `engine.step()` send heartbeats to the watchdog; call
        `rank.heartbeat()` during other long work.
        """

    def evaluate(self, engines: Mapping[str, Engine], step: int) -> Metrics:
        """Return metrics on held-out data, the same on every rank, possibly none. Names begin with
        `eval_`.

        Raises:
            Interrupted: the run is to stop (`rank.stop_requested`): the trainer saves and stops.
        """

    def state_dict(self) -> State:
        """Return state other than weights and moments (controllers, averages), the same on every
        rank."""

    def load_state_dict(self, state: State) -> None:
        """Restore the state that `state_dict` returned."""

    def export(self, engines: Mapping[str, Engine], out: Path) -> None:
        """Write the model folder. Called on rank 0 only, with whole float32 weights of the modules
        in host memory."""
