"""The mixture-of-experts layer: each token goes to its most probable expert (Fedus et al. 2021).

    x ─ router ─ top-k ─ capacity ─ sort by expert ─ [send] ─ experts ─ [send back] ─ × gate ─ add

y = p_i(x) E_i(x), with the router's probability as the gate. The router computes in float32
(section 2.4). Tokens beyond the capacity of their expert skip the layer on the residual. Sorting
and one grouped product replace the one-hot dispatch, whose cost grows with tokens squared. Padding
is neither sent nor counted: output, capacity, balance and metrics of a sequence are those of its
real tokens.

Communication between processes (experts on other ranks, loads of the whole batch) is an `Exchange`
that training puts into the layer; by default a layer holds all its experts.

Shape suffixes: B groups (sequences), T tokens of a group, N tokens that are real, K choices of a
token, A = N K choices, E experts, C width, I hidden width of an expert, P = B T positions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.models.fused_ops import swiglu
from stages.models.language_model import Routing
from stages.models.language_model_config import ExpertsConfig


class Exchange(Protocol):
    """The communication between the processes that hold the experts."""

    def total(self, counts_E: Tensor) -> Tensor:
        """Return the sum over all processes that train together."""

    def apply(self, experts: Experts, x_AC: Tensor, counts_E: Tensor) -> Tensor:
        """Return the experts' outputs for tokens that are sorted by expert, `counts_E` for each."""


class SingleProcessExchange:
    """No communication: this process holds all experts."""

    def total(self, counts_E: Tensor) -> Tensor:
        """Return the counts."""
        return counts_E

    def apply(self, experts: Experts, x_AC: Tensor, counts_E: Tensor) -> Tensor:
        """Return the experts' outputs."""
        return cast(Tensor, experts(x_AC, counts_E))


class Experts(nn.Module):
    """The feed-forward layers of the experts; this process holds `num_local_experts` of them from
    `first_expert` on."""

    def __init__(
        self, hidden_size: int, intermediate_size: int, num_experts: int, dropout: float
    ) -> None:
        super().__init__()
        self.num_experts, self.dropout = num_experts, dropout
        self.first_expert, self.num_local_experts = 0, num_experts
        self.gate_up = nn.Parameter(torch.empty(num_experts, 2 * intermediate_size, hidden_size))
        self.down = nn.Parameter(torch.empty(num_experts, hidden_size, intermediate_size))

    @torch.no_grad()
    def reset(self, gate_up: Callable[[Tensor], None], down: Callable[[Tensor], None]) -> None:
        """Draw every expert of the layer in turn, and keep those of this process, so that the
        initial weights of an expert do not depend on where it is."""
        for expert in range(self.num_experts):
            for weight, draw in ((self.gate_up, gate_up), (self.down, down)):
                drawn = torch.empty_like(weight[0])
                draw(drawn)
                if self.first_expert <= expert < self.first_expert + self.num_local_experts:
                    weight[expert - self.first_expert].copy_(drawn)

    def forward(self, x_AC: Tensor, counts_E: Tensor) -> Tensor:
        """Return the output of its expert for each token; tokens are sorted by expert, `counts_E`
        for each."""
        ends_E = counts_E.cumsum(0).to(torch.int32)
        hidden_AI = swiglu(_grouped(x_AC, self.gate_up, ends_E))
        if self.dropout:
            hidden_AI = F.dropout(hidden_AI, self.dropout, self.training)
        return _grouped(hidden_AI, self.down, ends_E)


def _grouped(x_AC: Tensor, weight_EIC: Tensor, ends_E: Tensor) -> Tensor:
    """Return x W_e^T for the rows of each expert, which end at `ends_E`."""
    product: Tensor = torch._grouped_mm(x_AC, weight_EIC.transpose(1, 2), offs=ends_E)
    return product


