"""Rollouts: sampled responses, scored by reference, reward model and critic."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from stages.alignment.experience import Experience, mark_responses, scatter_to_responses
from stages.generation.likelihood import PositionModel, next_log_probs, pad_right
from stages.generation.sampling import (
    GenerativeModel,
    Responses,
    SamplingParams,
    length_sorted_batches,
    sample,
)

ScoreFunction = Callable[[Tensor, Tensor], Tensor]
"""(tokens_BT, index_B of the last token) -> scores_B of whole responses."""


@dataclass(frozen=True)
class RolloutModels:
    """Models of a rollout, all in evaluation mode."""

    policy: GenerativeModel
    reference: PositionModel
    critic: PositionModel
    score: ScoreFunction


@dataclass(frozen=True)
class RolloutSettings:
    """Settings of rollouts."""

    decoding: SamplingParams
    end_ids: tuple[int, ...]
    """Tokens that end a response."""
    pad_id: int
    seed: int = 0
    batch: int = 64
    """Episodes that are decoded, and then scored, at once."""
    device: str = "cpu"


@torch.no_grad()
def generate_rollouts(
    models: RolloutModels,
    prompts: Sequence[Sequence[int]],
    indices: Sequence[int],
    settings: RolloutSettings,
    heartbeat: Callable[[], None] = lambda: None,
) -> Experience:
    """Return one episode per prompt, in the order given.

    `indices` number the episodes of the whole run: with the seed, they fix the random draws.
    `heartbeat` is called after each batch.
    """
    parts = []
    order: list[int] = []
    for places in length_sorted_batches(prompts, settings.batch):
        chosen = [prompts[place] for place in places]
        drawn = sample(
            models.policy,
            chosen,
            settings.decoding,
            end_ids=settings.end_ids,
            pad_id=settings.pad_id,
            seed=settings.seed,
            indices=[indices[place] for place in places],
            device=settings.device,
        )
        parts.append(_score_responses(models, chosen, drawn, settings))
        order += places
        heartbeat()
    return concatenate(parts, settings.pad_id).rows(torch.tensor(order).argsort())


def _score_responses(
    models: RolloutModels,
    prompts: Sequence[Sequence[int]],
    drawn: Responses,
    settings: RolloutSettings,
) -> Experience:
    """Return sampled responses with reference, values and scores, each by one forward pass."""
    lengths = drawn.mask.sum(1).tolist()
    rows = [
        [*prompt, *drawn_ids[:length]]
        for prompt, drawn_ids, length in zip(prompts, drawn.tokens.tolist(), lengths, strict=True)
    ]
    tokens_BT = pad_right(rows, settings.pad_id, settings.device)
    mask_BR = drawn.mask.clone()  # tensors of inference mode cannot be saved for a backward pass
    position_mask_BT = mark_responses(
        [len(prompt) for prompt in prompts], mask_BR, tokens_BT.shape[1]
    )
    reference_N = next_log_probs(
        models.reference, tokens_BT, position_mask_BT, settings.decoding.temperature
    )
    last_B = torch.tensor([len(row) - 1 for row in rows], device=tokens_BT.device)
    return Experience(
        tokens=tokens_BT,
        position_mask=position_mask_BT,
        mask=mask_BR,
        finished=drawn.finished.clone(),
        log_probs=drawn.log_probs.clone(),
        reference=scatter_to_responses(reference_N, mask_BR),
        values=scatter_to_responses(
            models.critic(tokens_BT, position_mask_BT=position_mask_BT), mask_BR
        ),
        scores=models.score(tokens_BT, last_B).float(),
    )


def score_at_end(
    scorer: PositionModel, end_id: int, closing_ids: Sequence[int] = ()
) -> ScoreFunction:
    """Return a function that reads a reward model at the end of the response, the only position
    where it was trained.

    The last token of a response, truncated or ended by another end token, is replaced by the end
    token, and followed by what the chat template writes after it. At other tokens the output of a
    reward model is meaningless, and a policy would exploit it by never ending.
    """

    def score(tokens_BT: Tensor, last_B: Tensor) -> Tensor:
        end_E = torch.tensor([end_id, *closing_ids], device=tokens_BT.device)
        longer_BT = F.pad(tokens_BT, (0, len(closing_ids)))
        places_BE = last_B[:, None] + torch.arange(len(end_E), device=tokens_BT.device)
        return scorer(
            longer_BT.scatter(1, places_BE, end_E.expand(len(places_BE), -1)),
            position_mask_BT=F.one_hot(places_BE[:, -1], longer_BT.shape[1]).bool(),
        )

    return score


def concatenate(parts: Sequence[Experience], pad_id: int) -> Experience:
    """Return batches of experience as one."""
    width = max(part.tokens.shape[1] for part in parts)
    length = max(part.mask.shape[1] for part in parts)
    padded = [pad_to(part, width, length, pad_id) for part in parts]
    names = [field.name for field in fields(Experience)]
    return Experience(**{name: torch.cat([getattr(p, name) for p in padded]) for name in names})


def pad_to(part: Experience, width: int, length: int, pad_id: int) -> Experience:
    """Return experience padded to rows of `width` tokens and responses of `length`."""

    def pad(name: str, value: Tensor) -> Tensor:
        if value.ndim == 1:
            return value
        target = width if name in ("tokens", "position_mask") else length
        return F.pad(value, (0, target - value.shape[1]), value=pad_id if name == "tokens" else 0)

    values = {field.name: getattr(part, field.name) for field in fields(part)}
    return replace(part, **{name: pad(name, value) for name, value in values.items()})
