"""Dialogues and rankings that are kept or left out, reason by reason."""

import pytest

from stages.chat.row_options import RowOptions
from stages.chat.turn_checks import EXCLUSIONS, SHORTENINGS, check_dialogue, check_ranking
from stages.chat.turns import Dialogue, Ranking, RowError
from stages.data.conversation_dataset import Message

CALL = {"type": "function", "function": {"name": "clock", "arguments": {}}}
S, U, A = Message("system", "s"), Message("user", "u"), Message("assistant", "a")
CALLS = Message("assistant", "", tool_calls=(CALL,))
T = Message("tool", "12:00")


def dialogue(*messages, **options):
    checked, changes = check_dialogue(Dialogue(messages), RowOptions(**options))
    assert set(changes) <= SHORTENINGS.keys()
    return checked.messages, changes


@pytest.mark.parametrize(
    "messages", [(U, A), (S, U, A), (U, A, U, A), (U, CALLS, T, A), (U, CALLS, T, T, A, U, A)]
)
def test_dialogues_in_order_stay_as_they_are(messages):
    assert dialogue(*messages) == (messages, ())


def test_what_follows_the_last_answer_is_removed():
    assert dialogue(U, A, U) == ((U, A), ("unanswered_end",))


def test_turns_of_one_role_are_joined_or_refused():
    joined = Message("user", "u\n\nv")
    assert dialogue(U, Message("user", "v"), A) == ((joined, A), ("merged_turns",))
    with pytest.raises(RowError) as error:
        dialogue(U, U, A, repeated_roles="refuse")
    assert error.value.reason == "repeated_roles" and error.value.field == "messages[1]"
    with pytest.raises(RowError):  # one is learned and the other is not
        dialogue(U, A, Message("assistant", "b", weight=0))


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ((), "no_answer"),
        ((U,), "no_answer"),
        ((U, Message("assistant", " ")), "empty_answer"),
        ((Message("user", ""), A), "empty_message"),
        ((A, U, A), "role_order"),
        ((U, A, S, U, A), "role_order"),
        ((U, T, A), "role_order"),
        ((U, CALLS, U, A), "role_order"),
        ((U, Message("assistant", "a", weight=0)), "nothing_learned"),
    ],
)
def test_reasons_to_leave_a_dialogue_out(messages, reason):
    with pytest.raises(RowError) as error:
        dialogue(*messages)
    assert error.value.reason == reason and reason in EXCLUSIONS


def ranking(responses, ranks, prompt=(U,)):
    checked, changes = check_ranking(Ranking(prompt, responses, ranks), RowOptions())
    assert set(changes) <= SHORTENINGS.keys()
    return checked.responses, checked.ranks, changes


def test_rankings_lose_what_cannot_be_compared():
    assert ranking(("a", "b", "c"), (0, 1, 1)) == (("a", "b", "c"), (0, 1, 1), ())
    assert ranking(("a", "", "c"), (0, 1, 2)) == (("a", "c"), (0, 2), ("empty_responses",))
    assert ranking(("a", "b", "a"), (0, 1, 2)) == (("a", "b"), (0, 1), ("repeated_responses",))


@pytest.mark.parametrize(
    ("responses", "ranks", "prompt", "reason"),
    [
        (("a", "a"), (0, 1), (U,), "identical_responses"),
        (("a", " "), (0, 1), (U,), "empty_answer"),
        (("a", "b"), (1, 1), (U,), "all_tied"),
        (("a", "b"), (0, 1), (), "no_prompt"),
        (("a", "b"), (0, 1), (U, A), "role_order"),
    ],
)
def test_reasons_to_leave_a_ranking_out(responses, ranks, prompt, reason):
    with pytest.raises(RowError) as error:
        ranking(responses, ranks, prompt)
    assert error.value.reason == reason and reason in EXCLUSIONS
