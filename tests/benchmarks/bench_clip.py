"""CLIP against open_clip on the same pairs: one process, two threads, float32.

    python tests/benchmarks/bench_clip.py [--repeats N]

A ViT of 6 layers, width 256, on 64 pixels in patches of 8, and a text tower of 4 layers, width 256,
context 32, vocabulary 8,192: 10.2 M parameters, 64 pairs a step, captions that fill the context;
fused AdamW. Ours is the whole training loop: PNGs out of tars are decoded, cropped and batched, the
guard and the metrics run. open_clip gets its batches ready made, its own model and loss, and no
loop around them. Both take turns, a step each; medians.

open_clip is not among what `make bench` installs, for it brings torchvision, whose wheel does not
load beside torch's CPU build and then stops transformers too (see `vision.py`): install
`open_clip_torch` in an environment of its own, or ours is measured alone.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
import torch
from PIL import Image

from stages.contrastive.caption_tokenizer import CaptionTokenizer
from stages.data.image_text_dataset import Sample, write_index, write_shard
from stages.models.clip.configuration_clip import CLIPConfig, TextConfig, ViTConfig
from stages.objectives.contrastive import ContrastiveObjective
from stages.training.deepspeed_compat import import_deepspeed
from stages.training.engine import Engine
from stages.training.ranks.rank import Rank
from stages.training.step_result import StepResult
from stages.training.throughput import measure_peak_flops
from stages.training.trainer import Trainer
from stages.training.training_params import TrainSection

Step = Callable[[int], dict[str, float]]
VOCABULARY, CONTEXT, PAIRS, BATCH = 8192, 32, 1024, 64
SHAPE = CLIPConfig(
    ViTConfig(64, 8, num_layers=6, hidden_size=256, num_heads=4),
    TextConfig(
        VOCABULARY,
        CONTEXT,
        num_layers=4,
        hidden_size=256,
        num_heads=4,
        eos=VOCABULARY - 1,
        bos=1,
        pad=0,
    ),
    embed_dim=256,
)


class Numbers:
    """A tokenizer of captions that are numbers."""

    def __len__(self) -> int:
        return VOCABULARY

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]


class Numbered(ContrastiveObjective):
    """With captions that are numbers; remembers what the last step told."""

    def step(self, engines: Mapping[str, Engine], step: int) -> StepResult:
        result = super().step(engines, step)
        self.told = dict(result.metrics)
        return result

    def _open_tokenizer(self) -> CaptionTokenizer:
        return Numbers()


def write_pairs(folder: Path) -> None:
    rng = np.random.default_rng(0)
    samples = []
    for number in range(PAIRS):
        image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((64, 64))
        image.save(packed := io.BytesIO(), "png")
        caption = " ".join(map(str, rng.integers(4, VOCABULARY - 1, CONTEXT - 2)))
        meta = {"width": 64, "height": 64, "source": "made"}
        samples.append(Sample(f"{number:05d}", packed.getvalue(), (caption,), meta))
    shards = {
        split: [write_shard(samples, folder, f"{split}-00000")] for split in ("train", "eval")
    }
    write_index(folder, shards, image_size=64)


def ours(rank: Rank, pairs: Path) -> Step:
    made = {
        "steps": 10**6,
        "global_batch_size": BATCH,
        "checkpoint_interval": 0,
        "eval_interval": 0,
    }
    settings = TrainSection.model_validate({**made, "warmup_steps": 0, "lr_schedule": "constant"})
    torch.manual_seed(0)
    objective = Numbered(pairs, pairs, SHAPE)
    trainables = objective.setup(rank, settings, 0)
    engines = {name: Engine(name, t, settings, rank) for name, t in trainables.items()}
    fit = Trainer(rank, objective, settings, 0, "clip", engines, None)

    def step(number: int) -> dict[str, float]:
        fit._step()
        fit._after_step()
        return objective.told

    return step


def open_clip() -> Step:
    from vision import stand_in

    stand_in()
    from open_clip import CLIP, ClipLoss, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=6, width=256, head_width=64, patch_size=8, image_size=64)
    text = CLIPTextCfg(context_length=CONTEXT, vocab_size=VOCABULARY, width=256, heads=4, layers=4)
    torch.manual_seed(0)
    model = CLIP(256, vision, text, quick_gelu=True)
    judge = ClipLoss()
    adam = torch.optim.AdamW(model.parameters(), 5e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)
    images = torch.randn(4, BATCH, 3, 64, 64)
    texts = torch.randint(4, VOCABULARY - 1, (4, BATCH, CONTEXT))
    texts[:, :, 0], texts[:, :, -1] = 1, VOCABULARY - 1

    def step(number: int) -> dict[str, float]:
        adam.zero_grad()
        loss = judge(*model(images[number % 4], texts[number % 4]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adam.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, np.log(100))
        return {"loss": loss.item()}

    step.parameters = sum(p.numel() for p in model.parameters())  # type: ignore[attr-defined]
    return step


def main(repeats: int) -> None:
    import_deepspeed()
    torch.set_num_threads(2)
    rank = Rank.single_process()
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(Path(folder))
        steps = {"Headwater": ours(rank, Path(folder))}
        if find_spec("open_clip"):
            steps["open_clip"] = open_clip()
            assert steps["open_clip"].parameters == SHAPE.parameters  # type: ignore[attr-defined]
        else:
            print("open_clip is not installed: ours alone")
        spent: dict[str, list[float]] = {name: [] for name in steps}
        waits = []
        for number in range(repeats + 2):
            for name, step in steps.items():
                begun = time.perf_counter()
                found = step(number)
                if number > 1:
                    spent[name].append(time.perf_counter() - begun)
                    waits += [found["data_share"]] if name == "Headwater" else []
        show(spent, waits, measure_peak_flops(rank.device, torch.float32))
    rank.leave()


def show(spent: dict[str, list[float]], waits: list[float], peak: float) -> None:
    print(f"measured GEMM peak {peak / 1e9:.0f} GFLOP/s, {SHAPE.parameters / 1e6:.1f} M parameters")
    rates = {name: BATCH / statistics.median(times) for name, times in spent.items()}
    for name, rate in rates.items():
        share = rate * SHAPE.flops_per_pair() / peak
        ratio = rates["Headwater"] / rate
        print(f"{name:12s} {rate:6.1f} pairs/s  MFU {100 * share:3.0f} %  ours is {ratio:5.2f}x")
    print(f"waiting for data: {100 * statistics.median(waits):.2f} % of a step")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    asked = argparse.ArgumentParser()
    asked.add_argument("--repeats", type=int, default=9)
    main(asked.parse_args().repeats)
