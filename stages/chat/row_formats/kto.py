"""Single responses that are labelled as wanted or unwanted, in any format of one answer.

{"prompt": "…", "completion": "…", "label": true}    {"messages": [turns], "label": false}
"""

from __future__ import annotations

from typing import Any

from stages.chat.row_formats.alpaca import Alpaca
from stages.chat.row_formats.message_parsing import UNREADABLE
from stages.chat.row_formats.openai_messages import OpenAIMessages
from stages.chat.row_formats.prompt_completion import PromptCompletion
from stages.chat.row_formats.row_format import RowFormat, Values
from stages.chat.row_formats.sharegpt import ShareGPT
from stages.chat.row_options import RowOptions
from stages.chat.turns import Dialogue, RowError

LABELS = ("label", "kto_tag")
_INNER = (OpenAIMessages(), ShareGPT(), Alpaca(), PromptCompletion())
_WORDS = {"true": True, "1": True, "false": False, "0": False}


class KTO(RowFormat):
    """Reader of labelled responses; the wanted ones are dialogues."""

    name = "kto"
    fields = ("label", "kto_tag", *dict.fromkeys(name for inner in _INNER for name in inner.fields))

    def matches(self, values: Values) -> bool:
        """Return whether a row has a label and an answer."""
        labelled = any(isinstance(_label(values.get(name)), bool) for name in LABELS)
        return labelled and any(inner.matches(values) for inner in _INNER)

    def read_dialogues(self, values: Values, options: RowOptions) -> list[Dialogue]:
        """Return the dialogue of a row whose response is wanted.

        Raises:
            RowError: it is not, or the row cannot be read.
        """
        name = next((name for name in LABELS if values.get(name) is not None), LABELS[0])
        label = _label(values.get(name))
        if label is None:
            raise RowError(UNREADABLE, name, "expected true or false")
        inner = next((inner for inner in _INNER if inner.matches(values)), None)
        if inner is None:
            raise RowError(UNREADABLE, "messages", "no prompt with an answer")
        dialogues = inner.read_dialogues(values, options)
        if not label:
            raise RowError("unwanted", name, "the response is labelled as unwanted")
        return dialogues


def _label(value: Any) -> bool | None:
    if isinstance(value, str):
        return _WORDS.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | int) and value in (0, 1) else None
