"""The shapes of CLIP's towers, free of torch: sizes, counts, FLOPs, bytes of activations.

FLOPs are those of the matrix products and convolutions, two per multiplication: a forward and a
backward pass cost three forward passes. They count the networks as published, whose last blocks
compute tokens that no output depends on; `skipped_flops` are those of them that are not computed
here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

from stages.models.language_model_config import Matrix


def check_heads(tower: str, width: int, num_heads: int) -> None:
    """Raise a ValueError unless the width is a positive multiple of the heads."""
    if min(width, num_heads) < 1:
        raise ValueError(f"{tower}: every size must be positive")
    if width % num_heads:
        raise ValueError(f"{tower}: width {width} is not a multiple of {num_heads} heads")


class TransformerTower:
    """The costs of transformer blocks with a hidden layer of four times the width; one token of
    their output is read."""

    num_layers: int
    hidden_size: int
    num_heads: int

    @property
    def block_parameters(self) -> int:
        """Weights of all blocks."""
        width = self.hidden_size
        return self.num_layers * (12 * width * width + 13 * width)

    def block_flops(self, tokens: int) -> int:
        """Return the FLOPs of a forward pass through all blocks."""
        width = self.hidden_size
        return self.num_layers * (2 * 12 * width * width * tokens + 4 * tokens * tokens * width)

    def skipped_block_flops(self, tokens: int) -> int:
        """Return the FLOPs of the last block for all tokens but the one that is read, without their
        keys and values."""
        width = self.hidden_size
        return (tokens - 1) * (2 * 10 * width * width + 4 * tokens * width)

    def block_matrices(self) -> Iterator[Matrix]:
        """Yield the weight matrices of the blocks."""
        width = self.hidden_size
        for rows, columns in ((3, 1), (1, 1), (4, 1), (1, 4)):
            yield Matrix(self.num_layers, rows * width, columns * width)

    @property
    def merged_parameters(self) -> int:
        """Weights and biases of queries, keys and values, which `transformers` stores apart."""
        return 3 * self.num_layers * self.hidden_size * (self.hidden_size + 1)

    # --- memory ----------------------------------------------------------------------------

    def kept_bytes(self, itemsize: int, tokens: int, *, checkpointing: bool) -> float:
        """Return the bytes per sample that all blocks keep for the backward pass."""
        if checkpointing:
            return float(tokens * self.num_layers * itemsize * self.hidden_size)
        block, last = self._block_bytes(itemsize), self._last_block_bytes(itemsize)
        return tokens * ((self.num_layers - 1) * block + last) + block

    def _block_bytes(self, itemsize: int) -> float:
        """Return the bytes per token that one block keeps: input and output of its norms, queries,
        keys and values, their result, the hidden layer before and after its activation; attention
        and norms keep float32s."""
        return itemsize * 16 * self.hidden_size + 4 * self.num_heads + 16

    def _last_block_bytes(self, itemsize: int) -> float:
        """Return the bytes that the last block keeps per token that is not read: the inputs of its
        key and value."""
        return itemsize * 4 * self.hidden_size + 8

    def gradient_bytes(self, itemsize: int, *, checkpointing: bool) -> float:
        """Return the bytes per token of the gradients inside the last two blocks.

        In the last block: those of keys, values, their input and the stream. In the one before,
        when what the last kept is free again: those of the stream and of both sides of the hidden
        layer. With checkpointing also the recomputed block.
        """
        stream = itemsize * self.hidden_size
        last, before = 4.0 * stream, 6.0 * stream
        kept = self._last_block_bytes(itemsize)
        if checkpointing:
            last += kept - stream
            before += self._block_bytes(itemsize) - stream
            kept = stream
        return max(last, before - kept) if self.num_layers > 1 else last


class VisionConfig(ABC):
    """The shape of an image tower."""

    image_size: int

    label: ClassVar[str]
    """The tower in a sentence."""
    keys: ClassVar[tuple[str, ...]]
    """The keys of `model.vision` that apply to it."""
    in_transformers: ClassVar[bool]
    """True if `transformers` has a class for it."""
    has_patches: ClassVar[bool]
    """True if it can drop patches of an image."""
    checkpointed: ClassVar[bool]
    """True if activation checkpointing applies to it."""

    @property
    def patches(self) -> int:
        """Patches of an image; 0 without patches."""
        return 0

    @property
    @abstractmethod
    def description(self) -> str:
        """The tower in a model card."""

    @property
    @abstractmethod
    def matmul_width(self) -> int:
        """Typical width of its matrices, which decides the efficiency of a device."""

    @property
    @abstractmethod
    def largest_matrix(self) -> int:
        """Weights of its largest matrix."""

    @property
    @abstractmethod
    def merged_parameters(self) -> int:
        """Weights that are concatenated out of a folder's tensors when it is loaded."""

    @abstractmethod
    def override(self, keys: Mapping[str, Any]) -> VisionConfig:
        """Return the shape with other values of some keys."""

    @abstractmethod
    def kept_patches(self, dropout: float) -> int | None:
        """Return the patches per image that remain after patch dropout, or None without patches."""

    @abstractmethod
    def parameters(self, embed_dim: int) -> int:
        """Return the number of weights, with the projection to `embed_dim`."""

    @abstractmethod
    def flops(self, embed_dim: int, kept: int | None = None) -> int:
        """Return the FLOPs of a forward pass per image with `kept` patches."""

    @abstractmethod
    def skipped_flops(self, kept: int | None = None) -> int:
        """Return the FLOPs included in `flops` that this implementation skips."""

    @abstractmethod
    def block_matrices(self) -> Iterator[Matrix]:
        """Yield the weight matrices of its transformer blocks."""

    @abstractmethod
    def activation_bytes(
        self, itemsize: int, kept: int | None = None, *, checkpointing: bool = False
    ) -> float:
        """Return the bytes per image that it keeps for its backward pass."""

    @abstractmethod
    def working_bytes(
        self, itemsize: int, kept: int | None = None, *, checkpointing: bool = False
    ) -> float:
        """Return the bytes per image of gradients when its backward pass begins."""


