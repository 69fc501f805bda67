"""Statistics of scores against rankings: closed forms and brute force."""

import math
from itertools import pairwise

import numpy as np
import pytest

from stages.alignment import ranking_statistics as statistics


def bernoulli_interval(generator, chance, prompts, pairs):
    values = np.repeat(generator.random(prompts) < chance, pairs).astype(float)
    numbers = np.repeat(np.arange(prompts), pairs)
    return statistics.estimate_mean(values, numbers, int(generator.integers(1 << 30))).interval


@pytest.mark.parametrize("pairs", [1, 6])
def test_intervals_cover_the_truth_in_95_of_100(pairs):
    """Pairs of a prompt that agree wholly make the interval no narrower."""
    generator = np.random.default_rng(0)
    found = [bernoulli_interval(generator, 0.7, 150, pairs) for _ in range(200)]
    covered = np.mean([low <= 0.7 <= high for low, high in found])
    width = np.mean([high - low for low, high in found])
    assert 0.91 <= covered <= 0.985
    assert width == pytest.approx(2 * 1.96 * math.sqrt(0.7 * 0.3 / 150), rel=0.05)


def test_an_interval_is_that_of_a_loop_over_draws(monkeypatch):
    generator = np.random.default_rng(1)
    numbers = np.sort(generator.integers(0, 20, 90))
    values = generator.integers(0, 3, 90) / 2
    monkeypatch.setattr(statistics, "_CHUNK", 130)
    found = statistics.estimate_mean(values, numbers, seed=5)
    rows, again = [values[numbers == p] for p in np.unique(numbers)], np.random.default_rng(5)
    means = []
    for _ in range(1000):
        drawn = [rows[i] for i in again.integers(len(rows), size=len(rows))]
        means.append(np.concatenate(drawn).mean())
    assert found.interval == pytest.approx(np.percentile(means, (2.5, 97.5)))
    assert found == statistics.estimate_mean(values, numbers, seed=5)


def test_below_30_pairs_there_is_no_interval():
    few, enough = (statistics.estimate_mean(np.ones(n), np.arange(n)) for n in (29, 30))
    assert few.bounds == "too few" and few.mean == 1 and few.interval is None
    assert enough.bounds == "1.000 to 1.000"
    one_prompt = statistics.estimate_mean(np.ones(36), np.zeros(36, np.int64))
    assert one_prompt.bounds == "too few"


def plackett_luce(sharpness, prompts=8000, responses=4):
    """Rank by utilities with Gumbel noise, and score by the utilities."""
    generator = np.random.default_rng(2)
    utility = generator.normal(size=(prompts, responses))
    order = np.argsort(-(utility + generator.gumbel(size=utility.shape)), axis=1)
    ranks = np.argsort(order, axis=1)
    rows = zip(ranks.tolist(), (sharpness * utility).tolist(), strict=True)
    return statistics.pair_responses([(r, s, [1] * responses) for r, s in rows])


def test_calibration_error_of_the_true_model_is_0():
    assert statistics.calibration_error(statistics.reliability(plackett_luce(1))) < 0.01


@pytest.mark.parametrize("sharpness", [0.3, 3])
def test_calibration_error_of_wrong_sharpness_is_not_0(sharpness):
    pairs = plackett_luce(sharpness)
    bins = statistics.reliability(pairs)
    exact = [abs(b.predicted - b.observed) * b.pairs / len(pairs) for b in bins]
    assert statistics.calibration_error(bins) == pytest.approx(sum(exact))
    assert statistics.calibration_error(bins) > 0.08
    assert sum(b.pairs for b in bins) == len(pairs)
    assert all((b.predicted > b.observed) == (sharpness > 1) for b in bins if b.pairs > 500)


