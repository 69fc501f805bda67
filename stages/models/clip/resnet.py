"""The modified ResNet tower of CLIP (Radford et al. 2021, section 2.4), plain PyTorch.

Against He et al. 2016: a stem of three 3x3 convolutions and an average pool (ResNet-D); every
stride is an average pool before the next 1x1 convolution, which anti-aliases it; at the end
attention over the grid with the query of its mean, instead of a mean.

Batch norms use the statistics of their own forward pass: of one micro-batch on one rank, as
published. Unlike that of the transformers, the function in training therefore depends on how the
global batch is divided into ranks and micro-batches.

Shape suffixes: B batch, F features, H, W height and width, S grid places and their mean, E
dimensions of the common space.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.models.clip.configuration_clip import ResNetConfig

EXPANSION = 4
"""Output channels of a bottleneck per inner channel."""


class Norm(nn.BatchNorm2d):
    """A batch norm whose statistics stay in float32 when the model is cast to half precision: a
    tenth of a small difference would be rounded away, and they would not change."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Norm:
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in self._buffers.items():
            if value is not None and value.dtype in (torch.float16, torch.bfloat16):
                kept = before[name]
                assert kept is not None
                self._buffers[name] = kept.to(value.device, torch.float32)
        return self

    def forward(self, x_BFHW: Tensor) -> Tensor:
        """Normalize by the statistics of the batch (in training) or by the running statistics."""
        mean, var, count = self.running_mean, self.running_var, self.num_batches_tracked
        assert mean is not None and var is not None and count is not None
        if self.training:
            count.add_(1)
        weight, bias = self.weight.to(mean.dtype), self.bias.to(mean.dtype)
        momentum = cast(float, self.momentum)
        return F.batch_norm(x_BFHW, mean, var, weight, bias, self.training, momentum, self.eps)


class Bottleneck(nn.Module):
    """1x1, 3x3, (average pool), 1x1, added to a shortcut of the same shape."""

    def __init__(self, into: int, planes: int, stride: int, *, shortcut: bool) -> None:
        super().__init__()
        out = planes * EXPANSION
        self.stride = stride
        self.conv1 = nn.Conv2d(into, planes, 1, bias=False)
        self.bn1 = Norm(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = Norm(planes)
        self.conv3 = nn.Conv2d(planes, out, 1, bias=False)
        self.bn3 = Norm(out)
        self.shortcut = _shortcut(into, out) if shortcut else None

    def forward(self, x_BFHW: Tensor) -> Tensor:
        """Return the output of the block."""
        y = F.relu(self.bn1(self.conv1(x_BFHW)))
        y = self._pool(F.relu(self.bn2(self.conv2(y))))
        y = self.bn3(self.conv3(y))
        rest = x_BFHW if self.shortcut is None else self.shortcut(self._pool(x_BFHW))
        return F.relu(y + rest)

    def _pool(self, x_BFHW: Tensor) -> Tensor:
        return F.avg_pool2d(x_BFHW, self.stride) if self.stride > 1 else x_BFHW


def _shortcut(into: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(into, out, 1, bias=False), Norm(out))


class AttentionPool(nn.Module):
    """Attention over a grid and its mean, with the query of the mean only."""

    def __init__(self, shape: ResNetConfig, embed: int) -> None:
        super().__init__()
        self.num_heads = shape.num_heads
        width = shape.features
        self.position_embedding = nn.Parameter(torch.empty(shape.side**2 + 1, width))
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.proj = nn.Linear(width, embed)

    def forward(self, x_BFHW: Tensor) -> Tensor:
        """Return the embeddings_BE."""
        x_BSF = x_BFHW.flatten(2).transpose(1, 2)
        x_BSF = torch.cat([x_BSF.mean(1, keepdim=True), x_BSF], 1) + self.position_embedding
        q, k, v = (
            self._heads(part) for part in (self.q(x_BSF[:, :1]), self.k(x_BSF), self.v(x_BSF))
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return cast(Tensor, self.proj(y.transpose(1, 2).flatten(1)))

    def _heads(self, x_BSF: Tensor) -> Tensor:
        B, S, width = x_BSF.shape
        return x_BSF.view(B, S, self.num_heads, width // self.num_heads).transpose(1, 2)


class ModifiedResNet(nn.Module):
    """The ResNet tower: images to embeddings."""

    def __init__(self, shape: ResNetConfig, embed: int) -> None:
        super().__init__()
        self.shape = shape
        half, width = shape.width // 2, shape.width
        self.conv1 = nn.Conv2d(3, half, 3, stride=2, padding=1, bias=False)
        self.bn1 = Norm(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.bn2 = Norm(half)
        self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False)
        self.bn3 = Norm(width)
        self.groups = nn.ModuleList(
            _group(
                width if not i else EXPANSION * (width << (i - 1)), width << i, count, 1 + (i > 0)
            )
            for i, count in enumerate(shape.blocks)
        )
        self.pool = AttentionPool(shape, embed)

    @torch.no_grad()
    def reset(self) -> None:
        """Draw the weights: PyTorch's initialization for convolutions, every block a shortcut."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d | Norm):
                module.reset_parameters()
        for group in self.groups:
            for block in cast(nn.Sequential, group):
                cast(Bottleneck, block).bn3.weight.zero_()
        std = self.shape.features**-0.5
        for name, parameter in self.pool.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            else:
                parameter.normal_(std=std)

    def forward(self, pixels_B3HW: Tensor) -> Tensor:
        """Return the embeddings_BE, not normalized.

        Raises:
            ValueError: the images have another size.
        """
        size = self.shape.image_size
        if pixels_B3HW.shape[1:] != (3, size, size):
            given = "x".join(map(str, pixels_B3HW.shape[1:]))
            raise ValueError(f"images are 3x{size}x{size} here, not {given}")
        x = pixels_B3HW.to(self.conv1.weight.dtype, memory_format=torch.channels_last)
        x = F.relu(self.bn1(self.conv1(x)))  # channels last is a third faster
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu(self.bn3(self.conv3(x))), 2)
        for group in self.groups:
            x = group(x)
        return cast(Tensor, self.pool(x))


def _group(into: int, planes: int, count: int, stride: int) -> nn.Sequential:
    first = Bottleneck(into, planes, stride, shortcut=True)
    out = planes * EXPANSION
    return nn.Sequential(
        first, *(Bottleneck(out, planes, 1, shortcut=False) for _ in range(count - 1))
    )
