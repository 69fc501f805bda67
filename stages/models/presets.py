"""Shapes of published language models, and small ones for trials.

GPT-1: Radford et al. 2018, section 4.1 (vocabulary 40,478, context 512; its blocks normalize after
the sum, those here before).
GPT-2: Radford et al. 2019, table 2 (the released checkpoints; vocabulary 50,257, context 1,024).
GPT-3: Brown et al. 2020, table 2.1 (context 2,048; the vocabulary is that of GPT-2). Two of its
rows are not multiples (1.3B: 24 heads of 128 at width 2,048; 13B: width 5,140 with 40
heads): here 16 heads and width 5,120. All layers attend densely; the paper alternates with
locally banded ones.

How GPT-1 and GPT-3 were trained is in `stages.training.optim.recipes`.
"""

from __future__ import annotations

from typing import NamedTuple


class ModelShape(NamedTuple):
    """A row of a paper's table of sizes."""

    num_layers: int
    hidden_size: int
    num_heads: int
    context_length: int
    vocab_size: int = 50257


PRESETS: dict[str, ModelShape] = {
    "nano": ModelShape(2, 64, 2, 128, 2048),
    "tiny": ModelShape(4, 128, 4, 256, 4096),
    "small": ModelShape(6, 256, 8, 512, 8192),
    "gpt1": ModelShape(12, 768, 12, 512, 40478),
    "gpt2": ModelShape(12, 768, 12, 1024),
    "gpt2-medium": ModelShape(24, 1024, 16, 1024),
    "gpt2-large": ModelShape(36, 1280, 20, 1024),
    "gpt2-xl": ModelShape(48, 1600, 25, 1024),
    "gpt3-125m": ModelShape(12, 768, 12, 2048),
    "gpt3-350m": ModelShape(24, 1024, 16, 2048),
    "gpt3-760m": ModelShape(24, 1536, 16, 2048),
    "gpt3-1.3b": ModelShape(24, 2048, 16, 2048),
    "gpt3-2.7b": ModelShape(32, 2560, 32, 2048),
    "gpt3-6.7b": ModelShape(32, 4096, 32, 2048),
    "gpt3-13b": ModelShape(40, 5120, 40, 2048),
    "gpt3-175b": ModelShape(96, 12288, 96, 2048),
}
