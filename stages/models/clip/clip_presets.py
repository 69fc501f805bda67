"""Shapes of published CLIPs, and small ones for trials.

Radford et al. 2021, tables 19 and 20, and the configs of the released models. `ViT-L/14@336` is
`ViT-L/14` on larger images. The counts of parameters are those of the released checkpoints, to the
last weight; the small shapes are Headwater's.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from stages.models.clip.configuration_clip import (
    CLIPConfig,
    ResNetConfig,
    TextConfig,
    ViTConfig,
)

HEAD_SIZE = 64
"""Channels of an attention head in every published shape."""


class ClipShape(NamedTuple):
    """The shape of both towers and of their joint embedding."""

    vision: ViTConfig | ResNetConfig
    text_layers: int
    text_width: int
    embed_dim: int
    context_length: int = 77
    vocab_size: int = 49408


def _resnet(size: int, blocks: tuple[int, int, int, int], width: int) -> ResNetConfig:
    return ResNetConfig(size, blocks, width, width * 32 // HEAD_SIZE)


PRESETS: dict[str, ClipShape] = {
    "nano": ClipShape(ViTConfig(32, 8, 2, 64, 2), 2, 64, 32, 24, 2048),
    "tiny": ClipShape(ViTConfig(64, 8, 4, 128, 4), 2, 128, 128, 32, 4096),
    "small": ClipShape(ViTConfig(64, 8, 6, 256, 4), 4, 256, 256, 32, 8192),
    "RN-nano": ClipShape(_resnet(32, (1, 1, 1, 1), 8), 2, 64, 32, 24, 2048),
    "RN-tiny": ClipShape(_resnet(64, (1, 1, 1, 1), 16), 2, 128, 128, 32, 4096),
    "ViT-B/32": ClipShape(ViTConfig(224, 32, 12, 768, 12), 12, 512, 512),
    "ViT-B/16": ClipShape(ViTConfig(224, 16, 12, 768, 12), 12, 512, 512),
    "ViT-L/14": ClipShape(ViTConfig(224, 14, 24, 1024, 16), 12, 768, 768),
    "ViT-L/14@336": ClipShape(ViTConfig(336, 14, 24, 1024, 16), 12, 768, 768),
    "RN50": ClipShape(_resnet(224, (3, 4, 6, 3), 64), 12, 512, 1024),
    "RN101": ClipShape(_resnet(224, (3, 4, 23, 3), 64), 12, 512, 512),
    "RN50x4": ClipShape(_resnet(288, (4, 6, 10, 6), 80), 12, 640, 640),
    "RN50x16": ClipShape(_resnet(384, (6, 8, 18, 8), 96), 12, 768, 768),
    "RN50x64": ClipShape(_resnet(448, (3, 15, 36, 10), 128), 12, 1024, 1024),
}


def clip_preset(
    name: str,
    *,
    vocab_size: int | None = None,
    context_length: int | None = None,
    image_size: int | None = None,
    special_ids: tuple[int, int, int] | None = None,
) -> CLIPConfig:
    """Return the config of a preset, with another vocabulary, context and image size if given.

    Args:
        name: a key of `PRESETS`.
        vocab_size: ids of the tokenizer.
        context_length: tokens of a caption, with bos and eos.
        image_size: side of an image, pixels.
        special_ids: the ids of pad, bos and eos. Default: the last ids of the vocabulary, as in the
            released models, which pad with eos.

    Raises:
        KeyError: there is no such preset.
        ValueError: the image size is not a multiple of the patch.
    """
    shape = PRESETS[name]
    size, width = vocab_size or shape.vocab_size, shape.text_width
    pad, bos, eos = special_ids or (size - 1, size - 2, size - 1)
    text = TextConfig(
        size,
        context_length or shape.context_length,
        shape.text_layers,
        width,
        max(2, width // HEAD_SIZE),
        eos=eos,
        bos=bos,
        pad=pad,
    )
    vision = replace(shape.vision, image_size=image_size) if image_size else shape.vision
    return CLIPConfig(vision, text, shape.embed_dim)
