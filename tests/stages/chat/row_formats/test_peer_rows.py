"""Rows as TRL, LLaMA-Factory and axolotl document them, where a simpler reading would be wrong."""

import pytest

from pipeline.errors import InputError
from stages.chat.row_formats.format_registry import detect_format
from stages.chat.row_options import RowOptions
from stages.chat.turns import Row, RowError
from stages.data.conversation_dataset import Message

ASKED, ANSWER = Message("user", "why?"), Message("assistant", "because")
TURNS = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "because"}]


def read(values, wanted="dialogues", options=None):
    options = options or RowOptions()
    found = detect_format(values, wanted, options)
    return getattr(found, wanted)(Row(values, "f", "line 1"), options)


def test_pairs_of_alpaca_keep_their_history_and_tools():
    tool = {"name": "search"}
    values = {
        "instruction": "and",
        "input": "then?",
        "chosen": "so",
        "rejected": "no",
        "system": "Be brief.",
        "history": [["why?", "because"]],
        "tools": [tool],
    }
    prompt = (Message("system", "Be brief."), ASKED, ANSWER, Message("user", "and\nthen?"))
    [pair] = read(values, "rankings")
    assert (pair.prompt, pair.responses) == (prompt, ("so", "no"))
    [dialogue] = read(values)
    assert dialogue.messages == (*prompt, Message("assistant", "so"))
    assert dialogue.tools == (tool,)


def test_an_output_of_two_texts_is_no_answer():
    with pytest.raises(RowError, match="chosen and rejected") as error:
        read({"instruction": "why?", "output": ["because", "so"]})
    assert (error.value.reason, error.value.field) == ("unreadable", "output")


def test_an_output_in_parts_is_one_answer():
    [dialogue] = read({"instruction": "why?", "output": [{"type": "text", "text": "because"}]})
    assert dialogue.messages == (ASKED, ANSWER)


def test_a_draft_is_not_learned_as_the_answer():
    values = {"instruction": "why?", "input": "", "output": "so", "reflection": "r"}
    assert len(read(values)) == 1
    with pytest.raises(InputError, match="rows of reflections are not read"):
        read({**values, "corrected": "because"})


@pytest.mark.parametrize("detail", [None, []])
def test_turns_that_are_learned_in_parts_are_unreadable(detail):
    asked, answer = TURNS
    part = {"begin_offset": 0, "end_offset": 3, "train": False}
    [dialogue] = read({"messages": [{**asked, "train_detail": [part]}, answer]})
    assert dialogue.messages == (ASKED, ANSWER)
    [dialogue] = read({"messages": [asked, {**answer, "train_detail": detail}]})
    assert dialogue.messages == (ASKED, ANSWER)
    with pytest.raises(RowError) as error:
        read({"messages": [asked, {**answer, "train_detail": [part]}]})
    assert error.value.reason == "unreadable"
    assert error.value.field == "messages[1].train_detail"


@pytest.mark.parametrize(
    ("values", "content"),
    [
        ({"instruction": "i", "revision": "r"}, "revisions"),
        ({"scores": "1", "critiques": "c", "instruction": "i", "answer": "a"}, "critiques"),
        ({"article": "c", "unanswerable_question": "q"}, "questions without an answer"),
    ],
)
def test_prompts_made_by_templates_are_refused_by_name(values, content):
    with pytest.raises(InputError, match=f"rows of {content} are not read as conversations"):
        read(values)


@pytest.mark.parametrize(
    ("values", "fields"),
    [
        ({"chosen": TURNS[:1], "completion": TURNS[1:], "label": True}, {"prompt": "chosen"}),
        ({"completion": TURNS, "label": True}, {"messages": "completion"}),
    ],
)
def test_the_remedies_of_labelled_dialogues_read_them(values, fields):
    with pytest.raises(InputError) as error:
        read(values)
    [(name, own)] = fields.items()
    assert f"set fields to {{{name}: {own}}}" in str(error.value.remedy)
    [dialogue] = read(values, options=RowOptions(fields=fields))
    assert dialogue.messages == (ASKED, ANSWER)
