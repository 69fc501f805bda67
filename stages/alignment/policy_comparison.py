"""Comparison of two policies: reward and KL on held-out prompts, with responses side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stages.alignment.experience import Experience, rollout_metrics
from stages.alignment.prompts import read_prompts
from stages.alignment.rollout import (
    RolloutModels,
    RolloutSettings,
    generate_rollouts,
    score_at_end,
)
from stages.chat.chat_format import ChatFormat
from stages.distributed.cancellation_point import CancellationPoint
from stages.generation.sampling import SamplingParams
from stages.models.language_model import LanguageModel
from stages.models.model_io import load_language_model, load_reward_model
from stages.models.reward_head import RewardModel
from stages.training.data_order import derive_seed

if TYPE_CHECKING:
    from stages.training.ranks.rank import Rank

BINS = 24


@dataclass(frozen=True)
class PolicyComparison:
    """Metrics of two policies on the same prompts, sampled with the same random numbers."""

    metrics: dict[str, float]
    """reward_before, reward_after, reward_gain and its standard error, kl, and more."""
    samples: list[dict[str, str]] = field(default_factory=list)
    histograms: tuple[tuple[list[float], list[int]], ...] = (([0.0, 1.0], [0]), ([0.0, 1.0], [0]))
    """Edges and counts of the scores, before and after, on the same edges."""


def before_and_after(rank: Rank, **options: Any) -> PolicyComparison:
    """Compare two policies on rank 0 (see `compare_policies`); return nothing on the others."""
    if not rank.is_main:
        return PolicyComparison({})
    return compare_policies(**options, device=rank.device, heartbeat=CancellationPoint(rank))


def compare_policies(
    before: Path,
    after: Path,
    reward: Path,
    prompts: Path,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
    count: int = 64,
    shown: int = 6,
    device: torch.device | str = "cpu",
    heartbeat: Callable[[], None] = lambda: None,
) -> PolicyComparison:
    """Compare two policies by a reward model on the first `count` held-out prompts (0: on all).

    The KL is that of the second to the first, in nats per response. `heartbeat` is called after
    each batch of responses.

    Raises:
        InputError: the tokenizers or chat templates of the models differ.
    """
    chat = ChatFormat.open(after)
    for other in (before, reward):
        chat.require_equal(ChatFormat.open(other))
    policies = [load_language_model(path).to(device) for path in (before, after)]
    context = min(policy.config.context_length for policy in policies)
    held_out = read_prompts(
        prompts, "eval", after, context - max_new_tokens - len(chat.closing_ids)
    )
    held_out = held_out[: count or len(held_out)]
    if not held_out:
        return PolicyComparison({})
    scorer = load_reward_model(reward).to(device)
    settings = RolloutSettings(
        SamplingParams(max_new_tokens, temperature),
        chat.end_ids,
        chat.pad_id,
        derive_seed(seed, 6),
        device=str(device),
    )
    old, new = (
        _generate(policy, policies[0], scorer, chat, held_out, settings, heartbeat)
        for policy in policies
    )
    return PolicyComparison(
        comparison_metrics(old, new),
        side_by_side(chat, held_out, old, new, shown),
        histograms(old, new),
    )


def _generate(
    policy: LanguageModel,
    reference: LanguageModel,
    scorer: RewardModel,
    chat: ChatFormat,
    prompts: Sequence[Sequence[int]],
    settings: RolloutSettings,
    heartbeat: Callable[[], None],
) -> Experience:
    """Return one episode per prompt. The reward model is passed as critic; values are unused."""
    score = score_at_end(scorer, chat.end_id, chat.closing_ids)
    models = RolloutModels(policy, reference, scorer, score)
    return generate_rollouts(models, prompts, range(len(prompts)), settings, heartbeat)


def comparison_metrics(old: Experience, new: Experience) -> dict[str, float]:
    """Return the metrics of both policies and of their difference."""
    before, after = rollout_metrics(old), rollout_metrics(new)
    gain = (new.scores - old.scores).double()
    return {
        "reward_before": before["reward"],
        "reward_after": after["reward"],
        "reward_gain": gain.mean().item(),
        "reward_gain_stderr": (gain.std(correction=0) / len(gain) ** 0.5).item(),
        "kl": after["kl"],
        "kl_k3": after["kl_k3"],
        "length_before": before["length"],
        "length_after": after["length"],
        "finished_before": before["finished"],
        "finished_after": after["finished"],
    }


def side_by_side(
    chat: ChatFormat,
    prompts: Sequence[Sequence[int]],
    old: Experience,
    new: Experience,
    count: int,
) -> list[dict[str, str]]:
    """Return the first prompts with both responses and their scores."""
    return [
        {
            "prompt": chat.control_text(prompts[row]),
            "before": _response_text(chat, prompts[row], old, row),
            "after": _response_text(chat, prompts[row], new, row),
        }
        for row in range(min(count, len(prompts)))
    ]


def _response_text(chat: ChatFormat, prompt: Sequence[int], batch: Experience, row: int) -> str:
    ids = batch.tokens[row, len(prompt) : len(prompt) + int(batch.mask[row].sum())]
    cut = "" if batch.finished[row] else " …"
    return f"{chat.response_text(ids.tolist())}{cut} [{batch.scores[row].item():+.2f}]"


def histograms(old: Experience, new: Experience) -> tuple[tuple[list[float], list[int]], ...]:
    """Return edges and counts of the scores of both, on the same edges."""
    every = torch.cat([old.scores, new.scores]).cpu().double().numpy()
    edges = np.histogram_bin_edges(every, BINS)
    return tuple(
        (edges.tolist(), np.histogram(batch.scores.cpu().numpy(), edges)[0].tolist())
        for batch in (old, new)
    )
