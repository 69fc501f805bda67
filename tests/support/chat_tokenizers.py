"""Folders with tokenizers and chat templates, for tests against `apply_chat_template`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import AutoTokenizer

from stages.chat.chat_format import ChatFormat
from stages.data.conversation_dataset import Message

CONTROLS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>",
)  # fmt: skip
LINES = (
    "user\nWhat does the owl do? assistant\nIt sleeps in the tree, and the fox runs inside.",
    "def f(x):\n    return x + 1024\n\n# naïve 北京 system\nBe brief.",
)
WITHOUT_GENERATION = {
    "trimmed": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message['role'] + '\\n' }}"
        "{{ message['content'] | trim + '<|im_end|>\\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    "inst": (
        "{{ bos_token }}{% for message in messages %}"
        "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
        "{% elif message['role'] == 'system' %}{{ '[SYS] ' + message['content'] + ' ' }}"
        "{% else %}{{ ' ' + message['content'] + eos_token }}{% endif %}{% endfor %}"
    ),
}
"""Templates as on the hub: ChatML with a line end after each turn, and the one of Mistral."""


def write_byte_level(folder: Path) -> Path:
    """A byte-level BPE with the control tokens of ChatML and Llama 3, and a token of text."""
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, show_progress=False, initial_alphabet=alphabet)
    fast.train_from_iterator(LINES * 3, trainer)
    fast.add_tokens(["<think>"])
    fast.add_special_tokens(list(CONTROLS))
    folder.mkdir(parents=True, exist_ok=True)
    fast.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>",
        "bos_token": "<|begin_of_text|>", "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def write_llama2(folder: Path) -> Path:
    """A SentencePiece BPE as Llama 2 has it in `tokenizer.json`: a space before each text, bytes
    for unknown characters, control tokens within the vocabulary, one that takes spaces after it."""
    texts = [line.replace(" ", "\u2581") for line in LINES * 3]
    trained = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=120, show_progress=False)
    trained.train_from_iterator(texts, trainer)
    learned = json.loads(trained.to_str())["model"]
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    names += sorted(learned["vocab"], key=learned["vocab"].get)
    fast = Tokenizer(
        models.BPE(
            {name: i for i, name in enumerate(names)},
            [tuple(merge) for merge in learned["merges"]],
            unk_token="<unk>", byte_fallback=True, fuse_unk=True,
        )
    )  # fmt: skip
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    fast.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    fast.add_special_tokens(["<unk>", "<s>", "</s>"])
    fast.add_special_tokens(
        [AddedToken(name, rstrip=name == "<|im_end|>") for name in ("<|im_start|>", "<|im_end|>")]
    )
    folder.mkdir(parents=True, exist_ok=True)
    fast.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>",
        "unk_token": "<unk>", "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def exported(source: Path, folder: Path, template: str | None) -> tuple[ChatFormat, Any]:
    """The format of a tokenizer with a template, and what `transformers` reads of its export."""
    chat = ChatFormat.open(source, template)
    shutil.copytree(source, folder)
    chat.export(folder)
    return chat, AutoTokenizer.from_pretrained(folder)


def as_rows(messages: list[Message] | tuple[Message, ...]) -> list[dict[str, Any]]:
    return [
        {
            "role": message.role,
            "content": message.content,
            "name": message.name,
            "tool_calls": list(message.tool_calls) or None,
        }
        for message in messages
    ]


def reference(auto: Any, messages: Any, tools: Any = ()) -> tuple[list[int], list[bool]]:
    """Ids and mask of `transformers`; the mask is empty without {% generation %}."""
    found = auto.apply_chat_template(
        as_rows(messages), tools=list(tools) or None, return_assistant_tokens_mask=True,
        return_dict=True,
    )  # fmt: skip
    plain = auto.apply_chat_template(as_rows(messages), tools=list(tools) or None, tokenize=True)
    assert plain["input_ids"] == found["input_ids"]
    return found["input_ids"], [bool(one) for one in found["assistant_masks"]]
