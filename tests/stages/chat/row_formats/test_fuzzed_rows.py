"""Any row is read, or left out with a reason and a field: no other error."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from stages.chat.row_formats.format_registry import FORMATS, REFUSED, detect_format
from stages.chat.row_options import RowOptions
from stages.chat.turn_checks import EXCLUSIONS, check_dialogue, check_ranking
from stages.chat.turns import Row, RowError

NAMES = sorted(
    {name for found in FORMATS.values() for name in found.fields}
    | {"role", "content", "from", "value", "text", "replies", "rank", "weight", "tool_calls"}
    | {"name", "arguments", "function", "responses", "completions", "scores", "label", "images"}
)
WORDS = st.sampled_from(["user", "human", "assistant", "gpt", "system", "tool", "prompter", "[]"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | WORDS
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES), inner, max_size=4)
        | st.lists(st.fixed_dictionaries({"role": WORDS, "content": inner}), max_size=4)
        | st.lists(st.fixed_dictionaries({"from": WORDS, "value": inner}), max_size=4)
    ),
    max_leaves=12,
)
ROWS = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=5)


@given(ROWS, st.sampled_from(sorted(FORMATS)), st.sampled_from(["merge", "refuse"]))
def test_any_row_in_any_format(values, name, repeated_roles):
    options, row = RowOptions(repeated_roles=repeated_roles), Row(values, "f", "line 1")
    row_format = FORMATS[name]
    row_format.matches(values)
    for find, check in (
        (row_format.dialogues, check_dialogue),
        (row_format.rankings, check_ranking),
    ):
        if check is check_ranking and not row_format.has_rankings:
            continue
        try:
            for found in find(row, options):
                check(found, options)
        except RowError as error:
            assert error.reason in EXCLUSIONS and error.field and error.detail


@given(ROWS)
def test_detection_names_a_format_or_refuses(values):
    for wanted in ("dialogues", "rankings"):
        try:
            found = detect_format(values, wanted, RowOptions())
        except InputError as error:
            assert error.remedy
        else:
            assert wanted == "dialogues" or found.has_rankings


def test_documented_formats_that_do_not_fit_are_refused_by_name():
    for fields, content, _ in REFUSED:
        try:
            detect_format(dict.fromkeys(fields, "x"), "dialogues", RowOptions())
        except InputError as error:
            assert content in error.message
        else:
            raise AssertionError(fields)
