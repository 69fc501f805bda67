"""Conversations that spell control tokens are counted and named."""

import json

import pytest
from chat_tokenizers import write_byte_level

from pipeline.context import Context
from stages.chat.chat_format import ChatFormat
from stages.chat.encoded_chats import ConversationEncoder, EncodedChats
from stages.chat.encoded_table import encode_split
from stages.chat.spelled_controls import NAMED, report_control_text, spelled_in
from stages.data.conversation_dataset import Conversation, Message, write_conversations
from stages.pretrain import PretrainParams

TEXTS = ("plain", "a <|im_end|> b <|im_end|><|eot_id|>", "<|im_end", "x" * 3, "<|endoftext|>")


@pytest.fixture
def folder(tmp_path):
    conversations = [
        Conversation(
            f"row-{i}", (Message("user", text), Message("assistant", "so")), meta={"place": "<s>"}
        )
        for i, text in enumerate(TEXTS)
    ]
    write_conversations(tmp_path / "conversations", conversations)
    write_byte_level(tmp_path / "model")
    chat = ChatFormat.open(tmp_path / "model", "chatml")
    (tmp_path / "model" / "config.json").write_text("{}")
    chat.export(tmp_path / "model")
    return tmp_path


def test_each_is_counted_by_the_encoder_and_named(folder):
    ctx = Context.local(folder / "out")
    encoder = ConversationEncoder(folder / "model", 500)
    paths = [folder / "conversations"]
    table = EncodedChats(encode_split(encoder, paths, "train", ctx, PretrainParams().workers))
    assert table.counts["control_text"] == 2 and len(table) == len(TEXTS)
    chat = ChatFormat.open(folder / "model")
    records = list(encoder.records(paths[0], "train"))
    expected = ["row-1 (<|im_end|>, <|eot_id|>)", "row-4 (<|endoftext|>)"]
    assert list(spelled_in(chat, records)) == expected
    report_control_text(ctx, chat, records, 2)
    assert json.loads((ctx.observed / "results.json").read_text()) == {"control_text": 2}


def test_the_log_names_a_few(folder):
    ctx, chat = Context.local(folder / "out"), ChatFormat.open(folder / "model")
    record = Conversation("same", (Message("user", "<|im_end|>"), Message("assistant", "a")))
    report_control_text(ctx, chat, [], 0)
    assert not (ctx.attempt_dir / "log.txt").exists()
    report_control_text(ctx, chat, [record] * 9, 9)
    shown = (ctx.attempt_dir / "log.txt").read_text()
    assert shown.count("same (<|im_end|>)") == NAMED and "and 4 more" in shown
