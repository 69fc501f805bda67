"""The learning rate against closed forms."""

import math

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from stages.training.lr_schedule import lr_scale
from stages.training.training_params import TrainSection


def settings(schedule: str, **fields: object) -> TrainSection:
    return TrainSection.model_validate(
        {"steps": 100, "warmup_steps": 10, "min_lr_ratio": 0.1, "lr_schedule": schedule, **fields}
    )


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "wsd"])
def test_the_warm_up_is_linear_and_reaches_the_peak(schedule: str) -> None:
    rates = [lr_scale(settings(schedule), step) for step in range(11)]
    assert rates == pytest.approx([k / 10 for k in range(1, 11)] + [1.0])


def test_constant_stays() -> None:
    assert {lr_scale(settings("constant"), step) for step in range(10, 100)} == {1.0}


def test_linear_falls_to_the_least() -> None:
    for step in range(10, 101):
        assert lr_scale(settings("linear"), step) == pytest.approx(1 - 0.9 * (step - 10) / 90)


def test_cosine_is_half_way_in_the_middle() -> None:
    for step in range(10, 101):
        wave = (1 + math.cos(math.pi * (step - 10) / 90)) / 2
        assert lr_scale(settings("cosine"), step) == pytest.approx(0.1 + 0.9 * wave)
    assert lr_scale(settings("cosine"), 55) == pytest.approx(0.55)


def test_wsd_is_stable_until_its_decay() -> None:
    rates = [lr_scale(settings("wsd", decay_ratio=0.2), step) for step in range(101)]
    assert rates[10:81] == pytest.approx([1.0] * 71)
    assert rates[80:101] == pytest.approx([0.1 + 0.9 * (20 - k) / 20 for k in range(21)])


@hypothesis_settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["constant", "linear", "cosine", "wsd"]),
    st.integers(1, 500),
    st.floats(0, 0.99),
    st.floats(0, 1),
)
def test_rates_stay_between_nothing_and_the_peak(
    schedule: str, steps: int, warmup: float, least: float
) -> None:
    made = settings(schedule, steps=steps, warmup_steps=warmup, min_lr_ratio=least)
    rates = [lr_scale(made, step) for step in range(steps)]
    after = rates[made.num_warmup_steps :]
    assert all(0 < rate <= 1 + 1e-12 for rate in rates[: made.num_warmup_steps])
    assert all(least - 1e-12 <= rate <= 1 + 1e-12 for rate in after)
    assert after == sorted(after, reverse=True)
