"""The stages of CLIP: what cannot work is said before anything starts, estimates, identity."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.fingerprint import identity_fields
from pipeline.stage import Params
from stages.clip import _config
from stages.contrastive.clip_params import ClipEvaluateParams, ClipParams
from stages.models.clip.clip_presets import clip_preset


class Vocabulary(Params):
    vocab_size: int = 512


def problems(**fields: object) -> list[str]:
    return [str(p) for p in ClipParams.model_validate(fields).check({"tokenizer": Vocabulary()})]


def test_a_good_file_has_no_problems() -> None:
    assert not problems(workers={"num": 2})
    assert not problems(preset="ViT-B/32", image_size=64, train={"global_batch_size": 64})
    assert not problems(
        preset="RN-tiny", export="native", model={"vision": {"blocks": [2, 1, 1, 1]}}
    )
    assert not problems(
        model={"vision": {"hidden_size": 192, "num_heads": 6}, "text": {"context_length": 16}}
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"preset": "huge"}, "preset: no preset 'huge' (presets: nano, tiny, small"),
        ({"image_size": 60}, "image_size: image size 60 is not a multiple of the patch of 8"),
        (
            {"preset": "RN-tiny", "export": "native", "image_size": 60},
            "image_size: image size 60 is not a multiple of 32",
        ),
        (
            {"model": {"vision": {"hidden_size": 130}}},
            "model.vision.hidden_size: vision: width 130 is not a multiple of 4 heads",
        ),
        (
            {"model": {"text": {"hidden_size": 130, "num_heads": 4}}},
            "model.text.hidden_size: text: width 130 is not a multiple of 4 heads",
        ),
        (
            {"model": {"text": {"context_length": 2}}},
            "model.text.context_length: a context of 2 has no room",
        ),
        (
            {"model": {"vision": {"blocks": [1, 1, 1, 1]}}},
            "model.vision.blocks: does not apply to a ViT",
        ),
        (
            {"preset": "RN-tiny", "export": "native", "model": {"vision": {"patch_size": 8}}},
            "model.vision.patch_size: does not apply to a ResNet",
        ),
        (
            {"preset": "RN-tiny", "export": "native", "patch_dropout": 0.5},
            "patch_dropout: does not apply to a ResNet",
        ),
        (
            {"preset": "RN50"},
            "export: transformers has no class for a ResNet (set export: native",
        ),
        ({"preset": "tiny", "export": "native"}, "export: a ViT is exported for transformers"),
        (
            {"augment": {"scale": [0.9, 0.5]}},
            "augment.scale: [0.9, 0.5] is not a range within (0, 1]",
        ),
        ({"augment": {"ratio": [2, 1]}}, "augment.ratio: [2.0, 1.0] is not a range above 0"),
        (
            {
                "train": {
                    "global_batch_size": 64,
                    "batch_size_rampup": {"initial_batch_size": 16, "steps": 4},
                }
            },
            "train.batch_size_rampup: the contrastive loss depends on the batch size",
        ),
        (
            {"train": {"expert_parallel_size": 2}, "workers": {"num": 2}},
            "train.expert_parallel_size: a CLIP has no experts",
        ),
        (
            {"train": {"global_batch_size": 255}, "workers": {"num": 2}},
            "train.global_batch_size: 255 is not divisible by workers.num (2) (256 is)",
        ),
    ],
)
def test_what_cannot_work_is_said_before_anything_starts(
    fields: dict[str, object], said: str
) -> None:
    found = problems(**fields)
    assert len(found) == 1
    assert found[0].startswith(said)


RESNET = clip_preset("RN-tiny", vocab_size=512)


def test_a_resnet_initializes_a_resnet() -> None:
    """Check an initial model that the plan knows (same file) and one it does not (an artifact)."""
    base = ClipParams(preset="RN-tiny", export="native")
    good, bad = ClipParams(export="native"), ClipParams()
    for upstream in (
        {},
        {"init_from": base},
        {"init_from": ClipParams(export="native"), "init_from.init_from": base},
    ):
        assert not list(good.check(upstream))
    (problem,) = bad.check({"init_from": base})
    assert problem.key == "export"
    (problem,) = good.check({"init_from": ClipParams()})
    assert str(problem).startswith("export: a ViT is exported for transformers")
    assert _config(good, Path(), RESNET) == RESNET
    with pytest.raises(InputError, match="the initial model has a ResNet as its image tower"):
        _config(bad, Path(), RESNET)
    with pytest.raises(InputError, match="a ViT is exported for transformers"):
        _config(good, Path(), clip_preset("tiny", vocab_size=512))
    with pytest.raises(InputError, match="images of 64 pixels, not 32"):
        _config(ClipParams(export="native", image_size=32), Path(), RESNET)
    plan = good.estimate({"init_from": base, "init_from.tokenizer": Vocabulary()})
    assert plan["parameters"] == base.config(512).parameters
    further = {
        "init_from": good,
        "init_from.init_from": base,
        "init_from.init_from.tokenizer": Vocabulary(),
    }
    assert good.estimate(further)["parameters"] == base.config(512).parameters


def test_a_base_that_cannot_be_is_the_bases_own_problem() -> None:
    for base in (ClipParams(preset="huge"), ClipParams(image_size=60)):
        assert not list(ClipParams().check({"init_from": base}))


def test_how_it_is_computed_is_no_part_of_identity() -> None:
    plain = ClipParams()
    other = ClipParams.model_validate(
        {
            "local_loss": False, "loader_threads": 4, "model": {"activation_checkpointing": True},
            "train": {"micro_batch_size": 8, "zero_stage": 3}, "workers": {"num": 8},
        }
    )  # fmt: skip
    assert identity_fields(plain) == identity_fields(other)
    assert identity_fields(plain) != identity_fields(ClipParams(patch_dropout=0.5))


def test_the_estimate_knows_the_vocabulary_and_the_formulas() -> None:
    fields = {"preset": "ViT-B/32", "train": {"steps": 10, "global_batch_size": 64}}
    params = ClipParams.model_validate(fields)
    known = params.estimate({"tokenizer": Vocabulary(vocab_size=49408)})
    assert known["parameters"] == 151_277_313
    assert known["pairs"] == 640
    similarity = 6 * 64 * 512  # of a pair's logits with the 64 of its step
    assert known["flops"] == 640 * (params.config(49408).flops_per_pair() + similarity)
    half = ClipParams.model_validate({**fields, "patch_dropout": 0.5})
    assert half.estimate({})["flops"] < 0.85 * known["flops"]
    whole, parts = (
        ClipParams.model_validate(
            {**fields, "train": {"global_batch_size": 64, "micro_batch_size": micro}}
        )
        for micro in (64, 8)
    )
    assert parts.estimate({})["flops"] == whole.estimate({})["flops"]
    again = parts.estimate({})["seconds"] / whole.estimate({})["seconds"]
    assert again == pytest.approx(4 / 3, rel=0.01)
    assert parts.estimate({})["memory_bytes"] < whole.estimate({})["memory_bytes"]


def test_a_sigmoid_loss_has_a_bias_and_a_resnet_its_heads() -> None:
    assert ClipParams(loss="siglip").config(512).bias
    wide = ClipParams.model_validate(
        {"preset": "RN-tiny", "export": "native", "model": {"vision": {"width": 24}}}
    )
    vision = wide.config(512).vision
    assert (vision.width, vision.num_heads) == (24, 12)
    assert math.isclose(vision.features / vision.num_heads, 64)


def test_the_content_of_the_classes_counts_and_not_their_place(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps({"templates": ["{}"], "classes": ["x", "y"]}))
        made.append(ClipEvaluateParams(classes=str(path), label_field="kind"))
    assert identity_fields(made[0]) == identity_fields(made[1])
    assert made[0].externals() == made[1].externals()
    (tmp_path / "b.json").write_text("{}")
    assert made[0].externals() != made[1].externals()
    assert not ClipEvaluateParams().externals()
    with pytest.raises(InputError, match="cannot read the classes"):
        ClipEvaluateParams(classes=str(tmp_path / "none.json"), label_field="kind").externals()


def test_classes_need_a_label_field() -> None:
    (problem,) = ClipEvaluateParams(classes="classes.json").check({})
    assert str(problem).startswith("label_field: `classes` needs it")
    assert not list(ClipEvaluateParams(label_field="kind").check({}))
