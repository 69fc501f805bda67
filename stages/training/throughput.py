"""Figures of a step: rates, and the model FLOPs utilisation against a measured peak.

MFU (Chowdhery et al. 2022, appendix B) is model FLOP/s over what the device can do. We measure
what it can do, with the largest matrix product that is quick here, on all ranks at the same time:
data sheets say nothing of a share of a busy machine.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from stages.training.ranks.rank import Rank


def gemm_peak(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """FLOP/s of a square matrix product on this rank's share of the device: the best of a few."""
    size = 8192 if device.type == "cuda" else 768
    a = torch.randn(size, size, device=device).to(dtype)
    best = 0.0
    for _ in range(repeats + 1):
        start = _now(device)
        _ = a @ a
        best = max(best, 2 * size**3 / (_now(device) - start))
    return best


class Meter:
    """Times steps; gives tokens a second and, where FLOPs are known, the MFU."""

    def __init__(self, rank: Rank, dtype: torch.dtype, flops_per_token: float) -> None:
        self.flops_per_token = flops_per_token
        self.peak = 0.0
        if flops_per_token:
            rank.barrier()
            self.peak = rank.reduce_scalar(gemm_peak(rank.device, dtype))
        self._recent: deque[float] = deque(maxlen=31)
        self._start = 0.0

    def start(self) -> None:
        """A step begins."""
        self._start = time.perf_counter()

    def stop(self, tokens: float) -> dict[str, float]:
        """A step ended that computed `tokens` positions over all ranks."""
        seconds = time.perf_counter() - self._start
        self._recent.append(seconds)
        rates = {"step_seconds": seconds}
        if tokens:
            rates["tokens_per_second"] = tokens / seconds
        if tokens and self.peak:
            rates["mfu"] = tokens * self.flops_per_token / seconds / self.peak
        return rates

    @property
    def median(self) -> float:
        """Seconds of a usual step; 0 before the first."""
        return statistics.median(self._recent) if self._recent else 0.0


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
