"""The costs of training a language model: FLOPs, traffic, memory.

Imports no torch: `headwater plan` reads this module. Symbols as in
`stages.training.planning.cost_model`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.training.planning.cost_model import Arithmetic, Traffic, weight_traffic
from stages.training.planning.memory_model import Memory, language_model_memory

if TYPE_CHECKING:
    from stages.models.language_model_config import LanguageModelConfig, Matrix
    from stages.training.planning.device_layout import Layout


@dataclass(frozen=True)
class LanguageModelCost:
    """The costs of training a language model."""

    config: LanguageModelConfig
    trained_weights: int | None = None
    """Weights that are trained, next to frozen ones. Default: all."""

    sample_unit = "tokens"
    exchange = "experts"

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.config.parameters

    @property
    def trained_parameters(self) -> int:
        """Weights that are trained."""
        return self.parameters if self.trained_weights is None else self.trained_weights

    @property
    def _trained_share(self) -> float:
        return self.trained_parameters / self.parameters

    @property
    def matmul_width(self) -> int:
        """Typical width of the matrices."""
        return self.config.matmul_width

    @property
    def num_experts(self) -> int:
        """Experts per layer; 0 in a dense model."""
        return self.config.experts.num_experts if self.config.experts else 0

    @property
    def load_overhead(self) -> float:
        """Bytes that `stages.models.initialization` takes next to the model's own weights while it
        loads a folder: a second model with the folder's weights, and the matrices that are
        concatenated. The file itself is mapped, so its memory can be reclaimed.

        For a folder of float32 weights and of the same shape: other folders take less, as does a
        dense model whose layers become experts.
        """
        return 4.0 * (self.config.parameters + self.config.merged_parameters)

    def block_matrices(self) -> Iterator[Matrix]:
        """Yield the weight matrices of the blocks."""
        return self.config.block_matrices()

    def arithmetic(self, layout: Layout, samples: float) -> Arithmetic:
        """Return tokens and FLOPs of a training on that many samples."""
        tokens = float(samples) * self.config.context_length
        per_token = float(self.config.flops_per_token)
        again = _recomputed_flops(self.config) if layout.activation_checkpointing else 0.0
        return Arithmetic(tokens, tokens * per_token, tokens * (per_token + again))

    def traffic(self, layout: Layout) -> Traffic:
        """Return what one device sends in a step: a ring's (n - 1) / n of what is reduced or
        gathered.

        Rajbhandari et al. 2020 (arXiv 1910.02054), section 7, except that DeepSpeed at stages 1 and
        2 all-reduces gradients that only their owners need (2 P instead of P): it scatters from
        stage 3 on. Stages 2 and 3 keep no whole gradients, so they reduce after every pass.
        """
        experts = self.config.expert_parameters
        dense = self.config.parameters - experts
        local_experts = experts / layout.expert_parallel_size
        rings = ((dense, layout.world), (local_experts, layout.expert_replicas))
        ring = sum(numbers * (n - 1) / n for numbers, n in rings) * layout.bytes
        reduced, gathered = weight_traffic(ring, layout)
        reduced *= self._trained_share
        if layout.zero_stage < 3:  # frozen weights are gathered where they are sharded
            gathered *= self._trained_share
        exchanged = _all_to_all_bytes(self.config, layout) * layout.gradient_accumulation_steps
        return Traffic(reduced, gathered, exchanged)

    def memory(self, layout: Layout) -> Memory:
        """Return what one device holds."""
        return language_model_memory(self.config, layout, self._trained_share)

    def sizes(self, layout: Layout, samples: float) -> dict[str, float]:
        """Return active parameters and tokens."""
        tokens = self.arithmetic(layout, samples).tokens
        return {"active_parameters": self.config.active_parameters, "tokens": tokens}

    def parts(self, layout: Layout, samples: float) -> Mapping[str, Mapping[str, float]]:
        """Return the active parameters."""
        return {"parameters": {"active": self.config.active_parameters}}


def _recomputed_flops(config: LanguageModelConfig) -> float:
    """Return the FLOPs per token of one more forward pass through the blocks: a third of their part
    of `flops_per_token`. The head is not recomputed, as in Narayanan et al. 2021, equation 3."""
    head = 6.0 * config.vocab_size * config.hidden_size
    return (config.flops_per_token - head) / 3


def _all_to_all_bytes(config: LanguageModelConfig, layout: Layout) -> float:
    """Return the bytes of tokens that one device sends to experts in one pass: there and back,
    forward and backward, and with activation checkpointing once more. Of the tokens 1 / e stay."""
    away = (layout.expert_parallel_size - 1) / layout.expert_parallel_size
    ways = 6 if layout.activation_checkpointing else 4
    token = config.hidden_size * layout.bytes * config.experts_per_token
    positions = layout.micro_batch_size * config.context_length
    return ways * len(config.moe_layers) * token * positions * away
