# SPDX-License-Identifier: Apache-2.0
"""The rate of a noisy feature against numerical integration; mixing, and scales that follow the noise."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad

from semlink import phy
from semlink.nn.variational import FixedScale, Inlet, MonotoneScale, UnitRows, log_uniform_kl, noise_level


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def mean_log(a):
    """``E ln|a + n|`` for standard normal n, the integral cut at the logarithm's pole."""
    edges = sorted({a - 12, min(max(0.0, a - 12), a + 12), a + 12})
    parts = [quad(lambda y: math.log(abs(y)) * stats.norm.pdf(y - a), *ends)[0] for ends in itertools.pairwise(edges)]
    return sum(parts)


def test_the_rate_is_the_divergence_from_the_log_uniform_prior():
    """E ln|f / sigma + n| - E ln|n|, the second term -(gamma + ln 2) / 2, within 0.01 nat from -40 to 40 dB."""
    assert mean_log(0.0) == pytest.approx(-(np.euler_gamma + math.log(2)) / 2, abs=1e-6)
    at_zero = mean_log(0.0)
    for snr_db in range(-40, 41, 4):
        snr = 10 ** (snr_db / 10)
        exact = mean_log(math.sqrt(snr)) - at_zero
        assert log_uniform_kl(torch.tensor(snr, dtype=torch.float64)).item() == pytest.approx(exact, abs=0.01)


def test_the_divergence_differs_from_that_of_any_other_noise_by_nothing_but_the_snr():
    """KL( N(f, sigma^2) || c / |y| ) minus that of f = 0, integrated over y for two noises of one SNR."""

    def divergence(f, sigma):
        def integrand(y):
            return stats.norm.pdf(y, f, sigma) * (stats.norm.logpdf(y, f, sigma) + math.log(abs(y)))

        return sum(quad(integrand, *ends)[0] for ends in ((f - 12 * sigma, 0.0), (0.0, f + 12 * sigma)))

    for f, sigma in [(1.5, 0.5), (0.3, 0.1)]:
        found = divergence(f, sigma) - divergence(0.0, sigma)
        assert log_uniform_kl(torch.tensor(9.0)).item() == pytest.approx(found, abs=0.01)


def test_rate_rises_from_0_and_its_gradient_is_finite_everywhere():
    snr = torch.cat([torch.zeros(1), torch.logspace(-30, 30, 400)]).requires_grad_()
    rate = log_uniform_kl(snr)
    assert abs(rate[0].item()) < 1e-12
    assert (rate.diff() >= 0).all()
    (gradient,) = torch.autograd.grad(rate.sum(), snr)
    assert gradient.isfinite().all()
    assert (gradient >= 0).all()
    assert gradient[0].item() == pytest.approx(0.5, abs=0.01), "a feature of 0 costs nothing, and its square 1/2 a unit"


def test_noise_level_is_the_root_of_the_mmse():
    symbols = torch.zeros(3, 5, dtype=torch.complex64)
    level = noise_level(phy.AWGN()(symbols, torch.tensor([-30.0, 0.0, 12.0]), seeded()))
    n0 = 10 ** (-torch.tensor([-30.0, 0.0, 12.0]) / 10)
    assert torch.allclose(level[:, 0], (n0 / (1 + n0)).sqrt())
    received = phy.Rayleigh("symbol")(symbols, 12.0, seeded(1))
    slow = torch.tensor([[10**-1.2 / (abs(h) ** 2 + 10**-1.2) for h in row] for row in received.csi.tolist()])
    assert torch.allclose(noise_level(received), slow.mean(1, keepdim=True).sqrt())
    faded = phy.Received(symbols[:1], torch.zeros(1, 1, dtype=torch.complex64), torch.full((1, 1), 1e-9))
    assert noise_level(faded).item() == 1


def test_rows_have_unit_length_whatever_the_weights():
    torch.manual_seed(0)
    mix, x = UnitRows(6), torch.randn(4, 6, generator=seeded())
    assert torch.allclose(mix(x).square().sum(1), x.square().sum(1), rtol=1e-5), "a rotation at the start"
    with torch.no_grad():
        mix.weight.copy_(torch.randn(6, 6, generator=seeded(1)) * torch.logspace(-3, 3, 6)[:, None])
    rows = mix.weight / mix.weight.norm(dim=1, keepdim=True)
    assert torch.allclose(mix(x), x @ rows.T, atol=1e-5)


def test_a_fixed_scale_is_1_at_first_and_knows_no_noise():
    scale = FixedScale(7)
    assert torch.equal(scale(None), torch.ones(1, 7))
    assert torch.equal(scale(torch.rand(3, 1)), scale(None))
    assert scale(None).requires_grad


NOISE = torch.logspace(-4, 3, 200)[:, None]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])
def test_scales_never_fall_when_the_noise_rises(seed, spread):
    """Whatever training makes of the weights, of either sign."""
    torch.manual_seed(seed)
    scale = MonotoneScale(30)
    with torch.no_grad():
        for parameter in scale.parameters():
            parameter += spread * torch.randn(parameter.shape)
        found = scale(NOISE)
    assert found.shape == (200, 30)
    assert (found >= 0).all()
    assert (found.diff(dim=0) >= -1e-6).all()
    assert (found[-1] > found[0]).any()


def test_scales_start_near_1_and_every_parameter_of_theirs_gets_gradient():
    torch.manual_seed(0)
    scale = MonotoneScale(30)
    found = scale(NOISE)
    assert ((found > 0.3) & (found < 2)).all()
    found.square().mean().backward()
    for name, parameter in scale.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_inlet_undoes_the_mixing_at_first_and_knows_the_noise_if_it_is_adaptive(adaptive):
    torch.manual_seed(0)
    mix = UnitRows(6)
    inlet, x = Inlet(mix, adaptive), torch.randn(4, 6, generator=seeded())
    assert torch.allclose(inlet.unmix(mix(x)), x, atol=1e-5)
    low, high = inlet(x, torch.full((4, 1), 0.1)), inlet(x, torch.full((4, 1), 0.6))
    assert low.shape == (4, 6)
    assert torch.equal(low, high) != adaptive
    level = torch.rand(4, 1, generator=seeded(1))
    inlet(x, level).square().sum().backward()
    for name, parameter in inlet.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
