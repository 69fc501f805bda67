"""Supervised fine-tuning against TRL's SFTTrainer, and packed against padded rows: one process.

    python tests/benchmarks/bench_sft.py [--conversations FILE] [--repeats N] [--steps N]

A GPT-2 of 14 M parameters (6 layers, width 384) with a byte-level tokenizer and a ChatML template;
float32, AdamW, clip 1.0, two threads. Without FILE (json or jsonl of any format that the stage
`conversations` reads), conversations are generated with the lengths of Alpaca's. Real tokens per
second are positions without padding.

1. Context 128, 16 conversations per step: TRL, ours padded in one micro-batch and in four (grouped
   by length), and packed rows with as many real tokens. Longer conversations are left out of all,
   so that none is cut.
2. Context 512: 16 padded conversations per step against packed rows with as many real tokens.

The systems take turns, `steps` steps each; medians over the turns.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from pipeline.context import Context
from pipeline.stage import Inputs
from stages.chat.chat_format import ChatFormat
from stages.chat.packed_chats import ChatRow, ChatRows
from stages.conversations import ConversationsParams, conversations
from stages.data.conversation_dataset import Conversations
from stages.objectives.supervised_finetuning import SFTObjective
from stages.sft import SftParams, conversation_encoder, encoded_splits
from stages.training.deepspeed_compat import import_deepspeed
from stages.training.engine import Engine
from stages.training.ranks.rank import Rank
from stages.training.trainer import Trainer

Turn = Callable[[int], tuple[float, float, float]]
"""Run a number of steps; return real tokens, seconds, and CPU seconds."""
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '<|im_end|>\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def generated_rows(count: int) -> list[dict[str, str]]:
    """Return Alpaca rows of words whose numbers have Alpaca's spread."""
    chance = random.Random(0)
    words = ["".join(chance.choices("etaoinshrdlu", k=chance.randint(2, 9))) for _ in range(3000)]

    def text(mean: float, spread: float) -> str:
        number = max(1, min(300, round(chance.lognormvariate(mean, spread))))
        return " ".join(chance.choices(words, k=number))

    return [{"instruction": text(2.5, 0.5), "output": text(3.8, 0.9)} for _ in range(count)]


def read_chats(source: Path, folder: Path) -> Path:
    """Return the conversations of a file as an artifact, one in 20 held out."""
    ctx = Context.local(folder)
    conversations(ConversationsParams(sources=(str(source),)), Inputs({}), ctx.out, ctx)
    return ctx.out


def write_model(folder: Path, texts: Sequence[str]) -> None:
    """Write a random GPT-2 with a tokenizer that is trained on the texts."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=8192, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in special])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=len(fast), n_positions=512, n_embd=384, n_layer=6, n_head=6, resid_pdrop=0,
        embd_pdrop=0, attn_pdrop=0, eos_token_id=fast.eos_token_id, bos_token_id=None,
    )  # fmt: skip
    GPT2LMHeadModel(shape).save_pretrained(folder)


def ours(
    rank: Rank, model: Path, chats: Path, work: Path, rows: int, micro: int = 0, **given: Any
) -> Turn:
    """Return turns of our training loop, `rows` rows per step, in micro-batches of `micro`."""
    section = {
        "steps": 10**6, "global_batch_size": rows, "micro_batch_size": micro or rows,
        "warmup_steps": 0,
        "lr_schedule": "constant", "checkpoint_interval": 0, "eval_interval": 0, "lr": 1e-4,
    }  # fmt: skip
    params = SftParams.model_validate({"train": section, **given})
    encoder = conversation_encoder(params, model)
    train, held_out = encoded_splits(encoder, [chats], params, Context.local(work))
    room = encoder.limit - 1 if params.packing else None
    objective = SFTObjective(model, train, held_out, row_length=room)
    tokens = [0.0]
    collate = objective.collate

    def counted(samples: Sequence[ChatRow]) -> Any:
        batch = collate(samples)
        tokens[0] += float(batch["token_mask"].sum())
        return batch

    objective.collate = counted  # type: ignore[method-assign]
    trainables = objective.setup(rank, params.train, 0)
    engines = {name: Engine(name, t, params.train, rank) for name, t in trainables.items()}
    fit = Trainer(rank, objective, params.train, 0, work.name, engines, None)

    def turn(steps: int) -> tuple[float, float, float]:
        tokens[0], begun, used = 0.0, time.perf_counter(), time.process_time()
        for _ in range(steps):
            fit._step()
            fit._after_step()
        return tokens[0], time.perf_counter() - begun, time.process_time() - used

    return turn


def trl(model: Path, chats: Path, folder: Path, rows: int, length: int) -> Turn:
    """Return turns of SFTTrainer with the loss on the assistant's tokens."""
    import datasets
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    chat, records = ChatFormat.open(model), []
    for conversation in Conversations(chats, "train"):
        if len(chat.encode(conversation.messages)) <= length + 1:
            turns = [{"role": m.role, "content": m.content} for m in conversation.messages]
            records.append({"messages": turns})

    class Clock(TrainerCallback):
        """Ends of steps."""

        def __init__(self) -> None:
            self.ends: list[tuple[float, float]] = []

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.ends = [(time.perf_counter(), time.process_time())]

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append((time.perf_counter(), time.process_time()))

    clock = Clock()
    config = SFTConfig(
        str(folder), per_device_train_batch_size=rows, max_length=length + 1, max_steps=10,
        assistant_only_loss=True, report_to=[], save_strategy="no", logging_steps=10**6,
        use_cpu=True, disable_tqdm=True, dataloader_num_workers=0, learning_rate=1e-4,
        lr_scheduler_type="constant", gradient_checkpointing=False, bf16=False, fp16=False,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(model),
        args=config,
        train_dataset=datasets.Dataset.from_list(records),
        processing_class=AutoTokenizer.from_pretrained(model),
        callbacks=[clock],
    )
    tokens = [0.0]
    collate = trainer.data_collator

    def counted(samples: Any) -> Any:
        batch = collate(samples)
        mask = batch.get("attention_mask")
        tokens[0] += float(mask.sum() if mask is not None else batch["input_ids"].numel())
        return batch

    trainer.data_collator = counted

    def turn(steps: int) -> tuple[float, float, float]:
        tokens[0] = 0.0
        trainer.args.max_steps = steps
        trainer.train()
        (begun, before), (ended, after) = clock.ends[0], clock.ends[-1]
        return tokens[0], ended - begun, after - before

    return turn


