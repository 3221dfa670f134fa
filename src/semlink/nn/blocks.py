# SPDX-License-Identifier: Apache-2.0
"""Small convolutional blocks shared by encoders, receivers and attackers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """3x3 convolution, optional 2x2 max-pool, batch norm, GELU: ``(B, in, H, W) -> (B, out, H', W')``.

    The pool stands before the norm, so norm and activation run on a quarter of the positions.
    """

    def __init__(self, channels_in: int, channels_out: int, pool: bool = False) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
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
