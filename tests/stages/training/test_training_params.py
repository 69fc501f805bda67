"""Hyperparameters of training, and the contradictions that are refused."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.errors import SpecError
from pipeline.spec.spec_checker import load_spec
from pipeline.stage import Workers
from stages.training.training_params import TrainSection


def problems(workers: int = 1, gpus: float = 0, **fields: object) -> list[str]:
    made = TrainSection.model_validate(fields)
    return [str(problem) for problem in made.check(Workers(num=workers, gpus=gpus))]


def test_a_world_that_does_not_divide_the_batch_is_refused_with_a_remedy() -> None:
    assert problems(workers=3, global_batch_size=32) == [
        "train.global_batch_size: 32 is not divisible by workers.num (3) (33 is)"
    ]


def test_micro_batches_must_divide_the_batch_of_a_rank() -> None:
    assert problems(workers=2, global_batch_size=32, micro_batch_size=5) == [
        "train.global_batch_size: 32 is not divisible by workers.num (2) x "
        "train.micro_batch_size (5) (30 is)"
    ]
    assert not problems(workers=2, global_batch_size=32, micro_batch_size=8)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_needs_a_gpu(dtype: str) -> None:
    assert f"{dtype} needs a GPU" in problems(dtype=dtype)[0]
    assert not problems(dtype=dtype, gpus=1)


def test_muon_is_refused_at_zero_3() -> None:
    assert problems(optimizer="muon", zero_stage=3) == [
        "train.zero_stage: Muon needs whole matrices, which ZeRO 3 cuts up (set one of 0, 1, 2)"
    ]
    assert not problems(optimizer="muon", zero_stage=2)


def test_muon_is_refused_with_offload() -> None:
    assert (
        "train.offload_optimizer: Muon is" in problems(optimizer="muon", offload_optimizer="cpu")[0]
    )
    assert not problems(offload_optimizer="cpu")


def test_the_batch_is_divided_into_ranks_and_micro_batches() -> None:
    made = TrainSection(global_batch_size=32, micro_batch_size=4)
    assert (made.rank_batch_size(2), made.rank_micro_batch_size(2)) == (16, 4)
    assert TrainSection(global_batch_size=32).rank_micro_batch_size(2) == 16


@pytest.mark.parametrize(("warmup", "steps"), [(0.1, 30), (0, 0), (25, 25), (1, 1)])
def test_warmup_is_a_fraction_or_a_number_of_steps(warmup: float, steps: int) -> None:
    assert TrainSection(steps=300, warmup_steps=warmup).num_warmup_steps == steps


@pytest.mark.parametrize(
    ("ramp", "message"),
    [
        (
            {"initial_batch_size": 5, "steps": 10},
            r"global_batch_size \(32\) is not a multiple of 5",
        ),
        ({"initial_batch_size": 8}, "set both initial_batch_size and steps"),
        ({"initial_batch_size": 8, "steps": 301}, r"301 is larger than steps \(300\)"),
    ],
)
def test_a_rampup_that_does_not_fit_is_refused(ramp: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainSection.model_validate({"batch_size_rampup": ramp})


def test_the_initial_batch_of_a_rampup_is_divided_into_ranks_and_micro_batches() -> None:
    ramp = {"initial_batch_size": 8, "steps": 10}
    assert problems(
        workers=2, global_batch_size=32, micro_batch_size=8, batch_size_rampup=ramp
    ) == [
        "train.batch_size_rampup.initial_batch_size: 8 is not divisible by workers.num (2) "
        "x train.micro_batch_size (8) (16 is)"
    ]
    assert not problems(workers=2, global_batch_size=32, micro_batch_size=4, batch_size_rampup=ramp)


def test_a_warmup_longer_than_the_training_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"warmup_steps \(500\) is larger than steps \(300\)"):
        TrainSection(steps=300, warmup_steps=500)


@pytest.mark.parametrize(
    ("said", "key", "why"),
    [
        (
            "train: {sequence_parallel: 2}",
            "train.sequence_parallel",
            "sequence parallelism (Ulysses) is not supported",
        ),
        ("layout: {sequence_parallel: 2}", "layout", "train.zero_stage 0 to 3"),
        ("workers: {tensor_parallel_size: 2}", "workers.tensor_parallel_size", "AutoTP"),
        ("model: {pp: 2}", "model.pp", "pipeline parallelism is not supported"),
        ("deepspeed: {tensor_parallel: {autotp_size: 2}}", "deepspeed", "AutoTP"),
    ],
)
def test_unsupported_parallelism_is_refused_with_the_alternative(
    tmp_path: Path, said: str, key: str, why: str
) -> None:
    file = tmp_path / "f.yaml"
    tokens = "artifact:0123456789abcdef"
    file.write_text(f"name: x\nstages:\n  gpt: {{uses: pretrain, tokens: {tokens}, {said}}}\n")
    with pytest.raises(SpecError) as caught:
        load_spec(file)
    (problem,) = caught.value.problems
    assert caught.value.exit_code == 2
    assert problem.key == f"gpt.{key}"
    assert why in str(problem)
    assert "train.expert_parallel_size" in problem.remedy


@pytest.mark.parametrize(
    ("section", "key", "new"),
    [
        ("{micro_batch: 2}", "train.micro_batch", "micro_batch_size"),
        ("{batch_ramp: {start: 2, steps: 1}}", "train.batch_ramp", "batch_size_rampup"),
        (
            "{batch_size_rampup: {start: 2}}",
            "train.batch_size_rampup.start",
            "initial_batch_size",
        ),
        ("{watchdog: {floor: 9}}", "train.watchdog.floor", "min_timeout"),
    ],
)
def test_former_keys_give_their_new_names(tmp_path: Path, section: str, key: str, new: str) -> None:
    file = tmp_path / "f.yaml"
    tokens = "artifact:0123456789abcdef"
    stage = f"{{uses: pretrain, tokens: {tokens}, train: {section}}}"
    file.write_text(f"name: x\nstages:\n  gpt: {stage}\n")
    with pytest.raises(SpecError) as caught:
        load_spec(file)
    (problem,) = caught.value.problems
    assert problem.key == f"gpt.{key}"
    assert f"'{new}'" in str(problem)