@dataclass(frozen=True)
class ViTConfig(TransformerTower, VisionConfig):
    """A vision transformer on square images of square patches.

    Raises:
        ValueError: the width is not a multiple of the heads, or the image not of the patch.
    """

    image_size: int
    patch_size: int
    num_layers: int
    hidden_size: int
    num_heads: int

    label: ClassVar[str] = "a ViT"
    keys: ClassVar[tuple[str, ...]] = ("patch_size", "num_layers", "hidden_size", "num_heads")
    in_transformers: ClassVar[bool] = True
    has_patches: ClassVar[bool] = True
    checkpointed: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_heads("vision", self.hidden_size, self.num_heads)
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

    @property
    def description(self) -> str:
        """The tower in a model card."""
        return (
            f"A vision transformer of {self.num_layers} layers, width {self.hidden_size}, "
            f"patches of {self.patch_size} pixels"
        )

    @property
    def matmul_width(self) -> int:
        """Width of the residual stream."""
        return self.hidden_size

    @property
    def largest_matrix(self) -> int:
        """Weights of its feed-forward matrices."""
        return (2 * self.hidden_size) ** 2

    def override(self, keys: Mapping[str, Any]) -> ViTConfig:
        """Return the shape with other values of some keys."""
        return replace(self, **keys)

    def kept_patches(self, dropout: float) -> int:
        """Return the patches per image that remain after patch dropout: at least one."""
        return max(1, round(self.patches * (1 - dropout)))

    def parameters(self, embed_dim: int) -> int:
        """Return the number of weights, with the projection to `embed_dim`."""
        embeddings = (3 * self.patch_size**2 + self.patches + 2) * self.hidden_size
        return embeddings + self.block_parameters + (4 + embed_dim) * self.hidden_size

    def _tokens(self, kept: int | None) -> int:
        return 1 + (self.patches if kept is None else kept)

    def flops(self, embed_dim: int, kept: int | None = None) -> int:
        """Return the FLOPs of a forward pass per image with `kept` patches."""
        patches = self._tokens(kept) - 1
        ends = 2 * self.hidden_size * (3 * self.patch_size**2 * patches + embed_dim)
        return ends + self.block_flops(patches + 1)

    def skipped_flops(self, kept: int | None = None) -> int:
        """Return the FLOPs included in `flops` that this implementation skips."""
        return self.skipped_block_flops(self._tokens(kept))

    def activation_bytes(
        self, itemsize: int, kept: int | None = None, *, checkpointing: bool = False
    ) -> float:
        """Return the bytes per image that it keeps for its backward pass."""
        tokens = self._tokens(kept)
        ends = 3 * self.patch_size**2 * (tokens - 1) + self.hidden_size * tokens
        return itemsize * ends + self.kept_bytes(itemsize, tokens, checkpointing=checkpointing)

    def working_bytes(
        self, itemsize: int, kept: int | None = None, *, checkpointing: bool = False
    ) -> float:
        """Return the bytes per image of gradients when its backward pass begins."""
        return self._tokens(kept) * self.gradient_bytes(itemsize, checkpointing=checkpointing)


class Convolution(NamedTuple):
    """A convolution of a ResNet, with the side of its output."""

    channels_in: int
    channels_out: int
    kernel: int
    side: int


