"""The interface of every language model's config, free of torch: sizes, counts, costs.

A family derives its config from `LanguageModelConfig` in its own folder. What plans, caches and
initialization need of a model they ask through these attributes and methods, so that none of them
tests for a family.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from pipeline.stage import Section

HEAD_ROWS_ON_CPU, HEAD_LOGITS_ON_GPU = 384, 1 << 26
"""Positions whose logits the fused head computes at a time on a CPU: with fewer, reading and
writing the gradient of the whole weight takes longer than the products. On a GPU: logits."""


def head_rows(vocab_size: int, *, gpu: bool) -> int:
    """Return the number of positions whose logits the fused head computes at a time."""
    return max(1, HEAD_LOGITS_ON_GPU // vocab_size) if gpu else HEAD_ROWS_ON_CPU


class MuP(Section):
    """The maximal update parametrization: the learning rate that is best at `base_width` is best at
    every width (Yang et al. 2022, "Tensor Programs V"; the rules are in `stages.models.mup`).

    Sizes that grow with the width are assumed to grow in proportion: the heads or their size, and
    the hidden size of feed-forward layers. A model of `base_width` with heads of `base_head_size`
    is trained as without muP.
    """

    base_width: Annotated[int, Field(ge=1)]
    """Hidden size at which the learning rate was tuned."""
    base_head_size: Annotated[int, Field(ge=1)] = 64
    """Head size whose square root scales the products of queries and keys, which are divided by the
    head size. Default: 64."""


class ExpertsConfig(Section):
    """The experts of a mixture-of-experts layer and the router that sends tokens to them.

    Capacity and the load-balancing loss are counted over a group: the real tokens of one sequence.
    The function therefore depends neither on padding nor on how a batch is divided into ranks and
    micro-batches, except with `aux_loss_scope: batch`.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "num": "num_experts",
        "every": "moe_every",
        "normalize_gates": "norm_topk_prob",
        "balance_coef": "aux_loss_coef",
        "balance_over": "aux_loss_scope",
        "z_coef": "router_z_loss_coef",
        "jitter": "router_jitter",
    }

    num_experts: Annotated[int, Field(ge=1)]
    """Experts per layer."""
    moe_every: Annotated[int, Field(ge=1)] = 2
    """Period of the blocks with experts; the other blocks have a dense feed-forward layer. Default:
    2 (Fedus et al. 2021)."""
    top_k: Annotated[int, Field(ge=1)] = 1
    """Experts per token. Default: 1."""
    norm_topk_prob: bool = False
    """Normalization of the gates of a token's experts to a sum of 1, which needs `top_k` above 1.
    Default: off."""
    capacity_factor: Annotated[float | None, Field(gt=0)] = 1.25
    """Capacity of an expert in training over its even share of a group's tokens; tokens beyond it
    skip the layer, and none means dropless. Default: 1.25."""
    eval_capacity_factor: Annotated[float | None, Field(gt=0)] = None
    """Capacity factor without gradients. Default: dropless, as in every exported model."""
    aux_loss_coef: Annotated[float, Field(ge=0)] = 1e-2
    """Coefficient of the load-balancing loss (Fedus et al. 2021, equation 4). Default: 0.01."""
    aux_loss_scope: Literal["sequence", "batch"] = "sequence"
    """Tokens over which the load is balanced: each sequence, or the micro-batches of all ranks
    together, which makes the loss depend on `micro_batch_size`. Default: sequence."""
    router_z_loss_coef: Annotated[float, Field(ge=0)] = 0.0
    """Coefficient of the router's z-loss (Zoph et al. 2022, equation 5). Default: 0."""
    router_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Width of the noise in training: the router's input is multiplied by random factors in
    [1 - router_jitter, 1 + router_jitter]. Default: 0."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Dropout rate within experts, in fine-tuning larger than elsewhere (Fedus et al. 2021, section
    4.1). Default: 0."""

    @model_validator(mode="after")
    def _check_top_k(self) -> ExpertsConfig:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k ({self.top_k}) is more than num_experts ({self.num_experts})")
        return self


class Matrix(NamedTuple):
    """A shape of weight matrices, and their number in a model."""

    number: int
    rows: int
    columns: int


class LinearLayer(NamedTuple):
    """A linear layer of the blocks as `transformers` has it, and its number in a model."""

    module: str
    """Path of the module within a block."""
    number: int
    rows: int
    columns: int
    expert: bool = False
    """True if each expert has one; they are counted together."""


@dataclass(frozen=True)
class LanguageModelConfig(ABC):
    """The shape of a decoder-only language model."""

    vocab_size: int
    context_length: int
    num_layers: int
    hidden_size: int
    num_heads: int

    gated: ClassVar[bool] = False
    """True if the feed-forward layer multiplies its hidden layer by a gate."""

    if TYPE_CHECKING:

        @property
        def num_kv_heads(self) -> int:
            """Heads of keys and values, each shared by num_heads / num_kv_heads queries."""

        @property
        def head_size(self) -> int:
            """Width of an attention head."""

        @property
        def intermediate_size(self) -> int:
            """Hidden size of the feed-forward layer and of each expert."""

        @property
        def tie_embeddings(self) -> bool:
            """True if the head is the embedding."""

        @property
        def norm_eps(self) -> float:
            """Epsilon of the normalization layers."""

        @property
        def dropout(self) -> float:
            """Dropout rate of the embeddings, the attention weights and the residual branches."""

        @property
        def residual_dropout(self) -> float | None:
            """Dropout rate of the residual branches alone, or None: that of the others."""

        @property
        def mup(self) -> MuP | None:
            """The maximal update parametrization, or None."""

        @property
        def experts(self) -> ExpertsConfig | None:
            """The experts, or None in a dense model."""

    @property
    @abstractmethod
    def family(self) -> str:
        """The name of the family in `stages.models.registry`."""

    @property
    def branch_dropout(self) -> float:
        """Dropout rate of the residual branches."""
        return self.dropout if self.residual_dropout is None else self.residual_dropout

    # --- experts ---------------------------------------------------------------------------

    def has_experts(self, layer: int) -> bool:
        """Return whether block `layer` (from 0) has experts: the last of each `moe_every`."""
        return self.experts is not None and (layer + 1) % self.experts.moe_every == 0

    @property
    def moe_layers(self) -> list[int]:
        """The blocks with experts."""
        return [layer for layer in range(self.num_layers) if self.has_experts(layer)]

    @property
    def experts_per_token(self) -> int:
        """Experts that a token is sent to; 0 in a dense model."""
        return self.experts.top_k if self.experts else 0

    @property
    def expert_parameters(self) -> int:
        """Weights of all experts, without the routers."""
        if self.experts is None:
            return 0
        return len(self.moe_layers) * self.experts.num_experts * self.feed_forward_parameters

    # --- counts and FLOPs ------------------------------------------------------------------

    @property
    @abstractmethod
    def parameters(self) -> int:
        """All weights; a tied head counts once."""

    @property
    @abstractmethod
    def active_parameters(self) -> int:
        """Weights that one token passes."""

    @property
    @abstractmethod
    def feed_forward_parameters(self) -> int:
        """Weights of one feed-forward layer or expert."""

    @property
    @abstractmethod
    def flops_per_token(self) -> int:
        """FLOPs of a forward and backward pass per token at full context: 6 N plus those of
        attention, where N counts the weights that a token is multiplied with (Chowdhery et al.
        2022, appendix B)."""

    @property
    def matmul_width(self) -> int:
        """Typical width of the matrices, which decides the efficiency of a device."""
        return self.hidden_size

    @abstractmethod
    def block_matrices(self) -> Iterator[Matrix]:
        """Yield the weight matrices of the blocks, without routers."""

    def linear_layers(self) -> Iterator[LinearLayer]:
        """Yield the linear layers of the blocks, without routers, by their modules. Default: none,
        so that the family cannot have adapters."""
        yield from ()

    # --- memory ----------------------------------------------------------------------------

    @abstractmethod
    def block_activation_bytes(
        self, itemsize: int, *, moe: bool, document_mask: bool, gpu: bool
    ) -> float:
        """Return the bytes per position that one block keeps for its backward pass.

        Args:
            itemsize: bytes of an activation.
            moe: whether the block has experts.
            document_mask: whether attention is given a mask.
            gpu: whether the operators are those of a GPU, where a norm is one kernel.
        """

    @property
    @abstractmethod
    def merged_parameters(self) -> int:
        """Weights that are concatenated out of a folder's tensors when it is loaded."""

    # --- initialization --------------------------------------------------------------------

    @property
    @abstractmethod
    def architecture_fields(self) -> dict[str, Any]:
        """Return the part of the shape that the weights determine, by the keys of `model`."""

    def can_upcycle(self, dense: LanguageModelConfig) -> bool:
        """Return whether the experts may start from a dense model's feed-forward layers."""
        return self.experts is not None and dense.experts is None


def width_multiple(config: LanguageModelConfig) -> float:
    """Return the hidden size over that at which the learning rate was tuned; 1 without muP."""
    return config.hidden_size / config.mup.base_width if config.mup else 1.0


def attention_scale(config: LanguageModelConfig) -> float:
    """Return the factor of the products of queries and keys."""
    base = config.mup.base_head_size if config.mup else config.head_size
    return math.sqrt(base / config.head_size) / math.sqrt(config.head_size)


def check_dropout(value: float) -> None:
    """Raise a ValueError unless a dropout rate is in [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"dropout must be in [0, 1), not {value}")
