"""Conversations of files: counts add up, no prompt is in two splits, and mistakes are explained."""

import csv
import gzip
import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from chat_files import (
    bytes_of,
    dropped_rows,
    messages,
    observed,
    pair,
    run_stage,
    write_rows,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import InputError
from stages.conversations import ConversationsParams
from stages.data.conversation_dataset import Conversations
from stages.text.sources import source_listing

SHAREGPT = {
    "conversations": [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "Hello?"},
        {"from": "gpt", "value": "Hi."},
    ]
}


def run(folder, *sources, **options):
    return run_stage("conversations", folder, *sources, **options)


def kept(ctx):
    return list(Conversations(ctx.out, None))


ALPACA = [{"instruction": f"Do {i}.", "input": "", "output": f"Done {i}."} for i in range(4)]
ANSWER = {"text": "a", "role": "assistant", "replies": []}
OTHER = {"text": "b", "role": "assistant", "replies": []}
FOLLOW_UP = {"text": "and?", "role": "prompter", "replies": [ANSWER, OTHER]}
TREE = {
    "message_tree_id": "t",
    "prompt": {"text": "q", "role": "prompter", "replies": [{**ANSWER, "replies": [FOLLOW_UP]}]},
}


@pytest.fixture
def chats(tmp_path):
    """Good conversations in several formats, and one of each common fault."""
    folder = tmp_path / "chats"
    turns = [messages(f"hello {i}", f"hi {i}", f"and {i}?", f"yes {i}") for i in range(12)]
    broken = ['{"messages": [', {"messages": 5}, messages("no </s> answer"), "[1, 2]"]
    write_rows(folder / "turns.jsonl", [*turns, *broken, messages("spell", "<|im_start|>")])
    (folder / "array.json").write_text(
        json.dumps([messages(f"Do {i}.", "Done.") for i in range(4)])
    )
    (folder / "share.jsonl.gz").write_bytes(gzip.compress(json.dumps(SHAREGPT).encode()))
    pq.write_table(pa.Table.from_pylist([pair(i) for i in range(3)]), folder / "pairs.parquet")
    (folder / "README.md").write_text("about")
    return folder


def test_every_row_ends_in_one_place_with_its_reason(chats, tmp_path):
    ctx = run(tmp_path / "w", chats)
    found, dropped, results = kept(ctx), dropped_rows(ctx), observed(ctx, "results")
    assert results["rows"] == 12 + 5 + 4 + 1 + 3
    assert results["read"] == results["kept"] + results["shortened"] + results["dropped"]
    assert results["conversations"] == results["kept"] + results["shortened"] == len(found) == 21
    assert results["dropped"] == results["left_out"] == len(dropped) == 4
    assert len({row.id for row in found} | {row["id"] for row in dropped}) == 25
    places = [(row["file"], row["at"], row["reason"]) for row in dropped]
    assert places == [
        ("chats/turns.jsonl", "line 13", "unreadable"),
        ("chats/turns.jsonl", "line 14", "unreadable"),
        ("chats/turns.jsonl", "line 15", "no_answer"),
        ("chats/turns.jsonl", "line 16", "unreadable"),
    ]
    assert dropped[1]["field"] == "messages" and '"messages": 5' in dropped[1]["row"]
    assert results["broken"] == 3 and results["control_text"] == 2
    by_place = {row.meta["place"]: row for row in found}
    shared = by_place["chats/share.jsonl.gz line 1"]
    assert [message.role for message in shared.messages] == ["system", "user", "assistant"]
    assert by_place["chats/pairs.parquet row 2"].response == "good 2"


def test_the_report_shows_counts_formats_and_rows(chats, tmp_path):
    ctx = run(tmp_path / "w", chats)
    panels = observed(ctx, "panels")
    formats = {file: (name, kept) for file, name, _, kept in panels["Files"]["rows"]}
    assert {file: count for file, (_, count) in formats.items()} == {
        "chats/turns.jsonl": 13,
        "chats/array.json": 4,
        "chats/share.jsonl.gz": 1,
        "chats/pairs.parquet": 3,
    }
    assert {name for name, _ in formats.values()} == {"messages", "sharegpt", "chosen_rejected"}
    outcomes = {row[0]: row[2] for row in panels["Outcomes"]["rows"] if not row[1]}
    assert outcomes["read"] == sum(n for name, n in outcomes.items() if name != "read") == 25
    assert panels["Turns of the user"]["values"] == {"1": 9, "2": 12}
    assert panels["Messages by role"]["values"] == {"assistant": 33, "system": 1, "user": 33}
    assert sum(panels["Characters per conversation"]["counts"]) == 21
    assert panels["Texts that spell a control token: 2"]["rows"] == [
        ["chats/turns.jsonl line 15", "</s>", "no_answer"],
        ["chats/turns.jsonl line 17", "<|im_start|>", "kept"],
    ]
    assert len(panels["Kept conversations: a sample"]["items"]) == 21
    shown = panels["Left out: a sample"]["items"]
    assert {(item["reason"], item["row"]) for item in shown} >= {
        ("no_answer", "chats/turns.jsonl line 15")
    }
    assert panels["Not read"]["rows"] == [["files .md", 1]]
    (left_out, *_) = observed(ctx, "warnings")
    assert left_out["message"].startswith(
        "4 of 25 conversations (16.0%) are left out: unreadable 3"
    )


