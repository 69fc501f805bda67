"""What holds the policy near the reference: the coefficient of the KL penalty."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class FixedKL:
    """A coefficient that stays."""

    def __init__(self, beta: float) -> None:
        self.beta = beta

    def update(self, kl: float, episodes: int) -> None:
        """Take note of a batch's KL: nothing follows."""

    def state_dict(self) -> dict[str, Any]:
        """The coefficient."""
        return {"beta": self.beta}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up the coefficient."""
        self.beta = float(state["beta"])


class AdaptiveKL(FixedKL):
    """A coefficient that steers the KL of a response to a target (Ziegler et al. 2019, sec. 2.2).

    error = clip(kl / target - 1, -0.2, 0.2); beta <- beta (1 + error episodes / horizon).
    """

    def __init__(self, beta: float, target: float, horizon: float = 10_000) -> None:
        super().__init__(beta)
        self.target = target
        self.horizon = horizon

    def update(self, kl: float, episodes: int) -> None:
        """Move the coefficient after a batch: `kl` in nats a response, mean over `episodes`."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.beta *= 1 + error * episodes / self.horizon
