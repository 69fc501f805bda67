"""Messages of files: role words, parts of text, tool calls, weights, errors with their field."""

import json

import pytest

from stages.chat.row_formats.message_parsing import parse_tools, parse_turns
from stages.chat.row_options import RowOptions
from stages.chat.turns import RowError
from stages.data.conversation_dataset import Message

CALL = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}


def turns(*given, **options):
    return parse_turns(list(given), "messages", RowOptions(**options))


@pytest.mark.parametrize(
    ("word", "role"),
    [
        ("human", "user"),
        ("GPT", "assistant"),
        ("developer", "system"),
        ("observation", "tool"),
        ("bing", "assistant"),
    ],
)
def test_role_words_of_files(word, role):
    assert turns({"from": word, "value": "x"}) == (Message(role, "x"),)


def test_role_words_of_the_user_come_first():
    assert turns({"role": "seeker", "content": "x"}, roles={"seeker": "user"})[0].role == "user"
    assert turns({"role": "bot", "content": "x"}, roles={"bot": "user"})[0].role == "user"


def test_text_in_parts_is_one_text():
    parts = [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]
    assert turns({"role": "user", "content": parts})[0].content == "a b"


def test_tool_calls_have_one_form_however_they_are_stored():
    arguments = json.dumps({"zone": "UTC"})
    stored = [
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "clock", "arguments": arguments}}],
        },
        {
            "role": "assistant",
            "content": "",
            "function_call": {"name": "clock", "arguments": arguments},
        },
        {"from": "function_call", "value": json.dumps({"name": "clock", "arguments": arguments})},
    ]
    for turn in stored:
        assert turns(turn) == (Message("assistant", "", tool_calls=(CALL,)),)


def test_weights_and_names():
    learned = {"role": "assistant", "content": "x", "weight": 0, "name": "Ann"}
    assert turns(learned) == (Message("assistant", "x", name="Ann", weight=0.0),)
    assert turns({"from": "gpt", "value": "x", "train": False})[0].weight == 0.0


def test_json_in_a_text_field_as_csv_files_store_it():
    text = json.dumps([{"role": "user", "content": "x"}])
    assert parse_turns(text, "messages", RowOptions()) == (Message("user", "x"),)


@pytest.mark.parametrize(
    ("turn", "field", "reason"),
    [
        ("x", "messages[0]", "unreadable"),
        ({"content": "x"}, "messages[0]", "unreadable"),
        ({"role": "robot", "content": "x"}, "messages[0].role", "unknown_role"),
        ({"role": "user", "content": 3}, "messages[0].content", "unreadable"),
        ({"role": "user"}, "messages[0].content", "unreadable"),
        ({"role": "user", "content": [{"type": "image"}]}, "messages[0].content[0]", "not_text"),
        ({"role": "assistant", "content": "x", "weight": -1}, "messages[0].weight", "unreadable"),
        ({"from": "function_call", "value": "{"}, "messages[0].value", "unreadable"),
    ],
)
def test_errors_name_the_field(turn, field, reason):
    with pytest.raises(RowError) as error:
        turns(turn)
    assert (error.value.field, error.value.reason) == (field, reason)


def test_tools_are_a_list_or_its_json():
    tool = {"type": "function", "function": {"name": "clock"}}
    assert parse_tools({"tools": [tool]}) == parse_tools({"tools": json.dumps([tool])}) == (tool,)
    assert parse_tools({"tools": None}) == parse_tools({}) == ()
    with pytest.raises(RowError, match="tools"):
        parse_tools({"tools": "clock"})
