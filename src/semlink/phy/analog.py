# SPDX-License-Identifier: Apache-2.0
"""Full-resolution analog modulation: two real features ride on the two rails of one complex symbol."""

import math

import torch
from torch import Tensor

from semlink._errors import SemlinkError


def to_symbols(features: Tensor) -> Tensor:
    """Pair features into symbols.

    Args:
        features: (B, d) float32, d even. Entries 2i and 2i + 1 become the real and imaginary part of symbol i.

    Returns:
        (B, d / 2) complex64, scaled by 1 / sqrt(2): features of unit mean square give symbols of unit mean energy.

    Raises:
        SemlinkError: d is odd.
    """
    if features.shape[-1] % 2:
        raise SemlinkError(f"{features.shape[-1]} real features: an even number is needed, two for each complex symbol")
    return torch.view_as_complex(features.float().unflatten(-1, (-1, 2)).contiguous()) / math.sqrt(2)


def to_features(symbols: Tensor) -> Tensor:
    """Undo :func:`to_symbols`: (B, n) complex64 -> (B, 2n) float32."""
    return torch.view_as_real(symbols).flatten(-2) * math.sqrt(2)
