"""An objective with two named losses: one on each half of a window, of which the mean is taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pipeline import panels
from stages.objectives.causal_lm import CausalLMObjective
from stages.objectives.objective_registry import (
    ObjectiveParams,
    PretrainingTask,
    register_objective,
)
from stages.training.objective import Batch, Loss


@register_objective
class HalvesParams(ObjectiveParams):
    """Parameters of a loss on each half of a window."""

    type: Literal["halves"] = "halves"
    warmup: int = 4
    """Steps in which the coefficient of the second half rises to 0.5. Default: 4."""

    def build(self, task: PretrainingTask) -> Halves:
        """Return the objective."""
        return Halves(**vars(task), warmup=self.warmup)

    def panels(self, config: Any) -> Iterator[panels.Panel]:
        """Yield the curves of both losses."""
        yield panels.curve("Halves", ["loss_first", "loss_second"])


@dataclass
class Halves(CausalLMObjective):
    """Next-token prediction with a loss on each half of a window."""

    warmup: int = 4

    def open(self, rank: Any) -> Any:
        self.coefficients = {
            "first": 0.5,
            "second": lambda step: 0.5 * min(1.0, (step + 1) / self.warmup),
        }
        return super().open(rank)

    def units(self, batch: Batch) -> dict[str, float]:
        rows, columns = batch["targets"].shape
        half = columns // 2
        return {"first": rows * half, "second": rows * (columns - half)}

    def loss(self, model: Any, batch: Batch) -> dict[str, Loss]:
        from torch.nn import functional as F

        half = batch["targets"].shape[1] // 2
        logits_BVT = model(batch["tokens"]).transpose(1, 2)
        parts = {"first": slice(0, half), "second": slice(half, None)}
        return {
            name: Loss(
                F.cross_entropy(logits_BVT[..., part], batch["targets"][:, part], reduction="sum")
            )
            for name, part in parts.items()
        }
