"""Updates that stand out: a loss or a gradient norm far above those of the updates before.

An update is left out if one of its figures lies above

    mean + sigma * max(std, LEAST * |mean|)

of the last `window` updates that were made; the first window / 2 are made whatever they are. This
is the rule of OLMo-core's SkipStepOptimizer (OLMo 2, Walsh et al. 2024, section 3), but for two
points: what was left out does not widen the band, and figures that hardly move have a band of
`LEAST` of their mean a sigma rather than one of rounding errors. Falling is never out of the way.

All ranks judge the same numbers, so they judge alike. The figures are part of a checkpoint: a
resumed training leaves out what an undisturbed one does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping

LEAST = 0.01


class SpikeGuard:
    """The band of one engine's updates; `sigma` 0 lets everything pass."""

    def __init__(self, sigma: float, window: int) -> None:
        self.sigma = sigma
        self.window = window
        self._seen: dict[str, deque[float]] = {}

    def spike(self, figures: Mapping[str, float]) -> str:
        """Say what stands out among the figures of an update; nothing if nothing does."""
        for name, value in figures.items():
            seen = self._seen.get(name, ())
            if not self.sigma or len(seen) < max(2, self.window // 2):
                continue
            mean, width = _spread(seen)
            if value > mean + self.sigma * width:
                return f"{name} {value:.4g} is {(value - mean) / width:.3g} sigma above {mean:.4g}"
        return ""

    def note(self, figures: Mapping[str, float]) -> None:
        """Take in the figures of an update that was made."""
        for name, value in figures.items():
            if math.isfinite(value):
                self._seen.setdefault(name, deque(maxlen=self.window)).append(value)

    def state_dict(self) -> dict[str, list[float]]:
        """The figures of the band, oldest first."""
        return {name: list(values) for name, values in self._seen.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        """Take up what `state_dict` gave."""
        self._seen = {name: deque(values, self.window) for name, values in state.items()}


def _spread(values: deque[float] | tuple[float, ...]) -> tuple[float, float]:
    """Mean, and the width of a sigma."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, max(math.sqrt(variance), LEAST * abs(mean)) or math.ulp(0.0)
