"""Several conversations in one row of a batch, where none attends to another.

A row holds whole conversations by best fit (Ding et al. 2024, arXiv 2404.10830), or one if packing
is off. The attention mask is block-diagonal and positions count from 0 within each conversation, so
that loss and gradients are those of the conversations in rows of their own. Rows are padded on the
right to the longest of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from stages.data.best_fit_packing import best_fit
from stages.models.fused_ops import IGNORED

if TYPE_CHECKING:
    from stages.chat.chat_format import EncodedChat

ChatRow = tuple["EncodedChat", ...]
"""The conversations of one row of a batch."""


class ChatRows(Sequence[ChatRow]):
    """Rows of one conversation, or of several that together have at most `length` inputs.

    Args:
        chats: encoded conversations.
        lengths: the number of ids of each, at most `length` + 1.
        length: inputs that a row has room for; None is one conversation per row.
    """

    def __init__(
        self,
        chats: Sequence[EncodedChat],
        lengths: npt.NDArray[np.int64],
        length: int | None = None,
    ) -> None:
        self._chats = chats
        self._inputs = lengths - 1
        bins = np.arange(len(lengths)) if length is None else best_fit(self._inputs, length)
        self._order = np.argsort(bins, kind="stable")
        self._first = np.cumsum(np.r_[0, np.bincount(bins)]) if len(bins) else np.zeros(1, np.int64)
        self._room = length

    @property
    def padding(self) -> float:
        """Share of the positions of packed rows that are padding."""
        if self._room is None or not len(self):
            return 0.0
        return 1 - int(self._inputs.sum()) / (len(self) * self._room)

    def __len__(self) -> int:
        return len(self._first) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        members = self._order[int(self._first[index]) : int(self._first[index + 1])]
        return tuple(self._chats[int(i)] for i in members)


def num_inputs(row: ChatRow) -> int:
    """Return the number of positions of a row; the last id of a conversation is no input."""
    return sum(len(chat) - 1 for chat in row)


def collate_chats(rows: Sequence[ChatRow], pad_id: int) -> dict[str, torch.Tensor]:
    """Convert rows to tensors (B, T): `tokens`; `targets`, -100 where nothing is predicted;
    `token_mask`, False at padding; and, if a row has several conversations, `segments`, the
    conversation of each position, and its `positions` within it."""
    B, T = len(rows), max(map(num_inputs, rows))
    found = {
        "tokens": torch.full((B, T), pad_id),
        "targets": torch.full((B, T), IGNORED),
        "token_mask": torch.zeros((B, T), dtype=torch.bool),
    }
    segments, positions = torch.full((B, T), -1), torch.zeros((B, T), dtype=torch.int64)
    for number, row in enumerate(rows):
        at = 0
        for segment, chat in enumerate(row):
            ids, mask = torch.from_numpy(chat.ids), torch.from_numpy(chat.loss_mask)
            here = slice(at, at + len(ids) - 1)
            found["tokens"][number, here] = ids[:-1]
            found["targets"][number, here] = torch.where(mask[1:], ids[1:], IGNORED)
            found["token_mask"][number, here] = True
            segments[number, here] = segment
            positions[number, here] = torch.arange(len(ids) - 1)
            at = here.stop
    if any(len(row) > 1 for row in rows):
        found |= {"segments": segments, "positions": positions}
    return found
