"""PPO against the enumerated optimum: the right one reaches it, wrong ones do not.

Everything but the tables and the known reward is the code of the `ppo` stage: sampling, rollouts,
rewards, advantages, losses, the inner loop.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from tabular_mdp import BETA, EOS, LENGTH, PAD, PROMPTS, Problem, TableCritic, TablePolicy

from pipeline.errors import Failure
from stages.alignment import advantages, experience, ppo_update, rollout
from stages.alignment.experience import compute_targets
from stages.alignment.ppo_update import UpdateSettings
from stages.alignment.rollout import RolloutModels, RolloutSettings, generate_rollouts
from stages.generation import sampling
from stages.generation.sampling import SamplingParams

ITERATIONS, EPISODES = 100, 512
CLOSED, NEAR = 0.96, 0.20


@dataclass
class Table:
    """A module with its optimizer: the learner of the production loop, without an engine."""

    model: torch.nn.Module
    lr: float

    def __post_init__(self):
        self.optimizer = torch.optim.Adam(self.model.parameters(), self.lr, fused=True)

    def __call__(self, tokens_BT, *, position_mask_BT):
        return self.model(tokens_BT, position_mask_BT=position_mask_BT)

    def backward(self, loss, *, last=True):
        loss.backward()

    def step(self):
        self.optimizer.step()
        self.optimizer.zero_grad()

    def decay(self, share):
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * share


@dataclass
class Outcome:
    gap_closed: float
    divergence: float

    @property
    def passes(self):
        return self.gap_closed >= CLOSED and self.divergence <= NEAR


def train(problem, *, decoding=None, renew=0):
    """One run of PPO on the tables; `renew` moves the reference every so many iterations."""
    policy = Table(TablePolicy(problem.reference), 0.05)
    critic = Table(TableCritic(), 0.1)
    reference = TablePolicy(problem.reference)
    prompt_rng, rng = np.random.default_rng(7), np.random.default_rng(8)
    rolling = RolloutSettings(
        decoding or SamplingParams(LENGTH), (EOS,), PAD, seed=1, batch=EPISODES
    )

    def score(tokens_BT, last_B):
        return problem.reward(tokens_BT[:, 0], tokens_BT[:, 1:]).float()

    for iteration in range(ITERATIONS):
        if renew and iteration and not iteration % renew:
            reference.load_state_dict(policy.model.state_dict())
        for learner in (policy, critic):
            learner.decay(1 - iteration / ITERATIONS)
        prompts = [[int(p)] for p in prompt_rng.integers(0, PROMPTS, EPISODES)]
        first = iteration * EPISODES
        models = RolloutModels(policy.model, reference, critic.model, score)
        batch = generate_rollouts(models, prompts, range(first, first + EPISODES), rolling)
        ppo_update.update_policy(
            policy, critic, batch, compute_targets(batch, beta=BETA), UpdateSettings(), rng
        )
    table = policy.model.table.detach()
    return Outcome(problem.gap_closed(table), problem.divergence(table))


@pytest.fixture(scope="module")
def problem():
    return Problem(0)


@pytest.mark.parametrize(
    ("seed", "start", "best"), [(0, 0.7288, 3.5092), (1, 0.8893, 3.0514), (2, -0.5889, 2.2139)]
)
def test_the_problem_is_the_published_one(seed, start, best):
    p = Problem(seed)
    assert p.actions.shape == (2801, 4)
    assert p.start == pytest.approx(start, abs=5e-5)
    assert p.best == pytest.approx(best, abs=5e-5)
    table = torch.from_numpy(np.random.default_rng(99).normal(size=p.reference.shape))
    torch.testing.assert_close(
        p.log_probs(table).exp().sum(1), torch.ones(4).double(), rtol=0, atol=1e-9
    )
    assert p.best - p.objective(table) == pytest.approx(BETA * p.divergence(table), abs=1e-9)


SEEDS = [0, *(pytest.param(seed, marks=pytest.mark.integration) for seed in (1, 2))]


@pytest.mark.parametrize("seed", SEEDS)  # five seconds each: two of them run with the slow tests
def test_ppo_reaches_the_optimum(seed):
    outcome = train(Problem(seed))
    print(f"seed {seed}: gap closed {outcome.gap_closed:.4f}, KL {outcome.divergence:.4f}")
    assert outcome.passes, outcome


# Wrong PPOs: each replaces one pure function, or one setting, of the right one.


def with_rewards(change):
    """A wrong reward: `change(scores_B, k1_BR, mask_BR)` gives (score_B, penalty_BR, column_B)."""

    def token_rewards(scores_B, log_probs_BR, reference_BR, mask_BR, beta):
        log_ratio_BR = torch.where(mask_BR, log_probs_BR - reference_BR, 0.0)
        score_B, penalty_BR, column_B = change(scores_B, log_ratio_BR, mask_BR)
        rewards_BR = torch.where(mask_BR, -beta * penalty_BR, 0.0)
        return rewards_BR.scatter_add(1, column_B[:, None], score_B[:, None])

    return lambda patch: patch.setattr(experience, "token_rewards", token_rewards)


def last(mask_BR):
    return mask_BR.sum(1) - 1


def k3(log_ratio):
    return torch.expm1(-log_ratio) + log_ratio


def with_advantages(change):
    """Wrong advantages: `change(whitened_BR, mask_BR)`."""

    def wrong(values_BR, mask_BR):
        return torch.where(mask_BR, change(advantages.whiten(values_BR, mask_BR), mask_BR), 0.0)

    return lambda patch: patch.setattr(experience, "whiten", wrong)


def without_last(values_BR, mask_BR):
    return values_BR.scatter(1, last(mask_BR)[:, None], 0.0)


def bootstrapping(patch):
    """The value of the state past the end is taken for real (here: the last one's)."""

    def wrong(rewards_BR, values_BR, mask_BR, **options):
        last_B = last(mask_BR)[:, None]
        more_BR = torch.zeros_like(rewards_BR).scatter(1, last_B, values_BR.gather(1, last_B))
        return advantages.gae(rewards_BR + more_BR, values_BR, mask_BR, **options)

    patch.setattr(experience, "gae", wrong)


def mismatched(decoding):
    """Rollouts drawn in one way, their log-probabilities taken in another."""

    def wrong(model, prompts, right, **options):
        drawn = sampling.sample(model, prompts, replace(decoding, max_new_tokens=LENGTH), **options)
        tokens_BT = torch.cat([torch.tensor(prompts), drawn.tokens], 1)
        position_mask_BT = torch.zeros_like(tokens_BT, dtype=torch.bool)
        position_mask_BT[:, : drawn.mask.shape[1]] = drawn.mask
        log_probs_N = rollout.next_log_probs(model, tokens_BT, position_mask_BT)
        return replace(drawn, log_probs=experience.scatter_to_responses(log_probs_N, drawn.mask))

    return lambda patch: patch.setattr(rollout, "sample", wrong)


WRONG = {
    "score on the padding, masked away": with_rewards(lambda s, k, m: (0 * s, k, last(m))),
    "a value after the end": bootstrapping,
    "score on the first token": with_rewards(lambda s, k, m: (s, k, 0 * last(m))),
    "KL with the wrong sign": with_rewards(lambda s, k, m: (s, -k, last(m))),
    "k3 in the reward": with_rewards(lambda s, k, m: (s, k3(k), last(m))),
    "KL divided by the length": with_rewards(
        lambda s, k, m: (s, k / m.sum(1, keepdim=True), last(m))
    ),
    "a reference that moves": None,
    "last token not learnt from": with_advantages(without_last),
    "rollouts at temperature 0.7": mismatched(SamplingParams(temperature=0.7)),
    "rollouts from the top 4": mismatched(SamplingParams(top_k=4)),
}


@pytest.mark.integration  # for its time: some five seconds each
@pytest.mark.parametrize("name", WRONG)
def test_wrong_ppo_does_not_pass(name, problem, monkeypatch):
    if inject := WRONG[name]:
        inject(monkeypatch)
    outcome = train(problem, renew=0 if inject else 20)
    print(f"{name}: gap closed {outcome.gap_closed:.4f}, KL {outcome.divergence:.4f}")
    assert outcome.gap_closed < CLOSED and outcome.divergence > NEAR, outcome


def test_rollouts_of_another_distribution_are_refused_at_once(problem):
    with pytest.raises(Failure, match="the ratio of the first minibatch is off by"):
        train(problem, decoding=SamplingParams(LENGTH, temperature=0.7))
    with pytest.raises(Failure, match="the ratio of the first minibatch is off by"):
        train(problem, decoding=SamplingParams(LENGTH, top_k=4))
