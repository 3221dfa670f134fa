# SPDX-License-Identifier: Apache-2.0
"""What an eavesdropper of a link can learn of an image at most, whatever she does: bounds from above, in bits.

They are of I(image; all that she hears of it), A antennas in T transmissions, for one who knows the weights, the key
and the gains of her channel: fewer means cannot make it more. Nothing is estimated from images. Public headers are
taken to tell nothing of the image, as those of every scheme here.

What is sent in several transmissions is either the same symbols again, so that she hears them A T times over and the
SNR of the combined receptions is A T times one's, or other symbols by noise or a nonce of the transmitter's, each drawn
anew; then her receptions are independent given image and key, and T times the bound of one transmission holds. Which it
is, is tried out.

Where the transmitter adds noise of its own (layered.py) to symbols that become weaker by it, bounds of the channel are
those at the weaker symbols: the noise can only take from what she hears.

Fading is of unit mean power, but for that of an interference channel, where all signals but the wanted one are taken
as Gaussian noise (phy/interfered.py). With its gains known, the bound of a channel is a mean over them; information is
concave in the SNR, so the value at the mean SNR is above it and serves where no mean is taken.

Sources: see semlink.metrics.ceilings; K. A. Hamdi, "Capacity of MRC on correlated Rician fading channels", IEEE Trans.
Commun. 56(5), 2008, for the mean of a logarithm by the moment generating function.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from semlink import phy
from semlink._errors import check_number
from semlink.attacks import Threat, medium_of
from semlink.metrics import (
    Interval,
    NotDifferentiable,
    constellation_capacity,
    fisher_leakage,
    hard_capacity,
    laplace_bits,
    ldp_bits,
    mean_interval,
)
from semlink.schemes import Link

if TYPE_CHECKING:
    from semlink.schemes.mechanism import Mechanism

_BATCH = 100  # images whose graph is held at a time


def upper_bounds(link: Link, threat: Threat, snr_db: float) -> dict[str, float]:
    """Return every bound that applies to an eavesdropper of ``link``, in bits per image, by name.

    ``payload_bits``: what is sent has no more entropy; digital schemes choose their payload by the image alone, so
        further transmissions add nothing.
    ``soft_capacity_bits``: symbols times the capacity of the scheme's constellation as it is scaled, at soft outputs
        and the best input, which at low SNR has more energy than the power constraint allows: ``channel_bits`` is
        then the smaller.
    ``hard_capacity_bits``: the same for one who keeps nothing but the nearest points. It holds for no other
        eavesdropper, so ``least`` leaves it out; over AWGN alone, and without noise of the transmitter's.
    ``channel_bits``: symbols times log2(1 + SNR), over fading its mean (ergodic capacity). It assumes the power
        constraint: a mean energy of at most 1 a symbol, over images.
    ``laplace_bits``: what features that were clipped tell through the transmitter's Laplace noise, at T transmissions.
    ``ldp_bits``: what a mechanism of that epsilon for the whole image can tell at most, at T transmissions; below
        epsilon T / ln 2.
    ``least``: the smallest of those that hold for every eavesdropper.

    Args:
        link: the victim; put in evaluation mode.
        threat: her means; its SNR is not looked at.
        snr_db: Es/N0 at each of her antennas, in dB.

    Raises:
        SemlinkError: ``snr_db`` is not from -100 to 100; the scheme cannot transmit, as for want of a key.
    """
    check_number("snr_db", snr_db, -100, 100)
    scheme, uses = link.scheme.eval(), link.scheme.design.channel_uses
    medium = medium_of(link, threat)
    heard, times = _receptions(link, threat)
    added = float(getattr(scheme, "noise_power", 0.0))
    bounds = {"channel_bits": times * uses * mean_capacity_bits(medium, snr_db, heard, added)}
    mean = 10 ** (snr_db / 10) if (bank := medium.sinr(snr_db)) is None else float(bank.mean())
    combined = 10 * math.log10(mean * heard / (1 + added))
    if (payload := _payload(link)) is not None:
        bounds["payload_bits"] = float(payload)
    if (points := _constellation(scheme.core)) is not None:
        bounds["soft_capacity_bits"] = times * uses * constellation_capacity(points, combined).bits
    bounds |= _of_mechanism(getattr(scheme.core, "mechanism", None), threat.transmissions)
    found = bounds | {"least": min(bounds.values())}
    if points is not None and isinstance(medium, phy.AWGN) and not added:
        found["hard_capacity_bits"] = times * uses * hard_capacity(points, combined).bits
    return found


def mean_capacity_bits(medium: phy.Channel, snr_db: float, receptions: int, added: float = 0.0) -> float:
    """Return the mean over gains of log2(1 + SNR), in bits per symbol, ``receptions`` of it combined by their gains.

    Over Rician fading of factor K, with g the sum of L squared gains and M(t) = E e^(-t g), it is the integral of
    ``(1 - M(SNR z)) e^-z / z`` over z from 0 in nats, M(t) being ``((1 + K) / (1 + K + t) e^(-K t / (1 + K + t)))^L``.
    Where SINRs are known it is the mean over those of one reception, the others' taken at their mean; of a channel that
    is not known here the value at the mean SNR. Both are above it, as the logarithm is concave.

    Args:
        medium: the channel.
        snr_db: Es/N0 of one reception, in dB.
        receptions: L, each with gains and noise of its own.
        added: noise power of the transmitter's over that of the wanted signal.
    """
    if (bank := medium.sinr(snr_db)) is not None:
        bank = bank.double() / (1 + added)
        return float(torch.log2(1 + bank + (receptions - 1) * bank.mean()).mean())
    snr_db -= 10 * math.log10(1 + added)
    snr = 10 ** (snr_db / 10)
    if not isinstance(medium, phy.Rician):
        return phy.capacity_bits(1, snr_db + 10 * math.log10(receptions))
    k = medium.k_factor
    low = -40 - max(0.0, math.log(snr * receptions))  # in u = ln z; below it and above 4 there is next to nothing
    u, step = np.linspace(low, 4, 4001, retstep=True)
    t = snr * np.exp(u)
    log_m = -receptions * (np.log1p(t / (1 + k)) + k * t / (1 + k + t))
    return float((-np.expm1(log_m) * np.exp(-np.exp(u))).sum() * step) / math.log(2)


def fisher(
    link: Link, images: Tensor, threat: Threat, snr_db: float, generator: torch.Generator, probes: int = 16
) -> Interval | None:
    """Return the diagonal Fisher information leakage of what she hears, the mean over images, or None.

    See :mod:`semlink.metrics.fisher`. Several receptions of the same symbols have so many times the information of one;
    over fading of unit mean power, gains known, so it is on average.

    Args:
        link: the victim; put in evaluation mode.
        images: (B, C, H, W) float32 in [0, 1], at least two.
        threat: her means; its SNR is not looked at.
        snr_db: Es/N0 at each of her antennas, in dB.
        generator: draws the probes.
        probes: backward passes for each image, at least 2.

    Returns:
        dFIL in the inverse of squared pixel values, with its interval over images. None, for not applicable, of a
        transmitter that quantises or draws noise or nonces.

    Raises:
        SemlinkError: fewer than 2 images or probes; ``snr_db`` is not from -100 to 100; the scheme cannot transmit, as
            for want of a key.
    """
    check_number("snr_db", snr_db, -100, 100)
    scheme = link.scheme.eval()
    if not _repeats(link, images[:4]):
        return None
    medium, snr = medium_of(link, threat), 10 ** (snr_db / 10)
    heard = snr if (bank := medium.sinr(snr_db)) is None else float(bank.mean())
    variance = 1 / (heard * threat.antennas * threat.transmissions)
    silent = torch.Generator()  # asked for nothing, since what is sent does not depend on it
    try:
        found = [
            fisher_leakage(lambda x: scheme.transmit(x, silent).symbols, part, variance, generator, probes).dfil
            for part in images.split(_BATCH)
        ]
    except NotDifferentiable:
        return None
    return mean_interval(torch.cat(found))


def _receptions(link: Link, threat: Threat) -> tuple[int, int]:
    """Return how many receptions of the same symbols she combines, and how many times she has others."""
    if threat.transmissions == 1 or _repeats(link, _any_images(link)):
        return threat.antennas * threat.transmissions, 1
    return threat.antennas, threat.transmissions


def _repeats(link: Link, images: Tensor) -> bool:
    """Say whether an image is sent as the same symbols each time: no noise, no nonces."""
    first, second = (link.transmit(images, torch.Generator().manual_seed(seed)).symbols for seed in (0, 1))
    return torch.allclose(first, second, atol=1e-5)


def _any_images(link: Link) -> Tensor:
    shape, weight = link.scheme.design.task.image_shape, next(link.scheme.parameters(), torch.empty(0))
    return torch.rand(4, *shape, generator=torch.Generator().manual_seed(0)).to(weight.device)


def _payload(link: Link) -> float | None:
    """Return the bits that an image is sent as, None for an analog code."""
    held = getattr(link.scheme.core, "payload_bits", None)
    if held is None:
        held = link.transmit(_any_images(link), torch.Generator().manual_seed(0)).payload_bits
    return held


def _constellation(core: Any) -> phy.Constellation | None:
    """Return the points that symbols are, as they are scaled; None of an analog code.

    Not by the classes of schemes: what is measured of one would then depend on the code of all.
    """
    if (modem := getattr(core, "modem", None)) is not None:
        return modem.scaled(modem.point)
    return getattr(core, "constellation", None)


def _of_mechanism(mechanism: "Mechanism | None", transmissions: int) -> dict[str, float]:
    """Return the bounds of a privacy mechanism, whose noise is drawn for each transmission."""
    if mechanism is None or mechanism.law != "laplace":
        return {}
    d, radius, scale = mechanism.features, mechanism.radius, mechanism.noise_scale
    if mechanism.norm == math.inf:
        each = d * laplace_bits(1, radius, scale)
    else:  # a ball of Euclidean radius lies in one of sqrt(d) times that in L1
        each = laplace_bits(d, radius * (math.sqrt(d) if mechanism.norm == 2 else 1), scale)
    found = {"laplace_bits": transmissions * each}
    if mechanism.key == "vector":
        found["ldp_bits"] = transmissions * ldp_bits(mechanism.epsilon)
    return found
