"""Hashes behind orders and samples; their values are fixed, because artifacts depend on them."""

import numpy as np
import pytest

from stages.data.hashing import GOLDEN_GAMMA, fold64, mix64, permute

SPLITMIX64_OF_SEED_0 = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)


def test_mix64_is_splitmix64_for_integers_and_arrays():
    steps = [GOLDEN_GAMMA * k % 2**64 for k in (1, 2, 3)]
    assert tuple(map(mix64, steps)) == SPLITMIX64_OF_SEED_0
    assert tuple(mix64(np.array(steps, np.uint64)).tolist()) == SPLITMIX64_OF_SEED_0


def test_a_fold_depends_on_every_value_and_their_order():
    assert fold64(0) == SPLITMIX64_OF_SEED_0[0]
    assert len({fold64(1, 2), fold64(2, 1), fold64(1, 2, 0), fold64(1), fold64(1, -2)}) == 5


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 65, 1000])
def test_the_order_is_a_permutation(size):
    seen = [permute(i, size, key=size) for i in range(size)]
    assert sorted(seen) == list(range(size))
    if size == 1000:
        moved = np.abs(np.diff(seen)).mean()  # a random order moves by a third on average
        assert 280 < moved < 390
