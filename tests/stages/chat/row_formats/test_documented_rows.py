"""The example rows of docs/conversations.md are read by the formats that it names."""

import json
import re
from pathlib import Path

import pytest

from stages.chat.row_formats.format_registry import FORMATS, detect_format
from stages.chat.row_options import RowOptions
from stages.chat.turn_checks import EXCLUSIONS, SHORTENINGS, check_dialogue, check_ranking
from stages.chat.turns import Row

DOCUMENT = (Path(__file__).parents[4] / "docs" / "conversations.md").read_text()
EXAMPLES = dict(re.findall(r"^\| `(\w+)` \|.*\| `(\{.*\})` \|$", DOCUMENT, re.M))


def test_every_format_and_reason_is_documented():
    assert EXAMPLES.keys() == FORMATS.keys()
    assert all(f"`{reason}`" in DOCUMENT for reason in (*EXCLUSIONS, *SHORTENINGS))


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_are_read(name):
    row = Row(json.loads(EXAMPLES[name]), "docs", "line 1")
    found = detect_format(row.values, "dialogues", RowOptions())
    assert found.name == name
    for dialogue in found.dialogues(row, RowOptions()):
        check_dialogue(dialogue, RowOptions())
    if found.has_rankings:
        [ranking] = found.rankings(row, RowOptions())
        assert check_ranking(ranking, RowOptions())[1] == ()
