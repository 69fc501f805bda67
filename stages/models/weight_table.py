"""Correspondence of weights with the tensors of a `transformers` folder, read in both directions.

A family's conversion lists one `WeightEntry` per weight of its model: the weight's name, the names
of the tensors it is stored as, and how one becomes the other. `export_weights` and `import_weights`
follow the list. Imports no torch at its top: `headwater plan` reads configs by conversions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Transform(Protocol):
    """The conversion of one weight to the stored tensors, and back."""

    def split(self, weight: Tensor) -> Sequence[Tensor]:
        """Return the stored tensors of a weight."""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the weight of stored tensors."""


class Identity:
    """The weight is stored as it is."""

    def split(self, weight: Tensor) -> Sequence[Tensor]:
        """Return the weight."""
        return [weight]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the stored tensor."""
        (weight,) = parts
        return weight


IDENTITY = Identity()


class Transposed(Identity):
    """The matrix is stored input-major, as by the Conv1D of GPT-2."""

    def split(self, weight: Tensor) -> Sequence[Tensor]:
        """Return the transpose."""
        return [weight.t()]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the transpose."""
        return super().join(parts).t()


@dataclass(frozen=True)
class Reshaped(Identity):
    """The weight is stored in another shape."""

    model_shape: tuple[int, ...]
    stored_shape: tuple[int, ...]

    def split(self, weight: Tensor) -> Sequence[Tensor]:
        """Return the weight in the stored shape."""
        return [weight.reshape(self.stored_shape)]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the stored tensor in the model's shape."""
        return super().join(parts).reshape(self.model_shape)


@dataclass(frozen=True)
class Concatenated:
    """The weight is the concatenation of several tensors along its rows."""

    sizes: tuple[int, ...]
    """Rows of each."""

    def split(self, weight: Tensor) -> Sequence[Tensor]:
        """Return the parts."""
        import torch

        return torch.split(weight, list(self.sizes))

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the concatenation."""
        import torch

        return torch.cat(list(parts))


@dataclass(frozen=True)
class Stacked:
    """The weight is a stack over experts of concatenations along the rows."""

    sizes: tuple[int, ...]
    """Rows of each tensor of one expert."""

    def split(self, weight: Tensor) -> Sequence[Tensor]:
        """Return the parts of each expert in turn."""
        import torch

        return [part for expert in weight for part in torch.split(expert, list(self.sizes))]

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the stack."""
        import torch

        step = len(self.sizes)
        experts = (parts[i : i + step] for i in range(0, len(parts), step))
        return torch.stack([torch.cat(list(expert)) for expert in experts])


@dataclass(frozen=True)
class WeightEntry:
    """One weight of a model and the tensors that it is stored as."""

    name: str
    stored: tuple[str, ...]
    transform: Transform = IDENTITY
    merged: str | None = None
    """Another name under which some folders hold the joined weight as one tensor."""


def export_weights(state: Mapping[str, Tensor], table: Iterable[WeightEntry]) -> dict[str, Tensor]:
    """Return the stored tensors of the weights that are in a state dict."""
    found: dict[str, Tensor] = {}
    for entry in table:
        if entry.name in state:
            parts = entry.transform.split(state[entry.name])
            found |= dict(zip(entry.stored, parts, strict=True))
    return found


def import_weights(
    stored: Mapping[str, Tensor], table: Iterable[WeightEntry], ignored: tuple[str, ...] = ()
) -> dict[str, Tensor]:
    """Return the weights of stored tensors.

    Args:
        stored: the tensors of a folder.
        table: the weights of the model.
        ignored: suffixes of stored tensors that are not weights.

    Raises:
        ValueError: a tensor is missing, or no entry names it.
    """
    left, found = dict(stored), {}
    try:
        for entry in table:
            if entry.merged in left:
                found[entry.name] = left.pop(entry.merged)
            else:
                parts = [left.pop(name) for name in entry.stored]
                found[entry.name] = entry.transform.join(parts)
    except KeyError as error:
        raise ValueError(f"there is no tensor {error}") from error
    if unknown := [name for name in left if not name.endswith(ignored)]:
        raise ValueError(f"no weight takes the tensors {sorted(unknown)[:3]}")
    return found
