"""The registry of model families, and a family of a package outside the tree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import outside_package
import pytest

from pipeline.errors import InputError
from stages.models.clip.clip_presets import clip_preset
from stages.models.gpt2.configuration_gpt2 import gpt2_preset
from stages.models.registry import (
    ModelFamily,
    families,
    find_family,
    find_family_of_folder,
    register_family,
)

PLUGIN = '''
"""A Llama without positions (NoPE, Kazemnejad et al. 2023)."""

from typing import Literal

from stages.models.llama.configuration_llama import LlamaConfig, LlamaSection
from stages.models.registry import HFClasses, ModelFamily, register_family


class NopeConfig(LlamaConfig):
    family = "nope"


class NopeSection(LlamaSection):
    family: Literal["nope"] = "nope"
    """`nope`: as llama, without positions."""

    def config(self, preset, vocab_size):
        return NopeConfig(**vars(super().config(preset, vocab_size)))


def build(config):
    import torch
    from stages.models.llama.modeling_llama import Llama

    class Nope(Llama):
        def rotary(self, positions_BT):
            cos, sin = super().rotary(positions_BT)
            return torch.ones_like(cos), torch.zeros_like(sin)

    return Nope(config)


def conversion():
    from stages.models.llama.conversion_llama import LlamaConversion

    class NopeConversion(LlamaConversion):
        def config_json(self, config):
            return {**super().config_json(config), "model_type": "nope"}

        def read_config(self, raw, where, dropout=0.0):
            llama = super().read_config({**raw, "model_type": "llama"}, where, dropout)
            return NopeConfig(**vars(llama))

    return NopeConversion()


register_family(
    ModelFamily(
        "nope",
        frozenset({"causal", "kv_cache", "scalar_head"}),
        section=NopeSection,
        build=build,
        conversion=conversion,
        hf_types={"nope": HFClasses()},
    )
)
'''

USE = """
import json, sys
from pathlib import Path
from stages.pretrain import PretrainParams

folder = Path(sys.argv[1])
shape = {"num_layers": 2, "hidden_size": 32, "num_heads": 2, "context_length": 16}
section = {"family": "nope", **shape}
params = PretrainParams.model_validate({"model": section, "train": {"steps": 3}})
assert not list(params.check({}))
plan = {row["name"]: row["value"] for row in params.estimate_rows({})}
assert "torch" not in sys.modules, "a plan loads no torch"

import torch
from stages.models.initialization import initial_model
from stages.models.model_io import load_reward_model, save_language_model, save_reward_model
from stages.models.reward_head import RewardModel
from stages.models.smoke_test import check

config = params.config(50)
model = initial_model(config, None)
assert sum(p.numel() for p in model.parameters()) == config.parameters
tokens = torch.arange(10)[None]
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
losses = []
for _ in range(3):
    loss = model(tokens[:, :-1], targets_BT=tokens[:, 1:])
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    losses.append(loss.item())
save_language_model(model, folder / "model")
again = initial_model(config, folder / "model").eval()
torch.testing.assert_close(again(tokens), model.eval()(tokens))
reward = RewardModel(again)
save_reward_model(reward, folder / "reward")
torch.testing.assert_close(load_reward_model(folder / "reward")(tokens), reward(tokens))
print(json.dumps({"plan": plan, "losses": losses, "smoke": check(folder / "model"),
                  "type": json.loads((folder / "model/config.json").read_text())["model_type"]}))
"""


def test_a_family_of_another_package_is_one_file(tmp_path: Path) -> None:
    outside_package.write(tmp_path, "outside_nope", PLUGIN)
    found = subprocess.run(
        [sys.executable, "-c", USE, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{Path.cwd()}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    report = json.loads(found.stdout.splitlines()[-1])
    assert report["type"] == "nope"
    assert report["plan"]["parameters"] > 0 and report["plan"]["steps"] == 3
    assert report["losses"][-1] < report["losses"][0]
    assert report["smoke"] == "Nope predicts a token"


def test_the_families_of_the_tree() -> None:
    assert {"gpt2", "llama", "qwen3", "switch", "clip"} <= families().keys()
    assert find_family(gpt2_preset("gpt2")).name == "gpt2"
    assert find_family(clip_preset("nano")).name == "clip"


def test_a_name_is_taken_once() -> None:
    known = families()["gpt2"]
    assert register_family(known) is known
    other = ModelFamily(
        "gpt2", frozenset(), known.section, known.build, known.conversion, known.hf_types
    )
    with pytest.raises(ValueError, match="two model families are named 'gpt2'"):
        register_family(other)


def test_folders_of_unknown_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read models of type 'bert'") as error:
        find_family_of_folder({"model_type": "bert"}, tmp_path, "causal")
    assert error.value.remedy == "give a folder of model_type gpt2, llama, qwen3 or qwen3_moe"
    assert find_family_of_folder({"model_type": "clip"}, tmp_path).name == "clip"
