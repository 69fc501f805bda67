"""CLIP on two processes and on one, in parts and whole: the same numbers, whatever the layout."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rank_groups import RankGroup, copy_due
from safetensors.torch import load_file
from tiny_clip import Half, Hot, clip_world, shape_of
from transformers import CLIPModel

from pipeline.context import Context, read_series
from pipeline.errors import Interrupted
from stages.clip import clip, evaluate_clip_stage
from stages.contrastive.augmentation import Augmentation
from stages.contrastive.clip_evaluation import ClipEvalConfig, evaluate_clip
from stages.contrastive.clip_params import ClipEvaluateParams, ClipParams, ClipTrain
from stages.contrastive.losses import contrastive_loss, sigmoid_loss
from stages.contrastive.pair_dataset import PairDataset, collate
from stages.data.image_text_dataset import ImageTextStore
from stages.data.tokenizers.sentencepiece_tokenizer import Tokenizer
from stages.models.clip.configuration_clip import ResNetConfig
from stages.models.clip.conversion_clip import load_clip, save_clip
from stages.models.clip.modeling_clip import CLIP
from stages.objectives.contrastive import ContrastiveObjective
from stages.training.checkpoint import CheckpointManager, CheckpointReader
from stages.training.data_order import derive_seed
from stages.training.lr_schedule import lr_scale
from stages.training.ranks.rank import Rank
from stages.training.trainer import fit

pytestmark = pytest.mark.integration

STEPS, SAVED, BATCH, SEED = 20, 16, 16, 8
"""Six steps are an epoch: the checkpoint is of the middle of one."""
LAYOUTS = [
    f"{ranks}-{batch}"
    for ranks in ("single", "zero-0", "zero-1", "zero-2", "zero-3")
    for batch in ("whole", "parts")
]
TOUR = [0, 5, 2, 9, 6, 1, 8, 3, 4, 7, 0]
"""Each layout leaves a checkpoint to another once, and is left one."""


def settings(zero: int = 1, **fields: object) -> ClipTrain:
    known = {
        "steps": STEPS,
        "global_batch_size": BATCH,
        "lr": 3e-3,
        "grad_clip": 2.0,
        "warmup_steps": 2,
    }
    rest = {"checkpoint_interval": 0, "zero_stage": zero, "eval_samples": 30}
    return ClipTrain.model_validate({**known, **rest, **fields})


def laid_out(layout: str, **fields: object) -> ClipTrain:
    zero = 0 if layout.startswith("single") else int(layout[5])
    return settings(zero, micro_batch_size=4 if layout.endswith("parts") else None, **fields)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_world(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def hot(world: Path) -> Hot:
    changes = Augmentation((0.6, 1.0), color_jitter=(0.2, 0.2, 0.2, 0.0))
    return Hot(world / "pairs", world / "tokenizer", shape_of(world), changes, patch_dropout=0.3)


def plain(hot: Hot, made: ClipTrain) -> tuple[list[float], list[float], list[float]]:
    """Losses, scales and their weight after each step of a loop in plain PyTorch, set back as the
    published code does: no engine, no shards, one process, one batch, no limit in the model."""
    torch.manual_seed(derive_seed(SEED))
    model = hot.heated(CLIP(hot.config).train())
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.2},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    adam = torch.optim.AdamW(groups, betas=(made.beta1, made.beta2), eps=made.eps)
    store, tokenizer = ImageTextStore(hot.pairs), Tokenizer(hot.tokenizer_folder)
    views = PairDataset(
        store, tokenizer, hot.config.text, 24, hot.augmentation, SEED, BATCH, patches=9, kept=6
    )
    losses, scales, weights = [], [], []
    for step in range(made.steps):
        pairs = [views[step * BATCH + i] for i in range(BATCH)]
        batch = collate(pairs, hot.config.text, torch.device("cpu"))
        image_BE = model.encode_image(batch["pixels"], batch["kept_patches"])
        text_BE = model.encode_text(batch["tokens"])
        scale = model.logit_scale.exp()
        logits_BB, own_B = scale * image_BE @ text_BE.T, torch.arange(BATCH)
        loss = torch.nn.functional.cross_entropy(logits_BB, own_B)
        loss = (loss + torch.nn.functional.cross_entropy(logits_BB.T, own_B)) / 2
        adam.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), made.grad_clip)
        for group in adam.param_groups:
            group["lr"] = made.lr * lr_scale(made, step)
        adam.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=model.log_scale_limit)
        losses.append(loss.item())
        scales.append(scale.item())
        weights.append(model.logit_scale.item())
    return losses, scales, weights


@pytest.fixture(scope="module")
def layout_groups(pair: RankGroup, single: RankGroup) -> dict[str, RankGroup]:
    return {layout: single if layout.startswith("single") else pair for layout in LAYOUTS}


@pytest.fixture(scope="module")
def trained(
    layout_groups: dict[str, RankGroup], hot: Hot, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The same training on every layout: the folder of each model."""
    folders = {layout: tmp_path_factory.mktemp(layout) for layout in LAYOUTS}
    for layout, folder in folders.items():
        made = laid_out(layout, eval_interval=10, checkpoint_interval=SAVED)
        results = layout_groups[layout].group.run(
            fit, loss_of(hot, layout), made, seed=SEED, name=f"clip-{layout}", out=folder
        )
        assert results[0] == results[-1]
    return folders


