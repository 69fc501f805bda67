"""From the shape of a language model to the model."""

from __future__ import annotations

from stages.models.gpt2.modeling_gpt2 import GPT
from stages.models.language_model_config import DecoderConfig, LanguageConfig
from stages.models.llama.modeling_llama import Decoder


def language_model(config: LanguageConfig) -> GPT | Decoder:
    """A fresh one, its weights drawn from torch's global generator."""
    return Decoder(config) if isinstance(config, DecoderConfig) else GPT(config)
