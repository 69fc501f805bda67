"""Training a reward model on rankings, and what it is worth afterwards."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from pipeline.errors import InputError
from stages.alignment.ranking_loss import NO_RESPONSE, compare, kwise_loss
from stages.data.chat_template import encode_response
from stages.data.preference_dataset import Preference, Preferences
from stages.data.tokenizers.sentencepiece_tokenizer import PAD, Tokenizer
from stages.distributed.cancellation_point import Pause
from stages.generation.likelihood import pad_right
from stages.models.gpt2.modeling_gpt2 import GPT
from stages.models.hf_export import load_language_model, load_reward_model, save_reward_model
from stages.models.reward_head import RewardModel
from stages.training.data_order import Shuffled, mix
from stages.training.objective import Batch, Loss, SupervisedObjective, Trainable

if TYPE_CHECKING:
    from stages.training.engine import Engine
    from stages.training.ranks.rank import Rank


@dataclass(frozen=True)
class Ranking:
    """K tokenised responses, prompts included, with their ranks."""

    rows: tuple[tuple[int, ...], ...]
    ranks: tuple[int, ...]

    def __len__(self) -> int:
        return max(len(row) for row in self.rows)

    @property
    def best(self) -> int:
        """Which response people put first."""
        return self.ranks.index(min(self.ranks))


def read_rankings(path: Path, split: str, tokenizer: Tokenizer, context: int) -> list[Ranking]:
    """The rankings of a split; those with a response that does not fit the context are left out,
    for a reward is read at the end token.

    Raises:
        InputError: none is left.
    """
    every = [_encode(tokenizer, preference) for preference in Preferences(path, split)]
    fitting = [ranking for ranking in every if len(ranking) <= context]
    if not fitting:
        raise InputError(
            f"none of {len(every)} {split} preferences fits a context of {context} tokens",
            where=str(path),
            remedy="lengthen model.context, or shorten the responses",
        )
    return fitting


def _encode(tokenizer: Tokenizer, preference: Preference) -> Ranking:
    rows = (encode_response(tokenizer, preference.prompt, text) for text in preference.responses)
    return Ranking(tuple(tuple(row.ids.tolist()) for row in rows), preference.ranks)


def collate_rankings(rankings: Sequence[Ranking]) -> dict[str, Tensor]:
    """Rankings -> tokens_NT of all responses, `at` their last tokens, ranks_PK padded."""
    rows = [row for ranking in rankings for row in ranking.rows]
    tokens_NT = pad_right(rows, PAD)
    at_NT = torch.zeros_like(tokens_NT, dtype=torch.bool)
    at_NT[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])] = True
    most = max(len(ranking.ranks) for ranking in rankings)
    ranks = [[*r.ranks, *[NO_RESPONSE] * (most - len(r.ranks))] for r in rankings]
    return {"tokens": tokens_NT, "at": at_NT, "ranks": torch.tensor(ranks)}


def scores_of(model: Callable[..., Any], batch: Mapping[str, Tensor]) -> Tensor:
    """Scores_PK of a batch by one forward pass a response; 0 where there is no response."""
    scores_N = model(batch["tokens"], at_BT=batch["at"]).float()
    real_PK = batch["ranks"] != NO_RESPONSE
    return torch.zeros_like(real_PK, dtype=scores_N.dtype).masked_scatter(real_PK, scores_N)


@dataclass
class RewardObjective(SupervisedObjective):
    """K-wise ranking on the body of a language model."""

    model: Path
    preferences: Path
    dropout: float = 0.0
    centering_samples: int = 512

    ragged = True

    def open(self, rank: Rank) -> dict[str, Trainable]:
        """Read the rankings; put a fresh score head on the language model."""
        body = load_language_model(self.model, dropout=self.dropout)
        if not isinstance(body, GPT):
            raise InputError(
                f"a reward model is read from GPT-2, not from a {type(body).__name__}",
                where=str(self.model),
                remedy="train it from a model of family gpt2",
            )
        tokenizer, context = Tokenizer(self.model), body.config.context_length
        rankings = read_rankings(self.preferences, "train", tokenizer, context)
        self.train = Shuffled(rankings, mix(self.seed, 1))
        # In the order of the first epoch, so that the first of them are a sample of all.
        self.rankings = [self.train[i] for i in range(len(rankings))]
        self.held_out = read_rankings(self.preferences, "eval", tokenizer, context)
        self.flops_per_token = float(body.config.flops_per_token)
        return {"model": Trainable(RewardModel(body))}

    def collate(self, samples: Sequence[Ranking]) -> Batch:
        """See `collate_rankings`."""
        return collate_rankings(samples)

    def weight(self, batch: Batch) -> float:
        """Prompts: each counts the same, however many responses it has."""
        return float(len(batch["ranks"]))

    def tokens(self, batch: Batch) -> float:
        """Positions that are computed."""
        return float(batch["tokens"].numel())

    def loss(self, model: Callable[..., Any], batch: Batch) -> Loss:
        """The K-wise loss, and the share of pairs that are ordered right."""
        scores_PK = scores_of(model, batch)
        found = compare(scores_PK.detach(), batch["ranks"])
        pairs_P = found.pairs.clamp(min=1)
        return Loss(
            kwise_loss(scores_PK, batch["ranks"]).sum(),
            {
                "accuracy": (found.right / pairs_P).sum(),
                "margin": (found.margin / pairs_P).sum(),
            },
        )

    def export(self, engines: Mapping[str, Engine], out: Path) -> None:
        """Centre the scores on the demonstrations (the best responses), then write the folder.

        Ouyang et al. 2022, appendix C.2: the mean score of demonstrations is 0 before RL. They
        are scored by a copy: a forward pass of the trained module may gather its weights, which
        takes all ranks, and this is one.
        """
        scorer = copied(engines["model"].module).to(self.rank.device).eval()
        best = [demonstration(ranking) for ranking in self.rankings[: self.centering_samples]]
        scorer.add_bias(-mean_score(scorer, best, self.rank.device, beat=self.rank.beat))
        save_reward_model(scorer, out, self.model, card=_CARD)


def copied(trained: Any) -> RewardModel:
    """A scorer of the same weights in float32 that nobody else has a hand on."""
    scorer = RewardModel(GPT(trained.body.config))
    scorer.load_state_dict(trained.state_dict())
    return scorer


_CARD = """# Reward model

