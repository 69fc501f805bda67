"""PPO-ptx (Ouyang et al. 2022): a policy is fine-tuned on the score of a reward model, with a KL
penalty to a frozen reference and a pretraining loss.

The trainer has two engines, policy and critic. One step of the trainer is one iteration: generate
rollouts, score them, give every rank the whole batch, update. An iteration is a function of the
weights, the KL coefficient and the step: prompts, random draws, minibatches and pretraining windows
are hashed from (seed, step), so that weights, moments and coefficient are the whole state. The
losses are in `stages.alignment.ppo_update`.
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
from stages.alignment.experience import Experience, compute_targets, rollout_metrics
from stages.alignment.kl_controller import AdaptiveKLController, FixedKLController
from stages.alignment.ppo_update import UpdateSettings, update_policy
from stages.alignment.rollout import (
    RolloutModels,
    RolloutSettings,
    generate_rollouts,
    pad_to,
    score_at_end,
)
from stages.chat.chat_format import ChatFormat
from stages.data.token_dataset import TokenDataset
from stages.data.tokenizers.huggingface_tokenizer import AnyTokenizer
from stages.distributed.cancellation_point import CancellationPoint
from stages.generation.likelihood import PositionModel
from stages.generation.sampling import SamplingParams
from stages.models.language_model import LanguageModel
from stages.models.model_io import load_language_model, load_reward_model, save_language_model
from stages.models.registry import build_model
from stages.training.data_order import Shuffled, derive_seed
from stages.training.objective import Metrics, Samples, State, Trainable
from stages.training.step_result import StepResult

if TYPE_CHECKING:
    from stages.training.engine import Engine
    from stages.training.ranks.rank import Rank
    from stages.training.training_params import TrainSection
    from stages.training.zero_state import Fragment


@dataclass(frozen=True)
class PPOSettings:
    """Settings of PPO; see `stages.ppo.PPOParams` for each."""

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
        """SamplingParams of rollouts: from the whole softmax, because top-k and top-p change the
        probabilities."""
        return SamplingParams(self.max_new_tokens, self.update.temperature)

    def kl_controller(self) -> FixedKLController:
        """Return a new controller of the KL coefficient."""
        if self.kl_target is None:
            return FixedKLController(self.kl_coef)
        return AdaptiveKLController(self.kl_coef, self.kl_target, self.kl_horizon)


class PPOObjective:
    """Policy and critic, trained on rollouts that a reward model scores."""

    flops_per_token = 0.0
    setup_metrics: Mapping[str, float] = {}
    stop_grace = 15.0
    """Time that an iteration has to finish after cancellation, seconds."""

    def __init__(
        self,
        policy: Path,
        reward: Path,
        prompts: Sequence[list[int]],
        eval_prompts: Sequence[list[int]],
        tokens: tuple[Path, ...],
        settings: PPOSettings,
    ) -> None:
        self.policy_path, self.reward_path = policy, reward
        self.train_prompts, self.eval_prompts = prompts, eval_prompts
        self.tokens_paths, self.settings = tokens, settings

    def setup(self, rank: Rank, settings: TrainSection, seed: int) -> dict[str, Trainable]:
        """Load the four models: the policy, its frozen copy as the reference, the
        reward model, and the critic, which starts from it.

        Raises:
            InputError: tokenizers of models or pretraining tokens differ, or chat templates.
        """
        self.rank, self.train_settings, self.seed = rank, settings, seed
        self.chat = ChatFormat.open(self.policy_path)
        self.chat.require_equal(ChatFormat.open(self.reward_path))
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
        self.context_length = context
        self.prompts = Shuffled(self.train_prompts, seed)
        self.kl_controller = self.settings.kl_controller()
        self.pretraining_corpus = self._open_corpus(
            policy.config.context_length, self.chat.tokenizer
        )
        self._ema = {}
        if self.settings.ema_decay:
            self._ema = {name: p.detach().clone() for name, p in policy.named_parameters()}
        self._rollout_copy: LanguageModel | None = None
        return {
            "policy": Trainable(policy),
            "value": Trainable(critic, lr_ratio=self.settings.critic_lr_ratio),
        }

    def _pretraining_batches(self, step: int) -> PretrainingBatches | None:
        return PretrainingBatches(self, step) if self.pretraining_corpus else None

    def _open_corpus(self, context: int, tokenizer: AnyTokenizer) -> TokenDataset | None:
        if not self.tokens_paths or not self.settings.update.ptx_coef:
            return None
        settings = self.settings
        corpus = TokenDataset(
            self.tokens_paths,
            min(settings.ptx_length or context, context),
            derive_seed(self.seed, 3),
            weights=settings.mixture_weights,
            temperature=settings.mixture_temperature,
        )
        corpus.require_tokenizer(tokenizer)
        return corpus

    def step(self, engines: Mapping[str, Engine], step: int) -> StepResult:
        """Run one iteration.

        Raises:
            Interrupted: on rank 0 only, if the run is to stop and the iteration does not end within
                `stop_grace`. The iteration is lost, because half-updated weights are not saved.
        """
        pause, count = (
            CancellationPoint(self.rank, grace=self.stop_grace),
            self.train_settings.global_batch_size,
        )
        episodes = range(step * count, (step + 1) * count)
        batch = self._generate_rollouts(
            engines, self.prompts, episodes, derive_seed(self.seed, 4), pause
        )
        kl_coef = self.kl_controller.kl_coef
        targets = compute_targets(
            batch,
            beta=kl_coef,
            gamma=self.settings.gamma,
            gae_lambda=self.settings.gae_lambda,
            missing_eos_penalty=self.settings.missing_eos_penalty,
        )
        metrics, updates = update_policy(
            engines["policy"],
            engines["value"],
            batch,
            targets,
            self.settings.update,
            np.random.default_rng(derive_seed(self.seed, 5, step)),
            rank=self.rank,
            pretraining=self._pretraining_batches(step),
            heartbeat=pause,
        )
        summary = rollout_metrics(batch)
        self.kl_controller.update(summary["kl"], count)
        self._update_ema(engines["policy"])
        metrics = {**summary, **metrics, "kl_coef": kl_coef}
        return StepResult(metrics, updates, tokens=float(batch.position_mask.numel()))

    def evaluate(self, engines: Mapping[str, Engine], step: int) -> Metrics:
        """Return reward and KL on held-out prompts, sampled with the same random numbers each time.

        Raises:
            Interrupted: the run is to stop; on every rank after the same batch.
        """
        world = self.rank.world
        available = len(self.eval_prompts)
        count = min(self.train_settings.eval_samples or available, available) // world * world
        if not count:
            return {}
        batch = self._generate_rollouts(
            engines, self.eval_prompts, range(count), derive_seed(self.seed, 6), self._stop_together
        )
        return {f"eval_{name}": value for name, value in rollout_metrics(batch).items()}

    def _stop_together(self) -> None:
        """Stop on all ranks or on none.

        Called between batches, because all ranks have equally many.
        """
        self.rank.heartbeat()
        if self.rank.stop_requested():
            raise Interrupted("stopped while evaluating")

    def _generate_rollouts(
        self,
        engines: Mapping[str, Engine],
        prompts: Any,
        episodes: Sequence[int],
        seed: int,
        heartbeat: Callable[[], None],
    ) -> Experience:
        """Generate this rank's slice of the episodes, then give every rank all of them."""
        share = len(episodes) // self.rank.world
        mine = episodes[self.rank.index * share : (self.rank.index + 1) * share]
        settings = RolloutSettings(
            self.settings.decoding, self.chat.end_ids, self.chat.pad_id, seed,
            self.settings.rollout_batch_size, str(self.rank.device),
        )  # fmt: skip
        score = score_at_end(self.reward, self.chat.end_id, self.chat.closing_ids)
        for engine in engines.values():
            engine.eval()
        with self._plain_policy(engines["policy"]) as policy:
            critic: PositionModel = engines["value"]
            models = RolloutModels(policy, self.reference, critic, score)
            batch = generate_rollouts(models, [prompts[i] for i in mine], mine, settings, heartbeat)
        for engine in engines.values():
            engine.train()
        return self._gather_experience(batch, len(episodes))

    def _gather_experience(self, batch: Experience, count: int) -> Experience:
        """Return the episodes of all ranks in order: each adds its rows to a sum over ranks that is
        zero elsewhere."""
        if self.rank.world == 1:
            return batch
        part = pad_to(batch, self.context_length, self.settings.max_new_tokens, self.chat.pad_id)
        start = self.rank.index * len(batch)
        found = {}
        for field in fields(Experience):
            own: Tensor = getattr(part, field.name)
            whole = torch.zeros(count, *own.shape[1:], dtype=torch.float64, device=own.device)
            whole[start : start + len(batch)] = own
            found[field.name] = self.rank.all_reduce_sum(whole).to(own.dtype)
        return Experience(**found).rows(range(count))

    @contextmanager
    def _plain_policy(self, engine: Engine) -> Iterator[LanguageModel]:
        """Yield the policy as a plain module. Sharded weights are copied into another module,
        because hooks that gather them layer by layer would do so at every token."""
        plain: Any = engine.module
        if engine.zero_stage < 3:
            yield plain
            return
        if self._rollout_copy is None:
            self._rollout_copy = build_model(plain.config).to(self.rank.device).eval()
        with engine.gathered_weights() as whole:
            self._rollout_copy.load_state_dict(whole.state_dict())
        self._rollout_copy.to(self.reference.lm_head_weight.dtype)
        yield self._rollout_copy

    def _update_ema(self, engine: Engine) -> None:
        """Update the exponential moving average of the policy, if `ema_decay` is set, from the
        float32 weights of the optimizer: half precision would round their changes away."""
        if not self._ema:
            return
        held: dict[str, list[Fragment]] = defaultdict(list)
        for fragment in engine.fragments():
            held[fragment.name].append(fragment)
        for name, old in self._ema.items():
            whole = torch.zeros(old.numel(), device=self.rank.device)
            for part in held[name]:
                whole[part.start : part.start + part.count] = part.views["fp32"]
            old.lerp_(
                self.rank.all_reduce_sum(whole).view(old.shape).to(old), 1 - self.settings.ema_decay
            )

    def state_dict(self) -> State:
        """Return the KL coefficient and the average of the weights."""
        return {"control": self.kl_controller.state_dict(), "ema": dict(self._ema)}

    def load_state_dict(self, state: State) -> None:
        """Restore the state that `state_dict` returned."""
        self.kl_controller.load_state_dict(state["control"])
        self._ema |= {name: tensor.cpu() for name, tensor in state.get("ema", {}).items()}

    def export(self, engines: Mapping[str, Engine], out: Path) -> None:
        """Write the policy, with the average of its weights if there is one."""
        policy: Any = engines["policy"].module
        if self._ema:
            averaged = build_model(policy.config)
            averaged.load_state_dict(self._ema)
            policy = averaged
        ids = self.chat.special_ids
        save_language_model(policy, out, self.policy_path, card=_CARD, chat=True, ids=ids)
        self.chat.export(out)


