"""The published sizes, and small ones to try things on; of GPT-1 and GPT-3 how they were trained.

GPT-1: Radford et al. 2018, section 4.1 (vocabulary 40,478, context 512; its blocks normalise after
the sum, ours before).
GPT-2: Radford et al. 2019, table 2 (the released checkpoints; vocabulary 50,257, context 1,024).
GPT-3: Brown et al. 2020, table 2.1 (context 2,048; the vocabulary is that of GPT-2). Two of its
rows are no multiples as printed (1.3B: 24 heads of 128 on width 2,048; 13B: width 5,140 on 40
heads): here 16 heads and width 5,120. All layers attend densely; the paper alternates with
locally banded ones.
"""

from __future__ import annotations

from typing import NamedTuple

from stages.models.language_model_config import GPTConfig


class Shape(NamedTuple):
    """A row of a paper's table of sizes."""

    num_layers: int
    hidden_size: int
    num_heads: int
    context_length: int
    vocab_size: int = 50257


PRESETS: dict[str, Shape] = {
    "nano": Shape(2, 64, 2, 128, 2048),
    "tiny": Shape(4, 128, 4, 256, 4096),
    "small": Shape(6, 256, 8, 512, 8192),
    "gpt1": Shape(12, 768, 12, 512, 40478),
    "gpt2": Shape(12, 768, 12, 1024),
    "gpt2-medium": Shape(24, 1024, 16, 1024),
    "gpt2-large": Shape(36, 1280, 20, 1024),
    "gpt2-xl": Shape(48, 1600, 25, 1024),
    "gpt3-125m": Shape(12, 768, 12, 2048),
    "gpt3-350m": Shape(24, 1024, 16, 2048),
    "gpt3-760m": Shape(24, 1536, 16, 2048),
    "gpt3-1.3b": Shape(24, 2048, 16, 2048),
    "gpt3-2.7b": Shape(32, 2560, 32, 2048),
    "gpt3-6.7b": Shape(32, 4096, 32, 2048),
    "gpt3-13b": Shape(40, 5120, 40, 2048),
    "gpt3-175b": Shape(96, 12288, 96, 2048),
}


_GPT3_TOKENS, _GPT3_WARMUP = 300e9, 375e6
_GPT3 = {  # learning rate and tokens of a batch
    "gpt3-125m": (6.0e-4, 0.5e6),
    "gpt3-350m": (3.0e-4, 0.5e6),
    "gpt3-760m": (2.5e-4, 0.5e6),
    "gpt3-1.3b": (2.0e-4, 1e6),
    "gpt3-2.7b": (1.6e-4, 1e6),
    "gpt3-6.7b": (1.2e-4, 2e6),
    "gpt3-13b": (1.0e-4, 2e6),
    "gpt3-175b": (0.6e-4, 3.2e6),
}
_ADAM: dict[str, float | int | str] = {
    "beta1": 0.9,
    "beta2": 0.95,
    "eps": 1e-8,
    "grad_clip": 1.0,
    "weight_decay": 0.1,
}


def recipe(name: str) -> dict[str, float | int | str]:
    """What a paper says of training a preset, by the keys of `train:`; empty where it says nothing.

    GPT-3: Brown et al. 2020, table 2.1 and appendix B, 300 billion tokens (its batch grew over the
    first billions, which `batch_size_rampup` can do where the workers are few enough); GPT-1: Radford et
    al. 2018, section 4.1, less the number of steps. Batches are rounded to 32 samples.
    """
    if name == "gpt1":
        rest = {"global_batch_size": 64, "weight_decay": 0.01}
        return {"lr": 2.5e-4, "lr_schedule": "cosine", "min_lr_ratio": 0.0, **rest}
    if name not in _GPT3:
        return {}
    lr, tokens = _GPT3[name]
    batch = round(tokens / PRESETS[name].context_length / 32) * 32
    steps = round(_GPT3_TOKENS / (batch * PRESETS[name].context_length))
    decay: dict[str, float | int | str] = {
        "lr_schedule": "cosine",
        "min_lr_ratio": 0.1,
        "warmup_steps": _GPT3_WARMUP / _GPT3_TOKENS,
    }
    return {**_ADAM, **decay, "lr": lr, "global_batch_size": batch, "steps": steps}


def preset(
    name: str,
    *,
    vocab_size: int | None = None,
    context_length: int | None = None,
    dropout: float = 0.0,
) -> GPTConfig:
    """The config of a named size, with the vocabulary and context of one's own if given.

    Raises:
        KeyError: there is no such size.
    """
    shape = PRESETS[name]
    return GPTConfig(
        vocab_size=vocab_size or shape.vocab_size,
        context_length=context_length or shape.context_length,
        num_layers=shape.num_layers,
        hidden_size=shape.hidden_size,
        num_heads=shape.num_heads,
        dropout=dropout,
    )
