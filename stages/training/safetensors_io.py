"""Tensors in a file, and trees of state that hold tensors.

The writer makes safetensors files in one pass over the memory that the tensors already are in,
hashing what it writes: the library's own would copy everything once more, and be hashed from
disk. Files are read with the library.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from pipeline.atomic_io import disk_errors

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_CHUNK = 1 << 24
_MARK = "$tensor"


def write(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write a safetensors file and wait for the disk.

    Returns:
        Its `name`, `size` in bytes and `sha256`.

    Raises:
        Failure: the disk is full or refuses.
    """
    flat = {name: tensor.contiguous() for name, tensor in tensors.items()}
    header = _header(flat)
    size = len(header) + sum(tensor.nbytes for tensor in flat.values())
    digest = hashlib.sha256()
    with disk_errors(path, size):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            for piece in (memoryview(header), *map(_bytes, flat.values())):
                _pour(descriptor, piece, digest)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return {"name": path.name, "size": size, "sha256": digest.hexdigest()}


def finite(tensor: Tensor) -> bool:
    """Whether there is neither NaN nor infinity in it: one pass, no copy."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


class Source:
    """A safetensors file, read piecewise."""

    def __init__(self, path: Path) -> None:
        opener: Any = safe_open
        self._file = opener(path, framework="pt")
        self._keys: list[str] = list(self._file.keys())
        self.sizes = {key: math.prod(self._file.get_slice(key).get_shape()) for key in self._keys}
        """Numbers in each tensor."""

    def read(self, key: str, start: int, stop: int) -> Tensor:
        """A run of a flat tensor's numbers."""
        piece: Tensor = self._file.get_slice(key)[start:stop]
        return piece

    def everything(self) -> dict[str, Tensor]:
        """All tensors."""
        return {key: self._file.get_tensor(key) for key in self._keys}


def split(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A tree of state as JSON values with marks, and the tensors by their path in the tree.

    Raises:
        ValueError: a name in the tree is that of the mark.
    """
    found: dict[str, Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            while path in found:  # "a/0" may be a key, and an item of "a"
                path += "'"
            found[path] = value
            return {_MARK: path}
        if isinstance(value, Mapping):
            if _MARK in value:
                raise ValueError(f"state cannot have the name {_MARK!r}")
            return {str(k): walk(v, f"{path}/{k}" if path else str(k)) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [walk(v, f"{path}/{i}") for i, v in enumerate(value)]
        return value

    return walk(state, ""), found


def join(values: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The tree that `split` took apart (tuples come back as lists)."""
    if isinstance(values, dict):
        if set(values) == {_MARK}:
            return tensors[values[_MARK]]
        return {key: join(value, tensors) for key, value in values.items()}
    return [join(value, tensors) for value in values] if isinstance(values, list) else values


def _header(flat: Mapping[str, Tensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in flat.items():
        span = [at, at + tensor.nbytes]
        entries[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": span,
        }
        at = span[1]
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    plain: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(plain)


def _pour(descriptor: int, piece: memoryview, digest: Any) -> None:
    while piece:
        written = os.write(descriptor, piece[:_CHUNK])
        digest.update(piece[:written])
        piece = piece[written:]
