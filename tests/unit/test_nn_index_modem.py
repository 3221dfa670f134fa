# SPDX-License-Identifier: Apache-2.0
"""Indices as constellation points: error rates against closed forms, decisions and assignments against slow ones."""

import itertools
import math

import numpy as np
import pytest
import torch

from semlink import phy
from semlink.nn.index_modem import IndexModem, mean_snr_db

SKEWED = torch.tensor([0.5, 0.02, 0.03, 0.2, 0.01, 0.04, 0.1, 0.1])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def modem_of(constellation, usage=None, point=None):
    modem = IndexModem(constellation)
    if usage is not None:
        modem.usage.copy_(usage)
    if point is not None:
        modem.point.copy_(torch.as_tensor(point))
    return modem


def skewed(order, seed=0):
    shares = torch.rand(order, generator=seeded(seed)) ** 3 + 1e-3
    return shares / shares.sum()


def drawn(usage, shape, seed=1):
    """Indices with the distribution ``usage``."""
    flat = torch.multinomial(usage, math.prod(shape), replacement=True, generator=seeded(seed))
    return flat.reshape(shape)


CONSTELLATIONS = {"16-QAM": phy.qam(16), "16-PSK": phy.psk(16), "QPSK": phy.psk(4), "4-QAM": phy.qam(4)}


@pytest.mark.parametrize(
    ("name", "snr_db", "expected"),
    [
        ("16-QAM", 0, 0.7410),
        ("16-QAM", 4, 0.5889),
        ("16-QAM", 8, 0.3535),
        ("16-QAM", 12, 0.1094),
        ("16-QAM", 16, 0.0072),
        ("16-PSK", 0, 0.7770),
        ("16-PSK", 4, 0.6612),
        ("16-PSK", 12, 0.2720),
        ("16-PSK", 20, 0.0058),
        ("QPSK", 0, 0.2921),
        ("QPSK", 8, 0.01197),
        ("4-QAM", 4, 0.1098),
    ],
)
def test_hard_decisions_err_as_often_as_theory_says(name, snr_db, expected):
    """300,000 symbols in an order of points of their own: within 4.5 standard errors of the exact rate."""
    order = CONSTELLATIONS[name].order
    modem = modem_of(CONSTELLATIONS[name], point=torch.randperm(order, generator=seeded(4)))
    indices = torch.randint(order, (300, 1000), generator=seeded(snr_db))
    received = phy.AWGN()(modem.modulate(indices), float(snr_db), seeded(100 + snr_db))
    wrong = (modem.decide(received, soft=False).argmax(-1) != indices).double().mean().item()
    rate = (phy.symbol_error_rate_psk if "PSK" in name else phy.symbol_error_rate_qam)(order, snr_db)
    assert rate == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert abs(wrong - rate) < 4.5 * math.sqrt(rate * (1 - rate) / indices.numel())


@pytest.mark.parametrize("name", CONSTELLATIONS)
@pytest.mark.parametrize("soft", [False, True])
def test_without_noise_every_index_arrives_whatever_the_assignment_and_the_usage(name, soft):
    order = CONSTELLATIONS[name].order
    modem = modem_of(CONSTELLATIONS[name], skewed(order), torch.randperm(order, generator=seeded(2)))
    indices = torch.arange(order)[None]
    received = phy.AWGN()(modem.modulate(indices), 60.0, seeded())
    assert torch.allclose(modem.decide(received, soft), torch.eye(order)[None], atol=1e-6)


@pytest.mark.parametrize("name", ["16-QAM", "16-PSK"])
def test_energy_is_1_under_the_running_distribution_and_not_image_by_image(name):
    usage = skewed(16)
    modem = modem_of(CONSTELLATIONS[name], usage, torch.randperm(16, generator=seeded(2)))
    of_each = torch.view_as_real(modem.modulate(torch.arange(16)[None]))[0].double().square().sum(1)
    assert (usage.double() * of_each).sum().item() == pytest.approx(usage.double().sum().item(), rel=1e-6)
    if name == "16-QAM":
        assert of_each.max() > 2 * of_each.min()


