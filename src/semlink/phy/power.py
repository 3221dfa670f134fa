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
    # In float64 no square leaves the range, whatever the scale of a row.
    norm = torch.linalg.vector_norm(rails.flatten(1), dim=1, dtype=torch.float64)
    scale = symbols.shape[1] ** 0.5 / norm.masked_fill(norm == 0, 1)
    scale = scale.clamp_max(torch.finfo(rails.dtype).max).to(rails.dtype)  # of a row that is nearly zero
    return torch.view_as_complex(rails * scale[:, None, None])


def mean_power(symbols: Tensor) -> Tensor:
    """Return the mean of ``|x|^2`` per image: (B, n) complex64 -> (B,) float32."""
    return torch.view_as_real(symbols).square().sum(dim=2).mean(dim=1)


def peak_power(symbols: Tensor) -> Tensor:
    """Return the largest ``|x|^2`` per image: (B, n) complex64 -> (B,) float32."""
    return torch.view_as_real(symbols).square().sum(dim=2).amax(dim=1)
