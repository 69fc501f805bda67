"""What a pipeline file says of training (`train:`), and what follows from it before any process
starts: how the global batch falls on ranks and micro-batches.

Imports no torch: `headwater plan` reads this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.errors import Problem
from pipeline.stage import EXECUTION, Params, Section, Workers

Schedule = Literal["constant", "linear", "cosine", "wsd"]
Dtype = Literal["float32", "bfloat16", "float16"]
ClipBy = Literal["norm", "norm_soft", "value"]


class Limits(Section):
    """When a silent group counts as stuck: after `factor` median steps, but not before `floor`."""

    factor: Annotated[float, Field(gt=1)] = 20
    """Median steps without progress."""
    floor: Annotated[float, Field(gt=0)] = 120
    """Seconds without progress that are always allowed, once steps are being made."""
    start: Annotated[float, Field(gt=0)] = 900
    """Seconds allowed before the first step: imports, reading, compiling."""


class RampSection(Section):
    """A global batch that grows from `start` to `global_batch`, as GPT-3's did (Brown et al. 2020,
    appendix B), by `start` samples at a time."""

    start: Annotated[int, Field(ge=0)] = 0
    """Samples of the first step; `global_batch` is a multiple of it. 0: all batches are alike."""
    steps: Annotated[int, Field(ge=0)] = 0
    """Steps until the batch is whole."""

    def __bool__(self) -> bool:
        return self.start > 0


class TrainSection(Section):
    """How a model is trained. Fields marked EXECUTION change the speed, not the result, but for

    - the order of sums: another layout agrees within rounding, the same one bit for bit;
    - dropout: masks are drawn on each rank for each forward pass, so that another number of
      workers or another micro-batch draws others, no worse and no better;
    - what is done after steps that keep going wrong: see `checkpoint_every`.

    A sample is always computed whole on one worker, and a layer's matrices too: there is no
    sequence, tensor or pipeline parallelism.
    """

    steps: Annotated[int, Field(ge=1)] = 300
    """Optimizer steps (PPO: iterations)."""
    global_batch: Annotated[int, Field(ge=1)] = 32
    """Samples of one optimizer step, over all ranks and micro-batches."""
    batch_ramp: RampSection = RampSection()
    """Begins with smaller batches; left out: all are alike."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` turns the matrices of the blocks (Jordan et al. 2024), at AdamW's learning rate, and
    leaves the rest to AdamW; at ZeRO 0, 1 and 2."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate."""
    schedule: Schedule = "cosine"
    """Shape of the learning rate after the warm-up."""
    warmup: Annotated[float, Field(ge=0)] = 0.02
    """Linear warm-up: a share of the steps if below 1, else a number of steps."""
    decay: Annotated[float, Field(ge=0, le=1)] = 0.2
    """The share of the steps in which `wsd` falls, at the end."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """The last learning rate over the peak."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled decay of matrices; gains, biases and vectors are spared."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Of Adam's average of gradients."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Of Adam's average of squared gradients."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of Adam's second moment."""
    clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest global norm of the gradient (or see `clip_by`); 0 leaves it as it is."""
    clip_by: ClipBy = "norm"
    """`norm` scales a gradient that is longer than `clip` down to it; `norm_soft` scales every
    gradient g by clip / (|g| + clip); `value` brings each number of it into [-clip, clip]."""
    dtype: Dtype = "float32"
    """Of activations and gradients; master weights, moments, sums of gradients over passes and what
    is exported are always float32. With float16 the loss is scaled as far up as gradients stay
    finite; steps that find the limit are skipped."""
    eval_every: Annotated[int, Field(ge=0)] = 0
    """Steps between evaluations; 0 evaluates at the end only."""
    eval_samples: Annotated[int, Field(ge=0)] = 256
    """Held-out samples of one evaluation; 0 takes all."""
    spike_sigma: Annotated[float, Field(ge=0)] = 6
    """A step is skipped if its loss or gradient norm lies more than this many standard deviations
    above the mean of the steps before; 0 skips only what is not finite. Norms that rise for good
    while the loss does not are followed after a few steps."""
    spike_window: Annotated[int, Field(ge=4)] = 128
    """How many of the steps before; until half as many were made, nothing stands out."""
    skip_limit: Annotated[int, Field(ge=0)] = 5
    """Steps in a row that are skipped, for a gradient that is not finite or a loss that stands out,
    before rolling back."""
    rollbacks: Annotated[int, Field(ge=0)] = 1
    """Times that training goes back to the last checkpoint that was due, and past the data that
    broke it."""

    micro_batch: Annotated[int | None, Field(ge=1), EXECUTION] = None
    """Samples of one forward pass on one rank; left out: the rank's whole share. With dropout,
    other passes draw other masks."""
    zero: Annotated[Literal[0, 1, 2, 3], EXECUTION] = 1
    """ZeRO stage: 1 shards the optimizer, 2 gradients too, 3 weights too."""
    offload: Annotated[Literal["none", "cpu"], EXECUTION] = "none"
    """`cpu` keeps master weights and moments in the memory of the host, and updates them there
    (Ren et al. 2021); with ZeRO 1, 2 or 3, and AdamW."""
    expert_parallel: Annotated[int, Field(ge=1), EXECUTION] = 1
    """Workers that hold the experts of a layer together, each its share; 1: each holds all."""
    checkpoint_every: Annotated[int, Field(ge=0), EXECUTION] = 100
    """Steps between checkpoints; 0 saves only when interrupted and at the end, and leaves nothing
    to go back to after steps that went wrong."""
    keep: Annotated[int, Field(ge=1), EXECUTION] = 2
    """Checkpoints that are kept, besides the one to go back to."""
    keep_every: Annotated[int, Field(ge=0), EXECUTION] = 0
    """Checkpoints of steps that this divides are kept too; 0 keeps no more."""
    watchdog: Annotated[Limits, EXECUTION] = Limits()
    """When a silent group counts as stuck."""

    @model_validator(mode="after")
    def _warmup_fits(self) -> TrainSection:
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup ({self.warmup:g}) is longer than steps ({self.steps})")
        return self

    @model_validator(mode="after")
    def _ramp_fits(self) -> TrainSection:
        ramp = self.batch_ramp
        if bool(ramp.start) != bool(ramp.steps):
            raise ValueError("batch_ramp: start and steps go together")
        if ramp:
            if self.global_batch % ramp.start:
                told = f"global_batch ({self.global_batch}) is no multiple of {ramp.start}"
                raise ValueError(f"batch_ramp.start: {told}")
            if ramp.steps > self.steps:
                told = f"{ramp.steps} are more than steps ({self.steps})"
                raise ValueError(f"batch_ramp.steps: {told}")
        return self

    @property
    def warmup_steps(self) -> int:
        """Steps of the warm-up."""
        return round(self.warmup * self.steps) if self.warmup < 1 else int(self.warmup)

    @property
    def samples(self) -> int:
        """Of the whole training, if no step is leapt over."""
        return self.first(self.steps)

    def batch(self, step: int) -> int:
        """Samples of a step over all ranks."""
        if not (ramp := self.batch_ramp):
            return self.global_batch
        grown = (self.global_batch // ramp.start - 1) * min(step, ramp.steps) // ramp.steps
        return ramp.start * (1 + grown)

    def first(self, step: int) -> int:
        """The first sample of a step: how many the steps before it have."""
        if not (ramp := self.batch_ramp):
            return step * self.global_batch
        rises = self.global_batch // ramp.start - 1
        risen = (-(-ramp.steps * rise // rises) for rise in range(1, rises + 1))
        return ramp.start * (step + sum(max(0, step - at) for at in risen))

    def stage(self, world: int) -> int:
        """The ZeRO stage that is run: one rank has nothing to shard, but what is not float32, or
        not on the device, needs the float32 masters that DeepSpeed keeps from stage 1 on."""
        if self.dtype != "float32" or self.offload != "none":
            return max(1, self.zero)
        return self.zero if world > 1 else 0

    @property
    def checkpoints(self) -> int:
        """How many there are at once, at most: those that are kept, the one to go back to where
        interrupts left newer ones, and one that is being written."""
        due = self.steps // self.checkpoint_every if self.checkpoint_every else 0
        both = math.lcm(self.checkpoint_every, self.keep_every)
        apart = self.steps // both if both else 0
        return min(due + 1, self.keep + bool(due) + apart) + 1

    def share(self, world: int, step: int | None = None) -> int:
        """Samples on one rank, of a step or of a whole batch."""
        return (self.global_batch if step is None else self.batch(step)) // world

    def micro(self, world: int, step: int | None = None) -> int:
        """Samples of one forward pass on one rank."""
        return self.micro_batch or self.share(world, step)

    def check(self, workers: Workers, key: str = "train") -> Iterator[Problem]:
        """Yield what does not add up between the batch and the workers."""
        per_pass = workers.num * (self.micro_batch or 1)
        least, place = self.global_batch, f"{key}.global_batch"
        if self.batch_ramp:
            least, place = self.batch_ramp.start, f"{key}.batch_ramp.start"
        if least % per_pass:
            parts = f"workers.num ({workers.num})"
            if self.micro_batch:
                parts += f" x {key}.micro_batch ({self.micro_batch})"
            remedy = f"{_nearest(least, per_pass)} is"
            yield Problem(place, f"{least} is not divisible by {parts}", remedy)
        if workers.num % self.expert_parallel:
            yield Problem(
                f"{key}.expert_parallel",
                f"workers.num ({workers.num}) is not divisible by {self.expert_parallel}",
                f"{_nearest(workers.num, self.expert_parallel)} workers are",
            )
        if self.optimizer == "muon" and self.zero == 3:
            yield Problem(
                f"{key}.zero", "Muon needs whole matrices, which ZeRO 3 cuts up", "set 0, 1 or 2"
            )
        if self.optimizer == "muon" and self.offload != "none":
            yield Problem(
                f"{key}.offload", "Muon's products would take the host for ever", "leave it out"
            )
        if self.dtype != "float32" and not workers.gpus:
            yield Problem(
                f"{key}.dtype",
                f"{self.dtype} needs a GPU: processors emulate it, several times slower",
                "set float32, or workers.gpus",
            )


def _nearest(value: int, divisor: int) -> int:
    return max(1, round(value / divisor)) * divisor


class MixtureSection(Section):
    """How much of each store of `tokens` is trained on; only where there are several."""

    weights: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()
    """One for each store, in order: its part of the samples, whatever they add up to."""
    temperature: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """Without weights, a store of n tokens gets n ** (1 / temperature) parts: 1 goes by size, and
    more gives the small ones more."""

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield what the edge `tokens` and this section say against each other."""
        known = sum(edge.startswith("tokens[") for edge in upstream)
        if self.weights and self.temperature != 1:
            yield Problem("mixture.temperature", "weights say it all already", "leave one out")
        if self.weights and len(self.weights) < known:
            told = f"{len(self.weights)} for {known} stores"
            yield Problem("mixture.weights", told, "one for each of `tokens`")
