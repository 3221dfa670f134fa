# SPDX-License-Identifier: Apache-2.0
"""DeepJSCC with differential privacy: features are clipped and drowned in noise before they are sent.

    image ─> Encoder ─> features (2n) ─> clip ─> + noise ─> x public constant ─> 2 reals a symbol ─> x ─> channel ─> y
    answer <─ Classifier | ImageDecoder <─ 2 reals a symbol <─ equaliser (when there is CSI) <─ y

Loss: DeepJSCC's, through the noise and the channel; the noise is drawn from the caller's generator in training and in
evaluation alike, so the receiver expects it. In training, gradients pass through the clip; the noise has none.

Guo et al. (see deepjscc.py), section V-A, inject Laplacian noise into the transmitted features with privacy budgets
0.05, 0.1 and 0.9, and give no equation: neither clip nor sensitivity, nor what one budget covers. Whatever is received
under epsilon-LDP of the image, balanced accuracy over K classes is at most e^epsilon / (e^epsilon + K - 1): 10.5, 10.9
and 21.5 % for ten classes. They report accuracies 3 to 4 points below the best, so their budgets are not that. Hence
four mechanisms (mechanism.py), each with its own promise:

    vector         epsilon-LDP of the image; obeys the ceiling above, so little is left at such budgets
    coordinate     epsilon for each feature, 2n epsilon for the image
    laplace-scale  no epsilon: the noise scale is nominal_sensitivity / epsilon, with one nominal sensitivity for all
                   budgets and data sets
    gaussian       (epsilon, delta)-LDP of the image

Power: the mean over the noise of an image's mean symbol energy is at most 1, and the constant that ensures it depends
on the clip and the noise alone. The power of a single transmission varies about it; evaluation measures it.

The weights have the names and shapes of DeepJSCC's, so a trained DeepJSCC can start one of these.
"""

from typing import Any

import torch
from torch import Tensor

from semlink import phy
from semlink.metrics import privacy
from semlink.schemes.base import Design, Sent, schemes
from semlink.schemes.deepjscc import DeepJSCC
from semlink.schemes.mechanism import make_mechanism


@schemes.register("deepjscc-dp")
class DeepJSCCDP(DeepJSCC):
    """DeepJSCC behind a privacy mechanism.

    Args:
        design: dimensions of the link.
        mechanism: vector, coordinate, laplace-scale or gaussian; ``vector`` if left out, the only one whose epsilon is
            the image's.
        epsilon: privacy budget of one transmission; 0.9, the largest of Guo et al.
        clip: bound on the features before noise: the L1 norm (vector), each feature (coordinate), the L2 norm
            (gaussian) or the root mean square (laplace-scale); 1, the unit of everything else.
        delta: of mechanism gaussian; 1e-5, far below one over the number of images, as is customary.
        nominal_sensitivity: of mechanism laplace-scale; 0.09, chosen on validation images of CIFAR-10 (recipe
            paper-a/laplace-scale): epsilon 0.05 then lies 3.1 points behind deepjscc-lbvq at 12 dB; Guo et al. report 3
            to 4. One value for every budget, data set and attack.

    Attributes:
        mechanism: clips, draws the noise and states the guarantee.

    Raises:
        SemlinkError: as DeepJSCC; the mechanism is unknown, an option is not one of its own, or a number is not
            positive.
    """

    def __init__(
        self,
        design: Design,
        mechanism: str = "vector",
        epsilon: float = 0.9,
        clip: float = 1.0,
        delta: float | None = None,
        nominal_sensitivity: float | None = None,
    ) -> None:
        super().__init__(design)
        features = 2 * design.channel_uses
        self.mechanism = make_mechanism(
            mechanism, features, epsilon, clip, delta=delta, nominal_sensitivity=nominal_sensitivity
        )

    def features(self, images: Tensor) -> Tensor:
        """Return the clipped features, ``(B, 2n) float64``, without noise: what no one but the transmitter may see."""
        latent = self.encoder(images).float().flatten(1)
        # NaN would pass every clip and tell its image apart. Not in training, where it must show in the loss.
        return self.mechanism.clipped(latent if self.training else latent.nan_to_num())

    def transmit(self, images: Tensor, generator: torch.Generator) -> Sent:
        """Encode, clip, add noise from ``generator`` and scale; each call is one more release of the images."""
        return Sent(phy.to_symbols(self.mechanism.released(self.features(images), generator)))

    def describe(self) -> dict[str, Any]:
        """Return what the link promises, in JSON's types, for its record."""
        task = self.design.task
        classes = {"classify": task.outputs, "attributes": 2}.get(task.kind)
        return {"privacy": self.mechanism.guarantee(classes=classes)}

    def channel_guarantee(self, snr_db: float, delta: float = 1e-5) -> dict[str, float]:
        """Return what the noise of an AWGN channel at the listener's ``snr_db`` promises by itself, mechanism apart."""
        sensitivity = self.mechanism.gain * self.mechanism.l2_diameter
        mu = privacy.channel_mu(sensitivity, snr_db)
        return {"snr_db": snr_db, "mu": mu, "epsilon": privacy.gaussian_epsilon(mu, delta), "delta": delta}
