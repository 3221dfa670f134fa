# SPDX-License-Identifier: Apache-2.0
"""How well scores rank images with an attribute before images without it: ROC AUC and average precision.

Neither depends on a threshold, so neither rewards a constant answer to a rare attribute: its AUC is 1/2 and its average
precision the share of positives. Draws of one image share the image and are averaged before images are counted.

Sources: E. R. DeLong, D. M. DeLong, D. L. Clarke-Pearson, "Comparing the areas under two or more correlated receiver
operating characteristic curves", Biometrics 44(3), 1988, for the variance of an AUC; M. S. Pepe, "The statistical
evaluation of medical tests", 2003, section 5.2.5, for its interval on the logit scale.
"""

import math
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from semlink._errors import SemlinkError
from semlink.metrics.statistics import Interval

_RESAMPLES = 200
_CHUNK = 1 << 21  # weights held at a time


def auc(scores: Tensor, present: Tensor, level: float = 0.95) -> Interval:
    """Return the probability that an image with the attribute scores higher than one without; a tie counts half.

    DeLong's variance, the interval on the logit scale. Where no pair is out of order, or every one, the variance is 0
    and the rule of three serves: as many images as the rarer side has, none of which contradicts.

    Args:
        scores: (n,) or (draws, n), higher where the attribute is likelier.
        present: (n,), 0 or 1.
        level: confidence, in (0, 1).

    Raises:
        SemlinkError: the attribute is present in no image or in all; the shapes do not fit; a score is NaN.
    """
    rows, positive = _checked(scores, present)
    above, below = [], []  # the share of negatives that each positive beats, of positives that beat each negative
    for row in rows:
        with_it, without = row[positive], row[~positive]
        above.append(_share_below(without, with_it))
        below.append(1 - _share_below(with_it, without))
    wins, losses = torch.stack(above).mean(0), torch.stack(below).mean(0)
    area = float(wins.mean())
    error = math.sqrt(float(wins.var() / len(wins) + losses.var() / len(losses)))
    if error > 0:
        half = NormalDist().inv_cdf(0.5 + level / 2) * error / (area * (1 - area))
        centre = math.log(area / (1 - area))
        low, high = (1 / (1 + math.exp(-(centre + side * half))) for side in (-1, 1))
    else:
        slack = min(1.0, -math.log(1 - level) / min(len(wins), len(losses)))
        low, high = max(0.0, area - slack), min(1.0, area + slack)
    return Interval(area, low, high, len(positive), "delong over images, logit", level)


def average_precision(scores: Tensor, present: Tensor, level: float = 0.95) -> Interval:
    """Return the mean precision at the images with the attribute, best scores first, images of one score together.

    The interval is the percentile bootstrap over images, all draws of an image together.

    Args:
        scores: (n,) or (draws, n), higher where the attribute is likelier.
        present: (n,), 0 or 1.
        level: confidence, in (0, 1).

    Raises:
        SemlinkError: as :func:`auc`.
    """
    rows, positive = _checked(scores, present)
    images = len(positive)
    rng, resampled = np.random.default_rng(0), []
    for size in _shares(images):
        weights = torch.from_numpy(rng.multinomial(images, np.full(images, 1 / images), size=size)).double()
        drawn = weights @ positive.double()
        resampled.append(_precisions(rows, positive, weights[drawn > 0]))
    whole = _precisions(rows, positive, torch.ones(1, images, dtype=torch.float64))
    tail = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.cat(resampled).quantile(tail).tolist()
    return Interval(float(whole), low, high, images, "bootstrap over images", level)


def _checked(scores: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
    """Return scores (draws, n) float64 and which images have the attribute (n,)."""
    rows, positive = scores.double().reshape(-1, scores.shape[-1]), present > 0.5
    if scores.ndim not in (1, 2) or positive.shape != rows.shape[1:]:
        raise SemlinkError(
            f"scores {tuple(scores.shape)} and attribute {tuple(present.shape)}: (n,) or (draws, n), and (n,) expected"
        )
    if bool(rows.isnan().any()):
        raise SemlinkError("a score is NaN; ranks need numbers")
    if not 0 < int(positive.sum()) < len(positive):
        raise SemlinkError("an attribute that is present in no image, or in all, cannot be ranked")
    return rows.cpu(), positive.cpu()


def _share_below(others: Tensor, values: Tensor) -> Tensor:
    """Return, for each of ``values``, the share of ``others`` below it; equal ones count half."""
    ordered = others.sort().values
    left, right = torch.searchsorted(ordered, values), torch.searchsorted(ordered, values, right=True)
    return (left + right).double() / (2 * len(others))


def _shares(images: int) -> list[int]:
    """Return how many resamples are drawn at a time."""
    most = max(1, _CHUNK // images)
    return [min(most, _RESAMPLES - done) for done in range(0, _RESAMPLES, most)]


def _precisions(rows: Tensor, positive: Tensor, weights: Tensor) -> Tensor:
    """Return the average precision, mean over draws, for each row of ``weights: (R, n)``: (R,) float64."""
    total = torch.zeros(len(weights), dtype=torch.float64)
    for row in rows:
        order = row.argsort(descending=True)
        ordered = row[order]
        last = torch.cat([ordered[1:] != ordered[:-1], torch.ones(1, dtype=torch.bool)]).nonzero()[:, 0]
        seen = weights[:, order].cumsum(1)[:, last]
        found = (weights * positive)[:, order].cumsum(1)[:, last]
        gained = found.diff(dim=1, prepend=torch.zeros(len(weights), 1, dtype=torch.float64))
        total += (gained * found / seen.clamp_min(1)).sum(1) / found[:, -1]
    return total / len(rows)
