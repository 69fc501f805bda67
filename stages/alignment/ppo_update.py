"""PPO's inner loop: epochs and minibatches over one batch of experience.

Each minibatch adds three gradients before its one optimizer step: the clipped surrogate, and on
request gamma times the language-modelling loss on pretraining tokens (PPO-ptx, Ouyang et al. 2022,
eq. 2), into the policy; the clipped value loss into the critic.

Every rank holds the whole batch of experience (ids and a few floats a token: small) and works on
its share of each minibatch, divided by the tokens of the whole one: minibatches are the same
whatever the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import Failure
from stages.alignment.clipped_losses import policy_loss, value_loss
from stages.alignment.experience import Experience, Targets
from stages.generation.likelihood import next_log_probs
from stages.training.step_result import EngineStep


class Learner(Protocol):
    """A module with its optimizer; `stages.training.engine.Engine` is one."""

    def __call__(self, tokens_BT: Tensor, *, at_BT: Tensor) -> Tensor:
        """Evaluate the module, with gradients."""

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """Add the gradient of this rank's part of a loss; parts of all ranks sum up. `last` marks
        the last part before a step."""

    def step(self) -> EngineStep:
        """Make one optimizer step with the gradients added so far, then reset them to zero."""


class Pretraining(Protocol):
    """The pretraining tokens of each minibatch."""

    def pieces(self, number: int) -> Sequence[Any]:
        """This rank's batches for minibatch `number`, at least one, equally many on all ranks."""

    def loss(self, model: Callable[..., Tensor], piece: Any) -> Tensor:
        """A batch's part of the mean loss over the minibatch's pretraining tokens."""


@dataclass(frozen=True)
class UpdateSettings:
    """How experience is learnt from."""

    ppo_epochs: int = 4
    num_minibatches: int = 4
    clip_range: float = 0.2
    value_clip_range: float | None = 0.2
    temperature: float = 1.0
    """Of the rollouts: log-probabilities are those of that distribution."""
    micro_batch_size: int | None = None
    """Episodes of one forward pass."""
    ptx_coef: float = 0.0
    """Weight of the pretraining loss (gamma of the paper)."""
    ratio_tolerance: float = 1e-3
    """How far from 1 the ratio may be before the first step."""


@dataclass(frozen=True)
class Share:
    """Which of the ranks this is."""

    rank: int = 0
    world: int = 1
    reduce: Callable[[Tensor], Tensor] = lambda tensor: tensor
    """Sums a tensor over the ranks."""

    def of(self, places: list[int]) -> list[int]:
        """This rank's places: every world-th."""
        return places[self.rank :: self.world]


def minibatches(episodes: int, count: int, rng: np.random.Generator) -> list[list[int]]:
    """A random partition of the episodes into `count` parts of equal size (to within one)."""
    order = rng.permutation(episodes)
    return [sorted(part.tolist()) for part in np.array_split(order, count)]


def update(
    policy: Learner,
    critic: Learner,
    experience: Experience,
    targets: Targets,
    settings: UpdateSettings,
    rng: np.random.Generator,
    *,
    share: Share = Share(),
    pretraining: Pretraining | None = None,
    heartbeat: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], list[EngineStep]]:
    """Run all epochs; return their mean metrics and all optimizer steps. `heartbeat` is called after each backward pass.

    Raises:
        Failure: the first minibatch's ratio is not 1: rollouts and training disagree about the
            policy's probabilities, and anything learnt from them would be wrong.
    """
    figures = Figures(share)
    turn = _Turn(policy, critic, experience, targets, settings, figures, heartbeat)
    updates: list[EngineStep] = []
    number = 0
    for _ in range(settings.ppo_epochs):
        for places in minibatches(len(experience), settings.num_minibatches, rng):
            turn.learn(places, share, check=number == 0, more=pretraining is not None)
            if pretraining is not None:
                turn.remember(pretraining, number)
            updates += [policy.step(), critic.step()]
            number += 1
    return figures.means(number), updates


