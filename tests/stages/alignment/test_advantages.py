"""Rewards, advantages and whitening against their definitions."""

import pytest
import torch

from stages.alignment.advantages import gae, kl_estimates, token_rewards, whiten

MASK = torch.tensor(
    [[True, True, True, True], [True, True, False, False], [True, False, False, False]]
)


@pytest.fixture
def values():
    torch.manual_seed(0)
    return [torch.randn(3, 4, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (1.0, 0.0)])
def test_gae_is_the_discounted_sum_of_errors(values, gamma, gae_lambda):
    rewards, predicted = values
    found = gae(rewards, predicted, MASK, gamma=gamma, gae_lambda=gae_lambda)
    for row, length in enumerate(MASK.sum(1).tolist()):
        value = [*predicted[row, :length].tolist(), 0.0]
        delta = [rewards[row, t].item() + gamma * value[t + 1] - value[t] for t in range(length)]
        for t in range(length):
            expected = sum((gamma * gae_lambda) ** k * delta[t + k] for k in range(length - t))
            assert found[row, t].item() == pytest.approx(expected, abs=1e-12)
        assert found[row, length:].eq(0).all()


def test_without_lambda_an_advantage_is_the_reward_to_go(values):
    rewards, predicted = values
    found = gae(rewards, predicted, MASK, gamma=1.0, gae_lambda=1.0)[0] + predicted[0]
    torch.testing.assert_close(found, rewards[0].flip(0).cumsum(0).flip(0))


def test_what_lies_in_the_padding_is_not_read(values):
    rewards, predicted = values
    clean = gae(rewards, predicted, MASK)
    rewards[~MASK], predicted[~MASK] = 1e9, -1e9
    torch.testing.assert_close(gae(rewards, predicted, MASK), clean)


def test_the_score_is_on_the_last_token_and_the_kl_on_each():
    log_probs = torch.tensor([[-1.0, -2.0, -3.0, 0], [-1.0, -1.0, 0, 0], [-0.5, 0, 0, 0]])
    reference = torch.tensor([[-1.5, -2.0, -1.0, 0], [-2.0, -1.0, 0, 0], [-0.5, 0, 0, 0]])
    rewards = token_rewards(torch.tensor([10.0, 20.0, 30.0]), log_probs, reference, MASK, 0.1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]])
    expected = torch.tensor([[-0.05, 0, 0.2, 10], [-0.1, 20, 0, 0], [30, 0, 0, 0]])
    torch.testing.assert_close(rewards, expected * mask)


def test_both_estimates_have_the_kl_as_mean_and_only_k1_is_negative():
    torch.manual_seed(0)
    p, q = torch.randn(8).log_softmax(0), torch.randn(8).log_softmax(0)
    exact = (p.exp() * (p - q)).sum()
    k1, k3 = kl_estimates(p, q)
    torch.testing.assert_close((p.exp() * k1).sum(), exact)
    torch.testing.assert_close((p.exp() * k3).sum(), exact)
    assert k1.min() < 0 <= k3.min()


def test_only_the_penalty_by_k1_has_the_gradient_of_the_kl():
    """The score-function gradient of E[k1] is that of the KL; that of E[k3] is another."""
    torch.manual_seed(0)
    logits = torch.randn(6, dtype=torch.float64, requires_grad=True)
    q = torch.randn(6, dtype=torch.float64).log_softmax(0)
    p = logits.log_softmax(0)
    (exact,) = torch.autograd.grad((p.exp() * (p - q)).sum(), logits, retain_graph=True)
    by = [
        torch.autograd.grad((p.exp() * k.detach()).sum(), logits, retain_graph=True)[0]
        for k in kl_estimates(p, q)
    ]
    torch.testing.assert_close(by[0], exact)
    assert (by[1] - exact).abs().max() > 0.01


def test_whitened_values_have_mean_0_and_variance_1(values):
    found = whiten(5 + 3 * values[0], MASK)
    assert found[MASK].mean().item() == pytest.approx(0, abs=1e-9)
    assert found[MASK].var(correction=0).item() == pytest.approx(1, abs=1e-6)
    assert found[~MASK].eq(0).all()


def test_a_batch_without_spread_whitens_to_nothing():
    assert whiten(torch.full((3, 4), 2.0), MASK).eq(0).all()
