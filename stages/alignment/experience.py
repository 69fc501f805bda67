"""What a batch of rollouts leaves behind for the update.

Shapes: B episodes, T tokens (prompt and response, padded on the right), R tokens of the longest
response. Position t of `at` predicts token t + 1; the k-th marked position of a row belongs to
column k of the response-shaped tensors, so that boolean indexing of both gives the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from stages.alignment.advantages import gae, kl_estimates, token_rewards, whiten


@dataclass
class Experience:
    """Episodes with everything that was measured when they were made."""

    tokens: Tensor
    """(B, T) prompt and response."""
    at: Tensor
    """(B, T) True where the next token is the policy's."""
    mask: Tensor
    """(B, R) True for the response's own tokens."""
    finished: Tensor
    """(B) whether the response ended by itself."""
    log_probs: Tensor
    """(B, R) of the tokens under the distribution that they were drawn from."""
    reference: Tensor
    """(B, R) under the frozen reference."""
    values: Tensor
    """(B, R) the critic's, before each token."""
    scores: Tensor
    """(B) the reward model's."""

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, places: Tensor | Sequence[int]) -> Experience:
        """Some of the episodes, cut to the longest of them."""
        index = torch.as_tensor(places, dtype=torch.long, device=self.tokens.device)
        taken = {field.name: getattr(self, field.name)[index] for field in fields(self)}
        length = int(taken["mask"].sum(1).max())
        width = int(_ends(taken["at"]).max()) + 1
        cut = {"tokens": width, "at": width}
        return replace(
            self,
            **{
                name: value[:, : cut.get(name, length)] if value.ndim == 2 else value
                for name, value in taken.items()
            },
        )

    def kl(self) -> Tensor:
        """(B) the k1 estimate of each response's KL to the reference, in nats."""
        k1 = kl_estimates(self.log_probs, self.reference).k1
        return torch.where(self.mask, k1, 0.0).sum(1)


@dataclass
class Targets:
    """What the update learns from, (B, R) each."""

    advantages: Tensor
    """Whitened over the whole batch."""
    returns: Tensor
    """What the critic should have said."""


def _ends(at_BT: Tensor) -> Tensor:
    """Place_B of the last response token: one after the last marked position."""
    index_T = torch.arange(at_BT.shape[1], device=at_BT.device)
    return torch.where(at_BT, index_T, -1).max(1).values + 1


def mark(prompt_lengths: Sequence[int], mask_BR: Tensor, width: int) -> Tensor:
    """at_BT for responses that follow prompts of these lengths in rows of `width` tokens."""
    starts_B = torch.tensor(prompt_lengths, device=mask_BR.device) - 1
    index_T = torch.arange(width, device=mask_BR.device)[None]
    return (index_T >= starts_B[:, None]) & (index_T < (starts_B + mask_BR.sum(1))[:, None])


def spread(values_N: Tensor, mask_BR: Tensor) -> Tensor:
    """Values in row-major order of the mask -> (B, R), 0 where there is no token."""
    return torch.zeros(mask_BR.shape, device=mask_BR.device).masked_scatter(
        mask_BR, values_N.float()
    )


def shaped_scores(experience: Experience, missing_eos_penalty: float = 0.0) -> Tensor:
    """(B) scores as they enter the reward: less for a response that did not end."""
    return experience.scores - missing_eos_penalty * (~experience.finished).float()


def targets(
    experience: Experience,
    *,
    beta: float,
    gamma: float = 1.0,
    gae_lambda: float = 0.95,
    missing_eos_penalty: float = 0.0,
) -> Targets:
    """Advantages and returns of a whole batch."""
    e = experience
    scores_B = shaped_scores(e, missing_eos_penalty)
    rewards = token_rewards(scores_B, e.log_probs, e.reference, e.mask, beta)
    advantages = gae(rewards, e.values, e.mask, gamma=gamma, gae_lambda=gae_lambda)
    return Targets(whiten(advantages, e.mask), torch.where(e.mask, advantages + e.values, 0.0))
