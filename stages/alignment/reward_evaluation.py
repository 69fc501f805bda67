"""Evaluation of a reward model: its scores against held-out rankings, and mean scores."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.errors import InputError
from stages.alignment.encoded_rankings import EncodedRanking, collate_rankings
from stages.alignment.ranking_loss import NO_RESPONSE
from stages.alignment.ranking_statistics import (
    Estimate,
    ReliabilityBin,
    calibration_error,
    estimate_by_length,
    estimate_by_margin,
    estimate_by_ranks,
    estimate_mean,
    length_correlations,
    pair_responses,
    reliability,
)
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

    accuracy: Estimate
    """Fraction of pairs that it orders as the annotators did."""
    longer_accuracy: Estimate
    """Fraction of pairs whose better response is the longer one: what length alone reaches."""
    longer_preferred: Estimate
    """Fraction of pairs whose longer response it scores higher."""
    margin: float
    """Mean score difference of a pair, better minus worse."""
    prompts: int
    by_ranks: dict[tuple[int, int], Estimate]
    """(better, worse) rank -> accuracy."""
    by_margin: dict[str, Estimate]
    """Distance of the two scores -> accuracy."""
    by_length: dict[str, Estimate]
    """Length of the better response less that of the worse one -> accuracy."""
    reliability: list[ReliabilityBin]
    length_correlation: float | None
    """Pearson's correlation of score and length among the responses to a prompt."""
    length_rank_correlation: float | None
    """The same by Spearman."""
    scores_by_rank: dict[int, list[float]]
    """Rank -> scores of the responses with that rank."""
    demonstration_score: float
    """Mean score of the best responses: near 0 if the centring generalises."""

    @property
    def calibration_error(self) -> float:
        """Expected calibration error over pairs."""
        return calibration_error(self.reliability)


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
    """Compare the scores of a reward model with the ranks; call `heartbeat` after each batch.

    Raises:
        InputError: a score is not a finite number.
    """
    by_rank: dict[int, list[float]] = defaultdict(list)
    scores: list[list[float]] = []
    for start in range(0, len(rankings), batch):
        part = rankings[start : start + batch]
        on_device = {key: value.to(device) for key, value in collate_rankings(part).items()}
        rows = score_responses(scorer, on_device).tolist()
        if not all(math.isfinite(score) for row in rows for score in row):
            raise InputError(
                "the reward model gives scores that are not finite numbers",
                remedy="train it again with a lower learning rate",
            )
        scores += [row[: len(r.ranks)] for r, row in zip(part, rows, strict=True)]
        heartbeat()
    for ranking, row in zip(rankings, scores, strict=True):
        for rank, score in zip(ranking.ranks, row, strict=True):
            by_rank[rank].append(score)
    # The prompt is the same for all responses of a ranking, so it leaves no trace in differences.
    lengths = [[len(tokens) for tokens in ranking.rows] for ranking in rankings]
    pairs = pair_responses(list(zip([r.ranks for r in rankings], scores, lengths, strict=True)))
    pearson, spearman = length_correlations(scores, lengths)
    unequal = pairs.longer != 0
    best = [row[ranking.best] for ranking, row in zip(rankings, scores, strict=True)]
    return RewardEvaluation(
        accuracy=estimate_mean(pairs.correct, pairs.prompts),
        longer_accuracy=estimate_mean(pairs.longer_wins, pairs.prompts),
        longer_preferred=estimate_mean(pairs.longer_preferred[unequal], pairs.prompts[unequal]),
        margin=float(pairs.differences.mean()),
        prompts=len(rankings),
        by_ranks=estimate_by_ranks(pairs),
        by_margin=estimate_by_margin(pairs),
        by_length=estimate_by_length(pairs),
        reliability=reliability(pairs),
        length_correlation=pearson,
        length_rank_correlation=spearman,
        scores_by_rank=dict(sorted(by_rank.items())),
        demonstration_score=sum(best) / len(best),
    )
