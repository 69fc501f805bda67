"""Prompts of conversations, in chat format, for rollouts."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import InputError
from stages.data.conversation_dataset import Conversations
from stages.data.tokenizers.chat_template import encode_prompt
from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer


def read_prompts(
    path: Path, split: str, tokenizer: Tokenizer, max_prompt_length: int
) -> list[list[int]]:
    """Return the prompts of a split; those longer than `max_prompt_length` tokens are left out.

    Raises:
        InputError: no training prompt is left.
    """
    encoded = [encode_prompt(tokenizer, c.prompt) for c in Conversations(path, split) if c.prompt]
    fitting = [ids for ids in encoded if len(ids) <= max_prompt_length]
    if not fitting and split == "train":
        raise InputError(
            f"none of {len(encoded)} prompts has at most {max_prompt_length} tokens, the context "
            "less max_new_tokens",
            where=str(path),
            remedy="lower max_new_tokens, or take a policy with a longer context",
        )
    return fitting