def contest(turns: dict[str, Turn], repeats: int, steps: int) -> dict[str, tuple[float, float]]:
    """Return the medians of real tokens per second and per CPU second of each system."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
    for number in range(repeats + 1):
        for name, turn in turns.items():
            tokens, seconds, used = turn(steps)
            if number:  # the first turn warms up
                rates[name].append((tokens / seconds, tokens / used))
    return {
        name: (statistics.median(a for a, _ in each), statistics.median(b for _, b in each))
        for name, each in rates.items()
    }


def report(title: str, rates: dict[str, tuple[float, float]]) -> None:
    """Print the rates, and each as a multiple of the first."""
    first = next(iter(rates))
    print(title)
    for name, (rate, per_cpu) in rates.items():
        wall, cpu = rate / rates[first][0], per_cpu / rates[first][1]
        print(
            f"  {name:20s} {rate:6.0f} real tokens/s, {per_cpu:6.0f} per CPU second"
            f"   {wall:5.2f}x, {cpu:5.2f}x of {first}"
        )


def main(source: Path | None, repeats: int, steps: int) -> None:
    logging.disable(logging.WARNING)
    import_deepspeed()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if source is None:
            source = folder / "rows.json"
            source.write_text(json.dumps(generated_rows(2000)))
        chats = read_chats(source, folder / "read")
        texts = [m.content for c in Conversations(chats, None) for m in c.messages]
        write_model(folder / "model", texts)
        rank, model = Rank.single_process(), folder / "model"
        work = folder / "work"
        whole = ours(rank, model, chats, work / "a", 16, max_length=128)
        mean = sum(whole(1)[0] for _ in range(4)) / 4
        rows = max(1, round(mean / 128))
        short = {
            "TRL SFTTrainer": trl(model, chats, work / "trl", 16, 128),
            "padded, 1 x 16": whole,
            "padded, 4 x 4": ours(rank, model, chats, work / "e", 16, 4, max_length=128),
            f"packed, {rows} rows": ours(
                rank, model, chats, work / "f", rows, max_length=128, packing=True
            ),
        }
        report("context 128, 16 conversations per step", contest(short, repeats, steps))
        padded = ours(rank, model, chats, work / "b", 16, max_length=512)
        mean = sum(padded(1)[0] for _ in range(4)) / 4
        rows = max(1, round(mean / 512))
        packed = ours(rank, model, chats, work / "c", rows, max_length=512, packing=True)
        long = {"padded, 1 x 16": padded, f"packed, {rows} rows": packed}
        report("context 512, 16 conversations per step", contest(long, repeats, steps))
        print_padding(model, chats, work / "d")
        rank.leave()


def print_padding(model: Path, chats: Path, work: Path) -> None:
    """Print the share of padding in packed rows of 512."""
    params = SftParams(max_length=512, packing=True)
    encoder = conversation_encoder(params, model)
    train, _ = encoded_splits(encoder, [chats], params, Context.local(work))
    rows = ChatRows(train, train.lengths, encoder.limit - 1)
    print(f"packed rows: {len(train):,} conversations, {rows.padding:.1%} padding")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    asked = argparse.ArgumentParser()
    asked.add_argument("--conversations", type=Path)
    asked.add_argument("--repeats", type=int, default=5)
    asked.add_argument("--steps", type=int, default=6)
    given = asked.parse_args()
    main(given.conversations, given.repeats, given.steps)
