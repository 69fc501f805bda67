"""Counter-based random numbers: a function of (seed, sample, step), without state.

A response is the same whatever else is in its batch, on any rank and after any resume. The hash is
splitmix64, folded over its three keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from stages.data.hashing import GOLDEN_GAMMA, mix64

if TYPE_CHECKING:
    from stages.data.hashing import Words64


def uniforms(seed: int, samples: Sequence[int], steps: int) -> npt.NDArray[np.float64]:
    """Return uniform numbers in [0, 1) of shape (samples, steps), by sample index and step."""
    key = _splitmix64(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64))
    sample_B = np.asarray(samples, np.int64).astype(np.uint64)
    key_B = _splitmix64(key ^ sample_B)
    words_BT = _splitmix64(key_B[:, None] ^ np.arange(steps, dtype=np.uint64)[None])
    return (words_BT >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix64(words: Words64) -> Words64:
    return mix64(words + np.uint64(GOLDEN_GAMMA))
