"""PPO on the small world as ranks run it: single updates that are looked into, and faults."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from stages.alignment.experience import compute_targets
from stages.alignment.ppo_update import policy_loss, update_policy
from stages.alignment.prompts import read_prompts
from stages.generation.likelihood import next_log_probs
from stages.objectives.ppo_ptx import PPOObjective, PretrainingBatches
from stages.ppo import PPOParams, prompt_encoder
from stages.training.engine import Engine
from stages.training.ranks.rank import Rank

Array = npt.NDArray[np.float32]
GAMMA = 0.7


def made(params: PPOParams, world: Path, kind: type[PPOObjective] = PPOObjective) -> PPOObjective:
    policy, scorer = world / "policy", world / "scorer"
    limit = prompt_encoder(policy, scorer, params.max_new_tokens).limit
    prompts = [
        read_prompts(world / "conversations", split, policy, limit) for split in ("train", "eval")
    ]
    return kind(policy, scorer, *prompts, (world / "tokens",), params.settings())


def one_update(**train: object) -> PPOParams:
    """One minibatch of 16 episodes in micro-batches, with pretraining windows, nothing clipped."""
    known = {
        "global_batch_size": 16,
        "micro_batch_size": 2,
        "grad_clip": 0.0,
        "lr": 1e-4,
        "zero_stage": 1,
    }
    ptx = {"ptx_coef": GAMMA, "ptx_ratio": 0.5, "ptx_length": 12}
    return PPOParams.model_validate(
        {
            "train": {**known, **train},
            "ppo_epochs": 1,
            "num_minibatches": 1,
            "max_new_tokens": 8,
            **ptx,
        }
    )


def gathered(engine: Engine, kind: str) -> dict[str, Tensor]:
    """Weights or moments of all ranks' fragments, by parameter."""
    found = {}
    for name, shape in engine.shapes.items():
        whole = torch.zeros(shape).flatten()
        for part in engine.fragments():
            if part.name == name:
                whole[part.start : part.start + part.count] = part.views[kind]
        found[name] = engine.rank.all_reduce_sum(whole).float().view(shape)
    return found


def gradient_of_engines(rank: Rank, world: Path) -> dict[str, Array]:
    """What DeepSpeed's engines accumulate over PPO and pretraining: Adam's first moment is a tenth
    of the first gradient."""
    params = one_update()
    objective = made(params, world)
    modules = objective.setup(rank, params.train, 5)
    engines = {name: Engine(name, made, params.train, rank) for name, made in modules.items()}
    batch = objective._generate_rollouts(engines, objective.prompts, range(16), 9, rank.heartbeat)
    update_policy(
        engines["policy"], engines["value"], batch, compute_targets(batch, beta=0.1),
        objective.settings.update, np.random.default_rng(0),
        rank=rank, pretraining=PretrainingBatches(objective, 0),
    )  # fmt: skip
    moments = gathered(engines["policy"], "exp_avg")
    for engine in engines.values():
        engine.close()
    return {name: m.numpy() / (1 - params.train.beta1) for name, m in moments.items()}


class Plain:
    """A module where an engine is expected, to be looked at only."""

    zero_stage = 0

    def __init__(self, module: Any) -> None:
        self.module = module
        self.eval = self.train = module.eval

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self.module(*inputs, **named)


