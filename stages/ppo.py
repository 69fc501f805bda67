"""ppo: a policy learns from a reward model what people like, without forgetting what it knew.

    ppo:
      uses: ppo
      policy: ${sft}
      reward: ${reward}
      prompts: ${questions}
      tokens: ${tokens}                 # optional: PPO-ptx, the pretraining term; or several
      train: {steps: 40, global_batch_size: 64, lr: 1.0e-4}
      kl_coef: 0.05

The defaults are for small models. InstructGPT (Ouyang et al. 2022, appendix C.4) used 256,000
episodes in batches of 512 with 8 minibatches and one inner epoch, kl_coef 0.02,
temperature 1, clip_range 0.2, an average of the weights at 0.992, 8 pretraining examples an episode
with weight 27.8, and no discount. A policy with experts is not kept from favouring some of them: no
balance loss is added to the reward's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from pipeline import panels
from pipeline.context import Context
from pipeline.errors import Problem
from pipeline.stage import EXECUTION, Inputs, Params, UnsupportedKeys, Workers, stage
from stages.training.training_params import LRSchedule, MixtureSection, TrainSection
from stages.training.unsupported_parallelism import LAYOUTS

if TYPE_CHECKING:
    from stages.objectives.ppo_ptx import PPOSettings

SHOWN = 6


class PPOTrain(TrainSection):
    """One step is one iteration: `global_batch_size` episodes, then `ppo_epochs` x `num_minibatches` updates."""

    steps: Annotated[int, Field(ge=1)] = 40
    """Iterations."""
    global_batch_size: Annotated[int, Field(ge=1)] = 64
    """Episodes of one iteration."""
    lr: Annotated[float, Field(gt=0)] = 1e-4
    """Peak learning rate of the policy."""
    lr_schedule: LRSchedule = "constant"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: Annotated[float, Field(ge=0)] = 0.1
    """Steps of linear learning-rate warm-up; a value below 1 is a fraction of `steps`."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled decay of matrices."""
    spike_sigma: Annotated[float, Field(ge=0)] = 0
    """An update is skipped if its gradient norm lies more than this many standard deviations above
    the mean of the updates before; 0 skips only what is not finite. Off unless asked for: scores
    have heavy tails, and the updates of one iteration are not alike."""
    eval_samples: Annotated[int, Field(ge=0)] = 64
    """Held-out prompts on which reward and KL are measured; 0 takes all."""
    checkpoint_interval: Annotated[int, Field(ge=0), EXECUTION] = 1
    """Iterations between checkpoints: an iteration is long, and may be stopped in its middle."""

    def check(self, workers: Workers, key: str = "train") -> Iterator[Problem]:
        """As of every training; and all iterations are alike."""
        yield from super().check(workers, key)
        if self.batch_size_rampup:
            yield Problem(
                f"{key}.batch_size_rampup", "the iterations of PPO are alike", "leave it out"
            )


