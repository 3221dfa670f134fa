# SPDX-License-Identifier: Apache-2.0
"""The strongest black-box inversion: several decoders, each with a start and noise of its own, and their mean.

                                          ┌─> ImageDecoder ─> clamp ─┐
    intercepted ──────────────────────────┼─> ImageDecoder ─> clamp ─┼─> mean ─> reconstruction
    (in training: one for each decoder)   └─> UNetDecoder  ─> clamp ─┘

The best drawing, in squared error, is the posterior mean of the image. Each decoder estimates it with errors of its
own, from where it started, what it heard and how it is built; the mean of all has the squared error of the mean member
less the variance among them (A. Krogh and J. Vedelsby, "Neural network ensembles, cross validation, and active
learning", NIPS 1994). A defence that was trained against one adversary may hide from one decoder what another
finds.

Loss: in training the mean of the members' own; in evaluation that of the mean drawing, so the weights that are selected
are the ensemble's best.

May see and may not see: as Inversion.

Source: the ensemble is ours; restarts and other architectures are what evaluations of adversarial defences ask for (N.
Carlini et al., "On evaluating adversarial robustness", arXiv:1902.06705).
"""

import torch
from torch import Tensor, nn

from semlink.attacks.base import Tap, attacks
from semlink.attacks.inversion import Inversion
from semlink.nn import ImageDecoder
from semlink.nn.drawers import UNetDecoder

_KINDS = (ImageDecoder, ImageDecoder, UNetDecoder)


@attacks.register("ensemble-inversion")
class EnsembleInversion(Inversion):
    """Inversion by the mean of three decoders; arguments and errors as of Inversion."""

    def __init__(self, tap: Tap, width: int, taps: int) -> None:
        super().__init__(tap, width, taps)
        self.decoder = Ensemble([kind(tap.features, tap.image_shape, width) for kind in _KINDS])

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return losses as Inversion does; in training each member has a transmission of its own."""
        own = images.repeat(len(_KINDS), 1, 1, 1) if self.training else images
        return super().forward(own, targets, generator)


class Ensemble(nn.Module):
    """``(B, features) -> (B, C, H, W)``: the mean of what members draw, clamped to [0, 1].

    In training, ``(M B, features) -> (M B, C, H, W)``: each of the M members draws its own share, unclamped.
    """

    def __init__(self, members: list[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, features: Tensor) -> Tensor:
        """Draw."""
        if self.training:
            shares = zip(self.members, features.chunk(len(self.members)), strict=True)
            return torch.cat([member(share) for member, share in shares])
        return torch.stack([member(features).float().clamp(0, 1) for member in self.members]).mean(0)
