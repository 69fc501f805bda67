"""GPT: the pre-LayerNorm decoder of GPT-2 and GPT-3.

    tokens ─ wte + wpe ─┬─ ln_1 ─ attn ─(+)─┬─ ln_2 ─ mlp ─(+)─ … ─ ln_f ─ wte^T ─ logits
                        └───────────────┘   └────────────┘
                                  × layers

Learned positions, GELU (tanh), biases everywhere, head tied to the embedding; residual
projections start at 0.02/sqrt(2 layers) (Radford et al. 2019, section 2.3). Parameters have the
names of the GPT-2 of `transformers`, so an export only transposes.

Shape suffixes as in `stages.models.language_model`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.language_model import INIT_STD, AttentionContext, LanguageModel
from stages.models.language_model_config import attention_scale, width_multiple

__all__ = ["GPT", "GPTConfig"]


class GPTAttention(nn.Module):
    """Causal self-attention over all heads."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.num_heads, self.layer, self.dropout = config.num_heads, layer, config.dropout
        self.scale = attention_scale(config)
        self.c_attn = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.c_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.resid_dropout = nn.Dropout(config.branch_dropout)

    def forward(self, x_BTC: Tensor, context: AttentionContext) -> Tensor:
        """Attend; without a mask causally, or with a cache to all of it."""
        B, T, C = x_BTC.shape
        q, k, v = (
            part.view(B, T, self.num_heads, C // self.num_heads).transpose(1, 2)
            for part in self.c_attn(x_BTC).split(C, dim=2)
        )
        if context.cache is not None:
            k, v = context.cache.extend(self.layer, k, v)
        y_BHTD = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=context.mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=context.mask is None and context.cache is None,
            scale=self.scale,
        )
        y_BTC = y_BHTD.transpose(1, 2).reshape(B, T, C)
        return cast(Tensor, self.resid_dropout(self.c_proj(y_BTC)))


class GPTMLP(nn.Module):
    """Two layers with GELU (tanh) between."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.hidden_size, config.intermediate_size)
        self.c_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.branch_dropout)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Transform each token by itself."""
        hidden = F.gelu(self.c_fc(x_BTC), approximate="tanh")
        return cast(Tensor, self.dropout(self.c_proj(hidden)))


class GPTBlock(nn.Module):
    """Attention and feed-forward, each on a normalized copy, added to the stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.attn = GPTAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.mlp = GPTMLP(config)

    def forward(self, x_BTC: Tensor, context: AttentionContext) -> tuple[Tensor, None]:
        """Return the stream after this layer."""
        x_BTC = x_BTC + self.attn(self.ln_1(x_BTC), context)
        return x_BTC + self.mlp(self.ln_2(x_BTC)), None


class GPT(LanguageModel):
    """The GPT language model."""

    config: GPTConfig
    last_norm = "ln_f"

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.context_length, config.hidden_size)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(GPTBlock(config, layer) for layer in range(config.num_layers))
        self.ln_f = nn.LayerNorm(config.hidden_size, eps=config.norm_eps)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Draw the weights from torch's global generator."""
        hidden = INIT_STD / math.sqrt(width_multiple(self.config))
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                parameter.normal_(std=hidden / math.sqrt(2 * self.config.num_layers))
            elif name.endswith("bias"):
                parameter.zero_()
            elif "ln_" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=hidden if name.startswith("h.") else INIT_STD)

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """The layers in order."""
        return self.h

    @property
    def lm_head_weight(self) -> Tensor:
        """The embedding, to which the head is tied."""
        return self.wte.weight

    @property
    def query_weights(self) -> tuple[str, ...]:
        """The rows of queries, keys and values."""
        return (".attn.c_attn.weight", ".attn.c_attn.bias")

    @property
    def last_norm_bias(self) -> Tensor:
        """The bias of the last LayerNorm."""
        return self.ln_f.bias

    def embed(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """Return the sum of token and position embeddings."""
        return cast(Tensor, self.drop(self.wte(tokens_BT) + self.wpe(positions_BT)))

    def norm(self, x_BTC: Tensor) -> Tensor:
        """Return the output of the last LayerNorm."""
        return cast(Tensor, self.ln_f(x_BTC))
