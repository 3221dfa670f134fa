# SPDX-License-Identifier: Apache-2.0
"""An attack of your own in one file: an affine map from what is heard to the image.

    semlink bench examples/my_bench.toml                                        # a recipe that names this file
    SEMLINK_PLUGINS=examples/my_attack.py semlink attack RUN --attack my-linear

What it may see is what arrives at the eavesdropper's antennas, ``tap.intercept``, and nothing else unless it says so in
``sees``. Its drawings are judged by every metric, beside those of all other attacks.
"""

import torch
from torch import Tensor, nn

from semlink.attacks import Drawing, Tap, attacks


@attacks.register("my-linear")
class MyLinear(Drawing):
    """The best affine estimate of an image, by gradient descent on the squared error.

    Args:
        tap: what she hears of the link, for images that she chooses while she learns.
        width: size of networks by the preset, of which there is none here.
        taps: layers of a perceptual loss, of which there is none either.
    """

    def __init__(self, tap: Tap, width: int, taps: int) -> None:
        super().__init__(tap)
        del width, taps
        self.estimate = nn.Linear(tap.features, torch.Size(tap.image_shape).numel())

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the losses of a batch of her own images."""
        del targets
        drawn = self.reconstruct(self.tap.intercept(images, generator), self.tap.threat.snr_db)
        return {"loss": (drawn - images).square().mean()}

    def reconstruct(self, intercepted: Tensor, snr_db: float) -> Tensor:
        """Draw images (B, C, H, W) from what was heard at ``snr_db``."""
        del snr_db
        drawn = self.estimate(intercepted).float().unflatten(1, self.tap.image_shape)
        return drawn if self.training else drawn.clamp(0, 1)
