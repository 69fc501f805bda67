"""Rollouts and the inner loop on a small GPT: whose gradients add up, and to what."""

import copy
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from stages.alignment.experience import (
    Experience,
    compute_targets,
    mark_responses,
    scatter_to_responses,
    shaped_scores,
)
from stages.alignment.ppo_update import (
    UpdateSettings,
    minibatches,
    policy_loss,
    update_policy,
    value_loss,
)
from stages.alignment.rollout import (
    RolloutModels,
    RolloutSettings,
    generate_rollouts,
    score_at_end,
)
from stages.generation.likelihood import next_log_probs
from stages.generation.sampling import SamplingParams
from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.gpt2.modeling_gpt2 import GPT
from stages.models.reward_head import RewardModel
from stages.training.ranks.rank import Rank

CONFIG = GPTConfig(vocab_size=24, context_length=24, num_layers=2, hidden_size=32, num_heads=2)
EOS, PAD = 3, 0
PROMPTS = [
    [2, 5, 6],
    [2, 9, 11, 4, 7, 8],
    [2, 5, 7],
    [2, 17],
    [2, 8, 8, 8],
    [2, 6],
    [2, 19, 5],
    [2, 4],
]


class Recorder:
    """A learner that takes plain gradient steps and keeps the gradient of each."""

    def __init__(self, model, lr=0.0):
        self.model, self.lr, self.gradients, self.lasts = model, lr, [], []

    def __call__(self, tokens_BT, *, position_mask_BT):
        return self.model(tokens_BT, position_mask_BT=position_mask_BT)

    def backward(self, loss, *, last=True):
        loss.backward()
        self.lasts.append(last)

    def step(self):
        self.gradients.append([p.grad.clone() for p in self.model.parameters()])
        with torch.no_grad():
            for parameter in self.model.parameters():
                parameter -= self.lr * parameter.grad
        self.model.zero_grad()


class LoneRank(Rank):
    """One of two ranks, whose sums are its own."""

    def all_reduce_sum(self, values):
        return values


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    found = GPT(CONFIG), GPT(CONFIG), RewardModel(GPT(CONFIG)), RewardModel(GPT(CONFIG))
    with torch.no_grad():
        for model in found:
            for parameter in model.parameters():
                parameter.add_(0.15 * torch.randn_like(parameter))
    return [model.eval() for model in found]


def play(models, prompts=PROMPTS, *, decoding=None, **options):
    policy, reference, critic, reward = models
    settings = RolloutSettings(decoding or SamplingParams(10), (EOS,), PAD, **options)
    return generate_rollouts(
        RolloutModels(policy, reference, critic, score_at_end(reward, EOS)),
        prompts,
        range(len(prompts)),
        settings,
    )


@pytest.fixture(scope="module")
def batch(models):
    return play(models)


def run(models, batch, *, rank=None, pretraining=None, lr=0.0, **settings):
    policy, critic = Recorder(copy.deepcopy(models[0]), lr), Recorder(copy.deepcopy(models[2]), lr)
    figures, _ = update_policy(
        policy, critic, batch, compute_targets(batch, beta=0.1),
        UpdateSettings(**{"ppo_epochs": 1, "num_minibatches": 2} | settings),
        np.random.default_rng(0), rank=rank, pretraining=pretraining,
    )  # fmt: skip
    return policy, critic, figures


def test_a_rollout_is_measured_as_by_plain_forward_passes(models, batch):
    policy, reference, critic, reward = models
    for row, prompt in enumerate(PROMPTS):
        length = int(batch.mask[row].sum())
        ids = batch.tokens[row, : len(prompt) + length]
        assert ids[: len(prompt)].tolist() == prompt
        assert batch.finished[row] == (ids[-1] == EOS)
        places = torch.arange(len(prompt) - 1, len(ids) - 1)
        assert batch.position_mask[row].nonzero().flatten().tolist() == places.tolist()
        for found, model in ((batch.log_probs, policy), (batch.reference, reference)):
            expected = model(ids[None])[0].log_softmax(-1)[places, ids[places + 1]]
            torch.testing.assert_close(found[row, :length], expected, rtol=0, atol=2e-5)
        expected = critic(ids[None])[0, places]
        torch.testing.assert_close(batch.values[row, :length], expected, rtol=0, atol=2e-5)
        ended = torch.cat([ids[:-1], torch.tensor([EOS])])
        torch.testing.assert_close(batch.scores[row], reward(ended[None])[0, -1], rtol=0, atol=2e-5)


def test_how_rollouts_are_batched_changes_nothing(models, batch):
    small = play(models, batch=3)
    assert torch.equal(small.tokens, batch.tokens)
    torch.testing.assert_close(small.log_probs, batch.log_probs, rtol=0, atol=2e-5)
    torch.testing.assert_close(small.scores, batch.scores, rtol=0, atol=2e-5)


