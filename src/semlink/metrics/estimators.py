# SPDX-License-Identifier: Apache-2.0
"""Estimates of mutual information for vectors of few dimensions. Estimates, not bounds: they err to either side.

All take ``x: (B, N, dx)`` and ``y: (B, N, dy)``, N samples of each of B pairs of variables, compute in float64 and
return (B,) bits. Of independent variables they give 0 on average, so single values may be negative. Every coordinate
is standardised first, so units do not matter.

Sources:
    A. Kraskov, H. Stögbauer, P. Grassberger, "Estimating mutual information", Phys. Rev. E 69, 066138, 2004, eq. (8).
    N. Misra, H. Singh, E. Demchuk, "Estimation of the entropy of a multivariate normal distribution", J. Multivariate
        Anal. 92(2), 2005, for the bias of a sample log-determinant.
    R. A. A. Ince et al., "A statistical framework for neuroimaging data analysis based on mutual information estimated
        via a Gaussian copula", Hum. Brain Mapp. 38(3), 2017.
"""

import math

import torch
from torch import Tensor

from semlink._errors import SemlinkError, check_whole

_CHUNK = 1 << 21  # distances held at a time
_SINGULAR = 1e-10  # share of a coordinate's variance that others leave unexplained; less is taken for none


def ksg_mi_bits(x: Tensor, y: Tensor, k: int = 3) -> Tensor:
    """Return the estimate of Kraskov, Stögbauer and Grassberger from distances to the k-th neighbour, their first.

    ``psi(k) + psi(N) - mean(psi(n_x + 1) + psi(n_y + 1))``, n_x and n_y counting the samples whose distance in x and in
    y alone is below that of the k-th neighbour in both; every norm is the maximum norm. Strong dependence is
    underestimated: of identical variables it gives psi(N) - psi(k) nats, about log2(N / k) bits, and never much more.

    Args:
        x: (B, N, dx) floating, of continuous variables.
        y: (B, N, dy).
        k: neighbours; fewer mean less bias and more variance.

    Returns:
        (B,) float64, bits.

    Raises:
        SemlinkError: shapes do not fit; a value is not finite or a coordinate constant; N is at most k, or below
            2^(dx + dy), so that samples have no neighbours worth the name; more than k samples coincide.
    """
    x, y = _standardised(x), _standardised(y)
    pairs, samples, dimensions = _sizes(x, y)
    if samples <= check_whole("k", k):
        raise SemlinkError(f"{samples} samples have no neighbour number {k}: more than k samples are needed")
    if samples < 2**dimensions:
        raise SemlinkError(
            f"{samples} samples of {dimensions} dimensions in all: nearest neighbours need at least {2**dimensions}; "
            "project to fewer dimensions, or use gaussian_mi_bits"
        )
    total = x.new_zeros(pairs)
    for rows in torch.arange(samples, device=x.device).split(max(1, _CHUNK // (pairs * samples))):
        in_x, in_y = (torch.cdist(v[:, rows], v, p=math.inf) for v in (x, y))
        radius = torch.maximum(in_x, in_y).kthvalue(k + 1, dim=2, keepdim=True).values  # the first is the sample itself
        if not bool((radius > 0).all()):
            raise SemlinkError(
                f"more than {k} samples coincide: neighbours need continuous variables, not discrete ones"
            )
        for distance in (in_x, in_y):
            total += torch.digamma((distance < radius).sum(2).double()).sum(1)  # the sample itself is the "+ 1"
    constants = torch.digamma(torch.tensor([k, samples], dtype=torch.float64)).sum().item()
    return (constants - total / samples) / math.log(2)


def gaussian_mi_bits(x: Tensor, y: Tensor) -> Tensor:
    """Return the mutual information of jointly Gaussian vectors, ``1/2 log2 (|S_x| |S_y| / |S_xy|)``, without bias.

    Sample covariances make this too large by about dx dy / (2 N) nats; the exact excess, a sum of digammas, is taken
    away. Of other distributions it sees the linear dependence only.

    Args:
        x: (B, N, dx) floating.
        y: (B, N, dy).

    Returns:
        (B,) float64, bits.

    Raises:
        SemlinkError: shapes do not fit; a value is not finite or a coordinate constant; N is at most dx + dy; a
            coordinate is a linear function of others, within a vector or across the two.
    """
    x, y = _standardised(x), _standardised(y)
    _, samples, dimensions = _sizes(x, y)
    if samples <= dimensions:
        raise SemlinkError(
            f"{samples} samples of {dimensions} dimensions in all: a covariance needs more samples than dimensions"
        )
    alone, given_x = _log_variances(y, "within y"), _log_variances(torch.cat([x, y], 2), "in x and y together")
    excess = _log_determinant_bias(y) - _log_determinant_bias(torch.cat([x, y], 2)) + _log_determinant_bias(x)
    return (alone.sum(1) - given_x[:, x.shape[2] :].sum(1) - excess) / (2 * math.log(2))


def copula_mi_bits(x: Tensor, y: Tensor) -> Tensor:
    """Return :func:`gaussian_mi_bits` after each coordinate is made Gaussian by its ranks.

    Monotone maps of the coordinates change nothing. With one coordinate a side, the limit for many samples is a lower
    bound of the mutual information, as no joint density with these margins has more entropy than the Gaussian one; with
    more coordinates it has no direction.

    Args:
        x: (B, N, dx) floating.
        y: (B, N, dy).

    Returns:
        (B,) float64, bits.

    Raises:
        SemlinkError: as :func:`gaussian_mi_bits`, of the ranks.
    """
    return gaussian_mi_bits(_gaussian_scores(_standardised(x)), _gaussian_scores(_standardised(y)))


def _standardised(values: Tensor) -> Tensor:
    """Return ``values: (B, N, d)`` with zero mean and unit variance over the samples, float64."""
    if values.ndim != 3 or values.shape[1] < 2 or not values.numel():
        raise SemlinkError(f"samples of shape {tuple(values.shape)}: (pairs, samples, dimensions) is expected")
    v = values.detach().double()
    if not bool(v.isfinite().all()):
        raise SemlinkError("a sample is not finite; leave such samples out, in x and y alike")
    flat = (v == v[:, :1]).all(1)
    if bool(flat.any()):
        pair, coordinate = flat.nonzero()[0].tolist()
        raise SemlinkError(f"coordinate {coordinate} of pair {pair} is constant; leave it out, it tells nothing")
    return (v - v.mean(1, keepdim=True)) / v.std(1, keepdim=True)


def _sizes(x: Tensor, y: Tensor) -> tuple[int, int, int]:
    """Return the numbers of pairs, of samples and of dimensions of both sides together."""
    if x.shape[:2] != y.shape[:2]:
        raise SemlinkError(
            f"x {tuple(x.shape)} and y {tuple(y.shape)}: the same pairs and samples are expected on both sides"
        )
    return x.shape[0], x.shape[1], x.shape[2] + y.shape[2]


def _log_variances(values: Tensor, where: str) -> Tensor:
    """Return the logarithm of what variance each coordinate has left, given those before it: (B, d)."""
    factor, failed = torch.linalg.cholesky_ex(values.mT @ values / (values.shape[1] - 1))
    left = factor.diagonal(dim1=1, dim2=2).square()
    singular = (failed > 0) | ~(left > _SINGULAR).all(1)
    if bool(singular.any()):
        raise SemlinkError(
            f"a coordinate of pair {int(singular.nonzero()[0])} is a linear function of others {where}: between x and "
            "y that is infinite information; within one, leave the coordinate out"
        )
    return left.log()


def _log_determinant_bias(values: Tensor) -> float:
    """Return ``E ln |S| - ln |Sigma|`` of Gaussian samples (B, N, d), but for a term that is linear in d."""
    freedom = values.shape[1] - 1
    halves = (freedom - torch.arange(values.shape[2], dtype=torch.float64)) / 2
    return torch.digamma(halves).sum().item()


def _gaussian_scores(values: Tensor) -> Tensor:
    """Replace values (B, N, d) by normal quantiles of their ranks, ties sharing the mean rank."""
    columns = values.mT.contiguous()
    ordered = columns.sort(2).values
    below, up_to = torch.searchsorted(ordered, columns), torch.searchsorted(ordered, columns, right=True)
    ranks = (below + up_to + 1).double() / 2
    return torch.special.ndtri(ranks / (values.shape[1] + 1)).mT
