# SPDX-License-Identifier: Apache-2.0
"""Noise and fading: moments, block structure, seeds, and what the receiver makes of them.

Statistical tests use fixed seeds and allow five standard errors.
"""

import math

import numpy as np
import pytest
import torch

from semlink._errors import SemlinkError
from semlink.phy import (
    AWGN,
    Channel,
    Rayleigh,
    Received,
    Rician,
    channels,
    equalise,
    noise,
    normalise_power,
    qam,
    symbol_error_rate_qam,
    zero_force,
)

CPU = torch.device("cpu")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def unit_symbols(batch: int, n: int, seed: int = 0) -> torch.Tensor:
    return qam(16).modulate(torch.randint(16, (batch, n), generator=seeded(seed)))


def assert_mean(samples: torch.Tensor, expected: float) -> None:
    samples = samples.double().flatten()
    error = samples.std() / math.sqrt(len(samples))
    assert abs(samples.mean() - expected) < 5 * error, f"{samples.mean():.6g} +- {error:.2g}, not {expected:.6g}"


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 4.0, 12.0, 20.0])
def test_noise_is_circular_gaussian_of_variance_n0(snr_db):
    silence = torch.zeros(200, 1000, dtype=torch.complex64)
    received = AWGN()(silence, snr_db, seeded(1))
    n0 = 10 ** (-snr_db / 10)
    torch.testing.assert_close(received.noise_variance, torch.full((200, 1), n0))
    n = received.symbols.to(torch.complex128)
    for rail in (n.real, n.imag):
        assert_mean(rail, 0)
        assert_mean(rail.square(), n0 / 2)
        assert_mean(rail**4, 3 * (n0 / 2) ** 2)
    assert_mean(n.real * n.imag, 0)
    assert_mean(n.abs() ** 2, n0)
    assert_mean(n.abs() ** 4, 2 * n0**2)
    assert_mean((n[:, 1:] * n[:, :-1].conj()).real, 0)  # uses are independent
    assert_mean((n[1:] * n[:-1].conj()).real, 0)  # and so are images


def test_noise_takes_a_number_or_a_tensor():
    one = noise((3, 4), 0.5, seeded(0), CPU)
    many = noise((3, 4), torch.full((3, 1), 0.5), seeded(0), CPU)
    assert one.dtype == many.dtype == torch.complex64
    torch.testing.assert_close(one, many)
    assert (noise((3, 4), 0.0, seeded(0), CPU) == 0).all()


def test_noise_is_float32_whatever_the_default():
    torch.set_default_dtype(torch.float64)
    try:
        assert noise((2, 2), 1.0, seeded(0), CPU).dtype == torch.complex64
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_channel_never_measures_power():
    x = unit_symbols(2, 500)
    x[1] *= 10  # a loud image must not change the noise of anybody
    quiet = AWGN()(torch.zeros_like(x), 10.0, seeded(2)).symbols
    loud = AWGN()(x, 10.0, seeded(2)).symbols
    torch.testing.assert_close(loud - x, quiet, rtol=0, atol=2e-6)
    assert_mean((loud - x)[0].abs() ** 2, 0.1)
    assert_mean((loud - x)[1].abs() ** 2, 0.1)


def test_snr_per_image():
    levels = torch.tensor([0.0, 10.0, 20.0])
    received = AWGN()(torch.zeros(3, 50_000, dtype=torch.complex64), levels, seeded(3))
    assert received.noise_variance.shape == (3, 1)
    for i, n0 in enumerate((1.0, 0.1, 0.01)):
        assert received.noise_variance[i].item() == pytest.approx(n0)
        assert_mean(received.symbols[i].abs() ** 2, n0)
    column = AWGN()(torch.zeros(3, 50_000, dtype=torch.complex64), levels[:, None], seeded(3))
    assert torch.equal(column.symbols, received.symbols)


def test_awgn_has_no_csi():
    received = AWGN()(unit_symbols(2, 8), 10.0, seeded(0))
    assert received.csi is None
    assert torch.equal(equalise(received), received.symbols)
    assert zero_force(received) is received


@pytest.mark.parametrize("block", ["image", "symbol"])
def test_rayleigh_moments(block):
    h = _gains(Rayleigh(block), 200_000).to(torch.complex128)
    energy = h.abs() ** 2
    assert_mean(energy, 1)
    assert_mean(energy**2, 2)  # exponential energy
    for rail in (h.real, h.imag):
        assert_mean(rail, 0)
        assert_mean(rail.square(), 0.5)
    assert_mean(h.real * h.imag, 0)
    assert_mean((energy < 0.1).double(), 1 - math.exp(-0.1))  # outage of a deep fade


