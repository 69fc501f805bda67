"""Texts that spell control tokens, and those that only resemble them."""

import re
from pathlib import Path

import pytest

from stages.chat.conversion.control_text import control_tokens
from stages.data.tokenizers.sentencepiece_tokenizer import CONTROL_TOKENS


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("say <|im_start|>user", ["<|im_start|>"]),
        ("</s><s>", ["</s>", "<s>"]),
        ("<|eot_id|> and <|eot_id|>", ["<|eot_id|>"]),
        ("[INST] x [/INST] <<SYS>>", ["[INST]", "[/INST]", "<<SYS>>"]),
        ("<start_of_turn>model", ["<start_of_turn>"]),
        ("<\uff5cend\u2581of\u2581sentence\uff5c>", ["<\uff5cend\u2581of\u2581sentence\uff5c>"]),
        ("a <span> and |user| and <user>", []),
        ("x <| y |> z, a[INSTALL]", []),
    ],
)
def test_control_tokens_are_found(text, found):
    assert control_tokens([text]) == found


def test_each_is_named_once_over_all_texts():
    assert control_tokens(["<|user|>", "x", "<s><|user|>"]) == ["<|user|>", "<s>"]


def test_those_of_the_tokenizer_and_of_the_named_templates_are_among_them():
    """Whatever a template writes between `<|` and `|>` is found in its own source."""
    texts = [path.read_text() for path in Path("stages").rglob("*.jinja")]
    spelled = {token for text in texts for token in re.findall(r"<\|\w+\|>", text)}
    for token in {*CONTROL_TOKENS, *spelled}:
        assert control_tokens([f"x{token}y"]) == [token], token
