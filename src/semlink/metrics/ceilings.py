# SPDX-License-Identifier: Apache-2.0
"""What an eavesdropper can learn at most: upper bounds of I(images; what is received), in bits per image.

None looks at data, so none can be fooled by a weak attack. They hold for whatever is asked about an image, once per
transmission: q transmissions of one image have q times these bits. Besides, nothing tells more about an attribute than
its entropy.

Where the channel is heard: one antenna, AWGN, Es/N0 of ``snr_db`` at the eavesdropper. Over fading of unit mean power,
:func:`constellation_capacity` and the capacity of the channel hold on average, as information for fixed inputs is
concave in the SNR; :func:`hard_capacity` does not.

Sources:
    S. Arimoto, "An algorithm for computing the capacity of arbitrary discrete memoryless channels"; R. E. Blahut,
        "Computation of channel capacity and rate-distortion functions", both IEEE Trans. Inf. Theory 18, 1972.
    T. M. Cover, J. A. Thomas, "Elements of information theory", 2nd ed., chapters 7 and 12.
    M. Ye, A. Barg, "Optimal schemes for discrete distribution estimation under locally differential privacy", IEEE
        Trans. Inf. Theory 64(8), 2018, for the mechanism that reaches :func:`ldp_bits`.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from semlink import phy
from semlink._errors import SemlinkError, check_number, check_positive, check_whole

_TOLERANCE_BITS = 1e-6
_ROUNDS = 20_000


class Capacity(NamedTuple):
    """The largest mutual information over all input distributions, from above.

    Attributes:
        bits: at least the capacity.
        gap_bits: the capacity is at least ``bits - gap_bits``.
    """

    bits: float
    gap_bits: float


def discrete_capacity(transition: np.ndarray) -> Capacity:
    """Return the capacity of a discrete memoryless channel in bits per use, by Blahut and Arimoto's algorithm.

    For any input distribution p, sum_i p_i D_i <= C <= max_i D_i, where D_i is the divergence of the output when i is
    sent from the output under p; the algorithm multiplies p_i by exp(D_i) until the two are 1e-6 bits apart. Should
    20,000 rounds not do, the value is an upper bound all the same and the gap says how good.

    Args:
        transition: (M, N), row i the distribution of the output when i is sent.

    Raises:
        SemlinkError: the matrix has another shape, negative entries or rows that do not sum to 1.
    """
    w = np.asarray(transition, dtype=float)
    if w.ndim != 2 or not w.size or not (w > -1e-9).all() or not np.allclose(w.sum(1), 1, atol=1e-6):
        raise SemlinkError(f"transition matrix of shape {w.shape}: rows of probabilities that sum to 1 are expected")
    w = w.clip(0)
    own = (w * np.log(np.where(w > 0, w, 1))).sum(1)
    return _maximised(lambda p: own - w @ np.log((p @ w).clip(1e-300)), len(w))


def constellation_capacity(constellation: phy.Constellation, snr_db: float) -> Capacity:
    """Return what a symbol of a constellation can carry to a soft receiver over AWGN, in bits, at the best input.

    The points are taken as they are and N0 is ``10^(-snr_db / 10)``. A symbol of QAM is two independent rails, so the
    best input is a product and one rail is maximised, its output integrated by 64 Gauss-Hermite nodes. For PSK uniform
    indices are best, by symmetry. The integrals err by less than 1e-5 bits.

    Raises:
        SemlinkError: ``snr_db`` is not a number from -100 to 100.
    """
    snr_db = _checked(snr_db)
    if constellation.family == "psk":
        return Capacity(phy.soft_mutual_information_bits(constellation, snr_db), 0.0)
    levels = constellation.rails[: math.isqrt(constellation.order), 0].cpu().double().numpy()
    nodes, weights = np.polynomial.hermite.hermgauss(64)
    n0 = 10 ** (-snr_db / 10)
    apart = (levels[:, None, None] - levels) / math.sqrt(n0)
    ratios = np.exp(-apart * (apart + 2 * nodes[:, None]))  # (sent, node, candidate): e^(t^2 - (t + apart)^2)
    rail = _maximised(lambda p: -np.log(ratios @ p) @ weights / math.sqrt(math.pi), len(levels))
    return Capacity(2 * rail.bits, 2 * rail.gap_bits)


def hard_capacity(constellation: phy.Constellation, snr_db: float) -> Capacity:
    """Return what a symbol carries over AWGN to a receiver known to keep nothing but the nearest point, in bits.

    No bound for an eavesdropper who may keep what she heard: hers is :func:`constellation_capacity`.

    Raises:
        SemlinkError: ``snr_db`` is not a number from -100 to 100.
    """
    return discrete_capacity(phy.transition_matrix(constellation, _checked(snr_db)))


def ldp_bits(epsilon: float) -> float:
    """Return what an epsilon-LDP release tells about its input at most, whatever the input: u - ln(1 + u) nats.

    1 + u = epsilon / (1 - e^-epsilon). Divide the probability of an output given each input by that of the output: the
    ratios r have mean 1 and lie within a factor e^epsilon, and E r ln r, convex, is largest if r takes the two ends
    only, with the best odds. Subset selection reaches it, so no better is possible. Near epsilon^2 / 8 nats for small
    epsilon, near epsilon - ln epsilon - 1 for large.

    Raises:
        SemlinkError: ``epsilon`` is negative or not finite.
    """
    if not check_number("epsilon", epsilon):
        return 0.0
    u = epsilon / -math.expm1(-epsilon) - 1
    return (u - math.log1p(u)) / math.log(2)


def laplace_bits(features: int, l1_radius: float, scale: float) -> float:
    """Return what features in an L1 ball tell at most through independent Laplace noise of that scale b, in bits.

    With r = l1_radius / b: ``d log2(1 + (r - 1 + e^-r) / d)``. The entropy of a coordinate y is at most ln(2 e E|y|),
    that of its noise is ln(2 e b), and E|y| = |x| + b e^(-|x| / b) given x; summed over the coordinates that is convex
    in |x|, so largest where one coordinate has all of the radius, and the logarithm is concave. For features clipped
    one by one take ``features * laplace_bits(1, clip, scale)``. Of one feature the true maximum is at least 0.6 of it.

    Raises:
        SemlinkError: ``features`` is no whole number above 0, or a number is not positive.
    """
    r = check_positive("l1_radius", l1_radius) / check_positive("scale", scale)
    return check_whole("features", features) * math.log1p((r + math.expm1(-r)) / features) / math.log(2)


def upper_bounds_bits(
    channel_uses: int, snr_db: float, payload_bits: int | None = None, constellation: phy.Constellation | None = None
) -> dict[str, float]:
    """Return every bound that applies to an eavesdropper of a link, to be printed beside the lower bounds.

    Args:
        channel_uses: symbols per image, of mean energy 1.
        snr_db: Es/N0 at the eavesdropper, in dB.
        payload_bits: of a digital link, per image; None if it is analog.
        constellation: of a digital link; None if its symbols may be any.

    Returns:
        Bits per image by name: ``payload`` (what is sent has no more entropy), ``constellation`` (soft outputs, the
        best input) and ``channel`` (n log2(1 + SNR)), the first two where given. Each holds, hence the least.

    Raises:
        SemlinkError: ``channel_uses`` or ``payload_bits`` is no whole number above 0; ``snr_db`` is not from -100 to
            100.
    """
    check_whole("channel_uses", channel_uses)
    bounds = {}
    if payload_bits is not None:
        bounds["payload"] = float(check_whole("payload_bits", payload_bits))
    if constellation is not None:
        bounds["constellation"] = channel_uses * constellation_capacity(constellation, snr_db).bits
    return bounds | {"channel": phy.capacity_bits(channel_uses, _checked(snr_db))}


def _maximised(divergences: Callable[[np.ndarray], np.ndarray], inputs: int) -> Capacity:
    """Run Blahut and Arimoto's algorithm; ``divergences`` maps positive p (M,) to D (M,) in nats."""
    log_p = np.full(inputs, -math.log(inputs))
    least, most = 0.0, math.inf
    for _ in range(_ROUNDS):
        p = np.exp(log_p.clip(-600))  # an input that is useless must not vanish altogether
        d = divergences(p)
        least, most = max(least, float(p @ d)), min(most, float(d.max()))
        if most - least <= _TOLERANCE_BITS * math.log(2):
            break
        log_p = log_p + d
        log_p -= np.logaddexp.reduce(log_p)
    return Capacity(most / math.log(2), max(0.0, most - least) / math.log(2))


def _checked(snr_db: float) -> float:
    return check_number("snr_db", snr_db, -100, 100)
