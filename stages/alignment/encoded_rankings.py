"""Rankings: K tokenised responses to a prompt with the ranks that annotators gave them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.errors import InputError
from stages.alignment.ranking_loss import NO_RESPONSE
from stages.chat.chat_format import ChatFormat
from stages.chat.encoded_chats import open_chat_format
from stages.chat.encoded_table import EncodedTable, RecordEncoder
from stages.data.preference_dataset import Preference, Preferences
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


@dataclass(frozen=True)
class RankingEncoder(RecordEncoder[Preference]):
    """The encoding of rankings in the chat format of a model.

    A reward is read at the end of a response, so one that is longer than the context leaves its
    ranking; the ranking stays while two responses of different ranks are left. `responses_too_long`
    counts the former, `too_long` the rankings that are left out, `shortened` those that stay.
    """

    folder: Path
    """Model whose tokenizer and chat template encode."""
    limit: int
    """Largest number of ids of a response with its prompt."""
    chat_template: str | None = None
    """Name or file of the chat template. Default: the model's own."""
    schema: ClassVar[pa.Schema] = pa.schema(
        [(name, pa.list_(pa.int32())) for name in ("ids", "lengths", "ranks")]
    )

    @property
    def identity(self) -> str:
        """The chat format and the limit."""
        return f"{self.chat_format.digest} {self.limit}"

    @property
    def chat_format(self) -> ChatFormat:
        """The chat format, opened once per process."""
        return open_chat_format(self.folder, self.chat_template)

    def records(self, path: Path, split: str) -> Preferences:
        """Open the preferences of a split."""
        return Preferences(path, split)

    def encode(self, record: Preference, counts: Counter[str]) -> Iterator[dict[str, Any]]:
        """Yield the row of a ranking, if it is not left out."""
        if ranking := self.ranking(record, counts):
            yield {
                "ids": [i for row in ranking.rows for i in row],
                "lengths": [len(row) for row in ranking.rows],
                "ranks": ranking.ranks,
            }

    def ranking(self, record: Preference, counts: Counter[str]) -> EncodedRanking | None:
        """Return the responses that fit, or None if too few do, and count the outcome."""
        counts["read"] += 1
        chat = self.chat_format
        try:
            rows = [chat.encode_response(record.prompt, text).ids for text in record.responses]
        except InputError:
            counts["refused_by_template"] += 1
            return None
        fitting = [at for at, row in enumerate(rows) if len(row) <= self.limit]
        ranks = tuple(record.ranks[at] for at in fitting)
        counts["responses"] += len(rows)
        counts["responses_too_long"] += len(rows) - len(fitting)
        if len(fitting) < len(rows):
            left_out = len(set(ranks)) < 2
            counts["too_long" if left_out else "shortened"] += 1
            if left_out:
                return None
        return EncodedRanking(tuple(tuple(rows[at].tolist()) for at in fitting), ranks)


@dataclass(frozen=True)
class EncodedRankings(Sequence[EncodedRanking]):
    """The encoded rankings of a split, mapped into memory."""

    table: EncodedTable

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at = range(len(self))[index]
        ids, lengths, ranks = (
            self.table.column(name, at).to_numpy() for name in ("ids", "lengths", "ranks")
        )
        rows = np.split(ids, np.cumsum(lengths)[:-1])
        return EncodedRanking(tuple(tuple(row.tolist()) for row in rows), tuple(ranks.tolist()))


def read_rankings(path: Path, split: str, folder: Path, context: int) -> list[EncodedRanking]:
    """Return the rankings of a split, encoded in this process; see `RankingEncoder`.

    Raises:
        InputError: all are left out.
    """
    encoder, counts = RankingEncoder(folder, context), Counter[str]()
    found = [encoder.ranking(preference, counts) for preference in encoder.records(path, split)]
    rankings = [ranking for ranking in found if ranking]
    require_rankings(len(rankings), counts, encoder, split, path)
    return rankings


def require_rankings(
    count: int, counts: Mapping[str, int], encoder: RankingEncoder, split: str, path: Path
) -> None:
    """Check that there are rankings.

    Raises:
        InputError: the split is empty, or all its rankings are left out.
    """
    if count:
        return
    read = counts.get("read", 0)
    if not read:
        raise InputError(
            f"there are no {split} preferences",
            where=str(path),
            remedy=f"give preferences with a split named {split}",
        )
    if refusal := _refusal(counts, encoder, split, path):
        raise refusal
    raise InputError(
        f"none of {read} {split} preferences fits a context of {encoder.limit} tokens with two "
        "responses",
        where=str(path),
        remedy="shorten the responses, or use a model with a longer context",
    )


def _refusal(
    counts: Mapping[str, int], encoder: RankingEncoder, split: str, path: Path
) -> InputError | None:
    """Return the error of the chat template for the first ranking, if it refused some."""
    if not counts.get("refused_by_template"):
        return None
    for preference in encoder.records(path, split):
        try:
            encoder.chat_format.encode_response(preference.prompt, preference.responses[0])
        except InputError as error:
            message = f"the chat template refuses {split} preferences: {error.message}"
            return InputError(message, where=str(path), remedy=error.remedy)
    return None


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
