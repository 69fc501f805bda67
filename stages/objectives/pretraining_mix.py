"""Pretraining windows that are mixed into the batches of fine-tuning (Ouyang et al. 2022, appendix
C.3), so that a model keeps what it learned before.

The loss has two named parts with units of their own, so that their weights do not depend on the
lengths of conversations:

    (mean over the assistant's tokens) + share / (1 - share) (mean over pretraining tokens)

A step takes as many windows as make that share of its tokens, at least one. Its windows are the
same on any number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from stages.data.token_dataset import TokenDataset
from stages.models.fused_ops import IGNORED
from stages.training.data_order import derive_seed

if TYPE_CHECKING:
    from stages.data.tokenizers.huggingface_tokenizer import AnyTokenizer
    from stages.training.objective import Batch
    from stages.training.ranks.rank import Rank

ANSWERS, PRETRAINING = "assistant", "pretraining"
"""Names of the two losses."""
MARK = "is_pretraining"
"""Key of a batch of windows."""


@dataclass(frozen=True)
class PretrainingMix:
    """A store of tokens with its share."""

    tokens: Path
    """Folder of the token store."""
    share: float
    """Weight of pretraining in the loss, and share of its tokens in a batch."""
    length: int
    """Tokens of a window."""

    @property
    def coefficient(self) -> float:
        """Coefficient of the pretraining loss."""
        return self.share / (1 - self.share)

    def windows_per_step(self, chat_tokens: float) -> int:
        """Return the windows of a step with so many tokens of conversations."""
        return max(1, round(self.coefficient * chat_tokens / self.length))


class PretrainingWindows:
    """The pretraining windows of each step.

    Raises:
        InputError: the tokens are of another tokenizer, or fewer than a window.
    """

    def __init__(
        self, mix: PretrainingMix, chat_tokens: float, tokenizer: AnyTokenizer, seed: int
    ) -> None:
        data = TokenDataset((mix.tokens,), mix.length, derive_seed(seed, 7))
        data.require_tokenizer(tokenizer)
        self._windows = data.train
        self.count = mix.windows_per_step(chat_tokens)

    def batches(self, step: int, rank: Rank, micro: int) -> Iterator[Batch]:
        """Yield the windows of a step that this rank takes, at most `micro` at a time. All ranks
        yield equally many batches: a rank that runs out repeats a window without targets."""
        numbers = range(rank.index, -(-self.count // rank.world) * rank.world, rank.world)
        for start in range(0, len(numbers), micro):
            part = numbers[start : start + micro]
            first = step * self.count
            ids = torch.from_numpy(
                np.stack([self._window(first + min(n, self.count - 1)) for n in part])
            )
            targets = ids[:, 1:].clone()
            targets[torch.tensor([n >= self.count for n in part])] = IGNORED
            yield {"tokens": ids[:, :-1], "targets": targets, MARK: True}

    def _window(self, index: int) -> npt.NDArray[np.int64]:
        window: Any = self._windows[index]
        return np.asarray(window, np.int64)


def named_units(batch: Batch, units: float) -> dict[str, float]:
    """Return the units of a batch by the name of its loss, and 0 of the other."""
    return {name: units * is_own for name, is_own in _names(batch)}


def named_losses(batch: Batch, loss: Any, other: Any) -> dict[str, Any]:
    """Return the loss of a batch by its name, and another of the other name."""
    return {name: loss if is_own else other for name, is_own in _names(batch)}


def _names(batch: Batch) -> list[tuple[str, bool]]:
    mixed = bool(batch.get(MARK))
    return [(ANSWERS, not mixed), (PRETRAINING, mixed)]
