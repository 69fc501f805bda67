"""Turns in order: what a dialogue and a ranking must hold, and what is removed for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from stages.chat.row_options import RowOptions
from stages.chat.turns import Dialogue, Ranking, RowError
from stages.data.conversation_dataset import Message

EXCLUSIONS: Mapping[str, str] = {
    "unreadable": "a field is missing or of another type",
    "not_text": "images, sound or tool calls where text is expected",
    "unknown_role": "a role word that is not known",
    "no_prompt": "no question before the responses",
    "no_answer": "no answer of the assistant",
    "empty_answer": "an answer without text",
    "empty_message": "a message without text before the last answer",
    "role_order": "roles out of order",
    "repeated_roles": "two turns of one role in a row, refused",
    "nothing_learned": "every answer has weight 0, or is learned in another conversation",
    "identical_responses": "fewer than two different responses",
    "all_tied": "all responses have one rank",
    "unranked": "fewer than two responses have a rank",
    "prompts_differ": "chosen and rejected answer different prompts",
    "response_turns": "a response of several messages",
    "unwanted": "a response that is labelled as unwanted",
}
"""Reasons why a row is left out."""
SHORTENINGS: Mapping[str, str] = {
    "unanswered_end": "messages after the last answer are removed",
    "merged_turns": "two turns of one role in a row are joined",
    "empty_responses": "responses without text are removed",
    "repeated_responses": "responses that equal another one are removed",
    "unranked_responses": "responses without a rank are removed",
}
"""Reasons why a row is kept in another form."""
_NEXT = {
    "": ("user",),
    "user": ("assistant",),
    "assistant": ("user",),
    "calls": ("tool",),
    "tool": ("tool", "assistant"),
}
"""Roles that may follow each other, after the system message."""


def check_dialogue(dialogue: Dialogue, options: RowOptions) -> tuple[Dialogue, tuple[str, ...]]:
    """Return a dialogue that ends with an answer, with the names of what was changed.

    Raises:
        RowError: it has no answer, or its messages are empty or out of order.
    """
    messages, merged = _merge(dialogue.messages, options)
    answers = [at for at, message in enumerate(messages) if message.role == "assistant"]
    if not answers:
        raise RowError("no_answer", "messages", "no message is the assistant's")
    kept = messages[: answers[-1] + 1]
    if _is_empty(kept[-1]):
        raise RowError("empty_answer", f"messages[{len(kept) - 1}]", "the last answer is empty")
    _check_turns(kept)
    if not any(message.weight for message in kept if message.role == "assistant"):
        raise RowError("nothing_learned", "messages", "every answer has weight 0")
    cut = ("unanswered_end",) if len(kept) < len(messages) else ()
    return replace(dialogue, messages=kept), (*cut, *merged)


def check_ranking(ranking: Ranking, options: RowOptions) -> tuple[Ranking, tuple[str, ...]]:
    """Return a ranking of at least two different responses, with the names of what was changed.

    Raises:
        RowError: it has no prompt, or fewer than two responses with different ranks.
    """
    prompt, merged = _merge(ranking.prompt, options)
    if not any(message.role == "user" for message in prompt):
        raise RowError("no_prompt", "prompt", "no message is the user's")
    if prompt[-1].role not in ("user", "tool"):
        raise RowError("role_order", "prompt", f"ends with a message of the {prompt[-1].role}")
    _check_turns(prompt)
    texts = list(zip(ranking.responses, ranking.ranks, strict=True))
    if len(texts) < 2:
        raise RowError("unranked", "ranks", "fewer than two responses have a rank")
    written = [(text, rank) for text, rank in texts if text.strip()]
    distinct = dict(reversed(written))  # the first rank of a text counts
    responses = [(text, rank) for text, rank in written if distinct.pop(text, None) is not None]
    if len(written) < min(2, len(texts)):
        raise RowError("empty_answer", "responses", "fewer than two responses have text")
    if len(responses) < 2:
        raise RowError("identical_responses", "responses", "fewer than two different responses")
    if len({rank for _, rank in responses}) < 2:
        raise RowError("all_tied", "ranks", "all responses have the same rank")
    empty = ("empty_responses",) if len(written) < len(texts) else ()
    repeated = ("repeated_responses",) if len(responses) < len(written) else ()
    kept = replace(
        ranking,
        prompt=prompt,
        responses=tuple(text for text, _ in responses),
        ranks=tuple(rank for _, rank in responses),
    )
    unranked = ("unranked_responses",) if ranking.unranked else ()
    return kept, (*unranked, *empty, *repeated, *merged)


def _merge(
    messages: Sequence[Message], options: RowOptions
) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """Join turns of one role in a row, or refuse them; messages of tools may follow each other.

    Raises:
        RowError: there are two and they are to be refused.
    """
    joined: list[Message] = []
    for at, message in enumerate(messages):
        if not joined or joined[-1].role != message.role or message.role == "tool":
            joined.append(message)
        elif options.repeated_roles == "refuse" or joined[-1].weight != message.weight:
            raise RowError("repeated_roles", f"messages[{at}]", f"again the {message.role}")
        else:
            joined[-1] = _join(joined[-1], message)
    return tuple(joined), ("merged_turns",) if len(joined) < len(messages) else ()


def _join(first: Message, second: Message) -> Message:
    texts = [text for text in (first.content, second.content) if text.strip()]
    calls = (*first.tool_calls, *second.tool_calls)
    return replace(first, content="\n\n".join(texts), tool_calls=calls)


def _check_turns(messages: Sequence[Message]) -> None:
    """Check that no message is empty and that roles alternate after the system message.

    Raises:
        RowError: one is empty or out of order.
    """
    for at, message in enumerate(messages):
        if _is_empty(message) and message.role != "tool":
            raise RowError("empty_message", f"messages[{at}]", f"the {message.role}'s is empty")
    turns = messages[1:] if messages[0].role == "system" else messages
    skipped = len(messages) - len(turns)
    for at, (before, after) in enumerate(pairwise(["", *map(_state, turns)]), skipped):
        role = "assistant" if after == "calls" else after
        if role not in _NEXT.get(before, ()):
            found = f"{role} after {'assistant' if before == 'calls' else before or 'the start'}"
            raise RowError("role_order", f"messages[{at}]", found)


def _state(message: Message) -> str:
    return "calls" if message.tool_calls else message.role


def _is_empty(message: Message) -> bool:
    return not message.content.strip() and not message.tool_calls
