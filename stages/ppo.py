"""Improve a policy by PPO on the score of a reward model, with a KL penalty and a pretraining loss.

    ppo:
      uses: ppo
      policy: ${sft}
      reward: ${reward}
      prompts: ${questions}
      tokens: ${tokens}                 # optional: the pretraining loss (PPO-ptx); or a list
      train: {steps: 40, global_batch_size: 64, lr: 1.0e-4}
      kl_coef: 0.05

The defaults are for small models. InstructGPT (Ouyang et al. 2022, appendix C.4) used 256,000
episodes in batches of 512 with num_minibatches 8, ppo_epochs 1, kl_coef 0.02, temperature 1,
clip_range 0.2, ema_decay 0.992, 8 pretraining examples per episode with ptx_coef 27.8, and no
discount. No load-balancing loss is added for a policy with experts.

Metrics: those of `evaluate` before and after (`reward_before`, `reward_after`, `reward_gain`, `kl`,
...), and `tokens`. Prompts that leave no room for a response in the context are left out and
counted: `left_out_too_long`, and `eval_left_out_too_long` of those held out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from pipeline import panels
from pipeline.context import Context
from pipeline.errors import Problem
from pipeline.stage import EXECUTION, Inputs, Params, UnsupportedKeys, Workers, stage
from stages.chat.template_checks import (
    check_context,
    check_family,
    check_template,
    check_tokenizers,
)
from stages.curation.left_out import BOTH_SPLITS_METRICS
from stages.training.planning.foreign_keys import FOREIGN_KEYS
from stages.training.training_params import LRSchedule, MixtureSection, TrainSection

if TYPE_CHECKING:
    from stages.alignment.prompts import EncodedPrompts, PromptEncoder
    from stages.objectives.ppo_ptx import PPOSettings


class PPOTrain(TrainSection):
    """Training parameters of PPO. One step is one iteration: `global_batch_size` episodes, then
    `ppo_epochs` x `num_minibatches` updates."""

    steps: Annotated[int, Field(ge=1)] = 40
    """Iterations. Default: 40."""
    global_batch_size: Annotated[int, Field(ge=1)] = 64
    """Episodes per iteration. Default: 64."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate of the policy. Default: 1e-4."""
    lr_schedule: LRSchedule = "constant"
    """Shape of the learning rate after the warm-up. Default: constant."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0.1
    """Steps of linear learning-rate warm-up; a value below 1 is a fraction of `steps`. Default:
    0.1."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay of matrices. Default: 0."""
    spike_sigma: Annotated[float, Field(ge=0)] = 0
    """Standard deviations above the mean of the last updates from which on a gradient norm is a
    spike, whose update is skipped; 0 skips only non-finite gradients. Default: 0, because scores
    have heavy tails, and the updates of one iteration differ."""
    eval_samples: Annotated[int, Field(ge=0)] = 64
    """Held-out prompts for reward and KL; 0 takes all. Default: 64."""
    checkpoint_interval: Annotated[int, Field(ge=0), EXECUTION] = 1
    """Iterations between checkpoints. Default: 1, because an iteration is long and cannot be
    resumed halfway."""

    def check(self, workers: Workers, key: str = "train") -> Iterator[Problem]:
        """Yield the conflicts that every training may have, and a batch-size ramp-up."""
        yield from super().check(workers, key)
        if self.batch_size_rampup:
            yield Problem(
                f"{key}.batch_size_rampup", "PPO has a constant batch size", "leave it out"
            )


