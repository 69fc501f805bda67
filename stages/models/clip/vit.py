"""The vision transformer of CLIP.

    pixels - patches - linear - (class, +positions) - ln_pre - blocks - [class] - ln_post - proj

Shape suffixes: see `stages.models.clip.transformer_blocks`.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from stages.models.clip.configuration_clip import CLIPConfig, ViTConfig
from stages.models.clip.transformer_blocks import ClipBlocks


class VisionTransformer(nn.Module):
    """The vision transformer: images to embeddings by a class token.

    Patches that are dropped cost nothing (Li et al. 2022, "FLIP"). The class token always stays.
    """

    def __init__(self, shape: ViTConfig, config: CLIPConfig) -> None:
        super().__init__()
        self.shape = shape
        self.patch = nn.Linear(3 * shape.patch_size**2, shape.hidden_size, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(shape.hidden_size))
        self.position_embedding = nn.Parameter(torch.empty(shape.patches + 1, shape.hidden_size))
        self.ln_pre = nn.LayerNorm(shape.hidden_size, eps=config.norm_eps)
        self.blocks = ClipBlocks(shape, config, causal=False)
        self.ln_post = nn.LayerNorm(shape.hidden_size, eps=config.norm_eps)
        self.proj = nn.Linear(shape.hidden_size, config.embed_dim, bias=False)

    @torch.no_grad()
    def reset(self) -> None:
        """Draw the weights."""
        self.blocks.reset()
        self.patch.weight.normal_(std=(3 * self.patch.in_features) ** -0.5)
        for parameter in (self.class_embedding, self.position_embedding, self.proj.weight):
            parameter.normal_(std=self.shape.hidden_size**-0.5)
        for norm in (self.ln_pre, self.ln_post):
            norm.reset_parameters()

    def forward(self, pixels_B3HW: Tensor, kept_patches_BK: Tensor | None = None) -> Tensor:
        """Return the embeddings_BE, not normalized.

        Args:
            pixels_B3HW: the images.
            kept_patches_BK: the patches of each image that are kept. Default: all.

        Raises:
            ValueError: the images have another size.
        """
        size = self.shape.image_size
        if pixels_B3HW.shape[1:] != (3, size, size):
            given = "x".join(map(str, pixels_B3HW.shape[1:]))
            raise ValueError(f"images are 3x{size}x{size} here, not {given}")
        patches_BNP = split_patches(pixels_B3HW.to(self.patch.weight.dtype), self.shape.patch_size)
        positions_NC = self.position_embedding[1:]
        if kept_patches_BK is None:
            x_BNC = self.patch(patches_BNP) + positions_NC
        else:
            columns = kept_patches_BK[..., None].expand(-1, -1, patches_BNP.shape[2])
            x_BNC = self.patch(patches_BNP.gather(1, columns)) + positions_NC[kept_patches_BK]
        first_B1C = (self.class_embedding + self.position_embedding[0]).expand(len(x_BNC), 1, -1)
        first_B = torch.zeros(len(x_BNC), dtype=torch.long, device=x_BNC.device)
        x_BC = self.blocks(self.ln_pre(torch.cat([first_B1C, x_BNC], 1)), first_B)
        return cast(Tensor, self.proj(self.ln_post(x_BC)))


def split_patches(pixels_B3HW: Tensor, side: int) -> Tensor:
    """Return the patches_BNP of images, row by row; channels, rows and columns of a patch in that
    order."""
    B, _, H, W = pixels_B3HW.shape
    grid = pixels_B3HW.view(B, 3, H // side, side, W // side, side)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(B, -1, 3 * side * side)
