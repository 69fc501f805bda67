"""A conversation as token ids, and which of them the assistant must learn to say.

    <s> <|user|> question <|assistant|> answer </s> <|user|> … <|assistant|> answer </s>

Control tokens are ids, never text: a message that spells `<|assistant|>` stays plain text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stages.data.conversation_dataset import Conversation, Message
from stages.data.tokenizers.sentencepiece_tokenizer import ASSISTANT, BOS, EOS, ROLE_IDS

CHAT_TEMPLATE = (
    "{{ '<s>' }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""The same format for `transformers`' chat templates."""


class TextEncoder(Protocol):
    """All that is asked of a tokenizer here."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without control ids."""
        ...


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """Token ids and the loss mask: `loss_mask[t]` says that id t is the assistant's to produce."""

    ids: npt.NDArray[np.int64]
    """Shape (T,)."""
    loss_mask: npt.NDArray[np.bool_]
    """Shape (T,); true for the answers' tokens and the `</s>` after each."""

    def __len__(self) -> int:
        return len(self.ids)


def encode_conversation(
    tokenizer: TextEncoder, messages: Iterable[Message] | Conversation
) -> EncodedConversation:
    """A whole conversation with its loss mask."""
    turns = messages.messages if isinstance(messages, Conversation) else messages
    ids, mask = [BOS], [False]
    for message in turns:
        body = tokenizer.encode(message.content)
        learned = message.role == "assistant"
        ids += [ROLE_IDS[message.role], *body] + [EOS] * learned
        mask += [False] + [learned] * (len(body) + learned)
    return EncodedConversation(np.array(ids, np.int64), np.array(mask, np.bool_))


def encode_prompt(tokenizer: TextEncoder, messages: Iterable[Message]) -> list[int]:
    """A prompt, up to and with `<|assistant|>`: what generation starts from."""
    ids = [BOS]
    for message in messages:
        ids += [ROLE_IDS[message.role], *tokenizer.encode(message.content)]
        ids += [EOS] * (message.role == "assistant")
    return [*ids, ASSISTANT]


def encode_response(
    tokenizer: TextEncoder, prompt: Sequence[Message], response: str
) -> EncodedConversation:
    """A prompt with one response to it and its `</s>`."""
    return encode_conversation(tokenizer, (*prompt, Message("assistant", response)))
