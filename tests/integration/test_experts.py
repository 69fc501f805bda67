"""Experts spread over ranks, at every ZeRO stage: the same numbers as on one process."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from cases import Routed
from rooms import Room, room

from pipeline.errors import InputError, Interrupted
from stages.training.loop import fit
from stages.training.order import mix
from stages.training.rank import Rank
from stages.training.settings import TrainSection

pytestmark = pytest.mark.integration

STEPS, STOP = 20, 12
LAYOUTS = ["single"] + [f"zero-{zero}-ep-{ep}" for zero in range(4) for ep in (1, 2)]


def settings(layout: str, **fields: object) -> TrainSection:
    spread = {}
    if layout != "single":
        spread = {"zero": int(layout[5]), "expert_parallel": int(layout[-1])}
    known = {"steps": STEPS, "global_batch": 8, "lr": 3e-3, "clip": 0.4, "micro_batch": 2}
    rest = {"checkpoint_every": 0, "warmup": 3}
    return TrainSection.model_validate({**known, **rest, **spread, **fields})


@pytest.fixture(scope="module")
def rooms(pair: Room, single: Room) -> dict[str, Room]:
    return {layout: single if layout == "single" else pair for layout in LAYOUTS}


@pytest.fixture(scope="module")
def trained(rooms: dict[str, Room], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {layout: tmp_path_factory.mktemp(layout) for layout in LAYOUTS}
    for layout, folder in folders.items():
        rooms[layout].group.run(
            fit, Routed(), settings(layout), seed=3, name=f"routed-{layout}", out=folder
        )
    return folders


def test_every_layout_trains_as_one_process_does(
    rooms: dict[str, Room], trained: dict[str, Path]
) -> None:
    wanted = single_series(rooms, "loss")
    assert wanted[STEPS] < wanted[1] - 0.25
    assert max(single_series(rooms, "dropped").values()) > 0.01, "capacity binds"
    whole = torch.load(trained["single"] / "weights.pt", weights_only=True)
    assert whole["layers.0.feed_forward.experts.gate_up"].shape == (4, 112, 104)
    for layout in LAYOUTS[1:]:
        for figure in ("loss", "grad_norm", "dropped"):
            found = rooms[layout].series(f"routed-{layout}", figure)
            reference = single_series(rooms, figure)
            assert found == pytest.approx(reference, rel=1e-4, abs=1e-5), (layout, figure)
        weights = torch.load(trained[layout] / "weights.pt", weights_only=True)
        for name, value in weights.items():
            torch.testing.assert_close(value, whole[name], rtol=0, atol=1e-4, msg=layout)


def single_series(rooms: dict[str, Room], figure: str) -> dict[int, float]:
    return rooms["single"].series("routed-single", figure)


@pytest.mark.parametrize("layout", ["single", "zero-2-ep-1", "zero-1-ep-2", "zero-3-ep-2"])
def test_weights_move_at_the_rates_of_their_kinds(
    rooms: dict[str, Room], layout: str, tmp_path: Path
) -> None:
    """Adam's first step moves each weight by its learning rate, whatever the gradient is."""
    form = {"steps": 1, "warmup": 0, "weight_decay": 0, "clip": 0, "micro_batch": None}
    made = settings(layout, **form)
    rooms[layout].group.run(fit, Routed(), made, seed=3, name=f"rates-{layout}", out=tmp_path)
    rate = rooms[layout].series(f"rates-{layout}", "lr")[1]
    after = torch.load(tmp_path / "weights.pt", weights_only=True)
    torch.manual_seed(mix(3))
    model = Routed().setup(Rank(), made, 3)["model"].module
    for name, weight in model.named_parameters():
        moved = float((after[name] - weight.detach()).abs().median())
        half = name.startswith("layers") and "norm" not in name
        assert moved == pytest.approx(rate / (2 if half else 1), rel=0.02), name


def test_a_balance_over_the_whole_batch_is_alike_too(rooms: dict[str, Room]) -> None:
    """Without accumulation: the load is that of the micro-batches of all ranks."""
    for layout in ("single", "zero-1-ep-1", "zero-2-ep-2"):
        made = settings(layout, micro_batch=None, steps=6)
        rooms[layout].group.run(fit, Routed(over="batch"), made, seed=3, name=f"batch-{layout}")
    wanted = rooms["single"].series("batch-single", "loss")
    for layout in ("zero-1-ep-1", "zero-2-ep-2"):
        assert rooms[layout].series(f"batch-{layout}", "loss") == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(("by", "limit"), [("norm_soft", 0.4), ("value", 0.002)])
