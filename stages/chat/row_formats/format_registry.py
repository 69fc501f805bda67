"""The formats by name, and the detection of a row's format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pipeline.errors import InputError
from stages.chat.row_formats.alpaca import Alpaca
from stages.chat.row_formats.chosen_rejected import ChosenRejected
from stages.chat.row_formats.hh_rlhf import HHRLHF
from stages.chat.row_formats.kto import KTO
from stages.chat.row_formats.oasst import OASST
from stages.chat.row_formats.openai_messages import LISTS, OpenAIMessages
from stages.chat.row_formats.prompt_completion import PromptCompletion
from stages.chat.row_formats.ranked_responses import RankedResponses
from stages.chat.row_formats.row_format import RowFormat
from stages.chat.row_formats.sharegpt import ShareGPT
from stages.chat.row_options import RowOptions

Wanted = Literal["dialogues", "rankings"]
FORMATS: dict[str, RowFormat] = {
    found.name: found
    for found in (
        OASST(),
        HHRLHF(),
        ChosenRejected(),
        RankedResponses(),
        KTO(),
        OpenAIMessages(),
        ShareGPT(),
        Alpaca(),
        PromptCompletion(),
    )
}
"""In the order of detection: formats with more fields first."""

_NOUNS = {"dialogues": "conversations", "rankings": "rankings"}
_ONE_PROMPT = "write each prompt as one text in the field prompt, its answer in completion"
_ON_TEXT = "set fields to {{instruction: {}, input: question, output: answer}}"
REFUSED: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("message_id", "parent_id"), "single messages of trees", "read the export of whole trees"),
    (("completions", "labels"), "labelled steps of a solution", "read whole responses"),
    (("input_ids",), "token ids", "read the texts that they were made from"),
    (("reflection", "corrected"), "reflections", _ONE_PROMPT),
    (("instruction", "revision"), "revisions", _ONE_PROMPT),
    (("instruction", "critiques"), "critiques", _ONE_PROMPT),
    (("choices", "question"), "questions with choices", _ONE_PROMPT),
    (
        ("article", "summary"),
        "articles with summaries",
        "set fields to {prompt: article, completion: summary}",
    ),
    (("article", "question"), "questions on an article", _ON_TEXT.format("article")),
    (("article", "unanswerable_question"), "questions without an answer", _ONE_PROMPT),
    (("context", "question"), "questions on a context", _ON_TEXT.format("context")),
    (
        ("chosen", "completion"),
        "completions of a prompt named chosen",
        "set fields to {prompt: chosen}",
    ),
    (("completion",), "whole dialogues in completion", "set fields to {messages: completion}"),
    (("segments",), "segments without roles", "write them as messages with weights"),
    (("text",), "texts", "read them with the stage clean"),
    (("prompt",), "prompts without answers", "add the answers"),
)
"""Fields of documented formats that do not fit, the content of their rows, and the remedy."""


def detect_format(values: Mapping[str, Any], wanted: Wanted, options: RowOptions) -> RowFormat:
    """Return the first format that a row matches and that holds what is wanted.

    Raises:
        InputError: no format fits.
    """
    renamed = options.renamed(values)
    matching = [found for found in FORMATS.values() if found.matches(renamed)]
    usable = [found for found in matching if wanted == "dialogues" or found.has_rankings]
    if usable:
        return usable[0]
    if matching:
        return find_format(matching[0].name, wanted)
    for fields, content, remedy in REFUSED:
        if all(name in renamed for name in fields):
            raise InputError(
                f"rows of {content} are not read as {_NOUNS[wanted]}",
                where="sources",
                remedy=remedy,
            )
    turns = next((name for name in LISTS if name in renamed), None)
    if turns is not None:
        raise InputError(
            f"the field {options.fields.get(turns, turns)} is no list of messages",
            where="sources",
            remedy="repair the rows: a list, or in a csv its JSON, of role and content each",
        )
    names = [
        found.name for found in FORMATS.values() if wanted == "dialogues" or found.has_rankings
    ]
    raise InputError(
        f"no format of {_NOUNS[wanted]} has the fields {', '.join(map(str, values)) or '(none)'}",
        where="sources",
        remedy=f"map the names with the key fields; formats: {', '.join(names)}",
    )


def find_format(name: str, wanted: Wanted) -> RowFormat:
    """Return a format by name.

    Raises:
        InputError: it is unknown, or its rows hold no rankings where these are wanted.
    """
    found = FORMATS.get(name)
    if found is None:
        raise InputError(
            f"unknown format {name!r}", where="format", remedy=f"one of {', '.join(FORMATS)}"
        )
    if wanted == "rankings" and not found.has_rankings:
        ranked = [each.name for each in FORMATS.values() if each.has_rankings]
        raise InputError(
            f"rows of format {name} hold no rankings",
            where="format",
            remedy=f"read them with the stage conversations; rankings: {', '.join(ranked)}",
        )
    return found
