"""The Switch layer against a loop over tokens in float64; capacity, balance, init."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from stages.models.language_model import ForwardOutputs
from stages.models.language_model_config import ExpertsConfig
from stages.models.llama.configuration_llama import LlamaConfig
from stages.models.llama.modeling_llama import Llama
from stages.models.moe import Groups, MoELayer, balance_loss, dispatch

C, INNER = 16, 24


def layer(**fields) -> MoELayer:
    torch.manual_seed(0)
    made = MoELayer(
        C, INNER, ExpertsConfig(**{"num_experts": 4, "capacity_factor": None, **fields})
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.3)
    return made


def by_token(switch: MoELayer, x_BTC: torch.Tensor, factor: float | None) -> torch.Tensor:
    """The paper's words, one token after another: first choices are served first."""
    config, B, T = switch.config, *x_BTC.shape[:2]
    router, up, down = (
        w.detach().double()
        for w in (switch.router.weight, switch.experts.gate_up, switch.experts.down)
    )
    room = math.inf if factor is None else math.ceil(T * config.top_k / config.num_experts * factor)
    y_BTC = torch.zeros_like(x_BTC, dtype=torch.float64)
    for b in range(B):
        taken = [0] * config.num_experts
        for choice in range(config.top_k):
            for t in range(T):
                x = x_BTC[b, t].double()
                probs = (router @ x).softmax(0)
                gates, experts = probs.topk(config.top_k)
                if config.norm_topk_prob:
                    gates = gates / gates.sum()
                e = int(experts[choice])
                if taken[e] < room:
                    taken[e] += 1
                    g, u = (up[e] @ x).chunk(2)
                    y_BTC[b, t] += gates[choice] * (down[e] @ (F.silu(g) * u))
    return y_BTC


@pytest.mark.parametrize("factor", [None, 0.5, 1.0, 1.25])
@pytest.mark.parametrize(("top_k", "normalize"), [(1, False), (2, False), (2, True)])
def test_the_layer_is_the_loop_over_tokens(factor, top_k, normalize):
    switch = layer(top_k=top_k, norm_topk_prob=normalize, capacity_factor=factor)
    x_BTC = torch.randn(3, 10, C)
    y_BTC, routing = switch(x_BTC)
    torch.testing.assert_close(y_BTC.double(), by_token(switch, x_BTC, factor), rtol=0, atol=1e-5)
    kept = 1 - routing.dropped.item()
    assert (kept == 1.0) is (factor is None) or factor == 1.25


def test_gradients_are_those_of_the_loop_over_experts():
    switch = layer().double().float()
    x_BTC = torch.randn(2, 12, C, requires_grad=True)
    switch(x_BTC)[0].square().sum().backward()
    found = {n: p.grad.clone() for n, p in switch.named_parameters()} | {"x": x_BTC.grad.clone()}
    switch.zero_grad()
    x_NC = x_BTC.detach().reshape(-1, C).requires_grad_()
    probs = switch.router(x_NC).softmax(-1)
    gate, chosen = probs.max(-1)
    y_NC = torch.zeros(24, C)
    for e in range(4):
        mine = (chosen == e).nonzero()[:, 0]
        g, u = (x_NC[mine] @ switch.experts.gate_up[e].T).chunk(2, -1)
        y_NC = y_NC.index_add(
            0, mine, gate[mine, None] * ((F.silu(g) * u) @ switch.experts.down[e].T)
        )
    y_NC.square().sum().backward()
    for name, parameter in switch.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["x"].view(-1, C), x_NC.grad, rtol=1e-4, atol=1e-6)


def test_capacity_differs_between_training_and_evaluation():
    switch = layer(capacity_factor=0.25, eval_capacity_factor=2.0)
    x_BTC = torch.randn(2, 16, C)
    assert switch(x_BTC)[1].dropped > 0.3
    with torch.no_grad():
        wide = switch(x_BTC)[0]
    torch.testing.assert_close(wide.double(), by_token(switch, x_BTC, 2.0), rtol=0, atol=1e-5)


