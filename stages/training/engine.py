"""A module under a DeepSpeed engine: backward, clipped step, and its weights by name.

ZeRO 0-3 give the same update. Two things are ours rather than DeepSpeed's: at stage 0 the norm,
which is that of the averaged gradient (DeepSpeed reports none in float32); and what follows from
the norm at every stage. All ranks judge the same number: an update whose gradient is not finite is
left out, and so is one that stands out (`stages.training.spike_guard`); the others are clipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.errors import Failure
from stages.training.expert_parallel import (
    alone,
    gathered,
    group_name,
    is_apart,
    spread,
    total_over_experts,
)
from stages.training.optim.adamw import clip
from stages.training.optim.muon import Muon, know_ranges
from stages.training.optim.param_groups import optimizer, set_rate
from stages.training.planning.memory_model import BUCKET, CPU_BUCKET
from stages.training.spike_guard import SpikeGuard
from stages.training.step_result import EngineStep
from stages.training.zero_state import Fragment, layout, whole_weights

if TYPE_CHECKING:
    from stages.training.objective import Trainable
    from stages.training.ranks.rank import Rank
    from stages.training.training_params import TrainSection


NOT_FINITE = "the gradient is not finite"
SCALE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""What DeepSpeed's dynamic loss scale (Micikevicius et al. 2018, section 3.2) goes by."""


