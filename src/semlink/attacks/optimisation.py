# SPDX-License-Identifier: Apache-2.0
"""White-box inversion: the image that best explains what was heard, found by descent through the encoder.

    v ─> prior ─> x ─> encoder ─> expected features ─┐
    ▲                                                ├─> |y - f(x)|^2 / (2 s^2) - log prior(v) ─> Adam ─┐
    │                                       heard y ─┘                                                  │
    └───────────────────────────────────────────── gradient ────────────────────────────────────────────┘

May see: the encoder with its weights, what arrives at her antenna, her noise level; the key if she holds it.
May not see: the image, Bob's noise, any image of the transceiver. A learned prior is trained on images of her own.

The first term is the negative log-likelihood of white Gaussian noise of variance s^2 per real feature, so the result is
a maximum a posteriori estimate. Two priors: ``Smooth`` is exp(-t TV(x)) over pixels; ``Learned`` is the decoder of an
autoencoder with normal latents. Several starts run at once; of each image the one is kept that the attacker's own
objective likes best, for the truth is not hers to look at.

Source: Z. He, T. Zhang and R. B. Lee, "Model inversion attacks against collaborative inference", ACSAC 2019, eq. (1),
regularised maximum likelihood; there the weight of the likelihood is free, here it is the noise's. Learned priors: A.
Bora et al., "Compressed sensing using generative models", ICML 2017, eq. (3); the autoencoder is that of D. Kingma and
M. Welling, ICLR 2014, eq. (10), with the mean squared error's own maximum likelihood scale.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from semlink import phy
from semlink._errors import SemlinkError, check_number
from semlink.nn import Backbone, Encoder, ImageDecoder
from semlink.nn.coders import LATENT_SIDE
from semlink.schemes import Link

Encode = Callable[[Tensor], Tensor]


class Prior(Protocol):
    """What images are likely, and by which variables they are searched."""

    def begin(self, count: int, generator: torch.Generator) -> Tensor:
        """Return the variables of ``count`` random images, on the generator's device."""
        ...

    def images(self, variables: Tensor) -> Tensor:
        """Return (N, C, H, W)."""
        ...

    def nats(self, variables: Tensor, images: Tensor) -> Tensor:
        """Return the negative logarithm of the prior, up to a constant: (N,)."""
        ...


@dataclass(frozen=True)
class Smooth:
    """Images whose neighbouring pixels are alike; the variables are logits of pixels.

    Attributes:
        image_shape: (C, H, W).
        weight: t, nats for each unit of summed absolute differences between neighbouring pixels.

    Raises:
        SemlinkError: the weight is negative or no number.
    """

    image_shape: tuple[int, int, int]
    weight: float

    def __post_init__(self) -> None:
        check_number("weight of total variation", self.weight)

    def begin(self, count: int, generator: torch.Generator) -> Tensor:
        """Return logits around grey."""
        return torch.randn(count, *self.image_shape, generator=generator, device=generator.device)

    def images(self, variables: Tensor) -> Tensor:
        """Return pixels in (0, 1)."""
        return variables.sigmoid()

    def nats(self, variables: Tensor, images: Tensor) -> Tensor:
        """Return the weighted anisotropic total variation."""
        del variables
        down = (images[..., 1:, :] - images[..., :-1, :]).abs().flatten(1).sum(1)
        across = (images[..., 1:] - images[..., :-1]).abs().flatten(1).sum(1)
        return self.weight * (down + across)