class PPOParams(Params):
    """What a pipeline file may say of the stage."""

    unsupported_keys: ClassVar[UnsupportedKeys] = LAYOUTS
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
    """Of prompts, draws and minibatches; the pipeline's, if left out."""
    train: PPOTrain = PPOTrain()
    ppo_epochs: Annotated[int, Field(ge=1)] = 2
    """Passes over the episodes of an iteration."""
    num_minibatches: Annotated[int, Field(ge=1)] = 4
    """Updates of one pass."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 48
    """Longest response."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the rollouts. Nothing is cut off the distribution: no top-k, no top-p."""
    clip_range: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """How far a token's ratio is followed."""
    value_clip_range: Annotated[float | None, Field(gt=0)] = 0.5
    """How far a value may move from the old one in an iteration."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Discount a token."""
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = 0.95
    """Of generalised advantage estimation."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.05
    """Score per nat of KL to the reference (beta), at the start if adaptive. Default: 0.05."""
    kl_target: Annotated[float | None, Field(gt=0)] = None
    """KL of a response, in nats, that an adaptive `kl_coef` is steered to. Default: `kl_coef` is fixed."""
    kl_horizon: Annotated[float, Field(gt=0)] = 10_000
    """Time constant of an adaptive `kl_coef`, episodes. Default: 10,000."""
    ptx_coef: Annotated[float, Field(ge=0)] = 0.5
    """Coefficient of the mean pretraining loss per token (gamma). Used only with `tokens`. Default: 0.5."""
    ptx_ratio: Annotated[float, Field(gt=0)] = 0.5
    """Pretraining windows per episode of a minibatch. Default: 0.5."""
    ptx_length: Annotated[int | None, Field(ge=2)] = None
    """Length of a pretraining window, tokens. Default: the context length of the policy."""
    mixture: MixtureSection = MixtureSection()
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 1.0
    """Taken from the score of a response that does not end."""
    critic_lr_ratio: Annotated[float, Field(gt=0)] = 2.0
    """The critic's learning rate over the policy's."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Average of the policy's weights that is exported; 0 exports the last weights."""
    ratio_tolerance: Annotated[float | None, Field(gt=0)] = None
    """How far from 1 the first ratio may be; left out: 0.001 in float32, 0.25 in bfloat16."""
    rollout_batch_size: Annotated[int, Field(ge=1), EXECUTION] = 64
    """Episodes that a rank decodes at once."""

    def check(self, upstream: Mapping[str, Params]) -> Iterator[Problem]:
        """Minibatches fall evenly on the episodes, and episodes on the workers."""
        yield from self.train.check(self.workers)
        yield from self.mixture.check(upstream)
        parts, world = self.num_minibatches, self.workers.num
        if self.train.global_batch_size % (parts * world):
            yield Problem(
                "num_minibatches",
                f"{self.train.global_batch_size} episodes do not make {parts} minibatches that fall "
                f"evenly on {world} workers",
                f"take a global_batch_size that {parts * world} divides",
            )
        context = getattr(getattr(upstream.get("policy"), "model", None), "context_length", None)
        if context and self.max_new_tokens >= context:
            yield Problem(
                "max_new_tokens",
                f"{self.max_new_tokens} leaves no room for a prompt in a context of {context}",
                f"lower it below {context}",
            )

    def settings(self) -> PPOSettings:
        """The same for the workshop."""
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
    version=4,
)
def ppo(params: PPOParams, inputs: Inputs, out: Path, ctx: Context) -> None:
    """Improve a policy by reinforcement learning on a reward model's scores (PPO-ptx)."""
    from stages.alignment.policy_comparison import before_and_after
    from stages.objectives.ppo_ptx import PPOObjective
    from stages.training.ranks.worker_group import WorkerGroup
    from stages.training.trainer import fit

    paths = {name: inputs.path(name) for name in ("policy", "reward", "prompts")}
    tokens = tuple(inputs.paths("tokens"))
    objective = PPOObjective(**paths, tokens=tokens, settings=params.settings())
    for panel in CURVES:
        ctx.panel(panel)
    with WorkerGroup(params.workers, ctx, params.train.watchdog) as group:
        final = group.run(fit, objective, params.train, seed=params.seed, out=out)[0]
        seen = group.run(
            before_and_after, paths["policy"], out, paths["reward"], paths["prompts"],
            max_new_tokens=params.max_new_tokens, temperature=params.temperature,
            seed=params.seed, count=params.train.eval_samples, shown=SHOWN,
        )[0]  # fmt: skip
    ctx.result(**seen.figures, tokens=final["tokens"])
    ctx.panel(panels.samples("Before and after", seen.samples))
    ctx.panel(panels.histogram("Reward of a response, before", *seen.histograms[0]))
    ctx.panel(panels.histogram("Reward of a response, after", *seen.histograms[1]))


CURVES = (
    panels.curve("Reward", ["reward", "eval_reward"]),
    panels.curve("KL to the reference", ["kl", "kl_k3", "eval_kl"], unit="nats a response"),
    panels.curve("KL coefficient", ["kl_coef"]),
    panels.curve("Length of a response", ["length"], unit="tokens"),
    panels.curve("Clipped share of ratios", ["clip_fraction"]),
    panels.curve("Value loss", ["value_loss"]),
    panels.curve("Loss on pretraining tokens", ["ptx_loss"], unit="nats a token"),
)