def loss_of(hot: Hot, layout: str) -> Hot:
    """Every ZeRO stage computes all logits on each rank once, and once each rank its own."""
    local = layout in ("zero-0-parts", "zero-1-whole", "zero-2-parts", "zero-3-whole")
    return replace(hot, local_loss=local)


def wanted(single: RankGroup, figure: str) -> dict[int, float]:
    """Of the undisturbed training on one process in one batch."""
    return single.series("clip-single-whole", figure)


def test_the_loop_trains_as_plain_pytorch_does(
    single: RankGroup, hot: Hot, trained: dict[str, Path]
) -> None:
    losses, scales, weights = plain(hot, settings())
    assert list(wanted(single, "loss").values()) == pytest.approx(losses, abs=1e-4)
    found = list(wanted(single, "logit_scale").values())
    assert found == pytest.approx(scales, rel=1e-5)
    assert list(wanted(single, "master").values()) == pytest.approx(weights, rel=1e-5)
    assert scales.count(max(scales)) > 1, f"the limit is met: {scales}"
    assert max(scales) == pytest.approx(math.exp(hot.begin + hot.room))
    assert losses[-1] < losses[0]


def test_every_layout_trains_alike(
    layout_groups: dict[str, RankGroup], single: RankGroup, trained: dict[str, Path]
) -> None:
    """One process, and ZeRO 0-3 on two ranks, each whole or in parts, with some of each image's
    patches hidden."""
    whole = load_file(trained["single-whole"] / "model.safetensors")
    for layout, folder in trained.items():
        for figure, error in {
            "loss": {"abs": 1e-4},
            "logit_scale": {"rel": 1e-4},
            "master": {"rel": 1e-4},
            "eval_loss": {"abs": 1e-4},
        }.items():
            found = layout_groups[layout].series(f"clip-{layout}", figure)
            assert found == pytest.approx(wanted(single, figure), **error), (layout, figure)
        found = load_file(folder / "model.safetensors")
        assert found.keys() == whole.keys()
        for name, value in found.items():
            torch.testing.assert_close(
                value, whole[name], rtol=0, atol=1e-4, msg=f"{layout}: {name}"
            )


def test_a_checkpoint_of_each_layout_continues_on_another(
    layout_groups: dict[str, RankGroup], hot: Hot, trained: dict[str, Path]
) -> None:
    assert sorted(TOUR[1:]) == list(range(len(LAYOUTS)))
    for then, now in pairwise(LAYOUTS[number] for number in TOUR):
        assert_continues(layout_groups, hot, then, now, f"clip-{then}-to-{now}")


