"""Experts spread over ranks, at every ZeRO stage: the same numbers as on one process.

The learning rate is constant after its warm-up, so that a training of fewer steps is the beginning
of the one that all are compared with. Sequences are padded unequally: no two micro-batches weigh
the same.
"""

from __future__ import annotations

import shutil
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from rank_groups import RankGroup, copy_due, running_ranks
from training_cases import Bucketed, HalfRouted, Routed, fit_in_parts, routed_config

from pipeline.errors import InputError
from stages.training.checkpoint import CheckpointManager, CheckpointReader
from stages.training.data_order import derive_seed
from stages.training.ranks.rank import Rank
from stages.training.trainer import fit
from stages.training.training_params import TrainSection

pytestmark = pytest.mark.integration

STEPS, SAVED, SHORT = 20, 16, 5
LAYOUTS = ["single"] + [f"zero-{zero}-ep-{ep}" for zero in range(4) for ep in (1, 2)]
TOUR = [0, 2, 3, 8, 6, 1, 7, 4, 5, 0]
"""Each layout leaves a checkpoint to another once, and is left one: experts are spread, brought
together, and stay as they are."""


def settings(layout: str, **fields: object) -> TrainSection:
    spread = {}
    if layout != "single":
        spread = {"zero_stage": int(layout[5]), "expert_parallel_size": int(layout[-1])}
    known = {
        "steps": STEPS,
        "global_batch_size": 8,
        "lr": 3e-3,
        "grad_clip": 0.4,
        "micro_batch_size": 2,
    }
    rest = {"checkpoint_interval": 0, "warmup_steps": 3, "lr_schedule": "constant"}
    return TrainSection.model_validate({**known, **rest, **spread, **fields})


@pytest.fixture(scope="module")
def layout_groups(pair: RankGroup, single: RankGroup) -> dict[str, RankGroup]:
    return {layout: single if layout == "single" else pair for layout in LAYOUTS}