def test_no_prompt_is_in_two_splits(tmp_path):
    rows = [messages(f"  Question {i % 100} ", f"answer {i}") for i in range(300)]
    rows += [messages(f"question {i}", f"other {i}") for i in range(100)]
    write_rows(tmp_path / "a.jsonl", rows)
    ctx = run(tmp_path / "w", tmp_path / "a.jsonl", eval_share=0.2)
    sides = {}
    for row in kept(ctx):
        sides.setdefault(" ".join(row.messages[0].content.lower().split()), set()).add(row.split)
    assert len(sides) == 100 and all(len(splits) == 1 for splits in sides.values())
    share = sum("eval" in splits for splits in sides.values()) / 100
    assert 0.08 < share < 0.35
    results = observed(ctx, "results")
    assert results["train"] + results["eval"] == 400
    other = run(tmp_path / "x", tmp_path / "a.jsonl", eval_share=0.2, seed=1)
    assert [row.split for row in kept(other)] != [row.split for row in kept(ctx)]


def test_without_an_eval_share_all_is_in_the_train_split(tmp_path):
    write_rows(tmp_path / "a.jsonl", [messages(f"q {i}", "a") for i in range(50)])
    ctx = run(tmp_path / "w", tmp_path / "a.jsonl", eval_share=0)
    assert {row.split for row in kept(ctx)} == {"train"}
    assert observed(ctx, "results")["eval"] == 0 and observed(ctx, "warnings") == []


