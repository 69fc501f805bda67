"""The loss over all pairs of a ranking, against one pair at a time."""

import itertools

import pytest
import torch
from torch.nn import functional as F

from stages.alignment.ranking_loss import NO_RESPONSE, compare_pairs, kwise_loss
from stages.models.gpt2.configuration_gpt2 import GPTConfig
from stages.models.gpt2.modeling_gpt2 import GPT
from stages.models.reward_head import RewardModel


def pairs(ranks):
    return [(i, j) for i, j in itertools.permutations(range(len(ranks)), 2) if ranks[i] < ranks[j]]


def mean_over_pairs(scores, ranks):
    return torch.stack([-F.logsigmoid(scores[i] - scores[j]) for i, j in pairs(ranks)]).mean()


RANKINGS = [[0, 1, 2, 3], [3, 0, 2, 1, 4, 5, 6, 7, 8], [0, 1], [1, 0, 1, 2], [0, 0, 1]]


@pytest.mark.parametrize("ranks", RANKINGS, ids=str)
def test_loss_and_gradient_are_the_mean_over_pairs(ranks):
    torch.manual_seed(0)
    scores = torch.randn(len(ranks), dtype=torch.float64, requires_grad=True)
    expected = mean_over_pairs(scores, ranks)
    (expected_gradient,) = torch.autograd.grad(expected, scores)
    found = kwise_loss(scores[None], torch.tensor([ranks]))
    (gradient,) = torch.autograd.grad(found.sum(), scores)
    torch.testing.assert_close(found[0], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=0, atol=1e-12)


def test_k_forward_passes_give_the_gradient_of_all_pairs():
    """Through a model: K sequences, not K (K - 1), to 1e-6."""
    torch.manual_seed(0)
    model = RewardModel(
        GPT(GPTConfig(vocab_size=40, context_length=12, num_layers=2, hidden_size=32, num_heads=2))
    ).double()
    ranks = [2, 0, 3, 1]
    tokens_KT = torch.randint(0, 40, (4, 12))
    read = []
    model.body.wte.register_forward_hook(lambda module, inputs, out: read.append(len(inputs[0])))
    loss = kwise_loss(model(tokens_KT)[:, -1][None], torch.tensor([ranks]))[0]
    assert sum(read) == 4
    loss.backward()
    together = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    losses = [
        -F.logsigmoid((a := model(tokens_KT[[i, j]])[:, -1])[0] - a[1]) for i, j in pairs(ranks)
    ]
    assert sum(read) == 4 + 2 * 6
    apart = torch.stack(losses).mean()
    apart.backward()
    assert loss.item() == pytest.approx(apart.item(), abs=1e-6)
    for parameter, expected in zip(model.parameters(), together, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=0, atol=1e-6)


def test_rows_of_fewer_responses_are_padded():
    scores = torch.tensor([[1.0, 2.0, 50.0], [0.3, 0.2, 0.1]])
    ranks = torch.tensor([[1, 0, NO_RESPONSE], [0, 1, 2]])
    alone = [kwise_loss(scores[:1, :2], ranks[:1, :2])[0], kwise_loss(scores[1:], ranks[1:])[0]]
    torch.testing.assert_close(kwise_loss(scores, ranks), torch.stack(alone))


def test_ties_are_dropped():
    scores = torch.randn(1, 3, requires_grad=True)
    loss = kwise_loss(scores, torch.tensor([[1, 1, 1]])).sum()
    loss.backward()
    assert loss.item() == 0
    assert scores.grad.eq(0).all()


def test_comparisons_count_pairs():
    scores = torch.tensor([[3.0, 1.0, 2.0], [1.0, 1.0, 0.0]])
    ranks = torch.tensor([[0, 1, 2], [0, 1, NO_RESPONSE]])
    found = compare_pairs(scores, ranks)
    assert found.pairs.tolist() == [3, 1]
    assert found.correct.tolist() == [2, 0.5]
    assert found.margin.tolist() == [2 + 1 - 1, 0]
