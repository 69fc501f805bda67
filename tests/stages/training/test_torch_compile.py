"""Selection of the blocks to compile, and what is refused; an integration test compiles them."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import InputError
from stages.models.language_model_config import ExpertsConfig
from stages.models.llama.configuration_llama import LlamaConfig
from stages.models.llama.modeling_llama import Llama
from stages.pretrain import PretrainParams
from stages.training.torch_compile import compile_blocks

SWITCH = LlamaConfig(
    50, 8, num_layers=2, hidden_size=16, num_heads=2, num_kv_heads=1, intermediate_size=8,
    head_size=8, experts=ExpertsConfig(num_experts=2, moe_every=2),
)  # fmt: skip


def test_blocks_with_experts_are_left_as_they_are_and_names_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "true")
    model = Llama(SWITCH)
    names = list(model.state_dict())
    compile_blocks(model, torch.device("cpu"))
    dense, experts = model.layers
    assert dense._compiled_call_impl is not None
    assert experts._compiled_call_impl is None
    assert list(model.state_dict()) == names


def test_a_missing_compiler_is_named_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(InputError, match=r"a C\+\+ compiler \(no-such-compiler") as caught:
        compile_blocks(Llama(SWITCH), torch.device("cpu"))
    assert caught.value.exit_code == 2


def test_zero_3_is_refused() -> None:
    for zero, refused in ((2, False), (3, True)):
        params = PretrainParams.model_validate(
            {"model": {"compile": True}, "train": {"zero_stage": zero}}
        )
        assert any(p.key == "model.compile" for p in params.check({})) is refused