@pytest.mark.parametrize("k_factor_db", [-10.0, 0.0, 6.0, 15.0])
def test_rician_k_from_moments(k_factor_db):
    h = _gains(Rician(k_factor_db, "symbol"), 400_000).to(torch.complex128)
    k = 10 ** (k_factor_db / 10)
    energy = h.abs() ** 2
    assert_mean(energy, 1)
    assert_mean(h.real, math.sqrt(k / (k + 1)))
    assert_mean(h.imag, 0)
    for rail in (h.real - math.sqrt(k / (k + 1)), h.imag):
        assert_mean(rail.square(), 0.5 / (k + 1))
    # E|h|^4 = 1 + (2 K + 1) / (K + 1)^2 gives K without the mean: a wrong split of the power shows.
    assert_mean(energy**2, 1 + (2 * k + 1) / (k + 1) ** 2)
    if k >= 1:
        direct = math.sqrt(2 * energy.mean() ** 2 - (energy**2).mean())
        assert direct / (energy.mean() - direct) == pytest.approx(k, rel=0.05)


def test_rician_limits():
    assert (_gains(Rician(100.0), 1000) - 1).abs().max() < 1e-4
    assert torch.equal(_gains(Rician(-math.inf), 100), _gains(Rayleigh(), 100))


def _gains(channel: Channel, count: int) -> torch.Tensor:
    shape = (count, 1) if getattr(channel, "block", "image") == "image" else (count // 100, 100)
    h = channel.gains(*shape, torch.ones(shape[0], 1), seeded(11))
    assert h is not None
    assert h.shape == shape
    assert h.dtype == torch.complex64
    return h


@pytest.mark.parametrize("make", [Rayleigh, Rician])
def test_block_structure(make):
    x = normalise_power(torch.randn(400, 60, dtype=torch.complex64, generator=seeded(0)))
    by_image = make(block="image")(x, 200.0, seeded(1))
    assert by_image.csi.shape == (400, 1)
    applied = by_image.symbols / x
    assert (applied - applied[:, :1]).abs().max() < 1e-4
    assert by_image.csi.real.unique().numel() > 390  # two images may meet in float32, not share
    by_symbol = make(block="symbol")(x, 200.0, seeded(1))
    assert by_symbol.csi.shape == (400, 60)
    h = by_symbol.csi.to(torch.complex128)
    h = h - h.mean()
    assert_mean((h[:, 1:] * h[:, :-1].conj()).real, 0)
    assert_mean((h[1:] * h[:-1].conj()).real, 0)


@pytest.mark.parametrize("channel", [Rayleigh(), Rayleigh("symbol"), Rician(3.0), Rician(3.0, "symbol")])
def test_csi_is_the_gain_that_was_applied(channel):
    x = unit_symbols(50, 20)
    received = channel(x, 200.0, seeded(4))
    torch.testing.assert_close(received.symbols, received.csi * x, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(equalise(received), x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(zero_force(received).symbols, x, rtol=1e-4, atol=1e-4)


def test_a_deep_fade_lowers_the_snr():
    x = unit_symbols(20_000, 16)
    received = Rayleigh()(x, 10.0, seeded(5))
    energy = received.csi.abs().flatten() ** 2
    noise_power = (received.symbols - received.csi * x).abs() ** 2
    faded = energy < 0.1
    assert 1000 < faded.sum() < 3000
    assert_mean(noise_power[faded], 0.1)  # the noise stays: the faded image has less signal and nothing makes up for it
    assert_mean(noise_power[energy > 2], 0.1)
    signal = received.symbols[faded].abs() ** 2 - noise_power[faded]
    assert signal.mean() < 0.1


@pytest.mark.parametrize("channel", [AWGN(), Rayleigh(), Rician(block="symbol")])
def test_seeds(channel):
    x = unit_symbols(4, 32)
    first, again, other = (channel(x, 8.0, seeded(seed)) for seed in (7, 7, 8))
    assert torch.equal(first.symbols, again.symbols)
    assert not (first.symbols == other.symbols).any()
    generator = seeded(7)
    channel(x, 8.0, generator)
    assert not (channel(x, 8.0, generator).symbols == first.symbols).any()  # noise is drawn anew on each call
    torch.manual_seed(0)
    assert torch.equal(channel(x, 8.0, seeded(7)).symbols, first.symbols)  # and never from the global generator


@pytest.mark.parametrize("channel", [AWGN(), Rayleigh(), Rician(block="symbol")])
def test_float32_under_autocast(channel):
    x = unit_symbols(3, 16)
    plain = channel(x, 12.0, seeded(9))
    with torch.autocast("cpu", torch.bfloat16):
        cast = channel(x, 12.0, seeded(9))
        sent = equalise(cast), zero_force(cast).symbols
    assert cast.symbols.dtype == torch.complex64
    assert cast.noise_variance.dtype == torch.float32
    assert torch.equal(cast.symbols, plain.symbols)
    assert torch.equal(sent[0], equalise(plain))
    assert torch.equal(sent[1], zero_force(plain).symbols)


def test_gradients_pass_through():
    x = unit_symbols(3, 8).requires_grad_()
    received = Rayleigh()(x, 10.0, seeded(2))
    received.symbols.real.sum().backward()
    torch.testing.assert_close(x.grad, received.csi.conj().expand(3, 8).resolve_conj())


@pytest.mark.parametrize(
    "snr_db", [math.nan, math.inf, -math.inf, 301.0, -400.0, torch.tensor([1.0, math.nan, 3.0]), torch.tensor(math.inf)]
)
def test_a_senseless_snr_is_refused_in_one_line(snr_db):
    with pytest.raises(SemlinkError, match=r"^snr_db is \S+: a finite number of dB .*expected$") as caught:
        AWGN()(unit_symbols(3, 4), snr_db, seeded(0))
    assert "\n" not in str(caught.value)


def test_the_extreme_snrs_allowed_are_finite():
    for snr_db in (-300.0, 300.0):
        received = Rayleigh()(unit_symbols(3, 4), snr_db, seeded(0))
        assert torch.view_as_real(received.symbols).isfinite().all()
        assert 0 < received.noise_variance[0].item() < math.inf


def test_other_bad_input_is_refused():
    with pytest.raises(SemlinkError, match="snr_db holds 2 values for 3 images"):
        AWGN()(unit_symbols(3, 4), torch.zeros(2), seeded(0))
    with pytest.raises(SemlinkError, match="to_symbols"):
        AWGN()(torch.zeros(3, 4), 10.0, seeded(0))
    with pytest.raises(SemlinkError, match="complex symbols"):
        AWGN()(torch.zeros(3, 4, 2, dtype=torch.complex64), 10.0, seeded(0))
    for k_factor_db in (math.nan, math.inf, 4000.0):
        with pytest.raises(SemlinkError, match="k_factor_db is"):
            Rician(k_factor_db)
    with pytest.raises(SemlinkError, match="did you mean 'symbol'"):
        Rayleigh("symbols")  # pyright: ignore[reportArgumentType]


def test_the_registry_makes_each():
    among = [f"{kind}{users}" for kind in ("interference", "overheard") for users in ("", "-3", "-4", "-5")]
    assert sorted(channels.keys()) == sorted(["awgn", "rayleigh", "rician", *among])
    for key in channels.keys():  # noqa: SIM118  (a registry, not a dict)
        assert channels[key]().key == key.split("-")[0]
        if "-" in key:  # the same, of more users
            continue
        received = channels[key]()(unit_symbols(2, 4), 10.0, seeded(0))
        assert isinstance(received, Received)
    with pytest.raises(SemlinkError, match="did you mean 'rayleigh'"):
        channels["raleigh"]


@pytest.mark.parametrize("block", ["image", "symbol"])
@pytest.mark.parametrize("snr_db", [0.0, 8.0])
def test_equalise_is_the_mmse_estimate(block, snr_db):
    x = unit_symbols(5000, 40, 3)
    received = Rayleigh(block)(x, snr_db, seeded(6))
    h, n0 = received.csi.to(torch.complex128), 10 ** (-snr_db / 10)
    estimate = equalise(received)
    assert estimate.dtype == torch.complex64
    error = x - estimate
    # Orthogonality: no function of h times y is correlated with the error that is left.
    for weight in (torch.ones_like(h), h.conj(), h.conj() * h.abs() ** 2, h.conj() / (h.abs() ** 2 + n0)):
        product = (
            (error * (weight * received.symbols).conj()).mean(1)
            if block == "image"
            else error * (weight * received.symbols).conj()
        )
        assert_mean(product.real, 0)
        assert_mean(product.imag, 0)
    expected = (n0 / (h.abs() ** 2 + n0)).expand_as(error)
    difference = error.abs() ** 2 - expected
    assert_mean(difference.mean(1), 0)
    assert (error.abs() ** 2).mean() < ((x - zero_force(received).symbols).abs() ** 2).mean()


@pytest.mark.parametrize("block", ["image", "symbol"])
def test_zero_force_is_unbiased_with_the_variance_it_states(block):
    x = unit_symbols(2000, 50, 4)
    forced = zero_force(Rayleigh(block)(x, 6.0, seeded(7)))
    assert forced.csi is None
    standard = (forced.symbols - x) / forced.noise_variance.sqrt()
    assert_mean(standard.abs() ** 2, 1)
    assert_mean(standard.abs() ** 4, 2)
    assert_mean((standard * x.conj()).real, 0)


@pytest.mark.parametrize("order", [4, 16])
def test_error_rate_over_rayleigh_is_the_average_over_fades(order):
    constellation = qam(order)
    sent = torch.randint(order, (2000, 100), generator=seeded(8))
    received = zero_force(Rayleigh("symbol")(constellation.modulate(sent), 12.0, seeded(9)))
    wrong = (constellation.demodulate(received.symbols) != sent).double()
    # The density of |h|^2 is exp(-g); below g = 1e-8 the rate is that of guessing.
    g = np.logspace(-8, 2, 20_001)
    rates = [symbol_error_rate_qam(order, 12.0 + 10 * math.log10(value)) for value in g]
    expected = float(np.trapezoid(np.array(rates) * np.exp(-g), g)) + 1e-8 * (1 - 1 / order)
    assert_mean(wrong, expected)