def test_a_field_names_the_split_and_no_prompt_leaks(tmp_path):
    rows = [
        {**messages("one", "1"), "part": "train"},
        {**messages("two", "2"), "part": "Test"},
        {**messages("TWO ", "2b"), "part": "training"},
        {**messages("three", "3"), "part": "validation"},
        {**messages("four", "4"), "part": "later"},
        messages("five", "5"),
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    ctx = run(tmp_path / "w", tmp_path / "a.jsonl", split_field="part")
    splits = {row.messages[0].content: row.split for row in kept(ctx)}
    assert splits == {"one": "train", "two": "eval", "three": "eval"}
    reasons = [(row["at"], row["reason"], row["field"]) for row in dropped_rows(ctx)]
    assert reasons == [
        ("line 3", "prompt_in_eval", ""),
        ("line 5", "split_value", "part"),
        ("line 6", "split_value", "part"),
    ]


def test_sources_of_the_eval_split_hold_their_prompts_out(tmp_path):
    write_rows(tmp_path / "train.jsonl", [messages(f"q {i}", f"a {i}") for i in range(30)])
    write_rows(tmp_path / "test.jsonl", [messages(f"q {i}", f"b {i}") for i in range(25, 35)])
    ctx = run(
        tmp_path / "w", tmp_path / "train.jsonl", eval_sources=(str(tmp_path / "test.jsonl"),)
    )
    splits = [(row.split, row.response[0]) for row in kept(ctx)]
    assert splits == [("train", "a")] * 25 + [("eval", "b")] * 10
    assert observed(ctx, "results")["left_out_prompt_in_eval"] == 5


def test_copies_are_counted_and_dropped_on_request(tmp_path):
    rows = [messages("a", "b"), messages("a", "c"), messages("a", "b"), messages("a", "b")]
    write_rows(tmp_path / "a.jsonl", rows)
    every = run(tmp_path / "w", tmp_path / "a.jsonl")
    assert len(kept(every)) == 4 and observed(every, "results")["repeated"] == 2
    once = run(tmp_path / "x", tmp_path / "a.jsonl", repeated="drop")
    assert [row.response for row in kept(once)] == ["b", "c"]
    results = observed(once, "results")
    assert results["left_out_repeated"] == results["repeated"] == results["dropped"] == 2


def test_fields_and_roles_of_any_name_are_mapped(tmp_path):
    rows = [{"q": f"question {i}", "a": "x", "b": "y", "kind": "x"} for i in range(3)]
    write_rows(tmp_path / "a.jsonl", rows)
    options = {
        "fields": {"prompt": "q", "chosen": "a", "rejected": "b"},
        "meta_columns": ("kind", "none"),
    }
    ctx = run(tmp_path / "w", tmp_path / "a.jsonl", **options)
    assert [row.messages[0].content for row in kept(ctx)] == [f"question {i}" for i in range(3)]
    assert kept(ctx)[0].meta == {"kind": "x", "place": f"{tmp_path.name}/a.jsonl line 1"}
    talk = {"messages": [{"role": "client", "content": "x"}, {"role": "bot", "content": "y"}]}
    write_rows(tmp_path / "b.jsonl", [talk])
    roles = {"client": "user", "bot": "assistant"}
    ctx = run(tmp_path / "x", tmp_path / "b.jsonl", roles=roles)
    assert [message.role for message in kept(ctx)[0].messages] == ["user", "assistant"]


def test_the_first_rows_alone_are_read_on_request(tmp_path, monkeypatch):
    write_rows(tmp_path / "a.jsonl", [messages(f"q {i}", "a") for i in range(50)])
    whole = run(tmp_path / "w", tmp_path / "a.jsonl", max_rows=17)
    monkeypatch.setattr(source_listing, "SHARD_BYTES", 200)
    parts = run(tmp_path / "x", tmp_path / "a.jsonl", max_rows=17)
    assert len(kept(whole)) == 17 and bytes_of(whole) == bytes_of(parts)


def test_the_cut_into_shards_and_the_place_change_no_byte(chats, tmp_path, monkeypatch):
    whole = bytes_of(run(tmp_path / "one", chats, eval_share=0.3))
    digest = ConversationsParams(sources=(str(chats),)).externals()
    moved = tmp_path / "other" / "chats"
    moved.parent.mkdir()
    chats.rename(moved)
    monkeypatch.setattr(source_listing, "SHARD_BYTES", 1)
    assert len(source_listing.make_shards(source_listing.list_files([str(moved)]))) > 15
    assert bytes_of(run(tmp_path / "two", moved, eval_share=0.3)) == whole
    assert ConversationsParams(sources=(str(moved),)).externals() == digest
    assert set(whole) == {"part-00000.parquet", "dropped/part-00000.parquet"}


def test_another_split_needs_no_second_reading(chats, tmp_path, monkeypatch):
    from stages.curation import annotation

    run(tmp_path / "one", chats)
    expected = bytes_of(run(tmp_path / "fresh", chats, eval_share=0.5, repeated="drop"))

    def read_again(*_):
        raise AssertionError("a row was read again")

    monkeypatch.setattr(annotation, "annotate_pieces", read_again)
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "cache").rename(tmp_path / "two" / "cache")
    again = run(tmp_path / "two", chats, eval_share=0.5, repeated="drop")
    assert bytes_of(again) == expected
    (tmp_path / "three").mkdir()
    (tmp_path / "two" / "cache").rename(tmp_path / "three" / "cache")
    with pytest.raises(AssertionError, match="read again"):
        run(tmp_path / "three", chats, repeated_roles="refuse")


def test_too_many_broken_rows_are_refused_with_file_row_and_field(chats, tmp_path):
    assert run(tmp_path / "w", chats, max_broken=3)
    with pytest.raises(InputError, match=r"3 records or files are broken, more than") as error:
        run(tmp_path / "x", chats, max_broken=2)
    assert "chats/turns.jsonl line 13: not JSON" in error.value.where
    assert "chats/turns.jsonl line 14: messages: " in error.value.where
    assert error.value.exit_code == 2


def test_files_of_no_known_format_are_refused_by_name(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"title": "x", "kind": "y"}])
    with pytest.raises(InputError) as error:
        run(tmp_path / "w", tmp_path / "a.jsonl")
    assert "a.jsonl" in error.value.where
    assert "title" in str(error.value) and "kind" in str(error.value)
    assert error.value.exit_code == 2


def test_a_result_without_rows_is_explained(tmp_path):
    write_rows(tmp_path / "a.jsonl", [messages("no answer"), messages("none")])
    with pytest.raises(InputError, match=r"none of 2 .* is kept: dropped 2 by no_answer") as error:
        run(tmp_path / "w", tmp_path / "a.jsonl")
    assert "a.jsonl line 1: no_answer" in error.value.where


