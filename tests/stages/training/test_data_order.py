"""The order of the samples."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.training.data_order import Shuffled, derive_seed, micro_batches
from stages.training.ranks.rank import Rank
from stages.training.training_params import BatchSizeRampup, TrainSection


def dealt(
    world: int, micro: int | None, ragged: bool, step: int = 3, ramp: BatchSizeRampup | None = None
) -> list[list[list[int]]]:
    """Return the samples of a step, by rank and micro-batch."""
    made = []
    for index in range(world):
        made_of = TrainSection(
            global_batch_size=24,
            micro_batch_size=micro,
            batch_size_rampup=ramp or BatchSizeRampup(),
        )
        samples, length = Shuffled(range(100), seed=5), int if ragged else None
        made.append(micro_batches(samples, made_of, Rank(index, world), step, length=length))
    return made


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 300), st.integers(0, 2**40), st.integers(0, 5))
def test_every_epoch_visits_everything_once(size: int, seed: int, epoch: int) -> None:
    order = Shuffled(range(size), seed)
    assert sorted(order[epoch * size + i] for i in range(size)) == list(range(size))


def test_epochs_and_seeds_have_different_orders() -> None:
    first = [Shuffled(range(50), 0)[i] for i in range(50)]
    second = [Shuffled(range(50), 0)[50 + i] for i in range(50)]
    other = [Shuffled(range(50), 1)[i] for i in range(50)]
    assert first != second
    assert first != other
    assert first != list(range(50))


def test_the_order_is_frozen() -> None:
    """Pins the order: a change would silently change the data of every resumed run."""
    assert [Shuffled(range(10), 42)[i] for i in range(12)] == GOLDEN
    assert derive_seed(0, 1, 2) == GOLDEN_MIX


GOLDEN = [3, 1, 6, 5, 8, 4, 7, 9, 0, 2, 8, 7]
GOLDEN_MIX = 5458876493991123480


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("world", "micro"), [(1, None), (1, 3), (2, None), (2, 4), (4, 2), (3, 8)])
def test_a_step_is_the_same_samples_at_any_world_size(
    world: int, micro: int | None, ragged: bool
) -> None:
    order = Shuffled(range(100), seed=5)
    wanted = sorted(order[i] for i in range(3 * 24, 4 * 24))
    ranks = dealt(world, micro, ragged)
    assert sorted(sample for rank in ranks for batch in rank for sample in batch) == wanted
    assert {len(batch) for rank in ranks for batch in rank} == {micro or 24 // world}


@settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(1, 8), st.integers(1, 12), st.integers(1, 40))
def test_a_batch_size_rampup_is_even_and_skips_no_sample(
    start: int, times: int, steps: int
) -> None:
    """Compares with the sum over the steps before, and with a straight line."""
    G = start * times
    made = TrainSection.model_validate(
        {
            "global_batch_size": G,
            "steps": 50,
            "batch_size_rampup": {"initial_batch_size": start, "steps": steps},
        }
    )
    batches = [made.batch_size_at(step) for step in range(50)]
    assert [made.first_sample(step) for step in range(51)] == [sum(batches[:s]) for s in range(51)]
    assert made.total_samples == sum(batches)
    assert batches[0] == start or times == 1
    assert set(batches[steps:]) <= {G}
    for step, batch in enumerate(batches[:steps]):
        assert batch % start == 0
        assert 0 <= start + (G - start) * step / steps - batch < start + 1e-9


@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize(("world", "micro"), [(1, None), (1, 2), (2, None), (2, 2), (4, 1)])
def test_the_steps_of_a_rampup_are_the_same_samples_at_any_world_size(
    world: int, micro: int | None, ragged: bool
) -> None:
    order, at = Shuffled(range(100), seed=5), 0
    ramp = BatchSizeRampup(initial_batch_size=4, steps=5)
    for step, batch in enumerate([4, 8, 12, 16, 20, 24, 24]):
        ranks = dealt(world, micro, ragged, step, ramp)
        found = sorted(sample for rank in ranks for batch in rank for sample in batch)
        assert found == sorted(order[i] for i in range(at, at + batch))
        assert {len(part) for rank in ranks for part in rank} == {micro or batch // world}
        at += batch


def test_samples_are_grouped_by_length() -> None:
    ranks = dealt(2, 3, ragged=True)
    plain = dealt(2, 3, ragged=False)

    def padding(made: list[list[list[int]]]) -> int:
        return sum(max(b) - s for rank in made for b in rank for s in b)

    def waiting(made: list[list[list[int]]]) -> int:
        return sum(abs(max(a) - max(b)) for a, b in zip(*made, strict=True))

    assert padding(ranks) < padding(plain) / 3
    assert waiting(ranks) < waiting(plain) / 3
