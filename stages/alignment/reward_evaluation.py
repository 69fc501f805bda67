"""Evaluation of a reward model: accuracy and margin on held-out rankings, mean scores."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stages.alignment.encoded_rankings import EncodedRanking, collate_rankings
from stages.alignment.ranking_loss import NO_RESPONSE
from stages.distributed.cancellation_point import CancellationPoint
from stages.generation.likelihood import pad_right
from stages.models.language_model import ForwardOutputs
from stages.models.model_io import load_reward_model
from stages.models.reward_head import RewardModel

if TYPE_CHECKING:
    from stages.training.ranks.rank import Rank


@dataclass(frozen=True)
class RewardEvaluation:
    """Agreement of a reward model with held-out rankings."""

    accuracy: float
    """Fraction of pairs that it orders as the annotators did."""
    margin: float
    """Mean score difference of a pair, better minus worse."""
    prompts: int
    by_pair: dict[tuple[int, int], tuple[float, int]]
    """(better, worse) rank -> accuracy and number of pairs."""
    scores_by_rank: dict[int, list[float]]
    """Rank -> scores of the responses with that rank."""
    demonstration_score: float
    """Mean score of the best responses: near 0 if the centring generalises."""


def score_responses(
    model: Callable[..., Any], batch: Mapping[str, Tensor], outputs: ForwardOutputs | None = None
) -> Tensor:
    """Return scores_PK of a batch by one forward pass per response, 0 where a response is missing.
    `outputs` receives the routing of experts."""
    scores_N = model(
        batch["tokens"],
        position_mask_BT=batch["position_mask"],
        token_mask_BT=batch["token_mask"],
        outputs=outputs,
    ).float()
    real_PK = batch["ranks"] != NO_RESPONSE
    return torch.zeros_like(real_PK, dtype=scores_N.dtype).masked_scatter(real_PK, scores_N)


@torch.inference_mode()
def mean_score(
    scorer: RewardModel,
    rows: Sequence[Sequence[int]],
    device: torch.device | str = "cpu",
    batch: int = 64,
    heartbeat: Callable[[], None] = lambda: None,
) -> float:
    """Return the mean score of sequences, each read at its last token. `heartbeat` is called after
    each batch."""
    total = 0.0
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        tokens_BT = pad_right(part, 0, device)
        last_B = torch.tensor([len(row) - 1 for row in part], device=device)
        places_T = torch.arange(tokens_BT.shape[1], device=device)
        scores_BT = scorer(tokens_BT, token_mask_BT=places_T <= last_B[:, None])
        total += scores_BT.gather(1, last_B[:, None]).double().sum().item()
        heartbeat()
    return total / len(rows)


def evaluate_folder(
    rank: Rank, folder: Path, held_out: Sequence[EncodedRanking]
) -> RewardEvaluation | None:
    """Evaluate a reward model folder on rank 0; return None on the others, and without held-out
    rankings."""
    if not rank.is_main or not held_out:
        return None
    scorer = load_reward_model(folder).to(rank.device)
    return evaluate_rankings(scorer, held_out, rank.device, heartbeat=CancellationPoint(rank))


@torch.inference_mode()
def evaluate_rankings(
    scorer: RewardModel,
    rankings: Sequence[EncodedRanking],
    device: torch.device | str = "cpu",
    batch: int = 16,
    heartbeat: Callable[[], None] = lambda: None,
) -> RewardEvaluation:
    """Compare the scores of a reward model with the ranks; call `heartbeat` after each batch."""
    differences: dict[tuple[int, int], list[float]] = defaultdict(list)
    by_rank: dict[int, list[float]] = defaultdict(list)
    best = []
    for start in range(0, len(rankings), batch):
        part = rankings[start : start + batch]
        on_device = {key: value.to(device) for key, value in collate_rankings(part).items()}
        for ranking, scores in zip(part, score_responses(scorer, on_device).tolist(), strict=True):
            for ranks, difference in _ordered_pairs(ranking.ranks, scores):
                differences[ranks].append(difference)
            for rank, score in zip(ranking.ranks, scores, strict=False):
                by_rank[rank].append(score)
            best.append(scores[ranking.best])
        heartbeat()
    every = [difference for found in differences.values() for difference in found]
    return RewardEvaluation(
        accuracy=_accuracy(every),
        margin=sum(every) / len(every),
        prompts=len(rankings),
        by_pair={key: (_accuracy(found), len(found)) for key, found in sorted(differences.items())},
        scores_by_rank=dict(sorted(by_rank.items())),
        demonstration_score=sum(best) / len(best),
    )


def _ordered_pairs(
    ranks: Sequence[int], scores: Sequence[float]
) -> Iterator[tuple[tuple[int, int], float]]:
    """Yield the ranks and the score difference of each pair, better first."""
    for i, better in enumerate(ranks):
        for j, worse in enumerate(ranks):
            if better < worse:
                yield (better, worse), scores[i] - scores[j]


def _accuracy(differences: Sequence[float]) -> float:
    return sum(d > 0 or 0.5 * (d == 0) for d in differences) / len(differences)
