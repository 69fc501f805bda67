"""Token stores on disk, and the windows that training reads from them.

    index.json                       dtype, tokenizer, counts, the shards of each split
    train-00000.bin, eval-00000.bin  little-endian uint16 or uint32; `eos_id` ends each document
    train-00000.idx.npy              uint64: end position of each document of the shard

Documents are shuffled when they are packed. An epoch reads all tokens of a split as a ring of
windows: sample i is T inputs and the next token of each, T + 1 ids. Every epoch starts at another
offset of the ring and visits its windows in another order, both functions of (seed, epoch), so that
any sample of any epoch is read in O(1) without state.
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
from stages.data import kinds
from stages.data.hashing import fold64, permute

KIND = kinds.TOKENS.name
VERSION = 1
SPLITS = ("train", "eval")

TokenIds = npt.NDArray[np.int64]


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """Return the smallest dtype for the vocabulary: `<u2` up to 65,536 ids, otherwise `<u4`."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


@dataclass(frozen=True, slots=True)
class TokenShard:
    """One file of tokens and the ends of its documents."""

    name: str
    tokens: int
    documents: int


def write_shard(
    out: Path, name: str, tokens: npt.NDArray[Any], ends: npt.NDArray[np.uint64]
) -> TokenShard:
    """Write one shard: its tokens, in the dtype of the store, and the ends of its documents."""
    import io

    from pipeline.atomic_io import write_atomic

    write_atomic(out / f"{name}.bin", tokens.tobytes())
    index = io.BytesIO()
    np.save(index, ends.astype("<u8"))
    write_atomic(out / f"{name}.idx.npy", index.getvalue())
    return TokenShard(name, len(tokens), len(ends))


class Vocabulary(Protocol):
    """A tokenizer, such as `stages.data.tokenizers.sentencepiece_tokenizer.Tokenizer`."""

    path: Path

    @property
    def vocab_size(self) -> int:
        """Number of ids."""

    @property
    def digest(self) -> str:
        """Hash that is equal for tokenizers that encode every text alike."""


def write_index(
    out: Path,
    *,
    vocab_size: int,
    eos_id: int,
    splits: Mapping[str, Sequence[TokenShard]],
    tokenizer: str | None = None,
) -> None:
    """Write `index.json`, after all shards: it lists the shards of each split in order.

    Args:
        out: folder of the store.
        vocab_size: exclusive upper bound of all ids.
        eos_id: end token of each document.
        splits: shards by split.
        tokenizer: digest of the tokenizer; None if unknown.
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
        """Number of tokens of the split, end tokens included."""
        return int(self._starts[-1])

    @property
    def documents(self) -> int:
        """Number of documents of the split."""
        return sum(shard.documents for shard in self._shards)

    @property
    def ends(self) -> TokenIds:
        """End position of each document in the split, end token included: (documents,)."""
        shards = zip(self._shards, self._starts[:-1].tolist(), strict=True)
        ends = [
            np.load(self.path / f"{shard.name}.idx.npy").astype(np.int64) + start
            for shard, start in shards
        ]
        return np.concatenate([np.empty(0, np.int64), *ends])

    def window(self, start: int, length: int) -> TokenIds:
        """Return `length` ids from position `start` of the ring, which wraps around."""
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
        """Return the ids of one document in stored order, end token included."""
        for shard, ids in zip(self._shards, self._maps, strict=True):
            if index < shard.documents:
                ends = np.load(self.path / f"{shard.name}.idx.npy", mmap_mode="r")
                start = int(ends[index - 1]) if index else 0
                return np.asarray(ids[start : int(ends[index])], np.int64)
            index -= shard.documents
        raise IndexError(index)

    def require_tokenizer(self, tokenizer: Vocabulary) -> None:
        """Check that the store was packed with this tokenizer. If the store has no tokenizer
        digest, the vocabulary sizes are compared.

        Raises:
            InputError: the store was packed with another tokenizer.
        """
        if self.tokenizer is None and self.vocab_size == tokenizer.vocab_size:
            return
        if self.tokenizer != tokenizer.digest:
            made_by = f"tokenizer {self.tokenizer[:12]}" if self.tokenizer else "a tokenizer"
            raise InputError(
                f"the tokens were packed with {made_by} of {self.vocab_size} ids, not with "
                f"{tokenizer.digest[:12]} of {tokenizer.vocab_size} ids in {tokenizer.path}",
                where=str(self.path),
                remedy="pack the documents with that tokenizer, or use the one that packed them",
            )

    def samples(self, length: int, seed: int | None = None) -> TokenWindows:
        """Return the split as samples of `length` inputs; see `TokenWindows`."""
        return TokenWindows(self, length, seed)

    def _read_index(self) -> dict[str, Any]:
        path = self.path / "index.json"
        if not path.exists():
            raise InputError(
                "no token store here", where=str(path), remedy="give an artifact of kind Tokens"
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
                f"expected {shard.tokens} tokens of {self.dtype.name}, found {size} bytes",
                where=str(path),
            )
        return np.memmap(path, self.dtype, "r") if size else np.empty(0, self.dtype)


class TokenWindows:
    """Samples of T inputs and their targets: sample i is T + 1 int64 ids.

    `len()` and iteration cover one epoch. With a seed, larger indices continue with the next
    epochs, without end. Without a seed there is one epoch, in stored order, for evaluation.

    Raises:
        InputError: the split is shorter than one sample.
    """

    def __init__(self, store: TokenStore, length: int, seed: int | None = None) -> None:
        if store.tokens < length + 1:
            raise InputError(
                f"{store.tokens} {store.split} tokens are fewer than one sample of {length} + 1",
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
        """Return sample `index` of an epoch, in O(1)."""
        return self.store.window(self.start(index, epoch), self.length + 1)

    def start(self, index: int, epoch: int = 0) -> int:
        """Return the start position of sample `index` of an epoch in the ring of tokens."""
        if self.seed is None:
            return index * self.length
        offset = fold64(self.seed, epoch, -1) % self.length
        window = permute(index, len(self), key=fold64(self.seed, epoch, -2))
        return (offset + window * self.length) % self.store.tokens


def document_boundaries(tokens: TokenIds, eos_id: int) -> tuple[TokenIds, TokenIds]:
    """Return the segments and positions of documents in windows of the ring, both of the shape of
    `tokens` (..., T).

    An end token is the first input of the next document, and the first token of that document is
    its target. Segments count from 0 in each window, positions from 0 in each segment.
    """
    starts_document = tokens == eos_id
    starts_document[..., 0] = True
    index = np.arange(tokens.shape[-1])
    starts = np.maximum.accumulate(np.where(starts_document, index, 0), axis=-1)
    return np.cumsum(starts_document, axis=-1) - 1, index - starts
