"""Names and choices that depend on content alone: the same on every machine, in every order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import xxhash

if TYPE_CHECKING:  # a plan reads names by the thousand, and no arrays
    import numpy as np
    import numpy.typing as npt

    Words64 = npt.NDArray[np.uint64]

GOLDEN_GAMMA = 0x9E3779B97F4A7C15
"""2**64 over the golden ratio: the step of splitmix64 (Steele, Lea, Flood 2014)."""
_MASK = (1 << 64) - 1
_ROUNDS = 6  # of the Feistel network; enough for the order of samples


def hash64(text: str) -> int:
    """xxh3-64 of the text's UTF-8 (lone surrogates pass): an integer below 2**64."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def hash128_hex(*parts: str) -> str:
    """32 hex digits that name the parts: xxh3-128 of them, a NUL between."""
    return xxhash.xxh3_128_hexdigest("\0".join(parts).encode("utf-8", "surrogatepass"))


def hash_fraction(text: str) -> float:
    """A number in [0, 1) that the text decides: splits by `fraction(id) < share`."""
    return hash64(text) / 2.0**64


@overload
def mix64(word: int) -> int: ...
@overload
def mix64(word: Words64) -> Words64: ...
def mix64(word: Any) -> Any:
    """splitmix64's finisher, of one word or of each of an array: every bit of the input reaches
    every bit of the output."""
    if not isinstance(word, int):
        return _mix_array(word)
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _MASK
    return word ^ (word >> 31)


def _mix_array(words: Words64) -> Words64:
    """Arrays wrap by themselves, and are worth sparing copies of."""
    mixed: Any = words ^ (words >> 30)
    mixed *= 0xBF58476D1CE4E5B9
    mixed ^= mixed >> 27
    mixed *= 0x94D049BB133111EB
    mixed ^= mixed >> 31
    result: Words64 = mixed
    return result


def fold64(*values: int) -> int:
    """splitmix64 folded over integers: 64 bits that look like chance for each sequence of them."""
    state = 0
    for value in values:
        state = mix64((state ^ (value & _MASK)) + GOLDEN_GAMMA & _MASK)
    return state


def permute(index: int, size: int, key: int) -> int:
    """Where `index` goes in the pseudo-random order `key` of `range(size)`: a bijection, O(1).

    A Feistel network over the next even number of bits, walked until it lands inside the range
    (Black and Rogaway 2002, cycle walking): less than four steps on average.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    mask = (1 << half) - 1
    while True:
        left, right = index >> half, index & mask
        for turn in range(_ROUNDS):
            left, right = right, left ^ (fold64(key, turn, right) & mask)
        index = (left << half) | right
        if index < size:
            return index
