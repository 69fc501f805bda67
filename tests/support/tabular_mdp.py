"""A problem of reinforcement learning whose optimum is known exactly.

Four prompts; actions 0 (end) and 1..7; at most four tokens, so that all 2,801 responses to a
prompt can be written down and the optimum of E r - beta KL(policy || reference) is
pi* = pi_ref exp(r / beta) / Z. Policies are tables of logits, one row a prefix, in the shape
that the production code samples and trains.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

PROMPTS, ACTIONS, LENGTH, BETA = 4, 8, 4, 0.5
EOS, PAD = 0, 8
OFFSETS = torch.tensor([0, 1, 8, 57])
STATES = 400


def responses() -> tuple[Tensor, Tensor]:
    """Every response: actions (2801, 4) padded with PAD, and its mask."""
    ended = [
        (*head, EOS) for n in range(LENGTH) for head in itertools.product(range(1, 8), repeat=n)
    ]
    cut = list(itertools.product(range(1, 8), repeat=LENGTH))
    rows = [row + (PAD,) * (LENGTH - len(row)) for row in ended + cut]
    actions = torch.tensor(rows)
    return actions, actions != PAD


def states(prompts_B: Tensor, actions_BR: Tensor) -> Tensor:
    """Index_BR of the prefix before each token: prompt, then base-7 code of the actions so far."""
    codes, code_B = [], torch.zeros_like(prompts_B)
    for t in range(actions_BR.shape[1]):
        codes.append(prompts_B * STATES + OFFSETS[t] + code_B)
        code_B = 7 * code_B + (actions_BR[:, t] - 1).clamp(0, 6)
    return torch.stack(codes, 1)


class Places:
    """The prefixes of the newest batch: the policy and the critic ask for the same ones, the policy
    without the last column, which is predicted but not read."""

    def __init__(self) -> None:
        self.tokens: Tensor | None = None

    def marked(self, tokens_BT: Tensor, position_mask_BT: Tensor) -> Tensor:
        if self.tokens is None or self.tokens.data_ptr() != tokens_BT.data_ptr():
            self.tokens = tokens_BT
            actions_BR = F.pad(tokens_BT[:, 1:], (0, 1))[:, :LENGTH]
            self.places_BR = states(tokens_BT[:, 0], actions_BR)
        width = min(self.places_BR.shape[1], position_mask_BT.shape[1])
        return self.places_BR[:, :width][position_mask_BT[:, :width]]


PLACES = Places()


class Prefixes:
    """A cache of a table policy: the tokens themselves."""

    def __init__(self) -> None:
        self.tokens: Tensor | None = None

    def select_rows(self, rows: Tensor) -> None:
        self.tokens = self.tokens[rows]


class TablePolicy(nn.Module):
    """Logits by prefix; the first token of a row is the prompt."""

    def __init__(self, table: np.ndarray) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor(table, dtype=torch.float32))

    def cache(self, batch: int, capacity: int) -> Prefixes:
        return Prefixes()

    def forward(self, tokens_BT, *, mask_BT=None, cache=None, position_mask_BT=None) -> Tensor:
        if cache is not None:
            grown = [tokens_BT] if cache.tokens is None else [cache.tokens, tokens_BT]
            cache.tokens = torch.cat(grown, 1)
            seen = cache.tokens
            place = states(seen[:, 0], torch.cat([seen[:, 1:], seen[:, :1]], 1))[:, -1]
            return self.table[place][:, None] if position_mask_BT is None else self.table[place]
        return self.table[PLACES.marked(tokens_BT, position_mask_BT)]


class TableCritic(nn.Module):
    """Values by prefix, zero at first."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(PROMPTS * STATES))

    def forward(self, tokens_BT, *, position_mask_BT) -> Tensor:
        return self.table[PLACES.marked(tokens_BT, position_mask_BT)]


@dataclass
class Problem:
    """One draw of the problem, with everything enumerated."""

    seed: int

    def __post_init__(self) -> None:
        self.reference = np.random.default_rng(self.seed).normal(size=(PROMPTS * STATES, ACTIONS))
        rng = np.random.default_rng(1000 + self.seed)
        self.unigram = torch.tensor(0.7 * rng.normal(size=(PROMPTS, ACTIONS)))
        self.bigram = torch.tensor(0.7 * rng.normal(size=(ACTIONS + 1, ACTIONS)))
        self.actions, self.mask = responses()
        self.prompts = torch.arange(PROMPTS).repeat_interleave(len(self.actions))
        self.all_actions = self.actions.repeat(PROMPTS, 1)
        self.all_mask = self.mask.repeat(PROMPTS, 1)
        self.places = states(self.prompts, self.all_actions)
        self.rewards = self.reward(self.prompts, self.all_actions).view(PROMPTS, -1)
        self.log_ref = self.log_probs(torch.tensor(self.reference))
        tilted = self.log_ref + self.rewards / BETA
        self.log_z = tilted.logsumexp(1)
        self.log_star = tilted - self.log_z[:, None]
        self.best = (BETA * self.log_z).mean().item()
        self.start = self.objective(torch.tensor(self.reference))

    def reward(self, prompts_B: Tensor, actions_BR: Tensor) -> Tensor:
        """r(x, y): unigrams and bigrams of the tokens before the end, and 1 for ending."""
        total_B = torch.zeros(len(prompts_B), dtype=torch.float64)
        previous_B = torch.full_like(prompts_B, ACTIONS)
        for t in range(actions_BR.shape[1]):
            action_B = actions_BR[:, t]
            said_B = (action_B != EOS) & (action_B != PAD)
            token_B = action_B.clamp(max=ACTIONS - 1)
            gain_B = self.unigram[prompts_B, token_B] + self.bigram[previous_B, token_B]
            total_B += torch.where(said_B, gain_B, 0.0) + (action_B == EOS).double()
            previous_B = torch.where(said_B, token_B, previous_B)
        return total_B

    def log_probs(self, table: Tensor) -> Tensor:
        """log pi(y|x) of every response, (4, 2801)."""
        log_softmax = table.double().log_softmax(-1)
        chosen = log_softmax[self.places, self.all_actions.clamp(max=ACTIONS - 1)]
        return torch.where(self.all_mask, chosen, 0.0).sum(1).view(PROMPTS, -1)

    def objective(self, table: Tensor) -> float:
        """J = E r - beta KL(pi || pi_ref), averaged over the prompts."""
        log_pi = self.log_probs(table)
        return (log_pi.exp() * (self.rewards - BETA * (log_pi - self.log_ref))).sum(1).mean().item()

    def divergence(self, table: Tensor) -> float:
        """KL(pi || pi*), averaged over the prompts."""
        log_pi = self.log_probs(table)
        return (log_pi.exp() * (log_pi - self.log_star)).sum(1).mean().item()

    def gap_closed(self, table: Tensor) -> float:
        """How much of the way from the reference to the optimum is done."""
        return (self.objective(table) - self.start) / (self.best - self.start)
