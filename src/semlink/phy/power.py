# SPDX-License-Identifier: Apache-2.0
"""The power constraint: unit mean energy per complex symbol, image by image."""

import torch
from torch import Tensor


def normalise_power(symbols: Tensor) -> Tensor:
    """Scale each image's symbols to unit mean energy.

    Args:
        symbols: (B, n) complex64.

    Returns:
        (B, n) complex64 with ``mean |x|^2 = 1`` per row, whatever the other rows hold; a row of zeros stays zero.
    """
    rails = torch.view_as_real(symbols)
    # Dividing by the largest entry first keeps the squares inside float32's range. The result does not depend on that
    # divisor, so detaching it leaves the gradient right.
    peak = rails.detach().abs().amax(dim=(1, 2), keepdim=True)
    silent = peak == 0
    rails = rails / peak.clamp_min(torch.finfo(rails.dtype).tiny).masked_fill(silent, 1)
    energy = rails.square().sum(dim=2, keepdim=True).mean(dim=1, keepdim=True)
    return torch.view_as_complex(rails * energy.masked_fill(silent, 1).rsqrt())


def mean_power(symbols: Tensor) -> Tensor:
    """Return the mean of ``|x|^2`` per image: (B, n) complex64 -> (B,) float32."""
    return torch.view_as_real(symbols).square().sum(dim=2).mean(dim=1)


def peak_power(symbols: Tensor) -> Tensor:
    """Return the largest ``|x|^2`` per image: (B, n) complex64 -> (B,) float32."""
    return torch.view_as_real(symbols).square().sum(dim=2).amax(dim=1)