def test_files_without_rows_and_unknown_roles_have_their_own_remedies(tmp_path):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(InputError, match="the files have no rows"):
        run(tmp_path / "a", tmp_path / "empty.jsonl")
    turns = [{"role": "wizard", "content": "q"}, {"role": "assistant", "content": "a"}]
    write_rows(tmp_path / "roles.jsonl", [{"messages": turns}])
    with pytest.raises(InputError, match="unknown_role") as error:
        run(tmp_path / "b", tmp_path / "roles.jsonl")
    assert "`roles`" in (error.value.remedy or "")


def test_the_rows_before_a_truncation_are_kept(tmp_path):
    chance = random.Random(0)
    rows = [messages(f"q {chance.random()}", f"a {chance.random()}") for _ in range(400)]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data)[:-3000])
    (tmp_path / "b.json").write_text(json.dumps(rows)[:-500])
    ctx = run(tmp_path / "w", tmp_path / "a.jsonl.gz", tmp_path / "b.json")
    results = observed(ctx, "results")
    assert results["broken"] == results["left_out_unreadable"] == 2
    assert results["conversations"] > 500
    messages_shown = [warning["message"] for warning in observed(ctx, "warnings")]
    assert any("2 rows or files cannot be read: " in text for text in messages_shown)
    texts = {row["messages"][0]["content"] for row in rows}
    assert all(row.messages[0].content in texts for row in kept(ctx))


def test_tables_urls_and_datasets_give_the_rows_of_files(tmp_path):
    """Texts are the same wherever they are stored; csv stores the list of messages as JSON."""
    import datasets
    import fsspec

    rows = [messages(f"hello, {i}", f"hi\n{i}") for i in range(9)]
    write_rows(tmp_path / "a.jsonl", rows)
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        table = csv.writer(stream)
        table.writerows([["messages"], *([json.dumps(row["messages"])] for row in rows)])
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    with fsspec.open("memory://bucket/chats/a.jsonl.gz", "wb") as stream:
        stream.write(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    sources = ("a.jsonl", "a.csv", f"hf:{tmp_path}/saved", "memory://bucket/chats")
    found = []
    for at, source in enumerate(sources):
        name = source if ":" in source else str(tmp_path / source)
        ctx = run(tmp_path / f"w{at}", name, max_broken=0)
        found.append([(row.messages, row.split) for row in kept(ctx)])
    assert found[1:] == found[:1] * 3 and len(found[0]) == 9
    places = {row.meta["place"] for row in kept(ctx)}
    assert "chats/a.jsonl.gz line 9" in places


def test_a_request_to_stop_is_met_while_rows_are_written(tmp_path, monkeypatch):
    from pipeline.context import Context
    from pipeline.errors import Interrupted

    write_rows(tmp_path / "a.jsonl", [messages(f"q {i}", "a") for i in range(9)])
    monkeypatch.setattr(source_listing, "SHARD_BYTES", 1)
    real = Context.check_cancelled

    def check(self):
        if (self.out / "dropped").exists():
            self.cancel_file.touch()
        real(self)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Context, "check_cancelled", check)
        run(tmp_path / "x", tmp_path / "a.jsonl")
    (tmp_path / "x" / "cancel").unlink()
    assert bytes_of(run(tmp_path / "x", tmp_path / "a.jsonl")) == bytes_of(
        run(tmp_path / "y", tmp_path / "a.jsonl")
    )


