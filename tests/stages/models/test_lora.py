"""Low-rank adapters: merged as applied, parts apart, and at full rank the step of full training."""

import pytest
import torch
from adapted_models import CONFIGS, drawn, lively, targets_of
from torch.nn import functional as F

from pipeline.errors import InputError
from stages.models.lora import add_lora, lora_layers, merge
from stages.models.lora_config import LoRAConfig, trained_parameters
from stages.training.planning.device_layout import Layout
from stages.training.planning.language_model_cost import LanguageModelCost


@pytest.fixture
def tokens_BT():
    torch.manual_seed(2)
    return torch.randint(4, 97, (3, 20))


@pytest.mark.parametrize("name", CONFIGS)
def test_training_starts_from_the_function_of_the_model(name, tokens_BT):
    model = drawn(CONFIGS[name])
    expected = model(tokens_BT)
    adapted = add_lora(model, LoRAConfig(rank=4, targets=targets_of(name)))
    torch.testing.assert_close(adapted(tokens_BT), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", CONFIGS)
def test_merged_computes_what_the_adapters_do(name, tokens_BT):
    plain = drawn(CONFIGS[name])
    before = plain(tokens_BT)
    names = {n: p.shape for n, p in plain.named_parameters()}
    model = lively(add_lora(plain, LoRAConfig(rank=4, targets=targets_of(name))))
    adapted = model(tokens_BT)
    assert (adapted - before).abs().max() > 0.1
    merged = merge(model)
    torch.testing.assert_close(merged(tokens_BT), adapted, rtol=0, atol=1e-5)
    assert {n: p.shape for n, p in merged.named_parameters()} == names
    assert all(p.requires_grad for p in merged.parameters())


@pytest.mark.parametrize(("name", "targets"), [
    ("gpt2", ("attention",)), ("gpt2", ("mlp",)), ("gpt2", ("c_proj",)), ("gpt2", ("mlp.c_proj",)),
    ("llama", ("attention", "mlp")), ("qwen3", ("q_proj", "v_proj")), ("llama", ("gate_proj",)),
    ("switch", ("attention",)), ("switch", ("k_proj",)),
])  # fmt: skip
def test_adapters_alone_are_trained_and_planned(name, targets, tokens_BT):
    config = LoRAConfig(rank=3, targets=targets)
    model = lively(add_lora(drawn(CONFIGS[name]), config))
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert all("lora_" in n for n in trained)
    assert sum(p.numel() for p in trained.values()) == trained_parameters(model.config, config)
    model(tokens_BT[:, :-1], targets_BT=tokens_BT[:, 1:]).backward()
    for n, p in model.named_parameters():
        assert (p.grad is not None and bool(p.grad.any())) == (n in trained), n


def test_gradients_are_those_of_autograd(tokens_BT):
    """Loss and gradients through the fused head, whose weight is frozen."""
    model = lively(add_lora(drawn(CONFIGS["qwen3"]), LoRAConfig(rank=4)))
    model(tokens_BT[:, :-1], targets_BT=tokens_BT[:, 1:]).backward()
    fused = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    logits = model(tokens_BT[:, :-1]).flatten(0, 1)
    F.cross_entropy(logits, tokens_BT[:, 1:].flatten(), reduction="sum").backward()
    for n, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(fused[n], p.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen3"])
def test_full_rank_makes_the_first_step_of_full_training(name, tokens_BT):
    """With A^T A = 1 and B = 0, a step of SGD on B changes the weight by lr factor^2 times its
    gradient."""
    lr, factor = 0.05, 2.0

    def step(model):
        model(tokens_BT[:, :-1], targets_BT=tokens_BT[:, 1:]).backward()
        torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr).step()

    full, start = drawn(CONFIGS[name]), drawn(CONFIGS[name]).state_dict()
    step(full)
    width = max(m.in_features for m in full.modules() if isinstance(m, torch.nn.Linear))
    model = add_lora(drawn(CONFIGS[name]), LoRAConfig(rank=width, alpha=factor * width))
    names = [f"{n}.weight" for n in lora_layers(model)]
    for layer in lora_layers(model).values():
        for adapter in layer.adapters.values():
            torch.nn.init.orthogonal_(adapter.lora_A).requires_grad_(False)
    step(model)
    merged = merge(model).state_dict()
    assert len(names) == 8
    for n in names:
        change = full.state_dict()[n] - start[n]
        assert change.abs().max() > 1e-3
        torch.testing.assert_close(merged[n] - start[n], factor**2 * change, rtol=1e-3, atol=1e-5)
    others = merged.keys() - set(names)
    assert all(torch.equal(merged[n], start[n]) for n in others)


def test_dropout_is_that_of_the_input_of_the_adapter(tokens_BT):
    model = lively(add_lora(drawn(CONFIGS["gpt2"]), LoRAConfig(rank=4, dropout=0.5)))
    assert torch.equal(model(tokens_BT), model(tokens_BT))
    layer = model.train().h[0].mlp.c_fc
    x = torch.ones(4000, 48)
    torch.manual_seed(0)
    once = layer(x)
    torch.manual_seed(0)
    expected = F.linear(x, layer.weight, layer.bias)
    adapter = layer.adapters["c_fc"]
    expected += F.dropout(x, 0.5) @ adapter.delta().T
    torch.testing.assert_close(once, expected, rtol=0, atol=1e-4)
    torch.testing.assert_close(once.mean(0), layer.eval()(x).mean(0), rtol=0, atol=0.5)


@pytest.mark.parametrize(("name", "targets", "words"), [
    ("switch", ("attention", "mlp"), "'mlp' names experts"),
    ("switch", ("down_proj",), "'down_proj' names experts"),
    ("gpt2", ("q_proj",), "no linear layer 'q_proj'"),
    ("llama", ("lm_head",), "no linear layer 'lm_head'"),
])  # fmt: skip
def test_targets_without_a_linear_layer_are_refused(name, targets, words):
    with pytest.raises(InputError, match=words) as caught:
        add_lora(drawn(CONFIGS[name]), LoRAConfig(targets=targets))
    assert caught.value.where == "lora.targets"


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_gradients_and_optimizer_are_planned_for_what_is_trained(zero):
    config, layout = CONFIGS["llama"], Layout(2, zero, "bfloat16", 1, 1)
    lora = LoRAConfig(rank=2)
    number = trained_parameters(config, lora)
    whole = LanguageModelCost(config).memory(layout)
    part = LanguageModelCost(config, number).memory(layout)
    share = number / config.parameters
    assert part.weights == whole.weights
    assert part.gradients == pytest.approx(whole.gradients * share)
    assert part.optimizer == pytest.approx(whole.optimizer * share)
    assert part.peak < whole.peak
    sent = LanguageModelCost(config, number).traffic(layout)
    assert sent.reduced == pytest.approx(LanguageModelCost(config).traffic(layout).reduced * share)
