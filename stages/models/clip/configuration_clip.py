"""The shape of a CLIP, free of torch, with the published sizes and small ones to try things on.

Radford et al. 2021, tables 19 and 20, and the configs of the released models. `ViT-L/14@336` is
`ViT-L/14` on larger images. The counts of parameters are those of the released checkpoints, to
the last weight; the small sizes are ours.

FLOPs are those of the matrix products and convolutions, two for each multiplication: a forward
and a backward pass cost three forward passes. They count the networks as published, whose last
blocks work on tokens that nobody reads; `unread_flops` are those of them that we spare.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

Activation = Literal["quick_gelu", "gelu"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green and blue in CLIP's training images, out of 1."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation of red, green and blue in CLIP's training images, out of 1."""
HEAD = 64
"""Channels of an attention head in every published size."""


def _check_heads(tower: str, width: int, num_heads: int) -> None:
    if min(width, num_heads) < 1:
        raise ValueError(f"{tower}: every size must be positive")
    if width % num_heads:
        raise ValueError(f"{tower}: width {width} is not a multiple of {num_heads} heads")


def _blocks(layers: int, width: int) -> int:
    """Weights of transformer blocks with a hidden layer of four times the width."""
    return layers * (12 * width * width + 13 * width)


def _block_flops(layers: int, width: int, tokens: int) -> int:
    return layers * (2 * 12 * width * width * tokens + 4 * tokens * tokens * width)


def _unread_flops(width: int, tokens: int) -> int:
    """Of the last block for all tokens but the one that is read, their keys and values apart."""
    return (tokens - 1) * (2 * 10 * width * width + 4 * tokens * width)


@dataclass(frozen=True)
class ViTConfig:
    """A vision transformer on square images of square patches.

    Raises:
        ValueError: the width is not a multiple of the heads, or the image not of the patch.
    """

    image_size: int
    patch_size: int
    num_layers: int
    hidden_size: int
    num_heads: int

    def __post_init__(self) -> None:
        _check_heads("vision", self.hidden_size, self.num_heads)
        if min(self.image_size, self.patch_size, self.num_layers) < 1:
            raise ValueError("vision: every size must be positive")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image size {self.image_size} is not a multiple of the patch of {self.patch_size}"
            )

    @property
    def patches(self) -> int:
        """Patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    def kept(self, dropout: float) -> int:
        """Patches that are looked at where that share of them is hidden: one at least."""
        return max(1, round(self.patches * (1 - dropout)))

    def parameters(self, embed: int) -> int:
        """How many weights there are, with the projection to `embed`."""
        embeddings = (
            3 * self.patch_size**2 * self.hidden_size + (self.patches + 2) * self.hidden_size
        )
        return (
            embeddings + _blocks(self.num_layers, self.hidden_size) + (4 + embed) * self.hidden_size
        )

    def flops(self, embed: int, kept: int | None = None) -> int:
        """Of a forward pass on one image, of which `kept` patches are looked at."""
        patches = self.patches if kept is None else kept
        ends = 2 * self.hidden_size * (3 * self.patch_size**2 * patches + embed)
        return ends + _block_flops(self.num_layers, self.hidden_size, patches + 1)

    def unread_flops(self, kept: int | None = None) -> int:
        """Those of `flops` that are not computed."""
        return _unread_flops(self.hidden_size, 1 + (self.patches if kept is None else kept))


class Convolution(NamedTuple):
    """One of a ResNet's, with the side of what comes out."""

    into: int
    out: int
    kernel: int
    side: int


