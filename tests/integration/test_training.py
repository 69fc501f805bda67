"""The training loop on two processes and on one: the same numbers, whatever the layout."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import outside_package
import pytest
import torch
from outside_optimizer import SGD_PLUGIN
from rank_groups import RankGroup, copy_due, running_ranks
from safetensors.torch import load_file
from training_cases import (
    Adapted,
    Faulty,
    Gathering,
    Half,
    Infinite,
    Named,
    Toy,
    Two,
    late,
    norm_of_many,
    odd_weights,
    pid,
    plain_losses,
)

from pipeline.context import Context
from pipeline.errors import Failure, Interrupted, WorkerDied
from pipeline.plugins import load_plugins
from pipeline.stage import Workers
from stages.training.checkpoint import CheckpointManager, CheckpointReader
from stages.training.data_order import derive_seed
from stages.training.optim import optimizer_registry
from stages.training.ranks.rank import Rank
from stages.training.ranks.watchdog import WatchdogSection
from stages.training.ranks.worker_group import WorkerGroup
from stages.training.trainer import fit
from stages.training.training_params import TrainSection

pytestmark = pytest.mark.integration

LAYOUTS = ["single", "zero-0", "zero-1", "zero-2", "zero-3"]
STEPS, STOP = 20, 16
TOUR = ["single", "zero-1", "zero-0", "zero-3", "zero-2", "single"]
"""Each layout leaves a checkpoint to another once, and is left one."""


def settings(layout: str = "zero-1", **fields: object) -> TrainSection:
    """Micro-batches of unequal weight, a clip that bites, a schedule that moves."""
    zero = 0 if layout == "single" else int(layout[-1])
    known = {
        "steps": STEPS,
        "global_batch_size": 16,
        "lr": 3e-3,
        "grad_clip": 0.5,
        "micro_batch_size": 4,
    }
    rest = {"checkpoint_interval": 0, "warmup_steps": 3, "zero_stage": zero}
    return TrainSection.model_validate({**known, **rest, **fields})


@pytest.fixture(scope="module")
def layout_groups(pair: RankGroup, single: RankGroup) -> dict[str, RankGroup]:
    return {layout: single if layout == "single" else pair for layout in LAYOUTS}


@pytest.fixture(scope="module")
def alone(single: RankGroup, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed training on one process: the folder of its model."""
    folder, made = tmp_path_factory.mktemp("straight"), settings(checkpoint_interval=STOP)
    single.group.run(fit, Toy(), made, seed=3, name="straight", out=folder)
    return folder


@pytest.fixture(scope="module")
def straight(single: RankGroup, alone: Path) -> dict[int, float]:
    """Its losses."""
    return single.series("straight", "loss")


def test_the_loop_trains_as_plain_pytorch_does(straight: dict[int, float]) -> None:
    assert list(straight.values()) == pytest.approx(plain_losses(settings(), 3), abs=1e-5)
    assert straight[STEPS] < straight[1] - 0.2


