"""A scalar head on a GPT: the reward model (read at a response's last token) and the critic
(read at every token) are the same function, so one initialises the other exactly."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from stages.models.gpt2.modeling_gpt2 import GPT


class RewardModel(nn.Module):
    """A GPT body whose final hidden states are projected to one number a token.

    There is no bias: a shift of all scores lives in `body.ln_f.bias` (see `add_bias`), so that the
    weights remain those of `transformers.GPT2ForSequenceClassification`.
    """

    def __init__(self, body: GPT) -> None:
        super().__init__()
        self.body = body
        self.score = nn.Linear(body.config.hidden_size, 1, bias=False)
        nn.init.normal_(self.score.weight, std=(body.config.hidden_size + 1) ** -0.5)

    def forward(self, tokens_BT: Tensor, *, at_BT: Tensor | None = None) -> Tensor:
        """Scores_BT of every prefix, or scores_N at the positions that `at_BT` marks."""
        x_BTC = self.body.hidden(tokens_BT)
        scores = self.score(x_BTC if at_BT is None else x_BTC[at_BT])
        return cast(Tensor, scores.squeeze(-1))

    @torch.no_grad()
    def add_bias(self, by: float) -> None:
        """Add `by` to every score: score(x + by w/|w|^2) = score(x) + by.

        Raises:
            ValueError: the score's weight is zero, so that no bias can move it.
        """
        direction_C = self.score.weight[0].double()
        squared = direction_C.square().sum()
        if not squared > 0:
            raise ValueError("the score's weight is zero: there is no direction to shift along")
        bias_C = self.body.ln_f.bias
        bias_C.copy_((bias_C.double() + by * direction_C / squared).to(bias_C.dtype))
