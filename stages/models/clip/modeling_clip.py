"""CLIP: an image tower and a text tower whose embeddings of a pair point the same way.

    pixels ─ ViT or ModifiedResNet ─ embedding ─ / norm ─┐
                                                          ├─ logit = scale · cosine (+ bias)
    tokens ─ TextTransformer ─────── embedding ─ / norm ─┘

The scale is learned as its logarithm. Where the published code sets it back to ln 100 whenever an
update has carried it over, this module takes the lesser of the two on the way forward and hands the
gradient through as if there were no limit: what is computed is what it would be at the limit,
and whoever owns the weight may set it back later (`limit_scale`) without any difference.

Shape suffixes: see `stages.models.clip.towers`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.models.clip.configuration_clip import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from stages.models.clip.resnet import ModifiedResNet
from stages.models.clip.towers import TextTransformer, VisionTransformer

__all__ = ["CLIP", "LOG_SCALE_LIMIT", "CLIPConfig", "ResNetConfig", "TextConfig", "ViTConfig"]

LOG_SCALE_LIMIT = math.log(100)
LOG_SCALE_START = math.log(1 / 0.07)
SIGMOID_START = (math.log(10), -10.0)
"""Scale (its logarithm) and bias of Zhai et al. 2023, section 3.2."""


class CLIP(nn.Module):
    """Both towers and the scale of their cosine."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.visual: VisionTransformer | ModifiedResNet
        if isinstance(config.vision, ViTConfig):
            self.visual = VisionTransformer(config.vision, config)
        else:
            self.visual = ModifiedResNet(config.vision, config.embed_dim)
        self.text = TextTransformer(config.text, config)
        self.log_scale_limit = LOG_SCALE_LIMIT
        self.logit_scale = nn.Parameter(torch.empty(1))
        self.logit_bias = nn.Parameter(torch.empty(1)) if config.bias else None
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Draw the weights anew from torch's global generator."""
        self.visual.reset()
        self.text.reset()
        if self.logit_bias is None:
            self.logit_scale.fill_(LOG_SCALE_START)
        else:
            self.logit_scale.fill_(SIGMOID_START[0])
            self.logit_bias.fill_(SIGMOID_START[1])

    def forward(
        self, pixels_B3HW: Tensor, tokens_BT: Tensor, places_BK: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Both normalised embeddings_BE, the logits' scale and their bias (0 if there is none),
        all in float32. `places_BK`: see `encode_image`."""
        scale = self.scale()
        bias = scale.new_zeros(()) if self.logit_bias is None else self.logit_bias.float().sum()
        image_BE = self.encode_image(pixels_B3HW, places_BK)
        return image_BE, self.encode_text(tokens_BT), scale, bias

    def encode_image(self, pixels_B3HW: Tensor, places_BK: Tensor | None = None) -> Tensor:
        """Embeddings_BE of images, of norm 1; of the patches at `places_BK` alone (ViT)."""
        seen = () if places_BK is None else (places_BK,)
        return F.normalize(self.visual(pixels_B3HW, *seen).float(), dim=1)

    def encode_text(self, tokens_BT: Tensor) -> Tensor:
        """Embeddings_BE of captions, of norm 1. What comes after the first eos does not count."""
        return F.normalize(self.text(tokens_BT).float(), dim=1)

    def scale(self) -> Tensor:
        """What cosines are multiplied by: at most e to `log_scale_limit`, which is 100."""
        log = self.logit_scale.float().sum()
        over = (log - self.log_scale_limit).clamp(min=0).detach()
        return (log - over).exp()

    @torch.no_grad()
    def limit_scale(self) -> None:
        """Set the scale back to its limit."""
        self.logit_scale.clamp_(max=self.log_scale_limit)

    def set_activation_checkpointing(self, on: bool = True) -> None:
        """Whether transformer blocks are computed again in the backward pass, to save memory."""
        for tower in (self.visual, self.text):
            if not isinstance(tower, ModifiedResNet):
                tower.blocks.activation_checkpointing = on
