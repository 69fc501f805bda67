"""The objective of pretraining: the next token of packed documents, experts kept busy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.models.language_model_config import LanguageConfig, LlamaConfig
from stages.training.objective import Batch, LanguageObjective, Loss, Metrics, Trainable

if TYPE_CHECKING:
    from torch import Tensor

    from stages.data.token_dataset import Corpus
    from stages.models.language_model import Routing
    from stages.training.engine import Engine
    from stages.training.ranks.rank import Rank
    from stages.training.step_result import StepResult

LOAD = "load_layer_"
"""Before a layer's number: the share of tokens of each of its experts."""


@dataclass
class Pretraining(LanguageObjective):
    """Predict the next token in windows of packed documents."""

    config: LanguageConfig
    corpus: Corpus
    tokenizer_folder: Path
    """Where the tokenizer's files are."""
    start: Path | None = None
    """A model folder whose weights are the first ones; drawn where there is none."""
    z_coef: float = 0.0
    mask_documents: bool = False
    activation_checkpointing: bool = False
    compile: bool = False
    card: str = ""
    """Of the exported model."""

    def open(self, rank: Rank) -> dict[str, Trainable]:
        """Map the tokens and draw or read the initial weights."""
        import torch

        from stages.data.tokenizers.huggingface_tokenizer import open_tokenizer
        from stages.models.initialization import initial_model
        from stages.models.mup import lr_multipliers

        corpus = self.corpus
        self.train, self.held_out, self.facts = corpus.train, corpus.held_out, corpus.facts
        self.flops_per_token = float(self.config.flops_per_token)
        self._tokenizer = open_tokenizer(self.tokenizer_folder)
        self._bytes = torch.tensor(self._tokenizer.byte_counts, device=rank.device)
        model = initial_model(self.config, self.start)
        model.activation_checkpointing = self.activation_checkpointing
        if self.compile:
            from stages.training.torch_compile import compile_blocks

            compile_blocks(model, rank.device)
        muon = self.settings.optimizer == "muon"
        return {"model": Trainable(model, rates=lr_multipliers(model, muon=muon))}

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Windows of T + 1 ids, or packed samples -> (B, T) of inputs, targets, and for masks the
        segments (the documents of a sample, counted from 0) and the positions within them; of
        packed samples also what is `real`, not padding."""
        import numpy as np
        import torch

        from stages.data.best_fit_packing import IGNORED, Packed
        from stages.data.token_store import boundaries

        if isinstance(samples[0], Packed):
            names = ("tokens", "targets", "segments", "positions")
            packed = {
                n: torch.from_numpy(np.stack([getattr(s, n) for s in samples])) for n in names
            }
            return {**packed, "real": packed["targets"] != IGNORED}
        windows = np.stack(samples)
        found = {
            "tokens": torch.from_numpy(windows)[:, :-1],
            "targets": torch.from_numpy(windows)[:, 1:],
        }
        if self.mask_documents:
            segments, positions = boundaries(windows[:, :-1], self._tokenizer.eos_id)
            found["segments"] = torch.from_numpy(segments)
            found["positions"] = torch.from_numpy(positions)
        return found

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Summed cross-entropy, in float32, and what keeps softmax and experts in bounds; without
        a gradient the targets' bytes too."""
        import torch

        from stages.models.language_model import ForwardOutputs, router_aux_loss

        masks = {"padding_mask_BT": batch.get("real")}
        if self.mask_documents:
            masks |= {"segments_BT": batch["segments"], "positions_BT": batch["positions"]}
        trace, training = ForwardOutputs(), torch.is_grad_enabled()
        z_coef = self.z_coef if training else 0.0
        total = model(
            batch["tokens"], targets_BT=batch["targets"], z_coef=z_coef, trace=trace, **masks
        )
        sums = {} if training else {"bytes": self._bytes_of(batch)}
        if trace.routing:
            units = self.weight(batch)
            assert isinstance(self.config, LlamaConfig) and self.config.experts
            total = total + router_aux_loss(self.config.experts, trace.routing) * units
            layers = dict(zip(self.expert_layers, trace.routing, strict=True))
            sums |= {name: value * units for name, value in told(layers).items()}
        return Loss(total, sums, shown=trace.cross_entropy)

    def _bytes_of(self, batch: Batch) -> Tensor:
        targets = batch["targets"]
        found: Tensor = self._bytes[targets[targets >= 0]].sum()
        return found

    def step(self, engines: Mapping[str, Engine], step: int) -> StepResult:
        """One step; of the experts' load the busiest's is reported."""
        result = super().step(engines, step)
        return replace(result, metrics=_busiest(result.metrics))

    def evaluate(self, engines: Mapping[str, Engine], step: int) -> Metrics:
        """Loss, perplexity, and bits per byte, which compare across tokenizers."""
        found = _busiest(super().evaluate(engines, step))
        per_token = found.pop("eval_bytes", 0.0)
        bits = found["eval_loss"] / math.log(2) / per_token if per_token else math.nan
        return {**found, "eval_bits_per_byte": bits}

    def export(self, engines: Mapping[str, Engine], out: Path) -> None:
        """Write the model's folder."""
        from stages.models.hf_export import SpecialIds, save_language_model

        model: Any = engines["model"].module
        own = self._tokenizer
        ids = SpecialIds(own.pad_id, own.bos_id, own.eos_id)
        save_language_model(model, out, self.tokenizer_folder, card=self.card, ids=ids)

    @cached_property
    def expert_layers(self) -> list[int]:
        """The blocks with experts."""
        if not isinstance(self.config, LlamaConfig):
            return []
        return [layer for layer in range(self.config.num_layers) if self.config.has_experts(layer)]


def told(routing: Mapping[int, Routing]) -> dict[str, Tensor]:
    """What is reported of routers: means over layers, and the load of each layer's experts."""
    import torch

    def mean(name: str) -> Tensor:
        return torch.stack([getattr(layer, name).detach() for layer in routing.values()]).mean()

    figures = {"balance_loss": mean("balance"), "router_z": mean("z")}
    figures |= {"dropped_tokens": mean("dropped"), "router_entropy": mean("entropy")}
    return figures | {f"{LOAD}{number}": layer.load_E for number, layer in routing.items()}


def _busiest(found: Mapping[str, Any]) -> dict[str, float]:
    """Loads as how many times its even share the busiest expert of a layer gets."""
    return {
        name: max(value) * len(value) if isinstance(value, list) else value
        for name, value in found.items()
    }
