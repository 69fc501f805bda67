"""The ImageText artifact: WebDataset tars with random access to samples in O(1).

    train-00000.tar, eval-00000.tar  KEY.jpg (or png, webp), KEY.txt, KEY.json of every sample
    index/train-00000.npy            int64 (samples, 6): offset and size of image, captions and
                                     metadata, bytes
    index.json                       the shards of each split with samples, size and sha256

`KEY.txt` holds the captions, one per line, the main one first; `KEY.json` an object with at least
`width`, `height` and `source`. The order in the tars is the order of the dataset.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import json
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.errors import CorruptArtifact, InputError
from stages.data import kinds, tar_format

KIND = kinds.IMAGE_TEXT.name
VERSION = 1
SPLITS = ("train", "eval")
KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")
MAX_PIXELS = 1 << 26  # 8,192 x 8,192: 200 MB of RGB; more is taken for a decompression bomb
SHARD_SAMPLES = 10_000
SHARD_BYTES = 128 << 20  # that a writer holds in memory

_FORMATS = ("JPEG", "PNG", "WEBP")  # the only decoders that untrusted bytes reach
_ORIENTATION = 0x0112  # the EXIF tag
_MAX_OPEN = 256  # tars of one store

Index = npt.NDArray[np.int64]


class BadImage(ValueError):
    """Bytes that are not an image that can be used."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An encoded image with its captions and metadata, as stored."""

    key: str
    image: bytes
    """A JPEG, PNG or WebP file."""
    captions: tuple[str, ...]
    """Captions without line breaks, the main one first."""
    meta: Mapping[str, Any]


