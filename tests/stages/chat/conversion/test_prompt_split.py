"""Splits by first prompt: shares, names, and prompts that are given to one side."""

import pytest

from stages.chat.conversion.prompt_split import IN_EVAL, PromptSplit, named_split, prompt_key
from stages.chat.turns import RowError
from stages.data.conversation_dataset import Message


def user(text):
    return Message("user", text)


def test_the_first_message_of_the_user_decides():
    system, answer = Message("system", "Be brief."), Message("assistant", "Hi.")
    key = prompt_key([user("Hello  World")])
    assert prompt_key([system, user("hello\nworld "), answer, user("more")]) == key
    assert prompt_key([answer, user("hello world")]) == key
    assert prompt_key([user("hello worlds")]) != key
    assert prompt_key([answer]) == prompt_key([user("hi.")])


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.999])
def test_the_share_of_prompts_is_that_asked_for(share):
    split = PromptSplit(share, seed=0, num_train_sources=1)
    keys = [prompt_key([user(f"question {i}")]) for i in range(4_000)]
    found = [split.assign(key, 0, None) for key in keys]
    deviation = (share * (1 - share) / len(keys)) ** 0.5
    assert abs(found.count("eval") / len(keys) - share) <= 4 * deviation
    assert found == [split.assign(key, 0, None) for key in keys]
    assert set(found) <= {"train", "eval"}


def test_given_prompts_are_never_trained_on():
    split = PromptSplit(0.0, seed=0, num_train_sources=2, given=True)
    split.held_out.add("a")
    assert split.assign("a", 0, None) == split.assign("a", 1, "train") == IN_EVAL
    assert split.assign("b", 1, "train") == "train"
    assert split.assign("b", 2, None) == split.assign("b", 0, "eval") == "eval"


@pytest.mark.parametrize(
    ("value", "split"),
    [("train", "train"), ("Training ", "train"), ("TEST", "eval"), ("validation", "eval")],
)
def test_names_of_splits_are_read_in_their_variants(value, split):
    assert named_split("part", value) == split


@pytest.mark.parametrize("value", ["later", "", None, 3])
def test_an_unknown_split_names_field_and_value(value):
    with pytest.raises(RowError, match="part: expected one of train,") as error:
        named_split("part", value)
    assert (error.value.reason, error.value.field) == ("split_value", "part")
