"""GPT: the pre-LayerNorm decoder of GPT-2 and GPT-3, one device, plain PyTorch.

    tokens ─ wte + wpe ─┬─ ln_1 ─ attn ─(+)─┬─ ln_2 ─ mlp ─(+)─ … ─ ln_f ─ wte^T ─ logits
                        └───────────────┘   └────────────┘
                                  × layers

Learned positions, GELU (tanh), biases everywhere, head tied to the embedding; residual
projections start at 0.02/sqrt(2 layers) (Radford et al. 2019, section 2.3). Parameters carry the
names of the Hugging Face GPT-2, so an export is a transpose and nothing else.

Shape suffixes: B batch, T new tokens, S tokens in the cache, C width, H heads, D head size,
V vocabulary, N chosen positions.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stages.models.config import GPTConfig
from stages.models.fused import linear_cross_entropy

__all__ = ["GPT", "Cache", "GPTConfig"]

INIT_STD = 0.02


class Cache:
    """Keys and values of the tokens read so far: allocated once, filled in place.

    Rows may be padded on either side: padding is remembered, never attended to, and takes no
    position, so that a row continues exactly as if it were alone.
    """

    def __init__(self, config: GPTConfig, batch: int, capacity: int, like: Tensor) -> None:
        shape = (config.layers, batch, config.heads, capacity, config.head_size)
        self.keys = like.new_empty(shape)
        self.values = like.new_empty(shape)
        self.valid_BS = torch.zeros(batch, capacity, dtype=torch.bool, device=like.device)
        self.count_B = torch.zeros(batch, dtype=torch.long, device=like.device)
        self.length = 0
        self.padded = False

    def admit(self, mask_BT: Tensor | None, batch: int, steps: int) -> Tensor:
        """Make room for the next tokens and return their positions_BT.

        Raises:
            ValueError: the cache is full.
        """
        start, stop = self.length, self.length + steps
        if stop > self.valid_BS.shape[1]:
            raise ValueError(f"{stop} tokens do not fit a cache of {self.valid_BS.shape[1]}")
        if mask_BT is None:
            mask_BT = self.valid_BS.new_ones(batch, steps)
        else:
            self.padded = True
        self.valid_BS[:, start:stop] = mask_BT
        positions_BT = self.count_B[:, None] + mask_BT.cumsum(1) - 1
        self.count_B += mask_BT.sum(1)
        self.length = stop
        return positions_BT.clamp(min=0)

    def keep(self, rows: Tensor) -> None:
        """Forget all rows but these (indices): the others have nothing more to say."""
        self.keys = self.keys[:, rows]
        self.values = self.values[:, rows]
        self.valid_BS = self.valid_BS[rows]
        self.count_B = self.count_B[rows]

    def mask(self, steps: int) -> Tensor | None:
        """Which keys the newest `steps` tokens see, as bool (B, 1, T, S); None if all."""
        if steps == 1 and not self.padded:
            return None
        return visible(self.valid_BS[:, : self.length], steps)

    def extend(self, layer: int, k_BHTD: Tensor, v_BHTD: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values and return all of them (B, H, S, D)."""
        start = self.length - k_BHTD.shape[2]
        self.keys[layer, :, :, start : self.length] = k_BHTD
        self.values[layer, :, :, start : self.length] = v_BHTD
        return self.keys[layer, :, :, : self.length], self.values[layer, :, :, : self.length]


def visible(valid_BS: Tensor, steps: int) -> Tensor:
    """Which keys the last `steps` of S tokens see, as bool (B, 1, T, S): the real ones up to
    themselves."""
    S = valid_BS.shape[1]
    key_S = torch.arange(S, device=valid_BS.device)
    query_T = key_S[S - steps :]
    own_TS = query_T[:, None] == key_S
    past_TS = query_T[:, None] >= key_S
    # A padding token sees itself: a row of nothing would make the softmax NaN.
    return ((past_TS & valid_BS[:, None]) | own_TS)[:, None]


class Attention(nn.Module):
    """Causal self-attention over all heads at once."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.heads, self.layer, self.dropout = config.heads, layer, config.dropout
        self.c_attn = nn.Linear(config.width, 3 * config.width)
        self.c_proj = nn.Linear(config.width, config.width)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTC: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """Mix tokens. Without a mask it is plainly causal (or, with a cache, sees all of it)."""
        B, T, C = x_BTC.shape
        q, k, v = (
            part.view(B, T, self.heads, C // self.heads).transpose(1, 2)
            for part in self.c_attn(x_BTC).split(C, dim=2)
        )
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)
        y_BHTD = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=mask is None and cache is None,
        )
        y_BTC = y_BHTD.transpose(1, 2).reshape(B, T, C)
        return cast(Tensor, self.resid_dropout(self.c_proj(y_BTC)))


class FeedForward(nn.Module):
    """Two layers with GELU (tanh) between."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.width, config.inner)
        self.c_proj = nn.Linear(config.inner, config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x_BTC: Tensor) -> Tensor:
        """Transform each token alone."""
        hidden = F.gelu(self.c_fc(x_BTC), approximate="tanh")
        return cast(Tensor, self.dropout(self.c_proj(hidden)))


