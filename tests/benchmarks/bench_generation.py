"""Tokens a CPU second of our sampling against `transformers`' generate, greedy, equal outputs.

    python tests/benchmarks/bench_generation.py [BATCH…]

GPT of 4 layers, width 256, 4 heads, vocabulary 8,192, random weights, float32, one thread; prompts
of 32 tokens, 128 new ones. Medians over REPEATS runs of each, interleaved, in one process.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from stages.generation.sampling import SamplingParams, sample
from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.gpt2.modeling_gpt2 import GPT
from stages.models.model_io import save_language_model

NEW, PROMPT, REPEATS = 128, 32, 5


def measure(run: Callable[[], torch.Tensor]) -> tuple[float, torch.Tensor]:
    begun = time.process_time()
    tokens = run()
    return time.process_time() - begun, tokens


def contenders(batch: int) -> dict[str, Callable[[], torch.Tensor]]:
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(vocab_size=8192, context_length=256, num_layers=4, hidden_size=256, num_heads=4)
    ).eval()
    prompts = torch.randint(16, 8192, (batch, PROMPT))
    with tempfile.TemporaryDirectory() as folder:
        save_language_model(model, Path(folder))
        theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    rows = prompts.tolist()

    def ours(temperature: float) -> torch.Tensor:
        # -1 is no token: nothing ends before the limit, as for the others.
        return sample(model, rows, SamplingParams(NEW, temperature), end_ids=[], pad_id=0).tokens

    def generate(**options: object) -> torch.Tensor:
        made = theirs.generate(
            prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=NEW,
            min_new_tokens=NEW, do_sample=False, pad_token_id=0, **options,
        )  # fmt: skip
        return made[:, PROMPT:]

    return {
        "ours, greedy": lambda: ours(0.0),
        "ours, sampled, with log-probabilities": lambda: ours(1.0),
        "transformers, dynamic cache": generate,
        "transformers, static cache": lambda: generate(
            cache_implementation="static", disable_compile=True
        ),
    }


def main(batches: list[int]) -> None:
    torch.set_num_threads(1)
    for batch in batches:
        runs = contenders(batch)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        outputs = {}
        for turn in range(REPEATS + 1):  # the first warms up
            for name, run in runs.items():
                spent, outputs[name] = measure(run)
                if turn:
                    seconds[name].append(spent)
        assert torch.equal(outputs["ours, greedy"], outputs["transformers, dynamic cache"])
        for name, spent in seconds.items():
            rate = batch * NEW / statistics.median(spent)
            print(f"batch {batch:3d}  {name:40s} {rate:8.0f} tokens/CPU s")


if __name__ == "__main__":
    main([int(argument) for argument in sys.argv[1:]] or [16, 64])
