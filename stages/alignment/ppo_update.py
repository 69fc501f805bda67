"""PPO updates: several passes over minibatches of one batch of experience.

The losses per token are the clipped surrogate (Schulman et al. 2017, eq. 7) and the clipped value
error of the code of that paper. Gradients accumulate:

    for each pass, for each minibatch:
        policy <- its clipped surrogate, micro-batch by micro-batch, plus the pretraining loss
        critic <- its clipped squared error
        one step of each

Every rank holds the whole batch of experience (ids and a few floats per token) and works on its
slice of each minibatch. All losses are divided by the tokens of the whole minibatch, so that the
minibatches are the same at any number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import Failure
from stages.alignment.experience import Experience, Targets
from stages.generation.likelihood import next_log_probs
from stages.training.ranks.rank import Rank
from stages.training.step_result import EngineStep


class OptimizedModel(Protocol):
    """A module with its optimizer; `stages.training.engine.Engine` is one."""

    def __call__(self, tokens_BT: Tensor, *, position_mask_BT: Tensor) -> Tensor:
        """Evaluate the module, with gradients."""

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """Add the gradient of this rank's part of a loss; the parts of all ranks are summed. `last`
        marks the last part before a step."""

    def step(self) -> EngineStep:
        """Make one optimizer step with the gradients added so far, then reset them to zero."""


class PtxBatches(Protocol):
    """Pretraining tokens of each minibatch."""

    def pieces(self, number: int) -> Sequence[Any]:
        """Return this rank's batches for minibatch `number`: at least one, and equally many on all
        ranks."""

    def loss(self, model: Callable[..., Tensor], piece: Any) -> Tensor:
        """Return a batch's part of the mean loss over the pretraining tokens of the minibatch."""


@dataclass(frozen=True)
class UpdateSettings:
    """Settings of the PPO updates on one batch of experience."""

    ppo_epochs: int = 4
    num_minibatches: int = 4
    clip_range: float = 0.2
    value_clip_range: float | None = 0.2
    temperature: float = 1.0
    """Sampling temperature of the rollouts, to which log-probabilities refer."""
    micro_batch_size: int | None = None
    """Episodes per forward pass. Default: all of this rank's."""
    ptx_coef: float = 0.0
    """Coefficient of the pretraining loss (gamma in Ouyang et al. 2022)."""
    ratio_tolerance: float = 1e-3
    """Largest deviation of the ratio from 1 before the first step."""


def policy_loss(
    log_probs: Tensor, old: Tensor, advantages: Tensor, clip_range: float = 0.2
) -> Tensor:
    """Return the clipped surrogate of each token: -min(ratio A, clip(ratio, 1 - c, 1 + c) A)."""
    ratio = (log_probs - old).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -torch.minimum(ratio * advantages, clipped * advantages)


def value_loss(
    values: Tensor, old: Tensor, returns: Tensor, clip_range: float | None = 0.2
) -> Tensor:
    """Return half the squared error of each token: the larger one of the value, and of the value
    clipped to within `clip_range` of the old one."""
    error = (values - returns).square()
    if clip_range is not None:
        near = old + (values - old).clamp(-clip_range, clip_range)
        error = torch.maximum(error, (near - returns).square())
    return 0.5 * error


def minibatches(episodes: int, count: int, rng: np.random.Generator) -> list[list[int]]:
    """Return a random partition of the episodes into `count` parts of equal size (to within
    one)."""
    order = rng.permutation(episodes)
    return [sorted(part.tolist()) for part in np.array_split(order, count)]


def update_policy(
    policy: OptimizedModel,
    critic: OptimizedModel,
    experience: Experience,
    targets: Targets,
    settings: UpdateSettings,
    rng: np.random.Generator,
    *,
    rank: Rank | None = None,
    pretraining: PtxBatches | None = None,
    heartbeat: Callable[[], None] = lambda: None,
) -> tuple[dict[str, float], list[EngineStep]]:
    """Run all passes; return the mean metrics, the same on every rank, and all optimizer steps.

    `heartbeat` is called after each backward pass.

    Raises:
        Failure: the first ratio is not 1: rollouts and training disagree about the probabilities of
            the policy, and an update on them would be wrong.
    """
    rank = rank or Rank()
    updates: list[EngineStep] = []
    step = PPOStep(policy, critic, experience, targets, settings, heartbeat)
    number = 0
    for _ in range(settings.ppo_epochs):
        for episodes in minibatches(len(experience), settings.num_minibatches, rng):
            mine = episodes[rank.index :: rank.world]
            tokens = int(experience.mask[episodes].sum())
            step.backward_ppo(mine, tokens, check=number == 0, more=pretraining is not None)
            if pretraining is not None:
                step.backward_ptx(pretraining, number)
            updates += [policy.step(), critic.step()]
            number += 1
    names = sorted(step.sums)
    sums = rank.all_reduce_sum(torch.stack([step.sums[name].float() for name in names]))
    return dict(zip(names, (sums / number).tolist(), strict=True)), updates


