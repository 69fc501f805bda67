"""From the shape of a language model to the model."""

from __future__ import annotations

from stages.models.config import DecoderConfig, LanguageConfig
from stages.models.decoder import Decoder
from stages.models.gpt import GPT


def language_model(config: LanguageConfig) -> GPT | Decoder:
    """A fresh one, its weights drawn from torch's global generator."""
    return Decoder(config) if isinstance(config, DecoderConfig) else GPT(config)
