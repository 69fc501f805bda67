"""Where the losses push, and where they must not."""

import math

import pytest
import torch

from stages.alignment.clipped_losses import policy_loss, value_loss
from stages.alignment.kl_controller import AdaptiveKL, FixedKL
from stages.generation.likelihood import next_log_probs
from stages.models.gpt2.modeling_gpt2 import GPT, GPTConfig


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
    log_probs = next_log_probs(lambda tokens_BT, at_BT: logits[:, :-1][at_BT], tokens, at)
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


def test_a_fixed_coefficient_stays():
    control = FixedKL(0.1)
    control.update(100.0, 512)
    assert control.beta == 0.1


@pytest.mark.parametrize(
    ("kl", "factor"), [(6.0, 1.0), (600.0, 1.01), (0.0, 0.99), (6.6, 1.005), (5.4, 0.995)]
)
def test_an_adaptive_coefficient_steers_to_its_target(kl, factor):
    control = AdaptiveKL(0.2, target=6.0, horizon=10_000)
    control.update(kl, 500)
    assert control.beta == pytest.approx(0.2 * factor, rel=1e-9)


def test_the_coefficient_outlives_a_restart():
    control = AdaptiveKL(0.2, target=6.0)
    control.update(10.0, 512)
    again = AdaptiveKL(0.2, target=6.0)
    again.load_state_dict(control.state_dict())
    assert again.beta == control.beta