class PPOParams(Params):
    """Parameters of PPO."""

    unsupported_keys: ClassVar[UnsupportedKeys] = FOREIGN_KEYS
    renamed: ClassVar[Mapping[str, str]] = {
        "epochs": "ppo_epochs",
        "minibatches": "num_minibatches",
        "clip": "clip_range",
        "value_clip": "value_clip_range",
        "lam": "gae_lambda",
        "kl": "kl_coef",
        "ptx": "ptx_coef",
        "critic_lr": "critic_lr_ratio",
        "ema": "ema_decay",
        "rollout_batch": "rollout_batch_size",
    }

    seed: int = 0
    """Seed of prompts, sampling and minibatches. Default: the seed of the pipeline."""
    train: PPOTrain = PPOTrain()
    ppo_epochs: Annotated[int, Field(ge=1)] = 2
    """Passes over the episodes of an iteration. Default: 2."""
    num_minibatches: Annotated[int, Field(ge=1)] = 4
    """Updates per pass. Default: 4."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 48
    """Longest response, tokens. Default: 48."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Sampling temperature of rollouts, without top-k or top-p. Default: 1."""
    clip_range: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Largest deviation from 1 of a ratio that gets a gradient (epsilon). Default: 0.2."""
    value_clip_range: Annotated[float | None, Field(gt=0)] = 0.5
    """Largest change of a value in an iteration; none disables value clipping. Default: 0.5."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount factor per token. Default: 1."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Lambda of generalised advantage estimation. Default: 0.95."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.05
    """Score per nat of KL to the reference (beta), at the start if adaptive. Default: 0.05."""
    kl_target: Annotated[float | None, Field(gt=0)] = None
    """KL of a response, in nats, that an adaptive `kl_coef` is steered to.
    Default: `kl_coef` is fixed."""
    kl_horizon: Annotated[float, Field(gt=0)] = 10_000
    """Time constant of an adaptive `kl_coef`, episodes. Default: 10,000."""
    ptx_coef: Annotated[float, Field(ge=0)] = 0.5
    """Coefficient of the mean pretraining loss per token (gamma). Used only with `tokens`.
    Default: 0.5."""
    ptx_ratio: Annotated[float, Field(gt=0)] = 0.5
    """Pretraining windows per episode of a minibatch. Default: 0.5."""
    ptx_length: Annotated[int | None, Field(ge=2)] = None
    """Length of a pretraining window, tokens. Default: the context length of the policy."""
    mixture: MixtureSection = MixtureSection()
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 1.0
    """Penalty on the score of a response that does not end. Default: 1."""
    critic_lr_ratio: Annotated[float, Field(gt=0)] = 2.0
    """Learning rate of the critic over that of the policy. Default: 2."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the moving average of weights that is exported; 0 exports the last weights. Default:
    0."""
    ratio_tolerance: Annotated[float | None, Field(gt=0)] = None
    """Largest deviation of the first ratio from 1. Default: 0.001 in float32, else 0.25."""
    rollout_batch_size: Annotated[int, Field(ge=1), EXECUTION] = 64
    """Episodes that a rank decodes at once. Default: 64."""

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Yield conflicts of episodes, minibatches and workers, of lengths, and of the models."""
        yield from self.train.check(self.workers)
        yield from self.mixture.check(upstream)
        parts, world = self.num_minibatches, self.workers.num
        if self.train.global_batch_size % (parts * world):
            yield Problem(
                "num_minibatches",
                f"{self.train.global_batch_size} episodes do not make {parts} minibatches "
                f"that fall evenly on {world} workers",
                f"take a global_batch_size that {parts * world} divides",
            )
        models = ("policy", "reward")
        yield from check_family(upstream, "policy", "kv_cache")
        yield from check_template(upstream, "policy")
        yield from check_tokenizers(upstream, models)
        yield from check_context(
            upstream, models, "max_new_tokens", self.max_new_tokens, room="a prompt"
        )

    def settings(self) -> PPOSettings:
        """Return the settings of the objective."""
        from stages.alignment.ppo_update import UpdateSettings
        from stages.objectives.ppo_ptx import PPOSettings

        tolerance = self.ratio_tolerance or (1e-3 if self.train.dtype == "float32" else 0.25)
        return PPOSettings(
            update=UpdateSettings(
                ppo_epochs=self.ppo_epochs,
                num_minibatches=self.num_minibatches,
                clip_range=self.clip_range,
                value_clip_range=self.value_clip_range,
                temperature=self.temperature,
                micro_batch_size=self.train.micro_batch_size,
                ptx_coef=self.ptx_coef,
                ratio_tolerance=tolerance,
            ),
            max_new_tokens=self.max_new_tokens,
            kl_coef=self.kl_coef,
            kl_target=self.kl_target,
            kl_horizon=self.kl_horizon,
            gamma=self.gamma,
            gae_lambda=self.gae_lambda,
            missing_eos_penalty=self.missing_eos_penalty,
            critic_lr_ratio=self.critic_lr_ratio,
            ema_decay=self.ema_decay,
            ptx_ratio=self.ptx_ratio,
            ptx_length=self.ptx_length,
            mixture_weights=self.mixture.weights,
            mixture_temperature=self.mixture.temperature,
            rollout_batch_size=self.rollout_batch_size,
        )


@stage(
    "ppo",
    inputs={
        "policy": "Model",
        "reward": "RewardModel",
        "prompts": "Conversations",
        "tokens": "Tokens*?",
    },
    output="Model",
    version=7,
    metrics={
        "reward_before": "mean reward of held-out prompts before the training",
        "reward_after": "mean reward of held-out prompts after it",
        "reward_gain": "mean difference of the two",
        "reward_gain_stderr": "standard error of the difference",
        "kl": "KL divergence from the policy before, nats per response",
        "kl_k3": "the same by an estimate that is never negative",
        "length_before": "mean length of a response before, tokens",
        "length_after": "mean length of a response after, tokens",
        "finished_before": "share of responses with an end token before",
        "finished_after": "share of responses with an end token after",
        "tokens": "tokens of the training",
        **BOTH_SPLITS_METRICS,
    },
)
def ppo(params: PPOParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Improve a policy by reinforcement learning on a reward model's scores (PPO-ptx)."""
    from stages.alignment.policy_comparison import before_and_after
    from stages.objectives.ppo_ptx import PPOObjective
    from stages.training.run_training import run_training

    policy, reward, prompts = (inputs.path(name) for name in ("policy", "reward", "prompts"))
    tokens = tuple(inputs.paths("tokens"))
    encoder = prompt_encoder(policy, reward, params.max_new_tokens)
    train, held_out = encoded_prompts(encoder, prompts, params, ctx)
    objective = PPOObjective(policy, reward, train, held_out, tokens, params.settings())
    for panel in CURVES:
        ctx.panel(panel)
    compare = partial(
        before_and_after,
        before=policy,
        after=out,
        reward=reward,
        prompts=prompts,
        max_new_tokens=params.max_new_tokens,
        temperature=params.temperature,
        seed=params.seed,
        count=params.train.eval_samples,
    )
    final, comparison = run_training(objective, params, ctx, out, after_export=compare)
    ctx.result(**comparison.metrics, tokens=final["tokens"])
    ctx.panel(panels.samples("Before and after", comparison.samples))
    ctx.panel(panels.histogram("Reward per response, before", *comparison.histograms[0]))
    ctx.panel(panels.histogram("Reward per response, after", *comparison.histograms[1]))


