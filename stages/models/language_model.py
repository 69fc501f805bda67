"""What all decoders share: reading tokens, the loss, the cache; blocks come from the family.

    tokens ─ embed ─ block × layers ─ norm ─ head ─ logits, or the loss

One device, plain PyTorch: how weights and batches are spread over processes is applied from
outside. A family (`gpt`, `decoder`) brings its blocks, its embedding and its last norm.

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
from stages.models.language_model_config import ExpertsConfig, LanguageConfig, width_multiple

INIT_STD = 0.02


class Routing(NamedTuple):
    """What one layer with experts tells of a forward pass."""

    balance: Tensor
    """The load-balancing loss, a scalar with a gradient, without its coefficient."""
    z: Tensor
    """The router's z-loss, likewise."""
    load_E: Tensor
    """Share of the choices that fell on each expert, before capacity."""
    dropped: Tensor
    """Share of the choices that found their expert full."""
    entropy: Tensor
    """Of the router's probabilities, in nats, mean over tokens."""


@dataclass
class ForwardOutputs:
    """What a forward pass tells besides its result: hand an empty one in, and read it after."""

    routing: list[Routing] = field(default_factory=list)
    """One a layer with experts."""
    cross_entropy: Tensor | None = None
    """The loss without z-loss and balance, no gradient; with targets."""


def router_aux_loss(experts: ExpertsConfig, routing: Sequence[Routing]) -> Tensor:
    """What keeps routers in bounds, a scalar with a gradient: their balance and z losses with
    their coefficients, added up over layers. It is of a position: a loss that is a sum over
    positions takes it as often."""
    return torch.stack(
        [
            experts.aux_loss_coef * layer.balance + experts.router_z_loss_coef * layer.z
            for layer in routing
        ]
    ).sum()


class AttentionContext(NamedTuple):
    """What a block needs to know besides its input."""

    mask: Tensor | None
    """Who sees whom, as bool (B, 1, T, S); None is plainly causal (with a cache: everything)."""
    cache: KVCache | None
    rotary: tuple[Tensor, Tensor] | None
    """Cosines and sines (B, 1, T, D) of the positions, where a family turns by them."""
    padding_mask_BT: Tensor | None = None
    """False at padding, which experts are not to see; None where all tokens are real."""


