"""Linear probe: logistic regression on frozen embeddings, by L-BFGS in float64.

Minimizes the sum of cross-entropies + l2/2 |W|^2 without a penalty on biases: scikit-learn's
`LogisticRegression(C=1/l2)`. As in CLIP's evaluation (Radford et al. 2021, section 3.2 and appendix
A.3) embeddings are not standardized, and the penalty is chosen on a part of the training set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

L2_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Penalties that `evaluate_linear_probe` tries."""


class LinearClassifier(NamedTuple):
    """A linear classifier."""

    weight: Tensor
    """(classes, E)"""
    bias: Tensor

    def predict(self, x_NE: Tensor) -> Tensor:
        """Return the class of each row."""
        return (x_NE.double() @ self.weight.T + self.bias).argmax(1)

    def accuracy(self, x_NE: Tensor, class_N: Tensor) -> float:
        """Return the fraction of rows that are classified correctly."""
        return (self.predict(x_NE) == class_N).double().mean().item()


def fit_logistic(
    x_NE: Tensor, class_N: Tensor, classes: int, l2: float, *, steps: int = 1000
) -> LinearClassifier:
    """Fit a multinomial logistic regression to its minimum.

    Args:
        x_NE: embeddings.
        class_N: class of each row, below `classes`.
        classes: number of classes.
        l2: penalty on weights.
        steps: largest number of L-BFGS iterations.
    """
    x_NE = x_NE.double()
    weight = torch.zeros(classes, x_NE.shape[1], dtype=torch.double, device=x_NE.device)
    bias = torch.zeros(classes, dtype=torch.double, device=x_NE.device)
    for parameter in (weight, bias):
        parameter.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=steps, tolerance_grad=1e-7, tolerance_change=1e-12,
        history_size=20, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimizer.zero_grad()
        logits_NC = x_NE @ weight.T + bias
        value = F.cross_entropy(logits_NC, class_N, reduction="sum")
        value = (value + l2 / 2 * weight.square().sum()) / len(x_NE)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return LinearClassifier(weight.detach(), bias.detach())


def evaluate_linear_probe(
    train_NE: Tensor, train_labels: Sequence[str], test_NE: Tensor, test_labels: Sequence[str]
) -> tuple[float, float]:
    """Fit a linear probe with the penalty that does best on every fifth training row.

    Returns:
        The accuracy on the test rows, and the penalty.
    """
    names = sorted({*train_labels, *test_labels})
    number = {name: i for i, name in enumerate(names)}
    device = train_NE.device
    train_N = torch.tensor([number[label] for label in train_labels], device=device)
    test_N = torch.tensor([number[label] for label in test_labels], device=device)
    validation_N = torch.arange(len(train_N), device=device) % 5 == 4
    scored = []
    for l2 in L2_PENALTIES:
        fitted = fit_logistic(
            train_NE[~validation_N], train_N[~validation_N], len(names), l2, steps=200
        )
        scored.append((fitted.accuracy(train_NE[validation_N], train_N[validation_N]), l2))
    best = max(scored)[1]
    return fit_logistic(train_NE, train_N, len(names), best).accuracy(test_NE, test_N), best
