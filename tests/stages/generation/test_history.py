"""Files of messages before a prompt."""

import json
import re

import pytest

from pipeline.errors import InputError
from stages.data.conversation_dataset import Message
from stages.generation.history import History, read_history

CALL = {"type": "function", "function": {"name": "f", "arguments": {}}}
ROWS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "é"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "2", "name": "f"},
]
MESSAGES = (
    Message("system", "Be brief."),
    Message("user", "é"),
    Message("assistant", "", tool_calls=(CALL,)),
    Message("tool", "2", name="f"),
)


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(ROWS, indent=1),
        json.dumps({"messages": ROWS}),
        "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n\n",
    ],
)
def test_each_form_of_a_file_is_read(tmp_path, text):
    path = tmp_path / "history"
    path.write_text(text, encoding="utf-8")
    assert read_history(path) == History(MESSAGES)


def test_one_line_is_one_message_and_tools_are_kept(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text(json.dumps(ROWS[1]))
    assert read_history(path) == History(MESSAGES[1:2])
    path.write_text(json.dumps({"messages": ROWS[:2], "tools": [CALL]}))
    assert read_history(path) == History(MESSAGES[:2], (CALL,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3", "no list of messages"),
        ('{"messages": "x"}', "no list of messages"),
        ('{"role": "user", "content": "a"}\n{"role"', "history.jsonl:2: not JSON"),
        ('[{"role": "human", "content": "a"}]', r"messages\[0\]: role 'human'"),
        ('[{"role": "user", "content": "a"}, {"role": "user"}]', r"messages\[1\]: content is not"),
        ("[3]", r"messages\[0\]: role None"),
    ],
)
def test_what_is_wrong_names_its_place(tmp_path, text, message):
    path = tmp_path / "history.jsonl"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_history(path)
    assert re.search(message, str(caught.value))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_history(tmp_path / "nothing.json")
