# SPDX-License-Identifier: Apache-2.0
"""Intervals and tests, over images or over training seeds.

Draws of one image share the image, so counting them as independent would make intervals too narrow: the draws of an
image are averaged first, then images are counted. An interval over images speaks of the one link that was trained;
only one over seeds speaks of the scheme.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
        n: number of images or seeds; where two sides are not paired, of both together.
        method: how the ends were found.
        level: confidence.
        p_value: of the hypothesis that the true mean is 0, two-sided; differences alone have one.
    """

    mean: float
    low: float
    high: float
    n: int
    method: str
    level: float = 0.95
    p_value: float | None = None


class _Estimate(NamedTuple):
    """A mean, its standard error and the degrees of freedom of that error."""

    mean: float
    error: float
    freedom: float


def mean_interval(values: Tensor, level: float = 0.95) -> Interval:
    """Return the mean over images and its Student t interval.

    Args:
        values: (n,) or (draws, n), one value per image (and noise draw).
        level: confidence, in (0, 1).

    Raises:
        SemlinkError: fewer than two images; a value is not finite; the shape is another.
    """
    images = per_image(values)
    return _interval(_estimate(images), len(images), "student-t over images", level)


def paired_difference(a: Tensor, b: Tensor, level: float = 0.95) -> Interval:
    """Return the mean of ``a - b`` over images, paired image by image, with its Student t interval and test.

    Args:
        a: (n,) or (draws, n).
        b: (n,) or (any draws, n), of the same images in the same order.
        level: confidence, in (0, 1).

    Raises:
        SemlinkError: as :func:`mean_interval`; the numbers of images differ.
    """
    images = _paired(per_image(a), per_image(b), "images")
    return _interval(_estimate(images), len(images), "paired student-t over images", level, tested=True)


def seed_interval(values: Tensor) -> Interval:
    """Return the mean over training seeds and its Student t interval at 95 %.

    Args:
        values: (seeds,), one value per trained link, its images already averaged.

    Raises:
        SemlinkError: fewer than two seeds; a value is not finite; the shape is another.
    """
    seeds = _per_seed(values)
    return _interval(_estimate(seeds), len(seeds), "student-t over seeds")


def seed_difference(a: Tensor, b: Tensor, *, paired: bool) -> Interval:
    """Return the difference ``a - b`` of the means over training seeds, with its Student t interval (95 %) and test.

    Args:
        a: (seeds,), one value per trained link.
        b: (seeds,) or, unpaired, (any seeds,).
        paired: both sides used the same seeds in the same order; else Welch's interval and test.

    Raises:
        SemlinkError: as :func:`seed_interval`; the numbers of seeds differ and they are to be paired.
    """
    first, second = _per_seed(a), _per_seed(b)
    if paired:
        seeds = _paired(first, second, "seeds")
        return _interval(_estimate(seeds), len(seeds), "paired student-t over seeds", tested=True)
    difference = _difference(_estimate(first), _estimate(second))
    return _interval(difference, len(first) + len(second), "welch student-t over seeds", tested=True)


def unpaired_difference(a: Interval, b: Interval) -> Interval:
    """Return the difference ``a - b`` of two independent estimates of which only the intervals are known.

    Standard errors come from the half-widths: with n - 1 degrees of freedom if the method says Student t, else with
    the normal quantile. Where an interval had fewer degrees of freedom than that (unequal classes, Welch), its error
    is taken too large rather than too small. The level is the higher of the two.

    Raises:
        SemlinkError: an interval is no interval: a number is not finite, the ends are exchanged, the level is not in
            (0, 1), or a Student t interval has fewer than two images or seeds.
    """
    difference = _difference(_recovered(a), _recovered(b))
    return _interval(difference, a.n + b.n, "unpaired, from intervals", max(a.level, b.level), tested=True)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for being many, in the order given: S. Holm's step-down method (1979).

    Rejecting where the adjusted value is at most 0.05 errs anywhere in the family with 5 % probability at most,
    however the tests depend on each other.

    Raises:
        SemlinkError: a p-value is not in [0, 1].
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise SemlinkError(f"p-value {p:g}: a number from 0 to 1 is expected; leave out tests that were not made")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted


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
    return _checked(images.mean(0) if images.ndim == 2 else images, "images", "evaluate more images")


