"""Names and choices that depend on content alone: the same on every machine, in every order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

import xxhash

if TYPE_CHECKING:  # a plan reads names by the thousand, and no arrays
    import numpy as np
    import numpy.typing as npt

    Words = npt.NDArray[np.uint64]

GOLDEN = 0x9E3779B97F4A7C15
"""2**64 over the golden ratio: the step of splitmix64 (Steele, Lea, Flood 2014)."""
_MASK = (1 << 64) - 1


def hash64(text: str) -> int:
    """xxh3-64 of the text's UTF-8 (lone surrogates pass): an integer below 2**64."""
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass"))


def name128(*parts: str) -> str:
    """32 hex digits that name the parts: xxh3-128 of them, a NUL between."""
    return xxhash.xxh3_128_hexdigest("\0".join(parts).encode("utf-8", "surrogatepass"))


def fraction(text: str) -> float:
    """A number in [0, 1) that the text decides: splits by `fraction(id) < share`."""
    return hash64(text) / 2.0**64


@overload
def mix64(word: int) -> int: ...
@overload
def mix64(word: Words) -> Words: ...
def mix64(word: Any) -> Any:
    """splitmix64's finisher, of one word or of each of an array: every bit of the input reaches
    every bit of the output."""
    if not isinstance(word, int):
        return _mix_array(word)
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _MASK
    return word ^ (word >> 31)


def _mix_array(words: Words) -> Words:
    """Arrays wrap by themselves, and are worth sparing copies of."""
    mixed: Any = words ^ (words >> 30)
    mixed *= 0xBF58476D1CE4E5B9
    mixed ^= mixed >> 27
    mixed *= 0x94D049BB133111EB
    mixed ^= mixed >> 31
    result: Words = mixed
    return result


def fold64(*values: int) -> int:
    """splitmix64 folded over integers: 64 bits that look like chance for each sequence of them."""
    state = 0
    for value in values:
        state = mix64((state ^ (value & _MASK)) + GOLDEN & _MASK)
    return state
