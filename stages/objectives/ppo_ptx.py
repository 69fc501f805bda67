"""PPO-ptx as an objective of the training loop: two engines, policy and critic.

One step of the loop is one iteration: roll out, measure, give every rank the whole batch, update.
All of an iteration is a function of the weights, the KL coefficient and the step number: prompts,
draws, minibatches and pretraining windows are hashed from (seed, step), so that a checkpoint of
weights, moments and coefficient is the whole state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import InputError, Interrupted
from stages.alignment.advantages import kl_estimates
from stages.alignment.experience import Experience, targets
from stages.alignment.kl_controller import AdaptiveKL, FixedKL
from stages.alignment.ppo_update import Share, UpdateSettings, update
from stages.alignment.rollout import Cast, RolloutSettings, collect, score_with, widened
from stages.data.conversation_dataset import Conversations
from stages.data.token_dataset import TokenDataset
from stages.data.tokenizers.chat_template import encode_prompt
from stages.data.tokenizers.sentencepiece_tokenizer import EOS, PAD, Tokenizer
from stages.distributed.cancellation_point import CancellationPoint
from stages.generation.likelihood import PositionModel
from stages.generation.sampling import SamplingParams
from stages.models.hf_export import load_language_model, load_reward_model, save_language_model
from stages.models.language_model import LanguageModel
from stages.models.registry import language_model
from stages.training.data_order import Shuffled, mix
from stages.training.objective import Metrics, Samples, State, Trainable
from stages.training.step_result import StepResult

if TYPE_CHECKING:
    from stages.training.engine import Engine
    from stages.training.ranks.rank import Rank
    from stages.training.training_params import TrainSection
    from stages.training.zero_state import Fragment


@dataclass(frozen=True)
class PPOSettings:
    """How PPO is done; see `stages.ppo.PPOParams` for each."""

    update: UpdateSettings
    max_new_tokens: int
    kl_coef: float
    kl_target: float | None
    kl_horizon: float
    gamma: float
    gae_lambda: float
    missing_eos_penalty: float
    critic_lr_ratio: float
    ema_decay: float
    ptx_ratio: float
    ptx_length: int | None
    mixture_weights: tuple[float, ...]
    mixture_temperature: float
    rollout_batch_size: int

    @property
    def decoding(self) -> SamplingParams:
        """Rollouts draw from the whole softmax: nothing else has the policy's probabilities."""
        return SamplingParams(self.max_new_tokens, self.update.temperature)

    def control(self) -> FixedKL:
        """The controller of the KL coefficient."""
        if self.kl_target is None:
            return FixedKL(self.kl_coef)
        return AdaptiveKL(self.kl_coef, self.kl_target, self.kl_horizon)