class Dispatch(NamedTuple):
    """The choices that are sent, in the order of the experts."""

    token_A: Tensor
    """The token of each choice that is sent."""
    choice_A: Tensor
    """Its index among all choices, (K, N) row by row."""
    counts_E: Tensor
    """Tokens of each expert."""


class Groups(NamedTuple):
    """The sequences of a batch; capacity and balance are counted over each."""

    group_size: int
    """Positions of a sequence, T."""
    position_N: Tensor
    """The index of each token among the positions of all sequences."""
    tokens_B: Tensor
    """Tokens of each sequence."""

    @classmethod
    def of(cls, x_BTC: Tensor, token_mask_BT: Tensor | None) -> Groups:
        """Return the sequences of a batch, which may contain padding."""
        B, T, _ = x_BTC.shape
        if token_mask_BT is not None:
            return cls(T, token_mask_BT.reshape(-1).nonzero()[:, 0], token_mask_BT.sum(1))
        position_N = torch.arange(B * T, device=x_BTC.device)
        return cls(T, position_N, torch.full((B,), T, device=x_BTC.device))

    @property
    def num(self) -> int:
        """Number of sequences."""
        return len(self.tokens_B)

    @property
    def group_N(self) -> Tensor:  # noqa: N802
        """The sequence of each token."""
        return self.position_N // self.group_size

    def scatter(self, values_NC: Tensor) -> Tensor:
        """Return values at the positions of their tokens, (B, T, C), and 0 elsewhere."""
        C = values_NC.shape[1]
        zeros_PC = values_NC.new_zeros(self.num * self.group_size, C)
        scattered_PC = zeros_PC.index_copy(0, self.position_N, values_NC)
        return scattered_PC.view(self.num, self.group_size, C)


class MoELayer(nn.Module):
    """A feed-forward layer of experts behind a router."""

    def __init__(self, hidden_size: int, intermediate_size: int, config: ExpertsConfig) -> None:
        super().__init__()
        self.config = config
        self.router = nn.Linear(hidden_size, config.num_experts, bias=False)
        self.experts = Experts(hidden_size, intermediate_size, config.num_experts, config.dropout)
        self.exchange: Exchange = SingleProcessExchange()

    def forward(self, x_BTC: Tensor, token_mask_BT: Tensor | None = None) -> tuple[Tensor, Routing]:
        """Return the experts' outputs times their gates (0 for padding, and beyond the capacity),
        and the routing. `token_mask_BT` is False at padding. Default: no padding."""
        groups = Groups.of(x_BTC, token_mask_BT)
        x_NC = x_BTC.flatten(0, 1)
        if token_mask_BT is not None:
            x_NC = x_NC[groups.position_N]
        logits_NE = self._logits(x_NC)
        probs_NE = logits_NE.softmax(-1)
        gates_NK, experts_NK = probs_NE.topk(self.config.top_k, dim=-1)
        if self.config.norm_topk_prob:
            gates_NK = gates_NK / gates_NK.sum(-1, keepdim=True)
        sent = dispatch(experts_NK, groups, self.config.num_experts, self.capacity(groups.tokens_B))
        token_AC = sent.token_A[:, None].expand(-1, x_NC.shape[1])
        outputs_AC = self.exchange.apply(self.experts, x_NC.gather(0, token_AC), sent.counts_E)
        gates_A1 = gates_NK.T.reshape(-1)[sent.choice_A, None].to(outputs_AC.dtype)
        y_NC = torch.zeros_like(x_NC).index_add(0, sent.token_A, outputs_AC * gates_A1)
        y_BTC = y_NC.view_as(x_BTC) if token_mask_BT is None else groups.scatter(y_NC)
        return y_BTC, self._routing(logits_NE, probs_NE, experts_NK, sent, groups)

    def capacity(self, tokens_B: Tensor) -> Tensor | None:
        """Return the tokens that an expert takes of each sequence, from its number of real tokens;
        None for all."""
        config = self.config
        factor = config.capacity_factor if torch.is_grad_enabled() else config.eval_capacity_factor
        if factor is None:
            return None
        even_B = tokens_B.double() * config.top_k / config.num_experts
        return (even_B * factor).ceil().clamp(min=1).long()

    def _logits(self, x_NC: Tensor) -> Tensor:
        """Return the router's logits in float32."""
        x_NC = x_NC.float()
        if self.config.router_jitter and self.training:
            low, high = 1 - self.config.router_jitter, 1 + self.config.router_jitter
            x_NC = x_NC * torch.empty_like(x_NC).uniform_(low, high)
        with torch.autocast(x_NC.device.type, enabled=False):
            return F.linear(x_NC, self.router.weight.float())

    def _routing(
        self,
        logits_NE: Tensor,
        probs_NE: Tensor,
        experts_NK: Tensor,
        sent: Dispatch,
        groups: Groups,
    ) -> Routing:
        """Return the statistics as means over tokens, so that those of several batches combine by
        weighting each with its tokens."""
        chosen_BE = _counts(experts_NK, groups, self.config.num_experts)
        if self.config.aux_loss_scope == "sequence":
            balance = balance_loss(chosen_BE, groups.scatter(probs_NE).sum(1), groups.tokens_B)
        else:
            chosen_1E = self.exchange.total(chosen_BE.sum(0, keepdim=True))
            tokens_1 = groups.tokens_B.sum(0, keepdim=True)
            balance = balance_loss(chosen_1E, probs_NE.sum(0, keepdim=True), tokens_1)
        load_E = chosen_BE.sum(0) / experts_NK.numel()
        with torch.no_grad():
            entropy = -(probs_NE * probs_NE.clamp(min=1e-9).log()).sum(-1).mean()
        dropped = 1 - sent.counts_E.sum() / experts_NK.numel()
        z = logits_NE.logsumexp(-1).square().mean()
        return Routing(balance, z, load_E, dropped, entropy)


