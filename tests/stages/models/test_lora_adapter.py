"""Adapters in the layout of peft, which reads and writes the same folders."""

import json

import pytest
import torch
from adapted_models import CONFIGS, drawn, lively, targets_of
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from pipeline.errors import InputError
from stages.models.lora import add_lora, merge
from stages.models.lora_adapter import load_adapter, save_adapter
from stages.models.lora_config import LoRAConfig
from stages.models.model_io import load_language_model, save_language_model

TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "llama": ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"],
    "qwen3": "all-linear",
    "switch": ["q_proj", "k_proj", "o_proj"],
}


@pytest.fixture
def tokens_BT():
    torch.manual_seed(2)
    return torch.randint(4, 97, (3, 20))


@pytest.fixture(params=CONFIGS)
def name(request):
    return request.param


@pytest.fixture
def base(name, tmp_path):
    save_language_model(drawn(CONFIGS[name]), tmp_path / "base")
    return tmp_path / "base"


def theirs(base):
    return AutoModelForCausalLM.from_pretrained(base).eval()


def test_peft_loads_ours_with_the_same_logits(name, base, tmp_path, tokens_BT):
    config = LoRAConfig(rank=4, alpha=6, dropout=0.1, targets=targets_of(name))
    model = lively(add_lora(load_language_model(base), config))
    save_adapter(model, tmp_path / "adapter")
    reference = PeftModel.from_pretrained(theirs(base), tmp_path / "adapter").eval()
    adapted = model(tokens_BT)
    assert (adapted - load_language_model(base)(tokens_BT)).abs().max() > 0.1
    torch.testing.assert_close(reference(tokens_BT).logits, adapted, rtol=0, atol=1e-5)
    stored = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert len(stored) == sum(".lora_" in n for n, _ in reference.named_parameters())
    merged = reference.merge_and_unload()
    torch.testing.assert_close(merge(model)(tokens_BT), merged(tokens_BT).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_theirs_loads_in_ours_with_the_same_logits(name, base, tmp_path, tokens_BT, rslora):
    config = LoraConfig(
        r=3, lora_alpha=7, target_modules=TARGETS[name], fan_in_fan_out=name == "gpt2",
        use_rslora=rslora,
    )  # fmt: skip
    reference = lively(get_peft_model(theirs(base), config)).eval()
    reference.save_pretrained(tmp_path / "adapter")
    model = load_adapter(load_language_model(base), tmp_path / "adapter")
    expected = reference(tokens_BT).logits
    assert (expected - load_language_model(base)(tokens_BT)).abs().max() > 0.1
    torch.testing.assert_close(model(tokens_BT), expected, rtol=0, atol=1e-5)
    save_adapter(model, tmp_path / "again")
    again = load_adapter(load_language_model(base), tmp_path / "again")
    torch.testing.assert_close(again(tokens_BT), expected, rtol=0, atol=1e-5)


def test_equal_adapters_give_equal_bytes(tmp_path):
    model = lively(add_lora(drawn(CONFIGS["qwen3"]), LoRAConfig(rank=4)))
    for folder in ("one", "other"):
        save_adapter(model, tmp_path / folder)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "other" / file).read_bytes()


@pytest.mark.parametrize(("key", "value"), [
    ("use_dora", True), ("modules_to_save", ["lm_head"]), ("rank_pattern", {"q_proj": 2}),
    ("bias", "all"), ("peft_type", "IA3"),
])  # fmt: skip
def test_adapters_that_compute_otherwise_are_refused(tmp_path, key, value):
    save_adapter(add_lora(drawn(CONFIGS["llama"]), LoRAConfig(rank=4)), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InputError, match=f"adapters with {key} ="):
        load_adapter(drawn(CONFIGS["llama"]), tmp_path)


def test_adapters_of_another_model_are_refused(tmp_path):
    with pytest.raises(InputError, match="not a folder of adapters"):
        load_adapter(drawn(CONFIGS["llama"]), tmp_path)
    save_adapter(add_lora(drawn(CONFIGS["llama"]), LoRAConfig(rank=4)), tmp_path)
    with pytest.raises(InputError, match="the adapter and the model disagree in base_model"):
        load_adapter(drawn(CONFIGS["gpt2"]), tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 5}))
    with pytest.raises(InputError, match="disagree in base_model"):
        load_adapter(drawn(CONFIGS["llama"]), tmp_path)
