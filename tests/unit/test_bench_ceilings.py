# SPDX-License-Identifier: Apache-2.0
"""Ceilings of links: closed forms by hand, truths below them, and what applies to which scheme."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import exp1
from torch import nn

import semlink
from semlink import phy
from semlink._errors import SemlinkError
from semlink.attacks import Threat
from semlink.bench.ceilings import fisher, mean_capacity_bits, upper_bounds
from semlink.metrics import constellation_capacity, laplace_bits, ldp_bits
from semlink.nn import Backbone
from semlink.schemes import Design, Key, Link, Scheme, Sent, Task

ANY = {"channel_bits", "least"}
DIGITAL = ANY | {"payload_bits", "soft_capacity_bits", "hard_capacity_bits"}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def made(scheme: str, channel: str = "awgn", **options) -> Link:
    key = {"key": Key.for_test(0)} if semlink.schemes.schemes[scheme].secret else {}
    return semlink.create(scheme, data="digits", channel=channel, snr_db=12, preset="smoke", **key, **options)


class Toy(Scheme):
    """Sends the first pixel as a 16-QAM symbol."""

    def __init__(self, points: phy.Constellation | None = None) -> None:
        super().__init__(Design(Task("classify", (1, 8, 8), 2), 1, Backbone(8, 8)))
        self.constellation = points or phy.qam(16)

    def transmit(self, images, generator):
        index = (16 * images[:, 0, 0, :1]).long().clamp(0, 15)
        return Sent(self.constellation.modulate(index), payload_bits=4)

    def receive(self, received, header=None):
        return received.symbols.real


def link_of(scheme: Scheme, medium: phy.Channel | None = None) -> Link:
    return Link(scheme, medium or phy.AWGN(), 12.0)


@pytest.mark.parametrize("snr_db", [-5.0, 3.0, 8.0, 14.0])
@pytest.mark.parametrize("antennas", [1, 3])
def test_a_toy_link_tells_less_than_its_ceilings_and_not_much_less(snr_db, antennas):
    link, threat, count = link_of(Toy()), Threat(0.0, antennas=antennas), 40_000
    found = upper_bounds(link, threat, snr_db)
    assert set(found) == DIGITAL
    symbols = link.transmit(torch.rand(count, 1, 8, 8, generator=seeded())).symbols
    noise = seeded(1)
    mean = torch.stack([link.channel(symbols, snr_db, noise).symbols for _ in range(antennas)]).mean(0)
    n0 = 10 ** (-snr_db / 10) / antennas
    sent = link.scheme.constellation.demodulate(symbols)
    posterior = link.scheme.constellation.posteriors(mean, n0).double()
    gained = 4 + posterior.gather(-1, sent[..., None]).clamp_min(1e-300).log2()
    truth, error = float(gained.mean()), float(gained.std()) / math.sqrt(count)
    eve_db = snr_db + 10 * math.log10(antennas)
    exact = phy.soft_mutual_information_bits(phy.qam(16), eve_db)
    assert abs(truth - exact) < 4 * error
    assert exact <= found["soft_capacity_bits"] + 1e-6
    assert exact < found["channel_bits"] == pytest.approx(phy.capacity_bits(1, eve_db))
    if eve_db > 6:  # below, the best input is the corners, with more energy than the channel's bound allows
        assert found["soft_capacity_bits"] < min(exact + 0.1, found["channel_bits"])
    hard = phy.mutual_information_bits(phy.transition_matrix(phy.qam(16), eve_db))
    assert hard <= found["hard_capacity_bits"] + 1e-9 < found["soft_capacity_bits"]
    assert found["payload_bits"] == 4
    assert exact - 1e-6 <= found["least"] == min(found[name] for name in DIGITAL - {"least", "hard_capacity_bits"})
    assert found["least"] < exact + 0.15


def test_the_least_is_of_those_that_bound_any_eavesdropper():
    found = upper_bounds(made("deepjscc-lbvq"), Threat(12.0), 12.0)
    assert found["hard_capacity_bits"] < found["soft_capacity_bits"] == found["least"]
    assert found["payload_bits"] == 256
    assert found["channel_bits"] == pytest.approx(64 * math.log2(1 + 10**1.2))
    uniform = {name: found[f"{name}_capacity_bits"] / 4 for name in ("soft", "hard")}  # for 16 symbols of 16-QAM
    assert uniform["hard"] == pytest.approx(52.96, abs=1.5)
    assert uniform["hard"] > 52.9599, "the capacity is above the information of uniform symbols"
    assert uniform["soft"] > 57.0


def test_bounds_rise_with_the_snr_to_the_payload():
    link = made("deepjscc-lbvq")
    rows = [upper_bounds(link, Threat(0.0), snr) for snr in range(-20, 41, 6)]
    for name in ("channel_bits", "soft_capacity_bits", "hard_capacity_bits", "least"):
        values = [row[name] for row in rows]
        assert all(a <= b + 1e-4 for a, b in pairwise(values)), name
    assert rows[0]["least"] < 1
    assert rows[-1]["soft_capacity_bits"] == pytest.approx(256, abs=1e-3)
    assert rows[-1]["least"] <= rows[-1]["payload_bits"] < rows[-1]["channel_bits"]


def test_the_constellation_counts_as_it_is_scaled():
    """Indices at the inner points only are sent with more energy each."""
    link = made("deepjscc-lbvq")
    inner = torch.zeros(16)
    inner[[5, 6, 9, 10]] = 0.25
    plain = upper_bounds(link, Threat(0.0), 6.0)["soft_capacity_bits"]
    link.scheme.modem.usage.copy_(inner)
    scaled = phy.qam(16).scaled_under(inner)
    found = upper_bounds(link, Threat(0.0), 6.0)["soft_capacity_bits"]
    assert found == pytest.approx(64 * constellation_capacity(scaled, 6.0).bits)
    assert found > 1.2 * plain


def test_antennas_and_repetitions_of_the_same_symbols_are_so_many_times_the_snr():
    for scheme in ("deepjscc", "deepjscc-lbvq"):
        link = made(scheme)
        alone = upper_bounds(link, Threat(0.0), 6 + 10 * math.log10(6))
        together = upper_bounds(link, Threat(0.0, antennas=2, transmissions=3), 6.0)
        assert together == pytest.approx(alone)


def test_other_symbols_each_time_tell_so_many_times_as_much():
    one, three = Threat(0.0, antennas=2), Threat(0.0, antennas=2, transmissions=3)
    for link in (made("deepjscc-aes"), made("deepjscc-dp"), made("deepjscc-encryption"), made("layered")):
        single, triple = upper_bounds(link, one, 3.0), upper_bounds(link, three, 3.0)
        assert set(single) == set(triple)
        for name in set(single) - {"least", "payload_bits"}:
            assert triple[name] == pytest.approx(3 * single[name]), name
        if "payload_bits" in single:
            assert triple["payload_bits"] == single["payload_bits"]
            assert triple["least"] <= single["payload_bits"]
    fixed = made("deepjscc-encryption", fresh=False)
    assert upper_bounds(fixed, three, 3.0) == upper_bounds(made("deepjscc"), three, 3.0)


def test_what_applies_to_which_scheme():
    for scheme, names in {
        "deepjscc": ANY,
        "vl-vfe": ANY,
        "ibal": ANY,
        "escs": ANY,
        "deepjscc-encryption": ANY,
        "uis-tosc": DIGITAL,
        "deepjscc-aes": DIGITAL,
        "deepjscc-dp": ANY | {"laplace_bits", "ldp_bits"},
    }.items():
        assert set(upper_bounds(made(scheme), Threat(0.0), 6.0)) == names, scheme
    for mechanism, names in {
        "coordinate": ANY | {"laplace_bits"},
        "laplace-scale": ANY | {"laplace_bits"},
        "gaussian": ANY,
    }.items():
        assert set(upper_bounds(made("deepjscc-dp", mechanism=mechanism), Threat(0.0), 6.0)) == names, mechanism
    assert set(upper_bounds(made("deepjscc-lbvq"), Threat(0.0, channel="rayleigh"), 6.0)) == DIGITAL - {
        "hard_capacity_bits"
    }
    assert upper_bounds(made("deepjscc-aes"), Threat(0.0), 40.0)["payload_bits"] == 256
    layers = {"base": "deepjscc-lbvq", "sign_flips": True}
    assert upper_bounds(made("layered", **layers), Threat(0.0), 6.0) == upper_bounds(
        made("deepjscc-lbvq"), Threat(0.0), 6.0
    )
    noisy = upper_bounds(made("layered", **layers, noise="laplace", noise_scale=1.0), Threat(0.0), 6.0)
    plain = upper_bounds(made("deepjscc-lbvq"), Threat(0.0), 6.0 - 10 * math.log10(2))
    assert noisy == pytest.approx({name: plain[name] for name in DIGITAL - {"hard_capacity_bits"}})
    with pytest.raises(SemlinkError, match="snr_db is 101"):
        upper_bounds(made("deepjscc"), Threat(0.0), 101.0)
    with pytest.raises(SemlinkError, match="snr_db is nan"):
        upper_bounds(made("deepjscc"), Threat(0.0), math.nan)


def test_the_bounds_of_privacy_fall_with_epsilon_and_grow_with_transmissions():
    budgets = (4.0, 0.9, 0.1, 0.05)
    for mechanism in ("vector", "coordinate", "laplace-scale"):
        links = [made("deepjscc-dp", mechanism=mechanism, epsilon=epsilon) for epsilon in budgets]
        rows = [upper_bounds(link, Threat(0.0, transmissions=5), 12.0) for link in links]
        values = [row["laplace_bits"] for row in rows]
        assert all(a > b for a, b in pairwise(values)), mechanism
        if mechanism == "vector":
            for epsilon, row in zip(budgets, rows, strict=True):
                assert row["ldp_bits"] == pytest.approx(5 * ldp_bits(epsilon))
                assert row["ldp_bits"] < 5 * epsilon / math.log(2)
                assert row["laplace_bits"] == pytest.approx(5 * laplace_bits(128, 1.0, 2 / epsilon))
                assert row["least"] == min(row["ldp_bits"], row["laplace_bits"])
    coordinate = upper_bounds(made("deepjscc-dp", mechanism="coordinate", clip=3.0), Threat(0.0), 12.0)
    assert coordinate["laplace_bits"] == pytest.approx(128 * laplace_bits(1, 3.0, 6 / 0.9))
    scale = upper_bounds(made("deepjscc-dp", mechanism="laplace-scale", clip=2.0), Threat(0.0), 12.0)
    assert scale["laplace_bits"] == pytest.approx(laplace_bits(128, 2.0 * 128, 0.1))


def test_the_bound_of_laplace_noise_holds_for_what_the_scheme_sends():
    """Two images as far apart as the clip lets them be: the information of telling them apart, estimated."""
    mechanism = made("deepjscc-dp", epsilon=4.0).scheme.mechanism
    ends = torch.zeros(2, 128, dtype=torch.float64)
    ends[0, 0], ends[1, 0] = 1.0, -1.0
    which = torch.randint(0, 2, (100_000,), generator=seeded())
    sent = mechanism.released(ends[which], seeded(1)).double() / mechanism.gain
    apart = ((sent + ends[which]).abs() - (sent - ends[which]).abs())[:, 0] / mechanism.noise_scale  # of densities
    gained = 1 - torch.log2(1 + torch.exp(-apart))
    truth, error = float(gained.mean()), float(gained.std()) / math.sqrt(len(gained))
    found = upper_bounds(made("deepjscc-dp", epsilon=4.0), Threat(0.0), 30.0)
    assert truth + 4 * error > 0.2
    assert truth - 4 * error < found["laplace_bits"]
    assert truth - 4 * error < found["ldp_bits"]


@pytest.mark.parametrize("snr_db", [-60.0, -10.0, 0.0, 12.0, 40.0, 100.0])
def test_ergodic_capacity(snr_db):
    snr = 10 ** (snr_db / 10)
    closed = np.exp(1 / snr) * exp1(1 / snr) / math.log(2) if snr_db > -20 else snr / math.log(2)
    assert mean_capacity_bits(phy.Rayleigh(), snr_db, 1) == pytest.approx(closed, rel=1e-5)
    of_four = quad(lambda g: math.log2(1 + snr * g) * g**3 * math.exp(-g) / 6, 0, 60, epsrel=1e-10)[0]
    assert mean_capacity_bits(phy.Rayleigh(), snr_db, 4) == pytest.approx(of_four, rel=1e-7)
    assert mean_capacity_bits(phy.Rician(100), snr_db, 3) == pytest.approx(math.log2(1 + 3 * snr), rel=1e-6)
    assert mean_capacity_bits(phy.AWGN(), snr_db, 3) == pytest.approx(math.log2(1 + 3 * snr))


def test_ergodic_capacity_is_the_mean_over_drawn_gains():
    link = made("deepjscc")
    for medium, receptions in ((phy.Rician(3.0), 2), (phy.Rayleigh(), 1)):
        gains = medium.gains(400_000, 1, torch.ones(400_000, 1), seeded()).abs().square().reshape(-1, receptions).sum(1)
        rates = torch.log2(1 + 10**0.8 * gains.double())
        error = float(rates.std()) / math.sqrt(len(rates))
        assert abs(mean_capacity_bits(medium, 8.0, receptions) - float(rates.mean())) < 4 * error
    fading = upper_bounds(link, Threat(0.0, channel="rayleigh", antennas=2), 8.0)
    assert fading["channel_bits"] == pytest.approx(64 * mean_capacity_bits(phy.Rayleigh(), 8.0, 2))
    assert fading["channel_bits"] < upper_bounds(link, Threat(0.0, antennas=2), 8.0)["channel_bits"]
    assert upper_bounds(made("deepjscc", channel="rayleigh"), Threat(0.0, antennas=2), 8.0) == fading


class Linear(Scheme):
    """Sends the pixels through a matrix."""

    def __init__(self) -> None:
        super().__init__(Design(Task("classify", (1, 8, 8), 2), 16, Backbone(8, 8)))
        rows = torch.linalg.qr(torch.randn(64, 32, generator=seeded(3)))[0].T
        self.matrix = nn.Parameter(rows)

    def transmit(self, images, generator):
        return Sent(torch.view_as_complex((images.flatten(1) @ self.matrix.T).unflatten(1, (-1, 2))))

    def receive(self, received, header=None):
        return received.symbols.real


def test_fisher_information_of_a_linear_encoder():
    images = torch.rand(150, 1, 8, 8, generator=seeded())  # more than one batch
    found = fisher(link_of(Linear()), images, Threat(0.0, antennas=2, transmissions=3), 10.0, seeded(), probes=4)
    # orthonormal rows: 32 of them, noise 0.05 a rail, six receptions
    assert found.mean == pytest.approx(32 * 6 / (0.05 * 64), rel=1e-4)
    assert found.n == 150
    assert "images" in found.method


@pytest.mark.parametrize("scheme", ["deepjscc", "vfe", "ibal"])
def test_fisher_information_of_analog_links_rises_with_the_snr(scheme):
    link, images = made(scheme), torch.rand(6, 1, 28, 28, generator=seeded())
    link.scheme.train()
    for _ in range(20):  # without statistics of BatchNorm the code of an image hardly differs from another's
        link.scheme.transmit(images, seeded())
    low, high = (fisher(link, images, Threat(0.0), snr, seeded(), probes=3) for snr in (0.0, 10.0))
    assert high.mean == pytest.approx(10 * low.mean, rel=1e-4)
    assert low.low < low.mean < low.high
    assert low.n == 6
    assert all(p.grad is None for p in link.scheme.parameters())


@pytest.mark.parametrize("scheme", ["deepjscc-lbvq", "deepjscc-dp", "deepjscc-aes", "deepjscc-encryption", "uis-tosc"])
def test_fisher_information_does_not_apply(scheme):
    images = torch.rand(4, 1, 28, 28, generator=seeded())
    assert fisher(made(scheme), images, Threat(0.0), 12.0, seeded(), probes=2) is None


def test_fisher_information_of_one_fixed_shuffle_is_that_of_the_plain_link():
    images = torch.rand(4, 1, 28, 28, generator=seeded())
    plain, shuffled = made("deepjscc"), made("deepjscc-encryption", fresh=False)
    shuffled.scheme.load_state_dict(plain.scheme.state_dict())
    found = [fisher(link, images, Threat(0.0), 12.0, seeded(1), probes=200) for link in (plain, shuffled)]
    assert found[0].mean == pytest.approx(found[1].mean, rel=0.05)
