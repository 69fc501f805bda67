"""The catalogue, the names that a pipeline file may use, and the code that measures agree."""

import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.text.rules.catalogue import RULE_SETS, Limit
from stages.text.rules.document_view import DocumentView
from stages.text.rules.rule_params import EditName, RuleSetName, limit_problems, merge_limits
from stages.text.rules.rule_scorer import MEASURES, RuleScorer, first_failures
from stages.text.rules.word_list_rules import Blocklists
from stages.text.text_edits import build_edits
from stages.text.words.word_table import WordTable

TEXT = (
    "The cat sat on the mat. It was 3 o'clock!\n\n\tdef f(x):  # half {a}\n你好，世界。\n\n<html>"
)


def test_every_set_has_a_name_in_pipeline_files_and_code_that_measures_it():
    assert set(get_args(RuleSetName)) == set(RULE_SETS) == set(MEASURES) | {"lists"}
    assert [name for name, _ in build_edits(get_args(EditName), ["en"])] == list(get_args(EditName))


@pytest.mark.parametrize("name", RULE_SETS)
@pytest.mark.parametrize("lang", ["en", "zh", "und"])
@pytest.mark.parametrize("text", [TEXT, "x", "\n", "<!doctype html><p>hello</p>"])
def test_a_set_measures_its_rules_and_no_others(name, lang, text):
    measure = MEASURES.get(name, Blocklists(words=("cat",)))
    measured = measure(DocumentView(text, lang, WordTable()))
    assert set(measured) == set(RULE_SETS[name].rules)
    assert all(isinstance(value, float) for value in measured.values())


def test_scores_come_in_the_order_of_the_rules():
    scorer = RuleScorer(("gopher_quality", "length"))
    scores = scorer.scores(DocumentView(TEXT, "en", WordTable()))
    assert len(scores) == len(scorer.rules) and scorer.rules[-1] == "length.characters"
    named = dict(zip(scorer.rules, scores, strict=True))
    assert scores[-1] == len(TEXT) and scores[0] == named["gopher_quality.words"] > 9


VALUE = st.one_of(st.floats(-2, 2), st.just(math.nan))


@given(st.lists(st.tuples(VALUE, VALUE, VALUE), max_size=20), st.floats(-1, 0), st.floats(0, 1))
def test_the_first_rule_out_of_its_range_fails_a_document(rows, low, high):
    limits = {"a": Limit(low=low), "c": Limit(low, high)}
    found = first_failures(np.array(rows).reshape(-1, 3), ("a", "b", "c"), limits)
    for row, at in zip(rows, found, strict=True):
        failed = [i for i, rule in ((0, "a"), (2, "c")) if not limits[rule].allows(row[i])]
        assert at == (failed[0] if failed else -1)


def test_a_pipeline_file_changes_ranges_one_by_one():
    names = ("length", "gopher_quality", "gopher_repetition")
    limits = merge_limits(
        names,
        {
            "gopher_quality": {"words": (20.0, None), "hash_marks": 0.2, "stop_words": None},
            "length": {"characters": (None, 9.0)},
        },
    )
    assert limits["gopher_quality.words"] == Limit(low=20)
    assert limits["gopher_quality.hash_marks"] == Limit(high=0.2)
    assert limits["length.characters"] == Limit(high=9)
    assert "gopher_quality.stop_words" not in limits
    assert limits["gopher_quality.ellipses"] == Limit(high=0.1)
    assert merge_limits(names, {"gopher_quality": {"alphabetic_words": 0.5}})[
        "gopher_quality.alphabetic_words"
    ] == Limit(low=0.5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"c4": {"sentences": 2.0}}, "limits: the rule set 'c4' is not in `rules` (add it there)"),
        (
            {"lenght": {"characters": None}},
            "limits: the rule set 'lenght' is not in `rules` (did you mean 'length'?)",
        ),
        (
            {"length": {"character": (1.0, None)}},
            "limits.length: length has no rule 'character' (did you mean 'characters'?)",
        ),
        (
            {"length": {"characters": (9.0, 1.0)}},
            "limits.length.characters: the range is empty (swap its ends)",
        ),
        (
            {"length": {"characters": 9.0}},
            "limits.length.characters: this rule has two ends (write [9, null] or [null, 9])",
        ),
        ({"length": {"characters": (None, 1.0)}}, None),
    ],
)
def test_what_is_wrong_with_limits_is_said(changes, message):
    assert [str(problem) for problem in limit_problems(("length",), changes)] == (
        [message] if message else []
    )
