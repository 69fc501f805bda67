"""Controllers of the coefficient of the KL penalty, which keeps the policy near the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class FixedKLController:
    """A constant coefficient."""

    def __init__(self, kl_coef: float) -> None:
        self.kl_coef = kl_coef

    def update(self, kl: float, episodes: int) -> None:
        """Ignore the KL of a batch."""

    def state_dict(self) -> dict[str, Any]:
        """Return the coefficient."""
        return {"beta": self.kl_coef}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the coefficient."""
        self.kl_coef = float(state["beta"])


class AdaptiveKLController(FixedKLController):
    """A coefficient that steers the KL of a response to a target (Ziegler et al. 2019, sec. 2.2).

    error = clip(kl / target - 1, -0.2, 0.2); beta <- beta (1 + error episodes / horizon).
    """

    def __init__(self, kl_coef: float, target: float, horizon: float = 10_000) -> None:
        super().__init__(kl_coef)
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, episodes: int) -> None:
        """Adapt the coefficient to a batch: `kl` in nats per response, mean over `episodes`."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.kl_coef *= 1 + error * episodes / self.horizon
