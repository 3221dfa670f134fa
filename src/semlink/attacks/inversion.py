# SPDX-License-Identifier: Apache-2.0
"""Black-box model inversion by a decoder trained on intercepted symbols of the attacker's images, at three capacities.

    attacker's image ─> victim's transmitter ─> Eve's channel ─> tap ─> ImageDecoder ─> reconstruction
                └────────────────────── mean MSE + mean perceptual distance ──────────────────┘

``inversion-plain`` has the plain decoder of the literature, ``inversion`` one of residual blocks with a linear
shortcut, ``inversion-unet`` corrects by a U-Net what that one draws. A link is as safe as the best of them leaves it.

May see: the symbols of any image she has sent (queries), through her own noise; the key if the threat grants it.
May not see: weights, gradients, the transceiver's training images, Bob's noise.

Source: S. Guo et al., "Semantic-enabled 6G communication: a task-oriented and privacy-preserving perspective",
section IV-B: a DNN decoder on received features, trained on the sum of average MSE and average perceptual loss. The
perceptual distance is LPIPS on VGG16 (R. Zhang et al., CVPR 2018).
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semlink.attacks.base import Drawing, Tap, attacks
from semlink.nn import ImageDecoder, Perceptual
from semlink.nn.drawers import PlainDecoder, UNetDecoder


@attacks.register("inversion")
class Inversion(Drawing):
    """Decoder inversion.

    Args:
        tap: what she hears.
        width: channels of the decoder at 4x4; halved at each doubling of the side.
        taps: VGG16 layers in the perceptual loss, 1 to 5; 0 trains on MSE alone.

    Raises:
        SemlinkError: the perceptual weights are needed and not there.
    """

    network: ClassVar[type[nn.Module]] = ImageDecoder

    def __init__(self, tap: Tap, width: int, taps: int) -> None:
        super().__init__(tap)
        self.decoder = self.network(tap.features, tap.image_shape, width)
        self.perceptual = Perceptual("vgg16", taps) if taps else None

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return ``loss``, ``mse`` and ``perceptual`` on a batch."""
        del targets
        drawn = self.decoder(self.tap.intercept(images, generator)).float()
        losses = {"mse": F.mse_loss(drawn, images)}
        if self.perceptual is not None:
            # The originals carry no gradient and the weights are buffers, so their features build no graph.
            losses["perceptual"] = self.perceptual(drawn, images).mean()
        return {"loss": torch.stack(list(losses.values())).sum(), **losses}

    def reconstruct(self, intercepted: Tensor, snr_db: float) -> Tensor:
        """Draw images; the linear output is clamped, so 0 and 1 are reached exactly."""
        del snr_db
        return self.decoder(intercepted).float().clamp(0, 1)


@attacks.register("inversion-plain")
class PlainInversion(Inversion):
    """Decoder inversion with as little a decoder as published attacks have; arguments as Inversion."""

    network = PlainDecoder


@attacks.register("inversion-unet")
class UNetInversion(Inversion):
    """Decoder inversion with the largest of the three decoders; arguments as Inversion."""

    network = UNetDecoder
