"""Log-likelihoods of given continuations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from stages.generation.sampling import length_sorted_batches


class PositionModel(Protocol):
    """A model with outputs at selected positions: logits_NV of a policy, values_N of a critic."""

    def __call__(self, tokens_BT: Tensor, *, position_mask_BT: Tensor) -> Tensor:
        """Return one row per selected position, in row-major order."""


class Likelihood(NamedTuple):
    """The log-probability of a continuation, nats, and its number of tokens."""

    log_prob: float
    num_tokens: int

    @property
    def per_token(self) -> float:
        """Mean log-probability per token, nats."""
        return self.log_prob / max(self.num_tokens, 1)


def pad_right(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Return rows of ids, padded on the right: tokens_BT."""
    longest = max(len(row) for row in rows)
    padded = [[*row, *[pad_id] * (longest - len(row))] for row in rows]
    return torch.tensor(padded).to(device)


@torch.inference_mode()
def likelihoods(
    model: PositionModel,
    prefixes: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[int]],
    *,
    pad_id: int,
    batch_size: int = 32,
    device: torch.device | str = "cpu",
    heartbeat: Callable[[], None] = lambda: None,
) -> list[Likelihood]:
    """Return log p(continuation | prefix) of each pair, in the given order.

    Logits are computed only where a continuation's token is predicted. The last token is not an
    input, so a pair may be one token longer than the context length. `heartbeat` is called after
    each batch.
    """
    rows = [[*prefix, *rest] for prefix, rest in zip(prefixes, continuations, strict=True)]
    found: dict[int, Likelihood] = {}
    for indices in length_sorted_batches(rows, batch_size):
        tokens_BT = pad_right([rows[index] for index in indices], pad_id, device)
        position_mask_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
        for row, index in enumerate(indices):
            position_mask_BT[row, len(prefixes[index]) - 1 : len(rows[index]) - 1] = True
        counts = [len(continuations[index]) for index in indices]
        log_probs = torch.split(next_log_probs(model, tokens_BT, position_mask_BT).double(), counts)
        sums = [part.sum().item() for part in log_probs]
        found |= {
            index: Likelihood(total, count)
            for index, total, count in zip(indices, sums, counts, strict=True)
        }
        heartbeat()
    return [found[index] for index in range(len(rows))]


def next_log_probs(
    model: PositionModel, tokens_BT: Tensor, position_mask_BT: Tensor, temperature: float = 1.0
) -> Tensor:
    """Return the log-probability_N of the token after each selected position under
    softmax(logits / temperature), in row-major order. The last column is never selected."""
    inputs_BT, position_mask_BT, targets_BT = (
        tokens_BT[:, :-1],
        position_mask_BT[:, :-1],
        tokens_BT[:, 1:],
    )
    log_probs_NV = (
        model(inputs_BT, position_mask_BT=position_mask_BT).float() / temperature
    ).log_softmax(-1)
    return log_probs_NV.gather(1, targets_BT[position_mask_BT][:, None]).squeeze(1)
