# SPDX-License-Identifier: Apache-2.0
"""Closed forms against published values, independent numerical integrals, and the simulator itself.

Monte Carlo comparisons use fixed seeds and allow five standard errors.
"""

import math

import numpy as np
import pytest
import torch

from semlink.phy import (
    AWGN,
    Constellation,
    capacity_bits,
    mutual_information_bits,
    psk,
    q_function,
    qam,
    soft_mutual_information_bits,
    symbol_error_rate_psk,
    symbol_error_rate_qam,
    transition_matrix,
)

SNRS_DB = [0, 4, 8, 12, 16, 20]
SER_16QAM = ["0.7410", "0.5889", "0.3535", "0.1094", "0.0072", "1.16e-5"]
SER_16PSK = ["0.7770", "0.6612", "0.4883", "0.2720", "0.0817", "0.0058"]
SER_QPSK = ["0.2921", "0.1098", "0.01197", "6.86e-5", "2.8e-10", "0.0000"]
MI_16QAM = ["0.880", "1.552", "2.343", "3.310", "3.927", "4.000"]
MI_16PSK_EXACT = ["0.855", "1.552", "2.266", "2.868", "3.510", "3.943"]
MI_16PSK_SIMULATED = [0.861, 1.557, 2.271, 2.872, 3.510, 3.944]  # 2e5 samples, plug-in estimate, one seed for all rows
CAPACITY_64 = ["64.0", "116.0", "183.7", "260.8", "342.5", "426.1"]
CAPACITY_64_3DB_TOO_MUCH = ["101.4", "165.8", "241.1", "322.0", "405.3", "489.7"]
DRAWS = 300_000


def rounds_to(value: float, printed: str) -> bool:
    """Say whether ``value``, rounded as the table prints it, is what the table prints."""
    mantissa, _, exponent = printed.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    return abs(value - float(printed)) <= 0.5000001 * unit


