# SPDX-License-Identifier: Apache-2.0
"""Inversion of what a permutation leaves: decoders against a fresh key for each message.

                     ┌─ sorted-inversion:  sort(y), sort(|y|) ──────────────────────────────┐
    shuffled y (d) ──┤                                                                      ├─> ImageDecoder ─> image
                     └─ set-inversion:     each y[j] ─> embedding (d) ─> mean and maximum ──┘

A key that serves once cannot be recovered, but the order of the features is all that it hides: their multiset goes
through, and so do the magnitudes if signs are flipped too. Either network sees no more than that, so it has nothing to
learn about permutations. Sorting is complete, and at high SNR precise. The set network smooths: noise swaps neighbours
in a sorted list, and moves a mean only a little.

May see and may not see: as Inversion, of which only the input of the decoder changes; the loss is the same.

Sources: M. Zaheer et al., "Deep sets", NeurIPS 2017. E. Wagstaff et al., "On the limitations of representing functions
on sets", ICML 2019: a set of d numbers is represented in full by d sums, not by fewer; hence the embedding's width.
Feeding both to an inversion is ours.
"""

import torch
from torch import Tensor, nn

from semlink.attacks.base import Tap, attacks
from semlink.attacks.inversion import Inversion
from semlink.nn import ImageDecoder

_HIDDEN = 64  # units of the embedding's first layer


@attacks.register("sorted-inversion")
class SortedInversion(Inversion):
    """Inversion from sorted features and sorted magnitudes; arguments and errors as of Inversion.

    Both go in, for nothing that she hears says whether signs are flipped.
    """

    def __init__(self, tap: Tap, width: int, taps: int) -> None:
        super().__init__(tap, width, taps)
        self.decoder = nn.Sequential(Sorted(), ImageDecoder(2 * tap.features, tap.image_shape, width))


@attacks.register("set-inversion")
class SetInversion(Inversion):
    """Inversion by a set network; arguments and errors as of Inversion."""

    def __init__(self, tap: Tap, width: int, taps: int) -> None:
        super().__init__(tap, width, taps)
        pooled = Pooled(tap.features)
        self.decoder = nn.Sequential(pooled, ImageDecoder(2 * tap.features, tap.image_shape, width))


class Sorted(nn.Module):
    """``(B, d) -> (B, 2d)``: the values, then the magnitudes, each from low to high."""

    def forward(self, features: Tensor) -> Tensor:
        """Sort a batch of features."""
        return torch.cat([features.sort(dim=1).values, features.abs().sort(dim=1).values], dim=1)


class Pooled(nn.Module):
    """``(B, d) -> (B, 2d)``: mean and maximum over the positions of d learned functions of one feature.

    The pools are standardised: two images differ little in them beside what all images share.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.embedding = nn.Sequential(nn.Linear(1, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, features), nn.GELU())
        self.standard = nn.BatchNorm1d(2 * features, momentum=0.4, affine=False)  # as in ConvBlock

    def forward(self, features: Tensor) -> Tensor:
        """Embed and pool a batch of features."""
        embedded = self.embedding(features[..., None])  # (B, d, d)
        return self.standard(torch.cat([embedded.mean(1, dtype=torch.float32), embedded.amax(1).float()], dim=1))
