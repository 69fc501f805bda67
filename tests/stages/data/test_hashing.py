"""Hashes that decide orders and draws: pinned, for every artifact depends on them."""

import numpy as np

from stages.data.hashing import GOLDEN_GAMMA, fold64, mix64

SPLITMIX64_OF_SEED_0 = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F)


def test_the_mixer_is_that_of_splitmix64_for_numbers_and_arrays():
    steps = [GOLDEN_GAMMA * k % 2**64 for k in (1, 2, 3)]
    assert tuple(map(mix64, steps)) == SPLITMIX64_OF_SEED_0
    assert tuple(mix64(np.array(steps, np.uint64)).tolist()) == SPLITMIX64_OF_SEED_0


def test_a_fold_depends_on_every_value_and_their_order():
    assert fold64(0) == SPLITMIX64_OF_SEED_0[0]
    assert len({fold64(1, 2), fold64(2, 1), fold64(1, 2, 0), fold64(1), fold64(1, -2)}) == 5
