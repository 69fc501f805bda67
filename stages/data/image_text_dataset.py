"""Images with captions on disk: WebDataset tars, of which any sample is read in O(1).

    train-00000.tar, eval-00000.tar  KEY.jpg (or png, webp), KEY.txt, KEY.json of every sample
    index/train-00000.npy            int64 (samples, 6): where image, captions and metadata begin
                                     and how many bytes they are
    index.json                       the shards of each split with samples, size and sha256

`KEY.txt` holds the captions, one a line, the main one first; `KEY.json` an object with at least
`width`, `height` and `source`. The order in the tars is the order of the data set.
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
from stages.data import tar_format

KIND = "ImageText"
VERSION = 1
SPLITS = ("train", "eval")
KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")
MAX_PIXELS = 1 << 26  # 8,192 x 8,192: 200 MB of RGB; what declares more is no image but a bomb
SHARD_SAMPLES = 10_000
SHARD_BYTES = 128 << 20  # what a writer holds

_FORMATS = ("JPEG", "PNG", "WEBP")  # the only decoders that untrusted bytes reach
_ORIENTATION = 0x0112  # the EXIF tag
_HELD_OPEN = 256  # tars of one store

Index = npt.NDArray[np.int64]


class BadImage(ValueError):
    """The bytes are not those of an image that can be used."""


@dataclass(frozen=True, slots=True)
class Sample:
    """An image with its captions, as it lies on disk: nothing is decoded."""

    key: str
    image: bytes
    """A JPEG, PNG or WebP file."""
    captions: tuple[str, ...]
    """The main one first; none holds a line break."""
    meta: Mapping[str, Any]


def decode_rgb(data: bytes) -> Image.Image:
    """The image in RGB, upright (EXIF), over white where it is transparent.

    Raises:
        BadImage: it is damaged, cut short, of another format, or larger than `MAX_PIXELS`.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise BadImage(f"{image.width} x {image.height} pixels are too many")
        image.load()
        return _over_white(_upright(image))
    except BadImage:
        raise
    except Exception as error:  # what decoders raise on damaged bytes has no common ancestor
        raise BadImage(_words(error)) from error


def _words(error: Exception) -> str:
    """What a decoder says, without the address of what it read: the same each time."""
    if isinstance(error, UnidentifiedImageError):
        return "no image in JPEG, PNG or WebP that can be read"
    return str(error).partition("\n")[0][:200] or type(error).__name__


def _upright(image: Image.Image) -> Image.Image:
    if image.getexif().get(_ORIENTATION, 1) == 1:
        return image
    return ImageOps.exif_transpose(image)


