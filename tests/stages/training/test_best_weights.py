"""The metric that decides which weights are kept."""

import math

import pytest

from stages.training.best_weights import BestMetric

NAN = math.nan


@pytest.mark.parametrize(("highest", "values", "kept"), [
    (False, [3.0, 1.0, 1.0, 2.0], 1), (True, [3.0, 1.0, 3.0, 2.0], 0), (False, [NAN, 5.0, NAN], 1),
    (True, [NAN, -math.inf, -7.0, NAN], 2), (False, [NAN, NAN], None),
])  # fmt: skip
def test_the_first_of_the_best_is_kept(highest, values, kept):
    metric, best, at = BestMetric("eval_x", highest), NAN, None
    for step, value in enumerate(values):
        if metric.is_better(value, best):
            best, at = value, step
    assert at == kept
