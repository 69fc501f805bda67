"""The learning rate as a function of the step: warm-up, then constant, linear, cosine or WSD.

A schedule is a factor in [0, 1] of the peak learning rate. WSD (warm-up, stable, decay) is that of
Hu et al. 2024 (MiniCPM), section 4, with a linear decay.
"""

from __future__ import annotations

import math

from stages.training.training_params import TrainSection


def lr_scale(settings: TrainSection, step: int) -> float:
    """Return the learning rate of a step over its peak; step 0 is the first update."""
    warmup = settings.num_warmup_steps
    if step < warmup:
        return (step + 1) / warmup
    low = settings.min_lr_ratio
    return low + (1 - low) * _decayed(settings, step - warmup, max(1, settings.steps - warmup))


def _decayed(settings: TrainSection, step: int, steps: int) -> float:
    """Return the schedule's value, from 1 at step 0 to 0 at `steps`."""
    done = min(1.0, step / steps)
    if settings.lr_schedule == "constant":
        return 1.0
    if settings.lr_schedule == "linear":
        return 1 - done
    if settings.lr_schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    decay_steps = max(1, round(settings.decay_ratio * settings.steps))
    return min(1.0, (steps - step) / decay_steps)
