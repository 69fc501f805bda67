"""Named losses: each is divided by its own units of the global batch, at any number of ranks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pipeline.errors import InputError
from stages.training.objective import Batch, Loss, MetricSum, Trainable
from stages.training.ranks.rank import Rank
from stages.training.step_result import EngineStep, StepResult
from stages.training.supervised import SupervisedObjective
from stages.training.training_params import TrainSection

SAMPLES = 12


class Tensors:
    """Sample i: features, and how often each of two losses counts it (also not at all)."""

    def __getitem__(self, index: int) -> tuple[Tensor, int, int]:
        generator = torch.Generator().manual_seed(index)
        return torch.randn(3, generator=generator), index % 4, int(index % 3 == 0)


class TwoLosses(SupervisedObjective):
    """The square of a linear output, and its distance from 1, with units of their own."""

    def open(self, rank: Rank) -> dict[str, Trainable]:
        self.train_samples = Tensors()
        self.coefficients = {"distance": lambda step: 0.5 * (step + 1)}
        torch.manual_seed(0)
        return {"model": Trainable(nn.Linear(3, 1))}

    def collate(self, samples: Sequence[Any]) -> Batch:
        features, first, second = zip(*samples, strict=True)
        return {
            "x": torch.stack(features),
            "first": torch.tensor(first),
            "second": torch.tensor(second),
        }

    def units(self, batch: Batch) -> Mapping[str, float]:
        return {"square": float(batch["first"].sum()), "distance": float(batch["second"].sum())}

    def num_tokens(self, batch: Batch) -> float:
        return float(len(batch["x"]))

    def loss(self, model: Callable[..., Any], batch: Batch) -> Mapping[str, Loss]:
        y = model(batch["x"]).squeeze(-1)
        square = (y.square() * batch["first"]).sum()
        counts = MetricSum(torch.stack([batch["first"].sum(), batch["second"].sum()]), reduce=max)
        sizes = MetricSum(batch["x"].abs().sum(), units=torch.tensor(float(len(y))))
        return {
            "square": Loss(square, {"largest": counts, "size": sizes}),
            "distance": Loss(((y - 1).abs() * batch["second"]).sum()),
        }

    def export(self, engines: Any, out: Any) -> None:
        raise NotImplementedError


class MeanOfRanks(TwoLosses):
    """A wrong implementation: each rank divides by its own units."""

    def setup(self, rank: Rank, settings: TrainSection, seed: int) -> dict[str, Trainable]:
        found = super().setup(rank, settings, seed)
        self.rank = Alone(rank.index, rank.world)
        return found


class Alone(Rank):
    """A rank whose sums over ranks are `world` times its own."""

    def all_reduce_sum(self, values: Any) -> Tensor:
        return torch.as_tensor(list(values), dtype=torch.float64) * self.world


class Recorder:
    """An engine of which only the gradient is of interest."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.loss, self.passes = module, None, 0

    def __call__(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        loss.backward()
        self.passes += 1

    def step(self, loss: float | None = None) -> EngineStep:
        self.loss = loss
        return EngineStep("model", 1.0)

    def train(self) -> None:
        self.module.train()

    eval = train


class Paired(Rank):
    """One of several ranks in threads of this process."""

    def join_others(self, barrier: threading.Barrier, box: dict[int, Tensor]) -> None:
        self._barrier, self._box = barrier, box

    def all_reduce_sum(self, values: Any) -> Tensor:
        own = values if isinstance(values, Tensor) else torch.tensor(list(values))
        self._box[self.index] = own.double()
        self._barrier.wait()
        summed = torch.stack(list(self._box.values())).sum(0)
        self._barrier.wait()
        return summed


def stepped(
    kind: type[SupervisedObjective], world: int, step: int, micro: int | None = None
) -> tuple[list[StepResult], list[Tensor]]:
    """One step on `world` ranks: their results, and the gradient summed over ranks."""
    settings = TrainSection(global_batch_size=SAMPLES, micro_batch_size=micro)
    barrier, box = threading.Barrier(world), dict[int, Tensor]()
    results: dict[int, StepResult] = {}
    engines: dict[int, Recorder] = {}
    errors: list[Exception] = []
    for index in range(world):
        rank, objective = Paired(index, world), kind()
        rank.join_others(barrier, box)
        engines[index] = Recorder(objective.setup(rank, settings, 0)["model"].module)

        def run(objective: Any = objective, index: int = index) -> None:
            try:
                results[index] = objective.step({"model": engines[index]}, step)
            except Exception as error:
                errors.append(error)
                barrier.abort()

        threading.Thread(target=run, name=str(index)).start()
    for thread in threading.enumerate():
        if thread.name.isdigit():
            thread.join()
    if errors:
        raise errors[0]
    gradients = [
        sum(p.grad for p in parameters)  # type: ignore[misc]
        for parameters in zip(*(e.module.parameters() for e in engines.values()), strict=True)
    ]
    return [results[index] for index in range(world)], gradients


def by_hand(step: int) -> tuple[dict[str, float], list[Tensor]]:
    """The losses of the whole batch, and the gradient of their weighted sum, in one expression."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    x, first, second = zip(*[Tensors()[step * SAMPLES + i] for i in range(SAMPLES)], strict=True)
    y = model(torch.stack(x)).squeeze(-1)
    square = (y.square() * torch.tensor(first)).sum() / sum(first)
    distance = ((y - 1).abs() * torch.tensor(second)).sum() / sum(second)
    loss = square + 0.5 * (step + 1) * distance
    loss.backward()
    losses = {"loss": loss.item(), "loss_square": square.item(), "loss_distance": distance.item()}
    return losses, [p.grad for p in model.parameters()]  # type: ignore[misc]


@pytest.mark.parametrize(("world", "micro"), [(1, None), (1, 3), (2, None), (2, 2), (2, 1), (3, 2)])
@pytest.mark.parametrize("step", [0, 3])
def test_each_loss_is_divided_by_its_own_units(world: int, micro: int | None, step: int) -> None:
    """Micro-batches and ranks have unequal units; the coefficient grows with the step."""
    results, gradients = stepped(TwoLosses, world, step, micro)
    losses, expected = by_hand(step)
    for found, wanted in zip(gradients, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    for result in results:
        assert {name: result.metrics[name] for name in losses} == pytest.approx(losses, rel=1e-5)
        assert result.tokens == SAMPLES


def test_units_of_one_rank_alone_give_another_gradient() -> None:
    _, gradients = stepped(MeanOfRanks, 2, 0, 2)
    _, expected = by_hand(0)
    differences = [(a - b).abs().max() for a, b in zip(gradients, expected, strict=True)]
    assert max(differences) > 1e-2


def test_metrics_have_units_and_a_reduction_of_their_own() -> None:
    results, _ = stepped(TwoLosses, 2, 0, 3)
    x, first, second = zip(*[Tensors()[i] for i in range(SAMPLES)], strict=True)
    metrics = results[0].metrics
    assert metrics["size"] == pytest.approx(float(torch.stack(x).abs().sum()) / SAMPLES)
    assert metrics["largest"] == pytest.approx(max(sum(first), sum(second)) / sum(first))
    assert results[0].updates[0].engine == "model"


class Rare(TwoLosses):
    """One of the losses has no units in this batch."""

    def collate(self, samples: Sequence[Any]) -> Batch:
        return {**super().collate(samples), "second": torch.zeros(len(samples), dtype=torch.long)}


class Empty(Rare):
    """No loss has units."""

    def collate(self, samples: Sequence[Any]) -> Batch:
        batch = super().collate(samples)
        return {**batch, "first": batch["second"]}


def test_a_loss_without_units_adds_nothing_and_is_not_reported() -> None:
    results, gradients = stepped(Rare, 2, 0)
    assert "loss_distance" not in results[0].metrics
    assert results[0].metrics["loss"] == results[0].metrics["loss_square"]
    assert all(bool(torch.isfinite(g).all()) and bool(g.any()) for g in gradients)
    with pytest.raises(InputError, match="step 0 has no targets to train on"):
        stepped(Empty, 2, 0)


class Misnamed(TwoLosses):
    """Its units have other names than its losses."""

    def open(self, rank: Rank) -> dict[str, Trainable]:
        found = super().open(rank)
        self.coefficients = {}
        return found

    def units(self, batch: Batch) -> Mapping[str, float]:
        return {"square": 1.0}


def test_names_of_losses_and_units_must_agree() -> None:
    with pytest.raises(
        ValueError, match=r"losses \['distance', 'square'\] with units \['square'\]"
    ):
        stepped(Misnamed, 1, 0)


class Mistyped(TwoLosses):
    """A coefficient of no loss."""

    def open(self, rank: Rank) -> dict[str, Trainable]:
        found = super().open(rank)
        self.coefficients = {"distanse": 2.0}
        return found


def test_a_coefficient_of_no_loss_is_an_error() -> None:
    with pytest.raises(ValueError, match="coefficients of losses that do not exist: distanse"):
        stepped(Mistyped, 1, 0)


class Tested(TwoLosses):
    """With held-out samples."""

    def open(self, rank: Rank) -> dict[str, Trainable]:
        self.eval_dataset = [Tensors()[i] for i in range(SAMPLES)]
        return super().open(rank)


def test_held_out_losses_are_named_too() -> None:
    objective, rank = Tested(), Rank()
    module = objective.setup(rank, TrainSection(global_batch_size=4), 0)["model"].module
    engines: Any = {"model": Recorder(module)}
    losses, _ = by_hand(0)
    found = objective.evaluate(engines, 0)
    for name, value in losses.items():
        assert found[f"eval_{name}"] == pytest.approx(value, rel=1e-5)
