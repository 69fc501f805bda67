"""The shape of a language model, free of torch, so that a plan can price a model in milliseconds.

GPTConfig       the block of GPT-2 and GPT-3: LayerNorm, learned positions, GELU, tied head
LlamaConfig   the modern block: RMSNorm, rotary positions, SwiGLU; with `experts`, a Switch
MuP             a parametrisation of either, under which one learning rate serves every width
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.stage import Section

HEAD_ROWS_ON_CPU, HEAD_ON_GPU = 384, 1 << 26
"""Positions whose logits the fused head of a processor makes at a time: fewer, and the sum of the
weight's gradient, which each part reads and writes whole, takes longer than its products. On a GPU
the logits."""


def head_rows(vocab_size: int, *, gpu: bool) -> int:
    """Positions whose logits the fused head makes at a time."""
    return max(1, HEAD_ON_GPU // vocab_size) if gpu else HEAD_ROWS_ON_CPU


class MuP(Section):
    """The maximal update parametrisation: the learning rate that is best at `base_width` is so at
    every width (Yang et al. 2022, "Tensor Programs V"; the rules are in `stages.models.mup`).

    What grows with the width is taken to grow in proportion: heads or their size, and the hidden
    width of feed-forward layers. A model of `base_width` whose heads are of `base_head_size` is
    trained as without.
    """

    base_width: Annotated[int, Field(ge=1)]
    """The width at which the learning rate was tuned."""
    base_head_size: Annotated[int, Field(ge=1)] = 64
    """Products of queries and keys are divided by the head's size, times the root of this one."""


@dataclass(frozen=True)
class GPTConfig:
    """What fixes the function a GPT computes.

    Raises:
        ValueError: the width is not a multiple of the heads, or a size is not positive.
    """

    vocab_size: int
    context_length: int
    num_layers: int
    hidden_size: int
    num_heads: int
    dropout: float = 0.0
    """Of the embeddings, the attention weights and both residual branches."""
    n_inner: int | None = None
    """Hidden width of the feed-forward layer; four times the width if left out."""
    norm_eps: float = 1e-5
    mup: MuP | None = None

    def __post_init__(self) -> None:
        sizes = (
            self.vocab_size,
            self.context_length,
            self.num_layers,
            self.hidden_size,
            self.num_heads,
            self.intermediate_size,
        )
        if min(sizes) < 1:
            raise ValueError(f"every size of a GPT must be positive, not {self}")
        _check_heads(self.hidden_size, self.num_heads)
        _check_share("dropout", self.dropout)

    @property
    def intermediate_size(self) -> int:
        """Hidden width of the feed-forward layer."""
        return 4 * self.hidden_size if self.n_inner is None else self.n_inner

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    @property
    def num_kv_heads(self) -> int:
        """Heads of keys and values: all."""
        return self.num_heads

    @property
    def parameters(self) -> int:
        """How many weights there are; the tied head counts once."""
        attention = 4 * self.hidden_size * self.hidden_size + 4 * self.hidden_size
        feed_forward = (
            2 * self.hidden_size * self.intermediate_size
            + self.intermediate_size
            + self.hidden_size
        )
        block = attention + feed_forward + 4 * self.hidden_size
        embeddings = (self.vocab_size + self.context_length) * self.hidden_size
        return embeddings + self.num_layers * block + 2 * self.hidden_size

    @property
    def active_parameters(self) -> int:
        """Weights that one token passes: all."""
        return self.parameters

    @property
    def flops_per_token(self) -> int:
        """Of one forward and backward pass at full context: 6 N + 12 L C T, where N counts the
        weights that a token is multiplied with (Chowdhery et al. 2022, appendix B)."""
        matmul = self.parameters - self.context_length * self.hidden_size
        return 6 * matmul + 12 * self.num_layers * self.hidden_size * self.context_length


class ExpertsConfig(Section):
    """The experts of a Switch layer and how tokens are sent to them.

    A group, over which capacity and the balance loss are counted, is the real tokens of one
    sequence: so the function does not depend on padding, nor on how a batch falls on ranks and
    micro-batches, unless `balance_over: batch`.
    """

    num_experts: Annotated[int, Field(ge=1)]
    """Experts of a layer."""
    moe_every: Annotated[int, Field(ge=1)] = 2
    """Each n-th block has experts, the others a plain feed-forward layer (Fedus et al. 2021: 2)."""
    top_k: Annotated[int, Field(ge=1)] = 1
    """Experts that a token is sent to."""
    norm_topk_prob: bool = False
    """Make the gates of a token's experts add up to 1; of no use where there is one."""
    capacity_factor: Annotated[float | None, Field(gt=0)] = 1.25
    """In training an expert takes this much more than its even share of a group's tokens, the
    rest pass it by; none is dropless."""
    eval_capacity_factor: Annotated[float | None, Field(gt=0)] = None
    """The same without a gradient; none is dropless, which an exported model always is."""
    aux_loss_coef: Annotated[float, Field(ge=0)] = 1e-2
    """Of the load-balancing loss (Fedus et al. 2021, equation 4)."""
    balance_over: Literal["group", "batch"] = "group"
    """Whose load is to be even: of each group, or of the micro-batches of all ranks together, which
    lets sequences differ, and makes the loss depend on `micro_batch_size`."""
    router_z_loss_coef: Annotated[float, Field(ge=0)] = 0.0
    """Of the router's z-loss (Zoph et al. 2022, equation 5)."""
    router_jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The router's input is multiplied by chance in [1 - router_jitter, 1 + router_jitter] in training."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Within experts; in fine-tuning larger than elsewhere (Fedus et al. 2021, section 4.1)."""

    @model_validator(mode="after")
    def _enough(self) -> ExpertsConfig:
        if self.top_k > self.num_experts:
            raise ValueError(
                f"top_k ({self.top_k}) is more than there are experts ({self.num_experts})"
            )
        return self


