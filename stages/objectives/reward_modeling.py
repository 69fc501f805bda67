"""Reward modelling: K-wise rankings on the body of a language model with a scalar head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.errors import InputError
from stages.alignment.encoded_rankings import EncodedRanking, collate_rankings
from stages.alignment.ranking_loss import compare_pairs, kwise_loss
from stages.alignment.reward_evaluation import mean_score, score_responses
from stages.chat.chat_format import ChatFormat
from stages.models.hf_io import update_tokenizer_config
from stages.models.language_model import ForwardOutputs, router_aux_loss
from stages.models.model_io import load_language_model, save_reward_model
from stages.models.registry import build_model, find_family
from stages.models.reward_head import RewardModel
from stages.training.data_order import Shuffled, derive_seed
from stages.training.objective import Batch, Loss, Losses, MetricSum, Trainable
from stages.training.supervised import SupervisedObjective

if TYPE_CHECKING:
    from stages.training.engine import Engine
    from stages.training.ranks.rank import Rank


@dataclass
class RewardObjective(SupervisedObjective):
    """K-wise ranking loss on the body of a language model.

    A body with experts has a second loss, `router`, over tokens.
    """

    model: Path
    train_rankings: Sequence[EncodedRanking]
    held_out_rankings: Sequence[EncodedRanking] = ()
    dropout: float = 0.0
    centering_samples: int = 512
    chat_template: str | None = None
    """Name or file of the chat template. Default: the model's own."""

    length_grouped = True

    def open(self, rank: Rank) -> dict[str, Trainable]:
        """Open the rankings, and put a randomly initialised score head on the language model."""
        body = load_language_model(self.model, dropout=self.dropout)
        if "scalar_head" not in find_family(body.config).capabilities:
            raise InputError(
                f"models of family {body.config.family} cannot have a scalar head",
                where=str(self.model),
                remedy="train the reward model from a model of another family",
            )
        self._experts = body.config.experts
        self.chat = ChatFormat.open(self.model, self.chat_template)
        self.train_samples = Shuffled(self.train_rankings, derive_seed(self.seed, 1))
        # In the order of the first epoch, so that the first of them are a sample of all.
        self.rankings = [self.train_samples[i] for i in range(len(self.train_rankings))]
        self.eval_dataset = self.held_out_rankings
        self.flops_per_token = float(body.config.flops_per_token)
        return {"model": Trainable(RewardModel(body))}

    def collate(self, samples: Sequence[EncodedRanking]) -> Batch:
        """Convert rankings to tensors; see `collate_rankings`."""
        return collate_rankings(samples)

    def units(self, batch: Batch) -> float | Mapping[str, float]:
        """Return the number of prompts: each counts the same, however many responses it has. The
        units of the router loss are tokens."""
        prompts = float(len(batch["ranks"]))
        if self._experts is None:
            return prompts
        return {"ranking": prompts, "router": float(batch["token_mask"].sum())}

    def num_tokens(self, batch: Batch) -> float:
        """Return the number of positions that are computed."""
        return float(batch["tokens"].numel())

    def loss(self, model: Callable[..., Any], batch: Batch) -> Losses:
        """Return the K-wise loss, with the accuracy and margin over pooled pairs, and the loss of
        the routers if there are experts."""
        outputs = ForwardOutputs()
        scores_PK = score_responses(model, batch, outputs)
        found = compare_pairs(scores_PK.detach(), batch["ranks"])
        pairs = found.pairs.sum()
        ranking = Loss(
            kwise_loss(scores_PK, batch["ranks"]).sum(),
            {
                "accuracy": MetricSum(found.correct.sum(), pairs),
                "margin": MetricSum(found.margin.sum(), pairs),
            },
        )
        if self._experts is None:
            return ranking
        router = router_aux_loss(self._experts, outputs.routing) * batch["token_mask"].sum()
        return {"ranking": ranking, "router": Loss(router)}

    def export(self, engines: Mapping[str, Engine], out: Path) -> None:
        """Centre the scores on the demonstrations (the best responses), then write the folder.

        The mean score of demonstrations is 0 before RL (Ouyang et al. 2022, appendix C.2). A copy
        scores them, because a forward pass of the trained module may gather its weights over all
        ranks, and only rank 0 is here.
        """
        scorer = scorer_copy(engines["model"].module).to(self.rank.device).eval()
        best = [ranking.best_response for ranking in self.rankings[: self.centering_samples]]
        scorer.add_bias(-mean_score(scorer, best, self.rank.device, heartbeat=self.rank.heartbeat))
        self._write(scorer, out)

    def _write(self, scorer: RewardModel, out: Path) -> None:
        """Write the model folder, with a padding token if the tokenizer has one."""
        padding, card, ids = self.chat.padding_token, _CARD, self.chat.special_ids
        if padding is None:
            card += _NO_PADDING
        else:
            ids = ids._replace(pad=padding[1])
        save_reward_model(scorer, out, self.model, card=card, ids=ids)
        if padding and self.chat.tokenizer.pad_id != padding[1]:
            update_tokenizer_config(out, pad_token=padding[0])
        self.chat.export(out)


def scorer_copy(trained: Any) -> RewardModel:
    """Return a float32 scorer with the same weights and no hooks."""
    scorer = RewardModel(build_model(trained.body.config), score_bias=trained.score_bias)
    scorer.load_state_dict(trained.state_dict())
    return scorer


_NO_PADDING = """

The tokenizer has no padding token that does not end a text: score one text at a time."""
_CARD = """# Reward model

Scores a response to a prompt, in the format of `chat_template.jinja`, at its last token. Trained on
rankings by the K-wise loss, centred so that demonstrations score 0 on average."""
