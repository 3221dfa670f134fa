# SPDX-License-Identifier: Apache-2.0
"""Sionna as an independent opinion on constellations, soft demodulation, noise and flat fading."""

import math

import pytest
import torch

from semlink.phy import AWGN, Constellation, Rayleigh, psk, qam, symbol_error_rate_qam, zero_force

pytest.importorskip("sionna.phy")

from sionna.phy import config
from sionna.phy import mapping as theirs
from sionna.phy.channel import AWGN as TheirAWGN
from sionna.phy.channel import GenerateFlatFadingChannel

config.device = "cpu"


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def label_numbers(constellation: Constellation) -> torch.Tensor:
    """Return the label of each index as a number; Sionna's index is its label."""
    width = constellation.bits.shape[1]
    return (constellation.bits.long() << torch.arange(width - 1, -1, -1)).sum(1)


def as_theirs(constellation: Constellation) -> theirs.Constellation:
    points = torch.empty_like(constellation.points)
    points[label_numbers(constellation)] = constellation.points
    return theirs.Constellation("custom", constellation.bits.shape[1], points=points)


@pytest.mark.parametrize("order", [4, 16, 64, 256])
def test_qam_points_up_to_labels(order):
    their_points = theirs.Constellation("qam", order.bit_length() - 1).points
    distance = (qam(order).points[:, None] - their_points).abs()
    assert distance.min(1).values.max() < 1e-6
    assert distance.argmin(1).unique().numel() == order


@pytest.mark.parametrize("method", ["exact", "max-log"])
@pytest.mark.parametrize(
    "constellation",
    [qam(4, "gray"), qam(16), qam(16, "gray"), qam(64, "gray"), psk(8, "gray"), psk(16)],
    ids=lambda c: f"{c.order}-{c.family}-{c.labelling}",
)
def test_llr(constellation, method):
    demapper = theirs.Demapper("app" if method == "exact" else "maxlog", constellation=as_theirs(constellation))
    sent = torch.randint(constellation.order, (4, 200), generator=seeded(1))
    for snr_db in (0.0, 8.0, torch.tensor([2.0, 6.0, 10.0, 14.0])):
        received = AWGN()(constellation.modulate(sent), snr_db, seeded(2))
        n0 = received.noise_variance.expand(4, 200)
        expected = demapper(received.symbols, n0).reshape(4, 200, -1)
        torch.testing.assert_close(constellation.llr(received.symbols, n0, method), expected, rtol=1e-3, atol=2e-3)


def test_llr_of_their_own_gray_qam_has_the_same_reliability():
    # Labels differ, but the |LLR|s of a symbol are those of its place: the multisets must agree.
    y = 1.2 * torch.randn(1, 500, dtype=torch.complex64, generator=seeded(3))
    for bits in (2, 4):
        found = theirs.Demapper("app", "qam", bits)(y, torch.tensor(0.2)).reshape(1, 500, bits)
        ours = qam(2**bits, "gray").llr(y, 0.2)
        torch.testing.assert_close(ours.abs().sort(-1).values, found.abs().sort(-1).values, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("constellation", [qam(16), psk(16)], ids=["16-qam", "16-psk"])
def test_posteriors_with_a_prior(constellation):
    y = torch.randn(3, 100, dtype=torch.complex64, generator=seeded(4))
    prior = torch.rand(16, generator=seeded(5))
    prior = prior / prior.sum()
    demapper = theirs.SymbolDemapper(constellation=as_theirs(constellation))
    for weight in (None, prior):
        expected = demapper(y, torch.tensor(0.3), None if weight is None else weight.log()).exp()
        torch.testing.assert_close(constellation.posteriors(y, 0.3, weight), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("no", [1.0, 0.1])
def test_noise_variance_means_the_same(no):
    config.seed = 7
    silence = torch.zeros(100, 2000, dtype=torch.complex64)
    expected = TheirAWGN()(silence, no)
    ours = AWGN()(silence, -10 * math.log10(no), seeded(6)).symbols
    for a, b in ((ours.real, expected.real), (ours.imag, expected.imag)):
        a, b = a.double().square(), b.double().square()
        assert abs(a.mean() - b.mean()) < 5 * math.hypot(a.std(), b.std()) / math.sqrt(a.numel())
        assert abs(b.mean() - no / 2) < 5 * b.std() / math.sqrt(b.numel())


def test_their_noise_and_our_decisions_reach_the_closed_form():
    config.seed = 8
    constellation = qam(16)
    sent = torch.randint(16, (100, 2000), generator=seeded(9))
    decided = constellation.demodulate(TheirAWGN()(constellation.modulate(sent), 0.1))
    expected = symbol_error_rate_qam(16, 10.0)
    assert abs((decided != sent).double().mean() - expected) < 5 * math.sqrt(expected * (1 - expected) / sent.numel())


def test_our_noise_and_their_hard_decisions_agree_with_ours():
    constellation = qam(16, "gray")
    sent = torch.randint(16, (100, 1000), generator=seeded(10))
    received = zero_force(Rayleigh("symbol")(constellation.modulate(sent), 15.0, seeded(11)))
    demapper = theirs.Demapper("maxlog", constellation=as_theirs(constellation), hard_out=True)
    bits = demapper(received.symbols, received.noise_variance).reshape(100, 1000, 4)
    ours = constellation.bits[constellation.demodulate(received.symbols)]
    assert (bits == ours).double().mean() > 0.99999


def test_flat_rayleigh_has_the_same_distribution():
    stats = pytest.importorskip("scipy.stats")
    config.seed = 12
    expected = GenerateFlatFadingChannel(1, 1)(50_000).flatten()
    h = Rayleigh("image").gains(50_000, 1, torch.ones(50_000, 1), seeded(13)).flatten()
    for view in (lambda z: z.real, lambda z: z.imag, lambda z: z.abs() ** 2, lambda z: z.angle()):
        assert stats.ks_2samp(view(h).numpy(), view(expected).numpy()).pvalue > 1e-5
    assert stats.kstest((h.abs() ** 2).numpy(), "expon").pvalue > 1e-5
