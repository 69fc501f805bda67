"""Length limits against every choice of exchanges, on conversations of random turns."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.chat.length_limits import fit_to_length, is_answered, split_exchanges
from stages.data.conversation_dataset import Message


def words(messages: Sequence[Message]) -> list[str]:
    """Encode a conversation as its roles and words."""
    return [word for m in messages for word in (m.role, *m.content.split())]


def talk(*turns: str) -> tuple[Message, ...]:
    """Return messages of `role: text`."""
    pairs = [turn.split(": ", 1) for turn in turns]
    return tuple(Message(role, text) for role, text in pairs)  # type: ignore[arg-type]


SYSTEM = talk("system: be brief")
FIRST = talk("user: why so", "assistant: because of it")
TOOLS = talk("user: sum it", "assistant: add", "tool: 5", "assistant: it is 5")
LAST = talk("user: and now", "assistant: well")
QUESTION = talk("user: and then")
WHOLE = (*SYSTEM, *FIRST, *TOOLS, *LAST)


def test_exchanges_hold_the_calls_of_their_tools() -> None:
    assert split_exchanges(WHOLE) == (SYSTEM, [FIRST, TOOLS, LAST])
    assert split_exchanges((*WHOLE, *QUESTION))[1][-1] == QUESTION
    opening = talk("assistant: hello", "user: hi", "user: you", "assistant: yes")
    assert split_exchanges(opening) == ((), [opening[:1], opening[1:]])
    assert split_exchanges(SYSTEM) == (SYSTEM, [])


def test_what_fits_is_not_touched() -> None:
    for too_long in ("drop", "keep_end", "split_turns"):
        fitted = fit_to_length(WHOLE, words, len(words(WHOLE)), too_long)
        assert fitted.chats == (words(WHOLE),)
        assert (fitted.outcome, fitted.exchanges, fitted.exchanges_left_out) == ("whole", 3, 0)


def test_one_id_beyond_the_limit_is_too_long() -> None:
    limit = len(words(WHOLE)) - 1
    dropped = fit_to_length(WHOLE, words, limit, "drop")
    assert (dropped.chats, dropped.outcome, dropped.exchanges_left_out) == ((), "too_long", 3)
    shortened = fit_to_length(WHOLE, words, limit, "keep_end")
    assert shortened.chats == (words((*SYSTEM, *TOOLS, *LAST)),)
    assert (shortened.outcome, shortened.exchanges_left_out) == ("shortened", 1)
    split = fit_to_length(WHOLE, words, limit, "split_turns")
    assert split.chats == (words((*SYSTEM, *FIRST, *TOOLS)), words((*SYSTEM, *LAST)))
    assert (split.outcome, split.exchanges_left_out) == ("split", 0)


def test_an_exchange_too_long_by_itself_is_left_out_alone() -> None:
    limit = len(words((*SYSTEM, *TOOLS))) - 1
    split = fit_to_length(WHOLE, words, limit, "split_turns")
    assert split.chats == (words((*SYSTEM, *FIRST)), words((*SYSTEM, *LAST)))
    assert (split.outcome, split.exchanges_left_out) == ("split", 1)


def test_an_answer_never_loses_its_question_or_its_end() -> None:
    for too_long in ("keep_end", "split_turns"):
        fitted = fit_to_length((*SYSTEM, *LAST), words, 6, too_long)
        assert (fitted.chats, fitted.outcome) == ((), "too_long")


def test_a_question_without_an_answer_is_no_end_to_keep() -> None:
    messages = (*FIRST, *LAST, *QUESTION)
    kept = fit_to_length(messages, words, len(words(LAST)), "keep_end")
    assert kept.chats == (words(LAST),)
    assert (kept.exchanges, kept.exchanges_left_out) == (2, 1)


exchanges = st.lists(
    st.tuples(st.integers(1, 4), st.integers(1, 6)).map(
        lambda n: talk(f"user: {'a ' * n[0]}", f"assistant: {'b ' * n[1]}")
    ),
    min_size=1,
    max_size=6,
)


@given(exchanges, st.booleans(), st.integers(3, 40))
def test_the_most_exchanges_at_the_end_are_kept(turns, with_system: bool, limit: int) -> None:
    system = SYSTEM if with_system else ()
    whole = (*system, *(m for turn in turns for m in turn))
    ends = [
        words((*system, *(m for turn in turns[first:] for m in turn)))
        for first in range(len(turns))
    ]
    fitting = [end for end in ends if len(end) <= limit]
    assert fit_to_length(whole, words, limit, "keep_end").chats == tuple(fitting[:1])


@given(exchanges, st.integers(3, 40))
def test_pieces_are_as_few_as_can_be(turns, limit: int) -> None:
    """Brute force over the cuts between exchanges; each that fits by itself is in one piece."""
    messages = tuple(m for turn in turns for m in turn)
    fitted = fit_to_length(messages, words, limit, "split_turns")
    alone = [turn for turn in turns if len(words(turn)) <= limit]
    assert [w for chat in fitted.chats for w in chat] == [w for turn in alone for w in words(turn)]
    assert fitted.exchanges_left_out == len(turns) - len(alone)
    assert all(len(chat) <= limit for chat in fitted.chats)
    fewest = min(pieces(turns, cuts, limit) for cuts in product((0, 1), repeat=len(turns) - 1))
    assert len(fitted.chats) == fewest


def pieces(turns, cuts, limit: int) -> float:
    """Return the number of pieces of a way to cut, infinity if one of several turns is too long."""
    groups = [[turns[0]]]
    for turn, cut in zip(turns[1:], cuts, strict=True):
        groups += [[turn]] if cut else []
        groups[-1] += [] if cut else [turn]
    sizes = [len(words([m for turn in group for m in turn])) for group in groups]
    if any(size > limit for size, group in zip(sizes, groups, strict=True) if len(group) > 1):
        return float("inf")
    return sum(size <= limit for size in sizes)


@pytest.mark.parametrize(("exchange", "answered"), [(FIRST, True), (QUESTION, False)])
def test_an_exchange_is_answered_by_the_assistant(exchange, answered: bool) -> None:
    assert is_answered(exchange) == answered
