"""The common part of all decoders: the forward pass, the loss, the cache.

    tokens ─ embed ─ block × layers ─ norm ─ head ─ logits, or the loss

One device, plain PyTorch: parallelism is applied from outside. A family adds its blocks, its
embedding and its last norm.

Shape suffixes: B batch, T new tokens, S tokens in the cache, C width, H heads, D head size,
V vocabulary, N chosen positions, E experts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from stages.models.fused_ops import linear_cross_entropy
from stages.models.kv_cache import KVCache, block_diagonal_causal_mask, causal_padding_mask
from stages.models.language_model_config import ExpertsConfig, LanguageModelConfig, width_multiple

INIT_STD = 0.02


class Routing(NamedTuple):
    """Statistics of one layer with experts in a forward pass."""

    balance: Tensor
    """Load-balancing loss, a scalar with a gradient, without its coefficient."""
    z: Tensor
    """Router z-loss, likewise."""
    load_E: Tensor
    """Share of the choices of each expert, before capacity."""
    dropped: Tensor
    """Share of the choices beyond the capacity of their expert."""
    entropy: Tensor
    """Entropy of the router's probabilities, nats, mean over tokens."""


@dataclass
class ForwardOutputs:
    """Further outputs of a forward pass, which fills an empty object that it is given."""

    routing: list[Routing] = field(default_factory=list)
    """One per layer with experts."""
    cross_entropy: Tensor | None = None
    """Loss without the z-losses and the load-balancing loss, without a gradient; with targets."""


def router_aux_loss(experts: ExpertsConfig, routing: Sequence[Routing]) -> Tensor:
    """Return the load-balancing and z losses of the routers with their coefficients, summed over
    layers: a scalar with a gradient. It is per position: multiply it by the number of positions for
    a summed loss."""
    return torch.stack(
        [
            experts.aux_loss_coef * layer.balance + experts.router_z_loss_coef * layer.z
            for layer in routing
        ]
    ).sum()


class AttentionContext(NamedTuple):
    """The inputs of a block next to the hidden states."""

    mask: Tensor | None
    """Attention mask, bool (B, 1, T, S); None is causal, or with a cache all keys."""
    cache: KVCache | None
    rotary: tuple[Tensor, Tensor] | None
    """Cosines and sines (B, 1, T, D) of the positions, in a family with rotary positions."""
    token_mask_BT: Tensor | None = None
    """True at tokens, False at padding, which is not routed to experts; None without padding."""