Scores a response to a prompt (chat format, read at its `</s>`). Trained on rankings by the K-wise
loss, centred so that demonstrations score 0 on average."""


def demonstration(ranking: Ranking) -> tuple[int, ...]:
    """The best response of a ranking."""
    return ranking.rows[ranking.best]


@torch.inference_mode()
def mean_score(
    scorer: RewardModel,
    rows: Sequence[Sequence[int]],
    device: torch.device | str = "cpu",
    batch: int = 64,
    beat: Callable[[], None] = lambda: None,
) -> float:
    """The mean score of sequences, each read at its last token. `beat` is called after each
    batch."""
    total = 0.0
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        tokens_BT = pad_right(part, PAD, device)
        last_B = torch.tensor([len(row) - 1 for row in part], device=device)
        scores_BT = scorer(tokens_BT)
        total += scores_BT.gather(1, last_B[:, None]).double().sum().item()
        beat()
    return total / len(rows)


@dataclass(frozen=True)
class Appraisal:
    """What a reward model is worth on held-out rankings."""

    accuracy: float
    """Share of pairs that it orders as people did."""
    margin: float
    """Mean score difference of a pair, better minus worse."""
    prompts: int
    by_ranks: dict[tuple[int, int], tuple[float, int]]
    """(better, worse) rank -> accuracy and number of pairs."""
    by_rank: dict[int, list[float]]
    """rank -> scores of the responses that people put there."""
    demonstrations: float
    """Mean score of the best responses: near 0 if the centring holds for unseen ones too."""


def appraise(rank: Rank, folder: Path, preferences: Path) -> Appraisal | None:
    """Judge a reward model folder; on rank 0 alone, the others give None."""
    if not rank.first:
        return None
    scorer, tokenizer = load_reward_model(folder).to(rank.device), Tokenizer(folder)
    held_out = read_rankings(preferences, "eval", tokenizer, scorer.body.config.context_length)
    return judge(scorer, held_out, rank.device, beat=Pause(rank))


@torch.inference_mode()
def judge(
    scorer: RewardModel,
    rankings: Sequence[Ranking],
    device: torch.device | str = "cpu",
    batch: int = 16,
    beat: Callable[[], None] = lambda: None,
) -> Appraisal:
    """Compare a reward model's scores with the ranks that people gave; `beat` is called after each
    batch."""
    pairs: dict[tuple[int, int], list[float]] = defaultdict(list)
    by_rank: dict[int, list[float]] = defaultdict(list)
    best = []
    for start in range(0, len(rankings), batch):
        part = rankings[start : start + batch]
        on_device = {key: value.to(device) for key, value in collate_rankings(part).items()}
        for ranking, scores in zip(part, scores_of(scorer, on_device).tolist(), strict=True):
            for ranks, difference in _pairs(ranking.ranks, scores):
                pairs[ranks].append(difference)
            for place, score in zip(ranking.ranks, scores, strict=False):
                by_rank[place].append(score)
            best.append(scores[ranking.best])
        beat()
    every = [difference for found in pairs.values() for difference in found]
    return Appraisal(
        accuracy=_right(every),
        margin=sum(every) / len(every),
        prompts=len(rankings),
        by_ranks={key: (_right(found), len(found)) for key, found in sorted(pairs.items())},
        by_rank=dict(sorted(by_rank.items())),
        demonstrations=sum(best) / len(best),
    )


def _pairs(
    ranks: Sequence[int], scores: Sequence[float]
) -> Iterator[tuple[tuple[int, int], float]]:
    for i, better in enumerate(ranks):
        for j, worse in enumerate(ranks):
            if better < worse:
                yield (better, worse), scores[i] - scores[j]


def _right(differences: Sequence[float]) -> float:
    return sum(d > 0 or 0.5 * (d == 0) for d in differences) / len(differences)
