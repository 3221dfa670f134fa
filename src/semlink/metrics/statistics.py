# SPDX-License-Identifier: Apache-2.0
"""Intervals whose unit is the image: the noise draws of one image are averaged first, then images are counted.

Draws of one image share the image, so counting them as independent would make intervals too narrow.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from semlink._errors import SemlinkError

_CHUNK = 1 << 22  # values resampled at a time


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval.

    Attributes:
        mean: the estimate (of ``bootstrap_interval``: the statistic).
        low: lower end.
        high: upper end.
        n: number of images.
        method: how the ends were found.
        level: confidence.
    """

    mean: float
    low: float
    high: float
    n: int
    method: str
    level: float = 0.95


def mean_interval(values: Tensor, level: float = 0.95) -> Interval:
    """Return the mean over images and its Student t interval.

    Args:
        values: (n,) or (draws, n), one value per image (and noise draw).
        level: confidence, in (0, 1).

    Raises:
        SemlinkError: fewer than two images; a value is not finite; the shape is another.
    """
    images = per_image(values)
    half = t_quantile(0.5 + level / 2, len(images) - 1) * math.sqrt(float(images.var()) / len(images))
    mean = float(images.mean())
    return Interval(mean, mean - half, mean + half, len(images), "student-t over images", level)


def paired_difference(a: Tensor, b: Tensor, level: float = 0.95) -> Interval:
    """Return the mean of ``a - b`` over images, paired image by image, and its Student t interval.

    Args:
        a: (n,) or (draws, n).
        b: (n,) or (any draws, n), of the same images in the same order.
        level: confidence, in (0, 1).

    Raises:
        SemlinkError: as :func:`mean_interval`; the numbers of images differ.
    """
    first, second = per_image(a), per_image(b)
    if len(first) != len(second):
        raise SemlinkError(
            f"{len(first)} and {len(second)} images cannot be paired; compare the same images in one order"
        )
    interval = mean_interval(first - second, level)
    return Interval(interval.mean, interval.low, interval.high, interval.n, "paired student-t over images", level)


def _mean(samples: Tensor) -> Tensor:
    return samples.mean(-1)


def bootstrap_interval(
    values: Tensor,
    statistic: Callable[[Tensor], Tensor] = _mean,
    *,
    generator: torch.Generator,
    resamples: int = 2000,
    level: float = 0.95,
) -> Interval:
    """Return a statistic over images and its percentile bootstrap interval, images being resampled with replacement.

    Args:
        values: (n,) or (draws, n).
        statistic: maps (..., n) float64 to (...), over the last dimension.
        generator: draws the resamples.
        resamples: how many.
        level: confidence, in (0, 1).

    Raises:
        SemlinkError: as :func:`mean_interval`; fewer than 100 resamples.
    """
    if resamples < 100:
        raise SemlinkError(f"resamples is {resamples}: at least 100 are needed for the ends of an interval")
    images, tail = per_image(values), (1 - level) / 2
    n, step = len(images), max(1, _CHUNK // len(images))
    resampled = []
    for start in range(0, resamples, step):
        size = (min(step, resamples - start), n)
        index = torch.randint(n, size, generator=generator, device=generator.device)
        resampled.append(statistic(images[index.to(images.device)]))
    ends = torch.cat(resampled).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64, device=images.device))
    low, high = (float(end) for end in ends)
    return Interval(float(statistic(images)), low, high, n, "percentile bootstrap over images", level)


def per_image(values: Tensor) -> Tensor:
    """Average noise draws, ``(draws, n)`` to ``(n,)`` float64; SemlinkError if n < 2 or a value is not finite."""
    if values.ndim not in (1, 2) or not values.numel():
        raise SemlinkError(f"values of shape {tuple(values.shape)}: (n,) or (draws, n) is expected")
    images = values.detach().double()
    images = images.mean(0) if images.ndim == 2 else images
    if len(images) < 2:
        raise SemlinkError("an interval over images needs at least 2 of them, got 1")
    if not bool(images.isfinite().all()):
        raise SemlinkError(f"{int((~images.isfinite()).sum())} of {len(images)} images have a value that is not finite")
    return images


@lru_cache(maxsize=256)
def t_quantile(probability: float, freedom: float) -> float:
    """Return the quantile of Student's t for ``probability`` in [0.5, 1) and ``freedom > 0``, not necessarily whole.

    With t = sqrt(freedom) tan(angle) the density becomes cos(angle)^(freedom - 1), which Gauss-Legendre integrates to
    near machine precision; the angle is then found by bisection.
    """
    if not 0.5 <= probability < 1:
        raise SemlinkError(f"confidence level {2 * probability - 1:g}: a number between 0 and 1 is expected")
    nodes, weights = np.polynomial.legendre.leggauss(64)
    total = 0.5 * math.sqrt(math.pi) * math.exp(math.lgamma(freedom / 2) - math.lgamma((freedom + 1) / 2))
    wanted = (2 * probability - 1) * total
    # Beyond 40 standard deviations nothing is left, and a shorter stretch keeps the nodes where the density is.
    low, high = 0.0, min(math.pi / 2, 40 / math.sqrt(freedom))
    for _ in range(80):
        middle = (low + high) / 2
        area = middle / 2 * float(weights @ np.cos(middle / 2 * (nodes + 1)) ** (freedom - 1))
        low, high = (middle, high) if area < wanted else (low, middle)
    return math.sqrt(freedom) * math.tan(low)