def test_a_response_that_was_cut_off_is_scored_as_if_it_had_ended(models, batch):
    """Else a policy learns never to end, at tokens where the reward model was never trained."""
    tokens, last = torch.tensor([[2, 5, 6, 7, 0], [2, 5, 6, EOS, 0]]), torch.tensor([3, 3])
    cut, ended = score_at_end(models[3], EOS)(tokens, last)
    assert cut.item() == pytest.approx(ended.item(), abs=1e-5)
    assert cut.item() != pytest.approx(models[3](tokens)[0, 3].item(), abs=1e-2)
    assert not batch.finished.all()


def test_responses_that_do_not_end_may_cost(batch):
    assert 0 < batch.finished.sum() < len(batch)
    cost = batch.scores - shaped_scores(batch, 1.5)
    assert torch.allclose(cost, torch.where(batch.finished, 0.0, 1.5))
    rewards = compute_targets(batch, beta=0.0, gae_lambda=1.0).returns[:, 0]
    torch.testing.assert_close(rewards, batch.scores, rtol=0, atol=1e-5)


def test_some_rows_are_the_same_rows(models, batch):
    places = [5, 1, 3]
    few = batch.rows(places)
    assert len(few) == 3 and few.tokens.shape == few.position_mask.shape
    assert few.mask.shape[1] == int(batch.mask[places].sum(1).max())
    torch.testing.assert_close(
        next_log_probs(models[0], few.tokens, few.position_mask),
        few.log_probs[few.mask],
        rtol=0,
        atol=2e-5,
    )


def test_marks_are_one_before_each_response_token():
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert mark_responses([2, 1], mask, 5).int().tolist() == [[0, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
    assert scatter_to_responses(torch.tensor([1.0, 2, 3, 4, 5]), mask).tolist() == [
        [1, 2, 0],
        [3, 4, 5],
    ]


def test_minibatches_are_a_partition():
    parts = minibatches(12, 4, np.random.default_rng(0))
    assert [len(part) for part in parts] == [3] * 4
    assert sorted(place for part in parts for place in part) == list(range(12))


def assert_equal(found, expected, atol=1e-6):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=atol)


def test_micro_batches_add_up_to_the_minibatch(models, batch):
    whole, parts = run(models, batch), run(models, batch, micro_batch_size=1)
    for a, b in zip(whole[:2], parts[:2], strict=True):
        for found, expected in zip(a.gradients, b.gradients, strict=True):
            assert_equal(found, expected)
    assert parts[2] == pytest.approx(whole[2], abs=1e-5)
    assert parts[0].lasts == [False, False, False, True] * 2


def test_ranks_add_up_to_the_minibatch(models, batch):
    whole = run(models, batch)
    ranks = [run(models, batch, rank=LoneRank(r, 2)) for r in range(2)]
    for learner in (0, 1):
        for step in range(2):
            sums = [
                a + b for a, b in zip(*(r[learner].gradients[step] for r in ranks), strict=True)
            ]
            assert_equal(sums, whole[learner].gradients[step])


class Pages:
    """Two batches of pretraining tokens a minibatch."""

    def __init__(self):
        self.tokens = torch.randint(
            4, 24, (2, 2, 3, 12), generator=torch.Generator().manual_seed(1)
        )

    def pieces(self, number):
        return list(self.tokens[number])

    def loss(self, model, piece):
        position_mask_BT = torch.ones_like(piece, dtype=torch.bool)
        position_mask_BT[:, -1] = False
        logits_NV = model(piece, position_mask_BT=position_mask_BT)
        return F.cross_entropy(logits_NV, piece[:, 1:].flatten(), reduction="sum") / 66


def test_pretraining_gradients_are_added_to_those_of_ppo(models, batch):
    """Accumulated == gradient of PPO + gamma times that of the pretraining loss, to 1e-6."""
    gamma, pages = 1.7, Pages()
    plain = run(models, batch)
    mixed = run(models, batch, pretraining=pages, ptx_coef=gamma)
    for number in range(2):
        model = Recorder(copy.deepcopy(models[0]))
        sum(pages.loss(model, piece) for piece in pages.pieces(number)).backward()
        expected = [
            ppo + gamma * p.grad
            for ppo, p in zip(plain[0].gradients[number], model.model.parameters(), strict=True)
        ]
        assert_equal(mixed[0].gradients[number], expected)
        assert_equal(mixed[1].gradients[number], plain[1].gradients[number])
    assert mixed[0].lasts == [False, False, True] * 2


def test_weight_0_is_ppo_to_the_bit(models, batch):
    plain, mixed = run(models, batch), run(models, batch, pretraining=Pages(), ptx_coef=0.0)
    for found, expected in zip(mixed[0].gradients, plain[0].gradients, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_the_first_gradient_is_that_of_policy_gradient(models, batch):
    """At ratio 1: -sum of A grad log p / tokens, end tokens included."""
    policy = run(models, batch, num_minibatches=1)[0]
    model = copy.deepcopy(models[0])
    advantages = compute_targets(batch, beta=0.1).advantages[batch.mask]
    (-(next_log_probs(model, batch.tokens, batch.position_mask) * advantages).mean()).backward()
    assert_equal(policy.gradients[0], [p.grad for p in model.parameters()], atol=1e-5)


def test_figures_begin_at_no_change_and_then_move(models, batch):
    still = run(models, batch, ppo_epochs=2)[2]
    assert still["approx_kl"] == pytest.approx(0, abs=1e-6) and still["clip_fraction"] == 0
    moved = run(models, batch, ppo_epochs=2, lr=0.5)[2]
    assert moved["approx_kl"] > 1e-4


def test_steps_raise_what_was_good(models, batch):
    policy, _, _ = run(models, batch, num_minibatches=1, lr=0.05)
    advantages = compute_targets(batch, beta=0.1).advantages[batch.mask]
    before = batch.log_probs[batch.mask]
    after = next_log_probs(policy.model, batch.tokens, batch.position_mask).detach()
    assert ((after - before) * advantages).sum() > 0


def test_experience_keeps_its_fields_aligned(batch):
    assert isinstance(batch, Experience)
    assert batch.kl().shape == (8,)
    assert (batch.position_mask.sum(1) == batch.mask.sum(1)).all()


def surrogate_gradient(ratio, advantage):
    log_prob = torch.tensor(math.log(ratio), requires_grad=True)
    policy_loss(log_prob, torch.tensor(0.0), torch.tensor(advantage)).backward()
    return log_prob.grad.item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "gradient"),
    [
        (1.5, 1.0, 0.0),  # already far more likely: nothing to gain
        (0.5, -1.0, 0.0),  # already far less likely
        (1.5, -1.0, 1.5),  # wrong way: must come back
        (0.5, 1.0, -0.5),
        (1.1, 2.0, -2.2),  # within the clip
        (0.9, -2.0, 1.8),
        (1.0, 1.0, -1.0),
    ],
)
def test_the_surrogate_is_clipped_on_the_side_of_gain_only(ratio, advantage, gradient):
    assert surrogate_gradient(ratio, advantage) == pytest.approx(gradient, abs=1e-6)


