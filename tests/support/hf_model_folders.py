"""Model folders as the hub has them, small: `transformers`' own files, byte-level BPE."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

END, BEGIN = "<|endoftext|>", "<|begin_of_text|>"
KNOWN, CONTEXT = 320, 32
"""Ids that the models know, more than the tokenizers have, as on the hub; and their context."""
FAMILIES = ("gpt2", "llama", "qwen3", "qwen3_moe")
TEXTS = [
    f"the {a} {b} sat — né in 北京 {i}" for i, (a, b) in enumerate([("cat", "dog"), ("ox", "owl")])
]


def write_tokenizer(
    folder: Path, lines: Iterable[str] = TEXTS, *, begin: bool = False
) -> tuple[int, int]:
    """A byte-level tokenizer of 300 ids or less, with the begin mark of Llama if asked for; the
    ids of end and begin, which come last, as GPT-2's."""
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=298, show_progress=False, initial_alphabet=alphabet)
    fast.train_from_iterator(lines, trainer)
    fast.add_special_tokens([END, BEGIN])
    marks = fast.token_to_id(END), fast.token_to_id(BEGIN)
    if begin:
        template = processors.TemplateProcessing
        fast.post_processor = template(f"{BEGIN} $A", special_tokens=[(BEGIN, marks[1])])
    folder.mkdir(parents=True, exist_ok=True)
    fast.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": END}
    config |= {"bos_token": {"__type": "AddedToken", "content": BEGIN}} if begin else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return marks


def write_model(folder: Path, family: str) -> Path:
    """A model of a family with random weights, and its tokenizer."""
    torch.manual_seed(0)
    end, begin = write_tokenizer(folder, begin=family == "llama")
    size = {"vocab_size": KNOWN, "eos_token_id": end, "pad_token_id": None}
    size["bos_token_id"] = begin if family == "llama" else None
    decoder = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16,
        "num_key_value_heads": 1, "intermediate_size": 48, "max_position_embeddings": CONTEXT,
    }  # fmt: skip
    experts = {"num_experts": 4, "num_experts_per_tok": 1, "moe_intermediate_size": 48}
    made: Any
    if family == "gpt2":
        made = GPT2LMHeadModel(
            GPT2Config(n_positions=CONTEXT, n_embd=32, n_layer=2, n_head=2, **size)
        )
    elif family == "llama":
        made = LlamaForCausalLM(LlamaConfig(**decoder, **size))
    elif family == "qwen3":
        made = Qwen3ForCausalLM(Qwen3Config(**decoder, **size))
    else:
        made = Qwen3MoeForCausalLM(Qwen3MoeConfig(**decoder, **experts, **size))
    made.save_pretrained(folder)
    if family == "gpt2":  # whose own folder names no mark
        (folder / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    return folder


def shape(family: str) -> dict[str, Any]:
    """What a pipeline file says of these models."""
    if family == "gpt2":
        return {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "context_length": CONTEXT}
    said = {
        "num_layers": 2, "hidden_size": 32, "num_heads": 2, "head_size": 16, "num_kv_heads": 1,
        "intermediate_size": 48, "context_length": CONTEXT, "norm_eps": 1e-6,
        "tie_embeddings": False,
    }  # fmt: skip
    if family == "qwen3_moe":
        return {**said, "family": "switch", "experts": {"num_experts": 4, "moe_every": 1}}
    return {**said, "family": family}