class Learned(nn.Module):
    """Images that an autoencoder with normal latents draws; the variables are its latents, (N, latents).

    ``forward(images, targets, generator)`` gives the losses that train it.

    Args:
        image_shape: (C, H, W).
        latents: real numbers that an image is drawn from, a multiple of 16.
        width: channels of encoder and decoder at 4x4.

    Raises:
        SemlinkError: the latents do not fill a 4x4 map.
    """

    def __init__(self, image_shape: tuple[int, int, int], latents: int, width: int) -> None:
        super().__init__()
        channels, rest = divmod(latents, LATENT_SIDE**2)
        if rest or channels < 1:
            raise SemlinkError(f"latents is {latents}: a multiple of {LATENT_SIDE**2} is expected")
        self.latents = latents
        self.encoder = Encoder(image_shape, 2 * channels, Backbone(width, width))
        self.decoder = ImageDecoder(latents, image_shape, width)

    def forward(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """Return ``loss``, ``mse`` per pixel and ``rate``, nats per image, of a batch."""
        del targets
        mean, log_scale = self.encoder(images).float().chunk(2, 1)
        log_scale = log_scale.clamp(-6, 2)
        noise = torch.randn(mean.shape, generator=generator, device=mean.device)
        drawn = self.decoder((mean + log_scale.exp() * noise).flatten(1)).float()
        mse = (drawn - images).square().mean()
        rate = (mean.square() + (2 * log_scale).exp() - 2 * log_scale - 1).flatten(1).sum(1).mean() / 2
        # A Gaussian likelihood whose variance is fitted: d/2 log of the error, and no weight to choose.
        pixels = images[0].numel()
        return {"loss": mse.add(1e-6).log() / 2 + rate / pixels, "mse": mse, "rate": rate}

    def redrawn(self, images: Tensor) -> Tensor:
        """Return what is drawn of the mean latents of ``images: (B, C, H, W)``."""
        mean, _ = self.encoder(images).float().chunk(2, 1)
        return self.decoder(mean.flatten(1)).float()

    def begin(self, count: int, generator: torch.Generator) -> Tensor:
        """Return latents of the prior."""
        return torch.randn(count, self.latents, generator=generator, device=generator.device)

    def images(self, variables: Tensor) -> Tensor:
        """Return what is drawn; it may leave [0, 1] a little while it is searched."""
        return self.decoder(variables).float()

    def nats(self, variables: Tensor, images: Tensor) -> Tensor:
        """Return half the squared length of the latents."""
        del images
        return variables.square().sum(1) / 2


@dataclass(frozen=True)
class Explained:
    """What the attacker settled for.

    Attributes:
        images: (B, C, H, W) in [0, 1].
        objective: (B,) its value for them, in nats.
        starts: (R, B) what every start reached.
        late_fall: by which share of the mean the best objective still fell in the last fifth of the steps; above 0.01
            the search has not converged.
    """

    images: Tensor
    objective: Tensor
    starts: Tensor
    late_fall: float


def encoder_of(link: Link, with_secret: bool = False) -> Encode:
    """Return what is heard of an image where there is no noise, differentiable: (B, C, H, W) -> (B, 2n) features.

    Args:
        link: the victim.
        with_secret: she holds the scheme's key and reads what was sent in its own order.

    Raises:
        SemlinkError: what the scheme sends carries no gradient to the image, as the index of a codeword, or is random,
            or hangs on a key that she does not hold.
    """
    scheme = link.scheme.eval()

    def encode(images: Tensor, seed: int = 0) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):  # the victim's arithmetic, as a tap has it
            sent = scheme.transmit(images, torch.Generator(images.device).manual_seed(seed))
            still = phy.Received(sent.symbols, None, torch.zeros(len(images), 1, device=images.device))
            return scheme.observe(still, sent.header, with_secret)

    device = next((each.device for each in scheme.parameters()), torch.device("cpu"))
    with torch.enable_grad():
        probe = torch.full((1, *scheme.design.task.image_shape), 0.5, device=device, requires_grad=True)
        heard = encode(probe)
    if not heard.requires_grad:
        raise SemlinkError(
            "what this scheme sends carries no gradient to the image, so no descent can find it; attack it by a decoder"
        )
    if not torch.equal(heard, encode(probe, seed=1)):
        raise SemlinkError(
            "this scheme sends the same image in other ways at other times, so its encoder is not known without the "
            "key or the noise that it draws; attack it by a decoder"
        )
    if scheme.secret is not None and not with_secret:
        raise SemlinkError(
            "this scheme sends under a key that is not given to the eavesdropper, so she cannot repeat what it sends; "
            "attack it by a decoder, or with the key"
        )
    return encode


def explain(
    encode: Encode,
    heard: Tensor,
    prior: Prior,
    noise_variance: float,
    *,
    steps: int,
    starts: int,
    generator: torch.Generator,
    learning_rate: float = 0.1,
) -> Explained:
    """Return the images that best explain ``heard: (B, F)``, all of the batch at once.

    Args:
        encode: (N, C, H, W) in [0, 1] -> (N, F), differentiable; see ``encoder_of``.
        heard: what arrived, on the generator's device.
        prior: Smooth, or Learned, which should be in evaluation mode.
        noise_variance: s^2 of a real feature.
        steps: of descent.
        starts: R, random beginnings.
        generator: source of the beginnings.
        learning_rate: of Adam on the prior's variables, falling to 0 along half a cosine.

    Raises:
        SemlinkError: a number makes no sense.
    """
    for name, value in (("noise_variance", noise_variance), ("steps", steps), ("starts", starts)):
        if not value > 0 or not math.isfinite(value):
            raise SemlinkError(f"{name} is {value}: a positive number is expected")
    variables = prior.begin(starts * len(heard), generator).requires_grad_()
    wanted = heard.detach().float().repeat(starts, 1)
    adam = torch.optim.Adam([variables], learning_rate)
    best, trail = torch.full((len(wanted),), math.inf, device=heard.device), list[float]()
    found = torch.empty_like(variables)
    with torch.enable_grad():
        for step in range(steps + 1):
            adam.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
            images = prior.images(variables)
            misfit = (wanted - encode(images)).square().sum(1) / (2 * noise_variance)
            objective = misfit + prior.nats(variables, images)
            value = objective.detach()
            better = value < best
            best = torch.where(better, value, best)
            found = torch.where(better.view(-1, *[1] * (found.dim() - 1)), variables.detach(), found)
            trail.append(float(best.mean()))
            if step < steps:
                (variables.grad,) = torch.autograd.grad(objective.sum(), variables)
                adam.step()
    reached = best.unflatten(0, (starts, len(heard)))
    chosen, images = reached.argmin(0), torch.arange(len(heard), device=heard.device)
    with torch.no_grad():
        drawn = prior.images(found.unflatten(0, (starts, len(heard)))[chosen, images]).clamp(0, 1)
    earlier = trail[len(trail) * 4 // 5]
    return Explained(drawn, reached.min(0).values, reached, (earlier - trail[-1]) / abs(earlier) if earlier else 0.0)
