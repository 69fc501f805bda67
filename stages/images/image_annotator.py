"""Annotates image records: applies filters, measures, hashes, and encodes what will be stored.

A row of the annotation table holds the image as it will be stored, with the hashes that the later
phases compare; the rows of dropped records hold no image.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pyarrow as pa
import xxhash
from PIL import Image

from pipeline.redaction import escape_control_characters
from stages.curation.annotation import Annotator
from stages.curation.broken_files import BrokenFile
from stages.data import parquet_parts
from stages.data.hashing import hash64, hash128_hex, hash_fraction
from stages.data.image_text_dataset import (
    MAX_PIXELS,
    BadImage,
    Sample,
    decode_rgb,
    image_suffix,
    stored_size,
)
from stages.images.columns import ImageColumns
from stages.images.image_params import Bounds, ImageFilters, ImageResize
from stages.images.image_sources import ImagePiece
from stages.images.perceptual_hash import perceptual_hash
from stages.images.records import ImageRecord, read_records
from stages.text.unicode_repair import repair
from stages.text.words.word_borders import word_spans

_ENCODERS = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "jpg": "JPEG"}


@dataclass(frozen=True)
class ImageAnnotator(Annotator[ImagePiece, ImageRecord]):
    """Filters and measurements of an image with captions."""

    columns: ImageColumns
    filters: ImageFilters
    resize: ImageResize
    seed: int = 0
    group_field: str | None = None
    """Field of `meta` whose values are held out together; None holds out by key."""
    split_field: str | None = None
    """Field of `meta` that names a sample's split."""

    payload_column: ClassVar[str] = "image"
    schema: ClassVar[pa.Schema] = parquet_parts.versioned_schema(
        pa.schema(
            [
                *((n, pa.string()) for n in ("id", "key", "source", "place", "rule", "reason")),
                ("score", pa.float64()),
                ("image", pa.binary()),
                ("captions", pa.list_(pa.string())),
                *((name, pa.string()) for name in ("meta", "split")),
                ("split_hash", pa.float64()),
                *((name, pa.int64()) for name in ("captions_read", "width", "height", "stored")),
                ("resized", pa.bool_()),
                ("image_digest", pa.binary(16)),
                *((name, pa.uint64()) for name in ("dhash", "caption_hash", "image_name_hash")),
                ("colors", pa.binary()),
                ("origin", pa.int64()),
            ]
        ),
        "AnnotatedImages",
        3,
    )

    def read(self, piece: ImagePiece) -> Iterator[ImageRecord]:
        """Yield the records of a piece in order."""
        return read_records(piece, self.columns)

    def broken_record(self, piece: ImagePiece, error: BrokenFile) -> ImageRecord:
        """Return the record that stands for the unreadable rest of a file."""
        return ImageRecord("", piece.place, broken="broken.file", error=error.message)

    def annotate(self, piece: ImagePiece, number: int, record: ImageRecord) -> dict[str, Any]:
        """Return the row of a record; `rule` names the first filter that it fails."""
        captions = [text for text in map(_normalized_caption, record.captions) if text]
        captions = list(dict.fromkeys(captions))
        row = {
            **dict.fromkeys(self.schema.names),
            "id": hash128_hex(piece.source, piece.place, str(number)),
            "key": escape_control_characters(record.key),
            "source": escape_control_characters(piece.source),
            "place": escape_control_characters(record.place),
            "rule": record.broken,
            "reason": escape_control_characters(record.error),
            "score": 0.0,
            "image": b"",
            "captions": captions,
            "captions_read": len(captions),
            "meta": "{}",
            "origin": piece.origin,
        }
        if record.broken:
            return row
        try:
            return row | self._measure(replace(record, captions=tuple(captions)), piece)
        except BadImage as error:
            return row | {"rule": "broken.image", "reason": escape_control_characters(str(error))}
        except RecursionError:
            return row | {"rule": "broken.json", "reason": "nested too deeply"}

    def _measure(self, record: ImageRecord, piece: ImagePiece) -> dict[str, Any]:
        image = decode_rgb(record.image)
        size = {"width": image.width, "height": image.height}
        if not record.captions:
            return size | {"rule": "broken.caption", "reason": "no caption"}
        captions, rule, score = self._filter_captions(record.captions)
        rule, score = self._failed_image_rule(image) or (rule, score)
        if rule:
            return size | {"rule": rule, "score": score}
        data, stored = self._encode_image(record.image, image)
        place = {
            "key": escape_control_characters(record.key),
            "place": escape_control_characters(record.place),
        }
        meta = {**place, **record.meta, "source": escape_control_characters(piece.source)}
        meta |= {"width": stored.width, "height": stored.height}
        sample = Sample("key", data, tuple(captions), meta)
        dhash, colors = perceptual_hash(image)
        group = record.meta.get(self.group_field, record.key) if self.group_field else record.key
        split = (
            escape_control_characters(str(record.meta.get(self.split_field)))
            if self.split_field
            else None
        )
        return size | {
            "image": data,
            "captions": captions,
            "meta": json.dumps(meta, sort_keys=True),
            "split": split,
            "split_hash": hash_fraction(f"{self.seed}\0{group}"),
            "stored": stored_size(sample),
            "resized": data is not record.image,
            "image_digest": xxhash.xxh3_128_digest(record.image),
            "dhash": dhash,
            "caption_hash": hash64(captions[0]),
            "image_name_hash": hash64(f"{piece.source}\0{record.image_name}"),
            "colors": colors,
        }

    def _filter_captions(self, captions: tuple[str, ...]) -> tuple[list[str], str, float]:
        """Return the captions within the limits; if all fail, the rule that the first one
        fails and its length."""
        kept, failed, score = list[str](), "", 0.0
        for caption in captions:
            lengths = len(caption), len(word_spans(caption))
            for rule, length in zip(("caption_characters", "caption_words"), lengths, strict=True):
                if not _is_within(length, getattr(self.filters, rule)):
                    if not failed:
                        failed, score = rule, float(length)
                    break
            else:
                kept.append(caption)
        return (kept, "", 0.0) if kept else ([], failed, score)

    def _failed_image_rule(self, image: Image.Image) -> tuple[str, float] | None:
        """Return the first rule that an image fails and its score, or None."""
        if not _is_within(image.width, self.filters.width):
            return "width", image.width
        if not _is_within(image.height, self.filters.height):
            return "height", image.height
        aspect = max(image.size) / min(image.size)
        limit = self.filters.max_aspect_ratio
        return ("aspect", aspect) if limit is not None and aspect > limit else None

    def _encode_image(self, data: bytes, image: Image.Image) -> tuple[bytes, Image.Image]:
        """Return the bytes to store and the image in them; the source's own if nothing changes.

        Raises:
            BadImage: the result has too many pixels, in total or for its format.
        """
        suffix = image_suffix(data)
        target = suffix if self.resize.encode_format == "keep" else self.resize.encode_format
        width, height = size = _target_size(image.size, self.resize)
        if size == image.size and _ENCODERS[target] == _ENCODERS[suffix]:
            return data, image
        if width * height > MAX_PIXELS:
            raise BadImage(f"{width} x {height} pixels would be stored: too many")
        if size != image.size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        try:
            image.save(buffer, _ENCODERS[target], quality=self.resize.encode_quality)
        except (OSError, ValueError) as error:  # WebP ends at 16,383 pixels a side, JPEG at 65,500
            message = f"{width} x {height} pixels cannot be stored as {target}: {error}"
            raise BadImage(message) from error
        return buffer.getvalue(), image


def _normalized_caption(text: str) -> str:
    """Return the caption with repaired Unicode, on one line."""
    return " ".join(repair(text).split())


def _is_within(value: float, bounds: Bounds) -> bool:
    low, high = bounds
    return (low is None or value >= low) and (high is None or value <= high)


def _target_size(size: tuple[int, int], resize: ImageResize) -> tuple[int, int]:
    """Return the width and height to store."""
    if resize.edge is None:
        return size
    scale = resize.edge / (min(size) if resize.shortest_edge else max(size))
    if scale > 1 and not resize.upscale:
        return size
    width, height = (max(1, round(side * scale)) for side in size)
    return width, height
