"""A module under a DeepSpeed engine: backward pass, clipped update, and its weights by name.

ZeRO 0 to 3 give the same update. Two things are done here rather than by DeepSpeed: at stage 0 the
norm, which is that of the averaged gradient (DeepSpeed computes none in float32); and at every
stage what follows from the norm. All ranks decide by the same number: an update whose gradient is
not finite is skipped, and so is a spike (`stages.training.spike_guard`); the others are clipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pipeline.errors import Failure
from stages.training.deepspeed_compat import (
    global_grad_norm,
    loss_scaler,
    one_zero_optimizer,
    set_gradient_allreduce,
)
from stages.training.expert_parallel import (
    all_reduce_over_experts,
    expert_group_name,
    gathered_experts,
    is_expert_sharded,
    shard_experts,
    without_exchange,
)
from stages.training.optim.hooked_optimizer import clip_gradients
from stages.training.optim.param_groups import build_optimizer
from stages.training.planning.memory_model import BUCKET, CPU_BUCKET
from stages.training.spike_guard import SpikeGuard
from stages.training.step_result import EngineStep
from stages.training.zero_state import Fragment, build_partitioned_state, gather_fp32_weights

if TYPE_CHECKING:
    from stages.training.ranks.rank import Rank
    from stages.training.trainable import Trainable
    from stages.training.training_params import TrainSection


NOT_FINITE = "the gradient is not finite"
LOSS_SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")
"""State of DeepSpeed's dynamic loss scale (Micikevicius et al. 2018, section 3.2)."""


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
        self.zero_stage = settings.effective_zero_stage(rank.world)
        self.module: nn.Module = trainable.module
        _refuse_scalar_parameters(name, self.module)
        expert_shards = shard_experts(self.module, settings.expert_parallel_size, rank)
        self.parameters = {n: p for n, p in self.module.named_parameters() if p.requires_grad}
        shapes = {n: tuple(p.shape) for n, p in self.parameters.items()}
        self.shapes = shapes | {n: shard.shape for n, shard in expert_shards.items()}
        """Shapes of the whole parameters; this rank may hold only a part of them."""
        half = settings.dtype != "float32"
        # DeepSpeed's own master weights would be float32 copies of rounded weights.
        unrounded = {n: p.detach().float() for n, p in self.parameters.items()} if half else {}
        self._peak_lr = self.lr = settings.lr * trainable.lr_ratio
        self._optimizer = build_optimizer(trainable, self.parameters, settings, self.lr)
        self._optimizer.pre_update_hook = self._pre_update
        gpu = rank.device.type == "cuda"
        config = _deepspeed_config(settings, self.zero_stage, bool(expert_shards), gpu)
        with one_zero_optimizer(self.zero_stage):
            self._deepspeed = deepspeed.initialize(
                model=self.module, optimizer=self._optimizer, config=config
            )[0]
        if self.zero_stage:
            self._optimizer.attach_partitions(self._deepspeed.optimizer)
        set_gradient_allreduce(self._deepspeed, rank.world > 1 or self.zero_stage > 0)
        self.state = build_partitioned_state(
            self.zero_stage, self._deepspeed, self._optimizer, self.parameters, rank, expert_shards
        )
        if half:

            def unrounded_part(part: Fragment, kind: str) -> Tensor:
                shard = expert_shards.get(part.name)
                start = part.start - (shard.start if shard else 0)
                return unrounded[part.name].view(-1)[start : start + part.count]

            self.state.load(unrounded_part, ["fp32"])
        self._scaler = loss_scaler(self._deepspeed) if settings.dtype == "float16" else None
        self.guard = SpikeGuard(settings.spike_sigma, settings.spike_window)
        self._loss: float | None = None
        self._outcome: EngineStep | None = None

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """Return the module's forward pass."""
        return self._deepspeed(*inputs, **named)

    def train(self) -> None:
        """Turn dropout on."""
        self._deepspeed.train()

    def eval(self) -> None:
        """Turn dropout off."""
        self._deepspeed.eval()

    def set_lr_scale(self, scale: float) -> float:
        """Set the learning rate to `scale` times its peak.

        Returns:
            The learning rate of parameters without a multiplier of their own.
        """
        self.lr = self._peak_lr * scale
        self._optimizer.set_lr(self.lr)
        return self.lr

    def backward(self, loss: Tensor, *, last: bool = True) -> None:
        """Add the gradient of a loss.

        The gradient of a step is the SUM over all losses given here, on all ranks. `last` marks the
        last call before `step`, on every rank alike.
        """
        self._deepspeed.set_gradient_accumulation_boundary(last)
        # DeepSpeed averages over ranks; the product makes it the sum.
        self._deepspeed.backward(loss * self.rank.world if self.rank.world > 1 else loss)
        self.rank.heartbeat()

    def step(self, loss: float | None = None) -> EngineStep:
        """Clip the gradient and update the weights.

        All ranks skip the update if the gradient is not finite on any of them, or if norm or loss
        is a spike.

        Args:
            loss: the loss of the gradient, identical on all ranks; without it the norm alone
                decides.
        """
        self._loss, self._outcome = loss, None
        scale = self.loss_scale
        if self.zero_stage or self._decide(self._grad_norm()).applied:
            self._deepspeed.step()
        else:
            self._deepspeed.zero_grad()
        # Without an outcome DeepSpeed itself has skipped a gradient that is not finite.
        outcome = self._outcome or self._step_outcome(math.inf, NOT_FINITE, True)
        if scale > 1 and outcome.skip_reason == NOT_FINITE:
            outcome = self._step_outcome(
                math.inf, f"the gradient overflows at loss scale {scale:g}"
            )
        self.rank.heartbeat()
        return outcome

    def _pre_update(self, gradients: list[Tensor]) -> bool:
        """Clip gradients, and return whether to update: the optimizer's `pre_update_hook`, called
        once per group of a step."""
        outcome = self._outcome
        if outcome is None:
            outcome = self._decide(global_grad_norm(self._deepspeed))
        if outcome.applied:
            mode, limit = self.settings.grad_clip_mode, self.settings.grad_clip
            clip_gradients(gradients, outcome.grad_norm, limit, mode)
        return outcome.applied

    def _decide(self, norm: float) -> EngineStep:
        """Decide on the update of a gradient of that norm."""
        if math.isfinite(norm):
            self._outcome = self._step_outcome(norm, *self.guard.check(norm, self._loss))
        else:
            self._outcome = self._step_outcome(norm, NOT_FINITE, True)
        return self._outcome

    def _step_outcome(
        self, norm: float, skip_reason: str = "", is_anomaly: bool = False
    ) -> EngineStep:
        return EngineStep(self.name, norm, self.lr, skip_reason, is_anomaly)

    def _grad_norm(self) -> float:
        """Return the norm of the whole gradient, with the experts of all ranks; bit-identical on
        all ranks, so that all take the same decision."""
        trained = [p for p in self.parameters.values() if p.grad is not None]
        norm = total_norm(p for p in trained if not is_expert_sharded(p))
        if experts := [p for p in trained if is_expert_sharded(p)]:
            square = total_norm(experts).square()
            square = all_reduce_over_experts(square, expert_group_name(experts[0]))
            norm = (norm.square() + square).sqrt()
        return self.rank.reduce_scalar(float(norm)) / self.rank.world

    @property
    def updates(self) -> float:
        """Return the number of updates made, the `step` of Adam's bias correction."""
        return self.state.updates

    @property
    def loss_scale(self) -> float:
        """Return the factor by which the loss is multiplied in float16; 1 in other types."""
        return float(self._scaler.cur_scale) if self._scaler else 1.0

    def state_dict(self) -> dict[str, Any]:
        """Return the state besides weights and optimizer states: spike windows and loss scale."""
        scale = (
            {name: getattr(self._scaler, name) for name in LOSS_SCALER_STATE}
            if self._scaler
            else {}
        )
        return {"guard": self.guard.state_dict(), "scale": scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.guard.load_state_dict(state["guard"])
        for name, value in state["scale"].items():
            setattr(self._scaler, name, value)

    def fragments(self) -> list[Fragment]:
        """Return the parts of weights and optimizer states that this rank is to save."""
        return self.state.saved

    @contextmanager
    def gathered_weights(self) -> Iterator[nn.Module]:
        """Yield the module with all its weights in place on every rank, gathered where ZeRO 3 or
        expert parallelism shards them."""
        import deepspeed

        sharded = list(self.module.parameters()) if self.zero_stage == 3 else []
        in_place = deepspeed.zero.GatheredParameters(sharded, enabled=bool(sharded))
        with in_place, gathered_experts(self.module):
            yield self.module

    @contextmanager
    def fp32_master_weights(self) -> Iterator[nn.Module]:
        """Yield the module with the optimizer's float32 weights, in host memory and on rank 0 only.

        No device holds them whole. Frozen weights keep their device and data type. This is the last
        use of an engine: nothing can be trained afterwards.
        """
        import deepspeed

        weights = gather_fp32_weights(self.state, self.shapes, self.rank)
        parts = {name: self.parameters[name].data for name in weights}
        frozen = [p for p in self.module.parameters() if not p.requires_grad]
        frozen = frozen if self.zero_stage == 3 else []
        gathered = deepspeed.zero.GatheredParameters(frozen, enabled=bool(frozen))
        try:
            for name, value in weights.items():
                self.parameters[name].data = value
            with gathered, without_exchange(self.module):
                yield self.module
        finally:
            for name, part in parts.items():
                self.parameters[name].data = part

    def close(self) -> None:
        """Release hooks and buffers, so that another engine can take the module over."""
        self._deepspeed.destroy()


def total_norm(parameters: Iterable[Tensor]) -> Tensor:
    """Return the L2 norm of all gradients together."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm: Tensor = torch.nn.utils.get_total_norm(gradients, foreach=True)
    return norm


def _refuse_scalar_parameters(engine: str, module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if parameter.ndim == 0:
            raise Failure(
                f"{engine}: {name} has no dimension, and DeepSpeed cannot send it",
                where=type(module).__name__,
                remedy="give the parameter the shape (1,)",
            )


def _deepspeed_config(
    settings: TrainSection, zero_stage: int, expert_parallel: bool, gpu: bool
) -> dict[str, Any]:
    """Return DeepSpeed's config of a training."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,  # `backward` sets the boundary itself
        "zero_allow_untested_optimizer": True,  # it tests torch's own classes only
        "gradient_clipping": 0.0,  # `_pre_update` clips
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        "timers": {"throughput": {"enabled": False}},
        "bf16": {"enabled": settings.dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "fp16": {"enabled": settings.dtype == "float16", "loss_scale": 0, "min_loss_scale": 1},
        "zero_force_ds_cpu_optimizer": False,  # torch's is as fast, and needs no C++ compiler
        "zero_optimization": {
            "stage": zero_stage,
            "offload_optimizer": {"device": settings.offload_optimizer, "pin_memory": gpu},
            "overlap_comm": False,
            "contiguous_gradients": zero_stage == 3 or expert_parallel,
            "reduce_bucket_size": BUCKET if gpu else CPU_BUCKET,
            "stage3_param_persistence_threshold": 10_000,
        },
    }
