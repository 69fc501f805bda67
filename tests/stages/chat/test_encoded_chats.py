"""Encoded conversations: ids and masks of the chat format, the cache, and counts by outcome."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pipeline.context import Context
from pipeline.errors import InputError
from pipeline.stage import Workers
from stages.chat import encoded_chats, encoded_table
from stages.chat.chat_format import ChatFormat
from stages.chat.encoded_chats import (
    ConversationEncoder,
    EncodedChats,
    learn_last,
    require_chats,
    reversed_conversation,
)
from stages.chat.encoded_table import encode_split
from stages.data.conversation_dataset import (
    Conversation,
    Conversations,
    Message,
    write_conversations,
)

QUESTION, ANSWER = Message("user", "what does the owl do?"), Message("assistant", "the owl sings")
OTHER = Message("assistant", "the cat runs")


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """Return conversations: four that fit, a long one, and some without an answer to learn."""
    silent = Message("assistant", "the owl", weight=0.0)
    fitting = (QUESTION, ANSWER, QUESTION, OTHER)
    made = [
        *(Conversation(f"fits-{n}", fitting[: 2 + n]) for n in range(3)),
        Conversation("long", (QUESTION, ANSWER) * 6),
        Conversation("open", (QUESTION,)),
        Conversation("silent", (QUESTION, silent)),
        Conversation("weighted", (QUESTION, silent, QUESTION, OTHER)),
        Conversation("held-out", (QUESTION, OTHER), "eval"),
    ]
    write_conversations(tmp_path / "talks", made)
    return tmp_path / "talks"


def encoded(encoder: ConversationEncoder, work: Path, *paths: Path) -> EncodedChats:
    ctx = Context.local(work)
    return EncodedChats(encode_split(encoder, paths, "train", ctx, Workers()))


def test_rows_are_those_of_the_chat_format(world: Path, talks: Path, tmp_path: Path) -> None:
    """Two folders, in turn, and a conversation of the second is in another file."""
    chats = encoded(ConversationEncoder(world / "policy", 50), tmp_path, talks, talks)
    chat_format = ChatFormat.open(world / "policy")
    kept = ("fits-0", "fits-1", "fits-2", "weighted")
    wanted = [chat_format.encode(c.messages) for c in Conversations(talks) if c.id in kept] * 2
    assert len(chats) == len(wanted) == 8
    assert chats.lengths.tolist() == [len(chat) for chat in wanted]
    for found, chat in zip(chats, wanted, strict=True):
        assert (found.ids.dtype, found.loss_mask.dtype) == (np.int64, np.bool_)
        np.testing.assert_array_equal(found.ids, chat.ids)
        np.testing.assert_array_equal(found.loss_mask, chat.loss_mask)
    assert chats.counts == Counter(
        read=14, whole=8, too_long=2, no_answer=4, exchanges=12, exchanges_left_out=0
    )
    again = pickle.loads(pickle.dumps(chats))
    assert again.lengths.tolist() == chats.lengths.tolist()


@pytest.mark.parametrize("too_long", ["keep_end", "split_turns"])
def test_every_part_of_a_long_conversation_fits(
    world: Path, talks: Path, tmp_path: Path, too_long: str
) -> None:
    encoder = ConversationEncoder(world / "policy", 50, too_long=too_long)  # type: ignore[arg-type]
    chats = encoded(encoder, tmp_path, talks)
    assert chats.lengths.max() <= 50
    outcome = {"keep_end": "shortened", "split_turns": "split"}[too_long]
    assert chats.counts[outcome] == 1
    assert chats.counts["too_long"] == 0
    assert (chats.counts["exchanges_left_out"] > 0) == (too_long == "keep_end")


def test_a_second_stage_reads_the_cache(
    world: Path, talks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In shards of two conversations; another limit, chat template or content is another key."""
    monkeypatch.setattr(encoded_table, "RECORDS_PER_SHARD", 2)
    monkeypatch.setattr(encoded_table, "available_cores", lambda: 1)
    encoder, cache = ConversationEncoder(world / "policy", 50), tmp_path / "cache"

    def run(name: str, encoder: ConversationEncoder, path: Path = talks) -> EncodedChats:
        local = Context.local(tmp_path / name)
        ctx = Context(local.work, local.attempt_dir, local.cancel_file, cache)
        return EncodedChats(encode_split(encoder, [path], "train", ctx, Workers()))

    first = run("first", encoder)
    monkeypatch.setattr(encoded_chats, "fit_to_length", None)  # encoding again fails
    second = run("second", encoder)
    assert len(first.table.files) == 4
    assert [f.read_bytes() for f in second.table.files] == [
        f.read_bytes() for f in first.table.files
    ]
    other = tmp_path / "other"
    write_conversations(other, [Conversation("a", (QUESTION, OTHER))])
    changed = (
        (ConversationEncoder(world / "policy", 49), talks),
        (ConversationEncoder(world / "policy", 50, "chatml"), talks),
        (ConversationEncoder(world / "policy", 50, learn="last"), talks),
        (encoder, other),
    )
    for number, (another, path) in enumerate(changed):
        with pytest.raises(TypeError):
            run(f"changed-{number}", another, path)


def test_the_same_conversations_give_the_same_bytes(
    world: Path, talks: Path, tmp_path: Path
) -> None:
    encoder = ConversationEncoder(world / "policy", 50, too_long="split_turns")
    files = [encoded(encoder, tmp_path / name, talks).table.files for name in ("one", "two")]
    assert files[0][0] != files[1][0]
    assert files[0][0].read_bytes() == files[1][0].read_bytes()


def test_a_template_that_refuses_all_is_named(world: Path, talks: Path, tmp_path: Path) -> None:
    template = tmp_path / "strict.jinja"
    refusal = "{{ raise_exception('not asked') }}"
    strict = f"{{% if messages[0].content != 'A question.' %}}{refusal}{{% endif %}}"
    template.write_text(strict + ChatFormat.open(world / "policy").source)
    encoder = ConversationEncoder(world / "policy", 50, str(template))
    chats = encoded(encoder, tmp_path, talks)
    assert chats.counts["refused_by_template"] == 5
    with pytest.raises(InputError, match="refused_by_template 5") as caught:
        require_chats(chats, encoder, [talks])
    assert "not asked" in str(caught.value.__cause__)


def test_only_the_last_answer_keeps_its_weight() -> None:
    messages = (QUESTION, ANSWER, QUESTION, OTHER, QUESTION)
    assert [m.weight for m in learn_last(messages)] == [1, 0, 1, 1, 1]
    assert learn_last((QUESTION,)) == (QUESTION,)


def test_reversing_asks_for_the_question() -> None:
    turns = (Message("system", "be brief"), Message("user", "why?"), Message("assistant", "so"))
    assert reversed_conversation(Conversation("a", turns)).messages == (
        Message("user", "so"),
        Message("assistant", "why?"),
    )
