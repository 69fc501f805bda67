"""Prompts of conversations, in chat format, for rollouts."""

from __future__ import annotations

from pathlib import Path

from pipeline.errors import InputError
from stages.chat.chat_format import ChatFormat
from stages.data.conversation_dataset import Conversations


def read_prompts(
    path: Path, split: str, chat: ChatFormat, max_prompt_length: int
) -> list[list[int]]:
    """Return the prompts of a split; those longer than `max_prompt_length` tokens are left out.

    Raises:
        InputError: no training prompt is left.
    """
    found = Conversations(path, split)
    encoded = [chat.encode_prompt(c.prompt, c.tools) for c in found if c.prompt]
    fitting = [ids for ids in encoded if len(ids) <= max_prompt_length]
    if not fitting and split == "train":
        raise InputError(
            f"none of {len(encoded)} prompts has at most {max_prompt_length} tokens, the context "
            "less max_new_tokens",
            where=str(path),
            remedy="lower max_new_tokens, or take a policy with a longer context",
        )
    return fitting