def simulate(
    constellation: Constellation, snr_db: float, seed: int, draws: int = DRAWS
) -> tuple[np.ndarray, np.ndarray]:
    sent = torch.randint(constellation.order, (draws // 1000, 1000), generator=torch.Generator().manual_seed(seed))
    received = AWGN()(constellation.modulate(sent), float(snr_db), torch.Generator().manual_seed(seed + 1000))
    return sent.flatten().numpy(), constellation.demodulate(received.symbols).flatten().numpy()


def information_density(transition: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    joint = transition / len(transition)
    density = np.log2(np.where(joint > 0, transition, 1) / np.where(joint > 0, joint.sum(0), 1))
    return joint, density


@pytest.mark.parametrize("row", range(6))
def test_published_values(row):
    snr_db = SNRS_DB[row]
    assert rounds_to(symbol_error_rate_qam(16, snr_db), SER_16QAM[row])
    assert rounds_to(symbol_error_rate_psk(16, snr_db), SER_16PSK[row])
    assert rounds_to(symbol_error_rate_qam(4, snr_db), SER_QPSK[row])
    assert rounds_to(symbol_error_rate_psk(4, snr_db), SER_QPSK[row])
    assert rounds_to(mutual_information_bits(transition_matrix(qam(16), snr_db)), MI_16QAM[row])
    assert rounds_to(mutual_information_bits(transition_matrix(psk(16), snr_db)), MI_16PSK_EXACT[row])
    assert rounds_to(capacity_bits(64, snr_db), CAPACITY_64[row])
    assert rounds_to(capacity_bits(64, snr_db + 10 * math.log10(2)), CAPACITY_64_3DB_TOO_MUCH[row])


@pytest.mark.parametrize("row", range(6))
def test_published_16psk_information_is_within_its_monte_carlo_error(row):
    joint, density = information_density(transition_matrix(psk(16), SNRS_DB[row]))
    mean = (joint * density).sum()
    error = math.sqrt((joint * (density - mean) ** 2).sum() / 2e5)
    assert abs(MI_16PSK_SIMULATED[row] - mean) < 5 * error + 225 / (2 * 2e5 * math.log(2))


def wedges(order: int, snr: float) -> np.ndarray:
    """Integrate the density of ``sqrt(snr) + CN(0, 1)`` over the wedges of PSK, plainly over radius and angle."""
    nodes, weights = np.polynomial.legendre.leggauss(160)
    amplitude = math.sqrt(snr)
    radius, step = np.linspace(max(0.0, amplitude - 7), amplitude + 7, 4001, retstep=True)
    half = math.pi / order
    out = np.empty(order)
    for j in range(order):
        angle = 2 * j * half + nodes * half
        squares = radius**2 + snr - 2 * amplitude * radius * np.cos(angle)[:, None]
        inner = (radius * np.exp(-squares)).sum(1) * step / math.pi
        out[j] = (weights * inner).sum() * half
    return out


@pytest.mark.parametrize(
    ("order", "snr_db"), [(2, -5), (2, 6), (4, 0), (4, 12), (8, 8), (16, 0), (16, 8), (16, 12), (64, 20)]
)
def test_psk_transitions_are_integrals_over_wedges(order, snr_db):
    expected = wedges(order, 10 ** (snr_db / 10))
    assert expected.sum() == pytest.approx(1, abs=1e-5)
    found = transition_matrix(psk(order), snr_db)
    for i in range(0, order, max(1, order // 4)):
        np.testing.assert_allclose(np.roll(found[i], -i), expected, rtol=0, atol=2e-6)


def test_16psk_information_by_the_wedges():
    for snr_db, printed in zip(SNRS_DB, MI_16PSK_EXACT, strict=True):
        first = wedges(16, 10 ** (snr_db / 10))
        first = first[first > 0] / first.sum()
        assert rounds_to(
            4 + (first * np.log2(first)).sum(), printed
        )  # uniform input, circulant channel: log2 M - H(row)


@pytest.mark.parametrize(
    ("family", "order"), [(qam, 4), (qam, 16), (qam, 256), (psk, 2), (psk, 4), (psk, 16), (psk, 256)]
)
@pytest.mark.parametrize("snr_db", [-10, 3, 12, 24])
def test_transitions_agree_with_the_error_rate(family, order, snr_db):
    matrix = transition_matrix(family(order), snr_db)
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-12)
    assert matrix.min() > -1e-15
    rate = symbol_error_rate_qam if family is qam else symbol_error_rate_psk
    assert 1 - np.diag(matrix).mean() == pytest.approx(rate(order, snr_db), rel=1e-5, abs=1e-12)


def test_error_rates_at_the_ends():
    for order in (4, 16, 256):
        assert symbol_error_rate_qam(order, -200) == pytest.approx(1 - 1 / order, rel=1e-6)
        assert symbol_error_rate_psk(order, -200) == pytest.approx(1 - 1 / order, rel=1e-6)
    for snr_db in (-5, 0, 9):
        assert symbol_error_rate_psk(2, snr_db) == pytest.approx(
            q_function(math.sqrt(2 * 10 ** (snr_db / 10))), rel=1e-9
        )
        assert symbol_error_rate_psk(4, snr_db) == pytest.approx(symbol_error_rate_qam(4, snr_db), rel=1e-9)
    assert q_function(0) == 0.5
    assert q_function(1.959963984540054) == pytest.approx(0.025, rel=1e-12)


def test_a_scale_is_an_snr():
    scaled = qam(16).scaled_under(torch.tensor([5, 1, 1, 1] * 4))
    shift_db = 10 * math.log10((scaled.points.abs().double() ** 2).mean())
    assert abs(shift_db) > 0.01
    np.testing.assert_allclose(transition_matrix(scaled, 9), transition_matrix(qam(16), 9 + shift_db), atol=1e-6)
    shifted = soft_mutual_information_bits(qam(16), 9 + shift_db)
    assert soft_mutual_information_bits(scaled, 9) == pytest.approx(shifted, abs=1e-5)


@pytest.mark.parametrize("snr_db", SNRS_DB)
@pytest.mark.parametrize(
    ("constellation", "rate"),
    [(qam(16), symbol_error_rate_qam), (psk(16), symbol_error_rate_psk), (psk(4), symbol_error_rate_psk)],
    ids=["16-qam", "16-psk", "qpsk"],
)
def test_the_simulator_reaches_error_rate_and_information(constellation, rate, snr_db):
    sent, decided = simulate(constellation, snr_db, seed=snr_db)
    expected = rate(constellation.order, snr_db)
    assert abs((sent != decided).mean() - expected) < 5 * math.sqrt(expected * (1 - expected) / DRAWS)

    order = constellation.order
    counts = np.bincount(sent * order + decided, minlength=order**2).reshape(order, order)
    transition = transition_matrix(constellation, snr_db)
    cell = transition / order
    deviation = np.abs(counts - DRAWS * cell)
    # A cell expected to hold less than one count is Poisson, not Gaussian: six counts there are beyond five sigma.
    assert (deviation < 5 * np.sqrt(DRAWS * cell) + 6 * (DRAWS * cell < 1) + 1e-9).all()

    joint, density = information_density(transition)
    information = mutual_information_bits(transition)
    error = math.sqrt((joint * (density - information) ** 2).sum() / DRAWS)
    plug_in = mutual_information_bits(counts / counts.sum(1, keepdims=True), counts.sum(1) / DRAWS)
    bias = ((counts > 0).sum() - (counts.sum(0) > 0).sum() - order + 1) / (2 * DRAWS * math.log(2))
    assert abs(plug_in - bias - information) < 5 * error + 1e-4


def test_information_of_known_channels():
    def entropy(p: float) -> float:
        return -p * math.log2(p) - (1 - p) * math.log2(1 - p)

    symmetric = np.array([[0.9, 0.1], [0.1, 0.9]])
    assert mutual_information_bits(symmetric) == pytest.approx(1 - entropy(0.1))
    skewed = mutual_information_bits(symmetric, np.array([0.25, 0.75]))
    assert skewed == pytest.approx(entropy(0.25 * 0.9 + 0.75 * 0.1) - entropy(0.1))
    assert mutual_information_bits(np.eye(16)) == pytest.approx(4)
    assert mutual_information_bits(np.full((16, 16), 1 / 16)) == pytest.approx(0, abs=1e-12)
    assert mutual_information_bits(np.eye(4), np.array([1.0, 0, 0, 0])) == 0
    erasure = np.array([[0.7, 0.3, 0], [0, 0.3, 0.7]])
    assert mutual_information_bits(erasure) == pytest.approx(0.7)


def pam_information(points: np.ndarray, sigma: float) -> float:
    """Return I(X; Y) of equiprobable real points in Gaussian noise: h(Y) - h(noise) on a fine grid."""
    y, step = np.linspace(points.min() - 9 * sigma, points.max() + 9 * sigma, 40_001, retstep=True)
    density = np.exp(-((y[:, None] - points) ** 2) / (2 * sigma**2)).mean(1) / (sigma * math.sqrt(2 * math.pi))
    return float(-(density * np.log2(density + 1e-300)).sum() * step - 0.5 * math.log2(2 * math.pi * math.e * sigma**2))


@pytest.mark.parametrize("snr_db", SNRS_DB)
def test_soft_information_of_qam_is_that_of_its_rails(snr_db):
    for order in (4, 16):
        side = math.isqrt(order)
        levels = qam(order).points.real[:side].double().numpy()
        expected = 2 * pam_information(levels, math.sqrt(10 ** (-snr_db / 10) / 2))
        assert soft_mutual_information_bits(qam(order), snr_db) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("constellation", [qam(16), psk(16)], ids=["16-qam", "16-psk"])
@pytest.mark.parametrize("snr_db", [0, 12])
def test_the_simulator_reaches_the_soft_information(constellation, snr_db):
    sent = torch.randint(16, (100, 1000), generator=torch.Generator().manual_seed(1))
    received = AWGN()(constellation.modulate(sent), float(snr_db), torch.Generator().manual_seed(2))
    posterior = constellation.posteriors(received.symbols, received.noise_variance)
    density = 4 + posterior.gather(-1, sent[..., None]).double().log2()
    error = density.std() / math.sqrt(density.numel())
    assert abs(density.mean() - soft_mutual_information_bits(constellation, snr_db)) < 5 * error


def test_sixteen_symbols_of_16qam_at_12_db():
    assert rounds_to(16 * soft_mutual_information_bits(qam(16), 12), "57.3")
    assert rounds_to(16 * mutual_information_bits(transition_matrix(qam(16), 12)), "52.96")
    exact_psk = 16 * mutual_information_bits(transition_matrix(psk(16), 12))
    assert exact_psk == pytest.approx(45.95, abs=0.1)  # the published figure comes from the simulated row


@pytest.mark.parametrize("snr_db", SNRS_DB)
@pytest.mark.parametrize("constellation", [psk(4), psk(16), qam(16)], ids=["qpsk", "16-psk", "16-qam"])
def test_hard_is_below_soft_is_below_capacity(constellation, snr_db):
    hard = mutual_information_bits(transition_matrix(constellation, snr_db))
    soft = soft_mutual_information_bits(constellation, snr_db)
    assert 0 < hard <= soft + 1e-6
    assert soft <= min(math.log2(constellation.order), capacity_bits(1, snr_db)) + 1e-6


@pytest.mark.parametrize("snr_db", SNRS_DB)
def test_the_simulator_reaches_capacity_with_gaussian_symbols(snr_db):
    x = torch.randn(2000, 64, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    y = AWGN()(x, float(snr_db), torch.Generator().manual_seed(2)).symbols
    n0 = 10 ** (-snr_db / 10)
    nats = math.log((1 + n0) / n0) - (y - x).abs().double() ** 2 / n0 + y.abs().double() ** 2 / (1 + n0)
    bits = nats.sum(1) / math.log(2)  # information density of one block of 64 uses
    assert abs(bits.mean() - capacity_bits(64, snr_db)) < 5 * bits.std() / math.sqrt(len(bits))
