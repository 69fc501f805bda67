"""The transformer towers of CLIP: images in patches, and captions, one device, plain PyTorch.

    pixels ─ patches ─ linear ─┐
                      class ───┴─ + positions ─ ln_pre ─ blocks ─ [class] ─ ln_post ─ proj
    tokens ─ embedding ───────── + positions ─ causal blocks ─ [first eos] ─ ln_final ─ proj

Pre-LayerNorm blocks with biases. Start: as in the released code (Radford et al. 2021): attention
width^-1/2, feed-forward (2 width)^-1/2, residual projections divided by sqrt(2 layers).

Shape suffixes: B batch, H, W image height and width, N patches, K kept patches, P pixels of a
patch (all channels), T tokens, C width, E dimensions of the common space.
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
    """By way of SiLU: with s = 1.702 x it is silu(s) / 1.702, and its derivative is silu'(s). It
    keeps one tensor where x and its sigmoid are two, and makes fewer passes over memory."""

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
    """The sigmoid approximation of GELU: x σ(1.702 x)."""
    return cast(Tensor, _QuickGELU.apply(x))  # type: ignore[no-untyped-call]


ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": F.gelu,
}


class QKV(nn.Module):
    """Queries, keys and values by one matrix."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3 * width, width))
        self.bias = nn.Parameter(torch.empty(3 * width))

    def forward(self, x_BTC: Tensor, at_B: Tensor | None = None) -> tuple[Tensor, ...]:
        """All three of all tokens; with `at_B`, the query of one token of each sample alone."""
        if at_B is None:
            return F.linear(x_BTC, self.weight, self.bias).chunk(3, dim=2)
        C = x_BTC.shape[2]
        q_B1C = F.linear(read(x_BTC, at_B), self.weight[:C], self.bias[:C])
        return q_B1C, *F.linear(x_BTC, self.weight[C:], self.bias[C:]).chunk(2, dim=2)


class Attention(nn.Module):
    """Self-attention over all heads at once, causal or not."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.num_heads, self.causal = heads, causal
        self.qkv = QKV(width)
        self.out = nn.Linear(width, width)

    def forward(self, x_BTC: Tensor, at_B: Tensor | None = None) -> Tensor:
        """Mix tokens; with `at_B`, for one token of each sample alone."""
        q, k, v = (
            part.unflatten(2, (self.num_heads, -1)).transpose(1, 2)
            for part in self.qkv(x_BTC, at_B)
        )
        seen = None
        if self.causal and at_B is not None:
            seen = (torch.arange(k.shape[2], device=at_B.device) <= at_B[:, None])[:, None, None]
        causal = self.causal and at_B is None
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal)
        return cast(Tensor, self.out(y.transpose(1, 2).flatten(2)))


class FeedForward(nn.Module):
    """Two layers, the hidden one four times as wide."""

    def __init__(self, width: int, activation: Activation) -> None:
        super().__init__()
        self.fc = nn.Linear(width, 4 * width)
        self.proj = nn.Linear(4 * width, width)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Transform each token alone."""
        return cast(Tensor, self.proj(self.activation(self.fc(x_BTC))))


class Block(nn.Module):
    """Attention and feed-forward, each on a normalised copy, added to the stream."""

    def __init__(self, width: int, heads: int, config: CLIPConfig, *, causal: bool) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = Attention(width, heads, causal=causal)
        self.ln_2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = FeedForward(width, config.activation)

    def forward(self, x_BTC: Tensor, at_B: Tensor | None = None) -> Tensor:
        """One layer; with `at_B`, what it makes of one token of each sample: x_B1C."""
        mixed = self.attn(self.ln_1(x_BTC), at_B)
        x_BTC = (x_BTC if at_B is None else read(x_BTC, at_B)) + mixed
        return x_BTC + cast(Tensor, self.mlp(self.ln_2(x_BTC)))


def read(x_BTC: Tensor, at_B: Tensor) -> Tensor:
    """One token of each sample, x_B1C."""
    return x_BTC.gather(1, at_B[:, None, None].expand(-1, 1, x_BTC.shape[2]))


class Blocks(nn.Module):
    """A stack of blocks that is read at one token of each sample. Of the last block nothing else is
    computed: of six blocks a seventh of the work. `activation_checkpointing` trades a second forward pass for
    the activations' memory."""

    def __init__(self, shape: ViTConfig | TextConfig, config: CLIPConfig, *, causal: bool) -> None:
        super().__init__()
        self.activation_checkpointing = False
        self.layers = nn.ModuleList(
            Block(shape.hidden_size, shape.num_heads, config, causal=causal)
            for _ in range(shape.num_layers)
        )

    def forward(self, x_BTC: Tensor, at_B: Tensor) -> Tensor:
        """All layers: what they make of the token at `at_B`, x_BC."""
        for block in self.layers:
            at = at_B if block is self.layers[-1] else None
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_BTC = checkpoint(block, x_BTC, at, use_reentrant=False)
            else:
                x_BTC = block(x_BTC, at)
        return x_BTC.squeeze(1)

    @torch.no_grad()
    def reset(self) -> None:
        """Draw the weights anew."""
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