def test_clipping_knows_the_experts_of_all_ranks(
    rooms: dict[str, Room], by: str, limit: float
) -> None:
    form = {"clip_by": by, "clip": limit, "steps": 5, "eps": 0.1, "lr": 0.3}
    layouts = ("single", "zero-0-ep-2", "zero-1-ep-2", "zero-3-ep-2")
    for layout in layouts:
        made = settings(layout, **form)
        rooms[layout].group.run(fit, Routed(), made, seed=3, name=f"routed-{by}-{layout}")
    wanted = rooms["single"].series(f"routed-{by}-single", "loss")
    for layout in layouts[1:]:
        found = rooms[layout].series(f"routed-{by}-{layout}", "loss")
        assert found == pytest.approx(wanted, abs=2e-5), layout


def test_experts_are_updated_on_the_host_too(
    rooms: dict[str, Room],
) -> None:
    runs = {}
    for layout, where in (("single", "none"), ("zero-1-ep-2", "cpu"), ("zero-3-ep-2", "cpu")):
        made = settings(layout, offload=where, steps=5)
        rooms[layout].group.run(fit, Routed(), made, seed=3, name=f"routed-host-{layout}")
        runs[layout] = rooms[layout].series(f"routed-host-{layout}", "loss")
    for layout, losses in runs.items():
        assert losses == pytest.approx(runs["single"], abs=1e-5), layout


def test_muon_turns_each_expert_wherever_it_is(rooms: dict[str, Room]) -> None:
    layouts = ("single", "zero-0-ep-2", "zero-1-ep-1", "zero-1-ep-2", "zero-2-ep-2")
    for layout in layouts:
        made = settings(layout, optimizer="muon", steps=8)
        rooms[layout].group.run(fit, Routed(), made, seed=3, name=f"turned-{layout}")
    wanted = rooms["single"].series("turned-single", "loss")
    for layout in layouts[1:]:
        found = rooms[layout].series(f"turned-{layout}", "loss")
        assert found == pytest.approx(wanted, rel=1e-4, abs=1e-5), layout


def test_a_checkpoint_of_any_layout_continues_on_the_next(
    rooms: dict[str, Room], trained: dict[str, Path]
) -> None:
    for layout in LAYOUTS:
        home = rooms[layout]
        try:
            with pytest.raises(Interrupted, match=f"stopped at step {STOP}"):
                home.group.run(
                    fit, Routed(stop_at=STOP - 1), settings(layout), seed=3, name=f"half-{layout}"
                )
        finally:
            home.ctx.cancel_file.unlink(missing_ok=True)
    wanted = {step: loss for step, loss in single_series(rooms, "loss").items() if step > STOP}
    for then, now in pairwise([*LAYOUTS, LAYOUTS[0], *reversed(LAYOUTS)]):
        name = f"{then}-on-{now}"
        source = rooms[then].checkpoints(f"half-{then}")
        shutil.copytree(source, rooms[now].checkpoints(name), dirs_exist_ok=True)
        rooms[now].group.run(fit, Routed(), settings(now), seed=3, name=name)
        assert rooms[now].series(name, "loss") == pytest.approx(wanted, abs=1e-5), name
        shutil.rmtree(rooms[now].checkpoints(name))


def test_experts_that_do_not_divide_are_refused(pair: Room) -> None:
    made = settings("zero-1-ep-1", expert_parallel=3)
    with pytest.raises(InputError, match="4 experts cannot be spread evenly over 3 workers"):
        pair.group.run(fit, Routed(), made, seed=3, name="uneven")


def test_four_ranks_hold_two_copies_of_each_expert(
    rooms: dict[str, Room], trained: dict[str, Path], tmp_path: Path
) -> None:
    wanted = single_series(rooms, "loss")
    with room(tmp_path / "four", 4) as four:
        for zero in (0, 1, 3):
            name = f"four-{zero}"
            made = settings(f"zero-{zero}-ep-2", steps=STEPS)
            four.group.run(fit, Routed(), made, seed=3, name=name, out=tmp_path / name)
            assert four.series(name, "loss") == pytest.approx(wanted, rel=1e-4), name
            norms = single_series(rooms, "grad_norm")
            assert four.series(name, "grad_norm") == pytest.approx(norms, rel=1e-4), name
            whole = torch.load(trained["single"] / "weights.pt", weights_only=True)
            for key, value in torch.load(tmp_path / name / "weights.pt", weights_only=True).items():
                torch.testing.assert_close(value, whole[key], rtol=0, atol=1e-4)
