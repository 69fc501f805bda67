"""Hyperparameters of training (`train:` of a pipeline file), and the division of the global batch
into ranks and micro-batches.

Imports no torch, because `headwater plan` reads this module.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from pipeline.errors import Problem
from pipeline.stage import EXECUTION, Params, Section, Workers
from stages.training.optim.optimizer_registry import find_optimizer
from stages.training.ranks.watchdog import WatchdogSection

LRSchedule = Literal["constant", "linear", "cosine", "wsd"]
Dtype = Literal["float32", "bfloat16", "float16"]
GradClipMode = Literal["norm", "norm_soft", "value"]


class BatchSizeRampup(Section):
    """Batch-size warm-up: the global batch grows from `initial_batch_size` to `global_batch_size`
    by `initial_batch_size` samples at a time (Brown et al. 2020, appendix B)."""

    renamed: ClassVar[Mapping[str, str]] = {"start": "initial_batch_size"}

    initial_batch_size: Annotated[int, Field(ge=0)] = 0
    """Samples of the first step, a divisor of `global_batch_size`. Default: 0, a constant batch
    size."""
    steps: Annotated[int, Field(ge=0)] = 0
    """Steps until the batch has `global_batch_size` samples. Default: 0."""

    def __bool__(self) -> bool:
        return self.initial_batch_size > 0


class TrainSection(Section):
    """Training hyperparameters. Fields marked EXECUTION change the speed, not the result, except
    for

    - the order of sums: another layout agrees within rounding, the same layout bit for bit;
    - dropout: masks are drawn per rank and forward pass, so another number of workers or another
      micro-batch size draws other masks of the same distribution;
    - recovery from repeated bad steps, see `checkpoint_interval`.

    A sample and the matrices of a layer are always computed on one worker: there is no sequence,
    tensor or pipeline parallelism.
    """

    renamed: ClassVar[Mapping[str, str]] = {
        "global_batch": "global_batch_size",
        "micro_batch": "micro_batch_size",
        "batch_ramp": "batch_size_rampup",
        "schedule": "lr_schedule",
        "warmup": "warmup_steps",
        "decay": "decay_ratio",
        "clip": "grad_clip",
        "clip_by": "grad_clip_mode",
        "eval_every": "eval_interval",
        "rollbacks": "max_rollbacks",
        "zero": "zero_stage",
        "offload": "offload_optimizer",
        "expert_parallel": "expert_parallel_size",
        "checkpoint_every": "checkpoint_interval",
        "keep": "checkpoint_keep_latest",
        "keep_every": "checkpoint_keep_interval",
    }

    steps: Annotated[int, Field(ge=1)] = 300
    """Optimizer steps (PPO: iterations). Default: 300."""
    global_batch_size: Annotated[int, Field(ge=1)] = 32
    """Samples per optimizer step, over all ranks and micro-batches. Default: 32."""
    batch_size_rampup: BatchSizeRampup = BatchSizeRampup()
    """Batch-size warm-up. Default: a constant batch size."""
    optimizer: Annotated[str, AfterValidator(lambda name: find_optimizer(name).name)] = "adamw"
    """Name of an optimizer in `stages.training.optim.optimizer_registry`, or of a plugin. Default:
    adamw."""
    lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate. Default: 1e-3."""
    lr_schedule: LRSchedule = "cosine"
    """Shape of the learning rate after the warm-up. Default: cosine."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0.02
    """Steps of linear learning-rate warm-up; a value below 1 is a fraction of `steps`. Default:
    0.02."""
    decay_ratio: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Fraction of `steps`, at the end, in which schedule `wsd` decays. Default: 0.2."""
    min_lr_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Final learning rate over peak learning rate. Default: 0.1."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay of matrices; gains, biases and vectors have none. Default: 0.1."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay rate of Adam's first moment; in Lion, of the momentum in the update. Default:
    0.9."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """Decay rate of Adam's second moment; in Lion, of the momentum that is kept. Default:
    0.95."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Term added to the square root of Adam's second moment. Default: 1e-8."""
    grad_clip: Annotated[float, Field(ge=0)] = 1.0
    """Largest global norm of the gradient (see `grad_clip_mode`); 0 disables clipping. Default:
    1."""
    grad_clip_mode: GradClipMode = "norm"
    """Form of clipping: `norm` scales a gradient g longer than `grad_clip` down to it; `norm_soft`
    scales every g by grad_clip / (|g| + grad_clip); `value` clamps each element to
    [-grad_clip, grad_clip]. Default: norm."""
    dtype: Dtype = "float32"
    """Data type of activations and gradients. Master weights, moments, accumulated gradients and
    exported weights are always float32. float16 uses a dynamic loss scale; steps that overflow
    it are skipped. Default: float32."""
    eval_interval: Annotated[int, Field(ge=0)] = 0
    """Steps between evaluations. Default: 0, an evaluation at the end only."""
    eval_samples: Annotated[int, Field(ge=0)] = 256
    """Held-out samples per evaluation; 0 takes all. Default: 256."""
    spike_sigma: Annotated[float, Field(ge=0)] = 6
    """Threshold of spike detection for loss and gradient norm, standard deviations above the mean
    of the window. The update of a spike is skipped; a lasting rise of the gradient norm alone is
    accepted after a few steps. 0 skips only non-finite gradients. Default: 6."""
    spike_window: Annotated[int, Field(ge=4)] = 128
    """Window of spike detection, steps. Detection starts after half a window. Default: 128."""
    skip_limit: Annotated[int, Field(ge=0)] = 5
    """Bad steps in a row (gradient not finite, or loss spike) that are tolerated before a
    rollback. Default: 5."""
    max_rollbacks: Annotated[int, Field(ge=0)] = 1
    """Rollbacks to the last scheduled checkpoint, after which training continues beyond the data
    that broke it. Default: 1."""

    micro_batch_size: Annotated[int | None, Field(ge=1), EXECUTION] = None
    """Samples per forward pass on one rank. Default: the rank's whole part of the batch. With
    dropout, other sizes draw other masks."""
    zero_stage: Annotated[Literal[0, 1, 2, 3], EXECUTION] = 1
    """ZeRO stage: 1 shards optimizer states, 2 gradients too, 3 weights too. Default: 1."""
    offload_optimizer: Annotated[Literal["none", "cpu"], EXECUTION] = "none"
    """Place of optimizer states: `cpu` keeps master weights and moments in host memory and updates
    them there (Ren et al. 2021), if the optimizer supports it. Default: none."""
    expert_parallel_size: Annotated[int, Field(ge=1), EXECUTION] = 1
    """Workers that share the experts of a layer. Default: 1, all experts on each worker."""
    checkpoint_interval: Annotated[int, Field(ge=0), EXECUTION] = 100
    """Steps between checkpoints; 0 saves only on interruption and at the end, and allows no
    rollback. Default: 100."""
    checkpoint_keep_latest: Annotated[int, Field(ge=1), EXECUTION] = 2
    """Newest checkpoints that are kept, in addition to the one to roll back to. Default: 2."""
    checkpoint_keep_interval: Annotated[int, Field(ge=0), EXECUTION] = 0
    """Steps between checkpoints that are never removed. Default: 0, only the newest are kept."""
    watchdog: Annotated[WatchdogSection, EXECUTION] = WatchdogSection()
    """Time without progress after which a group of ranks counts as stuck."""

    @model_validator(mode="after")
    def _validate_lengths(self) -> TrainSection:
        self.require_lengths()
        return self

    def require_lengths(self) -> None:
        """Check that all numbers of steps fit into the training.

        Raises:
            ValueError: one does not.
        """
        if self.num_warmup_steps > self.steps:
            raise ValueError(
                f"warmup_steps ({self.warmup_steps:g}) is larger than steps ({self.steps})"
            )
        rampup = self.batch_size_rampup
        if bool(rampup.initial_batch_size) != bool(rampup.steps):
            raise ValueError("batch_size_rampup: set both initial_batch_size and steps, or neither")
        if rampup and self.global_batch_size % rampup.initial_batch_size:
            raise ValueError(
                f"batch_size_rampup.initial_batch_size: global_batch_size "
                f"({self.global_batch_size}) is not a multiple of {rampup.initial_batch_size}"
            )
        if rampup.steps > self.steps:
            raise ValueError(
                f"batch_size_rampup.steps: {rampup.steps} is larger than steps ({self.steps})"
            )

    @property
    def num_warmup_steps(self) -> int:
        """Return the number of warm-up steps."""
        share = self.warmup_steps
        return round(share * self.steps) if share < 1 else int(share)

    @property
    def total_samples(self) -> int:
        """Return the number of samples of the whole training, without rollbacks."""
        return self.first_sample(self.steps)

    def batch_size_at(self, step: int) -> int:
        """Return the number of samples of a step, over all ranks."""
        if not (ramp := self.batch_size_rampup):
            return self.global_batch_size
        initial = ramp.initial_batch_size
        increments = (self.global_batch_size // initial - 1) * min(step, ramp.steps) // ramp.steps
        return initial * (1 + increments)

    def first_sample(self, step: int) -> int:
        """Return the index of a step's first sample: the number of samples of all steps before."""
        if not (ramp := self.batch_size_rampup):
            return step * self.global_batch_size
        increments = self.global_batch_size // ramp.initial_batch_size - 1
        raised_at = (-(-ramp.steps * i // increments) for i in range(1, increments + 1))
        return ramp.initial_batch_size * (step + sum(max(0, step - at) for at in raised_at))

    def effective_zero_stage(self, world: int) -> int:
        """Return the ZeRO stage that runs on `world` ranks.

        One rank has nothing to shard; but with half precision or offloading it needs the float32
        master weights that DeepSpeed keeps from stage 1 on.
        """
        if self.dtype != "float32" or self.offload_optimizer != "none":
            return max(1, self.zero_stage)
        return self.zero_stage if world > 1 else 0

    @property
    def max_checkpoints(self) -> int:
        """Return the largest number of checkpoints on disk: the newest ones, the one to roll back
        to if interruptions left newer ones, and one that is being written."""
        interval = self.checkpoint_interval
        scheduled = self.steps // interval if interval else 0
        common = math.lcm(interval, self.checkpoint_keep_interval)
        permanent = self.steps // common if common else 0
        kept = self.checkpoint_keep_latest + bool(scheduled) + permanent
        return min(scheduled + 1, kept) + 1

    def rank_batch_size(self, world: int, step: int | None = None) -> int:
        """Return the number of samples per rank: of a step, or of a full batch."""
        batch = self.global_batch_size if step is None else self.batch_size_at(step)
        return batch // world

    def rank_micro_batch_size(self, world: int, step: int | None = None) -> int:
        """Return the number of samples per forward pass on one rank."""
        return self.micro_batch_size or self.rank_batch_size(world, step)

    def check(self, workers: Workers, key: str = "train") -> Iterator[Problem]:
        """Yield the contradictions between this section and the workers."""
        per_pass = workers.num * (self.micro_batch_size or 1)
        smallest, place = self.global_batch_size, f"{key}.global_batch_size"
        if self.batch_size_rampup:
            smallest = self.batch_size_rampup.initial_batch_size
            place = f"{key}.batch_size_rampup.initial_batch_size"
        if smallest % per_pass:
            factors = f"workers.num ({workers.num})"
            if self.micro_batch_size:
                factors += f" x {key}.micro_batch_size ({self.micro_batch_size})"
            remedy = f"{_nearest(smallest, per_pass)} is"
            yield Problem(place, f"{smallest} is not divisible by {factors}", remedy)
        if workers.num % self.expert_parallel_size:
            yield Problem(
                f"{key}.expert_parallel_size",
                f"workers.num ({workers.num}) is not divisible by {self.expert_parallel_size}",
                f"{_nearest(workers.num, self.expert_parallel_size)} workers are",
            )
        spec = find_optimizer(self.optimizer)
        if self.zero_stage not in spec.zero_stages:
            stages = ", ".join(map(str, spec.zero_stages))
            yield Problem(f"{key}.zero_stage", spec.zero_reason, f"set one of {stages}")
        if self.offload_optimizer != "none" and not spec.supports_offload:
            yield Problem(f"{key}.offload_optimizer", spec.offload_reason, "leave it out")
        if self.dtype != "float32" and not workers.gpus:
            yield Problem(
                f"{key}.dtype",
                f"{self.dtype} needs a GPU: CPUs emulate it, several times slower",
                "set float32, or workers.gpus",
            )
        default = type(self).model_fields["decay_ratio"].default
        if self.decay_ratio != default and self.lr_schedule != "wsd":
            message = f"has no effect with lr_schedule {self.lr_schedule}"
            yield Problem(f"{key}.decay_ratio", message, "leave it out, or set lr_schedule: wsd")


class PretrainTrain(TrainSection):
    """Training hyperparameters of `pretrain`, whose length may be given in tokens."""

    # It sets `steps`, which enters the fingerprint, and is None from then on.
    tokens: Annotated[float | None, Field(ge=1), EXECUTION] = None
    """Tokens of the training, instead of `steps`, which it sets: as many steps as take at least
    these. Default: none."""

    def require_lengths(self) -> None:
        """Check steps that are given; those of tokens are known when the context length is."""
        if self.tokens is None:
            super().require_lengths()
        elif "steps" in self.model_fields_set:
            raise ValueError("set either steps or tokens")

    def for_context(self, context_length: int) -> PretrainTrain:
        """Return the section with the steps that `tokens` take.

        Raises:
            ValueError: they are fewer than another parameter needs.
        """
        if self.tokens is None:
            return self
        samples = math.ceil(self.tokens / context_length)
        # A rampup delays: after `rampup.steps` every step takes a full batch.
        missing = samples - self.first_sample(self.batch_size_rampup.steps)
        steps = self.batch_size_rampup.steps + max(0, math.ceil(missing / self.global_batch_size))
        while steps > 1 and self.first_sample(steps - 1) >= samples:
            steps -= 1
        found = self.model_copy(update={"steps": steps, "tokens": None})
        found.require_lengths()
        return found


def _nearest(value: int, divisor: int) -> int:
    return max(1, round(value / divisor)) * divisor


class MixtureSection(Section):
    """Sampling weights of several token stores."""

    weights: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = ()
    """Sampling weight per store, in their order, in any unit. Default: by `temperature`."""
    temperature: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 1.0
    """Without weights, a store of n tokens has weight n ** (1 / temperature): 1 samples by size,
    larger values favor small stores. Default: 1."""

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield the contradictions between this section and the edge `tokens`."""
        stores = sum(edge.startswith("tokens[") for edge in upstream)
        if self.weights and self.temperature != 1:
            yield Problem("mixture.temperature", "has no effect next to weights", "leave one out")
        if self.weights and len(self.weights) < stores:
            message = f"{len(self.weights)} weights for {stores} stores"
            yield Problem("mixture.weights", message, "give one per item of `tokens`")
