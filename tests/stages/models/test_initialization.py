"""First weights: read, or a dense model's made into one with experts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipeline.errors import InputError
from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.gpt2.modeling_gpt2 import GPT
from stages.models.initialization import initial_model
from stages.models.language_model_config import ExpertsConfig
from stages.models.llama.configuration_llama import LlamaConfig
from stages.models.llama.modeling_llama import Llama
from stages.models.model_io import save_language_model

DENSE = LlamaConfig(
    vocab_size=53, context_length=16, num_layers=4, hidden_size=32, num_heads=2, num_kv_heads=1,
    intermediate_size=40, head_size=16, qk_norm=True,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = Llama(DENSE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_language_model(model, tmp_path / "dense")
    return tmp_path / "dense"


def test_weights_of_the_same_shape_are_taken_up(folder: Path) -> None:
    model = initial_model(replace(DENSE, dropout=0.1), folder)
    again = initial_model(DENSE, folder)
    for name, value in again.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


@pytest.mark.parametrize(
    "experts",
    [
        ExpertsConfig(num_experts=4),
        ExpertsConfig(num_experts=4, moe_every=1, top_k=2),
        ExpertsConfig(num_experts=4, top_k=2, norm_topk_prob=True),
    ],
)
def test_a_dense_model_with_experts_begins_as_the_function_it_was(
    folder: Path, experts: ExpertsConfig
) -> None:
    tokens = torch.randint(0, 53, (3, 16), generator=torch.Generator().manual_seed(1))
    dense = initial_model(DENSE, folder).eval()
    torch.manual_seed(5)
    made = initial_model(replace(DENSE, experts=experts), folder).eval()
    with torch.no_grad():
        wanted, found = dense(tokens), made(tokens)
        torch.testing.assert_close(found, wanted, rtol=0, atol=0.02 * float(wanted.std()))
        made.layers[3].feed_forward.experts.down.mul_(1.2)  # type: ignore[union-attr]
        assert (made(tokens) - wanted).abs().max() > 0.05 * float(wanted.std())


def test_other_shapes_are_refused(folder: Path, tmp_path: Path) -> None:
    def told(wanted: GPTConfig | LlamaConfig, folder: Path) -> str:
        with pytest.raises(InputError, match="another shape") as found:
            initial_model(wanted, folder)
        assert found.value.where == str(folder)
        return found.value.message.removeprefix("the weights are of another shape: ")

    narrow = replace(DENSE, intermediate_size=48, num_kv_heads=2)
    assert told(narrow, folder) == "intermediate_size: 40, not 48; num_kv_heads: 1, not 2"
    assert told(replace(DENSE, qk_norm=False), folder) == "family: qwen3 or switch, not llama"
    gpt = GPTConfig(53, 16, num_layers=4, hidden_size=32, num_heads=2)
    assert told(gpt, folder) == "family: qwen3 or switch, not gpt2"
    save_language_model(GPT(gpt), tmp_path / "gpt")
    assert isinstance(initial_model(replace(gpt, dropout=0.1), tmp_path / "gpt"), GPT)
    assert told(replace(gpt, context_length=24), tmp_path / "gpt") == "context_length: 16, not 24"
    switch = replace(DENSE, experts=ExpertsConfig(num_experts=4))
    save_language_model(initial_model(switch, folder), tmp_path / "switch")
    assert isinstance(initial_model(switch, tmp_path / "switch"), Llama)
    for other in (ExpertsConfig(num_experts=2), ExpertsConfig(num_experts=4, top_k=2), None):
        assert "experts: {'num_experts': 4, " in told(
            replace(DENSE, experts=other), tmp_path / "switch"
        )
    longer = replace(switch, context_length=32)
    assert initial_model(longer, tmp_path / "switch").config.context_length == 32


def test_a_width_that_is_said_is_the_one_that_is_left_out(tmp_path: Path) -> None:
    """The hub's folders of GPT-2 leave the hidden width out or say four widths."""
    left_out = GPTConfig(53, 16, num_layers=1, hidden_size=32, num_heads=2)
    said = replace(left_out, intermediate_size=128)
    for given, wanted in ((left_out, said), (said, left_out)):
        folder = tmp_path / str(str(given.intermediate_size))
        save_language_model(GPT(given), folder)
        assert isinstance(initial_model(wanted, folder), GPT)
