"""A scalar head on a language model.

The reward model (read at a response's last token) and the critic (read at every token) are the same
function, so one initializes the other exactly.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from stages.models.language_model import ForwardOutputs, LanguageModel


class RewardModel(nn.Module):
    """The body of a language model whose final hidden states are projected to one number per token.

    The head has no bias, so that the weights are those of the `...ForSequenceClassification` of
    `transformers`: a shift of all scores (`add_bias`) goes into the bias of the last normalization,
    or into `score_bias` if that has none.
    """

    def __init__(self, body: LanguageModel, *, score_bias: float = 0.0) -> None:
        super().__init__()
        body.drop_lm_head()
        self.body = body
        self.score_bias = score_bias
        self.score = nn.Linear(body.config.hidden_size, 1, bias=False)
        nn.init.normal_(self.score.weight, std=(body.config.hidden_size + 1) ** -0.5)

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        position_mask_BT: Tensor | None = None,
        token_mask_BT: Tensor | None = None,
        outputs: ForwardOutputs | None = None,
    ) -> Tensor:
        """Return the scores_BT of every prefix, or scores_N at the positions that
        `position_mask_BT` marks.

        `token_mask_BT` and `outputs` as in `LanguageModel.forward`.
        """
        x_BTC = self.body.hidden(tokens_BT, token_mask_BT=token_mask_BT, outputs=outputs)
        scores = self.score(x_BTC if position_mask_BT is None else x_BTC[position_mask_BT])
        scores = cast(Tensor, scores.squeeze(-1))
        return scores + self.score_bias if self.score_bias else scores

    @torch.no_grad()
    def add_bias(self, bias: float) -> None:
        """Add a number to every score.

        With a bias in the last normalization: score(x + b w/|w|^2) = score(x) + b.

        Raises:
            ValueError: the score's weight is zero, so that no bias can shift it.
        """
        norm_bias_C = self.body.last_norm_bias
        if norm_bias_C is None:
            self.score_bias += bias
            return
        direction_C = self.score.weight[0].double()
        squared = direction_C.square().sum()
        if not squared > 0:
            raise ValueError("the score's weight is zero: there is no direction to shift along")
        shifted_C = norm_bias_C.double() + bias * direction_C / squared
        norm_bias_C.copy_(shifted_C.to(norm_bias_C.dtype))