def test_each_file_of_a_folder_has_its_own_format(tmp_path):
    folder = tmp_path / "mixed"
    write_rows(folder / "trees.jsonl", [TREE])
    (folder / "alpaca.json").parent.mkdir(exist_ok=True)
    (folder / "alpaca.json").write_text(json.dumps(ALPACA))
    labels = [{"prompt": f"q {i}", "completion": "a", "label": i % 2 == 0} for i in range(6)]
    write_rows(folder / "labels.ndjson", labels)
    ctx = run(tmp_path / "w", folder)
    results = observed(ctx, "results")
    files = {row[0]: row[1:] for row in observed(ctx, "panels")["Files"]["rows"]}
    assert files == {
        "mixed/alpaca.json": ["alpaca", 4, 4],
        "mixed/labels.ndjson": ["kto", 6, 3],
        "mixed/trees.jsonl": ["oasst", 2, 2],
    }
    assert results["left_out_unwanted"] == results["dropped"] == 3
    first, second = (row for row in kept(ctx) if "trees" in row.meta["place"])
    assert [m.weight for m in first.messages if m.role == "assistant"] == [1, 1]
    assert [m.weight for m in second.messages if m.role == "assistant"] == [0, 1]
    assert first.id != second.id and first.split == second.split
    ctx = run(tmp_path / "x", folder / "trees.jsonl", replies="all")
    assert all(message.weight for row in kept(ctx) for message in row.messages)


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json", "a.csv", "a.parquet"])
def test_damage_anywhere_in_a_file_costs_rows_that_are_counted(tmp_path, name):
    """Bytes behind a good beginning are overwritten or cut; the counts add up, or it is an error
    of the user's file."""
    rows = [messages(f"hello {i}", f"hi {i} " * 9) for i in range(60)]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with (tmp_path / "a.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows(
            [["messages"], *([json.dumps(row["messages"])] for row in rows)]
        )
    (tmp_path / "a.jsonl").write_bytes(data)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=9)
    whole = (tmp_path / name).read_bytes()
    texts = {row["messages"][0]["content"] for row in rows}
    for seed in range(12):
        chance, damaged = random.Random(seed), bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(len(whole) // 4, len(whole))] = chance.randrange(256)
        end = chance.choice([len(whole), chance.randrange(len(whole) // 2, len(whole))])
        path = tmp_path / f"{seed}" / name
        path.parent.mkdir()
        path.write_bytes(damaged[:end])
        try:
            ctx = run(tmp_path / f"w{seed}", path)
        except InputError as error:
            assert error.remedy
            continue
        results = observed(ctx, "results")
        assert results["read"] == results["kept"] + results["shortened"] + results["dropped"]
        assert results["conversations"] == len(kept(ctx))
        assert results["dropped"] == len(dropped_rows(ctx)) >= (results["broken"] > 0)
        if name in ("a.jsonl.gz", "a.parquet"):  # of a checksum or of pages: nothing invented
            assert len({row.messages[0].content for row in kept(ctx)} - texts) <= 4


@pytest.mark.parametrize(
    ("options", "key", "message"),
    [
        ({"sources": ("a", "a")}, "sources", "twice"),
        ({"eval_sources": ("x",)}, "sources", "twice"),
        ({"split_field": "part", "eval_share": 0.1}, "split_field", "excludes"),
        ({"split_field": "part", "eval_sources": ("y",)}, "split_field", "excludes"),
        ({"format": "no_such_format"}, "format", "no_such_format"),
        ({"sources": ("https://u:secret@h/a.jsonl",)}, "sources", "secret"),
        ({"fields": {"promt": "q"}}, "fields", "'promt' is not a field of any format"),
        ({"format": "messages", "fields": {"chosen": "q"}}, "fields", "not a field of messages"),
        ({"meta_columns": ("place",)}, "meta_columns", "reserved"),
    ],
)
def test_settings_that_cannot_work_are_problems_of_the_plan(options, key, message):
    (problem,) = ConversationsParams(**{"sources": ("x",), **options}).check({})
    assert problem.key == key and message in problem.message and problem.remedy
    assert list(ConversationsParams(sources=("x",), split_field="part").check({})) == []


def test_what_changes_the_rows_changes_the_identity(tmp_path):
    path = write_rows(tmp_path / "a.jsonl", [messages("q", "a")])
    before = ConversationsParams(sources=(str(path),)).externals()
    write_rows(path, [messages("q", "b")])
    assert ConversationsParams(sources=(str(path),)).externals() != before


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "text", "replies", "rank", "id"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
FIELDS = ["messages", "conversations", "prompt", "completion", "chosen", "rejected", "instruction",
          "output", "input", "history", "label", "message_tree_id", "system", "tools"]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5), max_size=6),
    cut=st.integers(0, 40),
)
def test_rows_of_any_content_are_counted_and_stop_nothing(tmp_path_factory, rows, cut):
    """Behind a good row, whatever stands in a file is kept or left out by a reason."""
    folder = tmp_path_factory.mktemp("fuzz")
    good = [messages("hello", "hi"), pair(1)]
    for at, first in enumerate(good):
        head, *lines = [json.dumps(row) + "\n" for row in [first, *rows]]
        tail = "".join(lines)
        (folder / f"{at}.jsonl").write_text(head + tail[: max(0, len(tail) - cut)])
        ctx = run(folder / f"w{at}", folder / f"{at}.jsonl", format=("messages", None)[at])
        results = observed(ctx, "results")
        assert results["read"] == results["kept"] + results["shortened"] + results["dropped"]
        assert results["conversations"] == len(kept(ctx)) >= 1
        assert results["dropped"] == len(dropped_rows(ctx))
        lines = (folder / f"{at}.jsonl").read_text().splitlines()
        assert results["rows"] == sum(bool(line.strip()) for line in lines)