@pytest.fixture(scope="module")
def trained(
    layout_groups: dict[str, RankGroup], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    folders = {layout: tmp_path_factory.mktemp(layout) for layout in LAYOUTS}
    for layout, folder in folders.items():
        made = settings(layout, checkpoint_interval=SAVED)
        layout_groups[layout].group.run(
            fit, Routed(), made, seed=3, name=f"routed-{layout}", out=folder
        )
    return folders


def wanted(
    layout_groups: dict[str, RankGroup], metric: str, steps: int = STEPS
) -> dict[int, float]:
    series = layout_groups["single"].series("routed-single", metric)
    return {step: value for step, value in series.items() if step <= steps}


def test_every_layout_trains_as_one_process_does(
    layout_groups: dict[str, RankGroup], trained: dict[str, Path]
) -> None:
    losses = wanted(layout_groups, "loss")
    assert losses[STEPS] < losses[1] - 0.25
    assert max(wanted(layout_groups, "dropped_tokens").values()) > 0.01, "capacity binds"
    whole = torch.load(trained["single"] / "weights.pt", weights_only=True)
    assert whole["layers.1.feed_forward.experts.gate_up"].shape == (4, 112, 104)
    for layout in LAYOUTS[1:]:
        for metric in ("loss", "grad_norm", "dropped_tokens", "balance_loss", "router_z"):
            found = layout_groups[layout].series(f"routed-{layout}", metric)
            assert found == pytest.approx(wanted(layout_groups, metric), rel=1e-4, abs=1e-5), (
                layout,
                metric,
            )
        weights = torch.load(trained[layout] / "weights.pt", weights_only=True)
        for name, value in weights.items():
            torch.testing.assert_close(value, whole[name], rtol=0, atol=1e-4, msg=layout)


def test_micro_batches_make_no_difference(
    layout_groups: dict[str, RankGroup], trained: dict[str, Path]
) -> None:
    made = settings("single", micro_batch_size=8, steps=SHORT)
    layout_groups["single"].group.run(fit, Routed(), made, seed=3, name="routed-at-once")
    for metric in ("loss", "grad_norm", "balance_loss"):
        found = layout_groups["single"].series("routed-at-once", metric)
        assert found == pytest.approx(wanted(layout_groups, metric, SHORT), rel=1e-4), metric


@pytest.mark.parametrize("zero", [1, 2, 3])
@pytest.mark.parametrize("ep", [1, 2])
def test_gradients_are_reduced_in_parts(
    layout_groups: dict[str, RankGroup], trained: dict[str, Path], zero: int, ep: int
) -> None:
    """A part holds several tensors, dense ones and experts; the largest go by themselves."""
    layout = f"zero-{zero}-ep-{ep}"
    made, name = settings(layout, steps=SHORT), f"parts-{layout}"
    run = {"numbers": 15_000, "seed": 3, "name": name}
    layout_groups[layout].group.run(fit_in_parts, Bucketed(), made, **run)
    assert set(layout_groups[layout].series(name, "bucket").values()) == {15_000}
    for metric in ("loss", "grad_norm"):
        found = layout_groups[layout].series(name, metric)
        assert found == pytest.approx(wanted(layout_groups, metric, SHORT), rel=1e-4), (
            layout,
            metric,
        )


@pytest.mark.parametrize("zero", [1, 2])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_spread_experts_train_in_half_precision_as_in_float32(
    layout_groups: dict[str, RankGroup],
    trained: dict[str, Path],
    dtype: str,
    zero: int,
    tmp_path: Path,
) -> None:
    """And leave the weights that the optimizer has, those of all ranks' experts among them."""
    layout, rounded = f"zero-{zero}-ep-2", getattr(torch, dtype)
    made, name = settings(layout, steps=SHORT, dtype=dtype), f"{dtype}-{layout}"
    layout_groups[layout].group.run(fit, HalfRouted(), made, seed=3, name=name, out=tmp_path)
    found = layout_groups[layout].series(name, "loss")
    assert found == pytest.approx(wanted(layout_groups, "loss", SHORT), abs=0.02)
    assert found != pytest.approx(wanted(layout_groups, "loss", SHORT), abs=1e-5), "rounded"
    saved = CheckpointManager(layout_groups[layout].checkpoints(name), Rank(), 2).latest()
    assert saved is not None
    masters = CheckpointReader(saved)
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    for key, value in weights.items():
        kept = masters.read(f"model/fp32/{key}", 0, value.numel())
        assert torch.equal(value.flatten(), kept), key
    experts = weights["layers.1.feed_forward.experts.gate_up"]
    assert experts.shape == (4, 112, 104)
    assert all((expert != expert.to(rounded)).any() for expert in experts)


@pytest.mark.parametrize("layout", ["zero-1-ep-2", "zero-3-ep-1", "zero-3-ep-2"])
def test_recomputing_makes_no_difference(
    layout_groups: dict[str, RankGroup], trained: dict[str, Path], layout: str
) -> None:
    made, name = settings(layout, steps=SHORT), f"again-{layout}"
    layout_groups[layout].group.run(
        fit, Routed(activation_checkpointing=True), made, seed=3, name=name
    )
    for metric in ("loss", "grad_norm"):
        found = layout_groups[layout].series(name, metric)
        assert found == pytest.approx(wanted(layout_groups, metric, SHORT), rel=1e-5), metric


@pytest.mark.parametrize("layout", ["single", "zero-2-ep-1", "zero-1-ep-2", "zero-3-ep-2"])
def test_weights_move_at_the_rates_of_their_kinds(
    layout_groups: dict[str, RankGroup], layout: str, tmp_path: Path
) -> None:
    """Adam's first step moves each weight by its learning rate, whatever the gradient is."""
    form = {
        "steps": 1,
        "warmup_steps": 0,
        "weight_decay": 0,
        "grad_clip": 0,
        "micro_batch_size": None,
    }
    made = settings(layout, **form)
    layout_groups[layout].group.run(
        fit, Routed(), made, seed=3, name=f"rates-{layout}", out=tmp_path
    )
    rate = layout_groups[layout].series(f"rates-{layout}", "lr")[1]
    after = torch.load(tmp_path / "weights.pt", weights_only=True)
    torch.manual_seed(derive_seed(3))
    model = Routed().setup(Rank(), made, 3)["model"].module
    for name, weight in model.named_parameters():
        moved = float((after[name] - weight.detach()).abs().median())
        half = name.startswith("layers") and "norm" not in name
        assert moved == pytest.approx(rate / (2 if half else 1), rel=0.02), name


def test_a_balance_over_the_whole_batch_is_alike_too(layout_groups: dict[str, RankGroup]) -> None:
    """Without accumulation: the load is that of the micro-batches of all ranks."""
    series = {}
    for layout in ("single", "zero-2-ep-2"):
        objective, name = Routed(routed_config("batch")), f"batch-{layout}"
        made = settings(layout, micro_batch_size=None, steps=SHORT)
        layout_groups[layout].group.run(fit, objective, made, seed=3, name=name)
        series[layout] = [
            layout_groups[layout].series(name, key) for key in ("loss", "balance_loss")
        ]
    for found, expected in zip(series["zero-2-ep-2"], series["single"], strict=True):
        assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("by", "limit", "layouts"), [("norm_soft", 0.4, (0, 3)), ("value", 0.002, (0, 1))]
)
def test_clipping_knows_the_experts_of_all_ranks(
    layout_groups: dict[str, RankGroup], by: str, limit: float, layouts: tuple[int, ...]
) -> None:
    form = {"grad_clip_mode": by, "grad_clip": limit, "steps": SHORT, "eps": 0.1, "lr": 0.3}
    runs = {}
    for layout in ("single", *(f"zero-{zero}-ep-2" for zero in layouts)):
        name = f"routed-{by}-{layout}"
        layout_groups[layout].group.run(fit, Routed(), settings(layout, **form), seed=3, name=name)
        runs[layout] = layout_groups[layout].series(name, "loss")
    for layout, losses in runs.items():
        assert losses == pytest.approx(runs["single"], abs=2e-5), layout