class LanguageModel(nn.Module, ABC):
    """A decoder. A family defines what is abstract here.

    `activation_checkpointing` trades a second forward pass for the memory of the activations.
    """

    config: LanguageConfig
    activation_checkpointing = False

    @property
    @abstractmethod
    def blocks(self) -> Iterable[nn.Module]:
        """The layers in order; each maps (x_BTC, AttentionContext) to (x_BTC, Routing or None)."""

    @property
    @abstractmethod
    def lm_head_weight(self) -> Tensor:
        """The head's weight_VC."""

    @abstractmethod
    def embed(self, tokens_BT: Tensor, positions_BT: Tensor) -> Tensor:
        """The first hidden states_BTC."""

    @abstractmethod
    def norm(self, x_BTC: Tensor) -> Tensor:
        """The last normalisation."""

    def rotary(self, positions_BT: Tensor) -> tuple[Tensor, Tensor] | None:
        """Cosines and sines of the positions; none where they are learned."""
        return None

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        mask_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        padding_mask_BT: Tensor | None = None,
        cache: KVCache | None = None,
        at_BT: Tensor | None = None,
        targets_BT: Tensor | None = None,
        z_coef: float = 0.0,
        trace: ForwardOutputs | None = None,
    ) -> Tensor:
        """Next-token logits_BTV, or logits_NV at the positions that `at_BT` marks; with
        `targets_BT` the loss instead.

        Args:
            tokens_BT: token ids.
            mask_BT: True where a token is real. Needed for padding on the left; padding on the
                right needs none, for nothing real ever looks to its right.
            segments_BT: the number of each token's document: it sees no other. Not with a cache.
            positions_BT: of each token; counted along the row where left out. Not with a cache.
            padding_mask_BT: False at padding: experts neither take nor count it. Attention does not ask
                (see `mask_BT`).
            cache: what was read before; filled in place.
            at_BT: True where logits are wanted (row-major order), so that the head, the dearest
                layer of a small model, runs nowhere else.
            targets_BT: the right next tokens, -100 where there is none to learn; what is returned
                is the sum of their cross-entropies in nats, as a float32 scalar.
            z_coef: of the z-loss that is added, log^2 of the softmax's normaliser
                (Chowdhery et al. 2022, section 5).
            trace: filled with what else there is to know.

        Raises:
            ValueError: a sequence is longer than the context, with what the cache holds; or
                segments or positions come with a cache.
        """
        x_BTC = self.hidden(
            tokens_BT,
            mask_BT=mask_BT,
            segments_BT=segments_BT,
            positions_BT=positions_BT,
            padding_mask_BT=padding_mask_BT,
            cache=cache,
            trace=trace,
        )
        if targets_BT is None:
            return self.head(x_BTC if at_BT is None else x_BTC[at_BT])
        total, cross_entropy = linear_cross_entropy(
            self._read(x_BTC.flatten(0, 1)),
            self.lm_head_weight,
            targets_BT.flatten(),
            z_coef=z_coef,
        )
        if trace is not None:
            trace.cross_entropy = cross_entropy
        return total

    def head(self, x_C: Tensor) -> Tensor:
        """Logits over the vocabulary of final hidden states (…, C)."""
        return F.linear(self._read(x_C), self.lm_head_weight)

    def _read(self, x_C: Tensor) -> Tensor:
        """What the head multiplies of final hidden states (…, C): muP makes less of wide ones."""
        multiple = width_multiple(self.config)
        return x_C if multiple == 1 else x_C / multiple

    def hidden(
        self,
        tokens_BT: Tensor,
        *,
        mask_BT: Tensor | None = None,
        segments_BT: Tensor | None = None,
        positions_BT: Tensor | None = None,
        padding_mask_BT: Tensor | None = None,
        cache: KVCache | None = None,
        trace: ForwardOutputs | None = None,
    ) -> Tensor:
        """Final hidden states_BTC, after the last norm. Arguments as in `forward`."""
        positions, mask = self._attention(tokens_BT, mask_BT, segments_BT, positions_BT, cache)
        context = AttentionContext(mask, cache, self.rotary(positions), padding_mask_BT)
        x_BTC = self.embed(tokens_BT, positions)
        for block in self.blocks:
            if self.activation_checkpointing and torch.is_grad_enabled():
                x_BTC, routing = checkpoint(block, x_BTC, context, use_reentrant=False)
            else:
                x_BTC, routing = block(x_BTC, context)
            if trace is not None and routing is not None:
                trace.routing.append(routing)
        return self.norm(x_BTC)

    def cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for `batch` rows of up to `capacity` tokens, padding included."""
        return KVCache(self.config, batch, capacity, self.lm_head_weight.detach())

    def _attention(
        self,
        tokens_BT: Tensor,
        mask_BT: Tensor | None,
        segments_BT: Tensor | None,
        positions_BT: Tensor | None,
        cache: KVCache | None,
    ) -> tuple[Tensor, Tensor | None]:
        """Positions and the bool mask of who sees whom (None: plainly causal)."""
        B, T = tokens_BT.shape
        if cache is not None:
            if segments_BT is not None or positions_BT is not None:
                raise ValueError("a cache holds one document a row and counts its positions itself")
            positions = cache.admit(mask_BT, B, T)
            return positions, cache.mask(T)
        if self.config.context_length < T:
            raise ValueError(f"{T} tokens do not fit a context of {self.config.context_length}")
        if positions_BT is None:
            row_T = torch.arange(T, device=tokens_BT.device)[None]
            positions_BT = row_T if mask_BT is None else (mask_BT.cumsum(1) - 1).clamp(min=0)
        if segments_BT is not None:
            return positions_BT, block_diagonal_causal_mask(segments_BT, mask_BT)
        return positions_BT, None if mask_BT is None else causal_padding_mask(mask_BT.bool(), T)
