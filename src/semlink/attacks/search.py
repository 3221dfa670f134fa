# SPDX-License-Identifier: Apache-2.0
"""Inversion by search: what optimisation.py finds, as attacks that are trained, and judged beside the decoders.

    attacker's images ─> prior: total variation | autoencoder ──────┐
    encoder, heard y, s^2 = channel's noise + what the prior lacks ─┴─> explain ─> reconstruction

``search-smooth`` learns t and c of the prior exp(-t TV(x - c)), TV over D pixels and the edge around them, where x is
c. Without bounds on pixels that density integrates to a constant times t^-D, so the negative log-likelihood of her
images is, per pixel and up to a constant,

    t E[TV(x - c)] / D - log t,        least at t = D / E[TV],

and no weight is left to choose. Without edges TV would not mind how bright an image is, and grey would stay grey.

``search-learned`` trains the autoencoder on its own loss. What it cannot draw no latents explain, so to the channel's
noise is added the mean squared error that redrawn images of hers make in the encoder's features; with the noise alone,
better ears made for worse images.

The channel's noise she measures: pictures of her own, sent and heard, against what the encoder says of them. That is N0
over her receptions where there is only noise, and it counts what an equaliser leaves of fading.

May see: the encoder with its weights, what arrives at her antenna, the key if she holds it; images of her own.
May not see: the image, Bob's noise, the transceiver's images. Schemes that send what carries no gradient (indices), or
what she cannot repeat (noise of the transmitter, a key that she lacks), are refused.

Where the code keeps the class and little more, neither prior makes up for the rest: on digits both stay below the mean
image, and a trained decoder above it. They are for codes that keep much.

Sources: those of optimisation.py; the rules for t and for s^2 are ours.
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from semlink._errors import SemlinkError
from semlink.attacks.base import Drawing, Tap, attacks
from semlink.attacks.optimisation import Learned, Prior, Smooth, encoder_of, explain
from semlink.nn import Phase
from semlink.nn.objective import Optimiser

STEPS = 300
STARTS = 1
LATENTS = 128
_PROBES = 500  # pictures by which the noise is measured
_LEAST = 1e-12  # noise variance: float32 has about as much of its own
_RATE = 0.1  # learning rate of t and c
_MEMORY = 0.95  # of the running mean of the gap


class Search(Drawing):
    """The image that best explains what was heard.

    Args:
        tap: what she hears and the encoder.
        taps: 0; the objective is a likelihood, and has no perceptual loss.

    Attributes:
        gap: () mean square of what the prior cannot explain of a feature.

    Raises:
        SemlinkError: a perceptual loss is asked for, or no gradient leads to the victim's images.
    """

    sees = frozenset({"encoder"})
    most_images = 200  # each takes STEPS steps from STARTS starts, through the encoder
    learning_rate: ClassVar[float]  # of the prior's variables
    gap: Tensor

    def __init__(self, tap: Tap, taps: int) -> None:
        if taps:
            raise SemlinkError("a search has no perceptual loss; use it with perceptual 'none'")
        super().__init__(tap)
        self.encode = encoder_of(tap.victim, tap.threat.with_secret)
        self.register_buffer("gap", torch.zeros(()))

    @abstractmethod
    def prior(self) -> Prior:
        """Return what she believes of images."""

    @torch.no_grad()
    def noise_variance(self, snr_db: float, device: torch.device) -> float:
        """Return the mean squared error of a feature heard at ``snr_db``."""
        generator = torch.Generator(device).manual_seed(0)
        pictures = torch.rand(_PROBES, *self.tap.image_shape, generator=generator, device=device)
        heard = self.tap.hear(self.tap.send(pictures, generator), generator, snr_db)
        return max(float((heard - self.encode(pictures)).square().mean()), _LEAST)

    def reconstruct(self, intercepted: Tensor, snr_db: float) -> Tensor:
        """Search; always from the same starts."""
        return explain(
            self.encode,
            intercepted,
            self.prior(),
            self.noise_variance(snr_db, intercepted.device) + float(self.gap),
            steps=STEPS,
            starts=STARTS,
            generator=torch.Generator(intercepted.device).manual_seed(0),
            learning_rate=self.learning_rate,
        ).images


@attacks.register("search-smooth")
class SmoothSearch(Search):
    """Search among smooth images.

    Args:
        tap: what she hears and the encoder.
        width: without meaning here.
        taps: 0.

    Attributes:
        log_weight: () log t; it starts at a tenth for each pixel, about what photographs have.
        centre: c, (C, H, W).

    Raises:
        SemlinkError: as of Search.
    """

    learning_rate = 0.3  # of logits of pixels; with 0.1 black pixels were still on their way from grey

    def __init__(self, tap: Tap, width: int, taps: int) -> None:
        del width
        super().__init__(tap, taps)
        self.log_weight = nn.Parameter(torch.tensor(10.0).log())
        self.centre = nn.Parameter(torch.full(tap.image_shape, 0.5))

    def phases(self, optimiser: Optimiser) -> list[Phase]:
        """Return what to train, at a rate for so few numbers."""
        return [Phase("attack", self, replace(optimiser, kind="adamw", learning_rate=_RATE))]

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return ``loss``, nats per pixel up to a constant, and ``variation`` per pixel."""
        del targets, generator
        variation = Centred(self.tap.image_shape, 1.0, self.centre).nats(images, images).mean() / images[0].numel()
        return {"loss": self.log_weight.exp() * variation - self.log_weight, "variation": variation}

    def prior(self) -> Smooth:
        """Return exp(-t TV(x - c))."""
        return Centred(self.tap.image_shape, float(self.log_weight.detach().exp()), self.centre.detach())


@dataclass(frozen=True)
class Centred(Smooth):
    """Images that differ smoothly from one, and beyond their edges not at all.

    Attributes:
        centre: (C, H, W).
    """

    centre: Tensor

    def nats(self, variables: Tensor, images: Tensor) -> Tensor:
        """Return the weighted total variation of the difference."""
        return super().nats(variables, F.pad(images - self.centre, (1, 1, 1, 1)))


@attacks.register("search-learned")
class LearnedSearch(Search):
    """Search among what an autoencoder draws.

    Args:
        tap: what she hears and the encoder.
        width: channels of the autoencoder at 4x4.
        taps: 0.

    Raises:
        SemlinkError: as of Search.
    """

    learning_rate = 0.1  # of latents

    def __init__(self, tap: Tap, width: int, taps: int) -> None:
        super().__init__(tap, taps)
        self.autoencoder = Learned(tap.image_shape, LATENTS, width)
        self.gap.fill_(1.0)  # a feature's own mean square, until it is measured

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the autoencoder's losses; in training, measure what it cannot draw."""
        if self.training:
            self.autoencoder.eval()  # as it will be searched
            with torch.no_grad():
                gap = (self.encode(self.autoencoder.redrawn(images)) - self.encode(images)).square().mean()
            self.gap.lerp_(gap.to(self.gap), 1 - _MEMORY)
            self.autoencoder.train()
        return self.autoencoder(images, targets, generator)

    def prior(self) -> Learned:
        """Return the autoencoder."""
        return self.autoencoder
