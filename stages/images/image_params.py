"""Sections of the parameters of `image_text`; imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt

from pipeline.errors import Problem
from pipeline.stage import Section

Bounds = tuple[PositiveInt | None, PositiveInt | None]
UNBOUNDED: Bounds = (None, None)


class ImageFilters(Section):
    """Limits on images and captions; a range is `[low, high]`, where null leaves an end open."""

    renamed: ClassVar[dict[str, str]] = {
        "max_aspect": "max_aspect_ratio",
    }

    width: Bounds = UNBOUNDED
    """Width of the source image, pixels. Default: unbounded."""
    height: Bounds = UNBOUNDED
    """Height of the source image, pixels. Default: unbounded."""
    max_aspect_ratio: Annotated[float, Field(ge=1)] | None = None
    """Largest ratio of the longer to the shorter side. Default: unbounded."""
    caption_characters: Bounds = UNBOUNDED
    """Length of a caption, characters. Captions outside the range are removed; an image without
    any caption left is dropped. Default: unbounded."""
    caption_words: Bounds = UNBOUNDED
    """Length of a caption, words, handled likewise; in scripts without spaces a character counts as
    a word. Default: unbounded."""
    min_clip_score: Annotated[float, Field(ge=-1, le=1)] | None = None
    """Smallest cosine similarity of the stored image and its main caption by the CLIP on the edge
    `model`; computed last, for records that passed everything else. Default: no CLIP filter."""

    def problems(self) -> Iterator[Problem]:
        """Yield ranges that no value satisfies."""
        for name in ("width", "height", "caption_characters", "caption_words"):
            low, high = getattr(self, name)
            if low is not None and high is not None and low > high:
                yield Problem(f"filters.{name}", "low is greater than high", "swap them")


class ImageDedup(Section):
    """Duplicates to drop; the first copy that was read is kept."""

    renamed: ClassVar[dict[str, str]] = {
        "near": "max_hamming_distance",
        "near_color": "max_color_distance",
    }

    exact: bool = True
    """Removal of images whose files are equal. Default: true."""
    max_hamming_distance: Annotated[int, Field(ge=0, le=15)] | None = None
    """Largest Hamming distance of 64-bit difference hashes at which two images are near-duplicates,
    bits. 4 finds rescaled and recompressed photographs, but takes many drawings that differ in a
    detail (icons, flags, charts) for duplicates. Default: null, no near-duplicate search."""
    max_color_distance: Annotated[float, Field(ge=0, le=255)] = 4.0
    """Largest mean absolute difference of the colours of near-duplicates, each reduced to 4 x 4
    pixels, out of 255. Default: 4."""
    captions: bool = False
    """Removal of samples whose main captions are equal. Default: false."""


class ImageResize(Section):
    """Size and encoding of stored images. An image that needs no change keeps its bytes."""

    renamed: ClassVar[dict[str, str]] = {
        "shorter": "shortest_edge",
        "longer": "longest_edge",
        "enlarge": "upscale",
        "format": "encode_format",
        "quality": "encode_quality",
    }

    shortest_edge: PositiveInt | None = None
    """Length of the shorter side, pixels; bicubic with antialiasing. Default: no resizing."""
    longest_edge: PositiveInt | None = None
    """Length of the longer side, pixels, instead of `shortest_edge`. Default: no resizing."""
    upscale: bool = False
    """Enlargement of smaller images. Default: false."""
    encode_format: Literal["keep", "jpeg", "png", "webp"] = "keep"
    """Format of stored images; `keep` is the format of the source. Default: keep."""
    encode_quality: Annotated[int, Field(ge=1, le=100)] = 90
    """Quality of JPEG and WebP images that are re-encoded. Default: 90."""

    @property
    def edge(self) -> int | None:
        """The edge length that is set, if any."""
        return self.shortest_edge or self.longest_edge

    def problems(self) -> Iterator[Problem]:
        """Yield settings that contradict each other or have no effect."""
        if self.shortest_edge and self.longest_edge:
            yield Problem("resize", "sets both edges", "set `shortest_edge` or `longest_edge`")
        if self.upscale and not self.edge:
            yield Problem("resize.upscale", "needs a size", "set `shortest_edge` or `longest_edge`")
