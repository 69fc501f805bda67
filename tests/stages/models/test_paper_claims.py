"""What the papers claim, in small: a wrong implementation fails these."""

from __future__ import annotations

import pytest
from fact_memorization import memorise

STEPS = 2000


@pytest.mark.long
def test_experts_memorise_sooner_at_equal_flops_and_only_if_they_are_kept_busy() -> None:
    """Eight experts reach the dense net's loss in at most 0.35 of its steps; without the balance
    loss the router sends all to a few, and they do not."""
    dense = memorise(0, STEPS)
    switch = memorise(8, STEPS, until=dense.loss)
    assert switch.steps <= 0.35 * STEPS, switch
    collapsed = memorise(8, round(0.35 * STEPS), until=dense.loss, balance=0.0)
    assert collapsed.loss > 1.5 * dense.loss, collapsed
    assert collapsed.busiest > 2 * switch.busiest, (collapsed, switch)
