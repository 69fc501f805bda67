"""Pipelines that are too long for a test validate and plan; those for clusters do so on a machine
that has none of the devices."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from launch.cli import cli

CONFIGS = Path(__file__).parents[2] / "configs"
DAY = 86400.0


def plan(config: str, tmp_path: Path, *overrides: str, code: int = 0) -> str:
    words = ["plan", str(CONFIGS / config), *overrides, "--store", str(tmp_path / "store")]
    done = CliRunner().invoke(cli, words, prog_name="headwater")
    assert done.exit_code == code, done.output
    return done.output


def estimate(config: str, stage: str, tmp_path: Path, *overrides: str) -> dict[str, Any]:
    data = json.loads(plan(config, tmp_path, *overrides, "--json"))
    return {found["name"]: found["estimate"] for found in data["stages"]}[stage]


def test_gpt3_13b(tmp_path: Path) -> None:
    found = estimate("gpt3-13b.yaml", "gpt", tmp_path)
    assert found["parameters"] == pytest.approx(12.85e9, rel=0.01)
    assert found["tokens"] == pytest.approx(300e9, rel=0.001)
    # Brown et al. 2020, table D.1, which leaves attention out.
    assert found["flops"] == pytest.approx(2.31e22, rel=0.1)
    # 18 bytes of states a weight, gradients in float32, over 256 devices
    states = sum(found[f"{kind}_bytes"] for kind in ("weights", "gradients", "optimizer"))
    assert states == pytest.approx(18 * found["parameters"] / 256)
    assert 0.3 < found["mfu"] < 0.55
    assert 5 * DAY < found["seconds"] < 12 * DAY
    assert found["memory_bytes"] < found["device_bytes"]


def test_switch_base_64e(tmp_path: Path) -> None:
    """Half of the experts of the 7.4 G that Fedus et al. 2021, table 9, have with 128."""
    found = estimate("switch-base-64e.yaml", "switch", tmp_path)
    assert found["parameters"] == pytest.approx(3.8e9, rel=0.05)
    assert found["tokens"] == pytest.approx(576e9, rel=0.002)
    # A dense decoder of that shape: 12 d^2 + 3 d inner a block, and the head.
    dense = 24 * (4 * 768**2 + 3 * 768 * 2048) + 32000 * 768
    assert found["active_parameters"] == pytest.approx(dense, rel=0.01)
    assert found["exchanged_bytes"] > 0
    alone = estimate(
        "switch-base-64e.yaml", "switch", tmp_path, "switch.train.expert_parallel_size=1"
    )
    assert alone["exchanged_bytes"] == 0
    assert alone["weights_bytes"] > 5 * found["weights_bytes"]


def test_clip_vit_l_14(tmp_path: Path) -> None:
    """Radford et al. 2021, section 2.5 and tables 18 to 20: 12 days on 256 V100s. Weights and FLOPs
    as open_clip counts them."""
    found = estimate("clip-vit-l-14.yaml", "clip", tmp_path)
    assert found["parameters"] == pytest.approx(427.62e6, rel=1e-4)
    assert found["pairs"] == 12.8e9
    towers = found["image_flops"] + found["text_flops"]
    assert towers == pytest.approx(3 * 175.33e9 * 12.8e9, rel=0.001)
    assert found["flops"] == pytest.approx(towers, rel=0.001)
    assert found["seconds"] == pytest.approx(12 * DAY, rel=0.1)
    assert found["memory_bytes"] < found["device_bytes"]
    shown = plan("clip-vit-l-14.yaml", tmp_path)
    for words in (
        "image tower 304 M, text tower 124 M",
        "per step 32,768",
        "image tower 6.22e21, text tower 5.11e20, similarity 1.93e18",
        "weights 812.4 MiB, features 573.8 MiB",
        "activations per device",
    ):
        assert words in " ".join(shown.split())  # breakdowns wrap
    output = plan("clip-vit-l-14.yaml", tmp_path, "clip.workers.num=8", code=2)
    assert "clip.train.micro_batch_size: takes" in output


def test_clip(tmp_path: Path) -> None:
    """Check the comment of the file: ten minutes on two cores."""
    found = estimate("clip.yaml", "clip", tmp_path)
    assert found["parameters"] == pytest.approx(2.1e6, rel=0.01)
    assert found["image_parameters"] + found["text_parameters"] + 1 == found["parameters"]
    assert found["pairs"] == 3400 * 64
    assert found["devices"] == 2
    assert found["seconds"] < 600
    assert found["memory_bytes"] < 2**30


def test_plan_shows_the_costs_of_a_training(tmp_path: Path) -> None:
    shown = plan("gpt3-13b.yaml", tmp_path, "gpt.model.activation_checkpointing=true")
    for words in (
        "active 12.9 G",
        "per step 2.1 M",
        "3.27e22",
        "usable memory per device",
        "weights 95.8 MiB, gradients 191.5 MiB, optimizer 574.6 MiB, activations ",
        "sent per device and step",
        "devices 256",
    ):
        assert words in " ".join(shown.split())  # breakdowns wrap


def test_plan_refuses_what_does_not_fit(tmp_path: Path) -> None:
    output = plan("gpt3-13b.yaml", tmp_path, "gpt.hardware.device=a100-40gb", code=2)
    assert "gpt.train.micro_batch_size: takes 56" in output
    assert "a100-40gb has room for 37.0 GiB (train.micro_batch_size: 2)" in output
    plan("gpt3-13b.yaml", tmp_path, "gpt.hardware.device=a100-40gb", "gpt.train.micro_batch_size=2")