def gradient_by_hand(world: Path) -> dict[str, Array]:
    """The same in one expression, in one process, without engines, ranks or micro-batches."""
    params = one_update()
    objective = made(params, world)
    modules = objective.setup(Rank(), params.train, 5)
    engines: Any = {name: Plain(made.module) for name, made in modules.items()}
    batch = objective._generate_rollouts(engines, objective.prompts, range(16), 9, lambda: None)
    policy: Any = modules["policy"].module
    log_probs = next_log_probs(policy, batch.tokens, batch.position_mask)
    advantages = compute_targets(batch, beta=0.1).advantages[batch.mask]
    surrogate = policy_loss(log_probs, batch.log_probs[batch.mask], advantages).mean()
    assert objective.pretraining_corpus is not None
    pages = objective.pretraining_corpus.train
    windows = torch.from_numpy(np.stack([pages[i] for i in range(8)]))
    text = F.cross_entropy(policy(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
    (surrogate + GAMMA * text).backward()
    return {name: p.grad.numpy() for name, p in policy.named_parameters()}


def averages(rank: Rank, world: Path, zero: int) -> tuple[float, float]:
    """Of three small updates in bfloat16: the largest difference between the average and that of
    the float32 weights, and how far the average moved."""
    params = one_update(dtype="bfloat16", zero_stage=zero, lr=1e-6)
    params = params.model_copy(update={"ema_decay": 0.5})
    objective = made(params, world)
    engine = Engine("policy", objective.setup(rank, params.train, 5)["policy"], params.train, rank)
    start = {name: tensor.clone() for name, tensor in objective._ema.items()}
    expected = {name: tensor.clone() for name, tensor in start.items()}
    for _ in range(3):
        engine.backward(engine(torch.arange(20, 30)[None]).float().logsumexp(-1).sum())
        engine.step()
        objective._update_ema(engine)
        for name, weight in gathered(engine, "fp32").items():
            expected[name].lerp_(weight, 0.5)
    engine.close()
    return apart(objective._ema, expected), apart(objective._ema, start)


def apart(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in other)


@dataclass(frozen=True)
class Trap:
    """A place of one iteration at which a process is killed, once."""

    place: str
    """`rollouts`: they are made, nothing is learnt. `epoch`: of a minibatch the policy is updated
    and the critic is not. `pretraining`: PPO's gradient is there, that of the pages is not."""
    iteration: int
    minibatch: int = 0
    rank: int = 0
    owner: bool = False
    """Whether the ranks' owner is killed, rather than the rank."""


class Trapped(PPOObjective):
    """PPO that is killed at places."""

    traps: Sequence[Trap] = ()
    marks: Path = Path()
    """A folder of files that say what has happened already."""

    def step(self, engines: Any, step: int) -> Any:
        self.iteration, self.minibatch = step, 0
        return super().step({**engines, "value": Late(engines["value"], self)}, step)

    def reach(self, place: str) -> None:
        here = (place, self.iteration, self.minibatch, self.rank.index)
        for trap in self.traps:
            mark = self.marks / f"{trap.place}-{trap.iteration}"
            there = (trap.place, trap.iteration, trap.minibatch, trap.rank)
            if here == there and not mark.exists():
                mark.touch()
                os.kill(os.getppid() if trap.owner else os.getpid(), signal.SIGKILL)
                time.sleep(60)  # a rank outlives its owner for a moment

    def _generate_rollouts(self, *arguments: Any) -> Any:
        batch = super()._generate_rollouts(*arguments)
        self.reach("rollouts")
        return batch

    def _pretraining_batches(self, step: int) -> Any:
        return TrappedPages(self, step)


class TrappedPages(PretrainingBatches):
    """Asked for after PPO's gradient and before their own."""

    def __init__(self, objective: Trapped, step: int) -> None:
        super().__init__(objective, step)
        self.objective = objective

    def pieces(self, number: int) -> Any:
        self.objective.minibatch = number
        self.objective.reach("pretraining")
        return super().pieces(number)


class Late:
    """The critic's engine, whose update comes after the policy's."""

    def __init__(self, engine: Any, objective: Trapped) -> None:
        self._engine, self._objective = engine, objective

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        return self._engine(*inputs, **named)

    def step(self) -> Any:
        self._objective.reach("epoch")
        return self._engine.step()


KILLED = PPOParams.model_validate(
    {
        "seed": 1, "max_new_tokens": 8, "ema_decay": 0.3,
        "train": {"steps": 5, "global_batch_size": 16, "lr": 1e-3},
        "kl_coef": 0.05, "kl_target": 2.0, "kl_horizon": 500,
    }
)  # fmt: skip
TRAPS = (
    Trap("rollouts", iteration=1, rank=1),
    Trap("epoch", iteration=2, minibatch=2, owner=True),
    Trap("pretraining", iteration=3, minibatch=5),
)


def killed(world: Path, marks: Path) -> Trapped:
    objective = made(KILLED, world, Trapped)
    assert isinstance(objective, Trapped)
    objective.traps, objective.marks = TRAPS, marks
    return objective