@pytest.mark.long
def test_a_checkpoint_of_any_layout_continues_on_any_other(
    layout_groups: dict[str, RankGroup], hot: Hot, trained: dict[str, Path]
) -> None:
    for then, now in product(LAYOUTS, LAYOUTS):
        assert_continues(layout_groups, hot, then, now, f"clip-all-{then}-to-{now}")


def assert_continues(
    layout_groups: dict[str, RankGroup], hot: Hot, then: str, now: str, name: str
) -> None:
    """From the checkpoint that fell due, not the last."""
    copy_due(
        layout_groups[then].checkpoints(f"clip-{then}"), SAVED, layout_groups[now].checkpoints(name)
    )
    layout_groups[now].group.run(fit, loss_of(hot, now), laid_out(now), seed=SEED, name=name)
    losses = wanted(layout_groups["single-whole"], "loss")
    rest = {step: loss for step, loss in losses.items() if step > SAVED}
    assert layout_groups[now].series(name, "loss") == pytest.approx(rest, abs=1e-5), name


def test_training_goes_on_where_it_stopped(
    pair: RankGroup, hot: Hot, trained: dict[str, Path], tmp_path: Path
) -> None:
    """In the middle of an epoch, bit for bit."""
    layout, name = "zero-3-parts", "clip-stopped"
    made, calm = laid_out(layout), loss_of(hot, layout)
    try:
        with pytest.raises(Interrupted, match=f"stopped at step 7 of {STEPS}"):
            stopping = Stopping(**{**vars_of(calm), "stop_at": 6})
            pair.group.run(fit, stopping, made, seed=SEED, name=name)
    finally:
        pair.ctx.cancel_file.unlink(missing_ok=True)
    pair.group.run(fit, calm, made, seed=SEED, name=name, out=tmp_path)
    files = [(folder / "model.safetensors").read_bytes() for folder in (trained[layout], tmp_path)]
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("dtype", "layout"), [("bfloat16", "zero-1-whole"), ("float16", "zero-2-parts")]
)
def test_half_precision_trains_as_float32_does(
    pair: RankGroup, hot: Hot, dtype: str, layout: str, tmp_path: Path
) -> None:
    """And leaves the weights that the optimizer has, not those that the forward pass rounds. No
    gradient overflows at the first loss scale, which would cost a step."""
    hot, made = replace(hot, begin=0.3), laid_out(layout, dtype=dtype, steps=8, lr=1e-3)
    name, losses = f"clip-{dtype}", dict(enumerate(plain(hot, made)[0], 1))
    half = Half(**vars_of(loss_of(hot, layout)))
    results = pair.group.run(fit, half, made, seed=SEED, name=name, out=tmp_path)
    assert results[0]["skipped_steps"] == 0
    found = pair.series(name, "loss")
    assert found == pytest.approx(losses, abs=0.02)
    assert found != pytest.approx(losses, abs=1e-5), "rounded"
    assert found[8] < found[1] - 0.3
    saved = CheckpointManager(pair.checkpoints(name), Rank(), 2).latest()
    assert saved is not None
    masters, weights = CheckpointReader(saved), load_clip(tmp_path).state_dict()
    for key, value in weights.items():
        kept = masters.read(f"model/fp32/{key}", 0, value.numel())
        assert torch.equal(value.flatten(), kept), key
    assert any((v != v.to(getattr(torch, dtype))).any() for v in weights.values())


class Stopping(Hot):
    """Somebody asks the run to stop during a step."""

    def __init__(self, stop_at: int, **fields: Any) -> None:
        super().__init__(**fields)
        self.stop_at = stop_at

    def step(self, engines: Any, step: int) -> Any:
        if step == self.stop_at and self.rank.ctx:
            self.rank.ctx.cancel_file.touch()
        return super().step(engines, step)


def vars_of(hot: Hot) -> dict[str, Any]:
    return {name: getattr(hot, name) for name in hot.__dataclass_fields__}


