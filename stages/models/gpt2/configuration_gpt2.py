"""The shape of a GPT, free of torch: the block of GPT-2 and GPT-3.

LayerNorm, learned positions, GELU, biases everywhere, head tied to the embedding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from stages.models.language_model_config import (
    ExpertsConfig,
    LanguageModelConfig,
    LinearLayer,
    Matrix,
    MuP,
    check_dropout,
)
from stages.models.model_params import LanguageModelSection
from stages.models.presets import PRESETS


@dataclass(frozen=True)
class GPTConfig(LanguageModelConfig):
    """The shape of a GPT.

    Raises:
        ValueError: the hidden size is not a multiple of the heads, or a size is not positive.
    """

    dropout: float = 0.0
    residual_dropout: float | None = None
    intermediate_size: int = 0
    """Hidden size of the feed-forward layer. Default: 4 hidden sizes."""
    norm_eps: float = 1e-5
    mup: MuP | None = None
    head_size: int = field(init=False)
    num_kv_heads: int = field(init=False)
    tie_embeddings: bool = field(init=False, default=True)
    experts: ExpertsConfig | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        sizes = (self.vocab_size, self.context_length, self.num_layers, self.hidden_size)
        if min(*sizes, self.num_heads) < 1 or self.intermediate_size < 0:
            raise ValueError(f"every size of a GPT must be positive, not {sizes}")
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of {self.num_heads} heads"
            )
        check_dropout(self.dropout)
        check_dropout(self.branch_dropout)
        derived = {
            "intermediate_size": self.intermediate_size or 4 * self.hidden_size,
            "head_size": self.hidden_size // self.num_heads,
            "num_kv_heads": self.num_heads,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)

    @property
    def family(self) -> str:
        """`gpt2`."""
        return "gpt2"

    @property
    def parameters(self) -> int:
        """All weights; the tied head counts once."""
        attention = 4 * self.hidden_size * self.hidden_size + 4 * self.hidden_size
        block = attention + self.feed_forward_parameters + 4 * self.hidden_size
        embeddings = (self.vocab_size + self.context_length) * self.hidden_size
        return embeddings + self.num_layers * block + 2 * self.hidden_size

    @property
    def active_parameters(self) -> int:
        """Weights that one token passes: all."""
        return self.parameters

    @property
    def feed_forward_parameters(self) -> int:
        """Weights of one feed-forward layer."""
        inner = self.intermediate_size
        return 2 * self.hidden_size * inner + inner + self.hidden_size

    @property
    def flops_per_token(self) -> int:
        """FLOPs of a forward and backward pass per token at full context: 6 N + 12 L C T."""
        matmul = self.parameters - self.context_length * self.hidden_size
        return 6 * matmul + 12 * self.num_layers * self.hidden_size * self.context_length

    def block_matrices(self) -> Iterator[Matrix]:
        """Yield the projections of attention and of the feed-forward layer."""
        width, inner = self.hidden_size, self.intermediate_size
        for rows, columns in ((3 * width, width), (width, width), (inner, width), (width, inner)):
            yield Matrix(self.num_layers, rows, columns)

    def linear_layers(self) -> Iterator[LinearLayer]:
        """Yield the same by the names of their modules."""
        modules = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
        for module, matrix in zip(modules, self.block_matrices(), strict=True):
            yield LinearLayer(module, *matrix)

    def block_activation_bytes(
        self, itemsize: int, *, moe: bool, document_mask: bool, gpu: bool
    ) -> float:
        """Return the bytes per position that one block keeps: each norm's input and output,
        queries, keys and values, their result, both sides of GELU; a float32 per head and, of a
        mask, a number per position that may be attended to."""
        softmax = 4 * self.num_heads + (itemsize * self.context_length if document_mask else 0)
        masks = 2 * self.hidden_size if self.branch_dropout else 0
        activations = 8 * self.hidden_size + 2 * self.intermediate_size
        return itemsize * activations + softmax + 16 + masks

    @property
    def merged_parameters(self) -> int:
        """Weights that are copied on loading: none, or with muP, whose factors scale a copy, those
        of queries, keys and values."""
        return 3 * self.num_layers * self.hidden_size * self.hidden_size if self.mup else 0

    @property
    def architecture_fields(self) -> dict[str, Any]:
        """Return the part of the shape that the weights determine.

        Positions are weights, so the context is part of it.
        """
        keys = ("vocab_size", "num_layers", "hidden_size", "num_heads", "intermediate_size")
        found = {"family": self.family} | {key: getattr(self, key) for key in keys}
        return found | {"norm_eps": self.norm_eps, "context_length": self.context_length}


def gpt2_preset(
    name: str,
    *,
    vocab_size: int | None = None,
    context_length: int | None = None,
    dropout: float = 0.0,
) -> GPTConfig:
    """Return the config of a preset, with another vocabulary and context if given.

    Raises:
        KeyError: there is no such preset.
    """
    shape = PRESETS[name]
    return GPTConfig(
        vocab_size or shape.vocab_size,
        context_length or shape.context_length,
        shape.num_layers,
        shape.hidden_size,
        shape.num_heads,
        dropout,
    )


class GPT2Section(LanguageModelSection):
    """A GPT: LayerNorm, learned positions, GELU, tied head."""

    family: Literal["gpt2"] = "gpt2"
    """`gpt2`: LayerNorm, learned positions, GELU, tied head."""

    def config(self, preset: str, vocab_size: int) -> GPTConfig:
        """Return the shape, completed by the preset.

        Raises:
            ValueError: sizes do not fit each other.
        """
        shape = self.shape(preset)
        return GPTConfig(
            vocab_size,
            shape.context_length,
            shape.num_layers,
            shape.hidden_size,
            shape.num_heads,
            self.dropout,
            intermediate_size=self.intermediate_size or 0,
            norm_eps=self.norm_eps or 1e-5,
            mup=self.mup,
        )