def test_how_a_batch_is_split_does_not_matter():
    """Capacity is counted over sequences."""
    switch = layer(capacity_factor=0.75)
    x_BTC = torch.randn(4, 9, C)
    whole = switch(x_BTC)[0]
    parts = [switch(part)[0] for part in x_BTC.split(1)]
    torch.testing.assert_close(torch.cat(parts), whole)


@pytest.mark.parametrize("over", ["sequence", "batch"])
def test_padding_is_neither_sent_nor_counted(over):
    """A padded batch is to the layer what its sequences are without their padding."""
    switch = layer(capacity_factor=0.75, aux_loss_scope=over)
    rows = [torch.randn(1, length, C) for length in (9, 4, 6)]
    x_BTC, token_mask_BT = torch.full((3, 9, C), 7.0), torch.zeros(3, 9, dtype=torch.bool)
    for b, row_1TC in enumerate(rows):
        x_BTC[b, : row_1TC.shape[1]], token_mask_BT[b, : row_1TC.shape[1]] = row_1TC[0], True
    x_BTC.requires_grad_()
    y_BTC, routing = switch(x_BTC, token_mask_BT)
    alone = [switch(row_1TC) for row_1TC in rows]
    torch.testing.assert_close(y_BTC[token_mask_BT], torch.cat([y[0] for y, _ in alone]))
    assert y_BTC[~token_mask_BT].eq(0).all()
    figures = ["z", "load_E", "dropped", "entropy", *(["balance"] if over == "sequence" else [])]
    for figure in figures:
        weighed = [getattr(told, figure) * y.shape[1] / 19 for y, told in alone]
        torch.testing.assert_close(getattr(routing, figure), sum(weighed), msg=figure)
    (y_BTC.square().sum() + routing.balance + routing.z).backward()
    assert x_BTC.grad[~token_mask_BT].eq(0).all()
    assert x_BTC.grad[token_mask_BT].ne(0).any(-1).all()


def test_an_expert_without_tokens_has_a_gradient_of_zero():
    switch = layer()
    with torch.no_grad():
        switch.router.weight.zero_()
        switch.router.weight[1] = 1.0
    switch(torch.rand(1, 5, C))[0].sum().mul(1.0).square().backward()
    got = switch.experts.gate_up.grad.abs().amax((1, 2))
    assert got[1] > 0
    assert got[[0, 2, 3]].eq(0).all()


