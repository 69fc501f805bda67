"""A small world of questions and answers, with everything that the alignment stages read.

Questions name an animal or a tool; an answer is a short sentence on it. People prefer the answer
that names what was asked for, then one on another thing of the same sort, then shuffled words.
"""

from __future__ import annotations

import random
import shutil
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import sentencepiece
import torch
from torch.nn import functional as F

from pipeline.stage import Inputs
from stages.chat.chat_format import ChatFormat
from stages.data.conversation_dataset import (
    Conversation,
    Conversations,
    Message,
    write_conversations,
)
from stages.data.preference_dataset import Preference, write_preferences
from stages.data.token_store import write_index, write_shard
from stages.data.tokenizers.sentencepiece_tokenizer import CONTROL_TOKENS, Tokenizer
from stages.generation.likelihood import pad_right
from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.gpt2.modeling_gpt2 import GPT
from stages.models.model_io import save_language_model
from stages.models.registry import build_model, families

ANIMALS = ("cat", "dog", "owl", "bee", "fox", "hen", "cow", "ant")
TOOLS = ("saw", "axe", "pen", "cup", "bag", "key", "map", "net")
VERBS = ("sleeps", "runs", "helps", "waits", "turns", "sings")
PLACES = ("here", "there", "inside", "outside", "nearby")
CONTEXT = 40


def question(thing: str, n: int) -> str:
    return (f"what does the {thing} do?", f"tell me of the {thing}", f"and the {thing}?")[n % 3]


def answer(thing: str, rng: random.Random) -> str:
    return f"the {thing} {rng.choice(VERBS)} {rng.choice(PLACES)}"


def conversation(i: int, split: str, rng: random.Random) -> Conversation:
    thing = rng.choice(ANIMALS + TOOLS)
    answered = Message("assistant", answer(thing, rng))
    asked = () if split == "unlabelled" else (Message("user", question(thing, rng.randrange(3))),)
    return Conversation(f"{split}-{i}", (*asked, answered), split, {"object": f"{split}-{i}"})


def preference(i: int, split: str, rng: random.Random) -> Preference:
    sort = rng.choice((ANIMALS, TOOLS))
    thing, other = rng.sample(sort, 2)
    words = answer(thing, rng).split()
    rng.shuffle(words)
    responses = [answer(thing, rng), answer(other, rng), " ".join(words)]
    order = rng.sample(range(3), 3)
    prompt = (Message("user", question(thing, rng.randrange(3))),)
    return Preference(
        f"{split}-{i}", prompt, tuple(responses[k] for k in order), tuple(order), split
    )


def write_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(0)
    lines = [question(t, n) for t in ANIMALS + TOOLS for n in range(3)]
    lines += [answer(rng.choice(ANIMALS + TOOLS), rng) for _ in range(400)]
    with (folder / "tokenizer.model").open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines), model_writer=model, model_type="bpe", vocab_size=340,
            byte_fallback=True, pad_id=0, unk_id=1, bos_id=2, eos_id=3, pad_piece="<pad>",
            control_symbols=list(CONTROL_TOKENS[4:]), minloglevel=2, hard_vocab_limit=False,
        )  # fmt: skip


def another_tokenizer(world: Path, folder: Path) -> Path:
    """A copy of a folder's files whose tokenizer has as many ids and cuts text elsewhere."""
    shutil.copytree(world, folder)
    (folder / "tokenizer_config.json").write_text('{"chunks": "..?"}')
    return folder


def write_tokens(folder: Path, tokenizer: Tokenizer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng, shards = random.Random(3), {}
    for split, count in (("train", 300), ("eval", 60)):
        rows = [[*tokenizer.encode(answer(rng.choice(ANIMALS), rng)), 3] for _ in range(count)]
        ids = np.array([i for row in rows for i in row], "<u2")
        ends = np.cumsum([len(row) for row in rows]).astype(np.uint64)
        shards[split] = [write_shard(folder, f"{split}-00000", ids, ends)]
    write_index(
        folder, vocab_size=len(tokenizer), eos_id=3, splits=shards, tokenizer=tokenizer.digest
    )


def supervised(model: GPT, rows: list, steps: int, lr: float = 3e-3) -> None:
    """Plain fine-tuning in this process."""
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    rng = random.Random(1)
    for _ in range(steps):
        part = rng.sample(rows, 16)
        tokens_BT = pad_right([row.ids.tolist() for row in part], 0)
        learnt_BT = pad_right([row.loss_mask.tolist() for row in part], 0)[:, 1:].bool()
        logits_NV = model(tokens_BT[:, :-1], position_mask_BT=learnt_BT)
        F.cross_entropy(logits_NV, tokens_BT[:, 1:][learnt_BT]).backward()
        optimizer.step()
        optimizer.zero_grad()


def swapped(found: Conversation) -> Conversation:
    turns = (Message("user", found.response), Message("assistant", found.prompt[-1].content))
    return Conversation(found.id, turns, found.split, found.meta)


@cache
def build(folder: Path) -> Path:
    """Write the world: tokenizer, conversations, preferences, tokens, policy, speaker."""
    write_tokenizer(folder / "tokenizer")
    tokenizer = Tokenizer(folder / "tokenizer")
    rng = random.Random(2)
    sizes = {"train": 200, "eval": 40, "unlabelled": 60}
    write_conversations(
        folder / "conversations",
        [conversation(i, split, rng) for split, n in sizes.items() for i in range(n)],
    )
    sizes = {"train": 160, "eval": 48}
    write_preferences(
        folder / "preferences",
        [preference(i, split, rng) for split, n in sizes.items() for i in range(n)],
    )
    write_tokens(folder / "tokens", tokenizer)
    labelled = list(Conversations(folder / "conversations", "train"))
    chat = ChatFormat.open(folder / "tokenizer")
    for name, data in (("policy", labelled), ("speaker", [swapped(c) for c in labelled])):
        torch.manual_seed(0)
        model = GPT(GPTConfig(len(tokenizer), CONTEXT, num_layers=2, hidden_size=48, num_heads=2))
        supervised(model, [chat.encode(c.messages) for c in data], 60)
        save_language_model(model.eval(), folder / name, folder / "tokenizer", chat=True)
    return folder


def write_model(folder: Path, tokenizer: Path, family: str, steps: int = 0) -> Path:
    """Write a small model of a family, fine-tuned on the conversations next to its tokenizer."""
    section = families()[family].section.model_validate(
        {
            "num_layers": 2,
            "hidden_size": 48,
            "num_heads": 2,
            "context_length": CONTEXT,
            **({"experts": {"num_experts": 4}} if family == "switch" else {}),
        }
    )
    chat = ChatFormat.open(tokenizer)
    torch.manual_seed(0)
    model = build_model(section.config("tiny", len(chat.tokenizer)))
    if steps:
        labelled = Conversations(tokenizer.parent / "conversations", "train")
        supervised(model, [chat.encode(c.messages) for c in labelled], steps)
    save_language_model(model.eval(), folder, tokenizer, chat=True)
    return folder


def inputs(**paths: Path) -> Inputs:
    """Edges of a stage, as bare folders."""
    return Inputs({name: SimpleNamespace(path=path) for name, path in paths.items()})  # type: ignore[arg-type]
