# SPDX-License-Identifier: Apache-2.0
"""komm as an independent opinion on constellations, labels, posteriors and noise."""

import math

import numpy as np
import pytest
import torch

from semlink.phy import (
    AWGN,
    mutual_information_bits,
    psk,
    qam,
    symbol_error_rate_psk,
    symbol_error_rate_qam,
    transition_matrix,
)

komm = pytest.importorskip("komm")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def komm_qam(order: int):
    return komm.QAMConstellation(order, deltas=math.sqrt(6 / (order - 1)))


def komm_psk(order: int):
    return komm.PSKConstellation(order, phase_offset=1 / 8 if order == 4 else 0.0)


def pair(family: str, order: int):
    """Return ours, theirs, and the index of theirs for each of ours."""
    ours, theirs = (qam(order), komm_qam(order)) if family == "qam" else (psk(order), komm_psk(order))
    points = theirs.matrix[:, 0]
    distance = np.abs(ours.points.numpy()[:, None] - points)
    assert distance.min(1).max() < 1e-6
    order_of = distance.argmin(1)
    assert sorted(order_of) == list(range(order))
    return ours, theirs, order_of


@pytest.mark.parametrize(
    ("family", "order"),
    [("qam", 4), ("qam", 16), ("qam", 64), ("qam", 256), ("psk", 2), ("psk", 4), ("psk", 16), ("psk", 256)],
)
def test_points_and_energy(family, order):
    ours, theirs, order_of = pair(family, order)
    assert float(theirs.mean_energy()) == pytest.approx(1)
    if family == "psk":
        assert list(order_of) == list(range(order))  # they count by angle, too
    nearest = torch.pdist(ours.rails).min().item()
    assert nearest == pytest.approx(float(theirs.minimum_distance()), rel=1e-4)


@pytest.mark.parametrize(("family", "order"), [("qam", 16), ("qam", 64), ("psk", 4), ("psk", 16)])
def test_gray_labels(family, order):
    # komm reads labels as polynomials, lowest bit first, and pairs the rails in the other order: flip the whole row.
    if family == "psk":
        theirs = komm.ReflectedLabeling(order.bit_length() - 1).matrix
        found = psk(order, "gray").bits.numpy()
        assert (found == theirs).all() or (found == theirs[:, ::-1]).all()
    else:
        width, side = order.bit_length() - 1, math.isqrt(order)
        one = komm.ReflectedLabeling(width // 2).matrix
        if not one[1, -1]:
            one = one[:, ::-1]
        found = qam(order, "gray").bits.numpy().reshape(side, side, width)
        for row in range(side):
            for column in range(side):
                assert (found[row, column] == np.concatenate([one[row], one[column]])).all()


@pytest.mark.parametrize(("family", "order"), [("qam", 16), ("qam", 64), ("psk", 4), ("psk", 16)])
def test_hard_decisions(family, order):
    ours, theirs, order_of = pair(family, order)
    y = 1.3 * torch.randn(1, 3000, dtype=torch.complex64, generator=seeded(1))
    assert (order_of[ours.demodulate(y)[0].numpy()] == theirs.closest_indices(y[0].numpy())).mean() > 0.9999


@pytest.mark.parametrize(("family", "order"), [("qam", 16), ("psk", 16)])
@pytest.mark.parametrize("snr_db", [0.0, 12.0])
def test_posteriors_take_the_same_noise_power(family, order, snr_db):
    ours, theirs, order_of = pair(family, order)
    sent = torch.randint(order, (1, 500), generator=seeded(2))
    received = AWGN()(ours.modulate(sent), snr_db, seeded(3))
    n0 = received.noise_variance.item()
    prior = torch.rand(order, generator=seeded(4)).double()
    prior = prior / prior.sum()
    their_prior = np.empty(order)
    their_prior[order_of] = prior.numpy()
    for weight, their_weight in ((None, None), (prior, their_prior)):
        found = ours.posteriors(received.symbols, n0, weight)[0].numpy()
        expected = theirs.posteriors(received.symbols[0].numpy(), n0, their_weight).reshape(-1, order)[:, order_of]
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_noise_power_means_the_same():
    theirs = komm.GaussianChannel(noise_power=10**-0.4, rng=np.random.default_rng(1))
    drawn = theirs.transmit(np.zeros(200_000, dtype=complex))
    ours = AWGN()(torch.zeros(1, 200_000, dtype=torch.complex64), 4.0, seeded(1)).symbols[0].numpy()
    for rail in (np.real, np.imag):
        a, b = rail(drawn) ** 2, rail(ours).astype(float) ** 2
        assert abs(a.mean() - b.mean()) < 5 * math.hypot(a.std(), b.std()) / math.sqrt(200_000)


@pytest.mark.parametrize(("family", "order", "snr_db"), [("qam", 16, 8.0), ("psk", 16, 8.0), ("psk", 4, 4.0)])
def test_their_chain_reaches_our_closed_form(family, order, snr_db):
    _, theirs, _ = pair(family, order)
    rng = np.random.default_rng(2)
    sent = rng.integers(order, size=100_000)
    channel = komm.GaussianChannel(noise_power=10 ** (-snr_db / 10), rng=rng)
    wrong = theirs.closest_indices(channel.transmit(theirs.indices_to_symbols(sent).ravel())).ravel() != sent
    expected = (symbol_error_rate_qam if family == "qam" else symbol_error_rate_psk)(order, snr_db)
    assert abs(wrong.mean() - expected) < 5 * math.sqrt(expected * (1 - expected) / len(sent))


@pytest.mark.parametrize("snr_db", [0, 8, 16])
def test_mutual_information_of_hard_decisions(snr_db):
    for constellation in (qam(16), psk(16)):
        transition = transition_matrix(constellation, snr_db)
        theirs = komm.DiscreteMemorylessChannel(transition / transition.sum(1, keepdims=True))
        uniform = np.full(16, 1 / 16)
        assert mutual_information_bits(transition) == pytest.approx(theirs.mutual_information(uniform), abs=1e-6)
        skewed = np.arange(1, 17) / 136
        assert mutual_information_bits(transition, skewed) == pytest.approx(theirs.mutual_information(skewed), abs=1e-6)
