"""Costs of a CLIP in a plan against published counts and the tensors that autograd keeps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peak_allocation import peak
from saved_tensors import kept

from pipeline.stage import Params
from stages.contrastive.clip_cost_model import ClipCost
from stages.contrastive.clip_params import ClipParams
from stages.models.clip.clip_presets import clip_preset
from stages.models.clip.configuration_clip import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from stages.models.clip.conversion_clip import save_clip
from stages.models.clip.modeling_clip import CLIP
from stages.objectives.contrastive import ContrastiveObjective
from stages.training.planning.device_layout import Layout
from stages.training.planning.device_specs import DEVICES

DAY = 86400.0
ALONE = Layout(1, 0, "float32", 3, 1, gpu=False)
TEXT = TextConfig(97, 24, num_layers=2, hidden_size=32, num_heads=4, eos=3, bos=2, pad=0)
VIT = CLIPConfig(ViTConfig(32, 8, num_layers=3, hidden_size=48, num_heads=4), TEXT, embed_dim=20)
RESNET = replace(VIT, vision=ResNetConfig(64, (2, 3, 4, 2), width=8, num_heads=4))


@pytest.mark.parametrize(
    ("name", "millions", "image", "text", "gigaflops"),
    [
        ("ViT-B/32", 151.28, 87.85, 63.43, (8.82, 5.96)),
        ("ViT-B/16", 149.62, 86.19, 63.43, (35.13, 5.96)),
        ("ViT-L/14", 427.62, 303.97, 123.65, (162.03, 13.30)),
        ("ViT-L/14@336", 427.94, 304.29, 123.65, (381.92, 13.30)),
        ("RN50", 102.01, 38.32, 63.69, (12.22, 5.96)),
        ("RN101", 119.69, 56.26, 63.43, (19.54, 5.96)),
        ("RN50x4", 178.30, 87.14, 91.16, (42.56, 9.27)),
        ("RN50x64", 623.26, 420.38, 202.88, (529.11, 23.55)),
    ],
)
def test_the_published_sizes(
    name: str, millions: float, image: float, text: float, gigaflops: tuple[float, float]
) -> None:
    """Compare weights and forward FLOPs of each tower with open_clip's docs/model_profile.csv.

    The pool of its ResNets has a query per position, ours only that of the mean.
    """
    config = clip_preset(name)
    run = ClipCost(config, 1)
    assert config.parameters / 1e6 == pytest.approx(millions, abs=0.01)
    assert config.vision.parameters(config.embed_dim) / 1e6 == pytest.approx(image, abs=0.01)
    assert config.text.parameters(config.embed_dim) / 1e6 == pytest.approx(text, abs=0.01)
    close = 0.06 if name.startswith("RN") else 0.001
    assert run.image_flops / 3e9 == pytest.approx(gigaflops[0], rel=close)
    assert run.text_flops / 3e9 == pytest.approx(gigaflops[1], rel=0.001)


def params(**fields: Any) -> ClipParams:
    """Radford et al. 2021, sections 2.5 and 3.2: ViT-L/14, 256 V100s, half precision, activations
    recomputed, 32 epochs of 400 million pairs."""
    given: dict[str, Any] = {
        "preset": "ViT-L/14",
        "model": {"activation_checkpointing": True},
        "train": {
            "steps": 390625,
            "global_batch_size": 32768,
            "warmup_steps": 2000,
            "dtype": "float16",
        },
        "workers": {"num": 256, "gpus": 1},
        "hardware": {"device": "v100-32gb"},
    }
    return ClipParams.model_validate(given | fields)


@pytest.mark.parametrize(
    ("size", "devices", "days", "again"), [("ViT-L/14", 256, 12, 1), ("RN50x64", 592, 18, 4 / 3)]
)
def test_days_of_the_largest(size: str, devices: int, days: float, again: float) -> None:
    """Compare with section 2.5, where ResNets were recomputed, too."""
    plan = params(preset=size, workers={"num": devices, "gpus": 1}).estimate({})
    assert plan["pairs"] == pytest.approx(12.8e9)
    assert again * plan["seconds"] / DAY == pytest.approx(days, rel=0.1)


def test_the_work_outside_the_towers() -> None:
    run, layout = ClipCost(VIT, 64), Layout(4, 1, "float32", 16, 1)
    towers = VIT.flops_per_pair()
    pair = 6 * 64 * VIT.embed_dim  # logits with 64 others, forward and backward
    plain = run.arithmetic(layout, 64)
    assert plain.flops == 64 * (towers + pair)
    read = towers - 3 * (VIT.vision.skipped_flops() + VIT.text.skipped_flops())
    assert plain.hardware_flops == 64 * (read + 2 * pair)
    all_of_them = replace(run, local_loss=False).arithmetic(layout, 64)
    assert all_of_them.hardware_flops == 64 * (read + 4 * pair)
    sigmoid = replace(run, config=replace(VIT, bias=True)).arithmetic(layout, 64)
    assert sigmoid.hardware_flops == 64 * (read + pair)
    cached = run.arithmetic(replace(layout, micro_batch_size=4, gradient_accumulation_steps=4), 64)
    assert cached.hardware_flops == pytest.approx(64 * (4 / 3 * read + 2 * pair))
    recomputed = run.arithmetic(replace(layout, activation_checkpointing=True), 64)
    assert recomputed.hardware_flops == cached.hardware_flops


def test_features_travel_to_all_and_their_gradients_back() -> None:
    run, layout = ClipCost(VIT, 64), Layout(4, 1, "bfloat16", 16, 1)
    sent = run.traffic(layout)
    # Images and captions once, their gradients twice, in float32, three of four ways around.
    assert sent.exchanged == 2 * 3 * 64 * 20 * 4 * 3 / 4
    assert replace(run, config=replace(VIT, bias=True)).traffic(layout).exchanged * 2 == (
        sent.exchanged
    )
    assert run.traffic(Layout(1, 1, "bfloat16", 64, 1)).total == 0
    whole = run.traffic(replace(layout, zero_stage=3)).gathered
    cached = run.traffic(
        replace(layout, zero_stage=3, micro_batch_size=8, gradient_accumulation_steps=2)
    ).gathered
    assert cached == 2 * 2 * whole  # two passes; each fetches twice for two forward passes


@pytest.mark.parametrize(
    ("config", "close"),
    [(VIT, 0.01), (replace(VIT, activation="gelu"), 0.01), (RESNET, 0.03)],
    ids=["vit", "gelu", "resnet"],
)
def test_the_towers_keep_what_their_operators_save(config: CLIPConfig, close: float) -> None:
    model, size, run = CLIP(config), config.vision.image_size, ClipCost(config, 3)
    pixels, tokens = torch.randn(3, 3, size, size), torch.full((3, 24), TEXT.eos)
    images = kept(model, lambda: model.encode_image(pixels))
    texts = kept(model, lambda: model.encode_text(tokens))
    assert run.image_bytes(ALONE) == pytest.approx(images, rel=close)
    assert run.text_bytes(ALONE) == pytest.approx(texts, rel=0.01)


def test_hidden_patches_are_not_kept() -> None:
    model, places = CLIP(VIT), torch.arange(8).expand(3, -1)
    images = kept(model, lambda: model.encode_image(torch.randn(3, 3, 32, 32), places))
    assert ClipCost(VIT, 3, kept_patches=8).image_bytes(ALONE) == pytest.approx(images, rel=0.02)


def test_recomputing_and_caching_take_activations_down() -> None:
    run = ClipCost(clip_preset("ViT-L/14"), 32768)
    layout = Layout(256, 1, "float16", 128, 1)
    plain = run.activations(layout)
    assert run.activations(replace(layout, activation_checkpointing=True)) < 0.25 * plain
    parts = run.activations(replace(layout, micro_batch_size=8, gradient_accumulation_steps=16))
    assert (
        run.activations(replace(layout, micro_batch_size=16, gradient_accumulation_steps=8))
        < 0.2 * plain
    )
    towers = (run.image_bytes(layout) + run.text_bytes(layout)) / 16
    assert parts > towers  # and the whole batch of pixels, features and logits
    assert parts < towers + 2**30
    wasteful = replace(run, local_loss=False).activations(layout)
    assert wasteful - plain == pytest.approx(4 * (5 * 32768**2 - 4 * 128 * 32768))


def test_what_fits_is_planned_to_the_end() -> None:
    assert not list(params().check({}))
    found = params().estimate({})
    assert found["memory_bytes"] < found["device_bytes"] < 32 * 2**30
    kinds = [found[f"{k}_bytes"] for k in ("weights", "gradients", "optimizer", "activations")]
    assert max(kinds) < found["memory_bytes"] < sum(kinds) + found["buffers_bytes"]
    parts = [found[f"{k}_bytes"] for k in ("image", "text", "similarity", "batch")]
    assert max(parts) < found["activations_bytes"]
    assert found["parameters"] == found["image_parameters"] + found["text_parameters"] + 1
    towers = found["image_flops"] + found["text_flops"] + found["similarity_flops"]
    assert found["flops"] == pytest.approx(towers)
    held = ClipCost(params().config(4096), 32768).memory(Layout(256, 1, "float16", 128, 1, True))
    assert held.peak == found["memory_bytes"]


@pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
def test_an_initial_model_is_in_memory_next_to_the_own_one(
    config: CLIPConfig, tmp_path: Path
) -> None:
    """Compare with the allocations of the code that reads it."""
    save_clip(CLIP(config), tmp_path)
    objective = ContrastiveObjective(tmp_path, tmp_path, config, init_from=tmp_path)
    extra = peak(objective._build, tmp_path) - 4 * config.parameters
    assert 0.99 < extra / ClipCost(config, 1).load_overhead < 1.05


def test_an_initial_model_takes_memory_of_the_host() -> None:
    """Count float32 weights twice before they are rounded, and weights joined from parts."""
    alone, more = (params().estimate(above) for above in ({}, {"init_from": Params()}))
    config = params().config(4096)
    processes, whole = 8, 4 * config.parameters
    assert alone["host_bytes"] == processes * 1.5 * whole
    assert more["host_bytes"] == processes * (whole + ClipCost(config, 1).load_overhead)
    assert more["memory_bytes"] == alone["memory_bytes"]


@pytest.mark.parametrize(
    ("fields", "key"),
    [
        ({"model": {}, "preset": "ViT-L/14@336"}, "model.activation_checkpointing"),
        ({"workers": {"num": 8, "gpus": 1}}, "train.micro_batch_size"),
        ({"workers": {"num": 1, "gpus": 1}}, "workers.num"),
        (
            {
                "preset": "ViT-L/14@336",
                "model": {"vision": {"num_layers": 400}},
                "workers": {"num": 512, "gpus": 1},
            },
            None,
        ),
    ],
    ids=["activation_checkpointing", "micro-batch", "workers", "deep"],
)
def test_what_does_not_fit_is_refused_with_the_change_that_fits(
    fields: dict[str, Any], key: str | None
) -> None:
    """Apply each remedy as written: it is accepted."""
    (found,) = params(**fields).check({})
    assert "iB per device, v100-32gb has room for 29.8 GiB" in found.message
    changes = dict(part.split(": ") for part in found.remedy.split(", "))
    assert found.key == next(iter(changes))
    assert key is None or found.key == key
    changed = params(**fields).model_dump()
    for name, value in changes.items():
        section, field = name.split(".")
        changed[section][field] = True if value == "true" else int(value)
    assert not list(ClipParams.model_validate(changed).check({}))


def test_every_device_has_an_expectation() -> None:
    for name, device in DEVICES.items():
        for dtype in device.peak:
            plan = params(
                hardware={"device": name},
                train={"steps": 1, "global_batch_size": 32768, "dtype": dtype, "warmup_steps": 0},
            )
            assert 0 < plan.estimate({})["mfu"] < device.max_efficiency