_CARD = """# Policy

Fine-tuned by PPO on the score of a reward model, with a per-token KL penalty to the supervised
policy and, where pretraining tokens were given, their language-modelling loss (PPO-ptx). Prompts
are given in the format of `chat_template.jinja`."""


class PretrainingBatches:
    """Pretraining windows of the minibatches of one iteration (`ppo_update.PtxBatches`)."""

    def __init__(self, objective: PPOObjective, step: int) -> None:
        corpus = objective.pretraining_corpus
        assert corpus is not None
        self.windows: Samples = corpus.train
        self.length = corpus.length
        self.rank = objective.rank
        self.micro = objective.settings.update.micro_batch_size
        settings = objective.settings
        self.count = pretraining_windows(
            objective.train_settings.global_batch_size,
            settings.update.num_minibatches,
            settings.ptx_ratio,
            self.rank.world,
        )
        self.first = (
            step * settings.update.ppo_epochs * settings.update.num_minibatches * self.count
        )

    def pieces(self, number: int) -> Sequence[Tensor]:
        """Return this rank's windows (B, T + 1) of a minibatch."""
        share = self.count // self.rank.world
        start = self.first + number * self.count + self.rank.index * share
        mine = np.stack([self.windows[start + i] for i in range(share)])
        return torch.split(torch.from_numpy(mine).to(self.rank.device), self.micro or share)

    def loss(self, model: Callable[..., Tensor], piece: Tensor) -> Tensor:
        """Return the part of a piece in the mean loss over the tokens of the minibatch."""
        return model(piece[:, :-1], targets_BT=piece[:, 1:]) / (self.count * self.length)


def pretraining_windows(episodes: int, minibatches: int, ratio: float, world: int) -> int:
    """Return the windows per minibatch: `ratio` per episode, equally many on every rank."""
    return max(1, round(episodes / minibatches * ratio / world)) * world
