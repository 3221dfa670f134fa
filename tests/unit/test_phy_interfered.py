# SPDX-License-Identifier: Apache-2.0
"""One user's link among others: its SINR against symbols that were sent, by hand where that can be done.

Statistical tests use fixed seeds and allow five standard errors.
"""

import math

import pytest
import torch

from semlink import create, phy
from semlink._errors import SemlinkError
from semlink.attacks import Tap, Threat, medium_of
from semlink.bench.ceilings import mean_capacity_bits, upper_bounds
from semlink.metrics import constellation_capacity
from semlink.phy import Interfered, Overheard, Received, channels, interfered
from semlink.phy.interfered import BANK


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def drawn(kind, users, snr_db):
    """Return the bank's channels and precoders, which the class keeps for itself."""
    H = kind(users).medium.draw(BANK, seeded(0)).to(torch.complex128)
    return H, phy.minimise_max_mse(H, snr_db).precoders


@pytest.mark.parametrize("users", [2, 3])
def test_the_meant_receivers_sinr_is_that_of_symbols_that_were_sent(users):
    snr_db, uses, some = 6.0, 20_000, 40
    H, V = drawn(Interfered, users, snr_db)
    sinr = Interfered(users).sinr(snr_db).reshape(BANK, users)[:some]
    s = phy.noise((some, users, 1, uses), 1.0, seeded(1), torch.device("cpu"))
    H, V = H[:some].to(torch.complex64), V[:some].to(torch.complex64)
    heard = phy.Interference(users, 2, 2)(V @ s, H, snr_db, seeded(2))
    # the best linear estimate that can be fitted to what was sent and heard has mean square error 1 / (1 + SINR)
    weights = torch.linalg.lstsq(heard.mT, s.mT).solution
    error = (heard.mT @ weights - s.mT).abs().square()[..., 0]
    standard = error.std(2) / math.sqrt(uses)
    assert ((error.mean(2) - 1 / (1 + sinr)).abs() < 5 * standard).all()


@pytest.mark.parametrize("users", [2, 3])
def test_the_neighbours_sinr_is_that_of_symbols_that_were_sent(users):
    snr_db, uses, some = 6.0, 20_000, 40
    H, V = drawn(Overheard, users, snr_db)
    sinr = Overheard(users).sinr(snr_db).reshape(BANK, users)[:some]
    s = phy.noise((some, users, 1, uses), 1.0, seeded(1), torch.device("cpu"))
    H, V = H[:some].to(torch.complex64), V[:some].to(torch.complex64)
    X = V @ s
    heard = phy.Interference(users, 2, 2)(X, H, snr_db, seeded(2))
    for k in range(users):
        j = (k + 1) % users
        left = heard[:, j] - H[:, j, j] @ X[:, j]
        weights = torch.linalg.lstsq(left.mT, s[:, k].mT).solution
        error = (left.mT @ weights - s[:, k].mT).abs().square()[..., 0]
        standard = error.std(1) / math.sqrt(uses)
        assert ((error.mean(1) - 1 / (1 + sinr[:, k])).abs() < 5 * standard).all()


def test_what_arrives_is_the_symbol_in_noise_of_n0_by_a_gain_of_the_bank():
    channel, snr_db = Interfered(), 8.0
    symbols = phy.noise((4000, 50), 1.0, seeded(3), torch.device("cpu"))
    received = channel(symbols, snr_db, seeded(4))
    assert received.csi.shape == (4000, 1)
    left = received.symbols - received.csi * symbols
    energy = left.abs().square()
    n0 = 10 ** (-snr_db / 10)
    assert abs(energy.mean() - n0) < 5 * energy.std() / math.sqrt(energy.numel())
    torch.testing.assert_close(received.noise_variance, torch.full((4000, 1), n0))
    sinr = (received.csi.abs().square() / received.noise_variance).flatten()
    bank = channel.sinr(snr_db)
    assert ((sinr[:200, None] / bank).log().abs().amin(1) < 1e-4).all()
    assert abs(sinr.log().mean() - bank.log().mean()) < 5 * bank.log().std() / math.sqrt(4000)


def test_each_image_has_the_sinr_of_its_own_snr():
    levels = torch.tensor([0.0, 20.0]).repeat(2000)
    channel = Interfered()
    received = channel(torch.ones(4000, 4, dtype=torch.complex64), levels, seeded(0))
    sinr = (received.csi.abs().square() / received.noise_variance).flatten().log()
    for place, level in enumerate((0.0, 20.0)):
        bank, found = channel.sinr(level).log(), sinr[place::2]
        assert abs(found.mean() - bank.mean()) < 5 * bank.std() / math.sqrt(2000)


def test_without_cross_gain_the_meant_receiver_hears_its_own_best_direction():
    channel = Interfered(cross_gain_db=-math.inf)
    H = channel.medium.draw(BANK, seeded(0)).to(torch.complex128)
    strongest = torch.linalg.svdvals(H.diagonal(dim1=1, dim2=2).movedim(-1, 1))[..., 0]
    expected = 2 * 10**0.5 * strongest.square()  # energy Nt into the strongest singular direction, N0 = 10^-0.5
    # min-max lets the better served spend less: only the worst of each channel must be at its best
    found = channel.sinr(5.0).reshape(BANK, 2).double()
    torch.testing.assert_close(found.amin(1), expected.amin(1), rtol=5e-3, atol=0)
    assert (Overheard(cross_gain_db=-math.inf).sinr(5.0) == 0).all()


