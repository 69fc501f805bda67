"""The shape of a language model, free of torch, so that a plan can price a model in milliseconds.

GPTConfig       the block of GPT-2 and GPT-3: LayerNorm, learned positions, GELU, tied head
DecoderConfig   the modern block: RMSNorm, rotary positions, SwiGLU; with `experts`, a Switch
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
    context: int
    layers: int
    width: int
    heads: int
    dropout: float = 0.0
    """Of the embeddings, the attention weights and both residual branches."""
    feed_forward: int | None = None
    """Hidden width of the feed-forward layer; four times the width if left out."""
    norm_eps: float = 1e-5
    mup: MuP | None = None

    def __post_init__(self) -> None:
        sizes = (self.vocab_size, self.context, self.layers, self.width, self.heads, self.inner)
        if min(sizes) < 1:
            raise ValueError(f"every size of a GPT must be positive, not {self}")
        _check_heads(self.width, self.heads)
        _check_share("dropout", self.dropout)

    @property
    def inner(self) -> int:
        """Hidden width of the feed-forward layer."""
        return 4 * self.width if self.feed_forward is None else self.feed_forward

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values: all."""
        return self.heads

    @property
    def parameters(self) -> int:
        """How many weights there are; the tied head counts once."""
        attention = 4 * self.width * self.width + 4 * self.width
        feed_forward = 2 * self.width * self.inner + self.inner + self.width
        block = attention + feed_forward + 4 * self.width
        embeddings = (self.vocab_size + self.context) * self.width
        return embeddings + self.layers * block + 2 * self.width

    @property
    def active_parameters(self) -> int:
        """Weights that one token passes: all."""
        return self.parameters

    @property
    def flops_per_token(self) -> int:
        """Of one forward and backward pass at full context: 6 N + 12 L C T, where N counts the
        weights that a token is multiplied with (Chowdhery et al. 2022, appendix B)."""
        matmul = self.parameters - self.context * self.width
        return 6 * matmul + 12 * self.layers * self.width * self.context


class ExpertsConfig(Section):
    """The experts of a Switch layer and how tokens are sent to them.

    A group, over which capacity and the balance loss are counted, is the real tokens of one
    sequence: so the function does not depend on padding, nor on how a batch falls on ranks and
    micro-batches, unless `balance_over: batch`.
    """

    num: Annotated[int, Field(ge=1)]
    """Experts of a layer."""
    every: Annotated[int, Field(ge=1)] = 2
    """Each n-th block has experts, the others a plain feed-forward layer (Fedus et al. 2021: 2)."""
    top_k: Annotated[int, Field(ge=1)] = 1
    """Experts that a token is sent to."""
    normalize_gates: bool = False
    """Make the gates of a token's experts add up to 1; of no use where there is one."""
    capacity_factor: Annotated[float | None, Field(gt=0)] = 1.25
    """In training an expert takes this much more than its even share of a group's tokens, the
    rest pass it by; none is dropless."""
    eval_capacity_factor: Annotated[float | None, Field(gt=0)] = None
    """The same without a gradient; none is dropless, which an exported model always is."""
    balance_coef: Annotated[float, Field(ge=0)] = 1e-2
    """Of the load-balancing loss (Fedus et al. 2021, equation 4)."""
    balance_over: Literal["group", "batch"] = "group"
    """Whose load is to be even: of each group, or of the micro-batches of all ranks together, which
    lets sequences differ, and makes the loss depend on `micro_batch_size`."""
    z_coef: Annotated[float, Field(ge=0)] = 0.0
    """Of the router's z-loss (Zoph et al. 2022, equation 5)."""
    jitter: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """The router's input is multiplied by chance in [1 - jitter, 1 + jitter] in training."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Within experts; in fine-tuning larger than elsewhere (Fedus et al. 2021, section 4.1)."""

    @model_validator(mode="after")
    def _enough(self) -> ExpertsConfig:
        if self.top_k > self.num:
            raise ValueError(f"top_k ({self.top_k}) is more than there are experts ({self.num})")
        return self


@dataclass(frozen=True)
class DecoderConfig:
    """What fixes the function of a modern decoder.

    Raises:
        ValueError: sizes do not fit each other.
    """

    vocab_size: int
    context: int
    layers: int
    width: int
    heads: int
    kv_heads: int
    """Heads of keys and values, each shared by heads / kv_heads queries (Ainslie et al. 2023)."""
    inner: int
    """Hidden width of the feed-forward layer, and of each expert."""
    head_size: int
    qk_norm: bool = False
    """RMSNorm of queries and keys, head by head (Henry et al. 2020)."""
    tied: bool = True
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
        sizes = (self.vocab_size, self.context, self.layers, self.width, self.heads)
        if min(*sizes, self.kv_heads, self.inner, self.head_size) < 1:
            raise ValueError(f"every size of a decoder must be positive, not {self}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{self.heads} heads cannot share {self.kv_heads} heads of keys evenly"
            )
        if self.head_size % 2:
            raise ValueError(f"rotary positions need an even head size, not {self.head_size}")
        if self.experts and self.experts.every > self.layers:
            raise ValueError(f"no block of {self.layers} is a {self.experts.every}th with experts")
        _check_share("dropout", self.dropout)

    def has_experts(self, layer: int) -> bool:
        """Whether block `layer` (from 0) has experts: the last of each `every` blocks."""
        return self.experts is not None and (layer + 1) % self.experts.every == 0

    @property
    def switch_layers(self) -> int:
        """Blocks with experts."""
        return self.layers // self.experts.every if self.experts else 0

    @property
    def feed_forward_parameters(self) -> int:
        """Weights of one feed-forward layer or expert."""
        return 3 * self.width * self.inner

    @property
    def parameters(self) -> int:
        """How many weights there are, those of all experts among them; a tied head counts once."""
        return self._parameters(self.experts.num if self.experts else 0)

    @property
    def active_parameters(self) -> int:
        """Weights that one token passes."""
        return self._parameters(self.experts.top_k if self.experts else 0)

    def _parameters(self, experts: int) -> int:
        queries, keys = self.heads * self.head_size, self.kv_heads * self.head_size
        attention = self.width * (2 * queries + 2 * keys) + 2 * self.head_size * self.qk_norm
        dense = (self.layers - self.switch_layers + self.switch_layers * experts) * (
            self.feed_forward_parameters
        )
        routers = self.switch_layers * self.width * self.experts.num if self.experts else 0
        embeddings = self.vocab_size * self.width * (1 if self.tied else 2)
        norms = (2 * self.layers + 1) * self.width
        return embeddings + self.layers * attention + dense + routers + norms

    @property
    def flops_per_token(self) -> int:
        """Of one forward and backward pass at full context: 6 N + 12 L H D T, where N counts the
        weights that a token is multiplied with (Chowdhery et al. 2022, appendix B)."""
        matmul = self.active_parameters - (0 if self.tied else self.vocab_size * self.width)
        return 6 * matmul + 12 * self.layers * self.heads * self.head_size * self.context


LanguageConfig = GPTConfig | DecoderConfig


def width_multiple(config: LanguageConfig) -> float:
    """The width over that at which the learning rate was tuned; 1 without muP."""
    return config.width / config.mup.base_width if config.mup else 1.0


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