class LanguageModel(nn.Module, ABC):
    """A decoder; a family defines the abstract members.

    `activation_checkpointing` trades a second forward pass for the memory of the activations.
    """

    config: LanguageModelConfig
    activation_checkpointing = False

    @property
    @abstractmethod
    def blocks(self) -> Iterable[nn.Module]:
        """The layers in order; each maps (x_BTC, AttentionContext) to (x_BTC, Routing or None)."""

    @property
    @abstractmethod
    def lm_head_weight(self) -> Tensor:
        """The head's weight_VC."""

    last_norm: str
    """Name of the last normalization."""

    @property
    @abstractmethod
    def query_weights(self) -> tuple[str, ...]:
        """Suffixes of the weights whose first num_heads * head_size rows scale the queries."""

    @property
    def last_norm_bias(self) -> Tensor | None:
        """The bias of the last normalization, if it has one."""
        return None

    def drop_lm_head(self) -> None:
        """Remove a head of its own, for a model that is used as a body only."""

    @abstractmethod
    def embed(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """Return the first hidden states_BTC."""

    @abstractmethod
    def norm(self, x_BTC: Tensor) -> Tensor:
        """Return the hidden states after the last normalization."""

    def rotary(self, positions_BT: Tensor) -> tuple[Tensor, Tensor] | None:
        """Return cosines and sines of the positions, or None if positions are learned."""
        return None

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        mask_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        token_mask_BT: Tensor | None = None,
        cache: KVCache | None = None,
        position_mask_BT: Tensor | None = None,
        targets_BT: Tensor | None = None,
        z_coef: float = 0.0,
        outputs: ForwardOutputs | None = None,
    ) -> Tensor:
        """Return the next-token logits_BTV, or logits_NV at the positions that `position_mask_BT`
        marks; with `targets_BT` the loss instead.

        Args:
            tokens_BT: token ids.
            mask_BT: True at real tokens. Needed for padding on the left; padding on the right needs
                no mask, because no real token attends to its right.
            segments_BT: the index of each token's document; it does not attend outside. Not with a
                cache.
            positions_BT: of each token. Default: counted along the row. Not with a cache.
            token_mask_BT: True at tokens, False at padding, which experts
                neither take nor count. Attention itself needs `mask_BT` for padding on the left.
            cache: the keys and values of earlier tokens; filled in place.
            position_mask_BT: True where logits are needed (row-major order), so that the head, the
                most expensive layer of a small model, runs nowhere else.
            targets_BT: the next tokens, -100 at positions without a loss; the result is the sum of
                the cross-entropies, nats, as a float32 scalar.
            z_coef: coefficient of the added z-loss, log^2 of the softmax's normalizer (Chowdhery et
                al. 2022, section 5).
            outputs: filled with further outputs.

        Raises:
            ValueError: a sequence is longer than the context, with the tokens of the cache; or
                segments or positions are given with a cache.
        """
        x_BTC = self.hidden(
            tokens_BT,
            mask_BT=mask_BT,
            segments_BT=segments_BT,
            positions_BT=positions_BT,
            token_mask_BT=token_mask_BT,
            cache=cache,
            outputs=outputs,
        )
        if targets_BT is None:
            return self.head(x_BTC if position_mask_BT is None else x_BTC[position_mask_BT])
        total, cross_entropy = linear_cross_entropy(
            self._head_input(x_BTC.flatten(0, 1)),
            self.lm_head_weight,
            targets_BT.flatten(),
            z_coef=z_coef,
        )
        if outputs is not None:
            outputs.cross_entropy = cross_entropy
        return total

    def head(self, x_C: Tensor) -> Tensor:
        """Return the logits over the vocabulary of final hidden states (..., C)."""
        return F.linear(self._head_input(x_C), self.lm_head_weight)

    def _head_input(self, x_C: Tensor) -> Tensor:
        """Return the input of the head: final hidden states (..., C), divided by muP's factor."""
        multiple = width_multiple(self.config)
        return x_C if multiple == 1 else x_C / multiple

    def hidden(
        self,
        tokens_BT: Tensor,
        *,
        mask_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        token_mask_BT: Tensor | None = None,
        cache: KVCache | None = None,
        outputs: ForwardOutputs | None = None,
    ) -> Tensor:
        """Return the final hidden states_BTC, after the last norm. Arguments as in `forward`."""
        positions, mask = self._attention(tokens_BT, mask_BT, segments_BT, positions_BT, cache)
        context = AttentionContext(mask, cache, self.rotary(positions), token_mask_BT)
        x_BTC = self.embed(tokens_BT, positions)
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_BTC, routing = checkpoint(block, x_BTC, context, use_reentrant=False)
            else:
                x_BTC, routing = block(x_BTC, context)
            if outputs is not None and routing is not None:
                outputs.routing.append(routing)
        return self.norm(x_BTC)

    def cache(self, batch: int, capacity: int) -> KVCache:
        """Return an empty cache for `batch` rows of up to `capacity` tokens, padding included."""
        return KVCache(self.config, batch, capacity, self.lm_head_weight.detach())

    def _attention(
        self,
        tokens_BT: Tensor,
        mask_BT: Tensor | None,
        segments_BT: Tensor | None,
        positions_BT: Tensor | None,
        cache: KVCache | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the positions and the attention mask (None: causal)."""
        B, T = tokens_BT.shape
        if cache is not None:
            if segments_BT is not None or positions_BT is not None:
                raise ValueError(
                    "a cache holds one document per row and counts its positions itself"
                )
            positions = cache.append(mask_BT, B, T)
            return positions, cache.mask(T)
        if self.config.context_length < T:
            raise ValueError(f"{T} tokens do not fit a context of {self.config.context_length}")
        if positions_BT is None:
            row_T = torch.arange(T, device=tokens_BT.device)[None]
            positions_BT = row_T if mask_BT is None else (mask_BT.cumsum(1) - 1).clamp(min=0)
        if segments_BT is not None:
            return positions_BT, block_diagonal_causal_mask(segments_BT, mask_BT)
        return positions_BT, None if mask_BT is None else causal_padding_mask(mask_BT.bool(), T)