def test_more_users_hide_a_signal_from_each_other_and_disturb_it():
    meant = [Interfered(users).sinr(12.0).log2().mean() for users in (2, 3)]
    other = [Overheard(users).sinr(12.0).log2().mean() for users in (2, 3)]
    assert meant[0] > meant[1]
    assert other[0] - other[1] > meant[0] - meant[1]


def test_the_capacity_of_a_bank_and_the_bounds_above_it():
    channel, added = Overheard(), 0.5
    bank = channel.sinr(10.0).double()
    assert mean_capacity_bits(channel, 10.0, 1) == pytest.approx(float((1 + bank).log2().mean()), rel=1e-12)
    weaker = float((1 + bank / (1 + added)).log2().mean())
    assert mean_capacity_bits(channel, 10.0, 1, added) == pytest.approx(weaker, rel=1e-12)
    pairs = (1 + bank[:, None] + bank[:1000]).log2().mean()
    assert pairs < mean_capacity_bits(channel, 10.0, 2) < pairs + 0.3


@pytest.mark.parametrize("snr_db", [0.0, 8.0])
def test_the_bound_of_a_constellation_is_above_its_mean_over_the_bank(snr_db):
    link = create("deepjscc-lbvq", data="digits", channel="interference", preset="smoke", channel_uses=16)
    bounds = upper_bounds(link, Threat(snr_db), snr_db)
    modem = link.scheme.modem
    points = modem.scaled(modem.point)
    bank = link.medium.sinr(snr_db)[::64].log10().mul(10).tolist()
    mean = sum(constellation_capacity(points, level).bits for level in bank) / len(bank)
    assert 16 * mean < bounds["soft_capacity_bits"] < 16 * mean + 4


@pytest.mark.parametrize("kind", [Interfered, Overheard])
@pytest.mark.parametrize("users", [2, 4])
@pytest.mark.parametrize("snr_db", [-100.0, -30.0, 60.0, 100.0])
def test_very_loud_and_very_quiet_channels(kind, users, snr_db, monkeypatch):
    monkeypatch.setattr(interfered, "BANK", 32)
    channel = kind(users)
    assert (channel.sinr(snr_db) > 0).all()
    received = channel(torch.ones(50, 4, dtype=torch.complex64), snr_db, seeded(0))
    assert received.csi.isfinite().all()


@pytest.mark.parametrize("snr_db", [-101.0, 200.0])
def test_an_snr_beyond_what_can_be_designed_for(snr_db):
    with pytest.raises(SemlinkError, match=f"snr_db on an interference channel is {snr_db}: a number from -100 to 100"):
        Interfered()(torch.ones(2, 4, dtype=torch.complex64), snr_db, seeded(0))


def test_between_whole_decibels_the_bank_is_interpolated_and_no_other_is_designed(monkeypatch):
    monkeypatch.setattr(interfered, "BANK", 64)
    channel = Interfered(3)
    between = channel.sinr(9.5)
    H = channel.medium.draw(64, seeded(0)).to(torch.complex128)
    exact = 1 / phy.minimise_max_mse(H, 9.5).mse - 1
    assert abs((between / exact.flatten()).log().mean()) < 0.02
    channel(torch.ones(256, 4, dtype=torch.complex64), 9 + torch.rand(256, generator=seeded(1)), seeded(0))
    assert set(channel._banks) == {9, 10}


def test_the_names():
    assert isinstance(channels["interference"](), Interfered)
    assert channels["interference-4"]().medium.users == 4
    assert isinstance(channels["overheard-3"](), Overheard)
    assert channels["overheard-3"]().medium.users == 3


def test_a_scheme_of_one_user_works_among_others():
    link = create("deepjscc-lbvq", data="digits", channel="interference-3", preset="smoke", channel_uses=16)
    logits = link.deliver(torch.rand(8, 1, 28, 28), 10.0, seeded(0))
    assert logits.shape == (8, 10)


def test_a_neighbour_needs_the_links_own_channel():
    link = create("deepjscc", data="digits", channel="interference-3", preset="smoke", channel_uses=16)
    tap = Tap(link, Threat(10.0, channel="overheard-3"))
    assert tap.intercept(torch.rand(4, 1, 28, 28), seeded(0)).shape == (4, 32)
    with pytest.raises(SemlinkError, match="nobody is on channel 'overheard' while the link is on its own"):
        Tap(link, Threat(10.0, channel="overheard"))
    plain = create("deepjscc", data="digits", preset="smoke", channel_uses=16)
    other = create("deepjscc", data="digits", channel="overheard", preset="smoke", channel_uses=16)
    with pytest.raises(SemlinkError, match="nobody is on channel 'overheard'"):
        medium_of(other, Threat(10.0, channel="overheard"))
    with pytest.raises(SemlinkError, match="nobody is on channel 'overheard-3'"):
        medium_of(plain, Threat(10.0, channel="overheard-3"))


def test_one_user_has_no_interference():
    with pytest.raises(SemlinkError, match="users is 1: interference is of at least 2"):
        Interfered(1)


def test_the_gain_is_public_as_that_of_any_fading_channel():
    received = Interfered()(torch.ones(3, 5, dtype=torch.complex64), 10.0, seeded(0))
    assert isinstance(received, Received)
    forced = phy.zero_force(received)
    torch.testing.assert_close(forced.noise_variance, received.noise_variance / received.csi.abs().square())
