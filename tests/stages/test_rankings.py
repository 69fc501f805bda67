"""Rankings of files: pairs and K-wise ranks, counted, on the sides of their conversations."""

import pytest
from chat_files import dropped_rows, messages, observed, pair, run_stage, write_rows

from pipeline.errors import InputError
from stages.data.conversation_dataset import Conversations
from stages.data.preference_dataset import Preferences
from stages.rankings import RankingsParams


def run(folder, *sources, **options):
    return run_stage("rankings", folder, *sources, **options)


def kept(ctx):
    return list(Preferences(ctx.out, None))


def test_equal_responses_are_left_out_and_counted(tmp_path):
    rows = [pair(0), {**pair(1), "rejected": "good 1"}, {**pair(2), "chosen": None}]
    write_rows(tmp_path / "a.jsonl", rows)
    ctx = run(tmp_path / "w", tmp_path / "a.jsonl")
    results = observed(ctx, "results")
    assert (results["rankings"], results["dropped"], results["read"]) == (1, 2, 3)
    assert results["left_out_identical_responses"] == 1
    assert [row["at"] for row in dropped_rows(ctx)] == ["line 2", "line 3"]


def test_a_prompt_is_in_the_same_split_as_in_conversations(tmp_path):
    write_rows(tmp_path / "a.jsonl", [pair(i, f"question {i % 60}") for i in range(120)])
    options = {"eval_share": 0.3, "seed": 5}
    ranked = run(tmp_path / "r", tmp_path / "a.jsonl", **options)
    talked = run_stage("conversations", tmp_path / "c", tmp_path / "a.jsonl", **options)
    sides = {row.prompt[0].content: row.split for row in kept(ranked)}
    assert set(sides.values()) == {"train", "eval"}
    for row in Conversations(talked.out, None):
        assert sides[row.messages[0].content] == row.split


def test_pairs_are_counted_with_their_parts_in_the_report(tmp_path):
    write_rows(tmp_path / "a.jsonl", [pair(i) for i in range(5)])
    ctx = run(tmp_path / "w", tmp_path / "a.jsonl")
    results, panels = observed(ctx, "results"), observed(ctx, "panels")
    assert results["pairs"] == results["rankings"] == results["read"] == len(kept(ctx)) == 5
    assert panels["Responses per prompt"]["values"] == {"2": 5}
    shown = [item["text"] for item in panels["Kept rankings: a sample"]["items"]]
    assert "user: question 0\n\nrank 0: good 0\n\nrank 1: bad 0" in shown


def test_a_format_without_rankings_is_refused_by_the_plan_and_by_the_stage(tmp_path):
    (problem,) = RankingsParams(sources=("x",), format="messages").check({})
    assert problem.key == "format" and "messages" in problem.message and problem.remedy
    write_rows(tmp_path / "a.jsonl", [messages("q", "a")])
    with pytest.raises(InputError, match="messages") as error:
        run(tmp_path / "w", tmp_path / "a.jsonl")
    assert error.value.exit_code == 2
