"""The modern decoder: RMSNorm, rotary positions, SwiGLU, grouped queries; with experts, a Switch.

    tokens ─ embed ─┬─ norm ─ attention ─(+)─┬─ norm ─ feed-forward or experts ─(+)─ … ─ norm ─ head
                    └────────────────────┘   └────────────────────────────────┘
                                  × layers

No biases. Exported as Llama, as Qwen3 with normalized queries and keys, and as Qwen3-MoE with
experts, which compute the same function. Projections that read the same input are one matrix here
(queries, keys and values; gate and up), which makes fewer and larger products.

Shape suffixes as in `stages.models.language_model`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.models.fused_ops import swiglu
from stages.models.language_model import INIT_STD, AttentionContext, LanguageModel, Routing
from stages.models.language_model_config import attention_scale, width_multiple
from stages.models.llama.configuration_llama import LlamaConfig
from stages.models.moe import Experts, MoELayer

__all__ = ["Llama", "LlamaConfig"]


class LlamaAttention(nn.Module):
    """Causal self-attention with rotary positions and grouped queries."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.dropout, self.head_size = layer, config.dropout, config.head_size
        self.scale = attention_scale(config)
        self.heads = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        self.qkv = nn.Linear(config.hidden_size, sum(self.heads) * config.head_size, bias=False)
        self.out = nn.Linear(config.num_heads * config.head_size, config.hidden_size, bias=False)
        norms = (config.head_size, config.norm_eps) if config.qk_norm else None
        self.q_norm = nn.RMSNorm(*norms) if norms else nn.Identity()
        self.k_norm = nn.RMSNorm(*norms) if norms else nn.Identity()
        self.residual_dropout = nn.Dropout(config.branch_dropout)

    def forward(self, x_BTC: Tensor, context: AttentionContext) -> Tensor:
        """Return the output; causal without a mask, and over all positions of a cache."""
        B, T, _ = x_BTC.shape
        heads_BTHD = self.qkv(x_BTC).view(B, T, sum(self.heads), self.head_size)
        q, k, v = (part.transpose(1, 2) for part in heads_BTHD.split(self.heads, dim=2))
        q, k = (
            apply_rotary(self.q_norm(q), context.rotary),
            apply_rotary(self.k_norm(k), context.rotary),
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
            enable_gqa=self.heads[0] != self.heads[1],
        )
        y_BTC = y_BHTD.transpose(1, 2).reshape(B, T, -1)
        return cast(Tensor, self.residual_dropout(self.out(y_BTC)))


def apply_rotary(x_BHTD: Tensor, rotary: tuple[Tensor, Tensor] | None) -> Tensor:
    """Return the heads rotated by the angles of their positions; the two halves of a head hold the
    two sides of the pairs."""
    assert rotary is not None
    cos, sin = rotary
    low, high = x_BHTD.chunk(2, dim=-1)
    return x_BHTD * cos + torch.cat([-high, low], -1) * sin


class LlamaMLP(nn.Module):
    """SwiGLU (Shazeer 2020): silu(gate) times up, then down."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_BTC: Tensor, token_mask_BT: Tensor | None = None) -> tuple[Tensor, None]:
        """Transform each token by itself, padding too."""
        return self.down(swiglu(self.gate_up(x_BTC))), None


class LlamaBlock(nn.Module):
    """Attention and feed-forward (or experts), each on a normalized copy, added to the stream."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.attention = LlamaAttention(config, layer)
        self.feed_forward_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.feed_forward: nn.Module = LlamaMLP(config)
        if config.experts and config.has_experts(layer):
            self.feed_forward = MoELayer(
                config.hidden_size, config.intermediate_size, config.experts
            )
        self.dropout = nn.Dropout(config.branch_dropout)

    def forward(self, x_BTC: Tensor, context: AttentionContext) -> tuple[Tensor, Routing | None]:
        """Return the stream after this layer, and the routing if it has experts."""
        x_BTC = x_BTC + self.attention(self.attention_norm(x_BTC), context)
        y_BTC, routing = self.feed_forward(self.feed_forward_norm(x_BTC), context.token_mask_BT)
        return x_BTC + self.dropout(y_BTC), routing


class Llama(LanguageModel):
    """The modern decoder as a language model."""

    config: LlamaConfig
    last_norm = "final_norm"

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.drop = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(LlamaBlock(config, layer) for layer in range(config.num_layers))
        self.final_norm = nn.RMSNorm(config.hidden_size, eps=config.norm_eps)
        self.lm_head = (
            None
            if config.tie_embeddings
            else nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        )
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Draw the weights from torch's global generator, those of each expert separately."""
        narrower = 1 / math.sqrt(width_multiple(self.config))
        hidden, scale = INIT_STD * narrower, self.config.init_scale
        residual = hidden / math.sqrt(2 * self.config.num_layers)
        for name, parameter in self.named_parameters():
            plain = residual if name.endswith(("out.weight", "down", "down.weight")) else hidden
            if "norm" in name:
                parameter.fill_(1.0)
            elif parameter.ndim == 3:
                continue  # experts draw their own
            elif name.endswith(("embedding.weight", "lm_head.weight")):
                parameter.normal_(std=INIT_STD)
            elif name.endswith("router.weight"):
                init_matrix(parameter, plain * narrower, scale and scale * narrower**2)
            else:
                init_matrix(parameter, plain, scale)
        for experts in self.modules():
            if isinstance(experts, Experts):
                experts.reset(
                    lambda w: init_matrix(w, hidden, scale),
                    lambda w: init_matrix(w, residual, scale),
                )

    @property
    def blocks(self) -> Iterable[nn.Module]:
        """The layers in order."""
        return self.layers

    @property
    def lm_head_weight(self) -> Tensor:
        """The head's weight, or the embedding that it is tied to."""
        return self.embedding.weight if self.lm_head is None else self.lm_head.weight

    @property
    def query_weights(self) -> tuple[str, ...]:
        """The weights of queries, or where queries are normalized, that of the norm: the scale of
        what comes before it makes no difference."""
        return (".attention.q_norm.weight" if self.config.qk_norm else ".attention.qkv.weight",)

    def drop_lm_head(self) -> None:
        """Remove a head that is not the embedding."""
        self.lm_head, self.config = None, replace(self.config, tie_embeddings=True)

    def embed(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """Return the token embeddings; positions enter by the rotation of queries and keys."""
        return cast(Tensor, self.drop(self.embedding(tokens_BT)))

    def norm(self, x_BTC: Tensor) -> Tensor:
        """Return the output of the last RMSNorm."""
        return cast(Tensor, self.final_norm(x_BTC))

    def rotary(self, positions_BT: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosines and sines (B, 1, T, D) of angles in float32."""
        half = self.config.head_size // 2
        powers = torch.arange(half, device=positions_BT.device, dtype=torch.float32) / half
        angles = positions_BT[:, None, :, None].float() / self.config.rope_theta**powers
        angles = torch.cat([angles, angles], -1)
        dtype = self.embedding.weight.dtype
        return angles.cos().to(dtype), angles.sin().to(dtype)


def init_matrix(weight: Tensor, std: float, scale: float | None) -> None:
    """Fill an (out, in) matrix: normal, or truncated at two standard deviations with variance
    scale / fan-in."""
    if scale is None:
        weight.normal_(std=std)
    else:
        deviation = math.sqrt(scale / weight.shape[-1])
        nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)
