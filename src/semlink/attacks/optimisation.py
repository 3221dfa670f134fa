# SPDX-License-Identifier: Apache-2.0
"""White-box inversion: the image that best explains what was heard, found by descent through the encoder.

    x = sigmoid(w) ─> encoder ─> expected features ─┐
         ▲                                          ├─> |y - f(x)|^2 / (2 s^2) + t TV(x) ─> Adam ─┐
         │                                 heard y ─┘                                             │
         └────────────────────────────────────── gradient ────────────────────────────────────────┘

May see: the encoder with its weights, what arrives at her antenna, her noise level; the key if she holds it.
May not see: the image, Bob's noise, any image of the transceiver. Nothing is trained.

The first term is the negative log-likelihood of white Gaussian noise of variance s^2 per real feature, so the result is
a maximum a posteriori estimate for the prior exp(-t TV). Several starts run at once; of each image the one is kept that
the attacker's own objective likes best, for the truth is not hers to look at.

Source: Z. He, T. Zhang and R. B. Lee, "Model inversion attacks against collaborative inference", ACSAC 2019, eq. (1),
regularised maximum likelihood; there the weight of the likelihood is free, here it is the noise's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from semlink._errors import SemlinkError
from semlink.phy import to_features
from semlink.schemes import Link

Encode = Callable[[Tensor], Tensor]


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


def encoder_of(link: Link) -> Encode:
    """Return the link's transmitter as a function that a gradient passes through: (B, C, H, W) -> (B, 2n) features.

    Raises:
        SemlinkError: what the scheme sends carries no gradient to the image, as the index of a codeword, or is random.
    """
    scheme = link.scheme.eval()

    def encode(images: Tensor) -> Tensor:
        return to_features(scheme.transmit(images, torch.Generator(images.device).manual_seed(0)).symbols)

    probe = torch.full((1, *scheme.design.task.image_shape), 0.5, requires_grad=True)
    sent = encode(probe)
    if not sent.requires_grad:
        raise SemlinkError(
            "what this scheme sends carries no gradient to the image, so no descent can find it; attack it by a decoder"
        )
    other = to_features(scheme.transmit(probe, torch.Generator().manual_seed(1)).symbols)
    if not torch.equal(sent, other):
        raise SemlinkError(
            "this scheme sends the same image in other ways at other times, so its encoder is not known without the "
            "key or the noise that it draws; attack it by a decoder"
        )
    return encode


def explain(
    encode: Encode,
    heard: Tensor,
    image_shape: tuple[int, int, int],
    noise_variance: float,
    *,
    total_variation: float,
    steps: int,
    starts: int,
    generator: torch.Generator,
    learning_rate: float = 0.1,
) -> Explained:
    """Return the images that best explain ``heard: (B, F)``, all of the batch at once.

    Args:
        encode: (N, C, H, W) in [0, 1] -> (N, F), differentiable; see ``encoder_of``.
        heard: what arrived.
        image_shape: (C, H, W).
        noise_variance: s^2 of a real feature; N0 / 2 for symbols at ``snr_db``.
        total_variation: t, nats for each unit of summed absolute differences between neighbouring pixels.
        steps: of descent.
        starts: R, random beginnings.
        generator: source of the beginnings.
        learning_rate: of Adam on the logits of the pixels, falling to 0 along half a cosine.

    Raises:
        SemlinkError: a number makes no sense.
    """
    for name, value in (("noise_variance", noise_variance), ("steps", steps), ("starts", starts)):
        if not value > 0 or not math.isfinite(value):
            raise SemlinkError(f"{name} is {value}: a positive number is expected")
    if not total_variation >= 0:
        raise SemlinkError(f"total_variation is {total_variation}: 0 or more is expected")
    logits = torch.randn(starts * len(heard), *image_shape, generator=generator, device=heard.device).requires_grad_()
    wanted = heard.detach().float().repeat(starts, 1)
    adam = torch.optim.Adam([logits], learning_rate)
    best, trail = torch.full((len(wanted),), math.inf, device=heard.device), list[float]()
    found = torch.empty_like(logits)
    with torch.enable_grad():
        for step in range(steps + 1):
            adam.param_groups[0]["lr"] = learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
            images = logits.sigmoid()
            misfit = (wanted - encode(images)).square().sum(1) / (2 * noise_variance)
            objective = misfit + total_variation * _variation(images)
            value = objective.detach()
            better = value < best
            best = torch.where(better, value, best)
            found = torch.where(better[:, None, None, None], images.detach(), found)
            trail.append(float(best.mean()))
            if step < steps:
                (logits.grad,) = torch.autograd.grad(objective.sum(), logits)
                adam.step()
    reached = best.unflatten(0, (starts, len(heard)))
    chosen = reached.argmin(0)
    images = found.unflatten(0, (starts, len(heard)))[chosen, torch.arange(len(heard), device=heard.device)]
    earlier = trail[len(trail) * 4 // 5]
    return Explained(images, reached.min(0).values, reached, (earlier - trail[-1]) / abs(earlier) if earlier else 0.0)


def _variation(images: Tensor) -> Tensor:
    """Return the anisotropic total variation of each image, (N,)."""
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().flatten(1).sum(1)
    across = (images[..., 1:] - images[..., :-1]).abs().flatten(1).sum(1)
    return down + across
