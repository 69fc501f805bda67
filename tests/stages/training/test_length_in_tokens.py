"""`train.tokens` of `pretrain`: the steps that take at least so many tokens."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from stages.pretrain import PretrainParams


def params(**values: Any) -> PretrainParams:
    return PretrainParams.model_validate(values, strict=True)


@given(
    tokens=st.integers(1, 10**9),
    batch=st.sampled_from([4, 32, 96]),
    rampup=st.sampled_from([{}, {"initial_batch_size": 2, "steps": 50}]),
)
def test_the_steps_are_the_fewest_that_take_the_tokens(
    tokens: int, batch: int, rampup: dict[str, int]
) -> None:
    train: dict[str, Any] = {"tokens": tokens, "global_batch_size": batch, "warmup_steps": 0}
    if rampup and tokens > 64 * batch * 50:
        train["batch_size_rampup"] = rampup
    found = params(model={"context_length": 64}, train=train).train
    samples = math.ceil(tokens / 64)
    assert found.first_sample(found.steps) >= samples
    assert found.steps == 1 or found.first_sample(found.steps - 1) < samples


def test_tokens_and_the_same_steps_are_one_training() -> None:
    by_tokens = params(model={"context_length": 64}, train={"tokens": 2.048e6, "lr": 1e-3})
    by_steps = params(model={"context_length": 64}, train={"steps": 1000, "lr": 1e-3})
    assert by_tokens.model_dump() == by_steps.model_dump()


def test_tokens_replace_the_steps_of_a_recipe() -> None:
    found = params(preset="gpt3-125m", train={"tokens": 1e9}).train
    assert found.steps == math.ceil(1e9 / (found.global_batch_size * 2048))
    assert found.lr == 6.0e-4


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"tokens": 1e6, "steps": 10}, "set either steps or tokens"),
        ({"tokens": 1e5, "warmup_steps": 1000}, "warmup_steps .1000. is larger than steps"),
        ({"tokens": 0}, "greater than or equal to 1"),
    ],
)
def test_a_length_that_cannot_be_is_refused(train: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        params(train=train)


def test_an_unknown_preset_is_refused_by_name_and_not_by_its_length() -> None:
    problems = list(params(preset="huge", train={"tokens": 1e6}).check({}))
    assert "no preset 'huge'" in [problem.message for problem in problems]


SIZES = {"num_layers": 2, "hidden_size": 64, "num_heads": 2, "context_length": 64}


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"preset": "small", "model": SIZES}, ["preset"]),
        ({"model": SIZES}, []),
        ({"preset": "small", "model": {**SIZES, "num_layers": None}}, []),
        ({"train": {"decay_ratio": 0.1}}, ["train.decay_ratio"]),
        ({"train": {"decay_ratio": 0.1, "lr_schedule": "wsd"}}, []),
        ({"mixture": {"weights": [1.0], "temperature": 2.0}}, ["mixture.temperature"]),
    ],
)
def test_a_key_without_effect_is_refused(values: dict[str, Any], keys: list[str]) -> None:
    text = PretrainParams.model_validate_json(json.dumps(values), strict=True)
    assert [problem.key for problem in text.check({})] == keys
