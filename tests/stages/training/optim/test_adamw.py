"""AdamW against torch's, and the hook before an update."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stages.training.optim.adamw import AdamW


def test_updates_are_those_of_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = (nn.Parameter(torch.ones(5)) for _ in range(2))
    options = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.3, "fused": True}
    pair = ((ours, AdamW([ours], **options)), (theirs, torch.optim.AdamW([theirs], **options)))
    for _ in range(4):
        gradient = torch.randn(5, generator=generator)
        for weight, optimizer in pair:
            weight.grad = gradient.clone()
            optimizer.step()
    assert torch.equal(ours, theirs)


def test_a_cancelled_update_changes_nothing() -> None:
    weight = nn.Parameter(torch.ones(3))
    adam = AdamW([weight], lr=0.1, fused=True)
    weight.grad = torch.ones(3)
    adam.step()
    before = [weight.clone(), *(v.clone() for v in adam.state[weight].values())]
    seen: list[Tensor] = []

    def refuse(gradients: list[Tensor]) -> bool:
        seen.extend(gradients)
        return False

    adam.pre_update_hook = refuse
    adam.step()
    assert seen == [weight.grad]
    assert all(map(torch.equal, before, [weight, *adam.state[weight].values()]))