def halves(rank: Rank, sigmoid: bool, local: bool) -> dict[str, torch.Tensor]:
    """The share of a loss in float64 and the gradients of this rank's rows."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(2, 8, 5, generator=generator, dtype=torch.double)
    whole = torch.nn.functional.normalize(rows, dim=2)
    own = slice(rank.index * 8 // rank.world, (rank.index + 1) * 8 // rank.world)
    image_BE, text_BE = (whole[i, own].clone().requires_grad_() for i in (0, 1))
    scale, bias = (torch.tensor(v, dtype=torch.double, requires_grad=True) for v in (7.0, -2.0))
    if sigmoid:
        share = sigmoid_loss(image_BE, text_BE, scale, bias, rank)
    else:
        share = contrastive_loss(image_BE, text_BE, scale, rank, local=local)
    share.loss.backward()
    found = {"image": image_BE.grad, "text": text_BE.grad, "scale": scale.grad, "bias": bias.grad}
    return {
        "loss": share.loss.detach(),
        "correct": share.correct,
        **{k: v for k, v in found.items() if v is not None},
    }


@pytest.mark.parametrize(("sigmoid", "local"), [(False, False), (False, True), (True, False)])
def test_two_ranks_halves_are_the_whole(
    pair: RankGroup, single: RankGroup, sigmoid: bool, local: bool
) -> None:
    (whole,) = single.group.run(halves, sigmoid, local)
    parts = pair.group.run(halves, sigmoid, local)
    for name in ("loss", "correct", "scale", *(["bias"] if sigmoid else [])):
        torch.testing.assert_close(parts[0][name] + parts[1][name], whole[name])
    for name in ("image", "text"):
        torch.testing.assert_close(torch.cat([p[name] for p in parts]), whole[name])


def test_statistics_of_batch_norms_are_alike_and_survive(
    pair: RankGroup, world: Path, tmp_path: Path
) -> None:
    tower = ResNetConfig(32, (1, 1, 1, 1), 4, 2)
    resnet = Stopping(
        stop_at=2, pairs=world / "pairs", tokenizer_folder=world / "tokenizer",
        config=shape_of(world, vision=tower),
    )  # fmt: skip
    made = settings(2, steps=5, micro_batch_size=4)
    try:
        with pytest.raises(Interrupted):
            pair.group.run(fit, resnet, made, seed=SEED, name="resnet")
    finally:
        pair.ctx.cancel_file.unlink(missing_ok=True)
    resnet.stop_at = -1
    for name in ("resnet", "resnet-whole"):
        pair.group.run(fit, resnet, made, seed=SEED, name=name, out=tmp_path / name)
    one, other = (load_clip(tmp_path / n).state_dict() for n in ("resnet", "resnet-whole"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert one["visual.bn1.running_mean"].abs().sum() > 0


def test_statistics_of_batch_norms_are_not_rounded_in_half_precision(
    pair: RankGroup, world: Path, tmp_path: Path
) -> None:
    config = shape_of(world, vision=ResNetConfig(32, (1, 1, 1, 1), 4, 2))
    half = Half(world / "pairs", world / "tokenizer", config)
    made = settings(2, steps=3, dtype="bfloat16", micro_batch_size=4)
    pair.group.run(fit, half, made, seed=SEED, name="resnet-half", out=tmp_path)
    state = load_clip(tmp_path).state_dict()
    for name in ("visual.bn1.running_mean", "visual.groups.3.0.bn3.running_var"):
        assert torch.isfinite(state[name]).all()
        assert (state[name] != state[name].bfloat16()).any(), name


class Spoilt(ContrastiveObjective):
    """At the second step what the first layer says of the images is no number."""

    def step(self, engines: Any, step: int) -> Any:
        module = engines["model"].module
        hooks = []
        if step == 1:
            first = next(m for m in module.modules() if isinstance(m, torch.nn.Conv2d))
            hooks.append(first.register_forward_hook(lambda *told: told[-1] * float("nan")))
        try:
            return super().step(engines, step)
        finally:
            for hook in hooks:
                hook.remove()


def test_a_skipped_step_leaves_the_statistics_as_they_were(
    single: RankGroup, world: Path, tmp_path: Path
) -> None:
    config = shape_of(world, vision=ResNetConfig(32, (1, 1, 1, 1), 4, 2))
    spoilt = Spoilt(world / "pairs", world / "tokenizer", config)
    for micro in (None, 8):
        made = settings(0, steps=3, micro_batch_size=micro)
        (found,) = single.group.run(
            fit, spoilt, made, seed=SEED, name=f"spoilt-{micro}", out=tmp_path / str(micro)
        )
        assert found["skipped_steps"] == 1
        held = load_clip(tmp_path / str(micro)).state_dict()
        assert all(bool(torch.isfinite(value).all()) for value in held.values())


def test_two_ranks_measure_what_one_does(
    pair: RankGroup, single: RankGroup, world: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    save_clip(CLIP(shape_of(world)), tmp_path, world / "tokenizer")
    asked = ClipEvalConfig(label_field="shape", limit=31, batch_size=8)
    (alone,) = single.group.run(evaluate_clip, tmp_path, world / "pairs", asked)
    first, second = pair.group.run(evaluate_clip, tmp_path, world / "pairs", asked)
    assert second is None
    assert first.metrics == pytest.approx(alone.metrics)


def edges(**paths: Path) -> Any:
    return SimpleNamespace(path=lambda name: paths[name], get_path=paths.get)


def test_the_stage_learns_and_leaves_a_folder_that_everybody_loads(
    world: Path, tmp_path: Path
) -> None:
    ctx = Context.local(tmp_path / "clip")
    params = ClipParams.model_validate({
        "preset": "nano", "image_size": 24, "patch_dropout": 0.2, "loader_threads": 1,
        "train": {"steps": 60, "global_batch_size": 32, "lr": 3e-3, "eval_interval": 30},
        "workers": {"num": 2},
    })  # fmt: skip
    clip(params, edges(pairs=world / "pairs", tokenizer=world / "tokenizer"), ctx.out, ctx)
    series = read_series(ctx.observed / "metrics.jsonl")
    trained = [point for point in series if "loss" in point]
    assert len(trained) == 60
    assert trained[-1]["loss"] < 0.7 * trained[0]["loss"]
    assert all(point["mfu"] > 0 and point["pairs_per_second"] > 0 for point in trained)
    results = json.loads((ctx.observed / "results.json").read_text())
    assert results["eval_image_to_text_r5"] > 0.6
    model = CLIPModel.from_pretrained(ctx.out).eval()
    assert sum(p.numel() for p in model.parameters()) == results["parameters"]

    more = Context.local(tmp_path / "more")
    going_on = ClipParams(preset="tiny", train=settings(steps=3, warmup_steps=0))
    clip(going_on, edges(pairs=world / "pairs", init_from=ctx.out), more.out, more)
    again = [p["loss"] for p in read_series(more.observed / "metrics.jsonl") if "loss" in p]
    assert again[0] < 0.8 * trained[0]["loss"], "it begins where the other ended"

    worth = Context.local(tmp_path / "worth")
    classes = tmp_path / "classes.json"
    told = {"templates": ["{}", "a {} thing"], "classes": ["red", "green", "blue", "black"]}
    classes.write_text(json.dumps(told))
    asked = ClipEvaluateParams(classes=str(classes), label_field="colour")
    evaluate_clip_stage(asked, edges(model=ctx.out, pairs=world / "pairs"), worth.out, worth)
    figures = json.loads((worth.out / "metrics.json").read_text())
    assert figures["zero_shot"] > 0.6
    assert figures["linear_probe"] > 0.8
    assert figures["image_to_text_r5"] > 0.6
    assert (figures["images"], figures["texts"]) == (32, 48)