@dataclass(frozen=True)
class ResNetConfig(VisionConfig):
    """A modified ResNet: three stem convolutions, strides by average pooling, attention pooling.

    Raises:
        ValueError: there are not four groups of blocks, the image is not a multiple of 32, or the
            pooled width not of the heads.
    """

    image_size: int
    blocks: tuple[int, int, int, int]
    width: int
    """Channels after the stem."""
    num_heads: int

    label: ClassVar[str] = "a ResNet"
    keys: ClassVar[tuple[str, ...]] = ("blocks", "width", "num_heads")
    in_transformers: ClassVar[bool] = False
    has_patches: ClassVar[bool] = False
    checkpointed: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if len(self.blocks) != 4 or min(*self.blocks, self.image_size) < 1:
            raise ValueError(f"a ResNet has four groups of blocks, not {list(self.blocks)}")
        if self.width % 2:
            raise ValueError(f"the stem halves the width, which {self.width} does not allow")
        if self.image_size % 32:
            raise ValueError(f"image size {self.image_size} is not a multiple of 32")
        check_heads("vision", self.features, self.num_heads)

    @property
    def features(self) -> int:
        """Channels that are pooled."""
        return 32 * self.width

    @property
    def side(self) -> int:
        """Side of the grid that is pooled."""
        return self.image_size // 32

    @property
    def description(self) -> str:
        """The tower in a model card."""
        return f"A modified ResNet of {list(self.blocks)} blocks, width {self.width}"

    @property
    def matmul_width(self) -> int:
        """Width between the inner and outer channels of the third group, which computes most."""
        return 8 * self.width

    @property
    def largest_matrix(self) -> int:
        """Weights of the projections of the pooling."""
        return self.features**2

    @property
    def merged_parameters(self) -> int:
        """None: its folder stores the weights as they are."""
        return 0

    def override(self, keys: Mapping[str, Any]) -> ResNetConfig:
        """Return the shape with other values of some keys; the heads keep 64 channels."""
        heads = {"num_heads": max(1, keys["width"] // 2)} if "width" in keys else {}
        return replace(self, **{**heads, **keys})

    def kept_patches(self, dropout: float) -> None:
        """Return None: there are no patches."""
        return

    def convolutions(self) -> Iterator[Convolution]:
        """Yield all convolutions, in no particular order."""
        half, side = self.width // 2, self.image_size // 2
        yield Convolution(3, half, 3, side)
        yield Convolution(half, half, 3, side)
        yield Convolution(half, self.width, 3, side)
        channels, side = self.width, side // 2
        for group, count in enumerate(self.blocks):
            planes = self.width << group
            for block in range(count):
                yield Convolution(channels, planes, 1, side)
                yield Convolution(planes, planes, 3, side)
                side //= 2 if group and not block else 1
                yield Convolution(planes, 4 * planes, 1, side)
                if not block:
                    yield Convolution(channels, 4 * planes, 1, side)
                channels = 4 * planes

    def parameters(self, embed_dim: int) -> int:
        """Return the number of weights, with the projection to `embed_dim`."""
        body = sum(
            c.channels_in * c.channels_out * c.kernel**2 + 2 * c.channels_out
            for c in self.convolutions()
        )
        pool = (self.side**2 + 1) * self.features + 3 * self.features * (self.features + 1)
        return body + pool + (self.features + 1) * embed_dim

    def flops(self, embed_dim: int, kept: int | None = None) -> int:
        """Return the FLOPs of a forward pass per image."""
        body = sum(
            2 * c.channels_in * c.channels_out * c.kernel**2 * c.side**2
            for c in self.convolutions()
        )
        tokens, width = self.side**2 + 1, self.features
        pool = 2 * width * width * (2 * tokens + 1) + 4 * tokens * width + 2 * width * embed_dim
        return body + pool

    def skipped_flops(self, kept: int | None = None) -> int:
        """Return 0: all FLOPs are computed."""
        return 0

    def block_matrices(self) -> Iterator[Matrix]:
        """Yield nothing: there are no transformer blocks."""
        yield from ()

    def activation_bytes(
        self, itemsize: int, kept: int | None = None, *, checkpointing: bool = False
    ) -> float:
        """Return the bytes per image that it keeps: the pixels, and the output of each convolution
        before and after its norm and activation."""
        numbers = sum(2.0 * c.channels_out * c.side**2 for c in self.convolutions())
        return itemsize * (3 * self.image_size**2 + numbers)

    def working_bytes(
        self, itemsize: int, kept: int | None = None, *, checkpointing: bool = False
    ) -> float:
        """Return the bytes per image of gradients when its backward pass begins."""
        return 2.0 * itemsize * max(c.channels_out * c.side**2 for c in self.convolutions())
