# SPDX-License-Identifier: Apache-2.0
"""DeepJSCC: a network maps an image straight to channel symbols, another maps noisy symbols to the answer.

    image ─> Encoder ─> latent (L,4,4) ─> 2 reals a symbol ─> unit mean energy per image ─> x ─> channel ─> y
    answer <─ Classifier | ImageDecoder <─ latent (L,4,4) <─ 2 reals a symbol <─ equaliser (when there is CSI) <─ y

Loss: cross-entropy (classes), binary cross-entropy (attributes) or mean squared error (images), through the channel.

Sources: E. Bourtsoulatze, D. Burth Kurka, D. Gündüz, "Deep joint source-channel coding for wireless image
transmission", IEEE Trans. Cogn. Commun. Netw. 5(3), 2019, for the analog code under a power constraint; S. Guo et al.,
"Semantic-enabled 6G communication: a task-oriented and privacy-preserving perspective", for its use with a task head.

The colour classifier of presets ``cpu`` and ``paper`` has 3.2 M parameters and 0.084 G multiply-adds at 64 channel
uses, the size that Guo et al. give in Table I (3.19 M, 0.085 G) without an architecture. The layout follows the
networks that the same group's work builds on (VL-VFE: convolutions to a 4x4 map, a convolutional receiver) with the
front end and block order of fast CIFAR-10 training; widths were set to meet the two figures: the encoder holds most of
the multiply-adds, the receiver, which runs on 4x4 and 2x2 positions, most of the parameters.
"""

import torch
from torch import Tensor

from semlink import phy
from semlink._errors import SemlinkError
from semlink.nn import Classifier, Encoder, ImageDecoder
from semlink.nn.coders import LATENT_SIDE
from semlink.schemes.base import Design, Scheme, Sent, schemes


@schemes.register("deepjscc")
class DeepJSCC(Scheme):
    """The undefended baseline.

    Raises:
        SemlinkError: ``channel_uses`` does not fill a 4x4 latent map.
    """

    def __init__(self, design: Design) -> None:
        super().__init__(design)
        task, positions = design.task, LATENT_SIDE**2
        channels, rest = divmod(2 * design.channel_uses, positions)
        if rest or channels < 1:
            raise SemlinkError(
                f"{design.channel_uses} channel uses: two real features each fill a 4x4 map, so use a multiple of 8"
            )
        self.latent_shape = (channels, LATENT_SIDE, LATENT_SIDE)
        self.encoder = Encoder(task.image_shape, channels, design.backbone)
        if task.kind == "reconstruct":
            self.decoder = ImageDecoder(channels * positions, task.image_shape, design.backbone.width)
        else:
            self.decoder = Classifier(channels, task.outputs, design.backbone)

    def prepare(self, images: Tensor) -> None:
        """Measure the whitening front end."""
        self.encoder.whitening.measure(images)

    def features(self, images: Tensor) -> Tensor:
        """Return ``(B, 2n) float32`` with unit mean square per image: the code before any defence."""
        latent = self.encoder(images).float().flatten(1)
        return phy.to_features(phy.normalise_power(phy.to_symbols(latent)))

    def answer(self, features: Tensor) -> Tensor:
        """Return the receiver's output for received ``features: (B, 2n)``."""
        if isinstance(self.decoder, Classifier):
            return self.decoder(features.unflatten(1, self.latent_shape))
        return self.decoder(features)

    def transmit(self, images: Tensor, generator: torch.Generator) -> Sent:
        """Encode and normalise; nothing here is random."""
        del generator
        return Sent(phy.to_symbols(self.features(images)))

    def receive(self, received: phy.Received, header: Tensor | None = None) -> Tensor:
        """Equalise if the channel gave CSI, then answer."""
        return self.answer(self.observe(received, header, with_secret=False))
