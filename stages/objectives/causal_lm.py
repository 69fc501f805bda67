"""Causal language modelling: the next token of packed documents, with balanced experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from pipeline import panels
from stages.models.language_model_config import LanguageModelConfig
from stages.objectives.objective_registry import (
    ObjectiveParams,
    PretrainingTask,
    register_objective,
)
from stages.objectives.pretraining import PretrainingObjective
from stages.training.objective import Batch, Loss, MetricSum
from stages.training.supervised import num_targets

if TYPE_CHECKING:
    from torch import Tensor

    from stages.models.language_model import Routing

LOAD = "load_layer_"
"""Prefix of a layer number: load of the busiest expert of the layer over an even share."""


@register_objective
class CausalLMParams(ObjectiveParams):
    """Parameters of causal language modelling."""

    type: Literal["causal_lm"] = "causal_lm"
    """Name of the objective. Default: causal_lm."""
    z_loss_coef: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of log^2 Z, which keeps the logits near 0 (Chowdhery et al. 2022: 1e-4). Default:
    0."""

    def build(self, task: PretrainingTask) -> CausalLMObjective:
        """Return the objective."""
        return CausalLMObjective(**vars(task), z_loss_coef=self.z_loss_coef)

    def panels(self, config: LanguageModelConfig) -> Iterator[panels.Panel]:
        """Yield the curves of the routers, if the model has experts."""
        if layers := expert_layers(config):
            loads = [f"{LOAD}{layer}" for layer in layers]
            yield panels.curve("Load of the busiest expert per layer", loads, unit="even shares")
            yield panels.curve("Tokens dropped for lack of expert capacity", ["dropped_tokens"])
            yield panels.curve("Router entropy", ["router_entropy"], unit="nats")


@dataclass
class CausalLMObjective(PretrainingObjective):
    """Next-token prediction on windows of packed documents."""

    z_loss_coef: float = 0.0

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Convert windows of T + 1 ids, or packed samples, to inputs and targets (B, T).

        With document masks, also the segments (the documents of a sample, counted from 0) and the
        positions within them; for packed samples also `token_mask`, False at padding.
        """
        import numpy as np
        import torch

        from stages.data.best_fit_packing import IGNORE_INDEX, PackedSample
        from stages.data.token_store import document_boundaries

        if isinstance(samples[0], PackedSample):
            names = ("tokens", "targets", "segments", "positions")
            packed = {
                n: torch.from_numpy(np.stack([getattr(s, n) for s in samples])) for n in names
            }
            return {**packed, "token_mask": packed["targets"] != IGNORE_INDEX}
        windows = np.stack(samples)
        found = {
            "tokens": torch.from_numpy(windows)[:, :-1],
            "targets": torch.from_numpy(windows)[:, 1:],
        }
        if self.mask_documents:
            segments, positions = document_boundaries(windows[:, :-1], self.tokenizer.eos_id)
            found["segments"] = torch.from_numpy(segments)
            found["positions"] = torch.from_numpy(positions)
        return found

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Return the summed cross-entropy in float32, plus z-loss and router losses in training.
        Without a gradient, `bytes` of the targets are reported too."""
        import torch

        from stages.models.language_model import ForwardOutputs, router_aux_loss

        masks = {"token_mask_BT": batch.get("token_mask")}
        if self.mask_documents:
            masks |= {"segments_BT": batch["segments"], "positions_BT": batch["positions"]}
        outputs, training = ForwardOutputs(), torch.is_grad_enabled()
        z_coef = self.z_loss_coef if training else 0.0
        total = model(
            batch["tokens"], targets_BT=batch["targets"], z_coef=z_coef, outputs=outputs, **masks
        )
        metrics: dict[str, Any] = {} if training else {"bytes": self.num_target_bytes(batch)}
        if outputs.routing:
            units = num_targets(batch)
            assert self.config.experts is not None
            total = total + router_aux_loss(self.config.experts, outputs.routing) * units
            layers = dict(zip(expert_layers(self.config), outputs.routing, strict=True))
            metrics |= router_metrics(layers, units)
        return Loss(total, metrics, reported=outputs.cross_entropy)


def expert_layers(config: LanguageModelConfig) -> list[int]:
    """Return the indices of the layers that have experts."""
    return config.moe_layers


def router_metrics(routing: Mapping[int, Routing], units: float) -> dict[str, Tensor | MetricSum]:
    """Return the metrics of the routers: means over layers, and the load of each layer."""
    import torch

    def mean(name: str) -> Tensor:
        return torch.stack([getattr(layer, name).detach() for layer in routing.values()]).mean()

    means = {"balance_loss": mean("balance"), "router_z": mean("z")}
    means |= {"dropped_tokens": mean("dropped"), "router_entropy": mean("entropy")}
    loads = {
        f"{LOAD}{number}": MetricSum(layer.load_E * units, reduce=busiest_share)
        for number, layer in routing.items()
    }
    return {**{name: value * units for name, value in means.items()}, **loads}


def busiest_share(load: list[float]) -> float:
    """Return the load of the busiest expert over an even share."""
    return max(load) * len(load)
