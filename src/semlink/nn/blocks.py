# SPDX-License-Identifier: Apache-2.0
"""Small convolutional blocks shared by encoders, receivers and attackers."""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

_TINY, _SMALL = 4, 16  # positions of a map


class Conv3x3(nn.Conv2d):
    """3x3 convolution without bias, fast on small maps too: ``(B, in, H, W) -> (B, out, H, W)``.

    In bfloat16 on a processor the library's gradient of the weights takes four to ten times as long as a matrix product
    that does the same on maps of 4x4, and so do all three of its products on 2x2. Results agree but for the order of
    sums. Elsewhere it is :class:`torch.nn.Conv2d`.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1, bias=False)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve."""
        small = input.device.type == "cpu" and math.prod(input.shape[2:]) <= _SMALL
        if not small or not torch.is_autocast_enabled("cpu"):
            return super().forward(input)
        kind = torch.get_autocast_dtype("cpu")
        return cast(Tensor, _Small.apply(input.to(kind), self.weight.to(kind)))


class _Small(Function):
    """Convolution of small maps; the gradient of the weights is a matrix product."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _correlate(x, weight)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        slope = slopes[0].contiguous(memory_format=torch.channels_last)
        out, into = weight.shape[:2]
        by_weight = slope.permute(0, 2, 3, 1).reshape(-1, out).T @ _patches(x)
        by_weight = by_weight.view(out, 3, 3, into).permute(0, 3, 1, 2)
        return _correlate(slope, weight.flip(2, 3).transpose(0, 1)), by_weight


def _correlate(x: Tensor, weight: Tensor) -> Tensor:
    if math.prod(x.shape[2:]) > _TINY:
        return F.conv2d(x, weight, padding=1)
    rows = _patches(x) @ weight.permute(2, 3, 1, 0).reshape(-1, len(weight))
    return rows.view(len(x), *x.shape[2:], -1).permute(0, 3, 1, 2)


def _patches(x: Tensor) -> Tensor:
    """Return the 3x3 surroundings of each position, zeros beyond the edge: (B, C, H, W) -> (B H W, 9 C)."""
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
    return padded.unfold(1, 3, 1).unfold(2, 3, 1).permute(0, 1, 2, 4, 5, 3).reshape(-1, 9 * x.shape[1])


class ConvBlock(nn.Sequential):
    """3x3 convolution, optional 2x2 max-pool, batch norm, GELU: ``(B, in, H, W) -> (B, out, H', W')``.

    The pool stands before the norm, so norm and activation run on a quarter of the positions.
    """

    def __init__(self, channels_in: int, channels_out: int, pool: bool = False) -> None:
        super().__init__(
            Conv3x3(channels_in, channels_out),
            nn.MaxPool2d(2) if pool else nn.Identity(),
            nn.BatchNorm2d(channels_out, momentum=0.4),  # short schedules: statistics must follow the weights quickly
            nn.GELU(),
        )


class Residual(nn.Module):
    """``x + block(x)``: ``(B, C, H, W) -> (B, C, H, W)``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = ConvBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the input plus what the block adds to it."""
        return x + self.block(x)


class Whitening(nn.Module):
    """Fixed first layer: decorrelated 2x2 patches and their negatives.

    ``(B, C, H, W) in [0, 1] -> (B, 8 C, H, W)``. The filters are eigenvectors of the patch covariance divided by the
    root of their eigenvalues; they are measured on training images once (:meth:`measure`) and stored as buffers, not
    learned. Source: K. Jordan, arXiv:2404.00498, section 3.2.
    """

    weight: Tensor
    mean: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels_out = 8 * channels
        # Until measured: orthonormal filters, which lose nothing of the image.
        basis = torch.linalg.qr(torch.randn(4 * channels, 4 * channels))[0].T
        self.register_buffer("weight", self._paired(basis, channels))
        self.register_buffer("mean", torch.full((1, channels, 1, 1), 0.5))

    @staticmethod
    def _paired(filters: Tensor, channels: int) -> Tensor:
        filters = filters.reshape(-1, channels, 2, 2)
        return torch.cat([filters, -filters])

    @torch.no_grad()
    def measure(self, images: Tensor) -> None:
        """Set the filters from ``images: (N, C, H, W) float32 in [0, 1]``."""
        channels = images.shape[1]
        self.mean.copy_(images.mean(dim=(0, 2, 3), keepdim=True))
        covariance = torch.zeros(4 * channels, 4 * channels, dtype=torch.float64, device=images.device)
        for part in images.split(500):  # all patches of 5000 CelebA images at once would take 3 GB
            patches = (part - self.mean).unfold(2, 2, 1).unfold(3, 2, 1)
            patches = patches.permute(0, 2, 3, 1, 4, 5).reshape(-1, 4 * channels).double()
            covariance += patches.T @ patches
        positions = len(images) * (images.shape[2] - 1) * (images.shape[3] - 1)
        values, vectors = torch.linalg.eigh((covariance / positions).cpu())
        # The floor keeps nearly constant directions (digits' borders) from being blown up into noise.
        scale = (values + 1e-3 * values.max() + 1e-12).rsqrt()
        filters = (vectors * scale).T.flip(0).to(self.weight)
        self.weight.copy_(self._paired(filters, channels))

    def forward(self, images: Tensor) -> Tensor:
        """Whiten; one row and column of zeros at the far edges keep H and W."""
        return F.conv2d(F.pad(images - self.mean, (0, 1, 0, 1)), self.weight)