def test_balance_loss_is_its_formula():
    chosen = torch.tensor([[6.0, 2.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    probs = torch.tensor([[0.5, 0.3, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])
    first = 4 * (0.75 * 0.5 + 0.25 * 0.3)
    assert balance_loss(chosen, 8 * probs, torch.tensor([8, 8])).item() == pytest.approx(
        (first + 1.0) / 2
    )


@pytest.mark.parametrize("over", ["sequence", "batch"])
def test_the_layer_reports_balance_z_load_and_entropy(over):
    switch = layer(aux_loss_scope=over)
    x_BTC = torch.randn(2, 8, C)
    routing = switch(x_BTC)[1]
    logits = x_BTC @ switch.router.weight.T
    probs, chosen = logits.softmax(-1), F.one_hot(logits.argmax(-1), 4).float()
    if over == "batch":
        wanted = 4 * (chosen.mean((0, 1)) * probs.mean((0, 1))).sum()
    else:
        wanted = (4 * (chosen.mean(1) * probs.mean(1)).sum(-1)).mean()
    torch.testing.assert_close(routing.balance, wanted)
    torch.testing.assert_close(routing.z, logits.logsumexp(-1).square().mean())
    torch.testing.assert_close(routing.load_E, chosen.mean((0, 1)))
    entropy = torch.distributions.Categorical(probs=probs).entropy().mean()
    torch.testing.assert_close(routing.entropy, entropy)


def test_balance_pulls_towards_the_even_load():
    """Gradient steps on the balance loss alone even out a router that sends all to one expert."""
    switch = layer(aux_loss_scope="batch")
    with torch.no_grad():
        switch.router.weight[0] += 0.5
    x_BTC = torch.rand(4, 32, C)
    before = switch(x_BTC)[1].load_E.max().item()
    sgd = torch.optim.SGD(switch.parameters(), lr=0.5)
    for _ in range(60):
        sgd.zero_grad()
        switch(x_BTC)[1].balance.backward()
        sgd.step()
    assert before > 0.9
    assert switch(x_BTC)[1].load_E.max().item() < 0.6


def test_jitter_multiplies_the_routers_input_alone_and_in_training_alone():
    """All experts are one and the router reads one channel, which is 1: so a token's gate tells by
    what that was multiplied, and nothing else may change."""
    switch = layer(num_experts=2, router_jitter=0.2)
    with torch.no_grad():
        switch.experts.gate_up[1], switch.experts.down[1] = (
            switch.experts.gate_up[0], switch.experts.down[0]
        )  # fmt: skip
        switch.router.weight.zero_()
        switch.router.weight[0, 3] = 1.0
        x_BTC = torch.randn(40, 100, C)
        x_BTC[:, :, 3:5] = 1.0
        (jittered, again), still = (switch(x_BTC)[0], switch(x_BTC)[0]), switch.eval()(x_BTC)[0]
        assert torch.equal(switch(x_BTC)[0], still)
        assert not torch.equal(jittered, again)
        torch.testing.assert_close(still.double(), by_token(switch, x_BTC, None), rtol=0, atol=1e-5)
        ratio_BT = (jittered * still).sum(-1) / still.square().sum(-1)
        torch.testing.assert_close(jittered, still * ratio_BT[..., None])
        factors = (ratio_BT * torch.tensor(1.0).sigmoid()).logit().flatten().sort().values
        even = torch.linspace(0.8, 1.2, len(factors))
        torch.testing.assert_close(factors, even, rtol=0, atol=0.4 * 0.03)
        assert factors[0] > 0.8 - 1e-5 and factors[-1] < 1.2 + 1e-5
        switch.router.weight[1, 4] = 1.0
        pulls = switch.train()(x_BTC)[0].norm(dim=-1) / switch.eval()(x_BTC)[0].norm(dim=-1)
        assert pulls.max() > 1.1, "each channel has a factor of its own"


def test_dropout_of_experts_drops_their_share_of_the_hidden_layer_in_training_alone():
    """All experts are one, and each number that comes out is the sum of two hidden ones, which go
    missing each on its own."""
    p, half = 0.3, INNER // 2
    switch = layer(dropout=p)
    with torch.no_grad():
        switch.experts.gate_up.copy_(switch.experts.gate_up[:1].clone())
        switch.experts.down.zero_()
        for hidden in range(INNER):
            switch.experts.down[:, hidden % half, hidden] = 1.0
        x_BTC = torch.randn(20, 50, C)
        dropped_BTC, whole_BTC = switch(x_BTC)[0], switch.eval()(x_BTC)[0]
        assert torch.equal(switch(x_BTC)[0], whole_BTC)
        gate_BT1 = switch.router(x_BTC).softmax(-1).amax(-1, keepdim=True)
        gate, up = (x_BTC @ switch.experts.gate_up[0].T).chunk(2, -1)
        one, other = (gate_BT1 * F.silu(gate) * up).chunk(2, -1)
        torch.testing.assert_close(whole_BTC[..., :half], one + other, rtol=0, atol=1e-5)
        kept = torch.stack([0 * one, one, other, one + other]) / (1 - p)
        apart, which = (dropped_BTC[..., :half] - kept).abs().min(0)
    assert apart.max() < 1e-5
    # Where a hidden number is near 0, kept and dropped look alike.
    clear = (one.abs() > 1e-3) & (other.abs() > 1e-3) & ((one + other).abs() > 1e-3)
    shares = torch.bincount(which[clear], minlength=4) / clear.sum()
    wanted = torch.tensor([p * p, p * (1 - p), p * (1 - p), (1 - p) ** 2])
    torch.testing.assert_close(shares, wanted, rtol=0, atol=0.02)


def test_first_choices_are_served_before_second_ones():
    experts_NK = torch.tensor([[0, 1], [1, 0], [1, 0], [0, 1]])
    one = Groups(4, torch.arange(4), torch.tensor([4]))
    sent = dispatch(experts_NK, one, 2, torch.tensor([2]))
    assert sent.counts_E.tolist() == [2, 2]
    assert sent.token_A.tolist() == [0, 3, 1, 2], "every token keeps its first choice alone"


def test_experts_start_apart_and_alike_wherever_they_live():
    experts = started().layers[1].feed_forward.experts.gate_up.detach()
    for one in range(8):
        for other in range(one):
            assert (experts[one] - experts[other]).abs().mean() > 0.01


def test_matrices_start_from_a_normal_cut_at_two_deviations():
    """With experts, at a tenth of the usual variance (Fedus et al. 2021, section 2.4): of
    sqrt(0.1 / fan-in), whatever the matrix."""
    matrices = {n: p.detach() for n, p in started().named_parameters() if "norm" not in n}
    del matrices["embedding.weight"]
    fans = {name: weight.shape[-1] for name, weight in matrices.items()}
    at = "layers.1.feed_forward."
    assert [fans[at + n] for n in ("router.weight", "experts.gate_up", "experts.down")] == [
        64, 64, 96
    ]  # fmt: skip
    for name, weight in matrices.items():
        unit = weight / math.sqrt(0.1 / fans[name])
        error = 4 / math.sqrt(2 * unit.numel())
        assert 1.9 < unit.abs().max() <= 2 + 1e-5, name
        assert unit.std().item() == pytest.approx(0.8796, rel=error), f"{name}: of the cut normal"
        assert abs(unit.mean()) < error, name


def started() -> Llama:
    """A decoder as it starts."""
    torch.manual_seed(3)
    return Llama(LlamaConfig(
        vocab_size=32, context_length=8, num_layers=2, hidden_size=64, num_heads=2, num_kv_heads=2,
        intermediate_size=96, head_size=32,
        experts=ExpertsConfig(num_experts=8, moe_every=2), init_scale=0.1,
    ))  # fmt: skip


def test_a_trace_holds_one_routing_a_layer_and_the_cross_entropy():
    config = LlamaConfig(
        vocab_size=32, context_length=8, num_layers=4, hidden_size=16, num_heads=2, num_kv_heads=1,
        intermediate_size=16, head_size=8,
        experts=ExpertsConfig(num_experts=2, moe_every=2),
    )  # fmt: skip
    model, tokens_BT = Llama(config), torch.randint(0, 32, (2, 8))
    outputs = ForwardOutputs()
    plain = model(tokens_BT, targets_BT=tokens_BT)
    total = model(tokens_BT, targets_BT=tokens_BT, z_coef=0.1, outputs=outputs)
    assert len(outputs.routing) == 2
    torch.testing.assert_close(outputs.cross_entropy, plain.detach())
    logits = model(tokens_BT)
    z = 0.1 * logits.logsumexp(-1).square().sum()
    torch.testing.assert_close(total, plain + z)
    assert not outputs.cross_entropy.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 5}, r"top_k \(5\) is more than num_experts \(4\)"),
        ({"moe_every": 0}, "moe_every\n.*greater than or equal to 1"),
        ({"capacity_factor": 0.0}, "capacity_factor\n.*greater than 0"),
        ({"router_jitter": 1.0}, "router_jitter\n.*less than 1"),
    ],
)
def test_impossible_experts_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        ExpertsConfig(**{"num_experts": 4, **change})
