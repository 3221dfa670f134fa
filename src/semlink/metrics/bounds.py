# SPDX-License-Identifier: Apache-2.0
"""What an eavesdropper learns at least: lower bounds of the mutual information I(A; Y), from predictions never seen.

A is what is to be kept secret (an attribute, an image), Y what the eavesdropper receives. A critic f(a, y) or a
predictor q(a | y) is trained on other images; whatever it is, in expectation each bound stays below I(A; Y), and a
better one comes closer. A low value says that this critic found little, not that there is little to find: print
:func:`semlink.metrics.upper_bounds_bits` beside it. 0 is always a bound, so a negative value says nothing.

The limits are one-sided: the information exceeds ``low_bits`` with confidence ``level``. The unit is the held-out
sample. A score of a matrix belongs to two samples, hence the jackknife that leaves out one sample, row and column.
Several noise draws of one image are not several samples: take one draw of each.

No value without a direction is among these bounds: SMILE is an estimate, and so is the likelihood of an image under a
decoder less an entropy of images that nobody knows.

Sources:
    A. van den Oord, Y. Li, O. Vinyals, "Representation learning with contrastive predictive coding", 2018.
    X. Nguyen, M. J. Wainwright, M. I. Jordan, "Estimating divergence functionals and the likelihood ratio by convex
        risk minimization", IEEE Trans. Inf. Theory 56(11), 2010.
    B. Poole, S. Ozair, A. van den Oord, A. A. Alemi, G. Tucker, "On variational bounds of mutual information", ICML
        2019, section 2, for all three bounds in one notation.
    D. McAllester, K. Stratos, "Formal limitations on the measurement of mutual information", AISTATS 2020.
    J. Song, S. Ermon, "Understanding the limitations of variational mutual information estimators", ICLR 2020.
    B. Efron, C. Stein, "The jackknife estimate of variance", Ann. Statist. 9(3), 1981.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from semlink._errors import SemlinkError, check_positive
from semlink.metrics.statistics import t_quantile


@dataclass(frozen=True)
class LowerBound:
    """A lower bound of I(A; Y) on held-out samples.

    Attributes:
        bits: the bound as estimated.
        low_bits: its lower confidence limit, one-sided; the number to be claimed.
        cap_bits: what ``bits`` cannot exceed on these samples however much is leaked; None if there is no such value.
        n: number of samples.
        method: which bound, and how the limit was found.
        level: confidence of ``low_bits``.
    """

    bits: float
    low_bits: float
    cap_bits: float | None
    n: int
    method: str
    level: float = 0.95


def infonce_bits(scores: Tensor, level: float = 0.95) -> LowerBound:
    """Return InfoNCE: how well the critic finds the y of each a among N.

    ``log N + mean_i (f_ii - log sum_j exp f_ij)``, which is at most log N: ``cap_bits``. Near it the bound is saturated
    and only more samples raise it. Adding a number to all scores of one row changes nothing.

    Args:
        scores: (N, N) floating; entry (i, j) is the critic's f(a_i, y_j).
        level: confidence of the lower limit, from 0.5 to below 1.

    Raises:
        SemlinkError: the matrix is not square, has fewer than 3 rows or an entry that is not finite; a bad level.
    """
    f = _matrix(scores)
    n = len(f)
    hits, total = f.diagonal(), f.logsumexp(1)
    # [i, k] is the log-sum of row i without column k: a subtraction, but where k is the largest a sum of the others.
    top = f.argmax(1, keepdim=True)
    without = (total[:, None] + torch.log1p(-f.softmax(1))).scatter(
        1, top, f.scatter(1, top, -math.inf).logsumexp(1, keepdim=True)
    )
    gains = (hits[:, None] - without).fill_diagonal_(0)
    replicates = gains.sum(0) / (n - 1)
    value = float((hits - total).mean()) + math.log(n)
    return _jackknifed(value, replicates, math.log2(n), "infonce", level)


def nwj_bits(scores: Tensor, level: float = 0.95) -> LowerBound:
    """Return the bound of Nguyen, Wainwright and Jordan: ``mean_i f_ii - mean_{i != j} exp(f_ij - 1)`` in bits.

    The best critic is 1 + ln p(a, y) / (p(a) p(y)). There is no cap in expectation, but the mean of exponentials lives
    on rare large scores: its variance grows as exp(I), and while they have not been seen the bound is too high. Its
    limit is therefore not to be trusted much above ln N, where no method has one (McAllester and Stratos).

    Args:
        scores: (N, N) floating; entry (i, j) is the critic's f(a_i, y_j).
        level: confidence of the lower limit, from 0.5 to below 1.

    Raises:
        SemlinkError: as :func:`infonce_bits`; a score is too large for its exponential.
    """
    f = _matrix(scores)
    n, hits = len(f), f.diagonal()
    weights = (f - 1).exp().fill_diagonal_(0)
    mass = weights.sum()
    if not bool(mass.isfinite()):
        raise SemlinkError(f"scores reach {float(f.max()):g}: NWJ takes their exponential; bound the critic below 700")
    value = float(hits.mean() - mass / (n * (n - 1)))
    rest = mass - weights.sum(0) - weights.sum(1)
    replicates = (hits.sum() - hits) / (n - 1) - rest / ((n - 1) * (n - 2))
    return _jackknifed(value, replicates, None, "nwj", level)


def classifier_bits(log_probabilities: Tensor, labels: Tensor, level: float = 0.95) -> LowerBound:
    """Return H(A) minus the cross-entropy of a predictor of the discrete A: I(A; Y) - E KL(p(a | y) || q(a | y)).

    H(A) is that of the labels given (``cap_bits``): in expectation a little below the true one, on the safe side. Its
    error is part of the limit: one sample contributes log q(a_i | y_i) - log share(a_i).

    Args:
        log_probabilities: (N, K) natural logarithms of the predicted q(a | y), of held-out samples.
        labels: (N,) whole numbers from 0 to K - 1.
        level: confidence of the lower limit, from 0.5 to below 1.

    Raises:
        SemlinkError: the shapes do not fit, there are fewer than 3 samples, a row does not sum to 1 within 0.001, a
            label is no index of a column or was given probability 0; a bad level.
    """
    if log_probabilities.ndim != 2 or labels.shape != log_probabilities.shape[:1] or len(labels) < 3:
        raise SemlinkError(
            f"log-probabilities {tuple(log_probabilities.shape)} and labels {tuple(labels.shape)}: (N, K) and (N,) of "
            "at least 3 samples are expected"
        )
    logs = log_probabilities.detach().double()
    if not bool((logs.logsumexp(1).abs() < 1e-3).all()):  # NaN ends here too
        raise SemlinkError("log-probabilities do not sum to 1 in every row; give log_softmax of the logits")
    classes, a = logs.shape[1], labels.to(logs.device)
    if a.is_floating_point() or not bool(((a >= 0) & (a < classes)).all()):
        raise SemlinkError(f"labels from {a.min()} to {a.max()}: whole numbers from 0 to {classes - 1} are expected")
    a = a.long()
    given = logs.log_softmax(1).gather(1, a[:, None])[:, 0]
    if not bool(given.isfinite().all()):
        raise SemlinkError(
            "a label was given probability 0, which makes the bound minus infinity; smooth the predictor"
        )
    shares = (torch.bincount(a, minlength=classes).double() / len(a)).log()[a]
    gains = (given - shares) / math.log(2)
    error = float(gains.std()) / math.sqrt(len(gains))
    entropy = -float(shares.mean()) / math.log(2)
    return _bound(float(gains.mean()), error, len(gains), entropy, "entropy less cross-entropy, student-t", level)


def smile_estimate_bits(scores: Tensor, clip: float = 5.0) -> float:
    """Return SMILE, an estimate of I(A; Y) that may lie on either side of it: never call it a bound.

    ``mean_i f_ii - log mean_{i != j} exp(clip(f_ij))`` in bits: of Donsker and Varadhan's form, whose best critic is
    ln p(a, y) / (p(a) p(y)) plus any number. Clipping tames the variance and takes away the direction.

    Args:
        scores: (N, N) floating; entry (i, j) is the critic's f(a_i, y_j).
        clip: scores of unrelated pairs are clipped to [-clip, clip], in nats.

    Raises:
        SemlinkError: as :func:`infonce_bits`; ``clip`` is not positive.
    """
    f = _matrix(scores)
    check_positive("clip", clip)
    unrelated = f[~torch.eye(len(f), dtype=torch.bool, device=f.device)].clamp(-clip, clip)
    return float(f.diagonal().mean() - unrelated.logsumexp(0) + math.log(len(unrelated))) / math.log(2)


def _matrix(scores: Tensor) -> Tensor:
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or len(scores) < 3:
        raise SemlinkError(f"scores of shape {tuple(scores.shape)}: (N, N) of at least 3 samples is expected")
    f = scores.detach().double()
    bad = int((~f.isfinite()).sum())
    if bad:
        raise SemlinkError(f"{bad} of {f.numel()} scores are not finite; the critic's output has to be")
    return f


def _jackknifed(nats: float, replicates: Tensor, cap_bits: float | None, name: str, level: float) -> LowerBound:
    """Return the bound whose value without sample k is ``replicates[k]`` in nats, but for a constant."""
    n = len(replicates)
    error = math.sqrt(float((replicates - replicates.mean()).square().sum()) * (n - 1) / n)
    return _bound(nats / math.log(2), error / math.log(2), n, cap_bits, f"{name}, jackknife over samples", level)


def _bound(bits: float, error: float, n: int, cap_bits: float | None, method: str, level: float) -> LowerBound:
    if not 0.5 <= level < 1:
        raise SemlinkError(f"level is {level!r}: a confidence from 0.5 to below 1 is expected")
    return LowerBound(bits, bits - t_quantile(level, n - 1) * error, cap_bits, n, method, level)
