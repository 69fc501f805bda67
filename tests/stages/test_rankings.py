"""Rankings of files: pairs and K-wise ranks, counted, on the sides of their conversations."""

import pytest
from chat_files import bytes_of, dropped_rows, messages, observed, pair, run_stage, write_rows

from pipeline.errors import InputError
from stages.data.conversation_dataset import Conversations
from stages.data.preference_dataset import Preferences
from stages.rankings import RankingsParams
from stages.text.sources import source_listing


def run(folder, *sources, **options):
    return run_stage("rankings", folder, *sources, **options)


def kept(ctx):
    return list(Preferences(ctx.out, None))


def reply(text, rank=None, *replies):
    """Return an assistant's reply of a tree, with the replies to it."""
    return {"text": text, "role": "assistant", "rank": rank, "replies": list(replies)}


def tree(number):
    """Return a tree: three ranked replies to its prompt, and two to a follow-up question."""
    follow_up = {
        "text": f"follow-up {number}",
        "role": "prompter",
        "replies": [reply("later one", 1), reply("later two", 0)],
    }
    replies = [reply("second", 1), reply("best", 0, follow_up), reply("worst", 2)]
    root = {"text": f"root {number}", "role": "prompter", "replies": replies}
    return {"message_tree_id": f"t{number}", "tree_state": "ready_for_export", "prompt": root}


HH = {
    "chosen": "\n\nHuman: Hello?\n\nAssistant: Hi.\n\nHuman: More?\n\nAssistant: Gladly.",
    "rejected": "\n\nHuman: Hello?\n\nAssistant: Hi.\n\nHuman: More?\n\nAssistant: No.",
}


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


def test_pairs_dialogues_and_trees_give_their_rankings(tmp_path):
    write_rows(tmp_path / "pairs.jsonl", [pair(i) for i in range(5)])
    write_rows(tmp_path / "trees.jsonl", [tree(i) for i in range(3)])
    write_rows(tmp_path / "hh.jsonl", [HH])
    names = ("pairs.jsonl", "trees.jsonl", "hh.jsonl")
    ctx = run(tmp_path / "w", *(tmp_path / name for name in names))
    found, results = kept(ctx), observed(ctx, "results")
    assert len(found) == results["rankings"] == results["read"] == 5 + 6 + 1
    assert results["pairs"] == 5 + 3 * (3 + 1) + 1
    best = [row.responses[row.ranks.index(0)] for row in found]
    assert best == [*(f"good {i}" for i in range(5)), *["best", "later two"] * 3, "Gladly."]
    assert [m.content for m in found[6].prompt] == ["root 0", "best", "follow-up 0"]
    assert [m.role for m in found[-1].prompt] == ["user", "assistant", "user"]
    panels = observed(ctx, "panels")
    assert panels["Responses per prompt"]["values"] == {"2": 9, "3": 3}
    shown = [item["text"] for item in panels["Kept rankings: a sample"]["items"]]
    assert "user: question 0\n\nrank 0: good 0\n\nrank 1: bad 0" in shown


def test_a_tree_is_on_one_side(tmp_path):
    write_rows(tmp_path / "trees.jsonl", [tree(i) for i in range(40)])
    ctx = run(tmp_path / "w", tmp_path / "trees.jsonl", eval_share=0.3)
    splits = [row.split for row in kept(ctx)]
    assert splits[::2] == splits[1::2] and set(splits) == {"train", "eval"}


def test_the_cut_into_shards_changes_no_byte(tmp_path, monkeypatch):
    write_rows(tmp_path / "a.jsonl", [tree(i) for i in range(20)])
    whole = bytes_of(run(tmp_path / "one", tmp_path / "a.jsonl"))
    monkeypatch.setattr(source_listing, "SHARD_BYTES", 1)
    assert bytes_of(run(tmp_path / "two", tmp_path / "a.jsonl")) == whole


def test_ids_are_unique_within_rows_of_several_rankings(tmp_path):
    write_rows(tmp_path / "a.jsonl", [tree(0), tree(0), pair(1)][:2])
    ctx = run(tmp_path / "w", tmp_path / "a.jsonl")
    assert len({row.id for row in kept(ctx)}) == len(kept(ctx)) == 4
    assert observed(ctx, "results")["repeated"] == 2


def test_labelled_rows_are_no_rankings(tmp_path):
    (problem,) = RankingsParams(sources=("x",), format="kto").check({})
    assert problem.key == "format" and "kto" in problem.message and problem.remedy
    write_rows(tmp_path / "a.jsonl", [{"prompt": "q", "completion": "a", "label": True}])
    with pytest.raises(InputError, match="kto"):
        run(tmp_path / "w", tmp_path / "a.jsonl")