@dataclass
class PPOStep:
    """Gradients of one minibatch after the other, with the sums of their metrics."""

    policy: OptimizedModel
    critic: OptimizedModel
    experience: Experience
    targets: Targets
    settings: UpdateSettings
    heartbeat: Callable[[], None]
    sums: dict[str, Tensor] = field(default_factory=dict)
    """Metrics by name, summed over all minibatches of this rank."""

    def backward_ppo(self, episodes: list[int], tokens: int, *, check: bool, more: bool) -> None:
        """Add the gradients of the PPO losses of this rank's episodes, over a minibatch of `tokens`
        tokens. With `more`, another loss of the policy follows; with `check`, the ratio must be
        1."""
        parts = list(_split(episodes, self.settings.micro_batch_size))
        for number, part in enumerate(parts):
            last = number + 1 == len(parts)
            ratio_N = self._backward(part, tokens, last=last, more=more)
            if check:
                _assert_on_policy(ratio_N, self.settings.ratio_tolerance)
            self.heartbeat()

    def _backward(self, part: list[int], tokens: int, *, last: bool, more: bool) -> Tensor:
        """Add the gradients of both losses of some episodes, and return their ratios_N."""
        e, c = self.experience.rows(part), self.settings
        mask, length = e.mask, e.mask.shape[1]
        old, old_values = e.log_probs[mask], e.values[mask]
        advantages = self.targets.advantages[part][:, :length][mask]
        returns = self.targets.returns[part][:, :length][mask]
        log_probs = next_log_probs(self.policy, e.tokens, e.position_mask, c.temperature)
        surrogate = policy_loss(log_probs, old, advantages, c.clip_range).sum() / tokens
        self.policy.backward(surrogate, last=last and not more)
        values = self.critic(e.tokens, position_mask_BT=e.position_mask).float()
        error = value_loss(values, old_values, returns, c.value_clip_range).sum() / tokens
        self.critic.backward(error, last=last)
        ratio_N = (log_probs.detach() - old).exp()
        clipped = (ratio_N - 1).abs() > c.clip_range
        self._add("policy_loss", surrogate.detach())
        self._add("value_loss", error.detach())
        self._add("clip_fraction", clipped.float().sum() / tokens)
        self._add("approx_kl", (ratio_N - 1 - ratio_N.log()).sum() / tokens)
        return ratio_N

    def backward_ptx(self, pretraining: PtxBatches, number: int) -> None:
        """Add the gradient of the pretraining loss of minibatch `number`, times its coefficient."""
        pieces = pretraining.pieces(number)
        for place, piece in enumerate(pieces):
            loss = pretraining.loss(self.policy, piece)
            self.policy.backward(self.settings.ptx_coef * loss, last=place + 1 == len(pieces))
            self._add("ptx_loss", loss.detach())
            self.heartbeat()

    def _add(self, name: str, value: Tensor) -> None:
        self.sums[name] = self.sums.get(name, torch.zeros_like(value)) + value


def _split(episodes: list[int], size: int | None) -> Iterator[list[int]]:
    for start in range(0, len(episodes), size or len(episodes) or 1):
        yield episodes[start : start + (size or len(episodes))]


def _assert_on_policy(ratio_N: Tensor, tolerance: float) -> None:
    """Check that before the first step the policy is the one that generated the rollouts."""
    worst = (ratio_N - 1).abs().max().item()
    if not worst <= tolerance:
        raise Failure(
            f"the ratio of the first minibatch is off by {worst:.2g}, over {tolerance:g}: rollouts "
            "and training disagree about the probabilities of the policy",
            remedy="sample without top-k, top-p or dropout, at the temperature that is trained",
        )