def test_pairs_are_those_of_a_loop():
    ranks, scores, lengths = (1, 0, 1, 2), (0.5, 2.0, 0.5, 3.0), (4, 9, 2, 9)
    pairs = statistics.pair_responses([((0, 1), (1.0, 1.0), (3, 5)), (ranks, scores, lengths)])
    assert pairs.prompts.tolist() == [0, 1, 1, 1, 1, 1]
    assert pairs.ranks.tolist() == [[0, 1], [1, 2], [0, 1], [0, 1], [0, 2], [1, 2]]
    assert pairs.differences.tolist() == [0, -2.5, 1.5, 1.5, -1, -2.5]
    assert pairs.longer.tolist() == [-2, -5, 5, 7, 0, -7]
    assert pairs.correct.tolist() == [0.5, 0, 1, 1, 0, 0]
    assert pairs.longer_wins.tolist() == [0, 0, 1, 1, 0.5, 0]
    assert pairs.longer_preferred.tolist() == [0.5, 1, 1, 1, 0.5, 1]
    assert {k: (e.mean, e.pairs) for k, e in statistics.estimate_by_ranks(pairs).items()} == {
        (0, 1): (2.5 / 3, 3),
        (0, 2): (0, 1),
        (1, 2): (0, 2),
    }


def test_distant_scores_of_a_calibrated_model_are_more_accurate():
    found = list(statistics.estimate_by_margin(plackett_luce(1)).values())
    assert {e.pairs for e in found} == {12000}
    assert all(a.interval[1] < b.interval[0] for a, b in pairwise(found))


def test_equal_margins_are_one_group():
    pairs = statistics.pair_responses([((0, 1), (1.0, 0.0), (1, 2))] * 40)
    assert sum(e.pairs for e in statistics.estimate_by_margin(pairs).values()) == 40


def test_a_planted_length_bias_shows_in_the_length_table():
    """Labels are by quality, except that 30 % of them give 1 more to the longer response; a model
    that adds length to quality is right more often where the better response is longer."""
    generator = np.random.default_rng(3)
    rankings, honest = [], []
    for _ in range(3000):
        quality, lengths = generator.normal(size=2), generator.integers(1, 50, 2)
        label = quality + (lengths == lengths.max()) * (generator.random() < 0.3)
        ranks = np.argsort(np.argsort(-label)).tolist()
        rankings.append((ranks, (quality + 0.03 * lengths).tolist(), lengths.tolist()))
        honest.append((np.argsort(np.argsort(-quality)).tolist(), quality, lengths.tolist()))
    found = statistics.estimate_by_length(statistics.pair_responses(rankings))
    keys = list(found)
    assert keys[0].startswith("shorter by more than") and keys[-1].startswith("longer by more than")
    assert found[keys[0]].interval[1] + 0.1 < found[keys[-1]].interval[0]
    assert sum(e.pairs for e in found.values()) == 3000
    unbiased = statistics.estimate_by_length(statistics.pair_responses(honest))
    assert {e.mean for e in unbiased.values()} == {1.0}
    by_chance = statistics.pair_responses(honest)
    low, high = statistics.estimate_mean(by_chance.longer_wins, by_chance.prompts).interval
    assert low < 0.5 < high
    pearson, _ = statistics.length_correlations(*([r[i] for r in rankings] for i in (1, 2)))
    assert pearson > 0.2


def test_correlations_are_those_of_brute_force():
    generator = np.random.default_rng(4)
    scores = [generator.integers(0, 5, k).astype(float).tolist() for k in (2, 3, 4, 2)]
    lengths = [generator.integers(100 * k, 100 * k + 6, k).tolist() for k in (2, 3, 4, 2)]
    x, y = ([v - sum(row) / len(row) for row in c for v in row] for c in (scores, lengths))
    pearson, spearman = statistics.length_correlations(scores, lengths)
    assert pearson == pytest.approx(np.corrcoef(x, y)[0, 1])

    def ranks(values):
        return [sum(a < v for a in values) + sum(a == v for a in values) / 2 for v in values]

    assert spearman == pytest.approx(np.corrcoef(ranks(x), ranks(y))[0, 1], abs=1e-9)
    assert statistics.length_correlations([[1.0, 1.0]], [[1, 2]]) == (None, None)