@dataclass(frozen=True)
class ResNetConfig:
    """A modified ResNet: three stem convolutions, strides by average pooling, attention pooling.

    Raises:
        ValueError: there are not four groups of blocks, the image is no multiple of 32, or the
            pooled width not of the heads.
    """

    image_size: int
    blocks: tuple[int, int, int, int]
    width: int
    num_heads: int

    def __post_init__(self) -> None:
        if len(self.blocks) != 4 or min(*self.blocks, self.image_size) < 1:
            raise ValueError(f"a ResNet has four groups of blocks, not {list(self.blocks)}")
        if self.width % 2:
            raise ValueError(f"the stem halves the width, which {self.width} does not allow")
        if self.image_size % 32:
            raise ValueError(f"image size {self.image_size} is not a multiple of 32")
        _check_heads("vision", self.features, self.num_heads)

    @property
    def features(self) -> int:
        """Channels that are pooled."""
        return 32 * self.width

    @property
    def side(self) -> int:
        """Of the grid that is pooled."""
        return self.image_size // 32

    def convolutions(self) -> Iterator[Convolution]:
        """All of them, in no order that matters."""
        half, side = self.width // 2, self.image_size // 2
        yield Convolution(3, half, 3, side)
        yield Convolution(half, half, 3, side)
        yield Convolution(half, self.width, 3, side)
        into, side = self.width, side // 2
        for group, count in enumerate(self.blocks):
            planes = self.width << group
            for block in range(count):
                yield Convolution(into, planes, 1, side)
                yield Convolution(planes, planes, 3, side)
                side //= 2 if group and not block else 1
                yield Convolution(planes, 4 * planes, 1, side)
                if not block:
                    yield Convolution(into, 4 * planes, 1, side)
                into = 4 * planes

    def parameters(self, embed: int) -> int:
        """How many weights there are, with the projection to `embed`."""
        body = sum(c.into * c.out * c.kernel**2 + 2 * c.out for c in self.convolutions())
        pool = (self.side**2 + 1) * self.features + 3 * self.features * (self.features + 1)
        return body + pool + (self.features + 1) * embed

    def flops(self, embed: int, kept: int | None = None) -> int:
        """Of a forward pass on one image; `kept` is of other towers."""
        body = sum(2 * c.into * c.out * c.kernel**2 * c.side**2 for c in self.convolutions())
        tokens, width = self.side**2 + 1, self.features
        pool = 2 * width * width * (2 * tokens + 1) + 4 * tokens * width + 2 * width * embed
        return body + pool

    def unread_flops(self, kept: int | None = None) -> int:
        """None: all that is counted is computed."""
        return 0


@dataclass(frozen=True)
class TextConfig:
    """A causal transformer that is read at the first end-of-text token.

    Raises:
        ValueError: the width is not a multiple of the heads, or there is no room for a word.
    """

    vocab_size: int
    context_length: int
    num_layers: int
    hidden_size: int
    num_heads: int
    eos: int
    """The id whose first place is read."""
    bos: int
    pad: int

    def __post_init__(self) -> None:
        _check_heads("text", self.hidden_size, self.num_heads)
        if min(self.vocab_size, self.num_layers) < 1:
            raise ValueError("text: every size must be positive")
        if self.context_length < 3:
            raise ValueError(
                f"a context of {self.context_length} has no room between its two marks"
            )
        if not 0 <= max(self.eos, self.bos, self.pad) < self.vocab_size:
            raise ValueError(f"the marks are no ids of a vocabulary of {self.vocab_size}")

    def parameters(self, embed: int) -> int:
        """How many weights there are, with the projection to `embed`."""
        embeddings = (self.vocab_size + self.context_length) * self.hidden_size
        return (
            embeddings + _blocks(self.num_layers, self.hidden_size) + (2 + embed) * self.hidden_size
        )

    def flops(self, embed: int, tokens: int | None = None) -> int:
        """Of a forward pass on one caption, padded to `tokens` (left out: to the context)."""
        length = self.context_length if tokens is None else tokens
        return (
            _block_flops(self.num_layers, self.hidden_size, length) + 2 * self.hidden_size * embed
        )

    def unread_flops(self, tokens: int | None = None) -> int:
        """Those of `flops` that are not computed."""
        return _unread_flops(self.hidden_size, self.context_length if tokens is None else tokens)