@dataclass(frozen=True)
class LlamaConfig:
    """What fixes the function of a modern decoder.

    Raises:
        ValueError: sizes do not fit each other.
    """

    vocab_size: int
    context_length: int
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    """Heads of keys and values, each shared by heads / kv_heads queries (Ainslie et al. 2023)."""
    intermediate_size: int
    """Hidden width of the feed-forward layer, and of each expert."""
    head_size: int
    qk_norm: bool = False
    """RMSNorm of queries and keys, head by head (Henry et al. 2020)."""
    tie_embeddings: bool = True
    """Whether the head is the embedding."""
    dropout: float = 0.0
    """Of the embeddings, the attention weights and both residual branches."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies (Su et al. 2021)."""
    norm_eps: float = 1e-6
    experts: ExpertsConfig | None = None
    init_scale: float | None = None
    """Matrices start from a normal distribution cut at two deviations of sqrt(scale / fan_in), as
    Fedus et al. 2021 with 0.1; left out: 0.02, residual projections 0.02 / sqrt(2 layers)."""
    mup: MuP | None = None

    def __post_init__(self) -> None:
        sizes = (
            self.vocab_size,
            self.context_length,
            self.num_layers,
            self.hidden_size,
            self.num_heads,
        )
        if min(*sizes, self.num_kv_heads, self.intermediate_size, self.head_size) < 1:
            raise ValueError(f"every size of a decoder must be positive, not {self}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} heads cannot share {self.num_kv_heads} heads of keys evenly"
            )
        if self.head_size % 2:
            raise ValueError(f"rotary positions need an even head size, not {self.head_size}")
        if self.experts and self.experts.moe_every > self.num_layers:
            raise ValueError(
                f"no block of {self.num_layers} is a {self.experts.moe_every}th with experts"
            )
        _check_share("dropout", self.dropout)

    def has_experts(self, layer: int) -> bool:
        """Whether block `layer` (from 0) has experts: the last of each `every` blocks."""
        return self.experts is not None and (layer + 1) % self.experts.moe_every == 0

    @property
    def switch_layers(self) -> int:
        """Blocks with experts."""
        return self.num_layers // self.experts.moe_every if self.experts else 0

    @property
    def feed_forward_parameters(self) -> int:
        """Weights of one feed-forward layer or expert."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def parameters(self) -> int:
        """How many weights there are, those of all experts among them; a tied head counts once."""
        return self._parameters(self.experts.num_experts if self.experts else 0)

    @property
    def active_parameters(self) -> int:
        """Weights that one token passes."""
        return self._parameters(self.experts.top_k if self.experts else 0)

    def _parameters(self, experts: int) -> int:
        queries, keys = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        attention = self.hidden_size * (2 * queries + 2 * keys) + 2 * self.head_size * self.qk_norm
        dense = (self.num_layers - self.switch_layers + self.switch_layers * experts) * (
            self.feed_forward_parameters
        )
        routers = (
            self.switch_layers * self.hidden_size * self.experts.num_experts if self.experts else 0
        )
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        norms = (2 * self.num_layers + 1) * self.hidden_size
        return embeddings + self.num_layers * attention + dense + routers + norms

    @property
    def flops_per_token(self) -> int:
        """Of one forward and backward pass at full context: 6 N + 12 L H D T, where N counts the
        weights that a token is multiplied with (Chowdhery et al. 2022, appendix B)."""
        matmul = self.active_parameters - (
            0 if self.tie_embeddings else self.vocab_size * self.hidden_size
        )
        return (
            6 * matmul
            + 12 * self.num_layers * self.num_heads * self.head_size * self.context_length
        )


LanguageConfig = GPTConfig | LlamaConfig


def width_multiple(config: LanguageConfig) -> float:
    """The width over that at which the learning rate was tuned; 1 without muP."""
    return config.hidden_size / config.mup.base_width if config.mup else 1.0


def attention_scale(config: LanguageConfig) -> float:
    """What products of queries and keys are multiplied by."""
    base = config.mup.base_head_size if config.mup else config.head_size
    return math.sqrt(base / config.head_size) / math.sqrt(config.head_size)


def _check_heads(width: int, heads: int) -> None:
    if width % heads:
        raise ValueError(f"width {width} is not a multiple of {heads} heads")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), not {value}")
