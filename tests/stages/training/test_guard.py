"""What stands out, against the rule in numpy."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stages.training.guard import SpikeGuard


def brute(values: np.ndarray, sigma: float, window: int) -> list[bool]:
    """Which of them are left out."""
    made: list[float] = []
    left_out = []
    for value in values:
        recent = np.array(made[-window:])
        judged = len(recent) >= window // 2
        width = max(recent.std(ddof=1), 0.01 * abs(recent.mean())) if judged else np.inf
        left_out.append(bool(judged and value > recent.mean() + sigma * width))
        if not left_out[-1]:
            made.append(value)
    return left_out


def judged(guard: SpikeGuard, values: np.ndarray) -> list[bool]:
    found = []
    for value in values:
        found.append(bool(guard.spike({"loss": value})))
        if not found[-1]:
            guard.note({"loss": value})
    return found


@pytest.mark.parametrize(("sigma", "window"), [(6, 128), (3, 20), (2, 7), (2.5, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_the_rule_is_that_of_brute_force(sigma: float, window: int, seed: int) -> None:
    chance = np.random.default_rng(seed)
    values = 4 * np.exp(-np.arange(400) / 40) + 0.2 * chance.standard_t(4, 400)
    values[chance.integers(0, 400, 12)] += 10
    wanted = brute(values, sigma, window)
    assert judged(SpikeGuard(sigma, window), values) == wanted
    assert 0 < sum(wanted) < 100


def test_without_a_sigma_nothing_stands_out() -> None:
    assert not any(judged(SpikeGuard(0, 4), np.array([1.0] * 50 + [1e9])))


def test_figures_that_hardly_move_have_a_band() -> None:
    assert judged(SpikeGuard(6, 8), np.array([2.0] * 10 + [2.11])) == [False] * 11
    assert judged(SpikeGuard(6, 8), np.array([2.0] * 10 + [2.13])) == [False] * 10 + [True]


def test_each_figure_has_a_band_of_its_own() -> None:
    guard = SpikeGuard(6, 4)
    for norm in (9.0, 9.5, 8.5, 9.1):
        guard.note({"loss": norm / 10, "norm": norm})
    assert not guard.spike({"loss": 0.9, "norm": 9.0})
    assert guard.spike({"loss": 9.0, "norm": 9.0}).startswith("loss 9 is ")
    assert guard.spike({"norm": 90.0}).startswith("norm 90 is ")


def test_what_is_not_finite_leaves_the_band_as_it_is() -> None:
    guard = SpikeGuard(6, 4)
    for loss in (1.0, 1.1, float("inf"), 0.9, float("nan"), 1.0):
        guard.note({"loss": loss})
    assert guard.spike({"loss": 5.0})


def test_the_band_survives_being_saved() -> None:
    values = np.random.default_rng(5).normal(3, 1, 60)
    whole, half = SpikeGuard(1.5, 16), SpikeGuard(1.5, 16)
    judged(whole, values[:30])
    half.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert judged(half, values[30:]) == judged(whole, values[30:])
