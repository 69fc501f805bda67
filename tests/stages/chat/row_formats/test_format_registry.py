"""Detection of formats, and what users read about rows of none."""

import pytest

from pipeline.errors import InputError
from stages.chat.row_formats.format_registry import FORMATS, detect_format, find_format
from stages.chat.row_options import RowOptions
from stages.chat.turns import Row
from stages.data.conversation_dataset import Message

TURNS = {
    "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
    "sharegpt": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
}


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"messages": TURNS["messages"]}, "messages"),
        ({"conversations": TURNS["messages"]}, "messages"),
        ({"conversations": TURNS["sharegpt"]}, "sharegpt"),
        ({"conversation": TURNS["sharegpt"], "system": "s"}, "sharegpt"),
    ],
)
def test_lists_of_turns(values, name):
    found = detect_format(values, "dialogues", RowOptions())
    assert found.name == name
    [dialogue] = found.dialogues(Row(values, "f", "line 1"), RowOptions())
    given = (Message("system", "s"),) if "system" in values else ()
    assert dialogue.messages == (*given, Message("user", "a"), Message("assistant", "b"))


def test_fields_of_other_names():
    options = RowOptions(fields={"messages": "chat"})
    row = Row({"chat": TURNS["messages"]}, "f", "line 1")
    assert detect_format(row.values, "dialogues", options).dialogues(row, options)


def test_rows_of_no_format_name_their_fields():
    with pytest.raises(InputError, match="no format of conversations has the fields title, body"):
        detect_format({"title": "a", "body": "b"}, "dialogues", RowOptions())


def test_a_field_of_turns_that_is_no_list_is_named():
    with pytest.raises(InputError, match="the field messages is no list of messages"):
        detect_format({"messages": '[{"role": "user", '}, "dialogues", RowOptions())
    options = RowOptions(fields={"messages": "chat"})
    with pytest.raises(InputError, match="the field chat is no list of messages"):
        detect_format({"chat": "hello"}, "dialogues", options)


def test_rankings_of_a_format_without_them_are_refused_by_name():
    with pytest.raises(InputError, match="rows of format messages hold no rankings"):
        detect_format({"messages": TURNS["messages"]}, "rankings", RowOptions())
    with pytest.raises(InputError, match="unknown format 'chat'"):
        find_format("chat", "dialogues")


def test_names_are_keys():
    assert all(name == found.name and found.fields for name, found in FORMATS.items())
