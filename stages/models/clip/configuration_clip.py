"""The shape of a CLIP, free of torch. That of its towers: `stages.models.clip.tower_configs`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from stages.models.clip.tower_configs import (
    ResNetConfig,
    TransformerTower,
    ViTConfig,
    check_heads,
)
from stages.models.language_model_config import Matrix

__all__ = ["CLIPConfig", "ResNetConfig", "TextConfig", "ViTConfig"]

Activation = Literal["quick_gelu", "gelu"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green and blue in CLIP's training images, out of 1."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of red, green and blue in CLIP's training images, out of 1."""


@dataclass(frozen=True)
class TextConfig(TransformerTower):
    """A causal transformer that is read at the first end-of-text token.

    Raises:
        ValueError: the width is not a multiple of the heads, or the context has no room for a word.
    """

    vocab_size: int
    context_length: int
    num_layers: int
    hidden_size: int
    num_heads: int
    eos: int
    """The id at whose first place the tower is read."""
    bos: int
    pad: int

    def __post_init__(self) -> None:
        check_heads("text", self.hidden_size, self.num_heads)
        if min(self.vocab_size, self.num_layers) < 1:
            raise ValueError("text: every size must be positive")
        if self.context_length < 3:
            raise ValueError(f"a context of {self.context_length} has no room between bos and eos")
        if not 0 <= max(self.eos, self.bos, self.pad) < self.vocab_size:
            raise ValueError(f"bos, eos or pad is not an id of a vocabulary of {self.vocab_size}")

    def parameters(self, embed_dim: int) -> int:
        """Return the number of weights, with the projection to `embed_dim`."""
        embeddings = (self.vocab_size + self.context_length) * self.hidden_size
        return embeddings + self.block_parameters + (2 + embed_dim) * self.hidden_size

    def flops(self, embed_dim: int, tokens: int | None = None) -> int:
        """Return the FLOPs of a forward pass per caption, padded to `tokens`. Default: to the
        context."""
        length = self.context_length if tokens is None else tokens
        return self.block_flops(length) + 2 * self.hidden_size * embed_dim

    def skipped_flops(self, tokens: int | None = None) -> int:
        """Return the FLOPs included in `flops` that this implementation skips."""
        return self.skipped_block_flops(self.context_length if tokens is None else tokens)


@dataclass(frozen=True)
class CLIPConfig:
    """The shape of both towers and their joint embedding of `embed_dim` dimensions."""

    vision: ViTConfig | ResNetConfig
    text: TextConfig
    embed_dim: int
    activation: Activation = "quick_gelu"
    """Activation of the feed-forward layers; that of the released models is quick_gelu:
    x sigmoid(1.702 x)."""
    bias: bool = False
    """True if a learned number is added to every logit (SigLIP)."""
    norm_eps: float = 1e-5

    family: ClassVar[str] = "clip"

    def __post_init__(self) -> None:
        if self.embed_dim < 1:
            raise ValueError("embed_dim must be positive")

    @property
    def parameters(self) -> int:
        """All weights, the logit scale (and bias) among them."""
        towers = self.vision.parameters(self.embed_dim) + self.text.parameters(self.embed_dim)
        return towers + 1 + self.bias

    @property
    def matmul_width(self) -> int:
        """Mean width of the matrices that a pair passes, by FLOPs, which decides the efficiency of
        a device."""
        vision, text = self.vision.flops(self.embed_dim), self.text.flops(self.embed_dim)
        total = vision * self.vision.matmul_width + text * self.text.hidden_size
        return round(total / (vision + text))

    @property
    def merged_parameters(self) -> int:
        """Weights that are concatenated out of a folder's tensors when it is loaded: those of
        queries, keys and values, unless the folder stores the weights as they are."""
        if not self.vision.in_transformers:
            return 0
        return self.vision.merged_parameters + self.text.merged_parameters

    def block_matrices(self) -> Iterator[Matrix]:
        """Yield the weight matrices of the transformer blocks."""
        yield from self.vision.block_matrices()
        yield from self.text.block_matrices()

    def flops_per_pair(self, *, kept: int | None = None, tokens: int | None = None) -> int:
        """Return the FLOPs of a forward and backward pass per image with `kept` patches and caption
        of `tokens`."""
        vision = self.vision.flops(self.embed_dim, kept)
        return 3 * (vision + self.text.flops(self.embed_dim, tokens))
