"""The shape of the modern decoder, free of torch: Llama, Qwen3, and Switch with experts.

RMSNorm, rotary positions, SwiGLU, heads of queries that share heads of keys, no biases. Qwen3
normalizes queries and keys; a Switch is a Qwen3 with mixture-of-experts layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from pipeline.errors import Problem
from stages.models.language_model_config import (
    ExpertsConfig,
    LanguageModelConfig,
    LinearLayer,
    Matrix,
    MuP,
    check_dropout,
)
from stages.models.model_params import LanguageModelSection

EXPERT_ALIGNMENT = 8
"""Divisor of the sizes of experts, which grouped matrix products need."""


@dataclass(frozen=True)
class LlamaConfig(LanguageModelConfig):
    """The shape of a modern decoder.

    Raises:
        ValueError: sizes do not fit each other.
    """

    num_kv_heads: int
    """Heads of keys and values, each shared by num_heads / num_kv_heads queries (Ainslie et al.
    2023)."""
    intermediate_size: int
    """Hidden size of the feed-forward layer and of each expert."""
    head_size: int
    qk_norm: bool = False
    """True if queries and keys are normalized per head by RMSNorm (Henry et al. 2020)."""
    tie_embeddings: bool = True
    dropout: float = 0.0
    residual_dropout: float | None = None
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies (Su et al. 2021)."""
    norm_eps: float = 1e-6
    experts: ExpertsConfig | None = None
    init_scale: float | None = None
    """Variance of the initial matrices times the fan-in, truncated at two standard deviations, as
    in Fedus et al. 2021 with 0.1; None: standard deviation 0.02, residual projections
    0.02 / sqrt(2 num_layers)."""
    mup: MuP | None = None

    gated: ClassVar[bool] = True

    def __post_init__(self) -> None:
        sizes = (self.vocab_size, self.context_length, self.num_layers, self.hidden_size)
        heads = (self.num_heads, self.num_kv_heads, self.head_size)
        if min(*sizes, *heads, self.intermediate_size) < 1:
            raise ValueError(f"every size of a decoder must be positive, not {self}")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"{self.num_heads} heads cannot share {self.num_kv_heads} heads of keys evenly"
            )
        if self.head_size % 2:
            raise ValueError(f"rotary positions need an even head size, not {self.head_size}")
        if self.experts and self.experts.moe_every > self.num_layers:
            raise ValueError(
                f"none of {self.num_layers} blocks has experts with moe_every "
                f"{self.experts.moe_every}"
            )
        check_dropout(self.dropout)
        check_dropout(self.branch_dropout)

    @property
    def family(self) -> str:
        """`llama`, `qwen3` or `switch`."""
        if self.experts:
            return "switch"
        return "qwen3" if self.qk_norm else "llama"

    @property
    def parameters(self) -> int:
        """All weights, including those of all experts; a tied head counts once."""
        return self._parameters(self.experts.num_experts if self.experts else 0)

    @property
    def active_parameters(self) -> int:
        """Weights that one token passes."""
        return self._parameters(self.experts_per_token)

    def _parameters(self, experts_per_layer: int) -> int:
        queries, keys = self.num_heads * self.head_size, self.num_kv_heads * self.head_size
        attention = self.hidden_size * (2 * queries + 2 * keys) + 2 * self.head_size * self.qk_norm
        moe = len(self.moe_layers)
        layers = self.num_layers - moe + moe * experts_per_layer
        feed_forward = layers * self.feed_forward_parameters
        routers = moe * self.hidden_size * self.experts.num_experts if self.experts else 0
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tie_embeddings else 2)
        norms = (2 * self.num_layers + 1) * self.hidden_size
        return embeddings + self.num_layers * attention + feed_forward + routers + norms

    @property
    def feed_forward_parameters(self) -> int:
        """Weights of one feed-forward layer or expert."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def flops_per_token(self) -> int:
        """FLOPs of a forward and backward pass per token at full context: 6 N + 12 L H D T."""
        embedding = 0 if self.tie_embeddings else self.vocab_size * self.hidden_size
        attention = self.num_layers * self.num_heads * self.head_size * self.context_length
        return 6 * (self.active_parameters - embedding) + 12 * attention

    def block_matrices(self) -> Iterator[Matrix]:
        """Yield the projections of attention, of feed-forward layers and of each expert."""
        width, inner, heads = self.hidden_size, self.intermediate_size, self.num_heads
        moe, per_layer = len(self.moe_layers), self.experts.num_experts if self.experts else 0
        layers = self.num_layers - moe + moe * per_layer
        yield Matrix(self.num_layers, (heads + 2 * self.num_kv_heads) * self.head_size, width)
        yield Matrix(self.num_layers, width, heads * self.head_size)
        yield Matrix(layers, 2 * inner, width)
        yield Matrix(layers, width, inner)

    def linear_layers(self) -> Iterator[LinearLayer]:
        """Yield the same apart: queries, keys and values, gate and up, experts."""
        width, inner, moe = self.hidden_size, self.intermediate_size, len(self.moe_layers)
        rows = {"q": self.num_heads, "k": self.num_kv_heads, "v": self.num_kv_heads}
        for letter, heads in rows.items():
            module = f"self_attn.{letter}_proj"
            yield LinearLayer(module, self.num_layers, heads * self.head_size, width)
        columns = self.num_heads * self.head_size
        yield LinearLayer("self_attn.o_proj", self.num_layers, width, columns)
        experts = moe * self.experts.num_experts if self.experts else 0
        for number, expert in ((self.num_layers - moe, False), (experts, True)):
            if number:
                path = "mlp.experts" if expert else "mlp"
                yield LinearLayer(f"{path}.gate_proj", number, inner, width, expert)
                yield LinearLayer(f"{path}.up_proj", number, inner, width, expert)
                yield LinearLayer(f"{path}.down_proj", number, width, inner, expert)

    def block_activation_bytes(
        self, itemsize: int, *, moe: bool, document_mask: bool, gpu: bool
    ) -> float:
        """Return the bytes per position that one block keeps: each norm's input and output,
        projections, queries and keys before and after rotation, the result of attention with a
        float32 per head and, of a mask, a number per position that may be attended to."""
        width, inner = self.hidden_size, self.intermediate_size
        softmax = 4 * self.num_heads + (itemsize * self.context_length if document_mask else 0)
        heads = 3 * (self.num_heads + self.num_kv_heads) * self.head_size
        kept = itemsize * (4 * width + heads) + softmax + self._norm_bytes(gpu=gpu)
        if not (moe and self.experts):
            return kept + itemsize * 3 * inner  # gate and up, and their product
        # The router's input in float32 and its two outputs; per choice the hidden layer, the token
        # sent, its output before and after the gate, and the indices of both directions.
        router = 8 * self.experts.num_experts + (0 if itemsize == 4 else 4 * width)
        return kept + router + self.experts.top_k * (itemsize * (3 * inner + 3 * width) + 24)

    def _norm_bytes(self, *, gpu: bool) -> float:
        """Return the bytes per position that two RMSNorms and those of queries and keys keep: a
        number each where a norm is one kernel. On a CPU a norm is several operators, which keep
        the scaled input in float32 too, and attention to normalized queries returns its heads in
        an order that is copied."""
        normed = self.num_heads + self.num_kv_heads if self.qk_norm else 0
        numbers = 2 + normed
        if not gpu:
            numbers += 2 * self.hidden_size + normed * self.head_size
            numbers += self.num_heads * self.head_size if self.qk_norm else 0
        return 4.0 * numbers

    @property
    def merged_parameters(self) -> int:
        """Weights that are concatenated on loading: queries, keys, values; gate and up; experts."""
        heads = self.num_heads + 2 * self.num_kv_heads
        attention = self.num_layers * self.hidden_size * heads * self.head_size
        dense = self.num_layers - len(self.moe_layers)
        gates = dense * 2 * self.hidden_size * self.intermediate_size
        return attention + gates + self.expert_parameters

    @property
    def architecture_fields(self) -> dict[str, Any]:
        """Return the part of the shape that the weights determine.

        No weight belongs to a position, so the context may change.
        """
        sizes = ("vocab_size", "num_layers", "hidden_size", "num_heads", "intermediate_size")
        keys = (*sizes, "norm_eps", "num_kv_heads", "head_size", "tie_embeddings", "rope_theta")
        family = "qwen3 or switch" if self.qk_norm else "llama"
        found = {"family": family} | {key: getattr(self, key) for key in keys}
        return found | {"experts": self._routing_fields()}

    def _routing_fields(self) -> dict[str, Any] | None:
        if (experts := self.experts) is None:
            return None
        keys = ("num_experts", "moe_every", "top_k")
        normalized = experts.norm_topk_prob and experts.top_k > 1
        return {key: getattr(experts, key) for key in keys} | {"norm_topk_prob": normalized}


class LlamaSection(LanguageModelSection):
    """A Llama: RMSNorm, rotary positions, SwiGLU."""

    renamed: ClassVar[Mapping[str, str]] = {
        **LanguageModelSection.renamed,
        "kv_heads": "num_kv_heads",
        "tied": "tie_embeddings",
    }

    family: Literal["llama"] = "llama"
    """`llama`: RMSNorm, rotary positions, SwiGLU."""
    head_size: Annotated[int | None, Field(ge=2)] = None
    """Width of a head. Default: hidden_size / num_heads."""
    num_kv_heads: Annotated[int | None, Field(ge=1)] = None
    """Heads of keys and values, shared by the queries. Default: num_heads."""
    tie_embeddings: bool = True
    """Sharing of the embedding as the head. Default: on."""
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    """Base of the rotary frequencies. Default: 10,000."""
    init_scale: Annotated[float | None, Field(gt=0)] = None
    """Variance of the initial matrices times the fan-in. Default: 0.1 with experts (Fedus et al.
    2021, section 2.4), else as GPT-2."""

    _qk_norm: ClassVar[bool] = False
    _init_scale: ClassVar[float | None] = None

    @property
    def fits_heads(self) -> bool:
        """True if the hidden size need not be a multiple of the heads."""
        return self.head_size is not None

    def config(self, preset: str, vocab_size: int) -> LlamaConfig:
        """Return the shape, completed by the preset.

        Raises:
            ValueError: sizes do not fit each other.
        """
        shape = self.shape(preset)
        width, heads = shape.hidden_size, shape.num_heads
        if width % heads and not self.head_size:
            raise ValueError(f"hidden_size {width} is not a multiple of {heads} heads")
        return LlamaConfig(
            vocab_size,
            shape.context_length,
            shape.num_layers,
            width,
            heads,
            num_kv_heads=self.num_kv_heads or heads,
            intermediate_size=self.intermediate_size or -(-8 * width // (3 * 64)) * 64,
            head_size=self.head_size or width // heads,
            qk_norm=self._qk_norm,
            tie_embeddings=self.tie_embeddings,
            dropout=self.dropout,
            rope_theta=self.rope_theta,
            norm_eps=self.norm_eps or 1e-6,
            experts=self._experts(),
            init_scale=self.init_scale or self._init_scale,
            mup=self.mup,
        )

    def _experts(self) -> ExpertsConfig | None:
        return None


class Qwen3Section(LlamaSection):
    """A Qwen3: a Llama whose queries and keys are normalized."""

    family: Literal["qwen3"] = "qwen3"  # type: ignore[assignment]
    """`qwen3`: as llama, with normalized queries and keys."""

    _qk_norm: ClassVar[bool] = True


class SwitchSection(Qwen3Section):
    """A Switch: a Qwen3 with mixture-of-experts layers."""

    family: Literal["switch"] = "switch"  # type: ignore[assignment]
    """`switch`: as qwen3, with mixture-of-experts layers."""
    experts: ExpertsConfig
    """The experts and their router."""

    _init_scale: ClassVar[float | None] = 0.1

    def _experts(self) -> ExpertsConfig | None:
        return self.experts

    def check(self, preset: str, vocab_size: int, expert_parallel_size: int) -> Iterator[Problem]:
        """Yield the problems of the shape, the alignment of the experts among them."""
        num = self.experts.num_experts
        if num % expert_parallel_size:
            near = max(1, round(num / expert_parallel_size)) * expert_parallel_size
            yield Problem(
                "model.experts.num_experts",
                f"{num} is not divisible by train.expert_parallel_size ({expert_parallel_size})",
                f"{near} is",
            )
        problems = list(self.check_shape(preset, vocab_size))
        yield from problems
        if problems:
            return
        config = self.config(preset, vocab_size)
        sizes = {"hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size}
        for key, value in sizes.items():
            if value % EXPERT_ALIGNMENT:
                near = -(-value // EXPERT_ALIGNMENT) * EXPERT_ALIGNMENT
                message = f"{value} is not a multiple of {EXPERT_ALIGNMENT}, which experts need"
                yield Problem(f"model.{key}", message, f"{near} is")
