"""The chat format: conversations as token ids with a loss mask.

    <s> <|user|> question <|assistant|> answer </s> <|user|> ... <|assistant|> answer </s>

Control tokens are ids, never text: `<|assistant|>` within a message is encoded as plain text. The
exported tokenizer gives the same ids in plain `transformers`, which tokenizes the rendered template
as one text: there the names of control tokens begin with `CONTROL_MARK`, which the template writes
and removes from messages.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stages.data.conversation_dataset import Conversation, Message
from stages.data.tokenizers.sentencepiece_tokenizer import (
    ASSISTANT,
    BOS,
    CONTROL_MARK,
    EOS,
    ROLE_IDS,
)

CHAT_TEMPLATE = (
    "{{ '@<s>' }}"
    "{% for message in messages %}"
    "{{ '@<|' + message['role'] + '|>' + message['content'].replace('@', '\ufffd') }}"
    "{% if message['role'] == 'assistant' %}{{ '@</s>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '@<|assistant|>' }}{% endif %}"
).replace("@", CONTROL_MARK)
"""The same format as a Jinja chat template of `transformers`."""


class TextEncoder(Protocol):
    """A tokenizer, as the chat format uses it."""

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without control ids."""


@dataclass(frozen=True, slots=True)
class EncodedConversation:
    """Token ids and the loss mask: `loss_mask[t]` is true if the loss includes id t."""

    ids: npt.NDArray[np.int64]
    """Shape (T,)."""
    loss_mask: npt.NDArray[np.bool_]
    """Shape (T,); true for tokens of assistant messages and the `</s>` after each."""

    def __len__(self) -> int:
        return len(self.ids)


def encode_conversation(
    tokenizer: TextEncoder, messages: Iterable[Message] | Conversation
) -> EncodedConversation:
    """Encode a whole conversation with its loss mask."""
    turns = messages.messages if isinstance(messages, Conversation) else messages
    ids, mask = [BOS], [False]
    for message in turns:
        body = tokenizer.encode(message.content)
        learned = message.role == "assistant"
        ids += [ROLE_IDS[message.role], *body] + [EOS] * learned
        mask += [False] + [learned] * (len(body) + learned)
    return EncodedConversation(np.array(ids, np.int64), np.array(mask, np.bool_))


def encode_prompt(tokenizer: TextEncoder, messages: Iterable[Message]) -> list[int]:
    """Encode a prompt up to and including `<|assistant|>`, for generation."""
    ids = [BOS]
    for message in messages:
        ids += [ROLE_IDS[message.role], *tokenizer.encode(message.content)]
        ids += [EOS] * (message.role == "assistant")
    return [*ids, ASSISTANT]


def encode_response(
    tokenizer: TextEncoder, prompt: Sequence[Message], response: str
) -> EncodedConversation:
    """Encode a prompt with one response and its `</s>`."""
    return encode_conversation(tokenizer, (*prompt, Message("assistant", response)))
