r"""Dialogues of hh-rlhf: two texts that share their turns up to the last answer.

{"chosen": "\n\nHuman: …\n\nAssistant: …", "rejected": "\n\nHuman: …\n\nAssistant: …"}
"""

from __future__ import annotations

import re
from typing import Any, cast

from stages.chat.row_formats.message_parsing import UNREADABLE
from stages.chat.row_formats.row_format import RowFormat, Values
from stages.chat.row_options import RowOptions
from stages.chat.turns import Dialogue, Ranking, RowError
from stages.data.conversation_dataset import Message, Role

_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}


class HHRLHF(RowFormat):
    """Reader of transcripts."""

    name = "hh_rlhf"
    fields = ("chosen", "rejected")
    has_rankings = True

    def matches(self, values: Values) -> bool:
        """Return whether a row has two transcripts."""
        return _is_transcript(values.get("chosen")) and _is_transcript(values.get("rejected"))

    def read_dialogues(self, values: Values, options: RowOptions) -> list[Dialogue]:
        """Return the chosen transcript."""
        return [Dialogue(_turns(values, "chosen"))]

    def read_rankings(self, values: Values, options: RowOptions) -> list[Ranking]:
        """Return the last answers of both transcripts, with the turns before them."""
        chosen, rejected = _turns(values, "chosen"), _turns(values, "rejected")
        if chosen[:-1] != rejected[:-1]:
            raise RowError("prompts_differ", "rejected", "differs from chosen before the last turn")
        if {chosen[-1].role, rejected[-1].role} != {"assistant"}:
            raise RowError("response_turns", "rejected", "both must end with an answer")
        return [Ranking(chosen[:-1], (chosen[-1].content, rejected[-1].content), (0, 1))]


def _is_transcript(value: Any) -> bool:
    return isinstance(value, str) and _TURN.match(value.lstrip()) is not None


def _turns(values: Values, name: str) -> tuple[Message, ...]:
    text = values.get(name)
    if not isinstance(text, str) or not _is_transcript(text):
        raise RowError(UNREADABLE, name, "expected a text that begins with Human: or Assistant:")
    parts = _TURN.split(text.lstrip())[1:]
    return tuple(
        Message(cast("Role", _ROLES[role]), said.strip())
        for role, said in zip(parts[::2], parts[1::2], strict=True)
    )
