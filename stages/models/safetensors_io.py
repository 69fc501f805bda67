"""Safetensors files, and trees of state that contain tensors.

Files are read with the safetensors library, but written here: in one pass over the memory of the
tensors, which is hashed on the way. The library would copy all tensors once more, and its file
would have to be read again to be hashed.
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
    """Write a safetensors file durably.

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
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
        try:
            for piece in (memoryview(header), *map(_bytes, flat.values())):
                while piece:
                    written = os.write(descriptor, piece[:_CHUNK])
                    digest.update(piece[:written])
                    piece = piece[written:]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return {"name": path.name, "size": size, "sha256": digest.hexdigest()}


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor has neither NaN nor infinity, in one pass and without a copy."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    low, high = torch.aminmax(tensor)
    return bool(torch.isfinite(low) & torch.isfinite(high))


class SafetensorsFile:
    """A safetensors file that is read in pieces."""

    def __init__(self, path: Path) -> None:
        opener: Any = safe_open
        self._file = opener(path, framework="pt")
        self._keys: list[str] = list(self._file.keys())
        self.counts = {key: math.prod(self._file.get_slice(key).get_shape()) for key in self._keys}
        """Number of elements by tensor name."""

    def read(self, key: str, start: int, stop: int) -> Tensor:
        """Return the elements of a flat tensor from `start` to `stop`."""
        piece: Tensor = self._file.get_slice(key)[start:stop]
        return piece

    def read_all(self) -> dict[str, Tensor]:
        """Return all tensors by name."""
        return {key: self._file.get_tensor(key) for key in self._keys}


def split(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Split a tree of state into JSON values and tensors.

    Returns:
        The tree with a mark in place of each tensor, and the tensors by their path in the tree.

    Raises:
        ValueError: a name in the tree is that of the mark.
    """
    tensors: dict[str, Tensor] = {}

    def walk(value: Any, path: str) -> Any:
        if isinstance(value, Tensor):
            while path in tensors:  # "a/0" may be a key, and an item of "a"
                path += "'"
            tensors[path] = value
            return {_MARK: path}
        if isinstance(value, Mapping):
            if _MARK in value:
                raise ValueError(f"the name {_MARK!r} in a state is reserved")
            return {str(k): walk(v, f"{path}/{k}" if path else str(k)) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [walk(v, f"{path}/{i}") for i, v in enumerate(value)]
        return value

    return walk(state, ""), tensors


def join(values: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the tree that `split` took apart; tuples come back as lists."""
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
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: Tensor) -> memoryview:
    plain: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(plain)