@dataclass
class _Turn:
    """The gradients of one minibatch after the other."""

    policy: Learner
    critic: Learner
    experience: Experience
    targets: Targets
    settings: UpdateSettings
    figures: Figures
    heartbeat: Callable[[], None]

    def learn(self, places: list[int], share: Share, *, check: bool, more: bool) -> None:
        """Add the gradients of PPO over a minibatch; `more` will follow for the policy."""
        count = int(self.experience.mask[places].sum())
        parts = list(_pieces(share.of(places), self.settings.micro_batch_size))
        for number, part in enumerate(parts):
            last = number + 1 == len(parts)
            ratio_N = self._losses(part, count, last=last, more=more)
            if check:
                _assert_on_policy(ratio_N, self.settings.ratio_tolerance)
            self.heartbeat()

    def _losses(self, part: list[int], count: int, *, last: bool, more: bool) -> Tensor:
        """Both losses of some episodes, over a minibatch of `count` tokens; their ratios_N."""
        e, c = self.experience.rows(part), self.settings
        mask, length = e.mask, e.mask.shape[1]
        old, old_values = e.log_probs[mask], e.values[mask]
        advantages = self.targets.advantages[part][:, :length][mask]
        returns = self.targets.returns[part][:, :length][mask]
        log_probs = next_log_probs(self.policy, e.tokens, e.at, c.temperature)
        surrogate = policy_loss(log_probs, old, advantages, c.clip_range).sum() / count
        self.policy.backward(surrogate, last=last and not more)
        values = self.critic(e.tokens, at_BT=e.at).float()
        error = value_loss(values, old_values, returns, c.value_clip_range).sum() / count
        self.critic.backward(error, last=last)
        ratio_N = (log_probs.detach() - old).exp()
        self.figures.add("policy_loss", surrogate.detach())
        self.figures.add("value_loss", error.detach())
        self.figures.add(
            "clip_fraction", ((ratio_N - 1).abs() > c.clip_range).float().sum() / count
        )
        self.figures.add("approx_kl", (ratio_N - 1 - ratio_N.log()).sum() / count)
        return ratio_N

    def remember(self, pretraining: Pretraining, number: int) -> None:
        """Add the gradient of the pretraining loss, weighted."""
        pieces = pretraining.pieces(number)
        for place, piece in enumerate(pieces):
            loss = pretraining.loss(self.policy, piece)
            self.policy.backward(self.settings.ptx_coef * loss, last=place + 1 == len(pieces))
            self.figures.add("ptx_loss", loss.detach())
            self.heartbeat()


def _pieces(places: list[int], size: int | None) -> Iterator[list[int]]:
    for start in range(0, len(places), size or len(places) or 1):
        yield places[start : start + (size or len(places))]


def _assert_on_policy(ratio_N: Tensor, tolerance: float) -> None:
    """Before the first step the policy is the one that made the rollouts."""
    worst = (ratio_N - 1).abs().max().item()
    if not worst <= tolerance:
        raise Failure(
            f"the ratio of the first minibatch is off by {worst:.2g}, over {tolerance:g}: rollouts "
            "and training disagree about the policy's probabilities",
            remedy="sample without top-k, top-p or dropout, at the temperature that is trained",
        )


class Figures:
    """Sums of a step's figures over its pieces, then over the ranks."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self._sums: dict[str, Tensor] = {}

    def add(self, name: str, value: Tensor) -> None:
        """Add one piece's part of a figure."""
        self._sums[name] = self._sums.get(name, torch.zeros_like(value)) + value

    def means(self, count: int) -> dict[str, float]:
        """Mean over `count` minibatches, the same on every rank."""
        names = sorted(self._sums)
        sums = self.share.reduce(torch.stack([self._sums[name].float() for name in names]))
        return dict(zip(names, (sums / count).tolist(), strict=True))
