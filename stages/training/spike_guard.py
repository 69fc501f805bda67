"""Detection of spikes: updates whose loss or gradient norm is far above those before.

An update is skipped if its loss or its norm is above

    mean + sigma * max(std, MIN_REL_STD * |mean|)

of the last `window` observed updates; detection starts after window / 2 of them. This is the rule
of OLMo-core's SkipStepOptimizer (OLMo 2, Walsh et al. 2024, section 3) with two differences: values
that hardly vary have a standard deviation of at least `MIN_REL_STD` of their mean, rather than one
of rounding errors, and low values are never spikes.

As there, the values of a skipped update still enter the window, unless its loss was a spike. A
skipped update changes no weights, so where norms rise for good, the norms of the next batches are
spikes as well: if they did not enter the window, no update would ever be applied again. Because
rejected norms enter, a persistent new level is accepted after window / (1 + sigma²) updates: values
that make up a fraction p of the window are sqrt((1 - p) / p) standard deviations above its mean. So
a norm alone costs a few updates, and any number of them in a row is not an anomaly. A loss spike
means that weights or data are bad; it does not enter the window, and remains an anomaly until
training rolls back. One extreme norm widens the window's standard deviation as long as it is in the
window; in that time only clipping bounds the updates.

All ranks decide alike because they see the same values. The window is part of a checkpoint: a
resumed training skips the same updates as an undisturbed one.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

MIN_REL_STD = 0.01
NORM, LOSS = "the gradient norm", "the loss"


class SpikeDecision(NamedTuple):
    """The decision whether to skip an update."""

    skip_reason: str = ""
    """The spikes found; empty if the update is to be made."""
    is_anomaly: bool = False
    """True if weights or data may be bad; several in a row are a reason to roll back."""


class SpikeGuard:
    """Spike detection for the updates of one engine; `sigma` 0 accepts every update."""

    def __init__(self, sigma: float, window: int) -> None:
        self.sigma = sigma
        self.window = window
        self._windows: dict[str, deque[float]] = {}

    def check(self, norm: float, loss: float | None = None) -> SpikeDecision:
        """Decide on an update, and let its values enter the window.

        Args:
            norm: global norm of its gradient.
            loss: its loss; without one the norm alone decides.
        """
        values = {NORM: norm} if loss is None else {NORM: norm, LOSS: loss}
        spikes = {name: self._spike(name, value) for name, value in values.items()}
        is_anomaly = bool(spikes.get(LOSS))
        if not is_anomaly:
            for name, value in values.items():
                if math.isfinite(value):
                    self._windows.setdefault(name, deque(maxlen=self.window)).append(value)
        return SpikeDecision("; ".join(filter(None, spikes.values())), is_anomaly)

    def _spike(self, name: str, value: float) -> str:
        """Return a description of the spike, or an empty text if the value is not one."""
        window = self._windows.get(name, ())
        if not self.sigma or len(window) < max(2, self.window // 2):
            return ""
        mean = math.fsum(window) / len(window)
        variance = math.fsum((v - mean) ** 2 for v in window) / (len(window) - 1)
        std = max(math.sqrt(variance), MIN_REL_STD * abs(mean)) or math.ulp(0.0)
        if not value > mean + self.sigma * std:
            return ""
        return f"{name} {value:.4g} is {(value - mean) / std:.3g} sigma above {mean:.4g}"

    def state_dict(self) -> dict[str, list[float]]:
        """Return the windows, oldest value first."""
        return {name: list(values) for name, values in self._windows.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        """Restore what `state_dict` returned."""
        self._windows = {name: deque(values, self.window) for name, values in state.items()}