def test_at_ratio_1_the_gradient_is_that_of_policy_gradient():
    log_probs = torch.zeros(3, requires_grad=True)
    advantages = torch.tensor([1.0, -2.0, 0.5])
    policy_loss(log_probs, torch.zeros(3), advantages).sum().backward()
    torch.testing.assert_close(log_probs.grad, -advantages)


@pytest.mark.parametrize(
    ("value", "old", "target", "loss", "gradient"),
    [
        (0.5, 0.0, 1.0, 0.5 * 0.8**2, 0.0),  # moved beyond the clip towards the target: enough
        (0.1, 0.0, 1.0, 0.5 * 0.9**2, -0.9),
        (-0.5, 0.0, 1.0, 0.5 * 1.5**2, -1.5),  # moved away: the unclipped error is larger
    ],
)
def test_the_value_loss_takes_the_larger_error(value, old, target, loss, gradient):
    v = torch.tensor(value, requires_grad=True)
    found = value_loss(v, torch.tensor(old), torch.tensor(target))
    found.backward()
    assert found.item() == pytest.approx(loss, abs=1e-6)
    assert v.grad.item() == pytest.approx(gradient, abs=1e-6)


def test_without_a_clip_it_is_half_the_square():
    found = value_loss(torch.tensor(3.0), torch.tensor(0.0), torch.tensor(1.0), None)
    assert found.item() == 2


def test_the_end_token_is_learnt_from():
    """The gradient reaches the logit of the end token at the place where it was drawn."""
    torch.manual_seed(0)
    logits = torch.randn(1, 4, 9, requires_grad=True)
    tokens, at = torch.tensor([[2, 5, 7, 3]]), torch.tensor([[True, True, True, False]])
    log_probs = next_log_probs(
        lambda tokens_BT, position_mask_BT: logits[:, :-1][position_mask_BT], tokens, at
    )
    policy_loss(log_probs, log_probs.detach(), torch.tensor([0.0, 0.0, 1.0])).sum().backward()
    assert logits.grad[0, 2, 3].abs() > 0.1
    assert logits.grad[0, :2].eq(0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probs_are_those_of_the_next_tokens(temperature):
    torch.manual_seed(0)
    model = GPT(
        GPTConfig(vocab_size=20, context_length=8, num_layers=1, hidden_size=16, num_heads=2)
    ).eval()
    tokens = torch.randint(0, 20, (2, 6))
    at = torch.zeros(2, 6, dtype=torch.bool)
    at[0, 1:5] = at[1, 3] = True
    found = next_log_probs(model, tokens, at, temperature)
    every = (model(tokens) / temperature).log_softmax(-1)
    expected = [every[b, t, tokens[b, t + 1]] for b, t in [(0, 1), (0, 2), (0, 3), (0, 4), (1, 3)]]
    torch.testing.assert_close(found, torch.stack(expected))
