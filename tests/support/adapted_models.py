"""Small decoders of every family, and adapters whose weights are not zero."""

from __future__ import annotations

import torch

from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.language_model_config import ExpertsConfig
from stages.models.llama.configuration_llama import LlamaConfig
from stages.models.registry import build_model

SIZES = {"vocab_size": 97, "context_length": 32, "num_layers": 2, "hidden_size": 48, "num_heads": 4}
HEADS = {"num_kv_heads": 2, "head_size": 12, "intermediate_size": 64}
EXPERTS = ExpertsConfig(num_experts=4, top_k=2, moe_every=2, capacity_factor=None)
CONFIGS = {
    "gpt2": GPTConfig(**SIZES),
    "llama": LlamaConfig(**SIZES, **HEADS),
    "qwen3": LlamaConfig(**SIZES, **HEADS, qk_norm=True, tie_embeddings=False),
    "switch": LlamaConfig(**SIZES, **HEADS, qk_norm=True, experts=EXPERTS),
}


def drawn(config, seed=0):
    torch.manual_seed(seed)
    return build_model(config).eval()


def lively(model):
    """Adapters far from their start: B is not zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return model


def targets_of(name):
    return ("attention",) if name == "switch" else ("attention", "mlp")
