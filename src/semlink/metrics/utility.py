# SPDX-License-Identifier: Apache-2.0
"""Shares of right answers: accuracy, balanced accuracy, and both for binary attributes."""

import math
from statistics import NormalDist

import torch
from torch import Tensor

from semlink._errors import SemlinkError
from semlink.metrics.statistics import Interval, mean_interval, per_image, t_quantile


def accuracy(correct: Tensor, level: float = 0.95) -> Interval:
    """Return the mean accuracy over images.

    Several draws: Student t over the images' means, cut to [0, 1]. One draw (each image right or wrong), or all images
    alike: Wilson's score interval, which does not collapse when all are right.

    Args:
        correct: (n,) or (draws, n), each 0 or 1 (or a share).
        level: confidence, in (0, 1).

    Raises:
        SemlinkError: fewer than two images, or a value is not in [0, 1].
    """
    images = _shares(correct)
    binary = bool(((images == 0) | (images == 1)).all())
    if binary or float(images.var()) == 0:
        return _wilson(float(images.mean()), len(images), len(images), level)
    interval = mean_interval(images, level)
    return Interval(
        interval.mean, max(0.0, interval.low), min(1.0, interval.high), interval.n, interval.method, interval.level
    )


def balanced_accuracy(correct: Tensor, labels: Tensor, level: float = 0.95) -> Interval:
    """Return the mean of the class means, over the classes that occur in ``labels``.

    Classes are strata: the variance is the sum of s_c^2 / n_c over classes, divided by their squared number, with Welch
    and Satterthwaite's degrees of freedom. A class with one image gets 1/4, the largest variance of a value in [0, 1].

    Args:
        correct: (n,) or (draws, n), each 0 or 1 (or a share).
        labels: (n,) int64.
        level: confidence, in (0, 1).

    Raises:
        SemlinkError: as :func:`accuracy`; the number of labels is not n.
    """
    images = _shares(correct)
    if labels.shape != images.shape:
        raise SemlinkError(f"{len(images)} images but labels {tuple(labels.shape)}; one label per image is expected")
    classes, index = labels.to(images.device).unique(return_inverse=True)
    count = torch.bincount(index, minlength=len(classes)).double()
    means = torch.bincount(index, weights=images, minlength=len(classes)) / count
    spread = torch.bincount(index, weights=(images - means[index]).square(), minlength=len(classes))
    variance = torch.where(count > 1, spread / (count - 1).clamp_min(1), 0.25)
    terms = variance / count / len(classes) ** 2
    mean, total = float(means.mean()), float(terms.sum())
    if total == 0:  # every class all alike: Wilson with the sample size that would have the same variance
        return _wilson(mean, len(images), len(classes) ** 2 / float((1 / count).sum()), level)
    freedom = total**2 / float((terms.square() / (count - 1).clamp_min(1)).sum())
    half = t_quantile(0.5 + level / 2, freedom) * math.sqrt(total)
    low, high = max(0.0, mean - half), min(1.0, mean + half)
    return Interval(mean, low, high, len(images), "student-t over images in classes", level)


def attribute_accuracy(correct: Tensor, level: float = 0.95) -> list[Interval]:
    """Return the accuracy of each attribute.

    Args:
        correct: (n, A) or (draws, n, A), from :func:`correct_attributes`.
        level: confidence, in (0, 1).

    Raises:
        SemlinkError: as :func:`accuracy`.
    """
    return [accuracy(column, level) for column in _columns(correct)]


def attribute_balanced_accuracy(correct: Tensor, attributes: Tensor, level: float = 0.95) -> list[Interval]:
    """Return the balanced accuracy of each attribute: the mean of the shares right where it is present and absent.

    If all images agree on an attribute only that one class counts.

    Args:
        correct: (n, A) or (draws, n, A), from :func:`correct_attributes`.
        attributes: (n, A), 0 or 1.
        level: confidence, in (0, 1).

    Raises:
        SemlinkError: as :func:`balanced_accuracy`.
    """
    columns, present = _columns(correct), (attributes > 0.5).long()
    if present.ndim != 2 or present.shape[1] != len(columns):
        raise SemlinkError(f"answers to {len(columns)} attributes do not fit attributes {tuple(attributes.shape)}")
    return [balanced_accuracy(column, present[:, i], level) for i, column in enumerate(columns)]


def _columns(correct: Tensor) -> tuple[Tensor, ...]:
    if correct.ndim not in (2, 3):
        raise SemlinkError(f"answers of shape {tuple(correct.shape)}: (n, A) or (draws, n, A) is expected")
    return correct.unbind(-1)


def _shares(correct: Tensor) -> Tensor:
    if not bool(((correct >= 0) & (correct <= 1)).all()):
        raise SemlinkError("shares of right answers must lie in [0, 1]; give 0 and 1, not percent")
    return per_image(correct)


def _wilson(share: float, images: int, effective: float, level: float) -> Interval:
    """Return the score interval of E. B. Wilson (JASA 22, 1927) for a share of ``effective`` trials."""
    z2 = NormalDist().inv_cdf(0.5 + level / 2) ** 2
    centre = (share + z2 / (2 * effective)) / (1 + z2 / effective)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * effective)) / effective) / (1 + z2 / effective)
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half), images, "wilson over images", level)