def dispatch(experts_NK: Tensor, groups: Groups, num: int, capacity_B: Tensor | None) -> Dispatch:
    """Sort choices by expert, without those beyond the capacity of a sequence and expert.

    First choices come before second ones, earlier tokens before later (Fedus et al. 2021,
    section 2.2; Lepikhin et al. 2020, algorithm 1).
    """
    N, K = experts_NK.shape
    queue_A = (experts_NK.T * groups.num + groups.group_N).reshape(-1)
    sorted_A, choice_A = queue_A.sort(stable=True)
    if capacity_B is not None:
        sizes = torch.bincount(sorted_A, minlength=num * groups.num)
        starts = sizes.cumsum(0) - sizes
        queue_position_A = torch.arange(N * K, device=queue_A.device) - starts[sorted_A]
        kept = queue_position_A < capacity_B[sorted_A % groups.num]
        sorted_A, choice_A = sorted_A[kept], choice_A[kept]
    counts_E = torch.bincount(sorted_A // groups.num, minlength=num)
    return Dispatch(choice_A % N, choice_A, counts_E)


def balance_loss(chosen_BE: Tensor, probs_BE: Tensor, tokens_B: Tensor) -> Tensor:
    """Return E sum_i f_i P_i, mean over tokens (Fedus et al. 2021, equations 4 to 6): 1 if even.

    `chosen_BE` counts choices, without a gradient; `probs_BE` are summed over `tokens_B` tokens.
    """
    shares_BE = chosen_BE / chosen_BE.sum(-1, keepdim=True).clamp(min=1)
    return chosen_BE.shape[-1] * (shares_BE * probs_BE).sum() / tokens_B.sum()


def _counts(experts_NK: Tensor, groups: Groups, num: int) -> Tensor:
    """Return the number of choices per sequence and expert, (B, E) as float32."""
    cell_A = (groups.group_N[:, None] * num + experts_NK).reshape(-1)
    ones_A = torch.ones_like(cell_A, dtype=torch.float32)
    return ones_A.new_zeros(groups.num * num).scatter_add(0, cell_A, ones_A).view(-1, num)
