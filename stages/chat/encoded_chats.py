"""Conversations of a split as token ids with loss masks, encoded once.

The outcome of each conversation is counted: `whole`, `shortened`, `split`; `too_long`, `no_answer`
and `refused_by_template` if it is left out. `control_text` counts those whose text spells a control
token. `exchanges` and `exchanges_left_out` count the answered
exchanges of those that are not left out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.errors import InputError
from stages.chat.chat_format import ChatFormat, EncodedChat
from stages.chat.encoded_table import EncodedTable, RecordEncoder
from stages.chat.length_limits import FittedChats, TooLong, fit_to_length
from stages.data.conversation_dataset import Conversation, Conversations, Message

Learn = Literal["all", "last"]

LEFT_OUT = ("too_long", "no_answer", "refused_by_template")
"""Reasons for which a conversation is left out."""


@dataclass(frozen=True)
class ConversationEncoder(RecordEncoder[Conversation]):
    """The encoding of conversations in a chat format."""

    folder: Path
    """Model whose tokenizer and, by default, chat template encode."""
    limit: int
    """Largest number of ids of a conversation."""
    chat_template: str | None = None
    too_long: TooLong = "drop"
    learn: Learn = "all"
    reverse: bool = False
    """The roles of the last question and its answer are exchanged."""
    schema: ClassVar[pa.Schema] = pa.schema(
        [("ids", pa.list_(pa.int32())), ("loss_mask", pa.list_(pa.uint8()))]
    )

    @property
    def identity(self) -> str:
        """The chat format and the settings."""
        settings = asdict(self) | {"folder": None, "chat_template": None}
        return json.dumps([open_chat_format(self.folder, self.chat_template).digest, settings])

    def records(self, path: Path, split: str) -> Conversations:
        """Open the conversations of a split."""
        return Conversations(path, split)

    def encode(self, record: Conversation, counts: Counter[str]) -> Iterator[dict[str, Any]]:
        """Yield the rows of a conversation, those without anything to learn left out."""
        counts["read"] += 1
        fitted = self._fitted(record)
        if isinstance(fitted, str):
            counts[fitted] += 1
            return
        chat_format = open_chat_format(self.folder, self.chat_template)
        spelled = chat_format.spelled_control_tokens(record.messages, record.tools)
        counts["control_text"] += bool(spelled)
        learned = [chat for chat in fitted.chats if chat.loss_mask.any()]
        outcome = fitted.outcome if learned or not fitted.chats else "no_answer"
        counts[outcome] += 1
        if learned:
            counts["exchanges"] += fitted.exchanges
            counts["exchanges_left_out"] += fitted.exchanges_left_out
        for chat in learned:
            yield {"ids": chat.ids, "loss_mask": chat.loss_mask.view(np.uint8)}

    def _fitted(self, record: Conversation) -> FittedChats[EncodedChat] | str:
        """Return the encoded conversations, or the reason for leaving it out."""
        if self.reverse:
            if not (record.prompt and record.response):
                return "no_answer"
            record = reversed_conversation(record)
        messages = record.messages if self.learn == "all" else learn_last(record.messages)
        if not any(m.role == "assistant" and m.weight for m in messages):
            return "no_answer"
        chat_format = open_chat_format(self.folder, self.chat_template)
        try:
            return fit_to_length(
                messages,
                lambda turns: chat_format.encode(turns, record.tools),
                self.limit,
                self.too_long,
            )
        except InputError:
            return "refused_by_template"


@lru_cache(maxsize=4)
def open_chat_format(folder: Path, chat_template: str | None) -> ChatFormat:
    """Open a chat format once per process."""
    return ChatFormat.open(folder, chat_template)


@dataclass(frozen=True)
class EncodedChats(Sequence[EncodedChat]):
    """The encoded conversations of a split, mapped into memory."""

    table: EncodedTable

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """The number of ids of each (conversations,)."""
        return self.table.lengths("ids")

    @property
    def counts(self) -> Counter[str]:
        """Counts of the conversations by outcome."""
        return self.table.counts

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = range(len(self))[index]
        ids = self.table.column("ids", row).to_numpy().astype(np.int64)
        mask = self.table.column("loss_mask", row).to_numpy().astype(np.bool_)
        return EncodedChat(ids, mask)


def require_chats(chats: EncodedChats, encoder: ConversationEncoder, paths: Sequence[Path]) -> None:
    """Check that there are conversations to train on.

    Raises:
        InputError: all are left out; the message names the reasons.
    """
    if len(chats):
        return
    left_out = [f"{name} {chats.counts[name]:,}" for name in LEFT_OUT if chats.counts[name]]
    read = chats.counts["read"]
    remedy = "give conversations with a split named train"
    if read:
        remedy = "raise max_length, set too_long, or name another chat_template"
    raise InputError(
        f"none of {read:,} conversations to train on has an answer and fits into "
        f"{encoder.limit - 1} tokens" + (f": {', '.join(left_out)}" if left_out else ""),
        where=", ".join(map(str, paths)),
        remedy=remedy,
    ) from _refusal(chats, encoder, paths)


def _refusal(
    chats: EncodedChats, encoder: ConversationEncoder, paths: Sequence[Path]
) -> InputError | None:
    """Return the error of the chat template for the first conversation, if it refused some."""
    if not chats.counts["refused_by_template"]:
        return None
    chat_format = open_chat_format(encoder.folder, encoder.chat_template)
    for path in paths:
        for conversation in encoder.records(path, "train"):
            try:
                chat_format.encode(conversation.messages, conversation.tools)
            except InputError as error:
                return error
    return None


def reversed_conversation(conversation: Conversation) -> Conversation:
    """Return the last question and its answer with their roles exchanged, without earlier turns."""
    question = conversation.prompt[-1].content
    turns = (Message("user", conversation.response), Message("assistant", question))
    return replace(conversation, messages=turns)


def learn_last(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the messages with weight 0 for all of the assistant's but the last."""
    answers = [at for at, message in enumerate(messages) if message.role == "assistant"]
    return tuple(
        replace(message, weight=0.0) if at in answers[:-1] else message
        for at, message in enumerate(messages)
    )
