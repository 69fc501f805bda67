"""The transformer blocks of CLIP's towers, one device, plain PyTorch.

Pre-LayerNorm blocks with biases. Initialization as in the released code (Radford et al. 2021):
attention width^-1/2, feed-forward (2 width)^-1/2, residual projections divided by
sqrt(2 num_layers).

Shape suffixes of the tower modules: B batch, H, W image height and width, N patches, K kept
patches, P values of a patch (all channels), T tokens, C width, E dimensions of the joint embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stages.models.clip.configuration_clip import Activation, CLIPConfig, TextConfig, ViTConfig


class _QuickGELU(torch.autograd.Function):
    """QuickGELU through SiLU: with s = 1.702 x it is silu(s) / 1.702, and its derivative silu'(s).
    It saves one tensor instead of x and its sigmoid, and makes fewer passes over memory."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        s = x * 1.702
        ctx.save_for_backward(s)
        return F.silu(s).div_(1.702)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (s,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(gradient, s)  # type: ignore[no-any-return]


def quick_gelu(x: Tensor) -> Tensor:
    """Return the sigmoid approximation of GELU: x sigmoid(1.702 x)."""
    return cast(Tensor, _QuickGELU.apply(x))  # type: ignore[no-untyped-call]


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
}


class QKVProjection(nn.Module):
    """Queries, keys and values by one matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3 * width, width))
        self.bias = nn.Parameter(torch.empty(3 * width))

    def forward(self, x_BTC: Tensor, index_B: Tensor | None = None) -> tuple[Tensor, ...]:
        """Return all three of all tokens; with `index_B`, the query of one token per sample."""
        if index_B is None:
            return F.linear(x_BTC, self.weight, self.bias).chunk(3, dim=2)
        C = x_BTC.shape[2]
        q_B1C = F.linear(select_token(x_BTC, index_B), self.weight[:C], self.bias[:C])
        return q_B1C, *F.linear(x_BTC, self.weight[C:], self.bias[C:]).chunk(2, dim=2)


class ClipAttention(nn.Module):
    """Self-attention over all heads, causal or not."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.causal = heads, causal
        self.qkv = QKVProjection(width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BTC: Tensor, index_B: Tensor | None = None) -> Tensor:
        """Attend; with `index_B`, for one token per sample only."""
        q, k, v = (
            part.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for part in self.qkv(x_BTC, index_B)
        )
        mask = None
        if self.causal and index_B is not None:
            mask = (torch.arange(k.shape[2], device=index_B.device) <= index_B[:, None])[
                :, None, None
            ]
        causal = self.causal and index_B is None
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return cast(Tensor, self.out(y.transpose(1, 2).flatten(2)))


class ClipMLP(nn.Module):
    """Two layers; the hidden one is four times as wide."""

    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 4 * width)
        self.proj = nn.Linear(4 * width, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Transform each token by itself."""
        return cast(Tensor, self.proj(self.activation(self.fc(x_BTC))))


class ClipBlock(nn.Module):
    """Attention and feed-forward, each on a normalized copy, added to the stream."""

    def __init__(self, width: int, heads: int, config: CLIPConfig, *, causal: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = ClipAttention(width, heads, causal=causal)
        self.ln_2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = ClipMLP(width, config.activation)

    def forward(self, x_BTC: Tensor, index_B: Tensor | None = None) -> Tensor:
        """Return the stream after this layer; with `index_B`, of one token per sample: x_B1C."""
        mixed = self.attn(self.ln_1(x_BTC), index_B)
        x_BTC = (x_BTC if index_B is None else select_token(x_BTC, index_B)) + mixed
        return x_BTC + cast(Tensor, self.mlp(self.ln_2(x_BTC)))


def select_token(x_BTC: Tensor, index_B: Tensor) -> Tensor:
    """Return one token of each sample, x_B1C."""
    return x_BTC.gather(1, index_B[:, None, None].expand(-1, 1, x_BTC.shape[2]))


class ClipBlocks(nn.Module):
    """A stack of blocks whose output is one token per sample. The last block computes nothing else,
    which saves a seventh of the work of six blocks. `activation_checkpointing` trades a second
    forward pass for the activations' memory."""

    def __init__(self, shape: ViTConfig | TextConfig, config: CLIPConfig, *, causal: bool) -> None:
        super().__init__()
        self.activation_checkpointing = False
        self.layers = nn.ModuleList(
            ClipBlock(shape.hidden_size, shape.num_heads, config, causal=causal)
            for _ in range(shape.num_layers)
        )

    def forward(self, x_BTC: Tensor, index_B: Tensor) -> Tensor:
        """Return the output for the token at `index_B`, x_BC."""
        for block in self.layers:
            index = index_B if block is self.layers[-1] else None
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_BTC = checkpoint(block, x_BTC, index, use_reentrant=False)
            else:
                x_BTC = block(x_BTC, index)
        return x_BTC.squeeze(1)

    @torch.no_grad()
    def reset(self) -> None:
        """Draw the weights."""
        residual = (2 * len(self.layers)) ** -0.5
        for name, parameter in self.named_parameters():
            width = parameter.shape[-1]
            if name.endswith("bias"):
                parameter.zero_()
            elif "ln_" in name:
                parameter.fill_(1.0)
            elif name.endswith("fc.weight"):
                parameter.normal_(std=(2 * width) ** -0.5)
            elif name.endswith("qkv.weight"):
                parameter.normal_(std=width**-0.5)
            else:  # back to the stream, whose width is that of the output
                parameter.normal_(std=parameter.shape[0] ** -0.5 * residual)
