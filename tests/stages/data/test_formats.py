"""What the writers write, the readers give back, and the same rows are the same bytes."""

import json

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import CorruptArtifact, InputError
from stages.data import documents, parquet_parts
from stages.data.conversation_dataset import (
    Conversation,
    Conversations,
    Message,
    write_conversations,
)
from stages.data.documents import Documents, read_stats, write_stats
from stages.data.preference_dataset import Preference, Preferences, write_preferences

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


def conversations(count=10):
    splits = ("train", "eval", "unlabelled")
    return [
        Conversation(
            id=f"object.{i}",
            messages=(Message("user", f"what is {i}?"), Message("assistant", f"it is {i}")),
            split=splits[i % 3],
            meta={"kind": "function", "n": i},
        )
        for i in range(count)
    ]


def test_conversations_round_trip_by_split(tmp_path):
    written = conversations()
    assert write_conversations(tmp_path, written) == 10
    assert list(Conversations(tmp_path, None)) == written
    assert list(Conversations(tmp_path, "eval")) == [c for c in written if c.split == "eval"]
    train = Conversations(tmp_path)
    assert train[-1] == train[len(train) - 1] and train[1:3] == list(train)[1:3]
    assert train[0].prompt == (Message("user", "what is 0?"),) and train[0].response == "it is 0"
    with pytest.raises(IndexError):
        train[len(train)]


def test_names_tool_calls_tools_and_weights_round_trip(tmp_path):
    call = {"type": "function", "function": {"name": "clock", "arguments": {"zone": "UTC"}}}
    turns = (
        Message("user", "What time is it?", name="Ann", weight=0.0),
        Message("assistant", "", tool_calls=(call,), weight=0.0),
        Message("tool", "12:00", name="clock"),
        Message("assistant", "Noon."),
    )
    tool = {"type": "function", "function": {"name": "clock", "parameters": {}}}
    written = [Conversation("a", turns, tools=(tool,)), Conversation("b", turns[:1])]
    write_conversations(tmp_path, written)
    assert list(Conversations(tmp_path)) == written


def test_a_conversation_without_answer_is_all_prompt():
    alone = Conversation("x", (Message("user", "why?"),))
    assert alone.prompt == alone.messages and alone.response == ""


@pytest.mark.parametrize(
    "wrong",
    [
        Conversation("x", (), "train"),
        Conversation("x", (Message("robot", "hi"),), "train"),
        Conversation("x", (Message("user", "hi"),), "test"),
    ],
)
def test_invalid_conversations_are_rejected(tmp_path, wrong):
    with pytest.raises(InputError, match="conversation 'x'"):
        write_conversations(tmp_path, [wrong])


def test_preferences_round_trip(tmp_path):
    prompt = (Message("user", "which?"),)
    written = [
        Preference("a", prompt, ("good", "bad", "worse"), (0, 1, 2), "train"),
        Preference("b", prompt, ("x", "y", "z"), (1, 0, 1), "eval"),
    ]
    assert write_preferences(tmp_path, written) == 2
    assert list(Preferences(tmp_path, None)) == written
    assert list(Preferences(tmp_path, "eval")) == written[1:]
    assert Preferences(tmp_path)[:] == written[:1]


@pytest.mark.parametrize("ranks", [(0,), (0, 0), (0, 1, 2)])
def test_equal_ranks_are_rejected(tmp_path, ranks):
    with pytest.raises(InputError, match="preference 'p'"):
        write_preferences(tmp_path, [Preference("p", (), ("a", "b"), ranks)])


def test_equal_rows_give_equal_bytes(tmp_path):
    for folder in ("one", "two"):
        write_conversations(tmp_path / folder, conversations(300))
    one, two = (tmp_path / f / "part-00000.parquet" for f in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_parts_are_split_by_rows_and_by_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_parts, "ROWS_PER_PART", 4)
    monkeypatch.setattr(parquet_parts, "BYTES_PER_PART", 1_000)
    row = {"id": "", "source": "s", "lang": "en", "meta": "{}"}
    texts = ["short"] * 9 + ["long" * 300, "end"]
    with documents.documents_writer(tmp_path) as writer:
        for text in texts:
            writer.write({**row, "text": text})
    assert [part.metadata.num_rows for part in map(pq.ParquetFile, Documents(tmp_path).files)] == [
        4,
        4,
        2,
        1,
    ]
    assert [d.text for d in Documents(tmp_path)] == texts and len(Documents(tmp_path)) == 11


def test_rows_are_encoded_one_row_group_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet_parts, "BYTES_PER_GROUP", 1_000)
    row = {"id": "", "source": "s", "lang": "en", "meta": "{}"}
    with documents.documents_writer(tmp_path) as writer:
        for _ in range(7):
            writer.write({**row, "text": "x" * 400})
    held = pq.ParquetFile(Documents(tmp_path).files[0])
    assert [held.metadata.row_group(i).num_rows for i in range(held.num_row_groups)] == [3, 3, 1]


def test_an_interrupted_writer_leaves_no_partial_file(tmp_path):
    with pytest.raises(RuntimeError), documents.documents_writer(tmp_path) as writer:
        writer.write({"id": "", "text": "t", "source": "s", "lang": "en", "meta": "{}"})
        raise RuntimeError
    assert list((tmp_path / "documents").iterdir()) == []


@settings(max_examples=30, deadline=None)
@given(st.lists(TEXT, max_size=8))
def test_any_text_survives(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("documents")
    with documents.dropped_writer(folder) as writer:
        for text in texts:
            writer.write(
                {
                    **dict.fromkeys(("id", "source", "lang", "meta"), "x"),
                    "text": text,
                    "rule": "words",
                    "score": 1.5,
                }
            )
    assert pq.read_table(folder / "dropped")["text"].to_pylist() == texts


def test_counts_that_do_not_add_up_are_never_written(tmp_path):
    good = {"documents": 3, "characters": 30}
    stats = {"read": good, "kept": good, "dropped": {"documents": 0, "characters": 0}}
    write_stats(tmp_path, stats)
    assert read_stats(tmp_path) == json.loads(json.dumps(stats))
    with pytest.raises(CorruptArtifact, match="3 kept, 1 dropped and 0 removed of 3"):
        write_stats(tmp_path, stats | {"dropped": {"documents": 1, "characters": 0}})


def test_a_folder_without_parts_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no Conversations here"):
        Conversations(tmp_path)


def test_other_kinds_and_damaged_parts_are_rejected(tmp_path):
    write_conversations(tmp_path, conversations())
    with pytest.raises(
        CorruptArtifact, match="expected a part of Preferences version 2, found Conv"
    ):
        Preferences(tmp_path)
    part = tmp_path / "part-00000.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(CorruptArtifact, match="unreadable part"):
        Conversations(tmp_path)


def test_require_nonempty_rejects_an_empty_artifact(tmp_path):
    with documents.documents_writer(tmp_path):
        pass
    assert list(Documents(tmp_path)) == []
    with pytest.raises(InputError, match="no documents"):
        Documents(tmp_path).require_nonempty()