def prompt_encoder(policy: Path, reward: Path, max_new_tokens: int) -> PromptEncoder:
    """Return the encoder of prompts that leave room for a response in both models."""
    from stages.alignment.prompts import PromptEncoder
    from stages.chat.chat_format import ChatFormat
    from stages.models.model_io import read_model_config

    context = min(read_model_config(folder).context_length for folder in (policy, reward))
    closing = len(ChatFormat.open(policy).closing_ids)
    return PromptEncoder(policy, context - max_new_tokens - closing)


def encoded_prompts(
    encoder: PromptEncoder, prompts: Path, params: PPOParams, ctx: Context
) -> tuple[EncodedPrompts, EncodedPrompts]:
    """Return the encoded prompts to train on and those held out, and report those left out.

    Raises:
        InputError: none is left to train on.
    """
    from stages.alignment.prompts import EncodedPrompts, require_prompts
    from stages.chat.encoded_table import encode_split
    from stages.curation.left_out import report_both_splits

    train, held_out = (
        EncodedPrompts(encode_split(encoder, [prompts], split, ctx, params.workers))
        for split in ("train", "eval")
    )
    counts = train.table.counts, held_out.table.counts
    reasons = ("too_long", "no_prompt", "refused_by_template")
    report_both_splits(ctx, "prompts", counts, reasons, {"too_long": "max_new_tokens"})
    require_prompts(len(train), counts[0], encoder, prompts)
    return train, held_out


CURVES = (
    panels.curve("Reward", ["reward", "eval_reward"]),
    panels.curve("KL to the reference", ["kl", "kl_k3", "eval_kl"], unit="nats per response"),
    panels.curve("KL coefficient", ["kl_coef"]),
    panels.curve("Response length", ["length"], unit="tokens"),
    panels.curve("Clip fraction", ["clip_fraction"]),
    panels.curve("Value loss", ["value_loss"]),
    panels.curve("Loss on pretraining tokens", ["ptx_loss"], unit="nats per token"),
)
