"""Rankings: K tokenised responses to a prompt with the ranks that annotators gave them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipeline.errors import InputError
from stages.alignment.ranking_loss import NO_RESPONSE
from stages.chat.chat_format import ChatFormat
from stages.data.preference_dataset import Preferences
from stages.generation.likelihood import pad_right


@dataclass(frozen=True)
class EncodedRanking:
    """K tokenised responses, prompts included, with their ranks."""

    rows: tuple[tuple[int, ...], ...]
    ranks: tuple[int, ...]

    def __len__(self) -> int:
        return max(len(row) for row in self.rows)

    @property
    def best(self) -> int:
        """Index of the response with the lowest rank, the first of equals."""
        return self.ranks.index(min(self.ranks))

    @property
    def best_response(self) -> tuple[int, ...]:
        """Tokens of the best response: the demonstration."""
        return self.rows[self.best]


def read_rankings(path: Path, split: str, chat: ChatFormat, context: int) -> list[EncodedRanking]:
    """Return the rankings of a split. Those with a response longer than the context are left out,
    because a reward is read at the end of the response.

    Raises:
        InputError: none is left.
    """
    encoded = []
    for preference in Preferences(path, split):
        texts = preference.responses
        rows = (chat.encode_response(preference.prompt, text).ids.tolist() for text in texts)
        encoded.append(EncodedRanking(tuple(tuple(row) for row in rows), preference.ranks))
    fitting = [ranking for ranking in encoded if len(ranking) <= context]
    if not fitting:
        raise InputError(
            f"none of {len(encoded)} {split} preferences fits a context of {context} tokens",
            where=str(path),
            remedy="shorten the responses, or use a model with a longer context",
        )
    return fitting


def collate_rankings(rankings: Sequence[EncodedRanking]) -> dict[str, Tensor]:
    """Return `tokens` (N, T) of all responses, `position_mask` (N, T) that marks their last tokens,
    `token_mask` (N, T) that is False at padding, and `ranks` (P, K), padded."""
    rows = [row for ranking in rankings for row in ranking.rows]
    tokens_NT = pad_right(rows, 0)
    position_mask_NT = torch.zeros_like(tokens_NT, dtype=torch.bool)
    position_mask_NT[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])] = True
    most = max(len(ranking.ranks) for ranking in rankings)
    ranks = [[*r.ranks, *[NO_RESPONSE] * (most - len(r.ranks))] for r in rankings]
    token_mask_NT = (
        torch.arange(tokens_NT.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    )
    return {
        "tokens": tokens_NT,
        "position_mask": position_mask_NT,
        "token_mask": token_mask_NT,
        "ranks": torch.tensor(ranks),
    }
