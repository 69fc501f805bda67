"""Throughput of a step, and the model FLOPs utilization against a measured peak.

MFU (Chowdhery et al. 2022, appendix B) is the model's FLOP/s over the peak of the devices. The peak
is measured, by a large matrix product on all ranks at the same time, because data sheets do not
know what part of a shared machine a run has.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from stages.training.ranks.rank import Rank


def measure_peak_flops(device: torch.device, dtype: torch.dtype, repeats: int = 5) -> float:
    """Return the FLOP/s of a square matrix product on this rank: the best of a few."""
    size = 8192 if device.type == "cuda" else 768
    a = torch.randn(size, size, device=device).to(dtype)
    best = 0.0
    for _ in range(repeats + 1):
        start = _now(device)
        _ = a @ a
        best = max(best, 2 * size**3 / (_now(device) - start))
    return best


class ThroughputMeter:
    """Step time, tokens per second and, where FLOPs per token are known, the MFU."""

    def __init__(self, rank: Rank, dtype: torch.dtype, flops_per_token: float) -> None:
        self.flops_per_token = flops_per_token
        self.peak = 0.0
        if flops_per_token:
            rank.barrier()
            self.peak = rank.reduce_scalar(measure_peak_flops(rank.device, dtype))
        self._recent: deque[float] = deque(maxlen=31)
        self._start = 0.0

    def start(self) -> None:
        """Start the clock of a step."""
        self._start = time.perf_counter()

    def stop(self, tokens: float) -> dict[str, float]:
        """Stop the clock of a step that computed `tokens` positions over all ranks, and return its
        metrics."""
        seconds = time.perf_counter() - self._start
        self._recent.append(seconds)
        metrics = {"step_seconds": seconds}
        if tokens:
            metrics["tokens_per_second"] = tokens / seconds
        if tokens and self.peak:
            metrics["mfu"] = tokens * self.flops_per_token / seconds / self.peak
        return metrics

    @property
    def median(self) -> float:
        """Return the median time of recent steps, in seconds; 0 before the first."""
        return statistics.median(self._recent) if self._recent else 0.0


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