@dataclass(frozen=True)
class CLIPConfig:
    """Two towers that meet in a space of `embed` dimensions."""

    vision: ViTConfig | ResNetConfig
    text: TextConfig
    embed_dim: int
    activation: Activation = "quick_gelu"
    """Between the feed-forward layers; the released models have `quick_gelu`: x σ(1.702 x)."""
    bias: bool = False
    """A learned number is added to every logit (SigLIP)."""
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.embed_dim < 1:
            raise ValueError("embed_dim must be positive")

    @property
    def parameters(self) -> int:
        """How many weights there are, the logit scale (and bias) among them."""
        towers = self.vision.parameters(self.embed_dim) + self.text.parameters(self.embed_dim)
        return towers + 1 + self.bias

    @property
    def hidden_size(self) -> int:
        """Mean width of the matrices that a pair passes, by FLOPs: how well a device does."""
        sides = (self.vision.flops(self.embed_dim), self.text.flops(self.embed_dim))
        vision = self.vision
        # Of a ResNet between the inner and outer channels of the third group, which does most.
        wide = 8 * vision.width if isinstance(vision, ResNetConfig) else vision.hidden_size
        return round((sides[0] * wide + sides[1] * self.text.hidden_size) / sum(sides))

    def flops_per_pair(self, *, kept: int | None = None, tokens: int | None = None) -> int:
        """Of a forward and backward pass on an image, of which `kept` patches are looked at, and a
        caption of `tokens`."""
        return 3 * (
            self.vision.flops(self.embed_dim, kept) + self.text.flops(self.embed_dim, tokens)
        )


class Shape(NamedTuple):
    """A named size: both towers and the space they meet in."""

    vision: ViTConfig | ResNetConfig
    text_layers: int
    text_width: int
    embed_dim: int
    context_length: int = 77
    vocab_size: int = 49408


def _resnet(size: int, blocks: tuple[int, int, int, int], width: int) -> ResNetConfig:
    return ResNetConfig(size, blocks, width, width * 32 // HEAD)


PRESETS: dict[str, Shape] = {
    "nano": Shape(ViTConfig(32, 8, 2, 64, 2), 2, 64, 32, 24, 2048),
    "tiny": Shape(ViTConfig(64, 8, 4, 128, 4), 2, 128, 128, 32, 4096),
    "small": Shape(ViTConfig(64, 8, 6, 256, 4), 4, 256, 256, 32, 8192),
    "RN-nano": Shape(_resnet(32, (1, 1, 1, 1), 8), 2, 64, 32, 24, 2048),
    "RN-tiny": Shape(_resnet(64, (1, 1, 1, 1), 16), 2, 128, 128, 32, 4096),
    "ViT-B/32": Shape(ViTConfig(224, 32, 12, 768, 12), 12, 512, 512),
    "ViT-B/16": Shape(ViTConfig(224, 16, 12, 768, 12), 12, 512, 512),
    "ViT-L/14": Shape(ViTConfig(224, 14, 24, 1024, 16), 12, 768, 768),
    "ViT-L/14@336": Shape(ViTConfig(336, 14, 24, 1024, 16), 12, 768, 768),
    "RN50": Shape(_resnet(224, (3, 4, 6, 3), 64), 12, 512, 1024),
    "RN101": Shape(_resnet(224, (3, 4, 23, 3), 64), 12, 512, 512),
    "RN50x4": Shape(_resnet(288, (4, 6, 10, 6), 80), 12, 640, 640),
    "RN50x16": Shape(_resnet(384, (6, 8, 18, 8), 96), 12, 768, 768),
    "RN50x64": Shape(_resnet(448, (3, 15, 36, 10), 128), 12, 1024, 1024),
}


def preset(
    name: str,
    *,
    vocab_size: int | None = None,
    context_length: int | None = None,
    image_size: int | None = None,
    marks: tuple[int, int, int] | None = None,
) -> CLIPConfig:
    """The config of a named size, with the vocabulary, context and image size of one's own.

    Args:
        name: of `PRESETS`.
        vocab_size: of the tokenizer.
        context: tokens of a caption, its two marks included.
        image_size: pixels of a side.
        marks: the ids of pad, bos and eos; the last three of the vocabulary if left out.

    Raises:
        KeyError: there is no such size.
        ValueError: the image size does not go with the patch.
    """
    shape = PRESETS[name]
    size = vocab_size or shape.vocab_size
    # The released models pad with eos, their last id, and begin with the id before it.
    pad, bos, eos = marks or (size - 1, size - 2, size - 1)
    width = shape.text_width
    heads, length = max(2, width // HEAD), context_length or shape.context_length
    text = TextConfig(size, length, shape.text_layers, width, heads, eos=eos, bos=bos, pad=pad)
    vision = shape.vision
    if image_size:
        vision = replace(vision, image_size=image_size)
    return CLIPConfig(vision, text, shape.embed_dim)
