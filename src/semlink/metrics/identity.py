# SPDX-License-Identifier: Apache-2.0
"""Whether a reconstruction gives away which image it is of, or who is on it.

A picture may have little PSNR and still be like no other image but its own, or keep the face and lose all else.

Sources: N. A. Obuchowski, "Nonparametric analysis of clustered ROC curve data", Biometrics 53(2), 1997, for DeLong's
variance with clusters as units; the second side of each comparison is clustered here too.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from semlink._errors import SemlinkError, check_whole
from semlink.metrics.quality import pair
from semlink.metrics.statistics import Interval, t_quantile

_TIED = 1e-9  # mean squared errors nearer than this are equal: they differ by rounding alone
_CHUNK = 1 << 21  # pairs compared at a time


def retrieval(drawn: Tensor, images: Tensor, gallery: int = 500) -> Tensor:
    """Return 1 where, of the images of a gallery, the nearest to the reconstruction is its own original, else 0.

    The gallery of an image is the block of ``gallery`` consecutive images that it lies in; those behind the last whole
    block have the last ``gallery`` images. Nearest is by mean squared error over pixels. If t images are nearest, as
    copies of one image in the set are, the own one among them counts 1/t. So chance is 1 / gallery, and a
    reconstruction that is the same for all images scores exactly that over each whole block.

    Args:
        drawn: (B, C, H, W) floating, in [0, 1].
        images: same shape, the originals.
        gallery: how many images to choose from; results of different galleries cannot be compared.

    Returns:
        (B,) float32; NaN for a reconstruction that has one.

    Raises:
        SemlinkError: the shapes differ, are not (B, C, H, W), or the values are integers; ``gallery`` or the number of
            images is below 2.
    """
    drawn, images = pair(drawn, images)
    count = len(images)
    gallery = check_whole("the gallery of retrieval", min(gallery, count), 2)
    found = []
    for start in range(0, count, gallery):
        first = min(start, count - gallery)
        others = images[first : first + gallery].flatten(1).double()  # float32, and TF32 more so, would make up ties
        asked = drawn[start : start + gallery].flatten(1).double()
        # |d - x|^2 less |d|^2, which is the same for every x
        apart = (others.square().sum(1) - 2 * asked @ others.T) / others.shape[1]
        nearest = apart <= apart.amin(1, keepdim=True) + _TIED
        own = nearest.diagonal(start - first)
        found.append(own.double() / nearest.sum(1))
    return torch.cat(found).float()


def verification_auc(
    features_drawn: Tensor, features_other: Tensor, identities: Tensor, identities_other: Tensor, level: float = 0.95
) -> Interval:
    """Return how well reconstructions tell whether another photograph is of the same person: AUC over pairs.

    Every reconstruction is compared with every photograph by the cosine of their features. The AUC is the probability
    that a pair of one person is more alike than a pair of two; a tie counts half, 1/2 is chance. An image is never
    compared with itself: row i of both sides is taken to be the same image if the person is.

    The person is the unit, not the pair: each takes part in many pairs, with different people as well. The variance is
    that of DeLong with persons as clusters (the infinitesimal jackknife: what the AUC would change by if a person
    weighed more), the interval Student's t on the logit scale. Where no pair is out of order, or every one, the
    variance is 0 and the rule of three serves, over the persons who have a pair of their own.

    Args:
        features_drawn: (n, d), features of reconstructions.
        features_other: (m, d), features of photographs, of the same images in the same order or of others.
        identities: (n,) int64, who is on the image behind each reconstruction.
        identities_other: (m,) int64, who is on each photograph.
        level: confidence, in (0, 1).

    Returns:
        The AUC; ``n`` counts the persons of both sides.

    Raises:
        SemlinkError: no person has two images, or all images are of one person; the shapes do not fit; a feature is not
            finite.
    """
    drawn, other = _directions(features_drawn, identities), _directions(features_other, identities_other)
    if drawn.shape[1] != other.shape[1]:
        raise SemlinkError(f"features of {drawn.shape[1]} and of {other.shape[1]} numbers cannot be compared")
    persons, numbered = torch.cat([identities, identities_other]).to(drawn.device).unique(return_inverse=True)
    who, whom = numbered.split([len(drawn), len(other)])
    same = who[:, None] == whom
    same.fill_diagonal_(False)
    left, right = same.nonzero().unbind(1)
    if not len(left):
        raise SemlinkError("no person has two images, so there is nothing to verify; give more images of each person")
    alike, order = (drawn[left] * other[right]).sum(1).float().sort()  # float32, so that rounding undoes no tie
    pairs = len(alike)
    below = torch.zeros(pairs + 1, dtype=torch.float64, device=drawn.device)
    met = torch.zeros(len(persons), dtype=torch.float64, device=drawn.device)  # pairs of two, by each of the two
    lost = torch.zeros_like(met)  # the sum over those of the share of pairs of one person that they are above
    for rows in torch.arange(len(drawn), device=drawn.device).split(max(1, _CHUNK // len(other))):
        row, column = (who[rows, None] != whom).nonzero().unbind(1)
        scores = (drawn[rows] @ other.T).float()[row, column]
        under = torch.searchsorted(alike, scores), torch.searchsorted(alike, scores, right=True)
        below += sum(torch.bincount(each, minlength=pairs + 1) for each in under) / 2
        above = (under[0] + under[1]).double() / (2 * pairs)
        for persons_of in (who[rows][row], whom[column]):
            lost += torch.bincount(persons_of, above, len(persons))
            met += torch.bincount(persons_of, minlength=len(persons))
    different = float(below.sum())
    if not different:
        raise SemlinkError("all images are of one person; give images of others too")
    wins = below.cumsum(0)[:-1] / different  # of each pair of one person: the share of the others that it is above
    area = float(wins.mean())
    own = torch.bincount(who[left[order]], minlength=len(persons)).double()
    gained = (torch.bincount(who[left[order]], wins, len(persons)) - area * own) / pairs
    influence = gained + ((1 - area) * met - lost) / different
    units = len(persons)
    error = math.sqrt(float(influence.square().sum()) * units / (units - 1))
    if error > 1e-12:
        half = t_quantile(0.5 + level / 2, units - 1) * error / (area * (1 - area))
        centre = math.log(area / (1 - area))
        low, high = (1 / (1 + math.exp(-(centre + side * half))) for side in (-1, 1))
    else:
        slack = min(1.0, -math.log(1 - level) / int((own > 0).sum()))
        low, high = max(0.0, area - slack), min(1.0, area + slack)
    return Interval(area, low, high, units, "delong over persons, logit", level)


def _directions(features: Tensor, identities: Tensor) -> Tensor:
    """Return features (n, d) at unit length, float64."""
    if features.ndim != 2 or identities.shape != features.shape[:1]:
        raise SemlinkError(
            f"features {tuple(features.shape)} and identities {tuple(identities.shape)}: (n, d) and (n,) are expected"
        )
    if not bool(features.isfinite().all()):
        raise SemlinkError("a feature is not finite; cosines need numbers")
    return F.normalize(features.detach().double(), dim=1)