def _over_white(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # sixteen bits a value
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def image_suffix(data: bytes) -> str:
    """What the file is called by its first bytes: `jpg`, `png` or `webp`.

    Raises:
        BadImage: it is none of these.
    """
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    raise BadImage("neither JPEG, PNG nor WebP")


def members_of(sample: Sample) -> list[tuple[str, bytes]]:
    """The three files of a sample in order.

    Raises:
        BadImage: the image is of another format.
        InputError: the key or a caption cannot be stored.
    """
    if not KEY.fullmatch(sample.key):
        raise InputError(f"the key {sample.key!r} does not match {KEY.pattern}")
    if not sample.captions or any("\n" in caption for caption in sample.captions):
        raise InputError(f"sample {sample.key}: captions are lines, one at least")
    return [
        (f"{sample.key}.{image_suffix(sample.image)}", sample.image),
        (f"{sample.key}.txt", "\n".join(sample.captions).encode()),
        (f"{sample.key}.json", json.dumps(dict(sample.meta), sort_keys=True).encode()),
    ]


def stored_size(sample: Sample) -> int:
    """Bytes that the sample takes in a tar."""
    return sum(tar_format.encoded_size(len(content)) for _, content in members_of(sample))


class Cutter:
    """Says where the next shard begins: by samples and by bytes, so that shards depend on the
    samples alone."""

    def __init__(self, shard_samples: int = SHARD_SAMPLES, shard_bytes: int = SHARD_BYTES) -> None:
        self._most = shard_samples, shard_bytes
        self._samples = self._bytes = 0

    def begins(self, size: int) -> bool:
        """Whether a sample of that stored size is the first of a shard; the first of all is."""
        full = self._samples >= self._most[0] or self._bytes + size > self._most[1]
        if full or not self._samples:
            self._samples, self._bytes = 1, size
            return True
        self._samples, self._bytes = self._samples + 1, self._bytes + size
        return False


def write_shards(
    samples: Iterable[Sample],
    folder: Path,
    split: str,
    *,
    shard_samples: int = SHARD_SAMPLES,
    shard_bytes: int = SHARD_BYTES,
) -> list[dict[str, Any]]:
    """Write a split's samples as `SPLIT-00000.tar`… with their indexes; the same samples give the
    same bytes. `write_index` makes a store of them.

    Returns:
        The shards as `index.json` names them.

    Raises:
        BadImage: an image is of another format.
        InputError: a key or a caption cannot be stored.
    """
    cutter, shards = Cutter(shard_samples, shard_bytes), list[dict[str, Any]]()
    held: list[Sample] = []
    for sample in samples:
        if cutter.begins(stored_size(sample)) and held:
            shards.append(write_shard(held, folder, f"{split}-{len(shards):05d}"))
            held = []
        held.append(sample)
    if held:
        shards.append(write_shard(held, folder, f"{split}-{len(shards):05d}"))
    return shards


def write_shard(samples: Iterable[Sample], folder: Path, stem: str) -> dict[str, Any]:
    """Write `STEM.tar` and its index; see `write_shards`."""
    from pipeline.storage.atomic_io import write_atomic

    content, rows = bytearray(), list[list[int]]()
    for sample in samples:
        rows.append([])
        for name, data in members_of(sample):
            rows[-1] += [len(content) + tar_format.BLOCK, len(data)]
            content += tar_format.encoded(name, data)
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
    """Write `index.json`, last: it names the shards of each split in order."""
    from pipeline.storage.atomic_io import write_atomic

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
    """One split of an ImageText artifact: a data set of samples, each read on its own.

    Any number of threads may read at once; a copy in another process opens the files anew.

    Raises:
        InputError: the folder is no such artifact, or has no such split.
        CorruptArtifact: a file is missing or not of the size that the index names.
    """

    def __init__(self, folder: Path, split: str = "train") -> None:
        self.folder = Path(folder)
        self.split = split
        self.index = _read_index(self.folder, split)
        self._shards = self.index["splits"][split]["shards"]
        self._places = [self._place(shard) for shard in self._shards]
        self._starts = [0, *accumulate(len(places) for places in self._places)]
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[Sample]:
        return (self[at] for at in range(len(self)))

    def __getitem__(self, index: int) -> Sample:
        """Sample `index` in stored order.

        Raises:
            IndexError: there are not so many.
            CorruptArtifact: the bytes are not those that the index names.
        """
        if not 0 <= index < len(self):
            raise IndexError(index)
        shard = bisect.bisect_right(self._starts, index) - 1
        numbers = self._places[shard][index - self._starts[shard]].tolist()
        places = list(zip(numbers[::2], numbers[1::2], strict=True))
        start = numbers[0] - tar_format.BLOCK
        blocks = self._read(shard, start, sum(places[2]) - start)
        try:
            return _sample(blocks, [(at - start, size) for at, size in places])
        except ValueError as error:
            raise CorruptArtifact(
                f"sample {index} of {self.split} is not what its index names: {error}",
                where=str(self.folder / self._shards[shard]["name"]),
                remedy="make the artifact again: `headwater verify` names what is damaged",
            ) from error

    def __reduce__(self) -> tuple[Any, ...]:
        return ImageTextStore, (self.folder, self.split)

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            os.close(descriptor)

    def _place(self, shard: Mapping[str, Any]) -> Index:
        """Where the members of a shard's samples lie: int64 (samples, 6)."""
        tar = self.folder / shard["name"]
        size = tar.stat().st_size if tar.exists() else -1
        if size != shard["size"]:
            raise CorruptArtifact(f"{size} bytes where {shard['size']} are named", where=str(tar))
        path = self.folder / "index" / f"{tar.stem}.npy"
        try:
            places: Index = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
        except (OSError, ValueError) as error:
            raise CorruptArtifact(f"unreadable index: {error}", where=str(path)) from error
        if places.shape != (shard["samples"], 6):
            raise CorruptArtifact(f"{places.shape} where {shard['samples']} x 6", where=str(path))
        return places

    def _read(self, shard: int, start: int, size: int) -> bytes:
        descriptor = self._open.get(shard)
        if descriptor is not None:
            return os.pread(descriptor, size, start)
        descriptor = os.open(self.folder / self._shards[shard]["name"], os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.pread(descriptor, size, start)
        finally:
            with self._lock:
                if len(self._open) < _HELD_OPEN and shard not in self._open:
                    self._open[shard] = descriptor
                else:
                    os.close(descriptor)


def _sample(blocks: bytes, places: Sequence[tuple[int, int]]) -> Sample:
    """The sample whose three members begin at these places.

    Raises:
        ValueError: other bytes are there.
    """
    names, contents = list[str](), list[bytes]()
    for at, size in places:
        name, found = tar_format.member_at(blocks, at - tar_format.BLOCK)
        names.append(name)
        contents.append(blocks[at : at + size])
        if found != size or len(contents[-1]) != size:
            raise ValueError(f"{name} has {min(found, len(contents[-1]))} bytes, not {size}")
    key, _, suffix = names[0].partition(".")
    if suffix not in tar_format.IMAGE_SUFFIXES or names[1:] != [f"{key}.txt", f"{key}.json"]:
        raise ValueError(f"{', '.join(names)} are no image, captions and metadata")
    captions = tuple(contents[1].decode().split("\n"))
    return Sample(key, contents[0], captions, json.loads(contents[2]))


def _read_index(folder: Path, split: str) -> dict[str, Any]:
    path = folder / "index.json"
    if not path.exists():
        raise InputError(
            "no images with captions here", where=str(path), remedy="name an ImageText artifact"
        )
    index: dict[str, Any] = json.loads(path.read_text())
    if not isinstance(index, dict) or "schema" not in index or "image_size" not in index:
        raise InputError(
            "an index of something else", where=str(path), remedy="name an ImageText artifact"
        )
    if index["schema"] > VERSION:
        raise CorruptArtifact(f"images with captions of schema {index['schema']}", where=str(path))
    if split not in index["splits"]:
        known = ", ".join(index["splits"])
        raise InputError(f"no split {split!r}", where=str(path), remedy=f"splits are {known}")
    return index
