"""The text transformer of CLIP.

    tokens - embedding - (+positions) - causal blocks - [first eos] - ln_final - proj

Shape suffixes: see `stages.models.clip.transformer_blocks`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from stages.models.clip.configuration_clip import CLIPConfig, TextConfig
from stages.models.clip.transformer_blocks import ClipBlocks


class TextTransformer(nn.Module):
    """The text transformer: captions to embeddings, read at the first end-of-text token; later
    tokens have no effect."""

    def __init__(self, shape: TextConfig, config: CLIPConfig) -> None:
        super().__init__()
        self.shape = shape
        self.token_embedding = nn.Embedding(shape.vocab_size, shape.hidden_size)
        self.position_embedding = nn.Parameter(torch.empty(shape.context_length, shape.hidden_size))
        self.blocks = ClipBlocks(shape, config, causal=True)
        self.ln_final = nn.LayerNorm(shape.hidden_size, eps=config.norm_eps)
        self.proj = nn.Linear(shape.hidden_size, config.embed_dim, bias=False)

    @torch.no_grad()
    def reset(self) -> None:
        """Draw the weights."""
        self.blocks.reset()
        self.token_embedding.weight.normal_(std=0.02)
        self.position_embedding.normal_(std=0.01)
        self.proj.weight.normal_(std=self.shape.hidden_size**-0.5)
        self.ln_final.reset_parameters()

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return the embeddings_BE, not normalized.

        Raises:
            ValueError: a caption is longer than the context.
        """
        T = tokens_BT.shape[1]
        if self.shape.context_length < T:
            raise ValueError(f"{T} tokens do not fit a context of {self.shape.context_length}")
        end_B = (tokens_BT == self.shape.eos).int().argmax(1)
        x_BTC = self.token_embedding(tokens_BT) + self.position_embedding[:T]
        return cast(Tensor, self.proj(self.ln_final(self.blocks(x_BTC, end_B))))
