"""Questions with one answer: Alpaca rows, prompts with completions, labelled responses."""

import pytest

from stages.chat.row_formats.format_registry import detect_format
from stages.chat.row_options import RowOptions
from stages.chat.turns import Row, RowError
from stages.data.conversation_dataset import Message

U, A, S = Message("user", "why?"), Message("assistant", "so"), Message("system", "Be brief.")
ASKED, SAID = {"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}


def read(name, values):
    found = detect_format(values, "dialogues", RowOptions())
    assert found.name == name
    [dialogue] = found.dialogues(Row(values, "f", "line 1"), RowOptions())
    return dialogue.messages


def fails(values):
    found = detect_format(values, "dialogues", RowOptions())
    with pytest.raises(RowError) as error:
        found.dialogues(Row(values, "f", "line 1"), RowOptions())
    return error.value.field, error.value.reason


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"instruction": "why?", "output": "so"}, (U, A)),
        ({"instruction": "why?", "input": "", "output": "so", "system": ""}, (U, A)),
        (
            {"instruction": "Sum", "input": "1 2", "output": "3"},
            (Message("user", "Sum\n1 2"), Message("assistant", "3")),
        ),
        (
            {
                "instruction": "how?",
                "output": "thus",
                "system": "Be brief.",
                "history": [["why?", "so"]],
            },
            (S, U, A, Message("user", "how?"), Message("assistant", "thus")),
        ),
        ({"instruction": "why?", "output": "so", "history": "[]"}, (U, A)),
    ],
)
def test_alpaca(values, expected):
    assert read("alpaca", values) == expected


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"instruction": None}, "instruction"),
        ({"output": 3}, "output"),
        ({"history": [["why?"]]}, "history[0]"),
        ({"history": [["why?", 3]]}, "history[0][1]"),
        ({"history": "why?"}, "history"),
    ],
)
def test_errors_of_alpaca_name_the_field(changed, field):
    assert fails({"instruction": "why?", "output": "so", **changed}) == (field, "unreadable")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"prompt": "why?", "completion": "so"}, (U, A)),
        ({"prompt": [ASKED], "completion": [SAID]}, (U, A)),
        ({"prompt": [ASKED], "completion": SAID}, (U, A)),
        ({"question": "why?", "answer": "so", "system_prompt": "Be brief."}, (S, U, A)),
        ({"INSTRUCTION": "why?", "RESPONSE": "so"}, (U, A)),
        (
            {"instruction": "why?", "context": "a map", "response": "so"},
            (Message("user", "why?\na map"), A),
        ),
    ],
)
def test_prompts_with_completions(values, expected):
    assert read("prompt_completion", values) == expected


@pytest.mark.parametrize("label", [True, 1, "true"])
@pytest.mark.parametrize(
    "values",
    [
        {"prompt": "why?", "completion": "so"},
        {"messages": [ASKED, SAID]},
        {"conversations": [{"from": "human", "value": "why?"}, {"from": "gpt", "value": "so"}]},
        {"instruction": "why?", "output": "so"},
    ],
)
def test_wanted_responses_are_dialogues(values, label):
    assert read("kto", {**values, "label": label}) == (U, A)
    assert read("kto", {**values, "kto_tag": label}) == (U, A)


def test_unwanted_responses_are_not():
    assert fails({"messages": [ASKED, SAID], "label": False}) == ("label", "unwanted")


def test_rows_with_media_are_left_out():
    values = {"messages": [ASKED, SAID], "images": ["a.png"]}
    assert fails(values) == ("images", "not_text")
    assert read("messages", {**values, "images": []}) == (U, A)
