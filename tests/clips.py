"""Small CLIPs, images and captions for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from stages.data.tokenizer import Tokenizer
from stages.data.tokenizer_training import export, train
from stages.models.clip import CLIP
from stages.models.clip_config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig

TEXT = TextConfig(61, 12, layers=2, width=32, heads=4, eos=3, bos=2, pad=0)
VIT = CLIPConfig(ViTConfig(24, 8, layers=2, width=48, heads=4), TEXT, embed=20)
RESNET = CLIPConfig(ResNetConfig(64, (1, 2, 1, 1), width=4, heads=4), TEXT, embed=20)


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
    export(train(lines, vocab_size), folder)
    return Tokenizer(folder)