@pytest.mark.parametrize("layout", ["zero-1-ep-2", "zero-3-ep-2"])
def test_experts_are_updated_on_the_host_too(
    layout_groups: dict[str, RankGroup], trained: dict[str, Path], layout: str
) -> None:
    made, name = settings(layout, offload_optimizer="cpu", steps=SHORT), f"routed-host-{layout}"
    layout_groups[layout].group.run(fit, Routed(), made, seed=3, name=name)
    losses = layout_groups[layout].series(name, "loss")
    assert losses == pytest.approx(wanted(layout_groups, "loss", SHORT), abs=1e-5)


def test_muon_turns_each_expert_wherever_it_is(layout_groups: dict[str, RankGroup]) -> None:
    runs = {}
    for layout in ("single", "zero-0-ep-2", "zero-1-ep-1", "zero-2-ep-2"):
        made, name = settings(layout, optimizer="muon", steps=SHORT), f"turned-{layout}"
        layout_groups[layout].group.run(fit, Routed(), made, seed=3, name=name)
        runs[layout] = layout_groups[layout].series(name, "loss")
    for layout, losses in runs.items():
        assert losses == pytest.approx(runs["single"], rel=1e-4, abs=1e-5), layout


def test_a_checkpoint_of_each_layout_continues_on_another(
    layout_groups: dict[str, RankGroup], trained: dict[str, Path]
) -> None:
    assert sorted(TOUR[1:]) == list(range(len(LAYOUTS)))
    for then, now in pairwise(LAYOUTS[number] for number in TOUR):
        assert_continues(layout_groups, then, now)


@pytest.mark.long
def test_a_checkpoint_of_any_layout_continues_on_any_other(
    layout_groups: dict[str, RankGroup], trained: dict[str, Path]
) -> None:
    for then, now in product(LAYOUTS, LAYOUTS):
        assert_continues(layout_groups, then, now)


def assert_continues(layout_groups: dict[str, RankGroup], then: str, now: str) -> None:
    """From the checkpoint that fell due, not the last."""
    name = f"{then}-on-{now}"
    copy_due(
        layout_groups[then].checkpoints(f"routed-{then}"),
        SAVED,
        layout_groups[now].checkpoints(name),
    )
    layout_groups[now].group.run(fit, Routed(), settings(now), seed=3, name=name)
    rest = {step: loss for step, loss in wanted(layout_groups, "loss").items() if step > SAVED}
    assert layout_groups[now].series(name, "loss") == pytest.approx(rest, abs=1e-5), name
    shutil.rmtree(layout_groups[now].checkpoints(name))


def test_experts_that_do_not_divide_are_refused(pair: RankGroup) -> None:
    made = settings("zero-1-ep-1", expert_parallel_size=3)
    with pytest.raises(InputError, match="4 experts cannot be divided evenly among 3 workers"):
        pair.group.run(fit, Routed(), made, seed=3, name="uneven")


def test_four_ranks_hold_two_copies_of_each_expert(
    layout_groups: dict[str, RankGroup], trained: dict[str, Path], tmp_path: Path
) -> None:
    with running_ranks(tmp_path / "four", 4) as four:
        for zero in (0, 1, 3):
            made, name = settings(f"zero-{zero}-ep-2", steps=3), f"four-{zero}"
            four.group.run(fit, Routed(), made, seed=3, name=name)
            for metric in ("loss", "grad_norm"):
                found = four.series(name, metric)
                assert found == pytest.approx(wanted(layout_groups, metric, 3), rel=1e-4), name
