"""Preferences from this Python's own docstrings, split as the questions are."""

import json

import pytest

from pipeline.context import Context
from pipeline.errors import InputError
from pipeline.stage import Inputs
from stages.data.conversation_dataset import Conversations
from stages.data.preference_dataset import Preferences
from stages.python_preferences import python_preferences
from stages.python_questions import python_questions
from stages.text.python_docs import question_answers
from stages.text.python_docs.python_docs_params import PythonDocsParams


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(question_answers, "SHARD_BYTES", 200_000)


def run(stage, folder, params):
    ctx = Context.local(folder)
    stage(params, Inputs({}), ctx.out, ctx)
    return ctx


def test_preferences_and_questions_share_objects_and_splits(tmp_path):
    asked = run(python_questions, tmp_path / "q", PythonDocsParams(max_objects=400))
    ctx = run(python_preferences, tmp_path / "p", PythonDocsParams(max_objects=400))
    answers = {c.id: c for c in Conversations(asked.out, None)}
    for split in ("train", "eval"):
        found = list(Preferences(ctx.out, split))
        assert len(found) > 20
        own = {c.response for c in answers.values() if c.split == split}
        for preference in found:
            truth = answers[preference.id]
            assert truth.split == split and truth.prompt == preference.prompt
            best, *middle, worst = [
                r for _, r in sorted(zip(preference.ranks, preference.responses, strict=True))
            ]
            assert best == truth.response and sorted(worst.split()) == sorted(best.split())
            assert middle and set(middle) <= own - {best}
    results = json.loads((ctx.observed / "results.json").read_text())
    widths = [len(p.ranks) for p in Preferences(ctx.out, None)]
    assert results["preferences"] == len(widths)
    assert results["pairs"] == sum(k * (k - 1) / 2 for k in widths)


def test_the_same_objects_give_the_same_bytes(tmp_path):
    one, two = (
        run(python_preferences, tmp_path / n, PythonDocsParams(max_objects=120)).out
        for n in ("a", "b")
    )
    assert (one / "part-00000.parquet").read_bytes() == (two / "part-00000.parquet").read_bytes()


def test_mistakes_are_explained(tmp_path):
    with pytest.raises(InputError, match="too few to compare"):
        run(python_preferences, tmp_path, PythonDocsParams(max_objects=1))
