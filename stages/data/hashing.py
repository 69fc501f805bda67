"""Hashes and pseudo-random choices: functions of content, equal on every machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import xxhash

if TYPE_CHECKING:  # numpy is not imported at run time, to keep planning fast
    import numpy as np
    import numpy.typing as npt

    Words64 = npt.NDArray[np.uint64]

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
"""2**64 divided by the golden ratio: the increment of splitmix64 (Steele, Lea, Flood 2014)."""
_MASK = (1 << 64) - 1
_ROUNDS = 6  # of the Feistel network; enough for the order of samples


def hash64(text: str) -> int:
    """Return the xxh3-64 of a text in UTF-8 (lone surrogates allowed): an integer below 2**64."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def hash128_hex(*parts: str) -> str:
    """Return the xxh3-128 of the parts, joined by NUL: 32 hex digits."""
    return xxhash.xxh3_128_hexdigest("\0".join(parts).encode("utf-8", "surrogatepass"))


def hash_fraction(text: str) -> float:
    """Return the hash of a text as a number in [0, 1); `hash_fraction(id) < p` selects share p."""
    return hash64(text) / 2.0**64


@overload
def mix64(word: int) -> int: ...
@overload
def mix64(word: Words64) -> Words64: ...
def mix64(word: Any) -> Any:
    """Apply the finalizer of splitmix64 to one word, or to each word of an array."""
    if not isinstance(word, int):
        return _mix_array(word)
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _MASK
    return word ^ (word >> 31)


def _mix_array(words: Words64) -> Words64:
    """Mix in place, to avoid copies; arrays wrap around by themselves."""
    mixed: Any = words ^ (words >> 30)
    mixed *= 0xBF58476D1CE4E5B9
    mixed ^= mixed >> 27
    mixed *= 0x94D049BB133111EB
    mixed ^= mixed >> 31
    result: Words64 = mixed
    return result


def fold64(*values: int) -> int:
    """Fold splitmix64 over integers: 64 pseudo-random bits per sequence."""
    state = 0
    for value in values:
        state = mix64((state ^ (value & _MASK)) + GOLDEN_GAMMA & _MASK)
    return state


def permute(index: int, size: int, key: int) -> int:
    """Return the position of `index` in the pseudo-random permutation `key` of `range(size)`.

    A Feistel network over the next even number of bits, applied until the result is in the range
    (cycle walking, Black and Rogaway 2002): less than four rounds of it on average, so O(1).
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for step in range(_ROUNDS):
            left, right = right, left ^ (fold64(key, step, right) & mask)
        index = (left << half) | right
        if index < size:
            return index
