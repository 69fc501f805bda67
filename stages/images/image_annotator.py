"""The first pass: reads each record of a piece, measures it, and makes what will be stored of it.

A piece's task commits one table. Its rows hold the images as they will be stored, with the figures
that the later passes compare; of what is dropped they hold no image.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import xxhash
from PIL import Image

from pipeline.context import escape
from stages.data import parquet_parts
from stages.data.hashing import fraction, hash64, name128
from stages.data.image_text_dataset import (
    MAX_PIXELS,
    BadImage,
    Sample,
    decode_rgb,
    image_suffix,
    stored_size,
)
from stages.images.image_params import Bounds, Filters, Resize
from stages.images.image_sources import Piece
from stages.images.manifests import BrokenFile, Columns
from stages.images.perceptual_hash import look
from stages.images.records import Record, read
from stages.text.unicode_repair import repair
from stages.text.words.word_table import word_spans

SCRATCH = parquet_parts.versioned(
    pa.schema(
        [
            *((name, pa.string()) for name in ("id", "key", "source", "place", "rule", "reason")),
            ("score", pa.float64()),
            ("image", pa.binary()),
            ("captions", pa.list_(pa.string())),
            *((name, pa.string()) for name in ("meta", "split")),
            ("share", pa.float64()),
            *((name, pa.int64()) for name in ("captions_read", "width", "height", "stored")),
            ("resized", pa.bool_()),
            ("exact", pa.binary(16)),
            *((name, pa.uint64()) for name in ("look", "caption")),
            ("colors", pa.binary()),
            ("origin", pa.int64()),
        ]
    ),
    "JudgedImages",
    1,
)
_ENCODERS = {"jpeg": "JPEG", "png": "PNG", "webp": "WEBP", "jpg": "JPEG"}


@dataclass(frozen=True)
class Judge:
    """What is asked of each record: what a piece's task is given beside the piece."""

    columns: Columns
    filters: Filters
    resize: Resize
    seed: int = 0
    group: str | None = None
    """The field of `meta` by which samples are held out together; null is by their keys."""
    split: str | None = None
    """The field of `meta` that names a sample's split."""

    def row(self, record: Record, number: int, piece: Piece) -> dict[str, Any]:
        """One row of the scratch table."""
        captions = [text for text in map(_caption, record.captions) if text]
        captions = list(dict.fromkeys(captions))
        row = {
            **dict.fromkeys(SCRATCH.names),
            "id": name128(piece.source, piece.place, str(number)),
            "key": escape(record.key),
            "source": escape(piece.source),
            "place": escape(record.place),
            "rule": record.broken,
            "reason": escape(record.error),
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
            return row | self._measured(replace(record, captions=tuple(captions)), piece)
        except BadImage as error:
            return row | {"rule": "broken.image", "reason": escape(str(error))}
        except RecursionError:
            return row | {"rule": "broken.json", "reason": "nested too deeply"}

    def _measured(self, record: Record, piece: Piece) -> dict[str, Any]:
        image = decode_rgb(record.image)
        figures = {"width": image.width, "height": image.height}
        if not record.captions:
            return figures | {"rule": "broken.caption", "reason": "no caption"}
        captions, rule, score = self._good_captions(record.captions)
        rule, score = self._failed(image) or (rule, score)
        if rule:
            return figures | {"rule": rule, "score": score}
        stored, small = self._stored(record.image, image)
        place = {"key": escape(record.key), "place": escape(record.place)}
        meta = {**place, **record.meta, "source": escape(piece.source)}
        meta |= {"width": small.width, "height": small.height}
        sample = Sample("key", stored, tuple(captions), meta)
        bits, colors = look(image)
        held_by = record.meta.get(self.group, record.key) if self.group else record.key
        return figures | {
            "image": stored,
            "captions": captions,
            "meta": json.dumps(meta, sort_keys=True),
            "split": escape(str(record.meta.get(self.split))) if self.split else None,
            "share": fraction(f"{self.seed}\0{held_by}"),
            "stored": stored_size(sample),
            "resized": stored is not record.image,
            "exact": xxhash.xxh3_128_digest(record.image),
            "look": bits,
            "caption": hash64(captions[0]),
            "colors": colors,
        }

    def _good_captions(self, captions: tuple[str, ...]) -> tuple[list[str], str, float]:
        """Those within the bounds; if there are none, the rule that the main one fails, and its
        figure."""
        good, failed, figure = list[str](), "", 0.0
        for caption in captions:
            lengths = len(caption), len(word_spans(caption))
            for rule, length in zip(("caption_characters", "caption_words"), lengths, strict=True):
                if not _within(length, getattr(self.filters, rule)):
                    if not failed:
                        failed, figure = rule, float(length)
                    break
            else:
                good.append(caption)
        return (good, "", 0.0) if good else ([], failed, figure)

    def _failed(self, image: Image.Image) -> tuple[str, float] | None:
        """The first rule that an image fails, and its figure."""
        if not _within(image.width, self.filters.width):
            return "width", image.width
        if not _within(image.height, self.filters.height):
            return "height", image.height
        aspect = max(image.size) / min(image.size)
        if self.filters.max_aspect is not None and aspect > self.filters.max_aspect:
            return "aspect", aspect
        return None

    def _stored(self, data: bytes, image: Image.Image) -> tuple[bytes, Image.Image]:
        """The file that is stored, and what it shows: the source's own if nothing is to change."""
        suffix = image_suffix(data)
        wanted = suffix if self.resize.format == "keep" else self.resize.format
        size = _target(image.size, self.resize)
        if size == image.size and _ENCODERS[wanted] == _ENCODERS[suffix]:
            return data, image
        if size[0] * size[1] > MAX_PIXELS:
            raise BadImage(f"{size[0]} x {size[1]} pixels would be stored: too many")
        if size != image.size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        return _encoded(image, wanted, self.resize.quality), image


def _encoded(image: Image.Image, suffix: str, quality: int) -> bytes:
    """The image as a file.

    Raises:
        BadImage: the format has no room for it: WebP ends at 16,383 pixels a side, JPEG at 65,500.
    """
    buffer = io.BytesIO()
    try:
        image.save(buffer, _ENCODERS[suffix], quality=quality)
    except (OSError, ValueError) as error:
        said = f"{image.width} x {image.height} pixels cannot be stored as {suffix}: {error}"
        raise BadImage(said) from error
    return buffer.getvalue()


def judge_piece(work: tuple[Judge, Piece], commit: Path) -> None:
    """Judge the records of a piece and commit them as one table."""
    from pipeline.storage.atomic_io import write_atomic

    judge, piece = work
    rows = (
        judge.row(record, number, piece)
        for number, record in enumerate(_tolerated(piece, judge.columns), piece.first)
    )
    write_atomic(commit, parquet_parts.encode(rows, SCRATCH, "image"), durable=False)


def _tolerated(piece: Piece, columns: Columns) -> Iterator[Record]:
    """A piece's records; where its file breaks off, one that says why."""
    try:
        yield from read(piece, columns)
    except BrokenFile as error:
        yield Record("", piece.place, broken="broken.file", error=error.message)


def _caption(text: str) -> str:
    """On one line, as people meant it."""
    return " ".join(repair(text).split())


def _within(figure: float, bounds: Bounds) -> bool:
    low, high = bounds
    return (low is None or figure >= low) and (high is None or figure <= high)


def _target(size: tuple[int, int], resize: Resize) -> tuple[int, int]:
    """Width and height that are stored."""
    if resize.side is None:
        return size
    scale = resize.side / (min(size) if resize.shorter else max(size))
    if scale > 1 and not resize.enlarge:
        return size
    width, height = (max(1, round(side * scale)) for side in size)
    return width, height
