# SPDX-License-Identifier: Apache-2.0
"""Differential privacy in numbers: what noise promises, once and after many releases, and an audit of the promise.

A release is (epsilon, delta)-DP if, for any two inputs and any event S, P(S | one) <= e^epsilon P(S | other) + delta.
It is mu-GDP if telling the two apart is at least as hard as telling N(0, 1) from N(mu, 1). In this project the inputs
are any two images, so every statement is about local DP.

Sources:
    B. Balle, Y.-X. Wang, "Improving the Gaussian mechanism for differential privacy", ICML 2018, theorem 8.
    J. Dong, A. Roth, W. J. Su, "Gaussian differential privacy", J. R. Stat. Soc. B 84(1), 2022, corollaries 1 and 2.
    P. Kairouz, S. Oh, P. Viswanath, "The composition theorem for differential privacy", ICML 2015, theorem 3.3.
    C. J. Clopper, E. S. Pearson, "The use of confidence or fiducial limits", Biometrika 26(4), 1934.
"""

import math
from collections.abc import Callable

import numpy as np

from semlink._errors import SemlinkError, check_number, check_positive, check_probability, check_whole


def gaussian_delta(mu: float, epsilon: float) -> float:
    """Return the smallest delta for which mu-GDP gives (epsilon, delta)-DP.

    ``Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu)``, Balle and Wang's eq. (6) with mu = sensitivity over
    standard deviation.

    Raises:
        SemlinkError: ``mu`` is not positive or ``epsilon`` is negative.
    """
    from scipy.special import log_ndtr, ndtr  # in functions throughout: importing it takes half a second

    check_positive("mu", mu)
    check_number("epsilon", epsilon)
    right, left = mu / 2 - epsilon / mu, -mu / 2 - epsilon / mu
    return max(0.0, float(ndtr(right) - np.exp(epsilon + log_ndtr(left))))  # as a product, the second would overflow


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Return the smallest epsilon for which mu-GDP gives (epsilon, delta)-DP; q releases are ``mu * sqrt(q)``-GDP.

    Raises:
        SemlinkError: ``mu`` is not positive or ``delta`` is not in (0, 1).
    """
    check_positive("mu", mu)
    check_probability("delta", delta)
    # Phi(-t) <= exp(-t^2 / 2) makes delta small enough at the upper end.
    highest = mu * mu / 2 + mu * math.sqrt(-2 * math.log(delta))
    return _falling_root(lambda epsilon: gaussian_delta(mu, epsilon) - delta, highest)


def gaussian_mu(epsilon: float, delta: float) -> float:
    """Return the largest mu for which mu-GDP gives (epsilon, delta)-DP; noise of ``sensitivity / mu`` achieves it.

    Raises:
        SemlinkError: ``epsilon`` is not positive or ``delta`` is not in (0, 1).
    """
    check_positive("epsilon", epsilon)
    check_probability("delta", delta)
    # At mu = delta even epsilon = 0 holds, as gaussian_delta(mu, 0) < mu / 2; at the upper end delta rounds to 1.
    lowest, highest = math.log(delta), 50 + math.log1p(epsilon) / 2
    return math.exp(_root(lambda log_mu: gaussian_delta(math.exp(log_mu), epsilon) - delta, lowest, highest))


def channel_mu(l2_sensitivity: float, snr_db: float) -> float:
    """Return the mu for which the noise of an AWGN channel makes what is received mu-GDP, whatever the transmitter did.

    A feature is a rail of a symbol times sqrt(2), so its noise has variance ``N0 = 10^(-snr_db / 10)`` where symbols
    have unit energy. The listener's own SNR counts: for an eavesdropper of unknown SNR this promises nothing, and over
    a fading channel, whose gain is not bounded, neither.

    Args:
        l2_sensitivity: largest Euclidean distance of the features of two images, ``2 sqrt(d)`` for d features of unit
            mean square.
        snr_db: Es/N0 in dB.

    Raises:
        SemlinkError: the sensitivity is not positive.
    """
    return check_positive("l2_sensitivity", l2_sensitivity) * 10 ** (snr_db / 20)


def composed_delta(epsilon: float, releases: int, total: float) -> float:
    """Return the smallest delta for which any ``releases`` epsilon-DP releases together are (``total``, delta)-DP.

    Randomised response with truth probability e^epsilon / (1 + e^epsilon) is the worst case. If l of q answers lie, the
    privacy loss is (q - 2 l) epsilon, and delta = E max(0, 1 - e^(total - loss)).

    Raises:
        SemlinkError: ``epsilon`` is not positive, ``releases`` is no whole number above 0, or ``total`` is negative.
    """
    from scipy.special import gammaln, log_expit

    check_positive("epsilon", epsilon)
    check_number("total", total)
    lies = np.arange(check_whole("releases", releases) + 1)
    truths = releases - lies
    ways = gammaln(releases + 1) - gammaln(lies + 1) - gammaln(truths + 1)
    likely = np.exp(ways + truths * log_expit(epsilon) + lies * log_expit(-epsilon))
    return float(likely @ -np.expm1(np.minimum(total - (truths - lies) * epsilon, 0)))


def composed_epsilon(epsilon: float, releases: int, delta: float) -> float:
    """Return the smallest total epsilon of ``releases`` epsilon-DP releases at ``delta``: below ``releases * epsilon``.

    No better is possible without knowing more of the mechanism than its epsilon.

    Raises:
        SemlinkError: as :func:`composed_delta`; ``delta`` is not in (0, 1).
    """
    check_probability("delta", delta)
    highest = check_positive("epsilon", epsilon) * check_whole("releases", releases)
    return _falling_root(lambda total: composed_delta(epsilon, releases, total) - delta, highest)


def accuracy_ceiling(epsilon: float, classes: int, delta: float = 0.0) -> float:
    """Return what balanced accuracy nobody can exceed who sees an (epsilon, delta)-DP release of the input alone.

    ``(e^epsilon + (K - 1) delta) / (e^epsilon + K - 1)``. Let S_y be the outputs answered y, and a the balanced
    accuracy. P(S_y | y') >= e^-epsilon (P(S_y | y) - delta), summed over all y' other than y and over y, is
    K (1 - a) >= (K - 1) e^-epsilon K (a - delta).

    Raises:
        SemlinkError: ``epsilon`` is negative, there are fewer than two classes, or ``delta`` is not in [0, 1].
    """
    check_number("epsilon", epsilon)
    if check_whole("classes", classes) < 2:
        raise SemlinkError(f"classes is {classes}: at least 2 are needed for a ceiling on accuracy")
    if delta:
        check_probability("delta", delta)
    others = (classes - 1) * math.exp(-epsilon)
    return (1 + others * delta) / (1 + others)


def clopper_pearson(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """Return the exact interval of a binomial share: each end is wrong with probability ``(1 - level) / 2`` at most.

    Raises:
        SemlinkError: ``successes`` is not from 0 to ``trials``, or ``level`` is not in (0, 1).
    """
    from scipy.special import betaincinv

    if not 0 <= successes <= check_whole("trials", trials):
        raise SemlinkError(f"{successes} successes in {trials} trials: from 0 to {trials} are expected")
    tail = (1 - check_probability("level", level)) / 2
    low = betaincinv(successes, trials - successes + 1, tail) if successes else 0.0
    high = betaincinv(successes + 1, trials - successes, 1 - tail) if successes < trials else 1.0
    return float(low), float(high)


def audited_epsilon(
    hits: int, trials: int, false_hits: int, false_trials: int, delta: float = 0.0, level: float = 0.95
) -> float:
    """Return a lower bound on the epsilon of a mechanism from how often an event told two inputs apart.

    A claim below it is refuted with confidence ``level``. The event, as "the output exceeds t", must be fixed before
    the outputs are counted. It and its complement both bound epsilon; the two share their intervals, so the larger
    bound holds too.

    Args:
        hits: outputs of the one input that fall into the event.
        trials: outputs of the one input.
        false_hits: outputs of the other input that fall into the event.
        false_trials: outputs of the other input.
        delta: of the claim under audit.
        level: confidence, in (0, 1).

    Raises:
        SemlinkError: as :func:`clopper_pearson`.
    """
    least, _ = clopper_pearson(hits, trials, level)
    _, most = clopper_pearson(false_hits, false_trials, level)
    ratios = (least - delta) / most, (1 - most - delta) / (1 - least)
    return math.log(max(1.0, *ratios))


def _falling_root(excess: Callable[[float], float], highest: float) -> float:
    """Return where ``excess``, which falls with its argument, reaches 0 in [0, highest]; 0 if it is never above 0."""
    return _root(excess, 0.0, highest) if excess(0.0) > 0 else 0.0


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    from scipy.optimize import root_scalar

    return float(root_scalar(function, method="brentq", bracket=(low, high), xtol=1e-13 * high).root)
