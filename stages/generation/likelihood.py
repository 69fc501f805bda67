"""How likely a model finds given continuations: the measuring side of generation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from stages.generation.sampling import length_sorted_batches


class PositionModel(Protocol):
    """A model that is read at marked positions: logits_NV of a policy, values_N of a critic."""

    def __call__(self, tokens_BT: Tensor, *, at_BT: Tensor) -> Tensor:
        """One row a marked position, in row-major order."""


class Likelihood(NamedTuple):
    """The log-probability of a continuation (nats) and how many tokens it has."""

    log_prob: float
    tokens: int

    @property
    def per_token(self) -> float:
        """Mean log-probability of a token."""
        return self.log_prob / max(self.tokens, 1)


def pad_right(
    rows: Sequence[Sequence[int]], pad_id: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Rows of ids flush to the left: tokens_BT."""
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
    batch: int = 32,
    device: torch.device | str = "cpu",
    heartbeat: Callable[[], None] = lambda: None,
) -> list[Likelihood]:
    """log p(continuation | prefix) of each pair, in the order given.

    The logits are made only where a continuation's token is predicted, and the last token is
    predicted but not read: a pair may be one token longer than the model's context. `heartbeat` is
    called after each batch.
    """
    rows = [[*prefix, *rest] for prefix, rest in zip(prefixes, continuations, strict=True)]
    found: dict[int, Likelihood] = {}
    for places in length_sorted_batches(rows, batch):
        tokens_BT = pad_right([rows[place] for place in places], pad_id, device)
        at_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
        for row, place in enumerate(places):
            at_BT[row, len(prefixes[place]) - 1 : len(rows[place]) - 1] = True
        counts = [len(continuations[place]) for place in places]
        log_probs = torch.split(next_log_probs(model, tokens_BT, at_BT).double(), counts)
        sums = [part.sum().item() for part in log_probs]
        found |= {
            place: Likelihood(total, count)
            for place, total, count in zip(places, sums, counts, strict=True)
        }
        heartbeat()
    return [found[place] for place in range(len(rows))]


def next_log_probs(
    model: PositionModel, tokens_BT: Tensor, at_BT: Tensor, temperature: float = 1.0
) -> Tensor:
    """Log-probability_N of the token after each marked position under softmax(logits / T), in
    row-major order: what sampling without a cut draws from. The last column is never marked."""
    inputs_BT, at_BT, targets_BT = tokens_BT[:, :-1], at_BT[:, :-1], tokens_BT[:, 1:]
    log_probs_NV = (model(inputs_BT, at_BT=at_BT).float() / temperature).log_softmax(-1)
    return log_probs_NV.gather(1, targets_BT[at_BT][:, None]).squeeze(1)
