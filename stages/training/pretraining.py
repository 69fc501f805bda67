"""The objective of pretraining: the next token of packed documents, experts kept busy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError
from stages.models.config import DecoderConfig, LanguageConfig
from stages.training.objective import Batch, LanguageObjective, Loss, Metrics, Trainable

if TYPE_CHECKING:
    from torch import Tensor

    from stages.data.corpus import Corpus
    from stages.data.tokenizer import Tokenizer
    from stages.models.language import Routing
    from stages.training.engine import Engine
    from stages.training.rank import Rank

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
    recompute: bool = False
    card: str = ""
    """Of the exported model."""

    def open(self, rank: Rank) -> dict[str, Trainable]:
        """Map the tokens and draw or read the initial weights.

        Raises:
            InputError: the tokenizer is not the one that made the tokens.
        """
        import torch

        from stages.models.upcycling import first_weights

        corpus = self.corpus
        self.train, self.held_out, self.facts = corpus.train, corpus.held_out, corpus.facts
        self.flops_per_token = float(self.config.flops_per_token)
        self._bytes = torch.tensor(self._tokenizer().byte_counts, device=rank.device)
        model = first_weights(self.config, self.start)
        model.recompute = self.recompute
        return {"model": Trainable(model)}

    def _tokenizer(self) -> Tokenizer:
        from stages.data.tokenizer import Tokenizer

        tokenizer = Tokenizer(self.tokenizer_folder)
        if len(tokenizer) != self.config.vocab_size:
            raise InputError(
                f"the tokenizer has {len(tokenizer)} ids, the tokens were made with "
                f"{self.config.vocab_size}",
                where=str(self.tokenizer_folder),
                remedy="name the tokenizer that the tokens were packed with",
            )
        return tokenizer

    def collate(self, samples: Sequence[Any]) -> Batch:
        """Windows of T + 1 ids, or packed samples -> (B, T) of inputs, targets, and for masks the
        segments (the documents of a sample, counted from 0) and the positions within them; of
        packed samples also what is `real`, not padding."""
        import numpy as np
        import torch

        from stages.data.bestfit import IGNORED, Packed
        from stages.data.tokenizer import EOS
        from stages.data.tokens import boundaries

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
            segments, positions = boundaries(windows[:, :-1], EOS)
            found["segments"] = torch.from_numpy(segments)
            found["positions"] = torch.from_numpy(positions)
        return found

    def loss(self, model: Any, batch: Batch) -> Loss:
        """Summed cross-entropy, in float32, and what keeps softmax and experts in bounds; without
        a gradient the targets' bytes too."""
        import torch

        from stages.models.language import Trace

        masks = {"real_BT": batch.get("real")}
        if self.mask_documents:
            masks |= {"segments_BT": batch["segments"], "positions_BT": batch["positions"]}
        trace, training = Trace(), torch.is_grad_enabled()
        z_coef = self.z_coef if training else 0.0
        total = model(
            batch["tokens"], targets_BT=batch["targets"], z_coef=z_coef, trace=trace, **masks
        )
        sums = {} if training else {"bytes": self._bytes_of(batch)}
        if trace.routing:
            units = self.weight(batch)
            total = total + self._upkeep(trace.routing) * units
            layers = dict(zip(self.expert_layers, trace.routing, strict=True))
            sums |= {name: value * units for name, value in told(layers).items()}
        return Loss(total, sums, shown=trace.cross_entropy)

    def _bytes_of(self, batch: Batch) -> Tensor:
        # What is ignored counts as <pad>, which stands for no bytes.
        found: Tensor = self._bytes[batch["targets"].clamp(min=0)].sum()
        return found

    def _upkeep(self, routing: Sequence[Routing]) -> Tensor:
        """What the routers add to the loss, a position's mean."""
        import torch

        assert isinstance(self.config, DecoderConfig)
        experts = self.config.experts
        assert experts is not None
        return torch.stack(
            [experts.balance_coef * layer.balance + experts.z_coef * layer.z for layer in routing]
        ).sum()

    def step(self, engines: Mapping[str, Engine], step: int) -> Metrics:
        """One step; of the experts' load the busiest's is reported."""
        return _busiest(super().step(engines, step))

    def evaluate(self, engines: Mapping[str, Engine], step: int) -> Metrics:
        """Loss, perplexity, and bits per byte, which compare across tokenizers."""
        found = _busiest(super().evaluate(engines, step))
        per_token = found.pop("eval_bytes", 0.0)
        bits = found["eval_loss"] / math.log(2) / per_token if per_token else math.nan
        return {**found, "eval_bits_per_byte": bits}

    def export(self, engines: Mapping[str, Engine], out: Path) -> None:
        """Write the model's folder."""
        from stages.models.huggingface import save_language_model

        model: Any = engines["model"].module
        save_language_model(model, out, self.tokenizer_folder, card=self.card)

    @cached_property
    def expert_layers(self) -> list[int]:
        """The blocks with experts."""
        if not isinstance(self.config, DecoderConfig):
            return []
        return [layer for layer in range(self.config.layers) if self.config.has_experts(layer)]


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