def _per_seed(values: Tensor) -> Tensor:
    if values.ndim != 1:
        raise SemlinkError(f"values of shape {tuple(values.shape)}: (seeds,) is expected; average over images first")
    return _checked(values.detach().double(), "seeds", "train with another seed too")


def _checked(sample: Tensor, units: str, remedy: str) -> Tensor:
    if len(sample) < 2:
        raise SemlinkError(f"an interval over {units} needs at least 2 of them, got {len(sample)}; {remedy}")
    bad = int((~sample.isfinite()).sum())
    if bad:
        raise SemlinkError(f"{bad} of {len(sample)} {units} have a value that is not finite")
    return sample


def _paired(a: Tensor, b: Tensor, units: str) -> Tensor:
    if len(a) != len(b):
        raise SemlinkError(f"{len(a)} and {len(b)} {units} cannot be paired; compare the same {units} in one order")
    return a - b


def _estimate(sample: Tensor) -> _Estimate:
    # Taking the first value away leaves the variance as it is, and makes that of equal values exactly 0.
    error = math.sqrt(float((sample - sample[0]).var()) / len(sample))
    return _Estimate(float(sample.mean()), error, len(sample) - 1)


def _recovered(interval: Interval) -> _Estimate:
    """Return the estimate behind an interval."""
    student = "student-t" in interval.method
    arms = interval.mean - interval.low, interval.high - interval.mean
    # A Student t interval is symmetric unless it was cut, as that of a share at 1: then its longer arm is whole.
    half = max(arms) if student else sum(arms) / 2
    if not (math.isfinite(half) and half >= 0 and 0 < interval.level < 1 and (interval.n > 1 or not student)):
        raise SemlinkError(
            f"{interval} tells no standard error: finite ends in order, a level in (0, 1) and n > 1 are expected"
        )
    freedom = interval.n - 1 if student else math.inf
    return _Estimate(interval.mean, half / t_quantile(0.5 + interval.level / 2, freedom), freedom)


def _difference(a: _Estimate, b: _Estimate) -> _Estimate:
    """Return the difference of independent estimates, with Welch and Satterthwaite's degrees of freedom."""
    error = math.hypot(a.error, b.error)
    inverse = sum((side.error / error) ** 4 / side.freedom for side in (a, b)) if error else 0.0
    return _Estimate(a.mean - b.mean, error, 1 / inverse if inverse else math.inf)


def _interval(estimate: _Estimate, n: int, method: str, level: float = 0.95, *, tested: bool = False) -> Interval:
    """Return the Student t interval and, if ``tested``, the p-value of the mean being 0."""
    mean, error, freedom = estimate
    half = t_quantile(0.5 + level / 2, freedom) * error
    return Interval(mean, mean - half, mean + half, n, method, level, _p_value(estimate) if tested else None)


def _p_value(estimate: _Estimate) -> float:
    from scipy.special import stdtr  # here, as it would take a fifth of the time to import semlink.metrics

    if not estimate.error:
        return float(estimate.mean == 0)
    return 2 * float(stdtr(estimate.freedom, -abs(estimate.mean) / estimate.error))


def t_quantile(probability: float, freedom: float) -> float:
    """Return the quantile of Student's t for ``probability`` in [0.5, 1) and ``freedom > 0``, whole, broken or inf."""
    from scipy.special import stdtrit  # here, as in _p_value

    if not 0.5 <= probability < 1:
        raise SemlinkError(f"confidence level {2 * probability - 1:g}: a number between 0 and 1 is expected")
    return float(stdtrit(freedom, probability))
