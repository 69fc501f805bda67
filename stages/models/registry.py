"""From the shape of a language model to the model."""

from __future__ import annotations

from stages.models.gpt2.modeling_gpt2 import GPT
from stages.models.language_model_config import LanguageConfig, LlamaConfig
from stages.models.llama.modeling_llama import Llama


def language_model(config: LanguageConfig) -> GPT | Llama:
    """A fresh one, its weights drawn from torch's global generator."""
    return Llama(config) if isinstance(config, LlamaConfig) else GPT(config)
