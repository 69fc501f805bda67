"""Upcycling of a dense decoder into one with experts (Komatsuzaki et al. 2022).

Each expert starts as the dense feed-forward layer of its block. The gate multiplies the output of
an expert by its probability, about 1 / E at the start, so the last matrix of the experts is scaled
by E / k: the function is that of the dense model except for the small preferences of the fresh
router. Gates that are normalized to a sum of 1 need no such factor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stages.models.llama.configuration_llama import LlamaConfig

_ROUTER_STD = 1e-3
"""Standard deviation of a fresh router before a layer that was dense: it prefers almost no
expert."""


def upcycle(dense: dict[str, Tensor], config: LlamaConfig) -> dict[str, Tensor]:
    """Return the weights of a dense decoder as those of one with experts, with fresh routers."""
    assert config.experts is not None
    num, weights = config.experts.num_experts, dict(dense)
    scale = 1.0 if config.experts.norm_topk_prob else num / config.experts.top_k
    for layer in config.moe_layers:
        prefix = f"layers.{layer}.feed_forward."
        gate_up, down = weights.pop(f"{prefix}gate_up.weight"), weights.pop(f"{prefix}down.weight")
        weights[f"{prefix}experts.gate_up"] = gate_up.expand(num, -1, -1).clone()
        weights[f"{prefix}experts.down"] = (scale * down).expand(num, -1, -1).clone()
        weights[f"{prefix}router.weight"] = _ROUTER_STD * torch.randn(num, config.hidden_size)
    return weights