class Engine:
    """One trained module. Called like the module itself; `module` is the plain one inside.

    Raises:
        Failure: one of its parameters has no dimension.
    """

    def __init__(self, name: str, trainable: Trainable, settings: TrainSection, rank: Rank) -> None:
        import deepspeed

        self.name = name
        self.rank = rank
        self.settings = settings
        self.zero = settings.effective_zero_stage(rank.world)
        self.module: nn.Module = trainable.module
        _check(name, self.module)
        shares = spread(self.module, settings.expert_parallel_size, rank)
        self.parameters = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        shapes = {n: tuple(p.shape) for n, p in self.parameters.items()}
        self.shapes = shapes | {n: share.shape for n, share in shares.items()}
        """Of the whole parameters, of which this rank may hold a part."""
        masters = _masters(self.parameters) if settings.dtype != "float32" else {}
        self._peak_lr = self.lr = settings.lr * trainable.lr_ratio
        self._adam = optimizer(trainable, self.parameters, settings, self.lr)
        self._adam.admit = self._admit
        config = _config(settings, self.zero, bool(shares), rank.device.type == "cuda")
        with _one_kind_of_optimizer(self.zero):
            self._deepspeed = deepspeed.initialize(
                model=self.module, optimizer=self._adam, config=config
            )[0]
        if isinstance(self._adam, Muon) and self.zero:
            know_ranges(self._adam, self._deepspeed.optimizer)
        self._deepspeed.enable_backward_allreduce = rank.world > 1 or self.zero > 0
        self.shards = layout(self.zero, self._deepspeed, self._adam, self.parameters, rank, shares)
        if masters:
            starts = {name: share.start for name, share in shares.items()}
            self.shards.load(
                lambda part, kind: _cut(masters[part.name], part, starts.get(part.name, 0)),
                ["fp32"],
            )
        self._scaler: Any = None
        if settings.dtype == "float16":
            self._scaler = self._deepspeed.optimizer.loss_scaler
            self._scaler.raise_error_at_min_scale = False  # the loop gives up, after it went back
        self.guard = SpikeGuard(settings.spike_sigma, settings.spike_window)
        self._loss: float | None = None
        self._made: EngineStep | None = None

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """The forward pass of the module."""
        return self._deepspeed(*inputs, **named)

    def train(self) -> None:
        """Dropout on."""
        self._deepspeed.train()

    def eval(self) -> None:
        """Dropout off."""
        self._deepspeed.eval()

    def rate(self, factor: float) -> float:
        """Set the learning rate to `factor` of its peak.

        Returns:
            The learning rate of what has no multiple of its own.
        """
        self.lr = self._peak_lr * factor
        set_rate(self._adam, self.lr)
        return self.lr

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """Add a loss's gradient. The gradient of a step is the SUM over all losses given here, on
        all ranks; the last call before `step` says so (on every rank alike)."""
        self._deepspeed.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks; the product makes it the sum.
        self._deepspeed.backward(loss * self.rank.world if self.rank.world > 1 else loss)
        self.rank.beat()

    def step(self, loss: float | None = None) -> EngineStep:
        """Clip and update; left out on all ranks if the gradient is not finite anywhere, or if it
        or the loss stands out.

        `loss` is that of the gradient, alike on all ranks; without it the norm alone is judged.
        """
        self._loss, self._made = loss, None
        scale = self.loss_scale
        if self.zero == 0:
            self._step_plain()
        else:
            self._deepspeed.step()
        # DeepSpeed itself leaves out what is not finite.
        made = self._made or self._outcome(math.inf, NOT_FINITE, True)
        if scale > 1 and made.skip_reason == NOT_FINITE:
            made = self._outcome(math.inf, f"the gradient overflows at loss scale {scale:g}")
        self.rank.beat()
        return made

    def _step_plain(self) -> None:
        if self._judge(self._norm()).applied:
            self._deepspeed.step()
        else:
            self._deepspeed.zero_grad()

    def _admit(self, gradients: list[Tensor]) -> bool:
        """Whether the optimizer may update: it asks with each of its groups, which are clipped."""
        made = self._made or self._judge(float(self._deepspeed.optimizer._global_grad_norm))
        if made.applied:
            clip(gradients, made.grad_norm, self.settings.grad_clip, self.settings.grad_clip_mode)
        return made.applied

    def _judge(self, norm: float) -> EngineStep:
        if math.isfinite(norm):
            self._made = self._outcome(norm, *self.guard.judge(norm, self._loss))
        else:
            self._made = self._outcome(norm, NOT_FINITE, True)
        return self._made

    def _outcome(self, norm: float, why: str = "", amiss: bool = False) -> EngineStep:
        return EngineStep(self.name, norm, self.lr, why, amiss)

    def _norm(self) -> float:
        """Of the whole gradient: experts that live elsewhere are asked for theirs. The same bits on
        all ranks, for they are to judge it alike."""
        trained = [p for p in self.parameters.values() if p.grad is not None]
        norm = total_norm(p for p in trained if not is_apart(p))
        if apart := [p for p in trained if is_apart(p)]:
            elsewhere = total_over_experts(total_norm(apart).square(), group_name(apart[0]))
            norm = (norm.square() + elsewhere).sqrt()
        return self.rank.sum(float(norm)) / self.rank.world

    @property
    def updates(self) -> float:
        """Updates that the optimizer has made: the `step` of its bias correction."""
        return self.shards.updates

    @property
    def loss_scale(self) -> float:
        """What float16 multiplies the loss by."""
        return float(self._scaler.cur_scale) if self._scaler else 1.0

    def state_dict(self) -> dict[str, Any]:
        """State beside weights and moments: what the next update is judged and scaled by."""
        scale = {name: getattr(self._scaler, name) for name in SCALE} if self._scaler else {}
        return {"guard": self.guard.state_dict(), "scale": scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what `state_dict` gave."""
        self.guard.load_state_dict(state["guard"])
        for name, value in state["scale"].items():
            setattr(self._scaler, name, value)

    def fragments(self) -> list[Fragment]:
        """The parts of weights and moments that this rank is to save."""
        return self.shards.owned

    @contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """The module with all its weights in place on every rank (ZeRO-3 gathers them, and so does
        expert parallelism)."""
        import deepspeed

        sharded = list(self.module.parameters()) if self.zero == 3 else []
        in_place = deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded))
        with in_place, gathered(self.module):
            yield self.module

    @contextmanager
    def masters(self) -> Iterator[nn.Module]:
        """The module with all its trained weights in float32, in the host's memory and on rank 0
        alone: as the optimizer has them, not as the forward pass rounds them. No device holds them
        whole. Frozen weights stay where and what they are.

        It is the last thing that is done with an engine: nothing is trained afterwards.
        """
        import deepspeed

        found = whole_weights(self.shards, self.shapes, self.rank)
        parts = {name: self.parameters[name].data for name in found}
        frozen = [p for p in self.module.parameters() if not p.requires_grad and self.zero == 3]
        loose = deepspeed.zero.GatheredParameters(frozen, enabled=bool(frozen))
        try:
            for name, value in found.items():
                self.parameters[name].data = value
            with loose, alone(self.module):
                yield self.module
        finally:
            for name, part in parts.items():
                self.parameters[name].data = part

    def close(self) -> None:
        """Give back hooks and buffers, so that another engine can take the module's place."""
        self._deepspeed.destroy()


def total_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The L2 norm of all gradients together."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm: Tensor = torch.nn.utils.get_total_norm(gradients, foreach=True)
    return norm


def _check(engine: str, module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if parameter.ndim == 0:
            raise Failure(
                f"{engine}: {name} has no dimension, and DeepSpeed cannot send it",
                where=type(module).__name__,
                remedy="give the parameter the shape (1,)",
            )


def _config(settings: TrainSection, zero: int, experts: bool, gpu: bool) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # we say where the boundary is
        "zero_allow_untested_optimizer": True,  # it knows torch's own by name only
        "gradient_clipping": 0.0,  # ours to do
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},
        "bf16": {"enabled": settings.dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "fp16": {"enabled": settings.dtype == "float16", "loss_scale": 0, "min_loss_scale": 1},
        "zero_force_ds_cpu_optimizer": False,  # torch's own is as fast, and needs no compiler
        "zero_optimization": {
            "stage": zero,
            "offload_optimizer": {"device": settings.offload_optimizer, "pin_memory": gpu},
            "overlap_comm": False,
            "contiguous_gradients": zero == 3 or experts,
            "reduce_bucket_size": BUCKET if gpu else CPU_BUCKET,
            "stage3_param_persistence_threshold": 10_000,
        },
    }


@contextmanager
def _one_kind_of_optimizer(zero: int) -> Iterator[None]:
    """For bfloat16 that is summed in float32 DeepSpeed has an optimizer of its own at stage 1,
    which keeps its masters elsewhere: the one of stages 1 and 2 sums in float32 just as well."""
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.config import ZERO_OPTIMIZATION

    usual = DeepSpeedEngine._do_optimizer_sanity_check
    if zero:
        DeepSpeedEngine._do_optimizer_sanity_check = lambda *_: ZERO_OPTIMIZATION
    try:
        yield
    finally:
        DeepSpeedEngine._do_optimizer_sanity_check = usual


def _masters(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights before DeepSpeed rounds the module: its own masters would be of rounded ones. It
    rounds copies, so these are none."""
    return {name: p.detach().float() for name, p in parameters.items()}


def _cut(held: Tensor, fragment: Fragment, start: int) -> Tensor:
    """A fragment of a parameter that this rank holds from `start` on."""
    low = fragment.start - start
    return held.view(-1)[low : low + fragment.count]
