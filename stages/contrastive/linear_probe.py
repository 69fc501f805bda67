"""Linear probe: logistic regression on frozen embeddings, by L-BFGS in float64.

Minimised is sum of cross-entropies + l2/2 |W|^2 over weights, biases free: scikit-learn's
`LogisticRegression(C=1/l2)`. As in CLIP's evaluation (Radford et al. 2021, section 3.2 and appendix
A.3) embeddings go in as they are, and the strength is chosen on a part of the training set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Of the penalty that `probe` tries."""


class Linear(NamedTuple):
    """A linear classifier."""

    weight: Tensor
    """(classes, E)"""
    bias: Tensor

    def predict(self, x_NE: Tensor) -> Tensor:
        """The class of each row."""
        return (x_NE.double() @ self.weight.T + self.bias).argmax(1)

    def accuracy(self, x_NE: Tensor, class_N: Tensor) -> float:
        """The share of rows that are told right."""
        return (self.predict(x_NE) == class_N).double().mean().item()


def fit_logistic(
    x_NE: Tensor, class_N: Tensor, classes: int, l2: float, *, steps: int = 1000
) -> Linear:
    """Multinomial logistic regression, to its minimum.

    Args:
        x_NE: rows.
        class_N: the class of each, below `classes`.
        classes: how many there are.
        l2: strength of the penalty on weights.
        steps: at most.
    """
    x_NE = x_NE.double()
    weight = torch.zeros(classes, x_NE.shape[1], dtype=torch.double, device=x_NE.device)
    bias = torch.zeros(classes, dtype=torch.double, device=x_NE.device)
    for parameter in (weight, bias):
        parameter.requires_grad_()
    search = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, tolerance_grad=1e-7, tolerance_change=1e-12,
        history_size=20, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        search.zero_grad()
        logits_NC = x_NE @ weight.T + bias
        value = F.cross_entropy(logits_NC, class_N, reduction="sum")
        value = (value + l2 / 2 * weight.square().sum()) / len(x_NE)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        search.step(loss)  # type: ignore[no-untyped-call]
    return Linear(weight.detach(), bias.detach())


def probe(
    train_NE: Tensor, train_labels: Sequence[str], test_NE: Tensor, test_labels: Sequence[str]
) -> tuple[float, float]:
    """Accuracy on the test rows, with the strength that does best on every fifth training row.

    Returns:
        The accuracy and the strength.
    """
    names = sorted({*train_labels, *test_labels})
    number = {name: i for i, name in enumerate(names)}
    device = train_NE.device
    train_N = torch.tensor([number[label] for label in train_labels], device=device)
    test_N = torch.tensor([number[label] for label in test_labels], device=device)
    held_N = torch.arange(len(train_N), device=device) % 5 == 4
    scored = []
    for l2 in STRENGTHS:
        fitted = fit_logistic(train_NE[~held_N], train_N[~held_N], len(names), l2, steps=200)
        scored.append((fitted.accuracy(train_NE[held_N], train_N[held_N]), l2))
    best = max(scored)[1]
    return fit_logistic(train_NE, train_N, len(names), best).accuracy(test_NE, test_N), best
