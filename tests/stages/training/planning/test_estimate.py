"""What a plan promises and refuses: each remedy is tried, and is the cheapest that works."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.fingerprint import identity_fields
from pipeline.stage import Params
from stages.pretrain import PretrainParams
from stages.training.planning.device_specs import DEVICES

ALONE = {"global_batch_size": 512, "dtype": "bfloat16", "zero_stage": 1, "micro_batch_size": 1}
TRAIN = {"global_batch_size": 512, "dtype": "bfloat16", "zero_stage": 1, "micro_batch_size": 8}


def params(**fields: Any) -> PretrainParams:
    given: dict[str, Any] = {
        "preset": "gpt3-6.7b",
        "train": TRAIN,
        "workers": {"num": 64, "gpus": 1},
        "hardware": {"device": "a100-80gb"},
    }
    return PretrainParams.model_validate(given | fields)


def problems(**fields: Any) -> list[tuple[str, str]]:
    return [(p.key, p.remedy) for p in params(**fields).check({})]


def test_what_fits_is_planned_to_the_end() -> None:
    fits = params(train=TRAIN | {"micro_batch_size": 1})
    assert not list(fits.check({}))
    found = fits.estimate({})
    assert found["memory_bytes"] < found["device_bytes"] < 80 * 2**30
    kinds = [found[f"{k}_bytes"] for k in ("weights", "gradients", "optimizer", "activations")]
    assert max(kinds) < found["memory_bytes"] < sum(kinds) + found["buffers_bytes"]
    assert found["seconds"] == pytest.approx(found["step_seconds"] * found["steps"])
    assert 0.3 < found["mfu"] < 0.58
    assert found["communication_bytes"] == sum(
        found[f"{way}_bytes"] for way in ("reduced", "gathered", "exchanged")
    )


@pytest.mark.parametrize(
    ("fields", "keys"),
    [
        (
            {"train": TRAIN | {"zero_stage": 3}, "model": {"context_length": 8192}},
            ["train.micro_batch_size"],
        ),
        (
            {"train": TRAIN | {"micro_batch_size": 1}, "model": {"num_layers": 100}},
            ["train.zero_stage"],
        ),
        (
            {
                "train": ALONE | {"zero_stage": 3},
                "model": {"num_layers": 130, "context_length": 8192},
            },
            None,
        ),
        (
            {
                "train": TRAIN | {"micro_batch_size": 1, "zero_stage": 3},
                "model": {"context_length": 32768},
            },
            ["model.activation_checkpointing"],
        ),
        ({"train": ALONE, "workers": {"num": 1, "gpus": 1}}, ["train.offload_optimizer"]),
        (
            {"train": ALONE | {"offload_optimizer": "cpu"}, "preset": "gpt3-13b"},
            ["train.zero_stage"],
        ),
        (
            {"train": ALONE | {"optimizer": "muon"}, "workers": {"num": 1, "gpus": 1}},
            ["workers.num"],
        ),
    ],
    ids=[
        "micro-batch",
        "zero",
        "large",
        "activation_checkpointing",
        "offload",
        "more than offload",
        "muon",
    ],
)
def test_what_does_not_fit_is_refused_with_the_change_that_fits(
    fields: dict[str, Any], keys: list[str] | None
) -> None:
    """Each remedy taken at its word is accepted."""
    found = list(params(**fields).check({}))
    assert len(found) == 1
    assert "GiB per device, a100-80gb has room for 74.4 GiB" in found[0].message
    told = dict(part.split(": ") for part in found[0].remedy.split(", "))
    assert keys is None or next(iter(told)) in keys
    assert found[0].key == next(iter(told))
    changed = params(**fields).model_dump()
    for key, value in told.items():
        section, name = key.split(".")
        changed[section][name] = {"true": True, "cpu": "cpu"}.get(value) or int(value)
    assert not list(PretrainParams.model_validate(changed).check({}))


def test_what_the_host_has_no_room_for_is_refused() -> None:
    """8 processes of a node draw 6.7e9 weights in float32, and round them: 300 GiB."""
    train = TRAIN | {"micro_batch_size": 1}
    needed = params(train=train).estimate({})["host_bytes"] / 2**30
    room = {"device": "a100-80gb", "host_memory_gib": needed + 1}
    assert not problems(train=train, hardware=room)
    found = problems(train=train, hardware=room | {"host_memory_gib": needed - 1})
    assert found == [
        (
            "hardware.host_memory_gib",
            "fewer devices per node (hardware.devices_per_node: 7), or nodes with more memory",
        )
    ]


def test_a_model_to_start_from_takes_memory_of_the_host() -> None:
    """Before the weights are rounded: float32 twice instead of float32 and bfloat16."""
    planned = params(train=TRAIN | {"micro_batch_size": 1})
    alone, more = (planned.estimate(above) for above in ({}, {"init_from": Params()}))
    assert more["host_bytes"] == pytest.approx(alone["host_bytes"] * 8 / 6)
    assert {**more, "host_bytes": 0} == {**alone, "host_bytes": 0}
    room = {"device": "a100-80gb", "host_memory_gib": more["host_bytes"] / 2**30 - 1}
    tight = params(train=TRAIN | {"micro_batch_size": 1}, hardware=room)
    assert not list(tight.check({}))
    (found,) = tight.check({"init_from": Params()})
    assert found.key == "hardware.host_memory_gib"


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({}, 4),  # 300 steps: 2 kept, 1 to go back to, 1 being written
        ({"checkpoint_keep_interval": 100}, 5),  # four are saved in all
        ({"checkpoint_keep_interval": 100, "steps": 1000}, 12),
        ({"checkpoint_keep_interval": 300, "steps": 1000}, 7),
        ({"checkpoint_interval": 0}, 2),
        ({"checkpoint_keep_latest": 10}, 5),
    ],
)
def test_the_disk_holds_what_is_kept_and_what_is_being_written(
    fields: dict[str, Any], most: int
) -> None:
    planned = PretrainParams.model_validate({"train": fields})
    found = planned.estimate({})
    assert found["disk_bytes"] == 4 * found["parameters"] * (1 + 3 * most)


def test_what_fits_nowhere_is_told_so() -> None:
    huge = {"num_layers": 400, "hidden_size": 65536, "num_heads": 512}
    ((key, hint),) = problems(model=huge, train=TRAIN | {"micro_batch_size": 1})
    assert (key, hint) == ("model", "a smaller model, or a device with more memory")
    (found,) = params(train=ALONE | {"zero_stage": 3}, preset="gpt3-175b").check({})
    assert "takes 324.2 GiB per device before ZeRO 3 shards the weights" in found.message


@pytest.mark.parametrize(
    ("fields", "key", "hint"),
    [
        (
            {"workers": {"num": 64}, "train": {"global_batch_size": 512}},
            "hardware.device",
            "workers.gpus",
        ),
        ({"hardware": {"device": "v100-32gb"}}, "train.dtype", "float32 or float16"),
        ({"hardware": {"device": "cpu"}}, "hardware.device", "name the GPU"),
    ],
)
def test_what_a_device_cannot_do(fields: dict[str, Any], key: str, hint: str) -> None:
    ((found, said),) = problems(**fields)
    assert found == key
    assert hint in said


def test_unnamed_devices_are_refused_nothing() -> None:
    free = params(hardware={}, preset="gpt3-175b")
    assert not list(free.check({}))
    assert "mfu" not in free.estimate({})
    assert free.estimate({})["seconds"] > 0
    cpu = PretrainParams().estimate({})
    assert 0 < cpu["mfu"] < DEVICES["cpu"].max_efficiency
    assert "device_bytes" not in cpu


def test_hardware_is_no_identity() -> None:
    assert identity_fields(params()) == identity_fields(
        params(hardware={"device": "h200", "devices_per_node": 4})
    )
