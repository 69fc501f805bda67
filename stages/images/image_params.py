"""What a pipeline file may say of images with captions; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from pipeline.errors import Problem
from pipeline.stage import Section

Bounds = tuple[PositiveInt | None, PositiveInt | None]
OPEN: Bounds = (None, None)


class Filters(Section):
    """What images and captions must be like; `[low, high]`, where null leaves an end open."""

    width: Bounds = OPEN
    """Pixels, as the source has them."""
    height: Bounds = OPEN
    """Pixels, as the source has them."""
    max_aspect: Annotated[float, Field(ge=1)] | None = None
    """The longer side over the shorter, at most."""
    caption_characters: Bounds = OPEN
    """Characters of a caption. Captions outside are left out; an image that has no other goes."""
    caption_words: Bounds = OPEN
    """Words of a caption, likewise; a character counts as one in scripts without spaces."""
    min_clip_score: Annotated[float, Field(ge=-1, le=1)] | None = None
    """The least cosine between an image, as it is stored, and its main caption, by the CLIP on the
    edge `model`; asked last, of what is no copy."""

    def problems(self) -> Iterator[Problem]:
        """Bounds between which nothing lies."""
        for name in ("width", "height", "caption_characters", "caption_words"):
            low, high = getattr(self, name)
            if low is not None and high is not None and low > high:
                yield Problem(f"filters.{name}", "nothing lies between these", "swap the ends")


class Copies(Section):
    """Which copies are dropped; the first that was read stays."""

    exact: bool = True
    """Drop images whose files are equal to another's."""
    near: Annotated[int, Field(ge=0, le=15)] | None = None
    """Drop images whose 64-bit difference hash is within so many bits of another's; null drops
    none. 4 finds scaled and recompressed photographs; of drawings that differ in a detail (icons,
    flags, charts) it takes many for copies."""
    near_color: Annotated[float, Field(ge=0, le=255)] = 4.0
    """How far the colours of a 4 x 4 reduction of near copies may be apart on average, of 255."""
    captions: bool = False
    """Drop samples whose main caption is equal to another's."""


class Resize(Section):
    """How images are stored. One that needs no change keeps its bytes."""

    shorter: PositiveInt | None = None
    """Pixels of the shorter side; bicubic with antialiasing."""
    longer: PositiveInt | None = None
    """Pixels of the longer side, instead."""
    enlarge: bool = False
    """Resize images that are smaller, too."""
    format: Literal["keep", "jpeg", "png", "webp"] = "keep"
    """The format of what is stored; `keep` is that of the source."""
    quality: Annotated[int, Field(ge=1, le=100)] = 90
    """Of JPEG and WebP that are encoded anew."""

    @property
    def side(self) -> int | None:
        """The side that is set."""
        return self.shorter or self.longer

    def problems(self) -> Iterator[Problem]:
        """Sides that cannot both be set; wishes without one."""
        if self.shorter and self.longer:
            yield Problem("resize", "sets both sides", "set `shorter` or `longer`")
        if self.enlarge and not self.side:
            yield Problem("resize.enlarge", "to no size", "set `shorter` or `longer`")
