"""Lion against algorithm 2 of Chen et al. 2023, written out in numpy."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from stages.training.optim.lion import build_lion
from stages.training.training_params import TrainSection

LR, DECAY, BETA1, BETA2 = 0.01, 0.2, 0.9, 0.99


def written_out(weight: np.ndarray, gradients: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the weight and the momentum after the updates, as the paper writes them."""
    theta, m = weight.copy(), np.zeros_like(weight)
    for g in gradients:
        c = BETA1 * m + (1 - BETA1) * g
        theta = theta - LR * (np.sign(c) + DECAY * theta)
        m = BETA2 * m + (1 - BETA2) * g
    return theta, m


def test_updates_are_those_of_the_paper() -> None:
    rng = np.random.default_rng(0)
    start = rng.standard_normal((6, 4))
    gradients = [rng.standard_normal(start.shape) for _ in range(7)]
    weight, frozen = nn.Parameter(torch.from_numpy(start).clone()), nn.Parameter(torch.ones(2))
    settings = TrainSection(lr=LR, beta1=BETA1, beta2=BETA2, weight_decay=DECAY)
    lion = build_lion([{"params": [weight, frozen], "weight_decay": DECAY}], settings)
    lion.state[weight] = {"step": torch.zeros(()), "exp_avg": torch.zeros_like(weight)}
    for gradient in gradients:
        weight.grad = torch.from_numpy(gradient)
        lion.step()
    theta, m = written_out(start, gradients)
    np.testing.assert_allclose(weight.detach().numpy(), theta, rtol=1e-12)
    np.testing.assert_allclose(lion.state[weight]["exp_avg"].numpy(), m, rtol=1e-12)
    assert float(lion.state[weight]["step"]) == 7
    assert torch.equal(frozen, torch.ones(2)), "it has no gradient"
