"""Small CLIPs, images and captions for tests, and a world of coloured shapes to train them on."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from image_text_shards import write_shards
from PIL import Image, ImageDraw

from stages.data.image_text_dataset import Sample, write_index
from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
from stages.data.tokenizers.tokenizer_training import export_tokenizer, train_sentencepiece
from stages.models.clip.configuration_clip import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from stages.models.clip.modeling_clip import CLIP
from stages.objectives.contrastive import ContrastiveObjective
from stages.training.objective import Trainable

TEXT = TextConfig(61, 12, num_layers=2, hidden_size=32, num_heads=4, eos=3, bos=2, pad=0)
VIT = CLIPConfig(ViTConfig(24, 8, num_layers=2, hidden_size=48, num_heads=4), TEXT, embed_dim=20)
RESNET = CLIPConfig(ResNetConfig(64, (1, 2, 1, 1), width=4, num_heads=4), TEXT, embed_dim=20)


def made(config):
    torch.manual_seed(0)
    return CLIP(config).eval()


def lively(model):
    """Weights and statistics far from their start, so that each of them matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.mul_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.eval()


def images(config, count=3):
    size = config.vision.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(4))


def captions(count=3, length=9):
    tokens_BT = torch.randint(4, 61, (count, length), generator=torch.Generator().manual_seed(5))
    tokens_BT[:, 0] = 2
    tokens_BT[torch.arange(count), length - 1 - torch.arange(count)] = 3
    return tokens_BT


def write_tokenizer(folder: Path, lines: Sequence[str], vocab_size: int) -> Tokenizer:
    """A tokenizer of these lines, with all its files."""
    folder.mkdir(parents=True)
    export_tokenizer(train_sentencepiece(lines, vocab_size), folder)
    return Tokenizer(folder)


COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220), "black": (5, 5, 5)}
SHAPES = ("square", "disc", "stripe", "frame")
SIZE = 24


def drawn(colour: str, shape: str, seed: int) -> bytes:
    """A PNG of a shape somewhere on light noise."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(200, 256, (SIZE, SIZE, 3), np.uint8)
    image = Image.fromarray(noise)
    left, top, side = *rng.integers(1, 7, 2).tolist(), int(rng.integers(12, 16))
    box, draw = (left, top, left + side, top + side), ImageDraw.Draw(image)
    ink = COLOURS[colour]
    if shape == "square":
        draw.rectangle(box, fill=ink)
    elif shape == "disc":
        draw.ellipse(box, fill=ink)
    elif shape == "stripe":
        draw.rectangle((0, top + 4, SIZE, top + 9), fill=ink)
    else:
        draw.rectangle(box, outline=ink, width=3)
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()


def pair(number: int, seed: int) -> Sample:
    """One of the sixteen things, drawn anew."""
    colour, shape = list(product(COLOURS, SHAPES))[number % 16]
    captions = (f"a {colour} {shape}", f"a picture of a {colour} {shape}", f"{shape}, {colour}")
    meta = {"width": SIZE, "height": SIZE, "source": "test", "colour": colour, "shape": shape}
    return Sample(f"s{seed}-{number}", drawn(colour, shape, 1000 * seed + number), captions, meta)


def write_pairs(folder: Path, train: int, held_out: int) -> Path:
    """An ImageText folder of that many pairs."""
    sizes = {"train": (train, 1), "eval": (held_out, 2)}
    shards = {
        split: write_shards((pair(i, seed) for i in range(size)), folder, split, shard_samples=50)
        for split, (size, seed) in sizes.items()
    }
    write_index(folder, shards, image_size=SIZE)
    return folder


def clip_world(folder: Path, train: int = 96, held_out: int = 32) -> Path:
    """Pairs and a tokenizer of their words."""
    lines = [caption for i in range(16) for caption in pair(i, 1).captions]
    write_tokenizer(folder / "tokenizer", lines * 3, 330)
    write_pairs(folder / "pairs", train, held_out)
    return folder


def shape_of(world: Path, **changes: Any) -> CLIPConfig:
    """A CLIP for these images and words. Its matrices are above the size up to which ZeRO-3 leaves
    weights whole."""
    text = TextConfig(len(Tokenizer(world / "tokenizer")), 16, 1, 64, 2, eos=3, bos=2, pad=0)
    return CLIPConfig(
        **{"vision": ViTConfig(SIZE, 8, 1, 64, 2), "text": text, "embed_dim": 32} | changes
    )


@dataclass
class Hot(ContrastiveObjective):
    """Begins just under the limit of the logit scale, and soon wants to go over it."""

    begin: float = 1.0
    room: float = 0.0005

    def _build(self) -> CLIP:
        return self.heated(super()._build())

    def heated(self, model: CLIP) -> CLIP:
        """The same model with its scale near its limit."""
        torch.nn.init.constant_(model.logit_scale, self.begin)
        model.log_scale_limit = self.begin + self.room
        return model

    def step(self, engines: Any, step: int) -> Any:
        found = super().step(engines, step)
        held = [f for f in engines["model"].state.local if f.name == "logit_scale"]
        values = [float(fragment.views["fp32"].max()) for fragment in held]
        total, holders = self.rank.all_reduce_sum([sum(values), len(values)]).tolist()
        return replace(found, metrics={**found.metrics, "master": total / holders})


@dataclass
class Half(Hot):
    """Trains in half precision on a processor."""

    def setup(self, rank: Any, settings: Any, seed: int) -> dict[str, Trainable]:
        from float16_on_cpu import allow_float16

        allow_float16()
        return super().setup(rank, settings, seed)