def slow_posteriors(modem, received):
    """Bayes' rule, index by index, at the receiver that knows the gains."""
    found = torch.zeros(*received.symbols.shape, len(modem.usage), dtype=torch.float64)
    rails = modem.constellation.rails.double()
    points = torch.complex(rails[:, 0], rails[:, 1])[modem.point]
    energy = (modem.usage.double() * points.abs().square()).sum() / modem.usage.double().sum()
    points = points / energy.sqrt()
    gains = torch.ones_like(received.symbols) if received.csi is None else received.csi.expand_as(received.symbols)
    for b, i in itertools.product(*map(range, received.symbols.shape)):
        n0 = received.noise_variance[b, 0].double()
        away = (received.symbols[b, i].to(torch.complex128) - gains[b, i] * points).abs().square()
        found[b, i] = modem.usage.double() * torch.exp(-(away - away.min()) / n0)
        found[b, i] /= found[b, i].sum()
    return found


@pytest.mark.parametrize("name", CONSTELLATIONS)
@pytest.mark.parametrize("medium", [phy.AWGN(), phy.Rayleigh("symbol"), phy.Rician(3.0)])
def test_soft_decisions_are_posteriors(name, medium):
    order = CONSTELLATIONS[name].order
    modem = modem_of(CONSTELLATIONS[name], skewed(order), torch.randperm(order, generator=seeded(3)))
    snr_db = torch.tensor([-3.0, 4.0, 12.0])
    received = medium(modem.modulate(drawn(modem.usage, (3, 20))), snr_db, seeded(5))
    found = modem.decide(received, soft=True)
    assert torch.allclose(found.sum(-1), torch.ones(3, 20), atol=1e-5)
    assert torch.allclose(found.double(), slow_posteriors(modem, received), atol=2e-4)


@pytest.mark.parametrize("name", CONSTELLATIONS)
@pytest.mark.parametrize("medium", [phy.AWGN(), phy.Rayleigh("symbol")])
def test_hard_decisions_are_the_nearest_points(name, medium):
    order = CONSTELLATIONS[name].order
    modem = modem_of(CONSTELLATIONS[name], skewed(order), torch.randperm(order, generator=seeded(3)))
    received = medium(modem.modulate(drawn(modem.usage, (5, 200))), 3.0, seeded(6))
    found = modem.decide(received, soft=False)
    assert torch.equal(found.sum(-1), torch.ones(5, 200))
    of_each = modem.modulate(torch.arange(order)[None])[0]
    gains = 1 if received.csi is None else received.csi[..., None]
    away = (received.symbols[..., None] - gains * of_each).abs()
    assert torch.equal(found.argmax(-1), away.argmin(-1))


def test_soft_decisions_carry_more_of_the_index_than_hard_ones():
    """Cross-entropy of the index in bits: posteriors against the best that the hard decision allows."""
    modem = modem_of(phy.qam(16))
    indices = torch.randint(16, (100, 1000), generator=seeded())
    received = phy.AWGN()(modem.modulate(indices), 4.0, seeded(1))
    soft = modem.decide(received, soft=True).gather(-1, indices[..., None]).log2().mean()
    kept = 4 + soft.item()
    assert kept == pytest.approx(phy.soft_mutual_information_bits(phy.qam(16), 4.0), abs=0.02)
    assert kept > phy.mutual_information_bits(phy.transition_matrix(phy.qam(16), 4.0)) + 0.15


def test_the_running_distribution_follows_the_indices_and_sums_to_1():
    modem = modem_of(phy.psk(8))
    indices = drawn(SKEWED, (50, 40))
    share = torch.bincount(indices.flatten(), minlength=8) / indices.numel()
    modem.count(indices)
    assert torch.allclose(modem.usage, 0.99 * torch.full((8,), 1 / 8) + 0.01 * share)
    for _ in range(900):
        modem.count(indices)
    assert torch.allclose(modem.usage, share, atol=1e-3)
    assert modem.usage.sum().item() == pytest.approx(1, abs=1e-4)
    assert modem.batches.item() == 901


def distances_of(codewords):
    return torch.cdist(codewords.double(), codewords.double()).square()


SEEDS = range(6)


def around_a_square(seed):
    """Four codewords near the corners of a square; even seeds in the order of the points, odd ones in another."""
    order = [0, 1, 2, 3] if seed % 2 == 0 else [0, 3, 1, 2]
    return phy.qam(4).rails[order] + 0.1 * torch.randn(4, 2, generator=seeded(seed))


