"""Experience: a batch of rollouts with everything that the PPO update needs.

Shapes: B episodes, T tokens (prompt and response, padded on the right), R tokens of the longest
response. Position t of `position_mask` predicts token t + 1; the k-th marked position of a row
belongs to column k of the response-shaped tensors, so that boolean indexing of both gives the same
order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from stages.alignment.advantages import gae, kl_estimates, token_rewards, whiten


@dataclass
class Experience:
    """Episodes with the log-probabilities, values and scores at the time of the rollout."""

    tokens: Tensor
    """(B, T) prompt and response."""
    position_mask: Tensor
    """(B, T) True where the policy sampled the next token."""
    mask: Tensor
    """(B, R) True for tokens of the response."""
    finished: Tensor
    """(B) True if the response ended with the end token."""
    log_probs: Tensor
    """(B, R) log-probabilities under the distribution that the tokens were sampled from."""
    reference: Tensor
    """(B, R) log-probabilities under the frozen reference."""
    values: Tensor
    """(B, R) values of the critic before each token."""
    scores: Tensor
    """(B) scores of the reward model."""

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, places: Tensor | Sequence[int]) -> Experience:
        """Return some of the episodes, cut to the longest of them."""
        index = torch.as_tensor(places, dtype=torch.long, device=self.tokens.device)
        taken = {field.name: getattr(self, field.name)[index] for field in fields(self)}
        length = int(taken["mask"].sum(1).max())
        width = int(_ends(taken["position_mask"]).max()) + 1
        cut = {"tokens": width, "position_mask": width}
        return replace(
            self,
            **{
                name: value[:, : cut.get(name, length)] if value.ndim == 2 else value
                for name, value in taken.items()
            },
        )

    def kl(self) -> Tensor:
        """Return the k1 estimate of the KL of each response to the reference, in nats: (B)."""
        k1 = kl_estimates(self.log_probs, self.reference).k1
        return torch.where(self.mask, k1, 0.0).sum(1)


@dataclass
class Targets:
    """Regression targets of the update, (B, R) each."""

    advantages: Tensor
    """Whitened over the whole batch."""
    returns: Tensor
    """Targets of the critic."""


def _ends(position_mask_BT: Tensor) -> Tensor:
    """Return index_B of the last response token: one after the last marked position."""
    index_T = torch.arange(position_mask_BT.shape[1], device=position_mask_BT.device)
    return torch.where(position_mask_BT, index_T, -1).max(1).values + 1


def mark_responses(prompt_lengths: Sequence[int], mask_BR: Tensor, width: int) -> Tensor:
    """Return position_mask_BT of responses that follow prompts of these lengths in rows of `width`
    tokens."""
    starts_B = torch.tensor(prompt_lengths, device=mask_BR.device) - 1
    index_T = torch.arange(width, device=mask_BR.device)[None]
    return (index_T >= starts_B[:, None]) & (index_T < (starts_B + mask_BR.sum(1))[:, None])


def scatter_to_responses(values_N: Tensor, mask_BR: Tensor) -> Tensor:
    """Return values, given in row-major order of the mask, as (B, R), 0 where there is no token."""
    return torch.zeros(mask_BR.shape, device=mask_BR.device).masked_scatter(
        mask_BR, values_N.float()
    )


def shaped_scores(experience: Experience, missing_eos_penalty: float = 0.0) -> Tensor:
    """Return scores_B as they enter the reward: less for a response that did not end."""
    return experience.scores - missing_eos_penalty * (~experience.finished).float()


def compute_targets(
    experience: Experience,
    *,
    beta: float,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
    missing_eos_penalty: float = 0.0,
) -> Targets:
    """Return advantages and returns of a whole batch."""
    e = experience
    scores_B = shaped_scores(e, missing_eos_penalty)
    rewards = token_rewards(scores_B, e.log_probs, e.reference, e.mask, beta)
    advantages = gae(rewards, e.values, e.mask, gamma=gamma, gae_lambda=gae_lambda)
    return Targets(whiten(advantages, e.mask), torch.where(e.mask, advantages + e.values, 0.0))


def rollout_metrics(batch: Experience) -> dict[str, float]:
    """Return metrics of a batch of episodes as means over episodes: `kl` in nats per response, and
    `kl_k3`, another estimate of it that is never negative; `entropy` in nats per token."""
    k3 = kl_estimates(batch.log_probs, batch.reference).k3
    lengths = batch.mask.sum(1).float()
    return {
        "reward": batch.scores.mean().item(),
        "reward_std": batch.scores.std(correction=0).item(),
        "kl": batch.kl().mean().item(),
        "kl_k3": torch.where(batch.mask, k3, 0.0).sum(1).mean().item(),
        "length": lengths.mean().item(),
        "finished": batch.finished.float().mean().item(),
        "entropy": -(batch.log_probs.sum() / lengths.sum()).item(),
    }
