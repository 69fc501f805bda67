"""Pairs as texts and as messages, with their prompts and margins."""

import pytest

from stages.chat.row_formats.format_registry import detect_format
from stages.chat.row_options import RowOptions
from stages.chat.turns import Row, RowError
from stages.data.conversation_dataset import Message

ASKED, GOOD, BAD = Message("user", "why?"), "because", "so"
TURN = {"role": "user", "content": "why?"}
ROWS = {
    "texts": {"prompt": "why?", "chosen": GOOD, "rejected": BAD},
    "turns and responses": {
        "conversations": [{"from": "human", "value": "why?"}],
        "chosen": {"from": "gpt", "value": GOOD},
        "rejected": {"from": "gpt", "value": BAD},
    },
    "messages with prompt": {
        "prompt": [TURN],
        "chosen": [{"role": "assistant", "content": GOOD}],
        "rejected": [{"role": "assistant", "content": BAD}],
    },
    "messages that repeat the prompt": {
        "prompt": "why?",
        "chosen": [TURN, {"role": "assistant", "content": GOOD}],
        "rejected": [TURN, {"role": "assistant", "content": BAD}],
    },
    "implicit prompt": {
        "chosen": [TURN, {"role": "assistant", "content": GOOD}],
        "rejected": [TURN, {"role": "assistant", "content": BAD}],
    },
    "question": {"question": "why?", "chosen": GOOD, "rejected": BAD},
}


def read(values):
    found = detect_format(values, "rankings", RowOptions())
    assert found.name == "chosen_rejected"
    return found.rankings(Row(values, "f", "line 1"), RowOptions())


@pytest.mark.parametrize("name", ROWS)
def test_every_form_is_one_pair(name):
    [ranking] = read(ROWS[name])
    assert (ranking.prompt, ranking.responses, ranking.ranks) == ((ASKED,), (GOOD, BAD), (0, 1))


def test_a_system_message_and_a_margin_are_kept():
    [ranking] = read({**ROWS["texts"], "system": "Be brief.", "margin": 2})
    assert ranking.prompt == (Message("system", "Be brief."), ASKED)
    assert ranking.meta == {"margin": 2.0}
    [scored] = read({**ROWS["texts"], "score_chosen": 8.5, "score_rejected": 6})
    assert scored.meta == {"margin": 2.5}


def test_the_dialogue_is_the_chosen_one():
    values = ROWS["turns and responses"]
    found = detect_format(values, "dialogues", RowOptions())
    [dialogue] = found.dialogues(Row(values, "f", "line 1"), RowOptions())
    assert dialogue.messages == (ASKED, Message("assistant", GOOD))


@pytest.mark.parametrize(
    ("changed", "field", "reason"),
    [
        ({"chosen": [TURN]}, "chosen", "response_turns"),
        ({"rejected": 3}, "rejected", "unreadable"),
        ({"prompt": 3}, "prompt", "unreadable"),
    ],
)
def test_errors_name_the_field(changed, field, reason):
    with pytest.raises(RowError) as error:
        read({**ROWS["messages with prompt"], **changed})
    assert (error.value.field, error.value.reason) == (field, reason)


def test_errors_name_the_field_of_the_file():
    options = RowOptions(fields={"chosen": "good", "rejected": "bad"})
    row = Row({"prompt": "why?", "good": GOOD, "bad": 1}, "f", "line 1")
    found = detect_format(row.values, "rankings", options)
    with pytest.raises(RowError, match="bad: expected text"):
        found.rankings(row, options)


def test_prompts_that_differ_are_no_pair():
    other = [{"role": "user", "content": "how?"}, {"role": "assistant", "content": BAD}]
    with pytest.raises(RowError) as error:
        read({**ROWS["implicit prompt"], "rejected": other})
    assert error.value.reason == "prompts_differ"