class PPOObjective:
    """The policy is fine-tuned to please a reward model without leaving a reference."""

    flops_per_token = 0.0
    setup_metrics: Mapping[str, float] = {}
    grace = 15.0
    """Seconds that an iteration gets to come to its end when the run is to stop."""

    def __init__(
        self,
        policy: Path,
        reward: Path,
        prompts: Path,
        tokens: tuple[Path, ...],
        settings: PPOSettings,
    ) -> None:
        self.policy_path, self.reward_path = policy, reward
        self.prompts_path, self.tokens_paths = prompts, tokens
        self.settings = settings

    def setup(self, rank: Rank, settings: TrainSection, seed: int) -> dict[str, Trainable]:
        """Load the four models and the prompts: the policy and its frozen copy, the reward model
        and the critic that starts as it.

        Raises:
            InputError: no prompt leaves room for a response, or the models, or the pretraining
                tokens, are of different tokenizers.
        """
        self.rank, self.train, self.seed = rank, settings, seed
        tokenizer = Tokenizer(self.policy_path)
        tokenizer.require_equal(Tokenizer(self.reward_path))
        policy, critic = load_language_model(self.policy_path), load_reward_model(self.reward_path)
        if policy.config.vocab_size != critic.body.config.vocab_size:
            raise InputError(
                f"the policy has {policy.config.vocab_size} ids, the reward model "
                f"{critic.body.config.vocab_size}",
                remedy="train the reward model on the policy's own starting point",
            )
        context = min(policy.config.context_length, critic.body.config.context_length)
        dtype = getattr(torch, settings.dtype)
        self.reference = (
            load_language_model(self.policy_path).to(rank.device, dtype).requires_grad_(False)
        )
        self.reward = (
            load_reward_model(self.reward_path).to(rank.device, dtype).requires_grad_(False)
        )
        self.width = context
        room = context - self.settings.max_new_tokens
        self.prompts = Shuffled(read_prompts(self.prompts_path, "train", tokenizer, room), seed)
        self.held_out = read_prompts(self.prompts_path, "eval", tokenizer, room)
        self.control = self.settings.control()
        self.pages = self._pages(policy.config.context_length, tokenizer)
        self._ema = {}
        if self.settings.ema_decay:
            self._ema = {name: p.detach().clone() for name, p in policy.named_parameters()}
        self._spare: LanguageModel | None = None
        return {
            "policy": Trainable(policy),
            "value": Trainable(critic, lr_ratio=self.settings.critic_lr_ratio),
        }

    def _pretraining(self, step: int) -> Pages | None:
        return Pages(self, step) if self.pages else None

    def _pages(self, context: int, tokenizer: Tokenizer) -> TokenDataset | None:
        if not self.tokens_paths or not self.settings.update.ptx_coef:
            return None
        asked = self.settings
        pages = TokenDataset(
            self.tokens_paths,
            min(asked.ptx_length or context, context),
            mix(self.seed, 3),
            weights=asked.mixture_weights,
            temperature=asked.mixture_temperature,
        )
        pages.require_tokenizer(tokenizer)
        return pages

    def step(self, engines: Mapping[str, Engine], step: int) -> StepResult:
        """One iteration.

        Raises:
            Interrupted: the run is to stop, and the end of the iteration is too far; on rank 0
                alone. The iteration is lost: weights that are half updated are no state to save.
        """
        pause, count = CancellationPoint(self.rank, grace=self.grace), self.train.global_batch_size
        episodes = range(step * count, (step + 1) * count)
        batch = self._collect(engines, self.prompts, episodes, mix(self.seed, 4), pause)
        beta = self.control.beta
        goal = targets(
            batch,
            beta=beta,
            gamma=self.settings.gamma,
            gae_lambda=self.settings.gae_lambda,
            missing_eos_penalty=self.settings.missing_eos_penalty,
        )
        metrics, updates = update(
            engines["policy"],
            engines["value"],
            batch,
            goal,
            self.settings.update,
            np.random.default_rng(mix(self.seed, 5, step)),
            share=Share(self.rank.index, self.rank.world, self.rank.total),
            pretraining=self._pretraining(step),
            heartbeat=pause,
        )
        summary = summarise(batch)
        self.control.update(summary["kl"], count)
        self._average(engines["policy"])
        metrics = {**summary, **metrics, "kl_coef": beta}
        return StepResult(metrics, updates, tokens=float(batch.at.numel()))

    def evaluate(self, engines: Mapping[str, Engine], step: int) -> Metrics:
        """Reward and KL on held-out prompts, drawn with the same random numbers every time.

        Raises:
            Interrupted: the run is to stop; on every rank after the same batch.
        """
        world = self.rank.world
        wanted = self.train.eval_samples or len(self.held_out)
        count = min(wanted, len(self.held_out)) // world * world
        if not count:
            return {}
        batch = self._collect(
            engines, self.held_out, range(count), mix(self.seed, 6), self._stop_together
        )
        return {f"eval_{name}": value for name, value in summarise(batch).items()}

    def _stop_together(self) -> None:
        """Between two batches, of which all ranks have equally many: go on, or stop on all."""
        self.rank.beat()
        if self.rank.any(self.rank.ctx is not None and self.rank.ctx.cancelled):
            raise Interrupted("stopped while evaluating")

    def _collect(
        self,
        engines: Mapping[str, Engine],
        prompts: Any,
        episodes: Sequence[int],
        seed: int,
        heartbeat: Callable[[], None],
    ) -> Experience:
        """Roll out this rank's share of the episodes, then give every rank all of them."""
        share = len(episodes) // self.rank.world
        mine = episodes[self.rank.index * share : (self.rank.index + 1) * share]
        settings = RolloutSettings(
            self.settings.decoding, EOS, PAD, seed, self.settings.rollout_batch_size,
            str(self.rank.device),
        )  # fmt: skip
        for engine in engines.values():
            engine.eval()
        with self._sampler(engines["policy"]) as policy:
            cast = Cast(policy, self.reference, _critic(engines), score_with(self.reward, EOS))
            batch = collect(cast, [prompts[i] for i in mine], mine, settings, heartbeat)
        for engine in engines.values():
            engine.train()
        return self._gather(batch, len(episodes))

    def _gather(self, batch: Experience, count: int) -> Experience:
        """All ranks' episodes in their order: each adds its rows to a sum that is else zero."""
        if self.rank.world == 1:
            return batch
        part = widened(batch, self.width, self.settings.max_new_tokens, PAD)
        start = self.rank.index * len(batch)
        found = {}
        for field in fields(Experience):
            own: Tensor = getattr(part, field.name)
            whole = torch.zeros(count, *own.shape[1:], dtype=torch.float64, device=own.device)
            whole[start : start + len(batch)] = own
            found[field.name] = self.rank.total(whole).to(own.dtype)
        return Experience(**found).rows(range(count))

    @contextmanager
    def _sampler(self, engine: Engine) -> Iterator[LanguageModel]:
        """The policy as a plain module. Sharded weights are copied into a spare one, for hooks
        that gather them layer by layer would do so at every token."""
        plain: Any = engine.module
        if engine.zero < 3:
            yield plain
            return
        if self._spare is None:
            self._spare = language_model(plain.config).to(self.rank.device).eval()
        with engine.whole() as whole:
            self._spare.load_state_dict(whole.state_dict())
        self._spare.to(self.reference.lm_head_weight.dtype)
        yield self._spare

    def _average(self, engine: Engine) -> None:
        """Move the average of the policy's weights, if one is kept. It follows the float32 weights
        of the optimizer: what they move in a step is lost in a module of half precision."""
        if not self._ema:
            return
        held: dict[str, list[Fragment]] = defaultdict(list)
        for fragment in engine.fragments():
            held[fragment.name].append(fragment)
        for name, old in self._ema.items():
            whole = torch.zeros(old.numel(), device=self.rank.device)
            for part in held[name]:
                whole[part.start : part.start + part.count] = part.views["fp32"]
            old.lerp_(self.rank.total(whole).view(old.shape).to(old), 1 - self.settings.ema_decay)

    def state_dict(self) -> State:
        """The KL coefficient and the average of the weights."""
        return {"control": self.control.state_dict(), "ema": dict(self._ema)}

    def load_state_dict(self, state: State) -> None:
        """Take up what `state_dict` gave."""
        self.control.load_state_dict(state["control"])
        self._ema |= {name: tensor.cpu() for name, tensor in state.get("ema", {}).items()}

    def export(self, engines: Mapping[str, Engine], out: Path) -> None:
        """Write the policy: the average of its weights, if one was kept."""
        policy: Any = engines["policy"].module
        if self._ema:
            averaged = language_model(policy.config)
            averaged.load_state_dict(self._ema)
            policy = averaged
        save_language_model(policy, out, self.policy_path, card=_CARD, chat=True)


