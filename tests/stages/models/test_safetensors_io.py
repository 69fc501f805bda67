"""Tensor files and trees of state."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from stages.models import safetensors_io


def test_files_are_safetensors_and_hashed_as_written(tmp_path: Path) -> None:
    written = {
        "a": torch.randn(3, 5),
        "b": torch.arange(7),
        "c": torch.randn(4).bfloat16(),
        "d": torch.tensor([True, False]),
        "none": torch.empty(0),
        "one": torch.tensor(3.5),
    }
    facts = safetensors_io.write(tmp_path / "x.safetensors", written)
    data = (tmp_path / "x.safetensors").read_bytes()
    assert facts == {
        "name": "x.safetensors",
        "size": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    read = load_file(tmp_path / "x.safetensors")
    assert read.keys() == written.keys()
    for name, tensor in written.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_files_are_read_piecewise(tmp_path: Path) -> None:
    safetensors_io.write(tmp_path / "x.safetensors", {"a": torch.arange(100).float()})
    source = safetensors_io.SafetensorsFile(tmp_path / "x.safetensors")
    assert source.counts == {"a": 100}
    assert torch.equal(source.read("a", 40, 43), torch.tensor([40.0, 41.0, 42.0]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_one_bad_number_is_found(bad: float) -> None:
    values = torch.randn(1000)
    assert safetensors_io.is_finite(values)
    values[777] = bad
    assert not safetensors_io.is_finite(values)


def test_integers_and_empty_tensors_are_finite() -> None:
    assert safetensors_io.is_finite(torch.empty(0))
    assert safetensors_io.is_finite(torch.arange(3))


names = st.text("ab/'$é", max_size=4)
leaves = st.sampled_from([None, True, 3, 0.5, "word", torch.tensor(7)])
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(names, trees, max_size=4))
def test_trees_are_restored(tree: dict[str, object]) -> None:
    values, loose = safetensors_io.split(tree)
    assert repr(safetensors_io.join(values, loose)) == repr(tree)


def test_the_mark_is_a_reserved_name() -> None:
    with pytest.raises(ValueError, match=r"\$tensor"):
        safetensors_io.split({"a": {"$tensor": 1}})
