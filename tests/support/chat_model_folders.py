"""Chat models as the hub has them, small: own tokenizer, own chat template, several ends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from toy_alignment import ANIMALS, PLACES, TOOLS, VERBS, question
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

CONTEXT = 96
CHAT_FAMILIES = ("llama", "qwen3", "qwen3_moe", "gpt2")
LLAMA_TEMPLATE = (
    "{% for message in messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
"""That of Llama 3, which has no generation block."""
CHATML_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class ChatTokens:
    """The control tokens of a family, in the order of their ids, and the use of each."""

    names: tuple[str, ...]
    eos: str
    ends: tuple[str, ...]
    """All ends of a text, as `generation_config.json` lists them."""
    bos: str | None = None
    pad: str | None = None
    template: str | None = None


LLAMA = ChatTokens(
    (
        *("<|begin_of_text|>", "<|end_of_text|>", "<|finetune_right_pad_id|>"),
        *("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
    ),
    eos="<|eot_id|>",
    ends=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    bos="<|begin_of_text|>",
    template=LLAMA_TEMPLATE,
)
QWEN = ChatTokens(
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    eos="<|im_end|>",
    ends=("<|im_end|>", "<|endoftext|>"),
    pad="<|endoftext|>",
    template=CHATML_TEMPLATE,
)
GPT2 = ChatTokens(
    ("<|endoftext|>",), eos="<|endoftext|>", ends=("<|endoftext|>",), bos="<|endoftext|>"
)
TOKENS = {"llama": LLAMA, "qwen3": QWEN, "qwen3_moe": QWEN, "gpt2": GPT2}


@cache
def _lines() -> tuple[str, ...]:
    things = ANIMALS + TOOLS
    asked = [question(thing, n) for thing in things for n in range(3)]
    told = [f"the {t} {v} {p}" for t in things for v in VERBS for p in PLACES]
    roles = ["system\nuser\nassistant\n\n"] * 20
    return (*asked, *told, *roles)


def chat_tokenizer(family: str) -> Tokenizer:
    """A byte-level BPE, cut by words as Llama 3 and Qwen do, with the family's control tokens."""
    fast = Tokenizer(models.BPE())
    if family.startswith("qwen3"):
        fast.normalizer = normalizers.NFC()
    words = pre_tokenizers.Split(Regex(_WORDS), "isolated")
    plain_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([words, plain_bytes])
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, show_progress=False, initial_alphabet=alphabet)
    fast.train_from_iterator(_lines(), trainer)
    tokens = TOKENS[family]
    fast.add_special_tokens(list(tokens.names))
    if family == "llama":
        begin = (LLAMA.names[0], fast.token_to_id(LLAMA.names[0]))
        fast.post_processor = processors.TemplateProcessing(
            f"{begin[0]} $A", special_tokens=[begin]
        )
    return fast


def write_chat_tokenizer(folder: Path, family: str) -> Tokenizer:
    """Write the tokenizer's files: the template of Llama in `tokenizer_config.json`, as older
    folders have it, that of Qwen in a file of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    fast, tokens = chat_tokenizer(family), TOKENS[family]
    fast.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokens.eos,
        "bos_token": tokens.bos,
        "pad_token": tokens.pad,
        "clean_up_tokenization_spaces": False,
    }
    if family == "llama":
        config["chat_template"] = tokens.template
    elif tokens.template:
        (folder / "chat_template.jinja").write_text(tokens.template)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return fast


def _config(family: str, size: dict[str, Any]) -> PretrainedConfig:
    if family == "gpt2":
        return GPT2Config(n_positions=CONTEXT, n_embd=48, n_layer=2, n_head=2, **size)
    decoder = {
        "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 24,
        "num_key_value_heads": 1, "intermediate_size": 64, "max_position_embeddings": CONTEXT,
    }  # fmt: skip
    if family == "llama":
        return LlamaConfig(**decoder, **size)
    if family == "qwen3":
        return Qwen3Config(**decoder, **size)
    experts = {"num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 48}
    return Qwen3MoeConfig(**decoder, **experts, **size)


def write_chat_model(folder: Path, family: str, *, unused: int = 8) -> Path:
    """Write a model of a family with random weights, and its tokenizer.

    The model has `unused` more ids than its tokenizer, as those of the hub do.
    """
    fast, tokens = write_chat_tokenizer(folder, family), TOKENS[family]
    ids = [fast.token_to_id(name) for name in tokens.ends]
    size = {
        "vocab_size": fast.get_vocab_size() + unused,
        "eos_token_id": ids if len(ids) > 1 else ids[0],
        "bos_token_id": fast.token_to_id(tokens.bos) if tokens.bos else None,
        "pad_token_id": fast.token_to_id(tokens.pad) if tokens.pad else None,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(_config(family, size))
    model.save_pretrained(folder)
    settings = {key: value for key, value in size.items() if key.endswith("_token_id")}
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
    (folder / "generation_config.json").write_text(json.dumps(settings | sampling))
    return folder


def token_ids(folder: Path, names: Sequence[str]) -> tuple[int, ...]:
    """Return the ids of tokens of a folder's tokenizer."""
    fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return tuple(fast.token_to_id(name) for name in names)