@pytest.fixture(scope="module")
def trained(pair: RankGroup, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same training at every ZeRO stage on two ranks: the folder of each model."""
    folders = {layout: tmp_path_factory.mktemp(layout) for layout in LAYOUTS[1:]}
    for layout, folder in folders.items():
        made = settings(layout, eval_interval=10, checkpoint_interval=STOP)
        first, second = pair.group.run(fit, Toy(), made, seed=3, name=layout, out=folder)
        assert first == second
    return folders


def test_every_zero_stage_on_two_ranks_trains_as_one_process_does(
    pair: RankGroup, trained: dict[str, Path], alone: Path, straight: dict[int, float]
) -> None:
    whole = torch.load(alone / "weights.pt", weights_only=True)
    for layout, folder in trained.items():
        losses = pair.series(layout, "loss")
        assert losses == pytest.approx(straight, abs=1e-5), layout
        assert set(pair.series(layout, "eval_loss")) == {10, 20}
        weights = torch.load(folder / "weights.pt", weights_only=True)
        assert weights["wte.weight"].shape == (101, 101)
        assert weights.keys() == whole.keys()
        for name, value in weights.items():
            torch.testing.assert_close(value, whole[name], rtol=0, atol=1e-4)


def test_gradient_norms_are_those_of_the_whole_batch(
    pair: RankGroup, single: RankGroup, trained: dict[str, Path], straight: dict[int, float]
) -> None:
    wanted = single.series("straight", "grad_norm")
    for layout in trained:
        assert pair.series(layout, "grad_norm") == pytest.approx(wanted, rel=1e-4), layout


@pytest.mark.parametrize(
    ("by", "limit", "layouts"),
    [
        ("norm", 0.2, ("single", "zero-3")),
        ("norm_soft", 0.5, ("zero-0", "zero-2")),
        ("value", 0.003, ("zero-0", "zero-3")),
    ],
)
def test_clipping_is_that_of_plain_pytorch_in_each_form(
    layout_groups: dict[str, RankGroup], by: str, limit: float, layouts: tuple[str, ...]
) -> None:
    """A large eps leaves Adam the scale of its gradients."""
    form = {"steps": 4, "eps": 0.1, "lr": 0.3, "grad_clip_mode": by}
    wanted = plain_losses(settings(grad_clip=limit, **form), 3)
    assert wanted != pytest.approx(plain_losses(settings(grad_clip=10.0, **form), 3), abs=1e-3)
    for layout in layouts:
        name = f"{by}-{layout}"
        layout_groups[layout].group.run(
            fit, Toy(), settings(layout, grad_clip=limit, **form), seed=3, name=name
        )
        found = list(layout_groups[layout].series(name, "loss").values())
        assert found == pytest.approx(wanted, abs=2e-5), name


def test_adapters_train_alike_on_every_layout_and_leave_the_rest_frozen(
    layout_groups: dict[str, RankGroup], tmp_path: Path
) -> None:
    """Checkpoints hold adapters alone, and continue on another layout."""
    made = settings("single", steps=8)
    wanted = dict(enumerate(plain_losses(made, 3, Adapted()), 1))
    assert wanted[8] < wanted[1] - 0.03
    torch.manual_seed(derive_seed(3))
    start = Adapted().setup(Rank(), made, 3)["model"].module.state_dict()
    for layout in LAYOUTS:
        ranks, name = layout_groups[layout], f"adapted-{layout}"
        kept = settings(layout, steps=8, checkpoint_interval=4)
        ranks.group.run(fit, Adapted(), kept, seed=3, name=name, out=tmp_path / layout)
        assert ranks.series(name, "loss") == pytest.approx(wanted, abs=1e-5), layout
        weights = torch.load(tmp_path / layout / "weights.pt", weights_only=True)
        assert weights.keys() == start.keys()
        for key, value in weights.items():
            assert torch.equal(value, start[key]) == ("lora_" not in key), (layout, key)
        files = ranks.checkpoints(name).rglob("rank-*.safetensors")
        assert {"lora_" in key for file in files for key in load_file(file) if "/fp32/" in key} == {
            True
        }
    for then, now in pairwise(["zero-3", "single", "zero-2", "zero-3"]):
        name, ranks = f"adapted-{then}-to-{now}", layout_groups[now]
        copy_due(layout_groups[then].checkpoints(f"adapted-{then}"), 4, ranks.checkpoints(name))
        ranks.group.run(fit, Adapted(), settings(now, steps=8), seed=3, name=name)
        rest = {step: loss for step, loss in wanted.items() if step > 4}
        assert ranks.series(name, "loss") == pytest.approx(rest, abs=1e-5), name


WITH_OPTIMIZER = {"muon": LAYOUTS[:-1], "lion": LAYOUTS}


def settings_of(optimizer: str, layout: str, **fields: object) -> TrainSection:
    rate = {"muon": 3e-3, "lion": 3e-4}[optimizer]
    return settings(layout, optimizer=optimizer, lr=rate, steps=12, **fields)


@pytest.fixture(scope="module", params=WITH_OPTIMIZER)
def trained_with(
    request: pytest.FixtureRequest, layout_groups: dict[str, RankGroup]
) -> tuple[str, dict[str, dict[int, float]]]:
    """An optimizer, and the losses of a training with it on each layout that it supports."""
    optimizer, runs = request.param, {}
    for layout in WITH_OPTIMIZER[optimizer]:
        made = settings_of(optimizer, layout, checkpoint_interval=8)
        layout_groups[layout].group.run(fit, Toy(), made, seed=3, name=f"{optimizer}-{layout}")
        runs[layout] = layout_groups[layout].series(f"{optimizer}-{layout}", "loss")
    return optimizer, runs


def test_other_optimizers_are_the_same_on_every_layout(
    trained_with: tuple[str, dict[str, dict[int, float]]], straight: dict[int, float]
) -> None:
    """With Muon, matrices halved between two ranks, are orthogonalized whole; torch's Muon,
    which rounds to bfloat16, comes near. Lion is written out."""
    optimizer, runs = trained_with
    wanted = runs["single"]
    for layout, losses in runs.items():
        assert losses == pytest.approx(wanted, abs=1e-4), layout
    plainly = plain_losses(settings_of(optimizer, "single"), 3)
    assert list(wanted.values()) == pytest.approx(
        plainly, abs=5e-3 if optimizer == "muon" else 1e-4
    )
    assert wanted[12] != pytest.approx(straight[12], abs=2e-2)


def test_checkpoints_of_other_optimizers_continue_on_any_layout(
    layout_groups: dict[str, RankGroup], trained_with: tuple[str, dict[str, dict[int, float]]]
) -> None:
    optimizer, runs = trained_with
    rest = {step: loss for step, loss in runs["single"].items() if step > 8}
    for then, now in pairwise([layout for layout in TOUR if layout in WITH_OPTIMIZER[optimizer]]):
        name = f"{optimizer}-{then}-to-{now}"
        copy_due(
            layout_groups[then].checkpoints(f"{optimizer}-{then}"),
            8,
            layout_groups[now].checkpoints(name),
        )
        layout_groups[now].group.run(fit, Toy(), settings_of(optimizer, now), seed=3, name=name)
        assert layout_groups[now].series(name, "loss") == pytest.approx(rest, abs=1e-4), name


def test_an_optimizer_of_a_package_outside_the_tree_trains_and_exports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside_package.install(tmp_path, monkeypatch, "sgd_plugin", SGD_PLUGIN)
    known = dict(optimizer_registry.OPTIMIZERS)
    monkeypatch.setattr(optimizer_registry, "OPTIMIZERS", known)
    load_plugins.cache_clear()
    try:
        made = settings("zero-2", optimizer="sgd", steps=6, lr=0.5)
    finally:
        load_plugins.cache_clear()
    with running_ranks(tmp_path / "run", 2) as pair:
        pair.group.run(fit, Toy(), made, seed=3, out=tmp_path / "model")
        losses = pair.series("train", "loss")
        saved = pair.checkpoints("train")
    assert losses[6] < losses[1] - 0.05
    assert (tmp_path / "model" / "weights.pt").exists()
    files = list(saved.rglob("rank-*.safetensors"))
    names = {name.split("@")[0] for path in files for name in load_file(path)}
    weights = {name for name in names if name.startswith("model/fp32/")}
    assert len(files) == 2
    assert "model/fp32/wte.weight" in weights
    assert {name.replace("/fp32/", "/momentum/") for name in weights} <= names


def stopped_at(
    group: RankGroup, made: TrainSection, name: str, step: int, objective: Toy | None = None
) -> Path:
    """Train up to a checkpoint at a step, unless that was done."""
    if not group.checkpoints(name).exists():
        stopping = replace(objective or Toy(), stop_at=step - 1)
        try:
            with pytest.raises(Interrupted):
                group.group.run(fit, stopping, made, seed=3, name=name)
        finally:
            group.ctx.cancel_file.unlink(missing_ok=True)
    return group.checkpoints(name)


def test_a_growing_batch_is_the_same_on_every_layout_and_after_a_resume(
    layout_groups: dict[str, RankGroup],
) -> None:
    ramp = {
        "batch_size_rampup": {"initial_batch_size": 4, "steps": 8},
        "micro_batch_size": 2,
        "steps": 12,
    }
    wanted = dict(enumerate(plain_losses(settings(**ramp), 3), 1))
    for layout in ("single", "zero-3"):
        made, name = settings(layout, **ramp), f"ramp-{layout}"
        layout_groups[layout].group.run(fit, Toy(), made, seed=3, name=name)
        assert layout_groups[layout].series(name, "loss") == pytest.approx(wanted, abs=1e-5), layout
    made, pair = settings("zero-1", **ramp), layout_groups["zero-1"]
    calm = pair.group.run(fit, Toy(), made, seed=3, name="ramp-calm")
    stopped_at(pair, made, "ramp-hit", 5)
    assert pair.group.run(fit, Toy(), made, seed=3, name="ramp-hit") == calm
    assert pair.series("ramp-hit", "loss") == pair.series("ramp-calm", "loss")


def test_named_losses_are_the_same_on_every_layout(layout_groups: dict[str, RankGroup]) -> None:
    for layout in ("single", "zero-1", "zero-3"):
        made = settings(layout, steps=6, micro_batch_size=2)
        layout_groups[layout].group.run(fit, Named(), made, seed=3, name=f"named-{layout}")
    single = layout_groups["single"]
    parts = [single.series("named-single", f"loss_{name}") for name in ("low", "high")]
    loss = single.series("named-single", "loss")
    for step in loss:
        expected = parts[0][step] + 0.1 * (step - 1) * parts[1][step]
        assert loss[step] == pytest.approx(expected, rel=1e-6)
    for layout in ("zero-1", "zero-3"):
        for name in ("loss", "loss_low", "loss_high", "grad_norm"):
            wanted = single.series("named-single", name)
            found = layout_groups[layout].series(f"named-{layout}", name)
            assert found == pytest.approx(wanted, rel=1e-4), (layout, name)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_trains_as_float32_does(pair: RankGroup, dtype: str, tmp_path: Path) -> None:
    """And leaves the weights that the optimizer has, not those that the forward pass rounds."""
    wanted = dict(enumerate(plain_losses(settings(steps=5), 3), 1))
    for zero in (1, 2, 3):
        made, name = settings(f"zero-{zero}", steps=5, dtype=dtype), f"{dtype}-{zero}"
        pair.group.run(fit, Half(), made, seed=3, name=name, out=tmp_path / name)
        found = pair.series(name, "loss")
        assert found == pytest.approx(wanted, abs=0.02), zero
        assert found != pytest.approx(wanted, abs=1e-5), "rounded"
        saved = CheckpointManager(pair.checkpoints(name), Rank(), 2).latest()
        assert saved is not None
        masters, rounded = CheckpointReader(saved), getattr(torch, dtype)
        weights = torch.load(tmp_path / name / "weights.pt", weights_only=True)
        for key, value in weights.items():
            kept = masters.read(f"model/fp32/{key}", 0, value.numel())
            assert torch.equal(value.flatten(), kept), (name, key)
        assert any((value != value.to(rounded)).any() for value in weights.values())


def test_weights_of_all_kinds_are_trained_and_exported(
    layout_groups: dict[str, RankGroup],
) -> None:
    """A number, and a matrix that is not trained."""
    (wanted,) = layout_groups["single"].group.run(odd_weights, settings("single"), (1,))
    assert wanted["scale"] != 2
    for layout in LAYOUTS[1:]:
        found, rest = layout_groups[layout].group.run(odd_weights, settings(layout), (1,))
        for name, value in wanted.items():
            torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5, msg=layout)
        assert rest.keys() == found.keys()
    with pytest.raises(Failure, match="odd: scale has no dimension") as caught:
        layout_groups["single"].group.run(odd_weights, settings("single"), ())
    assert "(1,)" in caught.value.remedy


@pytest.mark.parametrize(("dtype", "small"), [("bfloat16", 2**-9), ("float16", 2**-12)])
@pytest.mark.parametrize("offload", ["none", "cpu"])
def test_gradients_of_many_passes_are_added_up_in_float32(
    pair: RankGroup, dtype: str, small: float, offload: str
) -> None:
    """1 and one of the small ones are 1 in that precision."""
    for zero in (1, 2, 3):
        made = settings(f"zero-{zero}", dtype=dtype, offload_optimizer=offload)
        found = pair.group.run(norm_of_many, made, small, 64)
        assert found == pytest.approx([1 + 64 * small] * 2, rel=1e-4), zero


def test_the_loss_scale_falls_where_gradients_overflow_and_survives_a_resume(
    pair: RankGroup,
) -> None:
    """That is no step gone wrong: it does not count towards going back."""
    made = settings(steps=10, dtype="float16", skip_limit=0)
    loud = {"poison_step": 2, "poison_steps": 3, "poison": 1e4, "poison_rank": 1}
    calm = pair.group.run(fit, Half(**loud), made, seed=3, name="scale-calm")
    assert calm[0]["skipped_steps"] == 3
    scales = list(pair.series("scale-calm", "loss_scale").values())
    assert scales == [65536.0] * 3 + [32768.0] + [16384.0] * 6
    stopped_at(pair, made, "scale-hit", 6, Half(**loud))
    assert pair.group.run(fit, Half(**loud), made, seed=3, name="scale-hit") == calm
    for metric in ("loss", "loss_scale"):
        assert pair.series("scale-hit", metric) == pair.series("scale-calm", metric)
    assert (
        "the gradient overflows at loss scale 65536"
        in (pair.ctx.attempt_dir / "log.txt").read_text()
    )


def test_an_offloaded_optimizer_makes_the_same_updates(
    layout_groups: dict[str, RankGroup],
) -> None:
    """It skips the same steps, and loads checkpoints that were saved without it."""
    bad, saved = Toy(poison_step=2), 4
    at_home = settings("single", steps=6, checkpoint_interval=saved)
    layout_groups["single"].group.run(fit, bad, at_home, seed=3, name="at-home")
    wanted = layout_groups["single"].series("at-home", "loss")
    starts = [("single", 0), ("zero-1", 0), ("zero-2", saved), ("zero-3", 0), ("zero-3", saved)]
    for layout, begin in starts:
        made, name = (
            settings(layout, steps=6, offload_optimizer="cpu"),
            f"host-{layout}-from-{begin}",
        )
        if begin:
            source = layout_groups["single"].checkpoints("at-home")
            copy_due(source, saved, layout_groups[layout].checkpoints(name))
        layout_groups[layout].group.run(fit, bad, made, seed=3, name=name)
        rest = {step: loss for step, loss in wanted.items() if step > begin}
        found = layout_groups[layout].series(name, "loss")
        assert found == pytest.approx(rest, abs=1e-5, nan_ok=True), name


def test_metrics_of_a_step(pair: RankGroup, trained: dict[str, Path]) -> None:
    metrics = {key: pair.series("zero-1", key)[3] for key in ("lr", "grad_norm", "step_seconds")}
    assert metrics["lr"] == pytest.approx(3e-3)
    assert min(metrics.values()) > 0
    assert pair.series("zero-1", "tokens_per_second")[3] > 0


def test_checkpoints_hold_a_like_share_of_each_rank(
    pair: RankGroup, trained: dict[str, Path]
) -> None:
    for layout in trained:
        found = CheckpointManager(pair.checkpoints(layout), Rank(), 2).latest()
        assert found is not None
        sizes = [f["size"] for f in found.manifest["files"] if f["name"].startswith("rank-")]
        assert len(sizes) == 2
        assert max(sizes) < 1.1 * min(sizes), layout


def test_a_checkpoint_of_each_layout_continues_on_another(
    layout_groups: dict[str, RankGroup], trained: dict[str, Path], straight: dict[int, float]
) -> None:
    for then, now in pairwise(TOUR):
        assert_continues(layout_groups, straight, then, now, f"{then}-to-{now}")


@pytest.mark.long
def test_a_checkpoint_of_any_layout_continues_on_any_other(
    layout_groups: dict[str, RankGroup], trained: dict[str, Path], straight: dict[int, float]
) -> None:
    for then, now in product(LAYOUTS, LAYOUTS):
        assert_continues(layout_groups, straight, then, now, f"all-{then}-to-{now}")


def assert_continues(
    layout_groups: dict[str, RankGroup], straight: dict[int, float], then: str, now: str, name: str
) -> None:
    source = layout_groups[then].checkpoints("straight" if then == "single" else then)
    copy_due(source, STOP, layout_groups[now].checkpoints(name))
    layout_groups[now].group.run(fit, Toy(), settings(now), seed=3, name=name)
    rest = {step: loss for step, loss in straight.items() if step > STOP}
    assert layout_groups[now].series(name, "loss") == pytest.approx(rest, abs=1e-5), name


def test_zero_3_partitions_weights_and_gathers_them_on_request(
    pair: RankGroup, straight: dict[int, float]
) -> None:
    """Looking at the whole weights between steps takes nothing from the training."""
    pair.group.run(fit, Gathering(), settings("zero-3"), seed=3, name="whole")
    assert pair.series("whole", "loss") == pytest.approx(straight, abs=1e-5)
    apart = pair.series("whole", "apart")
    assert min(apart.values()) >= 5, "the embedding and the four matrices of a layer"


@pytest.mark.parametrize("layout", LAYOUTS[1:])
def test_a_bad_gradient_on_one_rank_makes_all_skip_the_step(
    pair: RankGroup, layout: str, tmp_path: Path
) -> None:
    bad = Toy(poison_step=4, poison_rank=1)
    results = pair.group.run(
        fit, bad, settings(layout, steps=8), seed=3, name=f"nan-{layout}", out=tmp_path
    )
    assert [result["skipped_steps"] for result in results] == [1.0, 1.0]
    assert results[0] == results[1]
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    assert all(bool(torch.isfinite(value).all()) for value in weights.values())
    assert "step 5: the gradient is not finite" in (pair.ctx.attempt_dir / "log.txt").read_text()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_spike_is_skipped_by_all_ranks(
    layout_groups: dict[str, RankGroup], layout: str, tmp_path: Path
) -> None:
    """A finite spike on one rank leaves the weights of a training that had no such step, also where
    the loss is as ever."""
    group, rank = layout_groups[layout], int(layout != "single")
    made, weights = settings(layout, steps=10, spike_window=8), []
    for name, poison, steep in (("spike", 1e3, 1), ("steep", 1, 1e3), ("gap", float("nan"), 1)):
        bad = Toy(poison_step=7, poison_rank=rank, poison=poison, steep=steep)
        found = group.group.run(
            fit, bad, made, seed=3, name=f"{name}-{layout}", out=tmp_path / name
        )
        assert {result["skipped_steps"] for result in found} == {1.0}
        weights.append(torch.load(tmp_path / name / "weights.pt", weights_only=True))
    spike, steep, gap = weights
    for key, value in gap.items():
        assert torch.equal(value, spike[key]), key
        assert torch.equal(value, steep[key]), key
    assert group.series(f"spike-{layout}", "spike") == {8: 1.0}
    assert group.series(f"steep-{layout}", "spike") == {8: 1.0}
    assert not group.series(f"gap-{layout}", "spike")
    log = (group.ctx.attempt_dir / "log.txt").read_text()
    assert f"spike-{layout}_step 8: the gradient norm" in log
    assert "sigma above" in log


@pytest.mark.parametrize(
    "bad",
    [
        {"poison_step": STOP + 1, "poison": 1000.0},
        {"poison_step": STOP - 1, "poison_steps": 100, "poison": 1.0, "steep": 1000.0},
    ],
    ids=["spike", "rise"],
)
def test_spike_windows_survive_a_resume(pair: RankGroup, bad: dict[str, Any]) -> None:
    """The band is that of the steps before the stop, bit for bit: also where the last of them was
    left out, and the next would be too but for it."""
    made, toy = settings(steps=STEPS, spike_window=24), {**bad, "poison_rank": 1}
    name = f"{len(bad)}-hit"
    calm = pair.group.run(fit, Toy(**toy), made, seed=3, name=f"{name}-calm")
    try:
        with pytest.raises(Interrupted, match=f"stopped at step {STOP} of {STEPS}"):
            pair.group.run(fit, Toy(**toy, stop_at=STOP - 1), made, seed=3, name=name)
    finally:
        pair.ctx.cancel_file.unlink(missing_ok=True)
    assert pair.group.run(fit, Toy(**toy), made, seed=3, name=name) == calm
    assert calm[0]["skipped_steps"] == 1
    assert pair.series(name, "loss") == pair.series(f"{name}-calm", "loss")


def test_a_lasting_rise_of_norms_is_accepted(single: RankGroup) -> None:
    """One update is left out, for which training does not go back."""
    bad = Toy(poison_step=6, poison_steps=100, poison=1.0, steep=1000.0)
    made = settings("single", skip_limit=0, spike_window=8)
    (found,) = single.group.run(fit, bad, made, seed=3, name="risen")
    assert found["skipped_steps"] == 1
    assert single.series("risen", "spike") == {7: 1.0}
    norms = single.series("risen", "grad_norm")
    assert min(norms[step] for step in range(7, STEPS)) > 50 * norms[6]


def test_lasting_loss_spikes_end_the_training(single: RankGroup) -> None:
    bad = Toy(poison_step=6, poison_steps=100, poison=1000.0)
    made = settings("single", skip_limit=1, spike_window=8)
    with pytest.raises(Failure, match=r"2 bad steps in a row.* sigma above") as caught:
        single.group.run(fit, bad, made, seed=3, name="spiked")
    assert "train.spike_sigma" in caught.value.remedy


def test_a_gradient_that_stays_bad_ends_the_training(pair: RankGroup) -> None:
    bad = Toy(poison_step=2, poison_rank=1, poison_steps=100)
    made = settings(skip_limit=1, checkpoint_interval=1)
    with pytest.raises(Failure, match="2 bad steps in a row, up to step 4: the gradient") as caught:
        pair.group.run(fit, bad, made, seed=3, name="hopeless")
    assert "lower train.lr" in caught.value.remedy
    found = CheckpointManager(pair.checkpoints("hopeless"), Rank(), 2).latest()
    assert found is not None
    assert found.step == 2, "nothing was saved while the gradient was bad"


def test_a_loss_that_is_not_finite_is_bad_but_nothing_was_skipped(single: RankGroup) -> None:
    made = settings("single", steps=6)
    (found,) = single.group.run(fit, Infinite(at=3), made, seed=3, name="infinite")
    log = (single.ctx.attempt_dir / "log.txt").read_text()
    assert "infinite_step 4: the loss is not finite, though the gradient is" in log
    assert found["skipped_steps"] == 0
    with pytest.raises(Failure, match="1 bad step, up to step 4: the loss"):
        single.group.run(fit, Infinite(at=3), settings("single", skip_limit=0), seed=3, name="inf2")


def test_the_reported_learning_rate_is_that_of_the_first_engine(single: RankGroup) -> None:
    single.group.run(fit, Two(), settings("single", steps=4), seed=3, name="two")
    rates = single.series("two", "lr")
    assert rates[3] == pytest.approx(3e-3)
    assert set(single.series("two", "grad_norm_aid")) == set(rates)


def test_ranks_that_wait_or_are_done_are_not_stalled(pair: RankGroup) -> None:
    """One works alone for longer than a silent rank is allowed: before a barrier, then after."""
    usual, pair.group.limits = pair.group.limits, WatchdogSection(startup_timeout=4)
    try:
        assert len(set(pair.group.run(late, 1, 5.5))) == 2
    finally:
        pair.group.limits = usual


def test_ranks_are_quiet_processes_of_their_own(pair: RankGroup, trained: dict[str, Path]) -> None:
    pids = pair.group.run(pid)
    assert len({*pids, os.getpid()}) == 3
    for rank in range(2):
        log = (pair.ctx.attempt_dir / f"rank-{rank}.log").read_text()
        assert not [w for w in ("Warning", "[INFO]", "[WARNING]") if w in log]


def test_ranks_as_ray_actors_train_alike_and_release_their_resources(
    ray_session: Any, tmp_path: Path, straight: dict[int, float]
) -> None:
    """On Ray: the same losses; a killed actor is a `WorkerDied`; its resources are free again."""
    ctx = Context.local(tmp_path)
    mark = tmp_path / "mark"
    kill = Faulty(at=6, whom=1, what="kill", mark=str(mark))
    died = pytest.raises(WorkerDied, match="rank 1 died")
    with WorkerGroup(Workers(num=2), ctx) as group, died:
        group.run(fit, kill, settings(checkpoint_interval=3), seed=3)
    assert mark.exists()
    with WorkerGroup(Workers(num=2), ctx) as group:
        group.run(fit, kill, settings(checkpoint_interval=3), seed=3)
    assert RankGroup(group, ctx).series("train", "loss") == pytest.approx(straight, abs=1e-5)
    deadline = time.monotonic() + 30
    while ray_session.available_resources().get("CPU") != 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray_session.available_resources()["CPU"] == 2


def test_a_function_that_a_rank_cannot_import_is_an_error_at_once(pair: RankGroup) -> None:
    """An order that cannot be unpickled there must not look like a rank that hangs."""
    with pytest.raises(Failure, match="ZeroDivisionError"):
        pair.group.run(pid, Unreadable())
    assert len(pair.group.run(pid)) == 2


def test_a_rank_loads_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    """Torch's compiler and MLflow cost each rank of each stage seconds before its first step.
    ZeRO-3 hangs hooks on modules that name the compiler."""
    heavy = ["torch._dynamo", "torch._inductor", "mlflow", "transformers"]
    with WorkerGroup(Workers(num=2), Context.local(tmp_path), backend="local") as fresh:
        for zero in (0, 1, 2):
            made = settings(steps=1, warmup_steps=0, zero_stage=zero)
            fresh.run(fit, Toy(), made, seed=0, name=f"light-{zero}")
            assert fresh.run(loaded, heavy) == [[], []], f"ZeRO-{zero}"


def loaded(rank: Rank, names: list[str]) -> list[str]:
    return [name for name in names if name in sys.modules]


class Unreadable:
    """Raises wherever it is unpickled."""

    def __reduce__(self) -> Any:
        return divmod, (1, 0)
