"""CLIP: an image tower and a text tower whose embeddings of a pair point the same way.

    pixels ─ ViT or ModifiedResNet ─ embedding ─ / norm ─┐
                                                          ├─ logit = scale · cosine (+ bias)
    tokens ─ TextTransformer ─────── embedding ─ / norm ─┘

The scale is learned as its logarithm. The published code resets it to ln 100 after an update that
exceeds it; this module takes the minimum of the two in the forward pass and passes the gradient
through as if there were no limit: the output is that at the limit, and the owner of the weight may
reset it later (`limit_scale`) without any difference.

Shape suffixes: see `stages.models.clip.transformer_blocks`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.models.clip.configuration_clip import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from stages.models.clip.resnet import ModifiedResNet
from stages.models.clip.text_transformer import TextTransformer
from stages.models.clip.vit import VisionTransformer

__all__ = ["CLIP", "LOG_SCALE_LIMIT", "CLIPConfig", "ResNetConfig", "TextConfig", "ViTConfig"]

LOG_SCALE_LIMIT = math.log(100)
LOG_SCALE_START = math.log(1 / 0.07)
SIGMOID_START = (math.log(10), -10.0)
"""Initial logarithm of the scale, and bias (Zhai et al. 2023, section 3.2)."""


class CLIP(nn.Module):
    """Both towers and the scale of their cosine similarity."""

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
        """Draw the weights from torch's global generator."""
        self.visual.reset()
        self.text.reset()
        if self.logit_bias is None:
            self.logit_scale.fill_(LOG_SCALE_START)
        else:
            self.logit_scale.fill_(SIGMOID_START[0])
            self.logit_bias.fill_(SIGMOID_START[1])

    def forward(
        self, pixels_B3HW: Tensor, tokens_BT: Tensor, kept_patches_BK: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return both normalized embeddings_BE, the scale of the logits and their bias (0 by
        default), all in float32. `kept_patches_BK`: see `encode_image`."""
        scale = self.scale()
        bias = scale.new_zeros(()) if self.logit_bias is None else self.logit_bias.float().sum()
        image_BE = self.encode_image(pixels_B3HW, kept_patches_BK)
        return image_BE, self.encode_text(tokens_BT), scale, bias

    def encode_image(self, pixels_B3HW: Tensor, kept_patches_BK: Tensor | None = None) -> Tensor:
        """Return images' embeddings_BE, of norm 1, computed from `kept_patches_BK` alone (ViT)."""
        patches = () if kept_patches_BK is None else (kept_patches_BK,)
        return F.normalize(self.visual(pixels_B3HW, *patches).float(), dim=1)

    def encode_text(self, tokens_BT: Tensor) -> Tensor:
        """Return the embeddings_BE of captions, of norm 1, from the tokens up to the first eos."""
        return F.normalize(self.text(tokens_BT).float(), dim=1)

    def scale(self) -> Tensor:
        """Return the factor of the cosines: at most e to `log_scale_limit`, which is 100."""
        log = self.logit_scale.float().sum()
        over = (log - self.log_scale_limit).clamp(min=0).detach()
        return (log - over).exp()

    @torch.no_grad()
    def limit_scale(self) -> None:
        """Set the scale back to its limit."""
        self.logit_scale.clamp_(max=self.log_scale_limit)

    def set_activation_checkpointing(self, on: bool = True) -> None:
        """Recompute transformer blocks in the backward pass, to save memory, or not."""
        for tower in (self.visual, self.text):
            if isinstance(tower, VisionTransformer | TextTransformer):
                tower.blocks.activation_checkpointing = on
