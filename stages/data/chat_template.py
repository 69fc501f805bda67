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

TEMPLATE = (
    "{{ '<s>' }}"
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '</s>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
"""The same format for `transformers`' chat templates."""


class Encoder(Protocol):
    """All that is asked of a tokenizer here."""

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without control ids."""
        ...


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids and the loss mask: `mask[t]` says that id t is the assistant's to produce."""

    ids: npt.NDArray[np.int64]
    """Shape (T,)."""
    mask: npt.NDArray[np.bool_]
    """Shape (T,); true for the answers' tokens and the `</s>` after each."""

    def __len__(self) -> int:
        return len(self.ids)


def encode_conversation(tokenizer: Encoder, messages: Iterable[Message] | Conversation) -> Encoded:
    """A whole conversation with its loss mask."""
    turns = messages.messages if isinstance(messages, Conversation) else messages
    ids, mask = [BOS], [False]
    for message in turns:
        body = tokenizer.encode(message.content)
        learned = message.role == "assistant"
        ids += [ROLE_IDS[message.role], *body] + [EOS] * learned
        mask += [False] + [learned] * (len(body) + learned)
    return Encoded(np.array(ids, np.int64), np.array(mask, np.bool_))


def encode_prompt(tokenizer: Encoder, messages: Iterable[Message]) -> list[int]:
    """A prompt, up to and with `<|assistant|>`: what generation starts from."""
    ids = [BOS]
    for message in messages:
        ids += [ROLE_IDS[message.role], *tokenizer.encode(message.content)]
        ids += [EOS] * (message.role == "assistant")
    return [*ids, ASSISTANT]


def encode_response(tokenizer: Encoder, prompt: Sequence[Message], response: str) -> Encoded:
    """A prompt with one response to it and its `</s>`."""
    return encode_conversation(tokenizer, (*prompt, Message("assistant", response)))
