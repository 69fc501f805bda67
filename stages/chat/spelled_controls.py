"""Conversations whose text spells control tokens, such as `</s>`: counted and named.

The text stays text in the ids here. `transformers` encodes it to control tokens wherever the names
in `tokenizer.json` are those that the text spells, so ids of such conversations may differ there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from stages.chat.chat_format import ChatFormat
from stages.data.conversation_dataset import Conversation

if TYPE_CHECKING:
    from pipeline.context import Context

NAMED = 5
"""Conversations that are named."""


def spelled_in(chat: ChatFormat, conversations: Iterable[Conversation]) -> Iterator[str]:
    """Yield the id and the control tokens of each conversation that spells some."""
    for conversation in conversations:
        spelled = chat.spelled_control_tokens(conversation.messages, conversation.tools)
        if spelled:
            yield f"{conversation.id} ({', '.join(dict.fromkeys(spelled))})"


def report_control_text(
    ctx: Context, chat: ChatFormat, conversations: Iterable[Conversation], count: int
) -> None:
    """Report how many conversations to train on spell control tokens, and log the first ids."""
    ctx.result(control_text=count)
    if count:
        named = list(islice(spelled_in(chat, conversations), NAMED))
        more = f" and {count - len(named):,} more" if count > len(named) else ""
        ctx.log(
            f"{count:,} conversations spell control tokens, which stay text: "
            f"{'; '.join(named)}{more}"
        )
