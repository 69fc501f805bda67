"""Spike detection against the rule in numpy."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stages.training.spike_guard import SpikeDecision, SpikeGuard


def brute(values: np.ndarray, sigma: float, window: int) -> list[bool]:
    """Return which values are spikes, where spikes do not enter the window."""
    taken: list[float] = []
    found = []
    for value in values:
        found.append(above(taken[-window:], value, sigma, window))
        if not found[-1]:
            taken.append(value)
    return found


def above(recent: list[float], value: float, sigma: float, window: int) -> bool:
    if len(recent) < window // 2:
        return False
    mean, std = np.mean(recent), np.std(recent, ddof=1)
    return bool(value > mean + sigma * max(std, 0.01 * abs(mean)))


def losses(guard: SpikeGuard, values: np.ndarray) -> list[SpikeDecision]:
    return [guard.check(1.0, value) for value in values]


def norms(guard: SpikeGuard, values: np.ndarray) -> list[SpikeDecision]:
    return [guard.check(value, 1.0) for value in values]


def skipped(decisions: list[SpikeDecision]) -> list[bool]:
    """Return which updates are skipped."""
    return [bool(decision.skip_reason) for decision in decisions]


@pytest.mark.parametrize(("sigma", "window"), [(6, 128), (3, 20), (2, 7), (2.5, 4)])
@pytest.mark.parametrize("seed", range(3))
def test_loss_spikes_are_skipped_and_do_not_enter_the_window(
    sigma: float, window: int, seed: int
) -> None:
    chance = np.random.default_rng(seed)
    values = 4 * np.exp(-np.arange(400) / 40) + 0.2 * chance.standard_t(4, 400)
    values[chance.integers(0, 400, 12)] += 10
    wanted = brute(values, sigma, window)
    found = losses(SpikeGuard(sigma, window), values)
    assert skipped(found) == [verdict.is_anomaly for verdict in found] == wanted
    assert 0 < sum(wanted) < 100


@pytest.mark.parametrize(("sigma", "window"), [(6, 128), (3, 20), (2, 7), (2.5, 4)])
@pytest.mark.parametrize("loss", [1.0, None])
def test_norm_spikes_are_skipped_and_enter_the_window(
    sigma: float, window: int, loss: float | None
) -> None:
    chance = np.random.default_rng(4)
    values = np.abs(chance.standard_t(4, 400))
    values[chance.integers(0, 400, 12)] += 10
    before = [list(values[max(0, at - window) : at]) for at in range(400)]
    wanted = [above(b, v, sigma, window) for b, v in zip(before, values, strict=True)]
    guard = SpikeGuard(sigma, window)
    found = [guard.check(value, loss) for value in values]
    assert skipped(found) == wanted
    assert any(wanted)
    assert not any(verdict.is_anomaly for verdict in found)


def test_a_single_norm_spike_is_skipped() -> None:
    chance = np.random.default_rng(2)
    values = chance.normal(1, 0.1, 300)
    values[200] = 3
    assert np.flatnonzero(skipped(norms(SpikeGuard(6, 128), values))).tolist() == [200]


@pytest.mark.parametrize("level", [2.0, 10.0, 1e6])
def test_a_lasting_rise_of_norms_is_accepted(level: float) -> None:
    """However far they rise, the updates of 1 / 37 of the window are skipped."""
    chance = np.random.default_rng(2)
    values = chance.normal(1, 0.1, 400)
    values[200:] *= level
    left_out = np.flatnonzero(skipped(norms(SpikeGuard(6, 128), values)))
    assert 0 < len(left_out) <= 4
    assert set(left_out) <= set(range(200, 210))


def test_a_lasting_rise_of_losses_remains_an_anomaly() -> None:
    chance = np.random.default_rng(2)
    values = chance.normal(1, 0.1, 400)
    values[200:] *= 10
    found = losses(SpikeGuard(6, 128), values)
    assert [verdict.is_anomaly for verdict in found] == [False] * 200 + [True] * 200


def test_the_norm_of_a_loss_spike_does_not_enter_the_window() -> None:
    guard = SpikeGuard(6, 128)
    chance = np.random.default_rng(2)
    for norm, loss in chance.normal(1, 0.1, (128, 2)):
        guard.check(norm, loss)
    for _ in range(200):
        both = guard.check(10.0, 10.0)
        assert both.is_anomaly
        assert both.skip_reason.startswith("the gradient norm 10 is ")
        assert "; the loss 10 is " in both.skip_reason
    alone = guard.check(10.0, 1.0)
    assert alone.skip_reason.startswith("the gradient norm 10 is ")
    assert not alone.is_anomaly


def test_sigma_0_accepts_every_update() -> None:
    assert not any(skipped(losses(SpikeGuard(0, 4), np.array([1.0] * 50 + [1e9]))))


def test_values_that_hardly_vary_have_a_minimum_deviation() -> None:
    assert skipped(losses(SpikeGuard(6, 8), np.array([2.0] * 10 + [2.11]))) == [False] * 11
    assert skipped(losses(SpikeGuard(6, 8), np.array([2.0] * 10 + [2.13]))) == [False] * 10 + [True]


def test_values_that_are_not_finite_do_not_enter_the_window() -> None:
    guard = SpikeGuard(6, 4)
    losses(guard, np.array([1.0, 1.1, float("inf"), 0.9, float("nan"), 1.0]))
    assert guard.check(1.0, 5.0).is_anomaly


def test_windows_are_restored() -> None:
    """Restores them also during a lasting rise of norms."""
    pairs = np.random.default_rng(5).normal(3, 1, (60, 2))
    pairs[28:, 0] += 30
    whole, half = SpikeGuard(1.5, 16), SpikeGuard(1.5, 16)
    first = [whole.check(*pair) for pair in pairs[:30]]
    half.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    rest = [whole.check(*pair) for pair in pairs[30:]]
    assert [half.check(*pair) for pair in pairs[30:]] == rest
    assert skipped(first)[28:] == [True, True]
    assert any(skipped(rest))
    assert not all(skipped(rest))
