"""Tokens on disk and the samples that training reads from them.

    index.json                       dtype, tokenizer, counts, the shards of each split
    train-00000.bin, eval-00000.bin  little-endian uint16 or uint32; `eos_id` ends each document
    train-00000.idx.npy              uint64: where each document of the shard ends

Documents were shuffled when they were packed. An epoch reads all tokens of a split as one ring
cut into windows of T: sample i is T inputs and the token after each, T + 1 ids in all. Every epoch
cuts the ring at another offset and visits its windows in another order, both functions of
(seed, epoch), so that any sample of any epoch costs O(1) and no state is kept.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from pipeline.errors import CorruptArtifact, InputError
from stages.data.hashing import fold64, permute

KIND = "Tokens"
VERSION = 1
SPLITS = ("train", "eval")

TokenIds = npt.NDArray[np.int64]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The narrowest type that holds the vocabulary: `<u2` up to 65,536 ids, else `<u4`."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


@dataclass(frozen=True, slots=True)
class TokenShard:
    """One file of tokens with the ends of its documents."""

    name: str
    tokens: int
    documents: int


def write_shard(
    out: Path, name: str, tokens: npt.NDArray[Any], ends: npt.NDArray[np.uint64]
) -> TokenShard:
    """Write one shard: its tokens (already of the store's dtype) and where its documents end."""
    import io

    from pipeline.atomic_io import write_atomic

    write_atomic(out / f"{name}.bin", tokens.tobytes())
    index = io.BytesIO()
    np.save(index, ends.astype("<u8"))
    write_atomic(out / f"{name}.idx.npy", index.getvalue())
    return TokenShard(name, len(tokens), len(ends))


class Vocabulary(Protocol):
    """What decides the ids of a text: `stages.data.tokenizers.sentencepiece_tokenizer.Tokenizer` is one."""

    path: Path

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""

    @property
    def digest(self) -> str:
        """The same for the same ids of every text."""


def write_index(
    out: Path,
    *,
    vocab_size: int,
    eos_id: int,
    splits: Mapping[str, Sequence[TokenShard]],
    tokenizer: str | None = None,
) -> None:
    """Write `index.json`, last: it names the shards of each split in order.

    Args:
        out: the store.
        vocab_size: all ids are below it.
        eos_id: ends each document.
        splits: their shards.
        tokenizer: the digest of what made the ids; None where nobody knows.
    """
    from pipeline.atomic_io import write_atomic

    index = {
        "schema": VERSION,
        "dtype": token_dtype(vocab_size).name,
        "vocab_size": vocab_size,
        "eos_id": eos_id,
        "tokenizer": tokenizer,
        "splits": {
            split: {
                "tokens": sum(shard.tokens for shard in shards),
                "documents": sum(shard.documents for shard in shards),
                "shards": [
                    {"name": s.name, "tokens": s.tokens, "documents": s.documents} for s in shards
                ],
            }
            for split, shards in splits.items()
        },
    }
    write_atomic(out / "index.json", json.dumps(index, indent=1, sort_keys=True))


class TokenStore:
    """One split of a Tokens artifact, memory-mapped."""

    def __init__(self, path: Path, split: str = "train") -> None:
        self.path = Path(path)
        self.split = split
        index = self._read_index()
        self.vocab_size: int = index["vocab_size"]
        self.eos_id: int = index["eos_id"]
        self.tokenizer: str | None = index.get("tokenizer")
        self.dtype = np.dtype(index["dtype"]).newbyteorder("<")
        self._shards = [TokenShard(**shard) for shard in index["splits"][split]["shards"]]
        self._maps = [self._map(shard) for shard in self._shards]
        self._starts = np.cumsum([0] + [shard.tokens for shard in self._shards])

    @property
    def tokens(self) -> int:
        """Tokens of the split, ends of documents included."""
        return int(self._starts[-1])

    @property
    def documents(self) -> int:
        """Documents of the split."""
        return sum(shard.documents for shard in self._shards)

    @property
    def ends(self) -> TokenIds:
        """Where each document ends in the split, its end token included: (documents,)."""
        shards = zip(self._shards, self._starts[:-1].tolist(), strict=True)
        ends = [
            np.load(self.path / f"{shard.name}.idx.npy").astype(np.int64) + start
            for shard, start in shards
        ]
        return np.concatenate([np.empty(0, np.int64), *ends])

    def window(self, start: int, length: int) -> TokenIds:
        """`length` ids from position `start` of the ring (the end runs on into the beginning)."""
        found = np.empty(length, np.int64)
        filled = 0
        while filled < length:
            at = (start + filled) % self.tokens
            shard = int(np.searchsorted(self._starts, at, side="right")) - 1
            offset = at - int(self._starts[shard])
            piece = self._maps[shard][offset : offset + length - filled]
            found[filled : filled + len(piece)] = piece
            filled += len(piece)
        return found

    def document(self, index: int) -> TokenIds:
        """The ids of one document in stored order, its end token included."""
        for shard, ids in zip(self._shards, self._maps, strict=True):
            if index < shard.documents:
                ends = np.load(self.path / f"{shard.name}.idx.npy", mmap_mode="r")
                start = int(ends[index - 1]) if index else 0
                return np.asarray(ids[start : int(ends[index])], np.int64)
            index -= shard.documents
        raise IndexError(index)

    def require_tokenizer(self, tokenizer: Vocabulary) -> None:
        """See that the tokens are a tokenizer's own. Of a store that does not say what made it,
        the sizes of the vocabularies are compared.

        Raises:
            InputError: they are another's.
        """
        if self.tokenizer is None and self.vocab_size == tokenizer.vocab_size:
            return
        if self.tokenizer != tokenizer.digest:
            made_by = f"tokenizer {self.tokenizer[:12]}" if self.tokenizer else "a tokenizer"
            raise InputError(
                f"the tokens were packed with {made_by} of {self.vocab_size} ids, not with "
                f"{tokenizer.digest[:12]} of {tokenizer.vocab_size} ids in {tokenizer.path}",
                where=str(self.path),
                remedy="pack the documents with that tokenizer, or name the one that packed them",
            )

    def samples(self, length: int, seed: int | None = None) -> TokenWindows:
        """The split cut into samples of `length` inputs; see `Samples`."""
        return TokenWindows(self, length, seed)

    def _read_index(self) -> dict[str, Any]:
        path = self.path / "index.json"
        if not path.exists():
            raise InputError(
                "no token store here", where=str(path), remedy="name a Tokens artifact"
            )
        index: dict[str, Any] = json.loads(path.read_text())
        if index["schema"] > VERSION:
            raise CorruptArtifact(f"token store of schema {index['schema']}", where=str(path))
        if self.split not in index["splits"]:
            raise InputError(
                f"no split {self.split!r}",
                where=str(path),
                remedy=f"splits are {', '.join(index['splits'])}",
            )
        return index

    def _map(self, shard: TokenShard) -> npt.NDArray[Any]:
        path = self.path / f"{shard.name}.bin"
        size = path.stat().st_size if path.exists() else -1
        if size != shard.tokens * self.dtype.itemsize:
            raise CorruptArtifact(
                f"{size} bytes for {shard.tokens} tokens of {self.dtype.name}", where=str(path)
            )
        return np.memmap(path, self.dtype, "r") if size else np.empty(0, self.dtype)


class TokenWindows:
    """Samples of T inputs and their targets: sample i is T + 1 int64 ids.

    `len()`, and going through them, is one epoch. With a seed an index beyond it goes on into the
    next epochs, for ever; without one there is one epoch, in stored order: what evaluation wants.

    Raises:
        InputError: the split is shorter than one sample.
    """

    def __init__(self, store: TokenStore, length: int, seed: int | None = None) -> None:
        if store.tokens < length + 1:
            raise InputError(
                f"{store.tokens} {store.split} tokens are less than one sample of {length} + 1",
                where=str(store.path),
                remedy="shorten the context, read more text, or hold more documents out",
            )
        self.store = store
        self.length = length
        self.seed = seed

    def __len__(self) -> int:
        ring = self.store.tokens if self.seed is not None else self.store.tokens - 1
        return ring // self.length

    def __iter__(self) -> Iterator[TokenIds]:
        return (self.sample(i) for i in range(len(self)))

    def __getitem__(self, index: int) -> TokenIds:
        epoch, i = divmod(index, len(self))
        if epoch and (epoch < 0 or self.seed is None):
            raise IndexError(index)
        return self.sample(i, epoch)

    def sample(self, index: int, epoch: int = 0) -> TokenIds:
        """Sample `index` of an epoch, in O(1)."""
        return self.store.window(self.start(index, epoch), self.length + 1)

    def start(self, index: int, epoch: int = 0) -> int:
        """Where sample `index` of an epoch begins in the ring of tokens."""
        if self.seed is None:
            return index * self.length
        offset = fold64(self.seed, epoch, -1) % self.length
        place = permute(index, len(self), key=fold64(self.seed, epoch, -2))
        return (offset + place * self.length) % self.store.tokens


def document_boundaries(tokens: TokenIds, eos_id: int) -> tuple[TokenIds, TokenIds]:
    """Where documents lie in windows of the ring: segments and positions, both of the shape of
    `tokens` (..., T).

    An end token is the first input of the document after it, whose first token is its target.
    Segments count from 0 in each window, positions from 0 in each segment.
    """
    begins = tokens == eos_id
    begins[..., 0] = True
    place = np.arange(tokens.shape[-1])
    starts = np.maximum.accumulate(np.where(begins, place, 0), axis=-1)
    return np.cumsum(begins, axis=-1) - 1, place - starts