@pytest.mark.parametrize("snr_db", [0.0, 6.0])
@pytest.mark.parametrize("constellation", [phy.qam(4), phy.psk(4)])
@pytest.mark.parametrize("seed", SEEDS)
def test_the_assignment_of_four_codewords_is_the_best_of_all_twenty_four(constellation, snr_db, seed):
    """Against the best of all orders; where it is not 5 % better than the present one, that is kept."""
    distances = distances_of(around_a_square(seed))
    modem = modem_of(constellation)

    def cost(order):
        return modem.expected_distance(distances, snr_db, torch.tensor(order))

    before, best = cost([0, 1, 2, 3]), min(cost(list(order)) for order in itertools.permutations(range(4)))
    modem.assign(distances, snr_db)
    found = modem.expected_distance(distances, snr_db, modem.point)
    assert sorted(modem.point.tolist()) == [0, 1, 2, 3]
    assert found == pytest.approx(best if best < 0.95 * before else before, rel=1e-6)


def test_in_the_test_above_some_orders_must_change_and_some_must_not():
    for seed in SEEDS:
        modem = modem_of(phy.qam(4))
        modem.assign(distances_of(around_a_square(seed)), 6.0)
        assert (modem.point.tolist() == [0, 1, 2, 3]) == (seed % 2 == 0)


def test_expected_distance_is_the_mean_over_simulated_transmissions():
    usage, distances = skewed(16), distances_of(torch.randn(16, 4, generator=seeded(8)))
    point = torch.randperm(16, generator=seeded(9))
    modem = modem_of(phy.qam(16), usage, point)
    indices = drawn(usage, (400, 1000))
    received = phy.AWGN()(modem.modulate(indices), 6.0, seeded(1))
    seen = distances[indices, modem.decide(received, soft=False).argmax(-1)]
    error = seen.std().item() / math.sqrt(seen.numel())
    assert abs(modem.expected_distance(distances, 6.0, point) - seen.mean().item()) < 4.5 * error


@pytest.mark.parametrize("constellation", [phy.qam(16), phy.psk(16)])
def test_codewords_that_lie_like_the_points_find_their_way_home(constellation):
    """Codewords at the points themselves, shuffled: the assignment must undo the shuffle, up to symmetry."""
    shuffle = torch.randperm(16, generator=seeded(1))
    distances = distances_of(constellation.rails[shuffle])
    modem = modem_of(constellation)
    before = modem.expected_distance(distances, 6.0, modem.point)
    modem.assign(distances, 6.0)
    ideal = modem.expected_distance(distances, 6.0, shuffle)
    assert ideal < 0.5 * before
    assert modem.expected_distance(distances, 6.0, modem.point) == pytest.approx(ideal, rel=1e-9)


def test_an_assignment_of_sixteen_beats_every_one_of_many_random_ones():
    usage, distances = skewed(16, 3), distances_of(torch.randn(16, 8, generator=seeded(2)))
    modem = modem_of(phy.qam(16), usage)
    modem.assign(distances, 4.0)
    found = modem.expected_distance(distances, 4.0, modem.point)
    random = [modem.expected_distance(distances, 4.0, torch.randperm(16, generator=seeded(s))) for s in range(60)]
    assert found < min(random)
    assert found < 0.9 * np.mean(random)
    held = modem.point.clone()
    modem.assign(distances, 4.0)
    assert torch.equal(modem.point, held), "an order that is good enough stays"


def test_scale_usage_and_assignment_travel_with_the_weights():
    modem = modem_of(phy.qam(16), skewed(16), torch.randperm(16, generator=seeded(1)))
    other = modem_of(phy.qam(16))
    other.load_state_dict(modem.state_dict())
    indices = torch.arange(16)[None]
    assert torch.equal(other.modulate(indices), modem.modulate(indices))
    assert not torch.allclose(modem_of(phy.qam(16)).modulate(indices), modem.modulate(indices))


def test_mean_snr_is_that_of_the_channel():
    symbols = torch.zeros(4, 2, dtype=torch.complex64)
    assert mean_snr_db(phy.AWGN()(symbols, 7.0, seeded())) == pytest.approx(7)
    assert mean_snr_db(phy.Rayleigh()(symbols, 7.0, seeded())) == pytest.approx(7)
