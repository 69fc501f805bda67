"""Random numbers as a function of (seed, sample, step): no generator, no state, no order.

A response is then the same whatever else is in its batch, whichever rank makes it, and after any
resume. The hash is splitmix64 (Steele, Lea, Flood 2014), folded over its three keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def uniforms(seed: int, samples: Sequence[int], steps: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) of shape (samples, steps), by sample index and step."""
    key = _mix(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64))
    sample_B = np.asarray(samples, np.int64).astype(np.uint64)
    key_B = _mix(key ^ sample_B)
    words_BT = _mix(key_B[:, None] ^ np.arange(steps, dtype=np.uint64)[None])
    return (words_BT >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    words = words + _GOLDEN
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