def decode_rgb(data: bytes) -> Image.Image:
    """Decode an image to RGB, rotated upright (EXIF), transparent parts over white.

    Raises:
        BadImage: it is damaged, truncated, of another format, or larger than `MAX_PIXELS`.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(f"{image.width} x {image.height} pixels are too many")
        image.load()
        return _over_white(_upright(image))
    except BadImage:
        raise
    except Exception as error:  # decoders raise errors of many types on damaged bytes
        raise BadImage(_decoder_message(error)) from error


def _decoder_message(error: Exception) -> str:
    """Return a decoder's message without memory addresses, so that it is the same each time."""
    if isinstance(error, UnidentifiedImageError):
        return "not a readable JPEG, PNG or WebP image"
    return str(error).partition("\n")[0][:200] or type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    if image.getexif().get(_ORIENTATION, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # sixteen bits per value
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def image_suffix(data: bytes) -> str:
    """Return the suffix that the first bytes of a file call for: `jpg`, `png` or `webp`.

    Raises:
        BadImage: it is in another format.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    raise BadImage("neither JPEG, PNG nor WebP")


def sample_files(sample: Sample) -> list[tuple[str, bytes]]:
    """Return the names and contents of a sample's three files in order.

    Raises:
        BadImage: the image is of another format.
        InputError: the key or a caption cannot be stored.
    """
    if not KEY.fullmatch(sample.key):
        raise InputError(f"the key {sample.key!r} does not match {KEY.pattern}")
    if not sample.captions or any("\n" in caption for caption in sample.captions):
        raise InputError(
            f"sample {sample.key}: needs at least one caption, and none with a line break"
        )
    return [
        (f"{sample.key}.{image_suffix(sample.image)}", sample.image),
        (f"{sample.key}.txt", "\n".join(sample.captions).encode()),
        (f"{sample.key}.json", json.dumps(dict(sample.meta), sort_keys=True).encode()),
    ]


def stored_size(sample: Sample) -> int:
    """Return the size of a sample in a tar, bytes."""
    return sum(tar_format.member_size(len(content)) for _, content in sample_files(sample))


class ShardSplitter:
    """Boundaries of shards by number and size of samples, so that they depend on these alone."""

    def __init__(self, shard_samples: int = SHARD_SAMPLES, shard_bytes: int = SHARD_BYTES) -> None:
        self._limits = shard_samples, shard_bytes
        self._samples = self._bytes = 0

    def starts_shard(self, size: int) -> bool:
        """Add a sample of a stored size; return true if it is the first one of a shard."""
        full = self._samples >= self._limits[0] or self._bytes + size > self._limits[1]
        if full or not self._samples:
            self._samples, self._bytes = 1, size
            return True
        self._samples, self._bytes = self._samples + 1, self._bytes + size
        return False


def write_shard(samples: Iterable[Sample], folder: Path, stem: str) -> dict[str, Any]:
    """Write `STEM.tar` and its index; return its entry in `index.json`."""
    from pipeline.atomic_io import write_atomic

    content, rows = bytearray(), list[list[int]]()
    for sample in samples:
        rows.append([])
        for name, data in sample_files(sample):
            rows[-1] += [len(content) + tar_format.BLOCK, len(data)]
            content += tar_format.encode_member(name, data)
    content += tar_format.END
    (folder / "index").mkdir(parents=True, exist_ok=True)
    index = io.BytesIO()
    np.save(index, np.array(rows, "<i8").reshape(-1, 6))
    write_atomic(folder / "index" / f"{stem}.npy", index.getvalue())
    write_atomic(folder / f"{stem}.tar", bytes(content))
    digest = hashlib.sha256(content).hexdigest()
    return {
        "name": f"{stem}.tar",
        "samples": len(rows),
        "size": len(content),
        "sha256": digest,
    }


def write_index(
    folder: Path,
    splits: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    image_size: int | None = None,
    counts: Mapping[str, Any] | None = None,
) -> None:
    """Write `index.json`, the last file: the shards of each split in order."""
    from pipeline.atomic_io import write_atomic

    index = {
        "schema": VERSION,
        "splits": {
            split: {
                "samples": sum(shard["samples"] for shard in splits.get(split, ())),
                "shards": [dict(shard) for shard in splits.get(split, ())],
            }
            for split in SPLITS
        },
        "image_size": image_size,
        "counts": dict(counts or {}),
    }
    write_atomic(folder / "index.json", json.dumps(index, indent=1, sort_keys=True))


class ImageTextStore:
    """One split of an ImageText artifact as a random-access dataset of samples.

    Threads may read concurrently; a copy in another process opens the files again.

    Raises:
        InputError: the folder is not an ImageText artifact, or lacks the split.
        CorruptArtifact: a file is missing or has another size than in the index.
    """

    def __init__(self, folder: Path, split: str = "train") -> None:
        self.folder = Path(folder)
        self.split = split
        self.index = _read_index(self.folder, split)
        self._shards = self.index["splits"][split]["shards"]
        self._spans = [self._read_spans(shard) for shard in self._shards]
        self._starts = [0, *accumulate(len(spans) for spans in self._spans)]
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[Sample]:
        return (self[at] for at in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """Return sample `index` in stored order.

        Raises:
            IndexError: the index is out of range.
            CorruptArtifact: the bytes do not match the index.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect.bisect_right(self._starts, index) - 1
        numbers = self._spans[shard][index - self._starts[shard]].tolist()
        spans = list(zip(numbers[::2], numbers[1::2], strict=True))
        start = numbers[0] - tar_format.BLOCK
        blocks = self._read(shard, start, sum(spans[2]) - start)
        try:
            return _parse_sample(blocks, [(at - start, size) for at, size in spans])
        except ValueError as error:
            raise CorruptArtifact(
                f"sample {index} of {self.split} does not match its index: {error}",
                where=str(self.folder / self._shards[shard]["name"]),
                remedy="rebuild the artifact: `headwater verify` lists what is damaged",
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageTextStore, (self.folder, self.split)

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            os.close(descriptor)

    def _read_spans(self, shard: Mapping[str, Any]) -> Index:
        """Return offset and size of the three files of each sample: int64 (samples, 6)."""
        tar = self.folder / shard["name"]
        size = tar.stat().st_size if tar.exists() else -1
        if size != shard["size"]:
            raise CorruptArtifact(f"{size} bytes instead of {shard['size']}", where=str(tar))
        path = self.folder / "index" / f"{tar.stem}.npy"
        try:
            spans: Index = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise CorruptArtifact(f"unreadable index: {error}", where=str(path)) from error
        if spans.shape != (shard["samples"], 6):
            shape = f"shape {spans.shape} instead of ({shard['samples']}, 6)"
            raise CorruptArtifact(shape, where=str(path))
        return spans

    def _read(self, shard: int, start: int, size: int) -> bytes:
        descriptor = self._open.get(shard)
        if descriptor is not None:
            return os.pread(descriptor, size, start)
        descriptor = os.open(self.folder / self._shards[shard]["name"], os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, size, start)
        finally:
            with self._lock:
                if len(self._open) < _MAX_OPEN and shard not in self._open:
                    self._open[shard] = descriptor
                else:
                    os.close(descriptor)


def _parse_sample(blocks: bytes, spans: Sequence[tuple[int, int]]) -> Sample:
    """Return the sample whose three files have these offsets and sizes.

    Raises:
        ValueError: the bytes are something else.
    """
    names, contents = list[str](), list[bytes]()
    for at, size in spans:
        name, found = tar_format.parse_member(blocks, at - tar_format.BLOCK)
        names.append(name)
        contents.append(blocks[at : at + size])
        if found != size or len(contents[-1]) != size:
            raise ValueError(f"{name} has {min(found, len(contents[-1]))} bytes, not {size}")
    key, _, suffix = names[0].partition(".")
    if suffix not in tar_format.IMAGE_SUFFIXES or names[1:] != [f"{key}.txt", f"{key}.json"]:
        raise ValueError(f"{', '.join(names)} are not an image, captions and metadata")
    captions = tuple(contents[1].decode().split("\n"))
    return Sample(key, contents[0], captions, json.loads(contents[2]))


def _read_index(folder: Path, split: str) -> dict[str, Any]:
    path = folder / "index.json"
    if not path.exists():
        raise InputError(
            "not an ImageText artifact: no index.json",
            where=str(path),
            remedy="name an ImageText artifact",
        )
    index: dict[str, Any] = json.loads(path.read_text())
    if not isinstance(index, dict) or "schema" not in index or "image_size" not in index:
        raise InputError(
            "not the index of an ImageText artifact",
            where=str(path),
            remedy="name an ImageText artifact",
        )
    if index["schema"] > VERSION:
        raise CorruptArtifact(f"unknown ImageText schema {index['schema']}", where=str(path))
    if split not in index["splits"]:
        known = ", ".join(index["splits"])
        raise InputError(f"no split {split!r}", where=str(path), remedy=f"the splits are {known}")
    return index
