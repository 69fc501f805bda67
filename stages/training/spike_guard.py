"""Updates that stand out: a loss or a gradient norm far above those of the updates before.

An update is left out if one of its figures lies above

    mean + sigma * max(std, LEAST * |mean|)

of the last `window` updates that were taken in; the first window / 2 are made whatever they are.
This is the rule of OLMo-core's SkipStepOptimizer (OLMo 2, Walsh et al. 2024, section 3), but for
two points: figures that hardly move have a band of `LEAST` of their mean a sigma rather than one of
rounding errors, and falling is never out of the way.

What was left out is taken in too, as there, unless its loss stands out. An update that is left out
changes no weights, so that where norms rise for good, those of the next batches stand out as well:
were they not taken in, none would ever be made again. Taken in, a new level is the usual one after
window / (1 + sigma²) of them: values that are a share p of all lie sqrt((1 - p) / p) sigma above
the mean. So a norm alone costs a few updates, and no number of them in a row is `amiss`. A loss
that stands out says that weights or data are bad; it does not widen the band, and stays `amiss`
until training goes back. A norm that is far higher than all others widens its band, as long as it
is in the window: what bounds the steps then is clipping.

All ranks judge the same numbers, so they judge alike. The figures are part of a checkpoint: a
resumed training leaves out what an undisturbed one does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

LEAST = 0.01
NORM, LOSS = "the gradient norm", "the loss"


class Verdict(NamedTuple):
    """What is to become of an update."""

    why: str = ""
    """What stands out; it is made if nothing does."""
    amiss: bool = False
    """Whether something is wrong: many of these in a row are a reason to go back."""


class SpikeGuard:
    """The bands of one engine's updates; `sigma` 0 lets everything pass."""

    def __init__(self, sigma: float, window: int) -> None:
        self.sigma = sigma
        self.window = window
        self._seen: dict[str, deque[float]] = {}

    def judge(self, norm: float, loss: float | None = None) -> Verdict:
        """Say what stands out of an update, and take in its figures.

        Args:
            norm: of its gradient.
            loss: of its gradient, where there is one; without it the norm alone is judged.
        """
        figures = {NORM: norm} if loss is None else {NORM: norm, LOSS: loss}
        told = {name: self._spike(name, value) for name, value in figures.items()}
        amiss = bool(told.get(LOSS))
        if not amiss:
            for name, value in figures.items():
                if math.isfinite(value):
                    self._seen.setdefault(name, deque(maxlen=self.window)).append(value)
        return Verdict("; ".join(filter(None, told.values())), amiss)

    def _spike(self, name: str, value: float) -> str:
        seen = self._seen.get(name, ())
        if not self.sigma or len(seen) < max(2, self.window // 2):
            return ""
        mean, width = _spread(seen)
        if not value > mean + self.sigma * width:
            return ""
        return f"{name} {value:.4g} is {(value - mean) / width:.3g} sigma above {mean:.4g}"

    def state_dict(self) -> dict[str, list[float]]:
        """The figures of the bands, oldest first."""
        return {name: list(values) for name, values in self._seen.items()}

    def load_state_dict(self, state: Mapping[str, list[float]]) -> None:
        """Take up what `state_dict` gave."""
        self._seen = {name: deque(values, self.window) for name, values in state.items()}


def _spread(values: deque[float] | tuple[float, ...]) -> tuple[float, float]:
    """Mean, and the width of a sigma."""
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, max(math.sqrt(variance), LEAST * abs(mean)) or math.ulp(0.0)
