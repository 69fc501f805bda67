"""Mixtures: proportions at every prefix, each source's samples once an epoch, published tables."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.data.mixture import (
    PERIOD,
    Interleaved,
    Mixture,
    MixtureSchedule,
    samples_per_period,
    temperature_weights,
)

weights_of_sources = st.lists(
    st.one_of(st.integers(1, 60), st.sampled_from([0.5, 0.25, 2.5, 7.75, 1e3])),
    min_size=1,
    max_size=9,
)

GPT3 = {  # tokens in billions, weight in per cent, epochs in 300 billion tokens
    "Common Crawl": (410, 60, 0.44),
    "WebText2": (19, 22, 3.5),
    "Books1": (12, 8, 2.0),
    "Books2": (55, 8, 0.44),
    "Wikipedia": (3, 3, 3.0),
}


@settings(max_examples=80, deadline=None)
@given(weights_of_sources)
def test_every_prefix_has_each_proportion_within_one_sample(weights):
    schedule = MixtureSchedule.from_weights(weights)
    period = len(schedule.source)
    total = sum(weights)
    assert period <= PERIOD
    for index, weight in enumerate(weights):
        drawn = (schedule.source == index).cumsum()
        owed = np.arange(1, period + 1) * (weight / total)
        assert np.abs(drawn - owed).max() < 1 + 1e-6


@given(weights_of_sources, st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_samples_of_a_source_are_consecutive(weights, start):
    schedule = MixtureSchedule.from_weights(weights)
    before = schedule.samples_per_source(start).tolist()
    assert sum(before) == start
    for index in range(start, start + 50):
        source, place = schedule.locate(index)
        assert place == before[source]
        before[source] += 1
    assert before == schedule.samples_per_source(start + 50).tolist()


def test_weights_that_are_decimals_are_exact():
    assert samples_per_period([60, 22, 8, 8, 3]) == [60, 22, 8, 8, 3]
    assert samples_per_period([0.1, 0.2, 0.7]) == [1, 2, 7]
    assert samples_per_period([3.5]) == [1]
    assert samples_per_period([1e-3, 0.999]) == [1, 999]


@given(st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=20))
def test_other_weights_are_rounded_but_never_to_zero(weights):
    counts = samples_per_period(weights)
    assert min(counts) >= 1 and sum(counts) <= PERIOD
    for count, weight in zip(counts, weights, strict=True):
        share = weight / sum(weights)
        assert abs(count / sum(counts) - share) <= (1 + len(weights) * (1 + share)) / PERIOD


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -1], [1, float("nan")], [float("inf")]])
def test_invalid_weights_are_rejected(weights):
    with pytest.raises(ValueError, match="positive"):
        samples_per_period(weights)


def test_the_weights_of_gpt_3_give_its_epochs():
    """The published weights add up to 101 %, so a source is drawn a hundredth less than they say;
    the table's figures are rounded to one or two digits."""
    tokens_a_sample = 100_000
    sources = [range(size * 10**9 // tokens_a_sample) for size, _, _ in GPT3.values()]
    mixture = Mixture(sources, [weight for _, weight, _ in GPT3.values()])
    assert sum(mixture.proportions) == pytest.approx(1)
    assert mixture.proportions[0] == pytest.approx(60 / 101)
    found = mixture.epochs_after(300 * 10**9 // tokens_a_sample)
    for epochs, (size, weight, published) in zip(found, GPT3.values(), strict=True):
        assert epochs == pytest.approx(300 * weight / 101 / size, rel=1e-4)
        digits = len(str(published).partition(".")[2])
        assert abs(epochs * 1.01 - published) <= 0.5 * 10**-digits + 1e-3


def test_temperature_flattens_the_weights():
    sizes = [1_000_000, 10_000, 100]
    by_size = temperature_weights(sizes, 1.0)
    assert by_size[0] / by_size[1] == pytest.approx(100)
    warm = temperature_weights(sizes, 2.0)
    assert warm[0] / warm[2] == pytest.approx(100)
    hot = temperature_weights(sizes, 1e9)
    assert hot == pytest.approx([1, 1, 1])


def test_a_mixture_reads_its_sources():
    class Letters(str):
        def __getitem__(self, index):
            return f"{str.__getitem__(self, index % len(self))}{index // len(self)}"

    mixture = Mixture([Letters("abcd"), Letters("xy")], [2, 1])
    assert " ".join(mixture[i] for i in range(9)) == "a0 b0 x0 c0 d0 y0 a1 b1 x1"
    assert mixture[3_000_000] == "a500000"
    assert mixture.epochs_after(9) == [1.5, 1.5]
    with pytest.raises(ValueError, match="1 weights for 2 sources"):
        Mixture([range(2), range(3)], [1])


def test_held_out_samples_are_spread_over_the_sources():
    joined = Interleaved([range(100, 160), range(200, 230), range(300, 303)])
    found = [joined[i] for i in range(len(joined))]
    assert sorted(found) == [*range(100, 160), *range(200, 230), *range(300, 303)]
    first = found[:31]
    assert [sum(low <= x < low + 100 for x in first) for low in (100, 200, 300)] == [20, 10, 1]
