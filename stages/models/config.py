"""The shape of a GPT, free of torch, so that a plan can price a model in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass


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

    def __post_init__(self) -> None:
        sizes = (self.vocab_size, self.context, self.layers, self.width, self.heads, self.inner)
        if min(sizes) < 1:
            raise ValueError(f"every size of a GPT must be positive, not {self}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of {self.heads} heads")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout}")

    @property
    def inner(self) -> int:
        """Hidden width of the feed-forward layer."""
        return 4 * self.width if self.feed_forward is None else self.feed_forward

    @property
    def head_size(self) -> int:
        """Width of one attention head."""
        return self.width // self.heads

    @property
    def parameters(self) -> int:
        """How many weights there are; the tied head counts once."""
        attention = 4 * self.width * self.width + 4 * self.width
        feed_forward = 2 * self.width * self.inner + self.inner + self.width
        block = attention + feed_forward + 4 * self.width
        embeddings = (self.vocab_size + self.context) * self.width
        return embeddings + self.layers * block + 2 * self.width

    @property
    def flops_per_token(self) -> int:
        """Of one forward and backward pass at full context: 6 N + 12 L C T, where N counts the
        weights that a token is multiplied with (Chowdhery et al. 2022, appendix B)."""
        matmul = self.parameters - self.context * self.width
        return 6 * matmul + 12 * self.layers * self.width * self.context
