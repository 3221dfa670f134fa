# SPDX-License-Identifier: Apache-2.0
"""How far noise keeps an image from being computed back: diagonal Fisher information leakage (dFIL).

For z = f(x) + Gaussian noise of variance s^2 a number, the Fisher information of the image is J^T J / s^2, J being the
Jacobian of f at x. Its mean diagonal entry is dFIL, one value per image, in the inverse of squared pixel values. By the
bound of Cramér and Rao no unbiased estimate of the image has a mean squared error below 1 / dFIL.

An attack that was trained is biased: it knows images, and may have less error than that. Where the bound exceeds the
variance of the images it says nothing, as the mean image does better.

Source: K. Maeng, C. Guo, S. Kariyappa, G. E. Suh, "Bounding the invertibility of privacy-preserving instance encoding
using Fisher information", NeurIPS 2023. Traces by M. F. Hutchinson's probes, Commun. Stat. Simul. Comput. 18(3), 1989.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from semlink._errors import SemlinkError, check_positive, check_whole

_STEP = 1e-4  # of a pixel; below a quantiser's step, above the rounding of float32
_INSTEAD = "give the upper bounds in bits in its place"


class NotDifferentiable(SemlinkError):
    """Fisher information is not applicable to this encoder; show the message in place of the number."""


class FisherLeakage(NamedTuple):
    """dFIL of each image.

    Attributes:
        dfil: (B,), in the inverse of squared pixel values.
        error: (B,), its standard error over the probes.
    """

    dfil: Tensor
    error: Tensor


def fisher_leakage(
    encoder: Callable[[Tensor], Tensor],
    images: Tensor,
    noise_variance: float,
    generator: torch.Generator,
    probes: int = 16,
) -> FisherLeakage:
    """Return the diagonal Fisher information leakage ``tr(J^T J) / (s^2 d)`` of an encoder in Gaussian noise.

    The trace is the mean of |J^T v|^2 over probes v of random signs, a backward pass each; an image's output must not
    depend on the others of its batch.

    Before, the derivative is held to a small change of the images: a quantiser does not respond to it whatever gradient
    it passes on, and an encoder that draws noise responds to nothing else. Of those, the bounds in
    :mod:`semlink.metrics.ceilings` are what there is.

    Args:
        encoder: maps images to features (B, ...), floating or complex, and keeps the gradient: of a link take
            ``link.scheme.transmit``, whose noise, if it has any of its own, would be taken for known if a seed froze
            it. A module must be in evaluation mode.
        images: (B, ...) floating, at most as many as memory lets pass at once; d numbers each.
        noise_variance: s^2 of a real feature; of a complex one the whole variance N0, half of it on each rail.
        generator: draws the probes.
        probes: how many, at least 2.

    Raises:
        NotDifferentiable: the encoder's derivative is not that of what it computes.
        SemlinkError: the encoder is in training mode or returns something else; ``noise_variance`` is not positive;
            fewer than 2 probes.
    """
    check_whole("probes", probes, 2)
    check_positive("noise_variance", noise_variance)
    if isinstance(encoder, nn.Module) and encoder.training:
        raise SemlinkError("the encoder is in training mode, where images of a batch may mix; call .eval() first")
    points = images.detach().clone().requires_grad_()
    with torch.enable_grad():
        z = encoder(points)
        if not isinstance(z, Tensor) or z.ndim < 2 or len(z) != len(points):
            raise SemlinkError("the encoder must return a tensor of features (B, ...), a row for each image")
        if not z.requires_grad:
            raise NotDifferentiable(f"no dFIL: the encoder returns {z.dtype} without a derivative; {_INSTEAD}")
        features = _real(z)

    def pulled(v: Tensor) -> Tensor:
        """Return J^T v: (B, m) -> (B, d) float64."""
        grads = torch.autograd.grad(features, points, v, retain_graph=True, materialize_grads=True)
        return grads[0].flatten(1).double()

    _check_derivative(lambda x: _real(encoder(x)), pulled, images.detach(), generator)
    squares = torch.stack([pulled(_signs(features, generator)).square().sum(1) for _ in range(probes)])
    variance = noise_variance / 2 if z.is_complex() else noise_variance
    values = squares / (variance * images[0].numel())
    return FisherLeakage(values.mean(0), values.std(0) / math.sqrt(probes))


def unbiased_mse_bound(dfil: Tensor) -> Tensor:
    """Return the mean squared error per pixel below which no unbiased estimate of an image comes, ``1 / dFIL``.

    Cramér and Rao: the error is at least tr(I^-1) / d, which is at least d / tr(I). Infinite where nothing leaks, and
    where an image has more pixels than features no estimate is unbiased at all. To be on the safe side of the probes'
    error, give the upper end, ``dfil + 2 * error``.

    Args:
        dfil: any shape, at least 0.

    Raises:
        SemlinkError: a value is negative or NaN.
    """
    if not bool((dfil >= 0).all()):
        raise SemlinkError(f"dFIL from {float(dfil.min()):g}: values of at least 0 are expected")
    return dfil.reciprocal()


def _real(z: Tensor) -> Tensor:
    """(B, ...) floating or complex -> (B, m) floating."""
    return (torch.view_as_real(z) if z.is_complex() else z).flatten(1)


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    bits = torch.randint(0, 2, like.shape, generator=generator, device=generator.device)
    return (2 * bits - 1).to(like)


@torch.no_grad()
def _check_derivative(
    features: Callable[[Tensor], Tensor], pulled: Callable[[Tensor], Tensor], images: Tensor, generator: torch.Generator
) -> None:
    """Hold the derivative along a random direction u to a difference quotient q: <q, J u> should be |q|^2."""
    direction = _signs(images, generator)
    quotient = (features(images + _STEP * direction) - features(images - _STEP * direction)) / (2 * _STEP)
    length = float(quotient.double().square().sum())
    along = float((pulled(quotient) * direction.flatten(1)).sum())
    if not (length > 0 and 0.5 < along / length < 1.5):
        raise NotDifferentiable(
            "no dFIL: the encoder's derivative is not that of what it computes, as it quantises, draws noise or hardly "
            f"varies; {_INSTEAD}"
        )
