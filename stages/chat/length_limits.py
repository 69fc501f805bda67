"""Treatments of a conversation that is longer than the limit.

    drop          it is left out
    keep_end      leading exchanges are removed until the rest fits; the system message stays
    split_turns   it becomes several conversations of consecutive exchanges, each with the system
                  message

An exchange is a question, its answers and the calls of tools between them. It is kept whole or not
at all, so that no answer is learned without its question or without its end.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from stages.data.conversation_dataset import Message

TooLong = Literal["drop", "keep_end", "split_turns"]
Outcome = Literal["whole", "shortened", "split", "too_long"]

Encoded = TypeVar("Encoded", bound=Sized)
Encode = Callable[[Sequence[Message]], Encoded]

_ANSWERING = ("assistant", "tool")


@dataclass(frozen=True, slots=True)
class FittedChats(Generic[Encoded]):
    """The encoded conversations that one became: none, one or several."""

    chats: tuple[Encoded, ...]
    outcome: Outcome
    exchanges: int
    """Answered exchanges of the conversation."""
    exchanges_left_out: int
    """Answered exchanges that are in none of the encoded conversations."""


def fit_to_length(
    messages: Sequence[Message], encode: Encode[Encoded], limit: int, too_long: TooLong
) -> FittedChats[Encoded]:
    """Encode a conversation so that nothing is longer than `limit` ids.

    Args:
        messages: the conversation.
        encode: the encoder of whole conversations; fewer exchanges give fewer ids.
        limit: largest number of ids.
        too_long: treatment of longer conversations.
    """
    system, exchanges = split_exchanges(messages)
    answered = sum(map(is_answered, exchanges))
    whole = encode(messages)
    if len(whole) <= limit:
        return FittedChats((whole,), "whole", answered, 0)
    while exchanges and not is_answered(exchanges[-1]):
        exchanges.pop()
    pieces: list[tuple[Encoded, int]] = []
    if too_long == "keep_end":
        pieces = list(_longest_end(system, exchanges, encode, limit))
    elif too_long == "split_turns":
        pieces = list(_consecutive_pieces(system, exchanges, encode, limit))
    if not pieces:
        return FittedChats((), "too_long", answered, answered)
    outcome: Outcome = "split" if len(pieces) > 1 else "shortened"
    kept = sum(count for _, count in pieces)
    return FittedChats(tuple(chat for chat, _ in pieces), outcome, answered, answered - kept)


def split_exchanges(
    messages: Sequence[Message],
) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """Return the leading system messages, and the exchanges after them."""
    start = 0
    while start < len(messages) and messages[start].role == "system":
        start += 1
    exchanges: list[list[Message]] = []
    answering = True
    for message in messages[start:]:
        if message.role in _ANSWERING:
            answering = True
        elif answering:
            exchanges.append([])
            answering = False
        if not exchanges:  # the conversation opens with an answer
            exchanges.append([])
        exchanges[-1].append(message)
    return tuple(messages[:start]), [tuple(exchange) for exchange in exchanges]


def is_answered(exchange: Sequence[Message]) -> bool:
    """Return whether the last word of an exchange is the assistant's."""
    return exchange[-1].role == "assistant"


def _longest_end(
    system: tuple[Message, ...],
    exchanges: Sequence[tuple[Message, ...]],
    encode: Encode[Encoded],
    limit: int,
) -> Iterator[tuple[Encoded, int]]:
    """Yield the most exchanges at the end that fit, if the last one does."""

    def fits(first: int) -> bool:
        return len(encode(_joined(system, exchanges[first:]))) <= limit

    first = bisect_left(range(len(exchanges)), True, key=fits)
    if first < len(exchanges):
        kept = exchanges[first:]
        yield encode(_joined(system, kept)), sum(map(is_answered, kept))


def _consecutive_pieces(
    system: tuple[Message, ...],
    exchanges: Sequence[tuple[Message, ...]],
    encode: Encode[Encoded],
    limit: int,
) -> Iterator[tuple[Encoded, int]]:
    """Yield conversations of as many consecutive exchanges as fit. An exchange that is too long by
    itself is in none of them."""
    start = 0
    while start < len(exchanges):

        def exceeds(stop: int, start: int = start) -> bool:
            return len(encode(_joined(system, exchanges[start:stop]))) > limit

        stops = range(start + 1, len(exchanges) + 1)
        count = bisect_left(stops, True, key=exceeds)
        piece = exchanges[start : start + count]
        if any(map(is_answered, piece)):
            yield encode(_joined(system, piece)), sum(map(is_answered, piece))
        start += max(count, 1)


def _joined(
    system: tuple[Message, ...], exchanges: Sequence[tuple[Message, ...]]
) -> tuple[Message, ...]:
    return (*system, *(message for exchange in exchanges for message in exchange))