_CARD = """# Policy

Fine-tuned by PPO on the score of a reward model, with a per-token KL penalty to the supervised
policy and, where pretraining tokens were given, their language-modelling loss (PPO-ptx). Prompts
are given in the chat format of `tokenizer_config.json`; responses end with `</s>`."""


class Pages:
    """The pretraining windows of one iteration's minibatches: `update.Pretraining`."""

    def __init__(self, objective: PPOObjective, step: int) -> None:
        assert objective.pages is not None
        self.windows: Samples = objective.pages.train
        self.length = objective.pages.length
        self.rank = objective.rank
        self.micro = objective.settings.update.micro_batch_size
        settings = objective.settings
        self.count = pretraining_windows(
            objective.train.global_batch_size, settings.update.num_minibatches, settings.ptx_ratio,
            self.rank.world,
        )  # fmt: skip
        self.first = (
            step * settings.update.ppo_epochs * settings.update.num_minibatches * self.count
        )

    def pieces(self, number: int) -> Sequence[Tensor]:
        """This rank's windows (B, T + 1) of a minibatch."""
        share = self.count // self.rank.world
        start = self.first + number * self.count + self.rank.index * share
        mine = np.stack([self.windows[start + i] for i in range(share)])
        return torch.split(torch.from_numpy(mine).to(self.rank.device), self.micro or share)

    def loss(self, model: Callable[..., Tensor], piece: Tensor) -> Tensor:
        """This piece's part of the mean over the minibatch's tokens."""
        return model(piece[:, :-1], targets_BT=piece[:, 1:]) / (self.count * self.length)


def pretraining_windows(episodes: int, minibatches: int, ratio: float, world: int) -> int:
    """Windows of a minibatch: `ratio` for each of its episodes, equally many on every rank."""
    return max(1, round(episodes / minibatches * ratio / world)) * world


def read_prompts(path: Path, split: str, tokenizer: Tokenizer, room: int) -> list[list[int]]:
    """The prompts of a split in chat format; those of more than `room` tokens are left out.

    Raises:
        InputError: no training prompt is left.
    """
    every = [encode_prompt(tokenizer, c.prompt) for c in Conversations(path, split) if c.prompt]
    fitting = [ids for ids in every if len(ids) <= room]
    if not fitting and split == "train":
        raise InputError(
            f"none of {len(every)} prompts has at most {room} tokens, the context less "
            "max_new_tokens",
            where=str(path),
            remedy="lower max_new_tokens, or take a policy with a longer context",
        )
    return fitting


def summarise(batch: Experience) -> dict[str, float]:
    """What a batch of episodes says of the policy, as means over episodes (`kl` in nats of a
    whole response; `kl_k3` estimates the same, and is never negative)."""
    k3 = kl_estimates(batch.log_probs, batch.reference).k3
    lengths = batch.mask.sum(1).float()
    return {
        "reward": batch.scores.mean().item(),
        "reward_std": batch.scores.std(correction=0).item(),
        "kl": batch.kl().mean().item(),
        "kl_k3": torch.where(batch.mask, k3, 0.0).sum(1).mean().item(),
        "length": lengths.mean().item(),
        "finished": batch.finished.float().mean().item(),
        "entropy": -(batch.log_probs.sum() / lengths.sum()).item(),
    }


def _critic(engines: Mapping[str, Engine]) -> PositionModel:
    critic: PositionModel = engines["value"]
    return critic