class VisionTransformer(nn.Module):
    """Images -> embeddings by a class token.

    Given which patches of each image are looked at, the others cost nothing (Li et al. 2022,
    "FLIP"). The class token always stays.
    """

    def __init__(self, shape: ViTConfig, config: CLIPConfig) -> None:
        super().__init__()
        self.shape = shape
        self.patch = nn.Linear(3 * shape.patch_size**2, shape.hidden_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(shape.hidden_size))
        self.position_embedding = nn.Parameter(torch.empty(shape.patches + 1, shape.hidden_size))
        self.ln_pre = nn.LayerNorm(shape.hidden_size, eps=config.norm_eps)
        self.blocks = Blocks(shape, config, causal=False)
        self.ln_post = nn.LayerNorm(shape.hidden_size, eps=config.norm_eps)
        self.proj = nn.Linear(shape.hidden_size, config.embed_dim, bias=False)

    @torch.no_grad()
    def reset(self) -> None:
        """Draw the weights anew."""
        self.blocks.reset()
        self.patch.weight.normal_(std=(3 * self.patch.in_features) ** -0.5)
        for parameter in (self.class_embedding, self.position_embedding, self.proj.weight):
            parameter.normal_(std=self.shape.hidden_size**-0.5)
        for norm in (self.ln_pre, self.ln_post):
            norm.reset_parameters()

    def forward(self, pixels_B3HW: Tensor, places_BK: Tensor | None = None) -> Tensor:
        """Embeddings_BE, not normalised.

        Args:
            pixels_B3HW: the images.
            places_BK: which patches of each are looked at; left out, all are.

        Raises:
            ValueError: the images have another size.
        """
        size = self.shape.image_size
        if pixels_B3HW.shape[1:] != (3, size, size):
            given = "x".join(map(str, pixels_B3HW.shape[1:]))
            raise ValueError(f"images are 3x{size}x{size} here, not {given}")
        patches_BNP = split(pixels_B3HW.to(self.patch.weight.dtype), self.shape.patch_size)
        positions_NC = self.position_embedding[1:]
        if places_BK is None:
            x_BNC = self.patch(patches_BNP) + positions_NC
        else:
            columns = places_BK[..., None].expand(-1, -1, patches_BNP.shape[2])
            x_BNC = self.patch(patches_BNP.gather(1, columns)) + positions_NC[places_BK]
        first_B1C = (self.class_embedding + self.position_embedding[0]).expand(len(x_BNC), 1, -1)
        first_B = torch.zeros(len(x_BNC), dtype=torch.long, device=x_BNC.device)
        x_BC = self.blocks(self.ln_pre(torch.cat([first_B1C, x_BNC], 1)), first_B)
        return cast(Tensor, self.proj(self.ln_post(x_BC)))


def split(pixels_B3HW: Tensor, side: int) -> Tensor:
    """Images -> patches_BNP, row by row; channels, rows and columns of a patch in that order."""
    B, _, H, W = pixels_B3HW.shape
    grid = pixels_B3HW.view(B, 3, H // side, side, W // side, side)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(B, -1, 3 * side * side)


class TextTransformer(nn.Module):
    """Captions -> embeddings, read at the first end-of-text token; what follows it is not seen."""

    def __init__(self, shape: TextConfig, config: CLIPConfig) -> None:
        super().__init__()
        self.shape = shape
        self.token_embedding = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.position_embedding = nn.Parameter(torch.empty(shape.context_length, shape.hidden_size))
        self.blocks = Blocks(shape, config, causal=True)
        self.ln_final = nn.LayerNorm(shape.hidden_size, eps=config.norm_eps)
        self.proj = nn.Linear(shape.hidden_size, config.embed_dim, bias=False)

    @torch.no_grad()
    def reset(self) -> None:
        """Draw the weights anew."""
        self.blocks.reset()
        self.token_embedding.weight.normal_(std=0.02)
        self.position_embedding.normal_(std=0.01)
        self.proj.weight.normal_(std=self.shape.hidden_size**-0.5)
        self.ln_final.reset_parameters()

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Embeddings_BE, not normalised.

        Raises:
            ValueError: a caption is longer than the context.
        """
        T = tokens_BT.shape[1]
        if self.shape.context_length < T:
            raise ValueError(f"{T} tokens do not fit a context of {self.shape.context_length}")
        end_B = (tokens_BT == self.shape.eos).int().argmax(1)
        x_BTC = self.token_embedding(tokens_BT) + self.position_embedding[:T]
        return cast(Tensor, self.proj(self.ln_final(self.blocks(x_BTC, end_B))))
