"""What autograd keeps, for tests of what a plan says of activations."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


def kept(model: nn.Module, result: Callable[[], Tensor]) -> int:
    """Bytes that autograd keeps of what is computed, weights apart."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        made = result()
    assert made.requires_grad  # the graph, and so each storage, was alive until here
    return sum(found.values())
