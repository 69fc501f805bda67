"""The `model:` section of a pipeline file for a CLIP, free of torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field

from pipeline.stage import EXECUTION, Section
from stages.models.clip.configuration_clip import Activation

Size = Annotated[int | None, Field(ge=1)]


class VisionSection(Section):
    """Shape of the image tower. Default: the `preset`'s."""

    renamed: ClassVar[Mapping[str, str]] = {
        "patch": "patch_size",
        "layers": "num_layers",
        "heads": "num_heads",
    }

    patch_size: Size = None
    """Side of a patch, pixels (ViT). Default: the preset's."""
    num_layers: Size = None
    """Number of blocks (ViT). Default: the preset's."""
    blocks: tuple[int, int, int, int] | None = None
    """Number of blocks in each of the four groups (ResNet). Default: the preset's."""
    hidden_size: Size = None
    """Width of the residual stream (ViT). Default: the preset's."""
    width: Size = None
    """Number of channels after the stem (ResNet). Default: the preset's."""
    num_heads: Size = None
    """Number of attention heads. Default: the preset's."""


class TextSection(Section):
    """Shape of the text tower. Default: the `preset`'s."""

    renamed: ClassVar[Mapping[str, str]] = {
        "context": "context_length",
        "layers": "num_layers",
        "width": "hidden_size",
        "heads": "num_heads",
    }

    context_length: Size = None
    """Longest caption with bos and eos, tokens; longer ones are truncated. Default: the
    preset's."""
    num_layers: Size = None
    """Number of blocks. Default: the preset's."""
    hidden_size: Size = None
    """Width of the residual stream, a multiple of `num_heads`. Default: the preset's."""
    num_heads: Size = None
    """Number of attention heads. Default: the preset's."""


class ClipModelSection(Section):
    """Shape of the model. Default: the `preset`'s."""

    renamed: ClassVar[Mapping[str, str]] = {
        "embed": "embed_dim",
        "recompute": "activation_checkpointing",
    }

    vision: VisionSection = VisionSection()
    text: TextSection = TextSection()
    embed_dim: Size = None
    """Dimension of the joint embedding space. Default: the preset's."""
    activation: Activation = "quick_gelu"
    """Activation of the feed-forward layers. Default: quick_gelu, as in the released models."""
    activation_checkpointing: Annotated[bool, EXECUTION] = False
    """Recomputation of each transformer block in the backward pass, which saves memory. Default:
    false."""