class Block(nn.Module):
    """Attention and feed-forward, each on a normalised copy, added to the stream."""

    def __init__(self, config: GPTConfig, layer: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.attn = Attention(config, layer)
        self.ln_2 = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x_BTC: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """One layer."""
        x_BTC = x_BTC + self.attn(self.ln_1(x_BTC), mask, cache)
        return x_BTC + cast(Tensor, self.mlp(self.ln_2(x_BTC)))


class GPT(nn.Module):
    """The language model.

    `recompute` trades a second forward pass for the memory of the activations.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.recompute = False
        self.wte = nn.Embedding(config.vocab_size, config.width)
        self.wpe = nn.Embedding(config.context, config.width)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width, eps=config.norm_eps)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Draw the weights anew from torch's global generator."""
        for name, parameter in self.named_parameters():
            if name.endswith("c_proj.weight"):
                parameter.normal_(std=INIT_STD / math.sqrt(2 * self.config.layers))
            elif name.endswith("bias"):
                parameter.zero_()
            elif "ln_" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=INIT_STD)

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        mask_BT: Tensor | None = None,
        cache: Cache | None = None,
        at_BT: Tensor | None = None,
        targets_BT: Tensor | None = None,
    ) -> Tensor:
        """Next-token logits_BTV, or logits_NV at the positions that `at_BT` marks; with
        `targets_BT` the loss instead.

        Args:
            tokens_BT: token ids.
            mask_BT: True where a token is real. Needed for padding on the left; padding on the
                right needs none, for nothing real ever looks to its right.
            cache: what was read before; filled in place.
            at_BT: True where logits are wanted (row-major order), so that the head, the dearest
                layer of a small model, runs nowhere else.
            targets_BT: the right next tokens, -100 where there is none to learn; what is returned
                is the sum of their cross-entropies in nats, as a float32 scalar.

        Raises:
            ValueError: a sequence is longer than the context.
        """
        x_BTC = self.hidden(tokens_BT, mask_BT=mask_BT, cache=cache)
        if targets_BT is not None:
            return linear_cross_entropy(x_BTC.flatten(0, 1), self.wte.weight, targets_BT.flatten())
        return self.head(x_BTC if at_BT is None else x_BTC[at_BT])

    def head(self, x_C: Tensor) -> Tensor:
        """Logits over the vocabulary of final hidden states (…, C)."""
        return F.linear(x_C, self.wte.weight)

    def hidden(
        self,
        tokens_BT: Tensor,
        *,
        mask_BT: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Final hidden states_BTC, after the last LayerNorm. Arguments as in `forward`."""
        positions_BT, mask = self._attention(tokens_BT, mask_BT, cache)
        x_BTC = self.drop(self.wte(tokens_BT) + self.wpe(positions_BT))
        for block in self.h:
            if self.recompute and torch.is_grad_enabled():
                x_BTC = checkpoint(block, x_BTC, mask, cache, use_reentrant=False)
            else:
                x_BTC = block(x_BTC, mask, cache)
        return cast(Tensor, self.ln_f(x_BTC))

    def cache(self, batch: int, capacity: int) -> Cache:
        """An empty cache for `batch` rows of up to `capacity` tokens, padding included."""
        return Cache(self.config, batch, capacity, self.wte.weight.detach())

    def _attention(
        self, tokens_BT: Tensor, mask_BT: Tensor | None, cache: Cache | None
    ) -> tuple[Tensor, Tensor | None]:
        """Positions and the bool mask of who sees whom (None: plainly causal)."""
        B, T = tokens_BT.shape
        if cache is not None:
            positions_BT = cache.admit(mask_BT, B, T)
            return positions_BT, cache.mask(T)
        if self.config.context < T:
            raise ValueError(f"{T} tokens do not fit a context of {self.config.context}")
        if mask_BT is None:
            return torch.arange(T, device=tokens_BT.device)[None], None
        return (mask_BT.cumsum(1) - 1).clamp(min=0), visible(mask_BT.bool(), T)
